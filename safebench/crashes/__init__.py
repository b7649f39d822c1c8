"""The crash specification and its detectors, for live runs and for recorded files, without I/O."""
