"""The notebooks run from top to bottom as in Colab, are stored without outputs, and give the expected results."""

import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "colab").glob("*.ipynb"))}


def cells_of(name, kind):
    return [cell for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells if cell.cell_type == kind]


def test_the_six_notebooks_are_there():
    assert [name.partition("_")[0] for name in NOTEBOOKS] == list("123456")
    assert set(NOTEBOOKS) == set(CHECKS) == set(PICTURES)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_valid_and_kept_without_outputs(name):
    nbformat.validate(nbformat.read(NOTEBOOKS[name], as_version=4))
    for cell in cells_of(name, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_begin_with_what_they_show_and_end_with_where_to_go(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "on a CPU" in first.source  # its duration
    assert last.source.startswith("## Where to go next")


def without_extras(source):
    """The first cell's text without the extra packages."""
    return re.sub(r'EXTRAS = "(\w+)".*', "", source)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_first_cell_of_code_installs_the_package(name):
    source = cells_of(name, "code")[0].source
    assert re.search(r'^SOURCE = "\.\."', source, re.MULTILINE)
    assert 'find_spec("msconv_jax")' in source
    assert "pip" in source
    needs_checkout = "CHECKOUT" in "".join(cell.source for cell in cells_of(name, "code"))
    assert ("CHECKOUT" in source) == needs_checkout
    # All notebooks have the same cell.
    same = [other for other in NOTEBOOKS if ("CHECKOUT" in cells_of(other, "code")[0].source) == needs_checkout]
    assert without_extras(source) == without_extras(cells_of(same[0], "code")[0].source)


def numbers(pattern, text):
    """The groups of a pattern's first match, as floats."""
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in:\n{text}"
    return [float(group) for group in found.groups()]


def check_operators(text):
    assert "output (1, 8, 8, 32) plain (1, 8, 8, 32)" in text
    (shares,) = numbers(r"HetConv\S* .*? (0\.\d+)\n", text)
    assert shares == pytest.approx((1 + 3 / 9) / 4, abs=1e-3)  # a quarter of 3x3 kernels, the others 1x1
    for what in ("between NNX and Linen", r"from the dense kernel \(5, 5, 8, 8\)"):
        assert numbers(what + r": (\S+)", text)[0] < 1e-5
    assert numbers(r"left out: (0\.\d+)", text)[0] > 0.9


def check_scaled_digits(text):
    for group in ("32 to 48", "all"):  # chance is 0.1
        assert min(numbers(rf"{group} +\d+ +(0\.\d+) +(0\.\d+)", text)) > 0.2
    plain, ours = numbers(r"'plain': (\d+), 'PSConv': (\d+)", text)
    assert plain < ours < 64


def check_dilation_search(text):
    (plain, of_plain), (found, of_found) = (
        numbers(rf"{name} +(\d+) +(0\.\d+)", text.partition("accuracy\n")[2]) for name in ("plain", "found")
    )
    assert plain == found
    assert min(of_plain, of_found) > 0.9


def check_pytorch_weights(text):
    recorded, by_hand = numbers(r"authors' code agree to (\S+); the stem by hand to (\S+)", text)
    assert 0 < recorded < 1e-5
    assert 0 < by_hand < 1e-4


def check_joint_upsampling(text):
    table = text.partition("RMSE")[2].partition("RMSE")[0]  # the first photograph's
    cell = r" +(0\.\d+)"
    bilinear, joint = (numbers(name + 4 * cell, table) for name in ("bilinear", "joint bilateral"))
    assert all(ours < theirs for ours, theirs in zip(joint, bilinear, strict=True))
    assert joint[2] < 0.7 * bilinear[2]  # x8, all pixels


def check_many_devices(text):
    assert "4 cpu devices" in text
    (difference,) = numbers(r"from that of one device: (\S+)", text)
    assert difference < 1e-3
    for name in ("train_loss", "validation_loss"):
        undivided, sharded = numbers(rf"{name} +(\S+) without shards, (\S+) with 2", text)
        assert undivided == pytest.approx(sharded, abs=1e-4)


# Checks of each notebook's printed text.
CHECKS = {
    "1_operators": check_operators,
    "2_scaled_digits": check_scaled_digits,
    "3_dilation_search": check_dilation_search,
    "4_pytorch_weights": check_pytorch_weights,
    "5_joint_upsampling": check_joint_upsampling,
    "6_many_devices": check_many_devices,
}
# The least number of pictures of each notebook.
PICTURES = {
    "1_operators": 3,
    "2_scaled_digits": 4,
    "3_dilation_search": 1,
    "4_pytorch_weights": 1,
    "5_joint_upsampling": 3,
    "6_many_devices": 0,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq.*", "ignore::DeprecationWarning:jupyter_client.*")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # ignores the user's settings
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    work = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=work).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    errors = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert "Warning" not in errors, errors
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= PICTURES[name]
    assert not (tmp_path / "msconv_jax_checkout").exists()  # it ran this checkout
    CHECKS[name](text)
