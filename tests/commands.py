"""What the documents show: their code and their shell commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from absl import flags

from studies import compare
from studies.compare_config import CompareConfig
from studies.edo_config import SearchConfig
from train.config import Config, parse_command_line
from train.engine.distributed import define_flags, read_process_info

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
PROGRAMS = r"(?:\.venv/bin/python|python|pip|make|bash) "


def name(document: Path) -> str:
    """The path of a document in the repository."""
    return document.relative_to(ROOT).as_posix()


def code(text: str) -> list[tuple[str, str, int]]:
    """The blocks of Python of a document: "python" or "pycon", the code, and the number of lines before it."""
    found = re.finditer(r"^```(python|pycon)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(block[1], block[2], text.count("\n", 0, block.start(2))) for block in found]


def commands(text: str) -> list[str]:
    """The commands of a document, in one line each: those of its ``sh`` blocks and those between backquotes."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    found = [re.sub(r"(^|\s+)#.*", "", line) for line in blocks.splitlines()]
    prose = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    found += re.findall(rf"`({PROGRAMS}[^`]*)`", prose)
    return list(dict.fromkeys(" ".join(command.split()) for command in found if command.strip()))


def configured(text: str) -> list[str]:
    """The commands of a document that read a config, of `train` and its programs.

    A command may be the argument of another program, as on a cluster.
    """
    found = []
    for command in commands(text):
        inner = re.search(r"python -m (msconv_jax\.)?train(\.\w+)? --config=.*", command)
        if inner:
            within_quotes = inner[0].count('"') % 2 == 1
            found.append(inner[0].removesuffix('"') if within_quotes else inner[0])
    return found


def parsed(command: str) -> Any:
    """The checked config of such a command, which is read from the repository's root as the program reads it.

    Raises:
        UserError: if the program would refuse it.
    """
    _, _, module, *arguments = shlex.split(command.replace("--process_id=I", "--process_id=1"))
    module = module.removeprefix("msconv_jax.")
    values = flags.FlagValues()
    define_flags(values)
    flags.DEFINE_string("weights", None, "of train.evaluate", flag_values=values)
    compare.define_flags(values)
    kind = {"train.edo": SearchConfig, "train.compare": CompareConfig}.get(module, Config)
    config, _ = parse_command_line([module, *arguments], None, kind, values, needs_workdir=False)
    read_process_info(values)
    return config
