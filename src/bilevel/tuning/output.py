"""The files of a run: all of them or none."""

import json
import os
import tempfile
from pathlib import Path

from bilevel.data import DataError
from bilevel.tuning import plots
from bilevel.tuning.record import record
from bilevel.tuning.run import Result

FILES = ("model.json", "penalties.csv", "record.json", "validation_curve.png", "penalties.png")


def check_destination(directory: Path) -> None:
    """Refuse, before any work is done, a place that cannot be written to or holds something else.

    Raises
    ------
    DataError
        It is a file, has other files than those of an earlier run, or its parent cannot be written to.
    """
    if directory.is_dir():
        others = sorted(entry.name for entry in directory.iterdir() if entry.name not in FILES)
        if others:
            raise DataError(f"{directory} holds other files ({others[0]}, ...); give --out a new directory")
    elif directory.exists() or directory.is_symlink():
        raise DataError(f"{directory} is not a directory; give --out a new one")
    parent = directory.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f"cannot write to {parent}; give --out another place")


def write(result: Result, directory: Path) -> None:
    """Write model, penalties, record and plots; an earlier run in the same place is replaced.

    Everything is written beside the destination and moved there at the end.

    Raises
    ------
    DataError
        The place cannot be written to.
    """
    check_destination(directory)
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            made = Path(scratch) / "new"
            made.mkdir()
            _write_files(result, made)
            if directory.exists():
                directory.rename(Path(scratch) / "old")
            made.rename(directory)
    except OSError as error:
        raise DataError(f"cannot write to {directory}: {error.strerror or error}") from error


def _write_files(result: Result, directory: Path) -> None:
    result.model.save(directory / "model.json")
    result.penalties.to_csv(directory / "penalties.csv", index=False)
    text = json.dumps(record(result), indent=2, allow_nan=False)
    (directory / "record.json").write_text(text + "\n", encoding="utf-8")
    plots.validation_curve(result, directory / "validation_curve.png")
    plots.penalties(result, directory / "penalties.png")
