"""What a race is about: a problem with its data, its starts, and what runs are judged by."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from bilevel import tree
from bilevel.hypergradient import hypergradient
from bilevel.problems import Problem
from bilevel.sampling import Sampler
from bilevel.status import is_failure

Tree = Any

BATCH = 64
GRADIENT, TEST_ERROR = "squared norm of the hypergradient", "error rate on test data"
MOST_MATVECS = 20_000  # of a hypergradient that runs are judged by: some end where the lower level is hardly solvable
TOLERANCE = 1e-3  # relative, of the hypergradients that runs are judged by


class Judged(NamedTuple):
    """Of some hyperparameters, with the lower level solved; NaN where that fails.

    Attributes
    ----------
    value
        The upper-level objective.
    squared_norm
        The squared norm of the hypergradient.
    """

    value: float
    squared_norm: float


@dataclass(frozen=True)
class Task:
    """A bilevel problem to race on.

    Attributes
    ----------
    name, about
        What it is called, and in one line what it is.
    problem, lam0, w0, lower_data, upper_data
        The problem, the start of all runs, and the data.
    metric
        ``metric(w, lam)``: what runs are compared by, the lower the better.
    metric_name
        What that is.
    judge
        ``judge(w, lam)``: the upper level at the solved lower level, whose solution is near w.
    logarithmic
        Whether the metric falls by decades.
    """

    name: str
    about: str
    problem: Problem
    lam0: Tree
    w0: Tree
    lower_data: Tree
    upper_data: Tree
    metric: Callable[[Tree, Tree], float]
    metric_name: str
    judge: Callable[[Tree, Tree], Judged]
    logarithmic: bool = True

    @property
    def rows(self) -> tuple[int, int]:
        """Rows of the lower and of the upper level: together an epoch."""
        single = Sampler(1)
        return single.check(self.lower_data), single.check(self.upper_data)

    @property
    def samplers(self) -> tuple[Sampler, Sampler]:
        """Batches of 64 rows of the lower and of the upper level; of all rows where there are fewer."""
        lower, upper = self.rows
        return Sampler(min(BATCH, lower)), Sampler(min(BATCH, upper))


def by_automatic_method(
    problem: Problem, lower_data: Tree, upper_data: Tree, *, double: bool = False
) -> Callable[[Tree, Tree], Judged]:
    """A judge for any problem: the automatic method, which starts at the w of the run; in float64 if asked for."""

    def judge(w: Tree, lam: Tree) -> Judged:
        with jax.enable_x64(True) if double else nullcontext():
            at = (lam, w, lower_data, upper_data)
            lam, w, lower, upper = tree.in_double(at) if double else at
            h = hypergradient(
                problem, lam, w, lower_data=lower, upper_data=upper, tol=TOLERANCE, max_matvecs=MOST_MATVECS,
                on_failure="keep",
            )  # fmt: skip
            if bool(is_failure(h.status)):
                return Judged(float("nan"), float("nan"))
            return Judged(float(h.value), float(tree.norm(h.grad)) ** 2)

    return judge
