"""What needs models after training: saved replies scored again, best of n, checks of a reward, sampling, export."""
