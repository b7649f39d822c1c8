"""The crash specification and its detectors, live and over files; pure."""
