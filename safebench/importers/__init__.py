"""Histories of other trainers, read into run folders."""
