"""Replaces the convolutions of any NNX network by multi-scale ones."""

from msconv_jax.surgery.replacement import Entry, Report, replace_convs
from msconv_jax.surgery.selection import PLAIN, Predicate, Where, convolutions, selected_convolutions

__all__ = ["PLAIN", "Entry", "Predicate", "Report", "Where", "convolutions", "replace_convs", "selected_convolutions"]
