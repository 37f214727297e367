"""JSON lines: one record for every point of a figure, and the facts that all of them carry."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from bilevel.records import plain, versions
from bilevel.status import ProblemError

Line = dict[str, Any]

DIGITS = 6  # that numbers are kept with


def facts(experiment: str, seed: int, dtype: Any, config: Line) -> Line:
    """What every line of one run has in common: where and with what it was made."""
    return {
        "experiment": experiment,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "dtype": str(dtype),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "config": config,
    }


def compact(line: Any) -> Any:
    """The same record of plain values, numbers to six digits; what is not a finite number is None."""
    return _rounded(plain(line))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def write_lines(lines: Iterable[Line], path: Path) -> None:
    """Write records to a file, one JSON object a line, as :func:`compact` makes them.

    Raises
    ------
    ProblemError
        The file cannot be written.
    """
    try:
        text = "".join(json.dumps(compact(line), allow_nan=False) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ProblemError(f"cannot write to {path}: {error.strerror or error}") from error


def read_lines(path: Path, experiment: str) -> list[Line]:
    """Records of an experiment from a file.

    Raises
    ------
    ProblemError
        The file cannot be read, or holds something else.
    """
    try:
        lines = list(_parsed(path))
    except OSError as error:
        raise ProblemError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ProblemError(f"{path} must hold one JSON object a line, but it does not: {error}") from error
    if not lines or any(not isinstance(line, dict) or line.get("experiment") != experiment for line in lines):
        raise ProblemError(f"{path} must hold records of {experiment}, but it holds others or none")
    return lines


def _parsed(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
