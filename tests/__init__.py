"""Tests of the core: no network, no host, seconds."""
