"""Many runs, in turn or in worker processes, and their progress."""
