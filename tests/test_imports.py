"""Rules about imports beyond import-linter's contracts in pyproject.toml."""

import ast
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def test_one_file_calls_xlas_convolution():
    callers = []
    for path in (ROOT / "msconv_jax").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(c.func, ast.Attribute) and c.func.attr == "conv_general_dilated" for c in calls):
            callers.append(path.relative_to(ROOT).as_posix())
    assert callers == ["msconv_jax/lowering/xla.py"]


def test_the_library_needs_only_its_core_dependencies():
    program = "import sys, json, msconv_jax; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    extras = {"grain", "tensorflow", "tensorflow_datasets", "cv2", "sklearn", "matplotlib", "ml_collections"}
    assert not loaded & (extras | {"tensorboardX", "torch", "train", "studies", "configs", "beartype"})


def test_the_public_names_are_there():
    import msconv_jax

    for name in msconv_jax.__all__:
        assert getattr(msconv_jax, name).__doc__
    assert sorted(msconv_jax.__all__) == msconv_jax.__all__


def test_the_engine_names_no_concept_of_a_task():
    words = re.compile(r"\blabels?\b|accurac|classes|one_hot|smoothing", re.IGNORECASE)
    found = []
    for path in sorted((ROOT / "train" / "engine").glob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if words.search(line.replace("label=split", "")):  # an argument of a plot
                found.append(f"{path.name}:{number}: {line.strip()}")
    assert not found
