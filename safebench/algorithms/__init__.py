"""What an algorithm is, and PPO, SAFE and SAFE as released, each with its controller."""
