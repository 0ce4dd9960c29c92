"""What the documents in docs/ show runs, and their tables are what the code says."""

import re
import runpy

import pytest
from flax import nnx

from benchmarks.__main__ import OPERATORS, RESULTS
from benchmarks.operator_costs import with_costs
from msconv_jax import operators
from msconv_jax.models import model_entry
from studies.cost import Cost, training_data
from tests import reproduction
from tests.commands import DOCUMENTS, ROOT
from train.config import update_config
from train.tasks import Classification

ROWS = re.findall(r"^\| (.*)", reproduction.DOCUMENT.read_text(), re.MULTILINE)
TRAININGS = [cells for cells in (row.removesuffix(" |").split(" | ") for row in ROWS) if "python -m train" in cells[-1]]


@pytest.mark.parametrize("name", [pytest.param("adding_an_operator", marks=pytest.mark.slow), "reproducing"])
def test_the_code_of_a_document_runs_from_top_to_bottom(name, tmp_path):
    path = ROOT / "docs" / f"{name}.md"
    program = "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
    assert "assert" in program
    (tmp_path / f"{name}.py").write_text(program)
    runpy.run_path(str(tmp_path / f"{name}.py"))


def test_the_costs_of_the_operators_are_the_present_ones():
    text = OPERATORS.read_text()
    assert with_costs(text, (RESULTS / "x86-2-cores.md").read_text()) == text


def test_every_operator_is_described():
    text = OPERATORS.read_text()
    headings = " ".join(re.findall(r"^## (.*)", text, re.MULTILINE))
    for operator in (*operators.DROP_IN, operators.OctConv, operators.PACConv, operators.PACPool, operators.ACGraph):
        assert f"`{operator.__name__}`" in headings, operator


def test_links_lead_somewhere():
    for document in (*DOCUMENTS, ROOT / "CONTRIBUTING.md"):
        text = document.read_text()
        for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def config_of(cells):
    return reproduction.config_of(cells[-1].strip("`"))


def is_registered(config):
    """Whether the network is one of the names, without arguments of its own, whose counts the library keeps."""
    entry, (_, source) = model_entry(config.model.name), training_data(config)
    own = config.model.kwargs or config.model.conv or config.model.convs
    return not own and (source.image_shape, len(source.classes)) == (entry.input_size, entry.num_classes)


def test_costs_of_registered_networks_are_those_counted(monkeypatch):
    monkeypatch.chdir(ROOT)
    checked = 0
    for cells in TRAININGS:
        config = config_of(cells)
        if is_registered(config):
            assert reproduction.with_costs(line := f"| {' | '.join(cells)} |") == f"{line}\n"
            checked += 1
    assert checked > 50


@pytest.mark.slow
def test_other_networks_can_be_built_and_have_the_hours_of_their_rows(monkeypatch):
    """With one block to a stage, for time; `python -m tests.reproduction` counts the whole networks, in minutes."""
    monkeypatch.chdir(ROOT)
    built = set()
    for cells in TRAININGS:
        config = config_of(cells)
        if is_registered(config):
            continue
        images, source = training_data(config)
        _, _, parameters, macs, hours, _ = cells
        estimate = Cost(round(float(parameters) * 1e6), round(float(macs) * 1e9), images * config.epochs)
        assert float(hours) == pytest.approx(estimate.hours, rel=0.12, abs=0.06), cells
        entry = model_entry(config.model.name)
        shallow = {"layers": [1] * len(entry.config["layers"])} if "layers" in entry.config else {}
        config = update_config(config, {f"model.kwargs.{name}": value for name, value in shallow.items()})
        key = (config.model.name, str(config.model.kwargs), config.model.conv, str(config.model.conv_kwargs))
        if key not in built:
            built.add(key)
            nnx.eval_shape(Classification(config, source).create)
    assert len(built) > 25
