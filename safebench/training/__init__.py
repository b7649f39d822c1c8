"""One run: the loop, its stages, data-parallel processes, and the way from settings to a final status."""
