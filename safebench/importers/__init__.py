"""Reads metric histories of other trainers into run folders."""
