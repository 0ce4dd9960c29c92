"""Splits that batches do not divide, on several processes: every image once, in order, and no padding counts."""

import numpy as np
import pytest

from tests.train.helpers import tiny
from train.data import evaluation_batches, train_batches
from train.data.sample import Sample
from train.data.source import Source
from train.tasks import Classification


def numbered(count, batch_size):
    """A source whose image n has the value n everywhere, its config, and the task."""
    samples = [Sample(image=np.full((4, 4, 1), number, np.uint8), label=number % 3) for number in range(count)]
    splits = {"train": samples, "validation": samples, "test": samples}
    source = Source(splits, ("a", "b", "c"), (4, 4, 1), True, (0.5,), (0.2,))
    config = tiny({"data.augment": {}}, batch_size=batch_size)
    return source, config, Classification(config, source)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (7, 8), (8, 8), (9, 8), (17, 4)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_sees_every_image_once(count, batch_size, processes):
    source, config, task = numbered(count, batch_size)
    transform = task.transform(training=False)
    parts = [
        list(evaluation_batches(source, "test", config, transform, process_index=index, process_count=processes))
        for index in range(processes)
    ]
    seen = [
        int(image[0, 0, 0])
        for step in zip(*parts, strict=True)
        for batch in step
        for image, weight in zip(batch["image"], batch["weight"], strict=True)
        if weight
    ]
    assert seen == list(range(count))


@pytest.mark.parametrize(("count", "batch_size"), [(8, 8), (9, 8), (17, 4)])
def test_training_batches_do_not_depend_on_processes_and_resuming(count, batch_size):
    source, config, task = numbered(count, batch_size)
    transform = task.transform(training=True)

    def images(first, **place):
        return [batch["image"] for batch in train_batches(source, config, transform, first, 4, **place)]

    whole = images(0)
    halves = [images(0, process_index=index, process_count=2) for index in range(2)]
    assert len(whole) == 4
    for join_path, *parts in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(join_path, np.concatenate(parts))
    for resumed, expected in zip(images(2), whole[2:], strict=True):
        np.testing.assert_array_equal(resumed, expected)
