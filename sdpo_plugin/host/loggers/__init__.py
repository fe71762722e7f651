"""One run of each logger for the whole chain, on one axis: updates since M_0."""
