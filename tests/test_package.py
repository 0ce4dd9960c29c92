"""The wheel contains the typed library and the programs, which run without a clone."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

from train import predict

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAMS = "msconv_jax/_programs"
BUILD = """
from setuptools.build_meta import build_sdist, build_wheel
build_sdist("out")
build_wheel("out")
"""
ONE_NETWORK = """
from configs import compare_scaled_digits

def get_config():
    config = compare_scaled_digits.get_config()
    config.networks = config.networks[:1]
    return config
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the source distribution, built offline from a copy of the sources."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("msconv_jax", "train", "studies", "configs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def sources(*folders):
    """Files of the repository, without caches of Python and files of the system."""
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not {"__pycache__", ".DS_Store"} & set(path.parts):
                yield path.relative_to(ROOT).as_posix()


def test_the_wheel_holds_one_module(wheel):
    info = f"msconv_jax-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"msconv_jax", info}
    assert wheel.read(f"{info}/top_level.txt").split() == [b"msconv_jax"]


def test_the_wheel_is_complete_and_typed(wheel):
    expected = {*sources("msconv_jax"), *(f"{PROGRAMS}/{name}" for name in sources("train", "studies", "configs"))}
    assert {
        "msconv_jax/py.typed",
        "msconv_jax/models/counts.json",
        f"{PROGRAMS}/train/page.html.j2",
        f"{PROGRAMS}/configs/base/__init__.py",
    } <= expected
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_a_wheel_can_be_built_of_the_source_distribution(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kept = {"pyproject.toml", "setup.py", "README.md", "LICENSE"}
    assert names >= {*kept, *sources("msconv_jax", "train", "studies", "configs")}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder outside a clone, with a file named like one of the programs."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "train.py").write_text("raise SystemExit('a file of the user')")
    return folder


@pytest.fixture(scope="module")
def run_installed(wheel, elsewhere, tmp_path_factory):
    """Runs modules of the installed wheel from `elsewhere`, with the packages of this environment."""
    site = tmp_path_factory.mktemp("site")
    wheel.extractall(site)  # equivalent to an installation

    def run(*arguments, packages=()):
        quickly = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        env = {**os.environ, **quickly, "PYTHONPATH": os.pathsep.join(map(str, (*packages, site)))}
        command = [sys.executable, "-m", *map(str, arguments)]
        return subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, check=False)

    return run


def test_a_missing_package_is_one_sentence(run_installed, tmp_path):
    (tmp_path / "pydantic.py").write_text("raise ModuleNotFoundError(name='pydantic')")
    done = run_installed("msconv_jax.train", "--help", packages=[tmp_path])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: training needs more packages (no module named 'pydantic'); "
        "install them with pip install 'msconv_jax[train]'\n"
    )


def test_an_error_of_the_programs_keeps_its_traceback(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "__init__.py").touch()
    (tmp_path / "train" / "broken.py").write_text("import train.nowhere")
    program = "import pathlib, msconv_jax.train as t; t.PROGRAMS = pathlib.Path.cwd(); t.start('train.broken')"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError: No module named 'train.nowhere'" in done.stderr


def test_every_program_of_train_is_started_outside_a_clone():
    programs = {path.name for path in (ROOT / "train").glob("*.py") if "run_program(main)" in path.read_text()}
    programs.discard("errors.py")
    starters = {path.name for path in (ROOT / "msconv_jax" / "train").glob("*.py")} - {"__init__.py"}
    assert starters == programs
    assert len(programs) >= 7
    for name in starters:
        module = "train" if name == "__main__.py" else f"train.{name.removesuffix('.py')}"
        assert f'start("{module}")' in (ROOT / "msconv_jax" / "train" / name).read_text()


@pytest.mark.parametrize("prefix", ["", "msconv_jax."])
def test_help_names_the_command_that_works_there(prefix, monkeypatch, capsys):
    monkeypatch.setenv("MSCONV_JAX_PREFIX", prefix)
    with pytest.raises(SystemExit, match="0"):
        predict.main(["predict", "--help"])
    assert f"\n    python -m {prefix}train.predict --workdir=" in capsys.readouterr().out


@pytest.mark.slow
def test_the_installed_programs_train_evaluate_and_predict(run_installed, elsewhere):
    settings = ("--config.epochs=1", "--config.optimizer.warmup_epochs=0", "--workdir=run")
    done = run_installed("msconv_jax.train", "--config=configs/ps_resnet_digits.py", *settings)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "run" / "report.html").is_file()
    result = done.stdout.splitlines()[-1]
    advice = re.search(r"python -m (msconv_jax\.train\.predict) (\S+) (\S+)", done.stdout)
    again = run_installed("msconv_jax.train.evaluate", "--workdir=run")
    assert again.stdout == f"{result}\n", again.stderr
    predicted = run_installed(*advice.groups())
    assert predicted.stdout.startswith(f"{advice[3]}: "), predicted.stderr


@pytest.mark.slow
def test_installed_programs_find_themselves_in_the_processes_they_start(run_installed, elsewhere):
    """`train.compare` starts a process for each training, here with a config based on an installed one."""
    settings = ("--config=one.py:smoke", "--workdir=comparison")
    (elsewhere / "one.py").write_text(ONE_NETWORK)
    done = run_installed("msconv_jax.train.compare", *settings, "--minutes=0")
    assert "go on with\npython -m msconv_jax.train.compare --config=" in done.stdout, done.stderr
    done = run_installed("msconv_jax.train.compare", *settings)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^plain, seed 0: test accuracy 0\.\d+ ", done.stdout, re.MULTILINE)
    assert (
        "python -m msconv_jax.train.predict" in (elsewhere / "comparison" / "plain" / "seed0" / "log.txt").read_text()
    )


def test_the_library_is_imported_without_the_packages_of_the_extras():
    extras = ["grain", "tensorflow_datasets", "array_record", "cv2", "simplejpeg", "PIL", "ml_collections", "pydantic"]
    extras += ["jinja2", "matplotlib", "sklearn", "flatbuffers", "onnx"]
    program = f"import sys; sys.modules.update(dict.fromkeys({extras})); import msconv_jax"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
