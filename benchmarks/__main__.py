"""Runs all benchmarks and writes one document.

    python -m benchmarks [--full] [--write NAME]

Without `--full`: the operators over the plain convolution, with few rounds (minutes on two cores). With `--full`: more
rounds, the native grouped convolutions, `ps_resnet50` over `resnet50`, cases outside XLA's fast paths, and PyTorch's
operators if PyTorch is installed. The document is printed; `--write` replaces `benchmarks/results/NAME.md` instead. Run
nothing else on the machine meanwhile: it changes the ratios too.

    python -m benchmarks --docs NAME

copies the summary of `benchmarks/results/NAME.md` into docs/performance.md, and the table of
`benchmarks.operator_costs` with these times into docs/operators/index.md, each between two comments. It times nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable, Sequence

from benchmarks import hard_places, models, operators, pytorch_operators
from benchmarks.operator_costs import with_costs
from benchmarks.tables import LEGEND, Comparison, overheads, summary
from benchmarks.timing import machine

RESULTS = pathlib.Path(__file__).parent / "results"
DOCS = pathlib.Path(__file__).parent.parent / "docs"
PERFORMANCE, OPERATORS = DOCS / "performance.md", DOCS / "operators" / "index.md"
OPENING, CLOSING = "<!-- `python -m benchmarks --docs` wrote this -->", "<!-- to here -->"
SUMMARY = "## Summary"
ROUNDS, FULL_ROUNDS = 5, 15
SUMMARY_LEGEND = (
    "Geometric means of the ratios over the shapes, what the project aims at, and in parentheses the worst shape."
)
OVERHEAD_TARGET = 0.8  # the library's ratio over the plain convolution, divided by PyTorch's


def collect(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Runs the comparisons and reports the end of each."""
    done = []
    for comparison in comparisons:
        print(f"{comparison.name} over {comparison.base}: done", file=sys.stderr, flush=True)
        done.append(comparison)
    return done


def measure(options: argparse.Namespace) -> tuple[dict[str, list[Comparison]], list[str]]:
    """Runs the selected benchmarks; returns the comparisons by section, and remarks on omitted ones."""
    shapes = (options.sizes, options.batch, options.rounds)
    sections = {"Operators": collect(operators.compare_all(*shapes, options.only, native=options.full))}
    if not options.full:
        return sections, []
    sections["Networks"] = collect([models.compare(), models.compare_folded()])
    sections["Hard places"] = collect(hard_places.compare_all(options.batch, min(options.rounds, hard_places.ROUNDS)))
    if not pytorch_operators.installed():
        return sections, ["PyTorch is not installed here and was left out."]
    # Last, since PyTorch's threads would slow the other benchmarks down.
    sections["PyTorch"] = collect(pytorch_operators.compare_all(*shapes))
    if pytorch_operators.compiler() is None:
        return sections, ["There is no C++ compiler here: torch.compile was left out."]
    sections["PyTorch"] += collect(pytorch_operators.compare_all(*shapes, compiled=True))
    return sections, []


def document(command: str, setting: str, sections: dict[str, list[Comparison]], remarks: Sequence[str]) -> str:
    """The whole document as Markdown."""
    everything = [comparison for comparisons in sections.values() for comparison in comparisons]
    parts = [
        "# Times over the plain convolution",
        f"Written by `{command}`, wholly: edit nothing here.",
        setting,
        LEGEND,
        *remarks,
        f"{SUMMARY}\n\n{SUMMARY_LEGEND}\n\n{summary(everything)}",
    ]
    if "PyTorch" in sections:
        table = overheads(sections["Operators"], sections["PyTorch"], OVERHEAD_TARGET)
        parts.append("The library's ratios over those of the same operators in PyTorch:")
        parts.append(table)
    for title, comparisons in sections.items():
        parts.append(f"## {title}")
        parts += [comparison.markdown().rstrip() for comparison in comparisons]
    return "\n\n".join(parts) + "\n"


def with_summary(page: str, results: str) -> str:
    """The page with the summary of `results` between its two comments.

    Raises:
        ValueError: if the page lacks the comments.
    """
    before, opening, rest = page.partition(OPENING)
    _, closing, after = rest.partition(CLOSING)
    if not (opening and closing):
        raise ValueError(f"the page has no place for the summary: it needs the lines {OPENING!r} and {CLOSING!r}.")
    machine_line = next(line for line in results.splitlines() if "interleaved rounds" in line)
    tables = results.partition(SUMMARY)[2].partition("\n## ")[0].strip()
    return f"{before}{OPENING}\n{machine_line[:1].upper()}{machine_line[1:]}. {tables}\n{CLOSING}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser("python -m benchmarks", description="Run the benchmarks.")
    operators.add_arguments(parser, rounds=None)
    parser.add_argument("--only", nargs="+", choices=operators.NAMES, help="these operators of the library")
    parser.add_argument("--full", action="store_true", help="everything, not only a look at the operators")
    parser.add_argument("--write", metavar="NAME", help="write benchmarks/results/NAME.md instead of printing")
    parser.add_argument(
        "--docs", metavar="NAME", help="time nothing; copy the summary of benchmarks/results/NAME.md into the documents"
    )
    options = parser.parse_args(arguments)
    if options.docs is not None and options != parser.parse_args(["--docs", options.docs]):
        parser.error("--docs times nothing: give no other argument with it")
    if options.rounds is None:
        options.rounds = FULL_ROUNDS if options.full else ROUNDS
    operators.check_arguments(parser, options)
    if options.write is not None and not re.fullmatch(r"\w[\w-]*", options.write):
        parser.error(f"--write {options.write!r}: a name for this machine, of letters, digits and dashes")
    if options.docs is not None:
        if not (RESULTS / f"{options.docs}.md").is_file():
            parser.error(f"--docs {options.docs!r}: there is no {RESULTS / options.docs}.md; --write makes one")
        results = (RESULTS / f"{options.docs}.md").read_text()
        PERFORMANCE.write_text(with_summary(PERFORMANCE.read_text(), results))
        OPERATORS.write_text(with_costs(OPERATORS.read_text(), results))
        print(f"wrote the summary into {PERFORMANCE}, and the costs into {OPERATORS}")
        return
    setting = f"{machine()}; batch {options.batch}, float32, {options.rounds} interleaved rounds"
    sections, remarks = measure(options)
    if "PyTorch" in sections:
        setting += f"\n\n{pytorch_operators.machine()}"
    text = document(shlex.join(["python", "-m", "benchmarks", *arguments]), setting, sections, remarks)
    if options.write is None:
        print(text)
    else:
        path = RESULTS / f"{options.write}.md"
        path.write_text(text)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
