"""Shows the reStructuredText of the docstrings, roles and tables, in the Markdown of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Markdown(griffe.Extension):
    """Rewrites each docstring before it is shown."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Roles become code, simple tables blocks of text, and an example a section of code."""
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = re.sub(r":(?:class|func|meth|mod|attr|data|obj):`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"^(=+(?: +=+)+\n.*\n)(?=\n|\Z)", as_block, f"{text}\n", flags=re.MULTILINE | re.DOTALL)


def as_block(match: re.Match[str]) -> str:
    """The table from its first to its last rule as a block of text."""
    table, _, after = match[1].rpartition("\n=")
    rule, _, after = after.partition("\n")
    return f"```text\n{table}\n={rule}\n```\n{after}"
