"""Files of a data set never select an import, and damage is an error of one sentence."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from etils import epath

from tests.train.helpers import ROOT
from tests.train.rows import data_config
from train.data import load_source
from train.data.readers.descriptions import read_class_names
from train.data.readers.files import UnusableError
from train.data.readers.prepared import find_prepared, is_name
from train.errors import UserError

PREPARED = ROOT / "tests" / "data" / "tfds"
FOREIGN = "features_of_a_stranger.Feature"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the prepared CIFAR-10, to be changed."""
    return Path(shutil.copytree(PREPARED / "cifar10", tmp_path / "cifar10")) / "3.0.2"


@pytest.fixture
def stranger(tmp_path, monkeypatch) -> Path:
    """A module on Python's path; its import creates a file."""
    trace = tmp_path / "imported"
    (tmp_path / "features_of_a_stranger.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return trace


def load(folder):
    return load_source(data_config("cifar10", dir=str(folder.parents[1])))


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def features_of(values):
    return values["featuresDict"]["features"]


LABEL = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
FOREIGN_FEATURES = {
    "the whole": lambda values: values.update(pythonClassName=FOREIGN),
    "the label": lambda values: features_of(values)["label"].update(pythonClassName=FOREIGN),
    "what is not read": lambda values: features_of(values)["id"].update(pythonClassName=FOREIGN),
    "the other spelling": lambda values: features_of(values).update(x={"python_class_name": FOREIGN, "text": {}}),
    "both spellings": lambda values: features_of(values)["label"].update(python_class_name=FOREIGN),
    "the old form": lambda values: features_of(values).update(label={"type": FOREIGN, "content": {"num_classes": 10}}),
    "the old form beside": lambda values: features_of(values)["label"].update(
        type=FOREIGN, content={"num_classes": 10}
    ),
    "a sequence": lambda values: features_of(values).update(
        x={
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "sequence": {"feature": {"pythonClassName": FOREIGN, "text": {}}},
        }
    ),
    "JSON within JSON": lambda values: features_of(values).update(
        x={
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"y": {"type": FOREIGN, "content": {}}})},
        }
    ),
    "a module of tfds": lambda values: features_of(values)["label"].update(
        pythonClassName="tensorflow_datasets.testing.X"
    ),
}


@pytest.mark.parametrize("place", FOREIGN_FEATURES)
def test_no_class_of_a_file_is_imported(folder, stranger, place):
    edit(folder / "features.json", FOREIGN_FEATURES[place])
    with pytest.raises(UserError, match=r"features.json: .*the class '.*none of tfds's features; only .* prepare them"):
        load(folder)
    assert not stranger.exists()
    assert "features_of_a_stranger" not in sys.modules


def test_a_data_set_of_another_name_imports_nothing(folder, stranger, tmp_path):
    """tfds looks up a data set's code by name to find its default config."""
    shutil.move(tmp_path / "cifar10", tmp_path / "features_of_a_stranger")
    source = load_source(data_config("features_of_a_stranger", dir=str(tmp_path)))
    assert len(source.classes) == 10
    assert not stranger.exists()


def test_the_name_of_another_data_set_gives_no_segmentation(folder):
    edit(folder / "dataset_info.json", lambda values: values.update(name="scaled_digits"))
    for path in folder.glob("cifar10-*"):
        path.rename(folder / path.name.replace("cifar10", "scaled_digits"))
    assert load(folder).fields == {"label"}
    with pytest.raises(UserError, match="which has no segmentation"):
        load_source(data_config("cifar10", dir=str(folder.parents[1])), frozenset({"segmentation"}))


def test_old_descriptions_are_read_alike(folder):
    new = load(folder)
    old = {
        "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "content": {
            "image": {
                "type": "tensorflow_datasets.core.features.image_feature.Image",
                "content": {"shape": [32, 32, 3], "dtype": "uint8", "encoding_format": "png"},
            },
            "label": {"type": LABEL, "content": json.dumps({"numClasses": "10"}), "proto_cls": "tfds.ClassLabel"},
            "id": {"type": "tensorflow_datasets.core.features.text_feature.Text", "content": {}},
        },
    }
    (folder / "features.json").write_text(json.dumps(old))
    assert load(folder)._replace(splits={}) == new._replace(splits={})
    for one, other in zip(load(folder).splits["train"], new.splits["train"], strict=True):
        assert one == other


@pytest.mark.parametrize(
    "name",
    [
        "../cifar10",
        "/etc/cifar10",
        "cifar10/..",
        "cifar10/.:3.0.2",
        "huggingface:cifar10",
        "a:cifar10",
        "cifar10/a=b",
        "",
    ],
)
def test_names_lead_nowhere_else(name):
    assert not is_name(name)
    assert find_prepared(name, str(PREPARED)) is None
    if name:
        with pytest.raises(UserError, match="which does not exist; "):
            load_source(data_config(name, dir=str(PREPARED)))


def test_pipes_are_not_waited_for(folder):
    for name in ("label.labels.txt", "features.json", "cifar10-train.array_record-00000-of-00001"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=r"no regular file|incomplete or damaged"):
            load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)


DAMAGE = {
    "missing": None,
    "empty": b"",
    "binary": bytes(range(256)),
    "cut off": b'{"featuresDict": {',
    "deep": b"[" * 100_000,
    "a deep value": b'{"a": ' * 900 + b"1" + b"}" * 900,
    "no object": b"[]",
    "null": b"null",
    "a number": b"1" * 5000,
    "not a number": b"NaN",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_damaged_descriptions(folder, file, damage):
    content = DAMAGE[damage]
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=r"train.prepare --dataset=cifar10") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_description_is_not_read_whole_if_it_is_huge(folder):
    with (folder / "features.json").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"features.json: it has 1,099,511,627,776 bytes, and at most 8,388,608"):
        load(folder)


def split(values, **changes):
    values["splits"][0].update(changes)


INFO = {
    "another folder": (lambda v: split(v, filepathTemplate="../../x-{SHARD_X_OF_Y}"), "leads out of the folder"),
    "the root": (lambda v: split(v, filepathTemplate="/etc/{SPLIT}"), "leads out of the folder"),
    "an attribute": (lambda v: split(v, filepathTemplate="{SPLIT.__class__}"), "filepath_template is '{SPLIT.__cl"),
    "a width": (lambda v: split(v, filepathTemplate="{SPLIT:999999999}"), "its filepath_template is"),
    "many records": (
        lambda v: split(v, shardLengths=["9" * 18]),
        "shard_lengths is '?9+'?, but must be a whole number",
    ),
    "negative records": (lambda v: split(v, shardLengths=[-1]), "shard_lengths is -1, but"),
    "half a record": (lambda v: split(v, shardLengths=[0.5]), "shard_lengths is 0.5, but"),
    "no list": (lambda v: split(v, shardLengths={"a": 1}), "its shard_lengths is"),
    "a split twice": (lambda v: split(v, name="test"), "the split 'test' twice"),
    "a split of no name": (lambda v: split(v, name="--"), "name is '--', which is no name of tfds"),
    "no splits": (lambda v: v.update(splits=[]), "it has no splits"),
    "a folder as name": (lambda v: v.update(name="../x"), "its name is '../x'"),
    "no version": (lambda v: v.pop("version"), "its version is None"),
    "a text as splits": (lambda v: v.update(splits=["train"]), "holds 'train' where an object is expected"),
}


@pytest.mark.parametrize("case", INFO)
def test_info_that_asks_for_what_is_not_allowed(folder, case):
    change, message = INFO[case]
    edit(folder / "dataset_info.json", change)
    with pytest.raises(UserError, match=f"dataset_info.json: .*{message}"):
        load(folder)


def label(values, **changes):
    features_of(values)["label"]["classLabel"].update(changes)


def image(values, **changes):
    features_of(values)["image"]["image"].update(changes)


FEATURES = {
    "many classes": (
        lambda v: label(v, numClasses=10**12),
        "'label': its num_classes is 10+, but must be .* to 100,000",
    ),
    "less than no classes": (lambda v: label(v, numClasses=-1), "'label': its num_classes is -1"),
    "a text": (lambda v: label(v, numClasses="many"), "'label': its num_classes is 'many'"),
    "more classes than names": (
        lambda v: label(v, numClasses=11),
        "label.labels.txt: it has 10 names, but there are 11",
    ),
    "a huge image": (
        lambda v: image(v, shape={"dimensions": [2**30, 2**30, 3]}),
        "'image': its shape is .*no image has",
    ),
    "a flat image": (lambda v: image(v, shape={"dimensions": [32]}), "'image': its shape is"),
    "an image of texts": (lambda v: image(v, dtype="S1000000000"), "'image': its shape is .* of 'S10"),
    "a list": (lambda v: v["featuresDict"].update(features=[1]), "its features are"),
    "a key that cannot be shown": (lambda v: features_of(v).update({"\x1b[2J": {}}), "is no name of a feature"),
    "no record": (lambda v: v.update(pythonClassName=LABEL), "it describes a ClassLabel, but"),
}


@pytest.mark.parametrize("case", FEATURES)
def test_features_that_ask_for_what_is_not_allowed(folder, case):
    change, message = FEATURES[case]
    edit(folder / "features.json", change)
    with pytest.raises(UserError, match=f"features.json: .*{message}"):
        load(folder)


NAMES = {
    "empty": (b"", "it has 0 names, but there are 10"),
    "fewer": (b"a\nb\n", "it has 2 names, but there are 10"),
    "more": ("\n".join(map(str, range(11))).encode(), "it has 11 names"),
    "binary": (b"\xff\xfe" * 10, "no text in UTF-8"),
    "long": (b"\n".join(b"%d" % n * 300 for n in range(10)), "has more than 255 characters"),
    "twice": (b"\n".join([b"a", *(b"%d" % n for n in range(8)), b" a "]), "the name 'a' occurs twice"),
}


@pytest.mark.parametrize("case", NAMES)
def test_damaged_files_of_names(folder, case):
    content, message = NAMES[case]
    (folder / "label.labels.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"'label': label.labels.txt: {message}|{message}"):
        load(folder)


def test_names_are_printable_and_limited_in_number(tmp_path):
    path = tmp_path / "label.labels.txt"
    path.write_text("a\x1b[2Jb\n\n  c d \nG\u200ee\n")
    assert read_class_names(epath.Path(path)) == ("a\\x1b[2Jb", "c d", "G\\u200ee")
    path.write_text("\n".join(map(str, range(100_001))))
    with pytest.raises(UnusableError, match="100,001 classes, and at most 100,000"):
        read_class_names(epath.Path(path))


def test_fingerprints_change_with_the_records_and_with_nothing_else(folder, tmp_path):
    before = load(folder).fingerprints
    assert set(before) == {"train", "validation", "test"}
    assert before["validation"] == before["test"] != before["train"]
    elsewhere = shutil.copytree(folder.parents[1] / "cifar10", tmp_path / "other" / "cifar10")
    assert load(elsewhere / "3.0.2").fingerprints == before

    parts = {"train": "train[:15]", "validation": "train[15:]", "test": "test"}
    divided = load_source(data_config("cifar10", dir=str(folder.parents[1]), splits=parts)).fingerprints
    assert len({before["train"], *divided.values()}) == 4

    (path,) = folder.glob("*train*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the padding
    path.write_bytes(data)
    after = load(folder).fingerprints
    assert after["train"] != before["train"]
    assert after["test"] == before["test"]


def test_records_that_lack_something_are_damaged(folder):
    features = folder / "features.json"
    edit(features, lambda values: features_of(values).update(other=features_of(values)["label"]))
    with pytest.raises(UserError, match=r"record 0 of the split cannot be read \(it has no other\)"):
        load(folder)
