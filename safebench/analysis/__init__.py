"""Compute statistics, comparisons and claims from run folders, without importing torch."""
