"""Output for readers: tables, summary, ledger, plots, one HTML page."""
