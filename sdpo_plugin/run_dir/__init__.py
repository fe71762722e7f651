"""The run directory: its files, and what they are trusted for. Knows no model, no host and no report."""
