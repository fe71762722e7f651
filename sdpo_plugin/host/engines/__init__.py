"""Ranks, engines and weights."""
