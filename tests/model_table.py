"""Counts every registered network, and writes the registry's table into the document that shows it.

    python -m tests.model_table

writes ``msconv_jax/models/counts.json``, which the registry's entries read, and then the table of
``python -m msconv_jax list`` between two comments of the document. It builds shapes only, and still takes minutes.
"""

from __future__ import annotations

import json
from pathlib import Path

from flax import nnx

from msconv_jax.__main__ import listing
from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.models import create_model, list_models, model_entry
from msconv_jax.models.registry import known_counts

ROOT = Path(__file__).parent.parent
COUNTS = ROOT / "msconv_jax" / "models" / "counts.json"
DOCUMENT = ROOT / "docs" / "models.md"
OPENING, CLOSING = "<!-- `python -m tests.model_table` wrote this -->", "<!-- the table's end -->"


def count(name: str) -> dict[str, int]:
    """Counts the parameters and multiply-accumulates of a network with default arguments."""
    entry = model_entry(name)
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    macs = sum(layer_macs(model, entry.input_size).values())
    return {"parameters": count_parameters(model), "macs": macs}


def with_table(text: str) -> str:
    """Replaces the table in a document's text.

    Raises:
        ValueError: if the text has no place for the table.
    """
    before, opening, after_opening = text.partition(OPENING)
    _, closing, after = after_opening.partition(CLOSING)
    if not (opening and closing):
        raise ValueError(f"{DOCUMENT.name} has no place for the table: it needs the lines {OPENING!r} and {CLOSING!r}")
    return f"{before}{OPENING}\n{listing('*')}\n{CLOSING}{after}"


def main() -> None:
    """Runs the program."""
    counts = {name: count(name) for name in list_models()}
    COUNTS.write_text(json.dumps(counts, indent=1) + "\n")
    known_counts.cache_clear()
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
    print(f"wrote {COUNTS} and the table in {DOCUMENT}")


if __name__ == "__main__":
    main()
