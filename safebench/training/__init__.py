"""One run: the loop, its stages, several processes, and the way from settings to a final status."""
