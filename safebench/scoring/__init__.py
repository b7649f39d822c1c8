"""Uses models after training: scores saved replies again, draws best of n, checks rewards, samples and exports."""
