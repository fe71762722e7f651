"""Runs the real host quickly: tiny models, small preference sets, forked CLI runs, probes of what they wrote."""
