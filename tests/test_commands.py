"""Commands in the documents: their programs, targets, extras and flags exist, and every config is valid."""

import re
import runpy
import shutil
import subprocess
import tomllib

import pytest

from msconv_jax import __main__ as library
from tests.commands import DOCUMENTS, ROOT, commands, configured, name, parsed
from train import __main__ as train
from train import cost, evaluate, predict

TEXTS = {name(document): document.read_text() for document in DOCUMENTS}
COMMANDS = sorted({command for text in TEXTS.values() for command in commands(text)})
PROGRAM = re.compile(r"python -m (?:msconv_jax\.(?=train))?((?:train|studies|tests|benchmarks|msconv_jax)[\w.]*)(.*)")


@pytest.mark.parametrize("command", [command for command in COMMANDS if PROGRAM.search(command)])
def test_programs_exist(command):
    path = ROOT / PROGRAM.search(command)[1].replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_targets_exist(command):
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(r"pip install .*\[", command)])
def test_extras_exist(command):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.search(r"(?:\.|msconv_jax)\[([\w,]+)\]", command)[1].split(",")
    assert set(named) <= set(project["optional-dependencies"])


def flags_by_program():
    """The flags of each program in the documents, without commands with a config, which another test parses."""
    found = {}
    for command in COMMANDS:
        program = PROGRAM.search(command)
        flags = re.findall(r"--(\w+)", program[2]) if program else []
        if flags and "config" not in flags:
            found.setdefault(program[1], set()).update(flags)
    return found


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("program", "flags"), flags_by_program().items())
def test_programs_know_the_flags_that_the_documents_show(program, flags, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [program, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(program, run_name="__main__")
    assert set(re.findall(r"--(?:\[no\])?(\w+)", capsys.readouterr().out)) >= flags


@pytest.mark.parametrize("document", [document for document, text in TEXTS.items() if configured(text)])
def test_every_config_in_a_document_is_read(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in configured(TEXTS[document]):
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
    assert f"python {command}" in COMMANDS
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
    """Crops of scikit-learn's two photographs, a folder for each; one file is damaged."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    for subject in ("china", "flower"):
        photograph = load_sample_image(f"{subject}.jpg")
        (tmp_path / "pictures" / subject).mkdir(parents=True)
        for n in range(20):
            piece = Image.fromarray(photograph[(n // 5) * 100 :, (n % 5) * 120 :][:100, :120])
            piece.save(tmp_path / "pictures" / subject / f"{n}.{'png' if n % 3 else 'jpg'}")
    (tmp_path / "pictures" / "china" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_pictures(pictures, tmp_path, capsys, quick_compilation):
    """Trains a small network briefly with the config for a user's pictures."""
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
    """Runs the documents' first steps, with another operator and seed, and one epoch."""
    changes = ["--config.model.conv=Conv", "--config.model.conv_kwargs={}", "--config.seed=3", "--config.epochs=1"]
    changes.append("--config.optimizer.warmup_epochs=0")
    arguments = [f"--config={ROOT}/configs/ps_resnet_digits.py", f"--workdir={tmp_path}"]
    assert train.main(["train", *arguments, *changes]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert evaluate.main(["evaluate", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"{line}\n"
    assert predict.main(["predict", f"--workdir={tmp_path}", f"{tmp_path}/samples/7.png"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/samples/7.png: ")
