"""Statistics, comparison, claims: reads run folders, never imports torch."""
