"""The report of a run, made from its run directory alone."""
