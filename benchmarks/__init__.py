"""Benchmark programs: operators over the plain convolution. Not part of the wheel."""
