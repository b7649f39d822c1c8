"""Pure functions on tensors: no settings, no files."""
