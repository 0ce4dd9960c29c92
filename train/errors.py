"""Errors that a user can correct, and how programs report them: a sentence and an exit status."""

import contextlib
import difflib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from absl import flags

from train.untrusted import escaped, shortened

_MAX_CHARACTERS = 4000  # characters of a message


class UserError(Exception):
    """An error outside the code: a flag, a config value, a file, a full disk.

    The message is one sentence for the user: the value, the rule it breaks and a way out. It may quote files: control
    characters are escaped, and the middle of a message of more than 4,000 characters is omitted.
    """

    def __init__(self, message: str):
        super().__init__(shortened(escaped(message, keep="\n"), _MAX_CHARACTERS))


def program(module: str) -> str:
    """Writes the command that starts a program; outside a clone it is ``python -m msconv_jax.train...``.

    Example:
        >>> program("train.evaluate")
        'python -m train.evaluate'
    """
    return f"python -m {os.environ.get('MSCONV_JAX_PREFIX', '')}{module}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Suggests known names for an unknown one: ``"did you mean 'x'?"``, or ``"known are: ..."``."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    return "known are: " + ", ".join(known)


class _PathParser(flags.ArgumentParser[str]):
    """Parses a flag whose value is the path of a file or folder."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return expand_user(argument)


def define_path(values: flags.FlagValues, name: str, description: str) -> None:
    """Defines a flag for a path, by default None; `expand_user` is applied to its value."""
    flags.DEFINE(_PathParser(), name, None, description, flag_values=values, serializer=flags.ArgumentSerializer())


def expand_user(path: str) -> str:
    """Replaces a leading ``~`` or ``~name`` by the home folder: shells do not after ``=`` and in quotes.

    Raises:
        UserError: if there is no such home folder.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(
            f"{path}: there is no home folder for {path.partition('/')[0]!r}; write the whole path, or ./{path} for a "
            "file of this name"
        )
    return expanded


def parse_flags(values: flags.FlagValues, argv: Sequence[str], description: str | None) -> list[str]:
    """Parses a command line, whose first entry is the program's name, with absl; returns the arguments besides flags.

    ``--help`` prints the description and the flags, and ends the program. Raises a `UserError` for unknown flags and
    invalid values.
    """
    flags.DEFINE_boolean("help", False, "show this help", flag_values=values)
    values.set_gnu_getopt(True)  # flags may follow the positional arguments
    try:
        arguments = values(list(argv))[1:]
    except flags.Error as error:
        raise UserError(f"{error} (--help lists the flags)") from error
    if values["help"].value:
        text = (description or "").strip().replace("python -m train", program("train"))
        print(f"{text}\n\nflags:{values.get_help()}")
        raise SystemExit(0)
    return arguments


def required(values: flags.FlagValues, name: str, example: str) -> str:
    """Returns a flag's value; raises a `UserError` if it is missing or empty."""
    value = values[name].value
    if not value:
        raise UserError(f"the flag --{name} is missing; give it, for example --{name}={example}")
    return value


def explain(error: BaseException) -> str | None:
    """Describes a `UserError`, or an `OSError` of a file or disk, in a sentence; None for bugs, all other errors."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        place = f" ({shortened(escaped(str(error.filename)), 1000)})" if error.filename else ""
        is_full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        is_locked = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        advice = "; make room on the disk and give the same command again" if is_full else ""
        advice = "; make it writable, or choose another place" if is_locked else advice
        return f"{error.strerror}{place}{advice}"
    return None


@contextlib.contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Turns an exception in the block into a note on stderr, for pictures of a run whose numbers are saved.

    Write files after the block, not in it: a full disk is an error.
    """
    try:
        yield
    except Exception as error:
        reason = shortened(escaped(str(error)), 500)
        print(f"note: {what} is missing, drawing it failed with {type(error).__name__}: {reason}", file=sys.stderr)


def escape_unencodable() -> None:
    """Makes stdout and stderr escape characters that their encoding lacks, such as Cyrillic letters in Latin-1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_program(main: Callable[[list[str]], int]) -> None:
    """Runs a program and ends the process with its exit status.

    An error that `explain` describes is printed on stderr and gives status 1. Any other exception is a bug and keeps
    its traceback. Both streams escape characters that their encoding lacks.
    """
    escape_unencodable()
    try:
        status = main(sys.argv)
    except (UserError, OSError) as error:
        sentence = explain(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
