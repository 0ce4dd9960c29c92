import re
import zlib
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from tests.train.helpers import run_python, tiny
from train import predict
from train.data import evaluation_batches, load_source
from train.engine.mesh import create_mesh
from train.engine.network import split_model
from train.engine.results import write_samples
from train.engine.trained import Scorer
from train.errors import UserError
from train.predict import picture_name, read_image
from train.tasks import Classification


@pytest.fixture(scope="module")
def source():
    return load_source(tiny())


def seen_by_the_network(config, image):
    """The network's input for an image."""
    seen = []

    def predict(images):
        seen.append(images)
        return {"probabilities": np.zeros((1, 10))}

    Classification(config, load_source(config)).predict_image(predict, image)
    ((prepared,),) = seen
    return prepared


def test_samples_give_back_the_pixels_they_were_made_from(finished_run, source):
    for digit in range(10):
        sample = next(s for s in source.splits["validation"] if s.label == digit)
        image = seen_by_the_network(tiny(), read_image(finished_run / "samples" / f"{digit}.png", 1))
        np.testing.assert_array_equal(image, sample.image)
        enlarged = cv2.imread(str(finished_run / "samples" / f"{digit}.png"))
        assert enlarged.shape == (128, 128, 3)


def test_colour_and_any_size_become_the_input_of_the_model(tmp_path):
    path = tmp_path / "colour.png"
    cv2.imwrite(str(path), np.full((31, 57, 3), 128, np.uint8))
    image = seen_by_the_network(tiny(), read_image(path, 1))
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
    # Sets the size in the header to 2**15 x 2**15 pixels, with a valid checksum.
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
        ("cut.png", "the PNG data is cut off or damaged"),
        ("text.png", "not an image, or a damaged one"),
        ("large.png", "67,108,865 bytes, at most 67,108,864"),
        ("bomb.png", "it has too many pixels"),
    ],
)
def test_files_that_are_no_images(bad_files, name, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read_image(bad_files / name, 1)
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
        f"error: {bad_files / 'cut.png'}: the PNG data is cut off or damaged",
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


def test_of_few_classes_all_are_named(source):
    few = source._replace(classes=("0", "1"))
    line, picture = Classification(tiny(), few).show(
        np.zeros((8, 8, 1), np.uint8), {"probabilities": np.array([0.25, 0.75])}, None
    )
    assert (line, picture) == ("1 75.0%, 0 25.0%", None)


def test_pictures_of_images_with_the_same_name_have_different_names():
    used = set()
    paths = ["a/street 1.jpg", "b/street 1.png", "c/street_1_2.jpg", "d/Straße.jpg", f"{'x' * 200}.jpg"]
    names = [picture_name(Path(path), used) for path in [*paths, paths[-1]]]
    assert names[:4] == ["street_1.png", "street_1_2.png", "street_1_2_2.png", "Straße.png"]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--workdir is missing"),
        (("--workdir=nowhere",), "no image is named"),
        (("--workdir=nowhere", "x.png"), "not the folder of a run"),
        (("--workdir={run}", "x.png", "--top=0"), "--top=0: 0 is not a positive integer"),
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
    augment = {"random_resized_crop": {}}
    config = tiny({"data": {"source": "miniature", "augment": augment}, "task.eval_crops": 10})
    source = load_source(config)
    transform = Classification(config, source).transform(training=False)
    batch, *_ = evaluation_batches(source, "test", config, transform)
    for n in range(3):
        (tmp_path / "x.jpg").write_bytes(source.splits["test"][n].image)
        np.testing.assert_array_equal(seen_by_the_network(config, read_image(tmp_path / "x.jpg", 3)), batch["image"][n])


def test_samples_are_files_of_safe_names(tmp_path):
    images = {"a/b c": np.zeros((8, 8, 1), np.uint8), "Ä": np.zeros((200, 300, 3), np.uint8)}
    written = write_samples(images, tmp_path / "samples")
    assert {name: path.name for name, path in written.items()} == {"a/b c": "a_b_c.png", "Ä": "Ä.png"}
    assert set(written.values()) == set((tmp_path / "samples").iterdir())


def scorer(config):
    """A scorer of a new tiny network, and the network's arrays."""
    source = load_source(config)
    task = Classification(config, source)
    model, params, other_state = split_model(task.create())
    return Scorer(config, source, task, create_mesh(), model), params, other_state


def check_padding():
    """Predictions for several images equal those for each image alone, for any padding of the batch."""
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1)).astype(np.uint8)
    one, params, other_state = scorer(tiny(batch_size=4))  # 5 and 9 images are several batches
    alone = [one.predict(params, other_state, image[None])["probabilities"] for image in images]
    assert {values.shape for values in alone} == {(1, 10)}
    assert len({values.tobytes() for values in alone}) == len(images)
    for count in (1, 2, 3, 5, 9):
        found = one.predict(params, other_state, images[:count])["probabilities"]
        np.testing.assert_allclose(found, np.concatenate(alone[:count]), rtol=1e-5, atol=1e-7)
    return jax.device_count()


def test_a_padded_batch_gives_what_each_image_gives():
    assert check_padding() == 1


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["3", "4"])
def test_several_devices_predict_for_any_number_of_images(devices):
    program = (
        "from tests.train.helpers import register_tiny; from tests.train.test_predict import check_padding\n"
        "register_tiny(); print(check_padding())"
    )
    run = run_python("-c", program, JAX_NUM_CPU_DEVICES=devices)
    assert (run.returncode, run.stdout) == (0, devices + "\n"), run.stderr
