"""Preference data through the loaders of the host: loaded, tokenized, laid out as steps."""
