"""The house's one-way flow: who may import whom."""

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# The rooms in the order in which they build on each other. A module imports from its own room and from those before.
ROOMS = [
    ["msconv_jax.modes"],
    ["msconv_jax.signatures"],
    ["msconv_jax.arguments"],
    ["msconv_jax.packing"],
    ["msconv_jax.lattice", "msconv_jax.recording", "msconv_jax.whole_files"],
    ["msconv_jax.vision"],
    ["msconv_jax.costs"],
    ["msconv_jax.lowering"],
    ["msconv_jax.convolution"],
    ["msconv_jax.operators"],
    ["msconv_jax.models"],
    ["msconv_jax.segmentation"],
    ["msconv_jax.heads"],  # the former names
    [
        "msconv_jax.counting",
        "msconv_jax.exporting",
        "msconv_jax.folding",
        "msconv_jax.torch_weights",
        "msconv_jax.analysis",
        "msconv_jax.linen",
        "msconv_jax.surgery",
    ],
    ["msconv_jax.edo"],
    ["msconv_jax.__main__", "msconv_jax.train"],  # the second one starts the programs, by their names
    ["msconv_jax"],  # its __init__ gathers the public names
    ["configs"],
    ["train.untrusted"],
    ["train.errors"],
    ["train.config"],
    ["train.data"],
    ["train.task"],
    ["train.page"],
    ["train.engine"],  # it knows no task
    ["train.tasks"],
    ["train"],
    ["studies"],
    ["train.edo", "train.compare", "train.cost"],  # they start the studies
    ["benchmarks", "colab"],
]

FOLDERS = ("msconv_jax", "train", "studies", "configs", "benchmarks")


def sources():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


SOURCES = dict(sources())


def imports_of(name):
    """Modules of this repository that the file imports, also inside functions."""
    path = SOURCES[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in SOURCES else base for alias in node.names}
    return {module for module in found if module.split(".")[0] in FOLDERS}


def room(module):
    """Place in the order of the longest room name that the module belongs to."""
    matching = [
        (len(name), place)
        for place, names in enumerate(ROOMS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert matching, f"{module} has no room; name it in ROOMS"
    _, place = max(matching)
    # A module of the package without a room of its own must not slip in with the package's __init__.
    assert module == "msconv_jax" or ROOMS[place] != ["msconv_jax"], f"{module} has no room; name it in ROOMS"
    return place


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_one_way(name):
    for imported in imports_of(name):
        assert room(imported) <= room(name), f"{name} imports {imported}, which builds on it"
        if room(name) == 0 or name.startswith("msconv_jax."):
            assert imported != "msconv_jax", f"{name} imports the package that imports it"


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("msconv_jax")])
def test_the_library_knows_no_program(name):
    assert not {module for module in imports_of(name) if module.split(".")[0] != "msconv_jax"}


def test_three_modules_of_train_start_the_studies_and_nothing_else_knows_them():
    users = {name for name in SOURCES if any(module.split(".")[0] == "studies" for module in imports_of(name))}
    assert {name for name in users if name.split(".")[0] != "studies"} == {"train.edo", "train.compare", "train.cost"}
    starters = {"train.edo", "train.compare", "train.cost"}
    assert not {name for name in SOURCES if imports_of(name) & starters}


def test_the_engine_knows_no_task():
    words = re.compile(r"\blabels?\b|accurac|classes|one_hot|smoothing", re.IGNORECASE)
    found = []
    for path in sorted((ROOT / "train" / "engine").glob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if words.search(line.replace("label=split", "")):  # an argument of a plot
                found.append(f"{path.name}:{number}: {line.strip()}")
    assert not found
    engine = [name for name in SOURCES if name.startswith("train.engine")]
    assert len(engine) > 10
    assert not {module for name in engine for module in imports_of(name) if module.startswith("train.tasks")}


def test_there_is_no_import_cycle():
    graph = {name: imports_of(name) & set(SOURCES) for name in SOURCES}
    done, active = set(), []

    def visit(name):
        assert name not in active, " -> ".join([*active[active.index(name) :], name])
        if name not in done:
            active.append(name)
            for imported in graph[name]:
                # Importing a module of a package runs the package's __init__, which imports the module: no cycle.
                if imported != name and not name.startswith(imported + "."):
                    visit(imported)
            active.pop()
            done.add(name)

    for name in SOURCES:
        visit(name)


def test_one_file_calls_xlas_convolution():
    callers = []
    for name, path in SOURCES.items():
        if name.startswith("msconv_jax"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            if any(isinstance(c.func, ast.Attribute) and c.func.attr == "conv_general_dilated" for c in calls):
                callers.append(name)
    assert callers == ["msconv_jax.lowering.xla"]


def test_the_library_needs_only_its_core_dependencies():
    program = "import sys, json, msconv_jax; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    extras = {"grain", "tensorflow", "tensorflow_datasets", "cv2", "sklearn", "matplotlib", "ml_collections"}
    assert not loaded & (extras | {"tensorboardX", "torch", "train", "studies", "configs"})


def test_the_public_names_are_there():
    import msconv_jax

    for name in msconv_jax.__all__:
        assert getattr(msconv_jax, name).__doc__
    assert sorted(msconv_jax.__all__) == msconv_jax.__all__
