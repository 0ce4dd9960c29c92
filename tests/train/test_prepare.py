import importlib.util
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from tests.train.helpers import run_python
from tests.train.miniatures import CIFAR_TEST, CIFAR_TRAIN, FINE_CLASSES, write_all, write_imagenet
from tests.train.test_tfds import (
    PREPARED,
    assert_holds_cifar,
    assert_holds_imagenet,
    config,
    edit_json,
    relabel,
    train_without_tensorflow,
)
from train import prepare as program
from train.data import load_source, prepare
from train.data.readers.prepared import find_prepared
from train.errors import UserError

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="tfds prepares with TensorFlow; install the extra 'prepare'"
)


def main(*arguments):
    return program.main(["prepare", *arguments])


@pytest.fixture
def cifar10(tmp_path) -> Path:
    """A copy of the prepared CIFAR-10, to be damaged."""
    shutil.copytree(PREPARED / "cifar10", tmp_path / "cifar10")
    return tmp_path / "cifar10" / "3.0.2"


def rewrite_last(path, edit):
    """Edits the last record of a shard."""
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    example = tf_example_pb2.Example.FromString(records[-1])
    edit(example.features.feature)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in [*records[:-1], example.SerializeToString()]:
        writer.write(record)
    writer.close()


def shard(folder, split):
    return folder / f"cifar10-{split}.array_record-00000-of-00001"


def test_what_is_prepared_is_read_again(capsys):
    assert main("--dataset=cifar10", f"--data_dir={PREPARED}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"cifar10 is already prepared in {PREPARED}/cifar10/3.0.2; reading it ...",
        f"train: {CIFAR_TRAIN} records, all read; labels among 10 classes",
        f"test: {CIFAR_TEST} records, all read; labels among 10 classes",
        f"whole, in {PREPARED}/cifar10/3.0.2; train on it with --config.data.source=cifar10 "
        f"--config.data.dir={PREPARED}",
    ]


def test_an_imagenet_of_few_images_is_remarked_on(capsys):
    assert main("--dataset=imagenet2012", f"--data_dir={PREPARED}") == 0
    assert "note: the full imagenet2012 has 1,281,167 images in train; were" in capsys.readouterr().out


def test_a_split_without_labels_is_told_from_damaged_labels(cifar10, capsys):
    relabel(shard(cifar10, "test"), -1)
    assert main("--dataset=cifar10", f"--data_dir={cifar10.parents[1]}") == 0
    assert f"test: {CIFAR_TEST} records, all read; no labels" in capsys.readouterr().out

    def unlabel(features):
        features["label"].int64_list.value[:] = [-1]

    rewrite_last(shard(cifar10, "train"), unlabel)
    with pytest.raises(UserError, match="1 of the 20 records of train have no label"):
        main("--dataset=cifar10", f"--data_dir={cifar10.parents[1]}")


def no_image(features):
    features["image"].bytes_list.value[:] = [b"not an image"]


def large_image(features):
    features["image"].bytes_list.value[:] = [
        load_source(config("imagenet2012")).splits["train"][0].image,
    ]


def no_class(features):
    features["label"].int64_list.value[:] = [10]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (no_image, "record 19 of .*: not an image, or a damaged one; remove"),
        (large_image, r"record 19 of .* of shape \(64, 64, 3\) and should be \(32, 32, 3\); remove"),
        (no_class, "record 19 .* label 10, but labels are 0 to 9"),
    ],
)
def test_damaged_records(cifar10, edit, message):
    rewrite_last(shard(cifar10, "train"), edit)
    with pytest.raises(UserError, match=message):
        main("--dataset=cifar10", f"--data_dir={cifar10.parents[1]}")
    assert cifar10.exists()  # only newly written files are removed


def test_numbers_of_records_that_differ(cifar10):
    edit_json(cifar10 / "dataset_info.json", lambda info: info["splits"][0].update(shardLengths=["21"]))
    with pytest.raises(UserError, match=r"incomplete or damaged: 20 of its 21 records are there; remove .* prepare it"):
        main("--dataset=cifar10", f"--data_dir={cifar10.parents[1]}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset is missing; give it, for example --dataset=imagenet2012"),
        (["cifar10"], "unexpected argument 'cifar10'; the data set is named by --dataset"),
        (["--datset=cifar10"], "datset.*--help"),
    ],
)
def test_command_lines(arguments, message):
    with pytest.raises(UserError, match=message):
        main(*arguments)


def test_tensorflow_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_has_tensorflow", lambda: False)
    with pytest.raises(UserError, match=r"not installed; install it with pip install 'msconv_jax\[prepare\]'"):
        main("--dataset=cifar10", f"--data_dir={tmp_path}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagnet2012", "--dataset is 'imagnet2012', which does not exist; did you mean 'imagenet2012'"),
        ("imagenette/no_such_config", "which tfds cannot make: .*BuilderConfig no_such_config not found"),
        ("imdb_reviews", "no data set for classification or segmentation: it has 0 features that are images, 1 that"),
        (
            "imagenet2012",
            "the files ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar are not in .*manual; put .*register",
        ),
        ("resisc45", "downloaded by hand, and the folder is not in .*manual; .*--manual_dir"),
    ],
)
def test_what_cannot_be_prepared(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(prepare, "_has_tensorflow", lambda: True)
    with pytest.raises(UserError, match=message):
        main(f"--dataset={name}", f"--data_dir={tmp_path}")


def test_room_for_the_archives(tmp_path, monkeypatch):
    write_imagenet(tmp_path)
    builder = SimpleNamespace(name="imagenet2012", MANUAL_DOWNLOAD_INSTRUCTIONS="by hand")
    prepare._check_manual_files(builder, tmp_path, tmp_path / "not" / "there")
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=f"0.0 GB, but {tmp_path} has 0.0 GB left; make room, or .*--data_dir"):
        prepare._check_manual_files(builder, tmp_path, tmp_path / "not" / "there")


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    """A folder with the archives of the data sets only."""
    folder = tmp_path_factory.mktemp("archives")
    write_all(folder)
    return folder


@pytest.fixture
def data_dir(archives, tmp_path) -> Path:
    return Path(shutil.copytree(archives, tmp_path / "data"))


def run_prepare(name, data_dir):
    return run_python("-m", "train.prepare", f"--dataset={name}", f"--data_dir={data_dir}")


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.parametrize("name", ["imagenet2012", "cifar100"])
def test_prepared_by_tfds_and_trained_without_tensorflow(name, data_dir, tmp_path):
    done = run_prepare(name, data_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"preparing {name} in {data_dir} ..." in done.stdout
    assert "whole, in" in done.stdout

    source = load_source(config(name, data_dir))
    if name == "imagenet2012":
        assert_holds_imagenet(source)
    else:
        classes = len(source.classes)
        assert_holds_cifar(source.splits["train"], CIFAR_TRAIN, first=0, classes=classes)
        assert_holds_cifar(source.splits["test"], CIFAR_TEST, first=CIFAR_TRAIN, classes=classes)
    if name == "cifar100":
        assert source.classes == tuple(FINE_CLASSES)
        assert source.mean == (0.5071, 0.4865, 0.4409)

    again = run_prepare(name, data_dir)
    assert (again.returncode, again.stderr) == (0, "")
    assert f"{name} is already prepared" in again.stdout

    size = 64 if name == "imagenet2012" else 0
    trained = train_without_tensorflow(tmp_path, source=name, dir=str(data_dir), image_size=size)
    assert trained.returncode == 0, trained.stderr
    assert "test accuracy" in trained.stdout


STOPPED = """
import os, signal, sys
import tensorflow_datasets as tfds
from train import prepare
from train.errors import run_program
builder = tfds.builder_cls("cifar10")
generate = builder._generate_examples
def stop(self, prefix, paths):
    for number, example in enumerate(generate(self, prefix, paths)):
        if prefix == "test_" and number == 5:
            {stop}
        yield example
builder._generate_examples = stop
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.argv = ["prepare", "--dataset=cifar10", "--data_dir=" + sys.argv[1]]
run_program(prepare.main)
"""


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.parametrize(
    ("stop", "status", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("os.kill(os.getpid(), signal.SIGTERM)", 130, "error: interrupted\n"),
        ("raise RuntimeError('no luck')", 1, "error: tfds could not prepare 'cifar10': .*no luck"),
        ("raise OSError(28, 'No space left on device', 'a_file')", 1, "error: No space left.*make room on the disk"),
    ],
)
def test_an_interrupted_preparation_leaves_nothing_that_looks_complete(stop, status, message, data_dir):
    done = run_python("-c", STOPPED.format(stop=stop), str(data_dir))
    assert done.returncode == status, done.stderr
    assert re.search(message, done.stderr)
    assert find_prepared("cifar10", str(data_dir)) is None
    again = run_prepare("cifar10", data_dir)
    assert (again.returncode, again.stderr) == (0, "")
    # The output names leftovers of a killed process, for the user to remove.
    assert ("is left from an interrupted preparation" in again.stdout) == (status == -signal.SIGKILL)


@pytest.mark.slow
@needs_tensorflow
def test_an_archive_that_is_cut_off(data_dir):
    path = data_dir / "downloads" / "manual" / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    done = run_prepare("imagenet2012", data_dir)
    assert done.returncode == 1
    assert done.stderr.startswith("error: tfds could not prepare 'imagenet2012': ")
    assert done.stderr.count("\n") == 1
    assert find_prepared("imagenet2012", str(data_dir)) is None
