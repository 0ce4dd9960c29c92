"""What is shipped: the wheel holds the library alone, typed, and the repository holds what it says."""

import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """File names in a wheel built from a copy of the sources, without network."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("msconv_jax", "train", "configs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        "out",
        ".",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "out").glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_holds_the_library_alone(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"msconv_jax", f"msconv_jax-{PROJECT['version']}.dist-info"}


def test_the_wheel_is_complete_and_typed(wheel_names):
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "msconv_jax").rglob("*.py")}
    assert sources <= set(wheel_names)
    assert "msconv_jax/py.typed" in wheel_names


def test_the_core_has_few_dependencies():
    names = {dependency.split(">")[0] for dependency in PROJECT["dependencies"]}
    assert names == {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint"}


def test_extras():
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"train", "test", "export", "gpu", "tpu", "prepare", "colab", "analysis"}
    assert extras["gpu"] == ["jax[cuda13]>=0.10"]
