import re
import zlib

import cv2
import numpy as np
import pytest

from tests.train.helpers import tiny
from train import predict
from train.data import evaluation_batches, load_source
from train.errors import UserError
from train.predict import read_image
from train.results import write_samples


@pytest.fixture(scope="module")
def source():
    return load_source(tiny())


def test_samples_give_back_the_pixels_they_were_made_from(finished_run, source):
    for digit in range(10):
        record = next(r for r in source.splits["validation"] if r["label"] == digit)
        image = read_image(finished_run / "samples" / f"{digit}.png", tiny(), source)
        np.testing.assert_array_equal(image, record["image"])
        enlarged = cv2.imread(str(finished_run / "samples" / f"{digit}.png"))
        assert enlarged.shape == (128, 128, 3)


def test_colour_and_any_size_become_the_input_of_the_model(tmp_path, source):
    path = tmp_path / "colour.png"
    cv2.imwrite(str(path), np.full((31, 57, 3), 128, np.uint8))
    image = read_image(path, tiny(), source)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.full((8, 8, 1), 128))


@pytest.fixture
def bad_files(tmp_path, finished_run):
    good = (finished_run / "samples" / "3.png").read_bytes()
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.png").write_text("this is no image")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**26 + 1)
    # The sizes in the header become 2**15 x 2**15 pixels; a checksum follows the header.
    header = good[12:16] + 2 * (2**15).to_bytes(4, "big") + good[24:29]
    checksum = zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(good[:12] + header + checksum + good[33:])
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "there is no such file"),
        ("", "not a file"),
        ("empty.png", "the file is empty"),
        ("cut.png", "not an image, or a damaged one"),
        ("text.png", "not an image, or a damaged one"),
        ("large.png", "67,108,865 bytes, at most 67,108,864"),
        ("bomb.png", "it has too many pixels"),
    ],
)
def test_files_that_are_no_images(bad_files, source, name, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read_image(bad_files / name, tiny(), source)
    assert str(caught.value).startswith(str(bad_files / name))


def run(capfd, *arguments):
    status = predict.main(["predict", *map(str, arguments)])
    output, errors = capfd.readouterr()
    return status, output.splitlines(), errors.splitlines()


def test_good_images_are_classified_beside_bad_ones(finished_run, bad_files, capfd):
    samples = [finished_run / "samples" / f"{digit}.png" for digit in (1, 7)]
    images = [samples[0], bad_files / "cut.png", bad_files / "missing.png", samples[1]]
    status, output, errors = run(capfd, f"--workdir={finished_run}", *images)
    assert status == 1
    assert [line.partition(": ")[0] for line in output] == [str(path) for path in samples]
    named = [line for line in errors if line.startswith("error: ")]
    assert named == [
        f"error: {bad_files / 'cut.png'}: not an image, or a damaged one",
        f"error: {bad_files / 'missing.png'}: there is no such file",
    ]


def test_probabilities_are_sorted_and_sum_to_one(finished_run, capfd):
    image = finished_run / "samples" / "4.png"
    status, (line,), errors = run(capfd, f"--workdir={finished_run}", image, "--top=10")
    assert (status, errors) == (0, [])
    found = re.findall(r"(\d) (\d+\.\d)%", line)
    assert {name for name, _ in found} == set("0123456789")
    shares = [float(share) for _, share in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.6)
    _, (short,), _ = run(capfd, f"--workdir={finished_run}", image)
    assert short.count("%") == 3
    assert line.startswith(short)


def test_of_few_classes_all_are_printed(finished_run, capfd, monkeypatch):
    trained = predict.load_best(finished_run)
    source = trained.source._replace(classes=trained.source.classes[:2])  # of which there are two
    monkeypatch.setattr(predict, "load_best", lambda workdir: trained._replace(source=source))
    monkeypatch.setattr(predict, "create_predict_step", lambda model: lambda *_: np.array([[0.25, 0.75]]))
    status, (line,), _ = run(capfd, f"--workdir={finished_run}", finished_run / "samples" / "1.png")
    assert status == 0
    assert line.endswith("1.png: 1 75.0%, 0 25.0%")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--workdir is missing"),
        (("--workdir=nowhere",), "no image is named"),
        (("--workdir=nowhere", "x.png"), "not the folder of a run"),
        (("--workdir={run}", "x.png", "--top=0"), "--top is 0 but must be from 1 to the 10"),
        (("--workdir={run}", "x.png", "--top=11"), "--top is 11"),
        (("--workdir={run}", "x.png", "--top=many"), "--top=many"),
        (("--workdir={run}", "x.png", "--tops=2"), "tops.*top"),
    ],
)
def test_wrong_command_lines(finished_run, arguments, message):
    filled = [argument.format(run=finished_run) for argument in arguments]
    with pytest.raises(UserError, match=message):
        predict.main(["predict", *filled])


def test_images_of_any_size_are_cropped_as_in_the_evaluation(tmp_path):
    config = tiny(source="miniature", augment={"random_resized_crop": {}}, eval_crops=10)
    source = load_source(config)
    batch, *_ = evaluation_batches(source, "test", config)
    for n in range(3):
        (tmp_path / "x.jpg").write_bytes(source.splits["test"][n]["image"])
        np.testing.assert_array_equal(read_image(tmp_path / "x.jpg", config, source), batch["image"][n])


def test_samples_are_of_the_classes_that_the_split_has(source, tmp_path):
    few = [record for record in source.splits["validation"] if record["label"] != 9]
    written = write_samples(source._replace(splits={**source.splits, "validation": few}), tmp_path / "samples")
    assert set(written) == set(range(9))
    assert set(written.values()) == set((tmp_path / "samples").iterdir())
