import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from tests.train.helpers import ROOT, run_python
from tests.train.miniatures import (
    CIFAR10_CLASSES,
    CIFAR_TEST,
    CIFAR_TRAIN,
    CMYK_NAME,
    IMAGENET_TRAIN,
    IMAGENET_VALIDATION,
    PNG_NAME,
    cifar_records,
    encode,
    imagenet_files,
    picture,
)
from tests.train.rows import data_config, evaluation_rows, training_rows
from train.data import evaluation_batches, load_source, train_batches
from train.data.readers import tfds as module
from train.errors import UserError

PREPARED = ROOT / "tests" / "data" / "tfds"
# ImageNet's labels of the first validation images: snake, alp, sheepdog, soup bowl.
VALIDATION_CLASSES = ["n01751748", "n09193705", "n02105855", "n04263257"]


def config(source="cifar10", folder=PREPARED, **changes):
    return data_config(
        source, **{"dir": str(folder), "augment": {"random_resized_crop": {}}, "batch_size": 4, **changes}
    )


def first_batches(source, settings, steps):
    return list(train_batches(source, settings, training_rows(source, settings), 0, steps))


@pytest.fixture
def copy(tmp_path):
    """A copy of the prepared data sets, to be damaged."""
    return Path(shutil.copytree(PREPARED, tmp_path / "data"))


def the_file(copy, pattern):
    (path,) = copy.glob(f"*/*/{pattern}")
    return path


def edit_json(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def relabel(path, label):
    """Sets the label of every record of a shard."""
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        example = tf_example_pb2.Example.FromString(record)
        example.features.feature["label"].int64_list.value[:] = [label]
        writer.write(example.SerializeToString())
    writer.close()


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def assert_holds_cifar(records, count, first, classes=10):
    images, labels = cifar_records(count, classes, first)
    expected = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert len(expected) == len(records) == count
    assert {decoded(record.image).tobytes(): record.label for record in records} == expected


def assert_holds_imagenet(source):
    """Compares every record with the miniature's source files, decoded by Pillow."""
    validation = {wnid: [name] for wnid, name in zip(VALIDATION_CLASSES, IMAGENET_VALIDATION, strict=True)}
    files = imagenet_files()
    for split, by_class in (("train", IMAGENET_TRAIN), ("validation", validation)):
        left = {name: wnid for wnid, names in by_class.items() for name in names}
        assert len(source.splits[split]) == len(left)
        for record in source.splits[split]:
            image = decoded(record.image).astype(int)
            distance = {name: np.abs(decoded(files[name]) - image).mean() for name in left}
            name = min(distance, key=lambda name: distance[name])
            # tfds re-encoded two files; CMYK was also converted to another colour space.
            tolerance = {PNG_NAME: 3, CMYK_NAME: 6}.get(name, 0)
            assert distance[name] <= tolerance
            assert source.classes[record.label] == left.pop(name)
        assert not left


def test_records_labels_and_classes_of_cifar10():
    source = load_source(config())
    assert_holds_cifar(source.splits["train"], CIFAR_TRAIN, first=0)
    assert_holds_cifar(source.splits["test"], CIFAR_TEST, first=CIFAR_TRAIN)
    assert source.classes == tuple(CIFAR10_CLASSES)
    assert (source.image_shape, source.is_sized) == ((32, 32, 3), True)
    assert source.mean == (0.4914, 0.4822, 0.4465)
    assert source.note == "the split 'test' of cifar10 is used for validation and for test"


def test_records_labels_and_classes_of_imagenet():
    source = load_source(config("imagenet2012"))
    assert_holds_imagenet(source)
    assert len(source.classes) == 1000
    assert (source.image_shape, source.is_sized) == ((224, 224, 3), False)
    assert (source.mean, source.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert source.note == "the split 'validation' of imagenet2012 is used for validation and for test"


@pytest.mark.parametrize(
    ("name", "size", "shape", "is_sized"),
    [
        ("cifar10", 32, (32, 32, 3), True),
        ("cifar10", 40, (40, 40, 3), False),
        ("imagenet2012", 64, (64, 64, 3), False),
    ],
)
def test_image_size(name, size, shape, is_sized):
    source = load_source(config(name, image_size=size))
    assert (source.image_shape, source.is_sized) == (shape, is_sized)


def test_grey_images_and_classes_without_names(copy):
    def make_grey(features):
        features["featuresDict"]["features"]["image"]["image"]["shape"]["dimensions"][2] = "1"

    edit_json(copy / "cifar10" / "3.0.2" / "features.json", make_grey)
    (copy / "cifar10" / "3.0.2" / "label.labels.txt").unlink()
    source = load_source(config(folder=copy))
    assert source.image_shape == (32, 32, 1)
    assert source.classes == tuple("0123456789")
    assert source.mean == pytest.approx((0.47337,), abs=1e-4)
    (batch,) = first_batches(source, config(), 1)
    assert batch["image"].shape == (4, 32, 32, 1)


@pytest.mark.parametrize("name", ["cifar10:3.0.2", "cifar10:3.*.*"])
def test_versions(name):
    assert len(load_source(config(name)).splits["train"]) == CIFAR_TRAIN


def test_splits_are_expressions_of_tfds():
    whole = load_source(config()).splits
    splits = {"train": "train[:75%]", "validation": "train[75%:]"}
    source = load_source(config(splits=splits))
    assert list(source.splits["train"]) == list(whole["train"])[:15]
    assert list(source.splits["validation"]) == list(whole["train"])[15:]
    assert list(source.splits["test"]) == list(whole["test"])
    assert source.note == ""
    # Splits that the config omits are the data set's, here its one labelled split.
    source = load_source(config("imagenet2012", splits=splits | {"validation": "train[9:]"}))
    assert [len(source.splits[name]) for name in ("train", "validation", "test")] == [9, 3, 4]


def test_an_unlabelled_split_is_never_used(copy):
    folder = copy / "imagenet2012" / "5.1.0"
    shard = "imagenet2012-{}.array_record-00000-of-00001"
    shutil.copy(folder / shard.format("validation"), folder / shard.format("test"))
    relabel(folder / shard.format("test"), -1)

    def add_split(info):
        info["splits"].append({**info["splits"][1], "name": "test"})

    edit_json(folder / "dataset_info.json", add_split)
    source = load_source(config("imagenet2012", copy))
    assert "'validation' of imagenet2012 is used for validation and for test" in source.note
    assert all(record.label >= 0 for record in source.splits["test"])
    with pytest.raises(UserError, match="test is 'test', which has no labels"):
        load_source(config("imagenet2012", copy, splits={"test": "test"}))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": "trian"}, "'trian' of 'cifar10' cannot be had: .*its own splits are train, test"),
        ({"train": "train[:"}, "cannot be had"),
        ({"test": "test[:0%]"}, "'test\\[:0%\\]' of 'cifar10' holds no images"),
        ({"validation": "train[90%:]"}, "'train' and the validation split 'train\\[90%:\\]' .* share images"),
        ({"train": "train+test"}, "share images; divide them by config.data.splits"),
    ],
)
def test_splits_that_do_not_do(splits, message):
    with pytest.raises(UserError, match=message):
        load_source(config(splits=splits))


def test_a_data_set_without_a_second_split_has_to_be_divided(copy):
    folder = copy / "cifar10" / "3.0.2"
    edit_json(folder / "dataset_info.json", lambda info: info["splits"].pop())
    with pytest.raises(UserError, match=r"has the splits train, none with labels .* example \{'train': 'train\[:90%\]"):
        load_source(config(folder=copy))
    source = load_source(config(folder=copy, splits={"train": "train[:15]", "validation": "train[15:]"}))
    assert len(source.splits["test"]) == 5
    assert "is used for validation and for test" in source.note


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist", "'mnist', which is not prepared in .* python -m train.prepare --dataset=mnist --data_dir=.*tfds, or"),
        ("imagenette/320px-v2", "not prepared .* --dataset=imagenette/320px-v2 "),
        ("cifar10:2.0.0", "not prepared .* --dataset=cifar10:2.0.0 "),
        ("imagnet2012", "does not exist; did you mean .*'imagenet2012'"),
        ("dgits", "does not exist; did you mean 'digits'"),
        ("what is this", "does not exist; www.tensorflow.org/datasets/catalog"),
    ],
)
def test_names_that_are_not_there(name, message):
    with pytest.raises(UserError, match=message):
        load_source(config(name))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=f"'cifar10', which is not prepared in {tmp_path}/none; .*train.prepare"):
        load_source(config(folder=tmp_path / "none"))


def test_another_file_format(copy):
    info = copy / "cifar10" / "3.0.2" / "dataset_info.json"
    edit_json(info, lambda values: values.update(fileFormat="tfrecord"))
    with pytest.raises(
        UserError, match=r"as tfrecord, which .*tfds convert_format .*--dataset=cifar10 --data_dir=FOLDER"
    ):
        load_source(config(folder=copy))
    edit_json(info, lambda values: values.update(alternativeFileFormats=["array_record"]))
    assert_holds_cifar(load_source(config(folder=copy)).splits["train"], CIFAR_TRAIN, first=0)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_damaged_description(copy, file):
    (copy / "cifar10" / "3.0.2" / file).write_text("{")
    with pytest.raises(UserError, match=r"prepared files of 'cifar10' in .* cannot be opened"):
        load_source(config(folder=copy))


def test_data_sets_of_other_things(copy):
    def without_label(features):
        features["featuresDict"]["features"]["label"] = features["featuresDict"]["features"]["id"]

    def of_floats(features):
        features["featuresDict"]["features"]["image"]["image"]["dtype"] = "uint16"

    path = copy / "cifar10" / "3.0.2" / "features.json"
    before = path.read_text()
    edit_json(path, without_label)
    with pytest.raises(
        UserError, match=r"no data set for classification or segmentation: it has 1 .* images, 0 that are classes and 0"
    ):
        load_source(config(folder=copy))
    path.write_text(before)
    edit_json(path, of_floats)
    with pytest.raises(UserError, match="3 channels of uint16, but"):
        load_source(config(folder=copy))


@pytest.mark.parametrize("kept", [0, 60_000, 65_536, 131_071])
def test_a_shard_that_lost_its_end(copy, kept):
    path = the_file(copy, "cifar10-train*")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        UserError, match=f"{path} is incomplete or damaged: 0 of its 20 .*remove .* and prepare it again"
    ):
        load_source(config(folder=copy))


def test_a_shard_that_is_missing(copy):
    path = the_file(copy, "cifar10-test*")
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing: 0 of its 10 records"):
        load_source(config(folder=copy))


@pytest.mark.parametrize("threads", [0, 2])
def test_damage_within_a_shard_is_found_when_it_is_read(copy, threads):
    path = the_file(copy, "cifar10-train*")
    data = bytearray(path.read_bytes())
    data[8000] ^= 1
    path.write_bytes(data)
    source = load_source(config(folder=copy))
    with pytest.raises(UserError, match=f"{path} is damaged, record 8 of the split cannot be read .*hash mismatch"):
        first_batches(source, config(threads=threads), 10)


def test_a_shard_that_is_emptied_under_way(copy):
    source = load_source(config(folder=copy))
    path = the_file(copy, "cifar10-train*")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"{path} is damaged"):
        list(source.splits["train"])


def test_labels_that_are_no_class(copy):
    path = the_file(copy, "cifar10-train*")
    relabel(path, 10)
    with pytest.raises(UserError, match=r"record 3 .* has the label 10, but labels are 0 to 9"):
        load_source(config(folder=copy)).splits["train"][3]


def test_positions():
    records = load_source(config()).splits["train"]
    assert records[np.int64(3)] == records[3]
    for position in (-1, 20):
        with pytest.raises(IndexError, match=str(position)):
            records[position]


def test_threads_read_what_one_does():
    splits = {"train": "train+test[:50%]", "validation": "test[50%:]", "test": "test[50%:]"}
    records = load_source(config(splits=splits)).splits["train"]
    positions = np.random.default_rng(0).integers(0, len(records), 2000)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(records.__getitem__, positions))
    alone = list(records)
    assert len(alone) == 25
    assert all(record == alone[position] for record, position in zip(found, positions, strict=True))


def test_batches_are_the_pictures():
    source = load_source(config("imagenet2012", image_size=64))
    settings, rows = config("imagenet2012", image_size=64), evaluation_rows(source, eval_resize=64)
    (batch,) = evaluation_batches(source, "validation", settings, rows)
    records = list(source.splits["validation"])
    assert batch["label"].tolist() == [record.label for record in records]
    shown = batch["image"].astype(int)
    assert shown.shape == (4, 64, 64, 3)
    # Decoders may differ in the lowest bits.
    assert max(np.abs(shown[i] - decoded(records[i].image)).mean() for i in range(4)) < 1.5
    first = first_batches(source, config(threads=0), 6)
    again = first_batches(source, config(threads=3), 6)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


class Rooms(tfds.core.GeneratorBasedBuilder):
    """Images of varying sizes, with the class of every pixel and without a label."""

    VERSION = tfds.core.Version("1.0.0")
    CLASSES = ("floor", "wall", "door")

    def _info(self):
        features = {
            "photo": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "areas": tfds.features.LabeledImage(
                shape=(None, None, 1), labels=list(self.CLASSES), encoding_format="png"
            ),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(seed) for seed, split in enumerate(("train", "validation", "test"))}

    def _generate_examples(self, seed):
        for key in range(3):
            image, areas = self.example(seed, key)
            yield key, {"photo": encode(image, "PNG"), "areas": encode(areas, "PNG", "L")}

    @staticmethod
    def example(seed, key):
        areas = np.random.default_rng((seed, key)).integers(0, 3 + (seed == 2), (20 + key, 30)).astype(np.uint8)
        areas[0, 0] = 255
        return picture(10 * seed + key, 20 + key, 30), areas


def test_a_labeled_image_is_a_segmentation(tmp_path):
    builder = Rooms(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    settings = data_config("rooms", dir=str(tmp_path))
    source = load_source(settings, frozenset({"segmentation"}))
    assert (source.fields, source.classes) == ({"segmentation"}, ())
    assert source.segmentation_classes == Rooms.CLASSES
    assert (source.image_shape, source.is_sized) == ((224, 224, 3), False)
    expected = {image.tobytes(): areas for image, areas in (Rooms.example(0, key) for key in range(3))}
    for sample in source.splits["train"]:
        np.testing.assert_array_equal(sample.segmentation, expected.pop(sample.decoded(3).pixels.tobytes()))
        assert sample.label is None
    assert not expected
    with pytest.raises(UserError, match="'rooms', which has no label; it has segmentation"):
        load_source(settings)
    with pytest.raises(UserError, match=r"record 0 .* has pixels of the class 3, but classes are 0 to 2, or 255"):
        source.splits["test"][0]


def test_as_many_files_may_be_open_as_the_data_needs(monkeypatch):
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(module.resource, "getrlimit", lambda kind: limits["now"])
    monkeypatch.setattr(module.resource, "setrlimit", lambda kind, limit: limits.update(now=limit))
    module.allow_open_files(100)
    assert limits["now"] == (1024, 4096)
    module.allow_open_files(1088)
    assert 1088 + 256 <= limits["now"][0] <= 4096
    assert limits["now"][1] == 4096
    with pytest.raises(UserError, match=r"lies in 9000 files, .* 4096 files here; allow \d+ by ulimit -n"):
        module.allow_open_files(9000)


RUN = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({values!r})
"""


def train_without_tensorflow(folder, **data):
    """Trains a small network in a process that cannot import TensorFlow."""
    values = {
        "data": {"augment": {"random_resized_crop": {}}, **data},
        "model": {"name": "resnet8", "kwargs": {"width": 4}},
        "optimizer": {"learning_rate": 0.05},
        "epochs": 2,
        "batch_size": 4,
    }
    (folder / "run.py").write_text(RUN.format(values=values))
    return run_python(
        "-m", "tests.train.without_tensorflow", f"--config={folder / 'run.py'}", f"--workdir={folder / 'run'}"
    )


@pytest.mark.slow
def test_training_needs_no_tensorflow(tmp_path):
    name = "cifar10"  # test_prepare.py trains on the others
    done = train_without_tensorflow(tmp_path, source=name, dir=str(PREPARED), image_size=0)
    assert done.returncode == 0, done.stderr
    assert f"of {name} is used for validation and for test" in done.stdout
    assert "test accuracy" in done.stdout


def test_reading_needs_no_tensorflow():
    program = (
        "import sys; from tests.train.without_tensorflow import Barrier; sys.meta_path.insert(0, Barrier())\n"
        "from tests.train.test_tfds import config, first_batches; from train.data import load_source\n"
        "source = load_source(config())\n"
        "print(sum(len(b['label']) for b in first_batches(source, config(), 5)), 'tensorflow' in sys.modules)\n"
    )
    done = run_python("-c", program)
    assert done.stdout == "20 False\n", done.stderr
