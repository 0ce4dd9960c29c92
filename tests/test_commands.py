"""Every command that the README shows is run, here or elsewhere; every config that a document names is read."""

import re
import shutil
import subprocess

import pytest

from msconv_jax import __main__ as library
from tests.commands import DOCUMENTS, ROOT, commands, configured, parsed
from train import __main__ as train
from train import cost, evaluate, predict

README = commands((ROOT / "README.md").read_text())
PARSED = "its config and flags are read by test_every_config_in_a_document_is_read, for want of such a cluster"
CI = ".ci/run"

# For each command of the README: what runs it. A test of another file, by its file and name; a line of .ci/run; a test
# of this file; or, in words, why it is not run as it stands and what of it is.
RUN_BY = {
    "make train": "test_make_train_is_the_command_of_the_config",
    "make test": CI,
    "python -m venv .venv && . .venv/bin/activate": CI,  # the Makefile's first line of a target
    "pip install -e '.[train]'": CI,  # with the extra test
    "pip install -e '.[train,prepare]'": "tests/test_package.py::test_extras",
    "pip install 'msconv_jax[train]'": "tests/test_package.py::test_extras",
    "python -m msconv_jax.train --config=configs/ps_resnet_digits.py --workdir=runs/digits": (
        "tests/test_package.py::test_the_installed_programs_train_evaluate_and_predict"
    ),
    "python -m msconv_jax.train.evaluate --workdir=runs/digits": (
        "tests/test_package.py::test_the_installed_programs_train_evaluate_and_predict"
    ),
    "pip install -e '.[export]'": "tests/test_package.py::test_extras",
    "pip install -e '.[onnx]'": CI,  # in make test-onnx
    "make test-onnx": CI,
    "pip install gcsfs": "another project's package, for buckets alone; paths in them are tests/train/test_tfds.py's",
    "python -m pytest": CI,  # in two parts, for make test and make test-slow
    ".venv/bin/python -m train.predict --workdir=runs/digits runs/digits/samples/7.png": "test_the_digits",
    ".venv/bin/python -m train.evaluate --workdir=runs/digits": "test_the_digits",
    "python -m train --config=configs/ps_resnet_digits.py --workdir=runs/digits": (
        "tests/train/test_run.py::test_the_shipped_config_reaches_its_accuracy"
    ),
    "python -m train --config=configs/ps_resnet_digits.py --workdir=runs/plain ...": "test_the_digits",
    "python -m train --config=configs/ps_resnet_digits.py --workdir=runs/seed3 --config.seed=3 --config.epochs=10": (
        "test_the_digits"  # with one epoch
    ),
    "python -m train.edo --config=configs/edo_digits.py --workdir=runs/edo_digits": (
        "tests/studies/test_edo.py::test_the_command"
    ),
    "python -m train --config=configs/ps_imagenet.py:smoke --workdir=runs/smoke": (
        "tests/train/test_recipes.py::test_every_recipe_trains_when_shrunken"
    ),
    "python -m train --config=configs/pictures.py --config.data.dir=pictures --workdir=runs/pictures": "test_pictures",
    "python -m train --config=configs/pictures.py --config.data.dir=pictures --workdir=runs/small ...": "test_pictures",
    "xdg-open runs/small/report.html": "tests/train/test_report.py::test_the_page_stands_alone_and_shows_everything",
    "python -m train.predict --workdir=runs/small pictures/cat/1.jpg": "test_pictures",
    "python -m train.prepare --dataset=cifar100 --data_dir=data": (
        "tests/train/test_prepare.py::test_prepared_by_tfds_and_trained_without_tensorflow"
    ),
    "python -m train.prepare --dataset=imagenet2012 --manual_dir=downloads --data_dir=data": (
        "tests/train/test_prepare.py::test_prepared_by_tfds_and_trained_without_tensorflow"
    ),
    "python -m train --config=configs/ps_imagenet.py --config.data.dir=data --workdir=runs/ps_resnet50": (
        "tests/train/test_tfds.py::test_training_needs_no_tensorflow"  # with the few images of tests/data
    ),
    "python -m train.evaluate --config=configs/pyconv_imagenet.py --weights=pyconvresnet50.pth ...": (
        "tests/train/test_evaluate.py::test_weights_of_a_file_are_evaluated_on_any_split"
    ),
    "python -m train.prepare --dataset=scaled_digits --data_dir=data": (
        "tests/train/test_scaled_digits.py::test_what_is_prepared_without_tensorflow_is_what_was_drawn"
    ),
    "python -m train --config=configs/scaled_digits.py --config.data.dir=data --workdir=runs/scaled_digits": (
        "tests/train/test_recipes.py::test_every_recipe_trains_when_shrunken"
    ),
    "python -m train --config=configs/segment_scaled_digits.py --config.data.dir=data --workdir=runs/segment": (
        "tests/train/test_segmentation.py::test_the_recipe_reaches_its_mean_iou"
    ),
    "python -m train.predict --workdir=runs/segment runs/segment/samples/7.png": (
        "tests/train/test_segmentation.py::test_the_recipe_reaches_its_mean_iou"
    ),
    "python -m train --config=configs/masks.py --config.data.dir=photos --workdir=runs/masks": (
        "tests/train/test_recipes.py::test_every_recipe_trains_when_shrunken"
    ),
    "python -m train.compare --config=configs/compare_scaled_digits.py --workdir=runs/compare --minutes=30": (
        "tests/studies/test_compare.py::test_a_comparison_stops_when_time_is_up_goes_on_and_keeps_its_results"
    ),
    "pip install -e '.[analysis]'": "tests/test_package.py::test_extras",
    "python -m benchmarks.receptive_fields": "tests/test_benchmarks.py::test_receptive_fields_of_a_small_network",
    "gcloud compute tpus tpu-vm ssh NAME ...": PARSED,
    "srun --nodes=4 ...": PARSED,
    "xpk workload create ...": PARSED,
    "python -m train --config=configs/ps_imagenet.py --config.data.dir=data --workdir=/shared/run --coordinator=...": (
        "tests/train/test_distributed.py::test_two_processes_train_as_one"
    ),
    "python -m train.cost --config=configs/ps_imagenet.py": "test_programs_that_print",
    "python -m msconv_jax list": "test_programs_that_print",
    "python -m msconv_jax summary ps_resnet50": "test_programs_that_print",
    "python -m benchmarks.input_pipeline": (
        "tests/test_benchmarks.py::test_the_input_benchmark_prints_speeds_by_the_clock_and_of_the_processor"
    ),
    "python -m benchmarks.data_wait": "tests/test_benchmarks.py::test_waiting_for_data_is_timed",
    "make bench": "tests/test_benchmarks.py::test_the_document_is_printed_or_written_wholly",
    "make bench-full": "tests/test_benchmarks.py::test_the_document_is_printed_or_written_wholly",
    "python -m tests.parity ../shared/golden/dense": (
        "tests/test_parity.py::test_dense_tasks_agree_with_all_recorded_numbers"
    ),
    "python -m tests.parity DIR": "tests/test_parity.py::test_a_line_for_each_fixture_and_a_zero_exit_status",
}


def is_of(command, row):
    """Whether a command is that of a row; rows of long ones say how these begin."""
    return command.startswith(row.removesuffix("...")) if row.endswith("...") else command == row


@pytest.mark.parametrize("command", README)
def test_every_command_of_the_readme_has_a_row(command):
    assert sum(is_of(command, row) for row in RUN_BY) == 1, f"say in RUN_BY what runs {command!r}"


def test_every_row_is_of_the_readme_and_names_what_is_there():
    ci = (ROOT / ".ci" / "run").read_text()
    for row, by in RUN_BY.items():
        assert any(is_of(command, row) for command in README), row
        path, _, name = by.partition("::")
        if name or re.fullmatch(r"test_\w+", by):
            text = (ROOT / path).read_text() if name else (ROOT / "tests" / "test_commands.py").read_text()
            assert f"\ndef {name or by}(" in text, by
        elif by == CI:
            assert "make test\nmake test-slow\nmake test-onnx" in ci
        else:
            assert len(by.split()) > 5, by


def test_modules_and_targets_that_documents_name_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for document in DOCUMENTS:
        for command in commands(document.read_text()):
            module = re.search(r"python -m ((?:train|tests|benchmarks|msconv_jax)[\w.]*)", command)
            if module:
                path = ROOT / module[1].replace(".", "/")
                assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), command
            if command.startswith("make "):
                assert command.split()[1] in targets, command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_config_in_a_document_is_read(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = configured(document.read_text())
    assert (len(found) > 8) == (document.name in ("README.md", "reproducing.md"))
    for command in found:
        parsed(command)


def test_make_train_is_the_command_of_the_config(tmp_path):
    shown = subprocess.run(
        [shutil.which("make"), "--dry-run", "train", f"VENV={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (command,) = re.findall(r"python (-m train .*)", shown)
    assert f"python {command}" in README
    assert "pip install --quiet --disable-pip-version-check --editable '.[train]'" in shown
    assert f"-m venv {tmp_path}" in shown


def test_programs_that_print(capsys):
    library.main(["list"])
    assert "| ps_resnet50 " in capsys.readouterr().out
    library.main(["summary", "ps_resnet50"])
    assert "25,557,032" in capsys.readouterr().out
    assert cost.main(["cost", f"--config={ROOT}/configs/ps_imagenet.py"]) == 0
    assert "25.6 M parameters, 4.09 G multiply-accumulates" in capsys.readouterr().out


@pytest.fixture
def pictures(tmp_path):
    """The two photographs of scikit-learn in pieces, a folder each; one file is damaged."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    for name in ("china", "flower"):
        photograph = load_sample_image(f"{name}.jpg")
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for n in range(20):
            piece = Image.fromarray(photograph[(n // 5) * 100 :, (n % 5) * 120 :][:100, :120])
            piece.save(tmp_path / "pictures" / name / f"{n}.{'png' if n % 3 else 'jpg'}")
    (tmp_path / "pictures" / "china" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_pictures(pictures, tmp_path, capsys, quick_compilation):
    """The config of one's own pictures, with small ones, and a short training of a small network."""
    smaller = [
        "--config.model.name=resnet8",
        "--config.epochs=1",
        "--config.optimizer.warmup_epochs=0",
        "--config.batch_size=8",
        "--config.data.image_size=32",
    ]
    arguments = [f"--config={ROOT}/configs/pictures.py", f"--config.data.dir={pictures}"]
    assert train.main(["train", *arguments, f"--workdir={tmp_path}/run", *smaller]) == 0
    shown = capsys.readouterr().out
    assert "images.txt" in shown
    assert "broken.jpg" in (tmp_path / "run" / "images.txt").read_text()
    assert (tmp_path / "run" / "report.html").is_file()
    assert predict.main(["predict", f"--workdir={tmp_path}/run", str(pictures / "flower" / "1.png")]) == 0
    assert re.search(r"1\.png: (china|flower) \d+\.\d%", capsys.readouterr().out)


@pytest.mark.slow
def test_the_digits(tmp_path, capsys, quick_compilation):
    """The README's first steps, with another operator and seed, and one epoch."""
    changes = ["--config.model.conv=Conv", "--config.model.conv_kwargs={}", "--config.seed=3", "--config.epochs=1"]
    changes.append("--config.optimizer.warmup_epochs=0")
    arguments = [f"--config={ROOT}/configs/ps_resnet_digits.py", f"--workdir={tmp_path}"]
    assert train.main(["train", *arguments, *changes]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert evaluate.main(["evaluate", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"{line}\n"
    assert predict.main(["predict", f"--workdir={tmp_path}", f"{tmp_path}/samples/7.png"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/samples/7.png: ")
