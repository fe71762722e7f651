"""Tests against the real host: its command line, on tiny models, in one process and on two ranks."""
