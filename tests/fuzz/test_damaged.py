"""A few inputs of each fuzzer, and inputs that once failed; ``make fuzz`` runs many."""

import json

import pytest

from tests.fuzz import annotations, metrics, weights
from tests.fuzz.annotations import pack
from tests.fuzz.driver import failures
from tests.train.rows import data_config
from train.config import validate_config
from train.data.formats import check_png
from train.data.images import ImageError
from train.data.indexed_png import read_indices
from train.errors import UserError


def test_damaged_weights():
    for data in weights.SEEDS:
        weights.FUZZER.check(data)
    assert failures(weights.FUZZER, 150) == []


def test_damaged_annotations():
    for seed in annotations.SEEDS:
        annotations.FUZZER.check(seed)
    assert failures(annotations.FUZZER, 15) == []


def test_damaged_files_of_runs():
    for data in metrics.SEEDS:
        metrics.FUZZER.check(data)
    assert failures(metrics.FUZZER, 80) == []


@pytest.mark.parametrize("fuzzer", [weights.FUZZER, annotations.FUZZER, metrics.FUZZER], ids=lambda fuzzer: fuzzer.name)
def test_inputs_depend_on_seed_and_number_alone(fuzzer):
    assert fuzzer.input(3, 4) == fuzzer.input(3, 4)
    assert len({fuzzer.input(seed, number) for seed in (0, 1) for number in range(10)}) > 15


def test_png_files_that_end_within_the_head_of_a_chunk():
    mask = annotations.MASKS[0]
    for end in range(len(mask)):
        with pytest.raises(ImageError):
            read_indices(mask[:end])
        with pytest.raises(ImageError):
            check_png(mask[:end])


@pytest.mark.parametrize("section", [(), ("data",), ("task",)])
def test_names_of_settings_that_are_not_unicode(section):
    values = data_config().model_dump()
    inside = values
    for name in section:
        inside = inside[name]
    inside["\udcff"] = 3
    place = ".".join(["config", *section])
    with pytest.raises(UserError, match=f"^{place} has a name that is not valid Unicode; change it$"):
        validate_config(values)


@pytest.mark.parametrize("step", [b"1e999", b"7.0", b'"7"', b"true", b"[7]"])
def test_checkpoints_whose_metadata_have_another_step(step, tmp_path, capsys):
    place = metrics.NAMES.index("checkpoints/7/meta/metadata")
    metadata = json.dumps(metrics.FILES[metrics.NAMES[place]][0]).encode()
    path = tmp_path / metrics.NAMES[place]
    path.parent.mkdir(parents=True)
    for data, count in ((metadata, 1), (metadata.replace(b'"step": 7', b'"step": ' + step), 0)):
        path.write_bytes(data)
        assert len(metrics.read_checkpoint(path)) == count
    assert "is damaged and not used: its metadata cannot be read" in capsys.readouterr().err


def test_trees_that_leave_their_folder_are_unpacked_inside(tmp_path):
    entries = [
        (0, b"../../x/../y", b"content"),
        (0, b"/a/" + b"n" * 300, b""),
        (2, b"a/link", b"\2"),
        (2, b"a/link/link", b"\2"),
        (0, b"a/link/z", b""),
    ]
    root = tmp_path / "data" / "root"
    root.mkdir(parents=True)
    annotations.unpack(pack(0, 0, entries)[2:], bytes(root))
    assert (root / "x" / "y").read_bytes() == b"content"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["root"]
    assert sorted(path.name for path in (root / "a").iterdir()) == ["link"]
