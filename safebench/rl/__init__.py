"""Pure functions on tensors, without settings or file access."""
