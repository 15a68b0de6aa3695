"""Measurements, each against a peer or the physical limit in the same run, as a ratio."""
