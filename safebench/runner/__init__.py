"""Many runs, in turn or in worker processes, and what they say while they go."""
