"""Carries out many runs, in turn or in worker processes, and shows their progress."""
