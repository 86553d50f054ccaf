"""Measurements, each beside the raw driver in the same run; never part of the library."""
