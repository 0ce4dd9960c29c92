"""Data sources, and the batches that are made of them.

``sample`` and ``source`` say what a source gives, ``readers`` are sources, ``loading`` finds them by name;
``transforms`` holds the augmentation, and ``batches`` puts all together.
"""

from train.data.batches import evaluation_batches, train_batches
from train.data.loading import load_source
from train.data.sample import Sample
from train.data.source import Source

__all__ = ["Sample", "Source", "evaluation_batches", "load_source", "train_batches"]
