"""What the trainings of docs/reproducing.md cost.

    python -m tests.reproduction

counts every network of that document and fills its columns of costs in, as `python -m train.cost` counts and estimates
them. It builds shapes only, and takes a minute.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from msconv_jax.models import model_entry
from studies.cost import Cost, cost, training_data
from train.config import Config, parse_command_line

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "reproducing.md"


def config_of(command: str) -> Config:
    """The checked config of a `python -m train` command."""
    words = shlex.split(command)[2:]  # without python -m
    flags = [word for word in words[1:] if word.startswith("--config")]
    return parse_command_line([words[0], *flags], None, needs_workdir=False)[0]


def cost_of(config: Config) -> Cost:
    """As `studies.cost.cost`, which need not count a network again that the library keeps the counts of."""
    entry = model_entry(config.model.name)
    images, source = training_data(config)
    plain = not (config.model.kwargs or config.model.conv or config.model.convs)
    if plain and (source.image_shape, len(source.classes)) == (entry.input_size, entry.num_classes):
        return Cost(entry.parameters, entry.macs, images * config.epochs)
    return cost(config)


def with_costs(text: str) -> str:
    """The document with its columns of costs filled in."""
    lines = []
    for line in text.splitlines():
        cells = line.split(" | ")
        command = re.search(r"`(python -m train --[^`]*)`", cells[-1])
        if line.startswith("| ") and len(cells) == 6 and command:
            found = cost_of(config_of(command[1]))
            figures = f"{found.parameters / 1e6:.2f}", f"{found.macs / 1e9:.2f}", f"{found.hours:.2g}"
            line = " | ".join([*cells[:2], *figures, cells[-1]])
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the program."""
    DOCUMENT.write_text(with_costs(DOCUMENT.read_text()))
    print(f"wrote the costs into {DOCUMENT}")


if __name__ == "__main__":
    main()
