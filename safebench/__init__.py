"""SAFE against PPO: train, record, compare."""
