"""Algorithms on one task: every run a record of what was reached after how many samples and seconds."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from bilevel import tree
from bilevel.comparison.attempt import attempt
from bilevel.driver.results import OptimizeResult, Record
from bilevel.experiments.lines import Line, facts
from bilevel.methods.sid import is_stochastic
from bilevel.optimize import optimize
from bilevel.racing.settings import Entrant
from bilevel.racing.task import Task
from bilevel.status import ProblemError, Status

Tree = Any
Progress = Callable[[str, int, int], None]

FOREVER = 2**31 - 1  # steps
FIRST, GROWTH = 0.125, 1.2  # epochs until the first evaluation, and how the stretches between them grow
ERROR = "ERROR"  # status of an algorithm that raised


@dataclass(frozen=True)
class Budget:
    """What a run goes on for: until it has drawn so many rows *and* has taken so many seconds.

    So that all runs can be compared at equal samples and at equal seconds.

    Raises
    ------
    ProblemError
        One of the two is not positive, or not finite.
    """

    samples: float
    seconds: float

    def __post_init__(self):
        for name, limit in asdict(self).items():
            if not 0 < limit < math.inf:
                raise ProblemError(f"{name} of a race must be positive and finite, but is {limit:g}")

    def is_spent(self, samples: float, seconds: float) -> bool:
        """Whether a run may end."""
        return samples >= self.samples and seconds >= self.seconds


class Point(NamedTuple):
    """What is known of a run at one evaluation.

    Attributes
    ----------
    step, samples, seconds
        Since the start; evaluations and compilation take no time.
    metric
        The metric of the task.
    upper
        The upper-level objective at the w of the run, or at the last trial of a search.
    """

    step: int
    samples: int
    seconds: float
    metric: float
    upper: float


def race(task: Task, entrants: list[Entrant], budget: Budget, seeds: list[int], progress: Progress) -> Iterator[Line]:
    """One record for every algorithm and seed.

    Parameters
    ----------
    task
        What to race on.
    entrants
        Algorithms with their settings.
    budget
        How long runs go on.
    seeds
        Of the runs.
    progress
        Called as ``progress("run", done, total)``.
    """
    total, done = len(entrants) * len(seeds), 0
    config = {**asdict(budget), "runs": len(seeds), "lower_rows": task.rows[0], "upper_rows": task.rows[1]}
    about = facts(f"race-{task.name}", seeds[0], tree.dtype(task.w0), config)
    about |= {"about": task.about, "metric_name": task.metric_name, "logarithmic": task.logarithmic}
    for entrant in entrants:
        for seed in seeds:
            yield about | _line(task, entrant, budget, seed)
            done += 1
            progress("run", done, total)


def _line(task: Task, entrant: Entrant, budget: Budget, seed: int) -> Line:
    """The record of a run; of an algorithm that raises what it said."""
    setting = None if entrant.setting is None else asdict(entrant.setting)
    named = {"algorithm": entrant.name, "origin": entrant.origin, "setting": setting, "run": seed}
    run = _run if getattr(entrant.algorithm, "compiled", False) else _search
    ran = attempt(lambda: run(task, entrant.algorithm, budget, seed))
    if isinstance(ran, str):
        return named | {"status": ERROR, "sentence": ran}
    points, end = ran
    judged = task.judge(end.w, end.lam)
    reached = budget.is_spent(points[-1].samples, points[-1].seconds)
    columns = {name: list(values) for name, values in zip(Point._fields, zip(*points, strict=True), strict=True)}
    return named | {
        "status": end.status.name, "sentence": end.status.sentence, "ended": not reached, **columns,
        "final_value": judged.value, "final_squared_norm": judged.squared_norm,
    }  # fmt: skip


def _run(task: Task, algorithm: Any, budget: Budget, seed: int) -> tuple[list[Point], OptimizeResult]:
    """A run in stretches that grow, with an evaluation after each."""

    def stretch(state: Any, *, steps: int | None = None, samples: int | None = None) -> OptimizeResult:
        return optimize(
            task.problem, task.lam0, task.w0, algorithm=algorithm, lower_data=task.lower_data,
            upper_data=task.upper_data, key=jax.random.key(seed), state=state,
            steps=steps, samples=samples,
        )  # fmt: skip

    start = stretch(None, steps=1)
    stretch(start.state, steps=1)  # with the first, compiles what a start and what the steps after it need
    point = Point(0, 0, 0.0, task.metric(task.w0, task.lam0), start.history.records[0].value)
    points, state, epoch = [point], None, sum(task.rows)
    while True:
        result = stretch(state, samples=int(max(FIRST * epoch, (GROWTH - 1) * point.samples)))
        last, state = result.history.records[-1], result.state
        point = Point(
            last.step, last.samples, point.seconds + last.seconds, task.metric(result.w, result.lam), last.value
        )
        points.append(point)
        if budget.is_spent(point.samples, point.seconds) or result.status is not Status.OK:
            return points, result


def _search(task: Task, algorithm: Any, budget: Budget, seed: int) -> tuple[list[Point], OptimizeResult]:
    """A run of an algorithm that searches, with an evaluation after each of its steps.

    It may come to an end of its own, be it that its last step failed: the points are those before. Where it draws no
    rows, products with all of them count as so many. Which programs it needs shows on the way: runs compile them, until
    one gets no further than that before it. The last one counts.
    """

    def samples(records: list[Record]) -> np.ndarray:
        drawn = [record.samples or record.matvecs * task.rows[0] + task.rows[1] for record in records]
        return np.cumsum(drawn)

    key = jax.random.key(seed) if is_stochastic(algorithm) else None

    def run() -> OptimizeResult:
        seen = []

        def enough(record: Record, _lam: Tree) -> bool:
            seen.append(record)
            return budget.is_spent(float(samples(seen)[-1]), record.seconds)

        return optimize(
            task.problem, task.lam0, task.w0, algorithm=algorithm, lower_data=task.lower_data,
            upper_data=task.upper_data, steps=FOREVER, evaluate=task.metric, callback=enough, key=key,
        )  # fmt: skip

    result, reached = run(), 0
    while len(result.history) > reached:
        reached, result = len(result.history), run()
    records = result.history.records
    begin = Point(0, 0, 0.0, task.metric(task.w0, task.lam0), records[0].value)
    good = records[:-1] if result.status.failed else records
    metrics = [math.nan if record.metrics is None else record.metrics for record in good]
    points = [
        Point(record.step + 1, int(drawn), record.seconds, metric, record.value)
        for record, drawn, metric in zip(good, samples(good), metrics, strict=True)
    ]
    return [begin, *points], result
