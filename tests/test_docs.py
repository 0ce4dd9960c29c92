"""The documents' code runs, their links exist, and their tables and figures are up to date."""

import builtins
import codeop
import doctest
import re
import sys
import tomllib
import types

import pytest
from flax import nnx

import msconv_jax
from benchmarks.__main__ import OPERATORS, PERFORMANCE, RESULTS, with_summary
from benchmarks.operator_costs import with_costs
from msconv_jax import operators
from msconv_jax.lowering.choose import LOWERINGS
from msconv_jax.models import model_entry
from studies.cost import Cost, training_data
from tests import reproduction
from tests.commands import DOCUMENTS, ROOT, code, name
from train.config import update_config
from train.tasks import Classification

README = (ROOT / "README.md").read_text()
TIMES = (RESULTS / "x86-2-cores.md").read_text()
ROWS = re.findall(r"^\| (.*)", reproduction.DOCUMENT.read_text(), re.MULTILINE)
TRAININGS = [cells for cells in (row.removesuffix(" |").split(" | ") for row in ROWS) if "python -m train" in cells[-1]]


SLOW = {"docs/adding_an_operator.md", "docs/models.md", "docs/analysis.md"}


def with_code():
    """The documents with code; slow ones are marked."""
    for document in DOCUMENTS:
        if code(document.read_text()):
            path = name(document)
            yield pytest.param(document, id=path, marks=[pytest.mark.slow] if path in SLOW else [])


@pytest.mark.parametrize("document", list(with_code()))
def test_the_code_of_a_document_runs_from_top_to_bottom(document, tmp_path, monkeypatch):
    """Runs all blocks in one namespace, and compares the results of interactive ones."""
    monkeypatch.chdir(tmp_path)
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # dataclasses look up their module
    compiled = codeop.Compile()  # keeps a `from __future__ import` for later blocks
    for kind, block, line in code(document.read_text()):
        if kind == "python":
            exec(compiled("\n" * line + block, str(document), "exec"), vars(page))  # noqa: S102  the documents are trusted
        else:
            examples = doctest.DocTestParser().get_doctest(block, vars(page), name(document), str(document), line)
            assert doctest.DocTestRunner().run(examples, clear_globs=False).failed == 0
            vars(page).update(examples.globs)


def test_every_operator_has_a_page_and_its_reference():
    pages = [(document.name, document.read_text()) for document in DOCUMENTS if document.parent.name == "operators"]
    overviews = (README, dict(pages)["index.md"])
    for operator in (*operators.DROP_IN, operators.OctConv, operators.ACGraph, operators.PACConv, operators.PACPool):
        (page,) = [page for page, text in pages if f"::: msconv_jax.{operator.__name__}\n" in text]
        assert all(f"{page})" in overview for overview in overviews), operator


def test_every_lowering_is_described():
    text = PERFORMANCE.read_text()
    for lowering in LOWERINGS:
        assert f'| `"{lowering}"` |' in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        assert (document.parent / target).exists(), target


def test_every_picture_is_shown_and_drawn_by_the_script():
    shown = {path for document in DOCUMENTS for path in re.findall(r"pictures/(\w+)\.svg", document.read_text())}
    pictures = list((ROOT / "docs" / "pictures").glob("*.svg"))
    assert {path.stem for path in pictures} == shown
    assert sum(path.stat().st_size for path in pictures) < 3e6


def test_the_public_names_of_the_changelog_exist():
    for public in re.findall(r"`([A-Z]\w+)`", (ROOT / "CHANGELOG.md").read_text()):
        assert any(
            hasattr(place, public) for place in (msconv_jax, msconv_jax.models, msconv_jax.segmentation, builtins)
        ), public


def test_the_citation_names_the_released_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)", citation, re.MULTILINE)[1] == project["version"]
    assert re.search(r"^license: (.*)", citation, re.MULTILINE)[1] == project["license"]


def test_the_networks_of_the_readme_are_those_of_the_registry():
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", README, re.MULTILINE)
    assert len(rows) == 6
    for network, parameters, macs, top1 in rows:
        entry = model_entry(network)
        assert (parameters, macs) == (f"{entry.parameters / 1e6:.2f}", f"{entry.macs / 1e9:.2f}")
        assert float(top1) == entry.published.top1


def paragraph_with(document, link):
    """The numbers in a document's only paragraph with `link`."""
    (paragraph,) = [part for part in (ROOT / document).read_text().split("\n\n") if link in part]
    return set(re.findall(r"\d+(?:\.\d+)?", paragraph))


def test_quoted_figures_are_those_of_the_kept_tables():
    memory = (RESULTS / "x86-2-cores-pac-memory.md").read_text()
    mebibytes = re.findall(r"\| (?:unfolded|pac_convolve) \| (\d+) \|", memory)
    assert len(mebibytes) == 4
    assert set(mebibytes) <= paragraph_with("docs/operators/pac.md", "x86-2-cores-pac-memory.md")
    fields = (RESULTS / "receptive-fields.md").read_text()
    sides = dict(re.findall(r"^\| (\w+) \| layer2 \| [^|]+ \| ([\d.]+)", fields, re.MULTILINE))
    quoted = {f"{float(sides[network]):.0f}" for network in ("resnet50", "ps_resnet50", "pyconv_resnet50")}
    assert quoted <= paragraph_with("docs/models.md", "receptive-fields.md")
    times = dict(re.findall(r"^\| (PSConv|ICConv) \| nnx.Conv \| ([\d.]+)", TIMES, re.MULTILINE))
    assert set(times.values()) <= paragraph_with("README.md", "docs/performance.md#measured-times")


def test_copied_tables_are_the_kept_ones():
    assert with_summary(PERFORMANCE.read_text(), TIMES) == PERFORMANCE.read_text()
    assert with_costs(OPERATORS.read_text(), TIMES) == OPERATORS.read_text()


def config_of(cells):
    return reproduction.config_of(cells[-1].strip("`"))


def is_registered(config):
    """Whether the network is a registered one without further arguments, whose counts are stored."""
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
    """Builds one block per stage, to save time; `python -m tests.reproduction` counts whole networks in minutes."""
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
