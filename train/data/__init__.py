"""Data sources and batches.

``sample`` and ``source`` define the types, ``readers`` implements the sources, and ``loading`` finds them by name.
``transforms`` holds the augmentation, and ``batches`` the input pipeline.
"""

from train.data.batches import evaluation_batches, train_batches
from train.data.loading import load_source
from train.data.sample import Sample
from train.data.source import Source

__all__ = ["Sample", "Source", "evaluation_batches", "load_source", "train_batches"]
