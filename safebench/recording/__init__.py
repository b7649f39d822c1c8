"""The files of a run: CSV, samples, events, manifest, status, checkpoints, trackers."""
