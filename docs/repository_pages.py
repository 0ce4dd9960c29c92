"""Turns links to files of the repository outside `docs/` into links to pages of the site.

A linked source file becomes a page with its text, a Markdown document or a notebook a page, a picture is copied. So the
documents hold ordinary relative links, which work in a clone as well, and the site needs no address of the repository.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FOLDER = "repository"  # of the site, with the pages that this file makes
LINK = re.compile(r"(\]\()([\w./-]+)((?:#[\w-]+)?\))")
PICTURES = {".png", ".svg"}


def source_of(page: str) -> Path:
    """The file of the repository that a page of the site shows."""
    if page.startswith(f"{FOLDER}/"):
        name = page.removeprefix(f"{FOLDER}/").removesuffix(".md")
        return ROOT / name if (ROOT / name).is_file() else ROOT / f"{name}.md"
    return DOCS / page


def target_of(source: Path, link: str) -> Path | None:
    """The file to which a relative link leads, of a folder its `__init__.py`; None if there is none."""
    target = Path(os.path.normpath(source.parent / link))
    if target.is_dir():
        target /= "__init__.py"
    return target if target.is_file() and target.is_relative_to(ROOT) else None


def page_of(target: Path) -> str:
    """The page of the site that shows a file."""
    if target.is_relative_to(DOCS) and target.suffix != ".py":
        return target.relative_to(DOCS).as_posix()
    if target == ROOT / "README.md":
        return "index.md"
    name = f"{FOLDER}/{target.relative_to(ROOT).as_posix()}"
    return name if target.suffix in {".md", *PICTURES} else f"{name}.md"


def text_of(target: Path) -> str:
    """A file as Markdown."""
    text = target.read_text()
    if target.suffix == ".md":
        return text
    if target.suffix == ".ipynb":
        cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"])
        return "\n\n".join(source if kind == "markdown" else fenced(source, "python") for kind, source in cells)
    name = target.relative_to(ROOT).as_posix()
    return f"# {name}\n\n{fenced(text, {'.py': 'python', '.json': 'json'}.get(target.suffix, 'text'))}"


def fenced(text: str, language: str) -> str:
    """A block of code, whatever fences it holds."""
    return f"~~~~{language}\n{text.rstrip()}\n~~~~"


def links(source: Path) -> list[str]:
    """The relative links of a document, but for those in blocks of code."""
    if source.suffix not in {".md", ".ipynb"}:
        return []
    text = re.sub(r"^(```|~~~~).*?^\1", "", text_of(source), flags=re.DOTALL | re.MULTILINE)
    return [link for _, link, _ in LINK.findall(text)]


def on_files(files: Files, *, config: Any) -> Files:
    """Adds a page for each file outside `docs/` that is linked, and for those that are linked there."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    while waiting:
        source = waiting.pop()
        for target in filter(None, (target_of(source, link) for link in links(source))):
            page = page_of(target)
            if files.get_file_from_path(page):
                continue
            content = target.read_bytes() if target.suffix in PICTURES else text_of(target)
            files.append(File.generated(config, page, content=content))
            waiting.append(target)
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Replaces the links to files of the repository by links to their pages."""
    here = page.file.src_uri
    source = source_of(here)

    def replaced(match: re.Match[str]) -> str:
        target = target_of(source, match[2])
        if target is None:
            return match[0]
        return f"{match[1]}{os.path.relpath(page_of(target), os.path.dirname(here) or '.')}{match[3]}"

    parts = re.split(r"(^(?:```|~~~~).*?^(?:```|~~~~)$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith(("```", "~~~~")) else LINK.sub(replaced, part) for part in parts)
