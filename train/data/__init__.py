"""Data sources, and the pipeline that makes batches of them.

``sources`` says what a source is, ``digits`` and its neighbours are some, ``loading`` finds them by name; ``augment``
holds the transforms, and ``pipeline`` puts all together.
"""

from train.data.loading import load_source
from train.data.pipeline import evaluation_batches, train_batches
from train.data.sources import Batch, Record, Source, Split

__all__ = ["Batch", "Record", "Source", "Split", "evaluation_batches", "load_source", "train_batches"]
