"""Configs and rows for tests of the data, as a classifier takes them but without a task."""

import numpy as np

from train.config.schema import Config
from train.data.sample import Sample
from train.data.source import Source
from train.data.transforms import create_augmentation
from train.data.transforms.evaluation import create_evaluation


def data_config(source="digits", *, batch_size=240, seed=0, **data) -> Config:
    """A config of a source; its model is never built."""
    return Config.model_validate(
        {
            "data": {"source": source, **data},
            "model": {"name": "tiny_for_tests"},
            "optimizer": {"learning_rate": 0.1},
            "epochs": 2,
            "batch_size": batch_size,
            "seed": seed,
        }
    )


def training_rows(source: Source, config: Config):
    """From samples to augmented rows."""
    augment = create_augmentation(config.data.augment, source)

    def row(sample: Sample, rng: np.random.Generator):
        return {"image": augment(sample, rng).pixels, "label": np.int32(sample.label)}

    return row


def evaluation_rows(source: Source, **settings: int):
    """From samples to rows for evaluation; settings are of `create_evaluation`."""
    evaluate = create_evaluation(source, **settings)
    return lambda sample, rng: {"image": evaluate(sample.image), "label": np.int32(sample.label)}
