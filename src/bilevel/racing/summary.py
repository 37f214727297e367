"""What is read from the records of a race: a row for every algorithm, medians over its runs."""

from typing import NamedTuple

import numpy as np

from bilevel.experiments.lines import Line
from bilevel.racing.run import ERROR
from bilevel.status import Status

FAILURES = (Status.NONFINITE.name, Status.DIVERGED.name, ERROR)  # others end searches as far as they can get
UNKNOWN = (np.nan,) * 6


class Row(NamedTuple):
    """One algorithm; NaN for what is not known, as of runs that failed.

    Attributes
    ----------
    name, origin
        The algorithm, and where its settings are from.
    final, at_samples, at_seconds
        The metric in the end, and where all runs that did not fail still went on.
    value
        The upper-level objective in the end, with the lower level solved.
    steps_per_second, samples_per_second
        Of the whole run.
    status
        ``"OK"``, or of the first run that failed, or else that ended otherwise.
    """

    name: str
    origin: str
    final: float
    at_samples: float
    at_seconds: float
    value: float
    steps_per_second: float
    samples_per_second: float
    status: str

    @property
    def failed(self) -> bool:
        """Whether a run failed."""
        return self.status in FAILURES


def summary(lines: list[Line]) -> list[Row]:
    """Rows, the best at equal samples first, those that failed last."""
    limits = common(lines, "samples"), common(lines, "seconds")
    rows = [_row([line for line in lines if line["algorithm"] == name], *limits) for name in names(lines)]
    return sorted(rows, key=lambda row: (row.failed, np.nan_to_num(row.at_samples, nan=np.inf)))


def names(lines: list[Line]) -> list[str]:
    """The algorithms, in the order of their records."""
    return list(dict.fromkeys(line["algorithm"] for line in lines))


def common(lines: list[Line], axis: str) -> float:
    """The samples or the seconds that all runs reached, without those that failed or ended of their own.

    Where all did, those at which the last one ended; NaN where all failed.
    """
    ends = [(line[axis][-1], line["ended"]) for line in lines if line["status"] not in FAILURES]
    going_on = [end for end, ended in ends if not ended]
    return min(going_on) if going_on else max((end for end, _ in ends), default=np.nan)


def column(line: Line, name: str) -> np.ndarray:
    """Numbers of a record; NaN for those that are not known."""
    return np.array([np.nan if x is None else x for x in line.get(name, [])], float)


def _row(runs: list[Line], samples: float, seconds: float) -> Row:
    first = runs[0]
    ends = [run["status"] for run in runs if run["status"] != Status.OK.name]
    failed = [status for status in ends if status in FAILURES]
    if failed:
        return Row(first["algorithm"], first["origin"], *UNKNOWN, status=failed[0])
    numbers = [
        (
            column(run, "metric")[-1], _reached(run, "samples", samples), _reached(run, "seconds", seconds),
            np.nan if run["final_value"] is None else run["final_value"],
            *_rates(run),
        )
        for run in runs
    ]  # fmt: skip
    final, at_samples, at_seconds, value, *rates = map(float, np.median(numbers, axis=0))
    status = ends[0] if ends else Status.OK.name
    return Row(first["algorithm"], first["origin"], final, at_samples, at_seconds, value, *rates, status=status)


def _rates(run: Line) -> tuple[float, float]:
    """Steps and rows drawn per second; NaN for a search whose first step failed."""
    seconds = run["seconds"][-1]
    return (run["step"][-1] / seconds, run["samples"][-1] / seconds) if seconds > 0 else (np.nan, np.nan)


def _reached(run: Line, axis: str, limit: float) -> float:
    """The metric there, between two evaluations interpolated: its logarithm, where it falls by decades."""
    x, y = column(run, axis), column(run, "metric")
    if not run["logarithmic"]:
        return float(np.interp(limit, x, y))
    return float(np.exp(np.interp(limit, x, np.log(np.maximum(y, np.finfo(float).tiny)))))
