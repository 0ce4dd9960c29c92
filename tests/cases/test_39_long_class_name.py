"""A class whose name is as long as the name of a folder may be: 255 bytes."""

import numpy as np

from tests.train.helpers import tiny
from train.data.sample import Sample
from train.data.source import Source
from train.engine.results import write_samples
from train.tasks import Classification

LONGEST = "\u732b" * 85  # three bytes a character


def test_every_class_has_a_sample_file(tmp_path):
    (tmp_path / LONGEST).mkdir()  # so a folder of pictures may have this name
    samples = [Sample(image=np.full((8, 8, 3), 20 * label, np.uint8), label=label) for label in range(2)]
    splits = {"train": samples, "validation": samples, "test": samples}
    source = Source(splits, (LONGEST, "dog"), (8, 8, 3), True, (0.5,) * 3, (0.2,) * 3)
    files = write_samples(Classification(tiny(), source).samples(), tmp_path / "samples")
    assert set(files) == {LONGEST, "dog"}
    assert len({path for path in files.values() if path.is_file()}) == 2
