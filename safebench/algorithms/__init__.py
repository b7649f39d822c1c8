"""The interface of an algorithm, and PPO, SAFE and SAFE as released, with their controllers."""
