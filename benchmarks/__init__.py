"""Timing: operators against the plain convolution. Programs, not part of the wheel."""
