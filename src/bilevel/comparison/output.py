"""The files of a comparison."""

import json
from pathlib import Path

from bilevel.comparison.plot import plot
from bilevel.comparison.record import record
from bilevel.comparison.run import Comparison
from bilevel.status import ProblemError


def make_directory(directory: Path) -> None:
    """Make the directory of the files where there is none, before any work is done for them.

    Raises
    ------
    ProblemError
        It is a file, or cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(directory, error) from error


def write(found: Comparison, directory: Path) -> None:
    """Write ``compare.json`` and ``compare.png``, in place of those of an earlier run.

    Raises
    ------
    ProblemError
        The directory cannot be written to.
    """
    make_directory(directory)
    try:
        text = json.dumps(record(found), indent=2, allow_nan=False)
        (directory / "compare.json").write_text(text + "\n", encoding="utf-8")
        plot(found, directory / "compare.png")
    except OSError as error:
        raise _cannot_write(directory, error) from error


def _cannot_write(directory: Path, error: OSError) -> ProblemError:
    return ProblemError(f"cannot write to {directory}: {error.strerror or error}")
