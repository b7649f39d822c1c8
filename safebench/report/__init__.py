"""What people read: tables, summary, ledger, plots, one HTML page."""
