"""Methods side by side on one problem: errors, work, time and memory of each."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from bilevel.automatic.method import Automatic
from bilevel.comparison.attempt import attempt
from bilevel.comparison.measure import Program, run_seconds, start
from bilevel.comparison.methods import Budget, Setting, choose
from bilevel.comparison.truth import Truth, find_truth
from bilevel.models.catalog import Case
from bilevel.problems import validate
from bilevel.status import Status

Progress = Callable[[str, int, int], None]

ERROR = "ERROR"  # status of a method that raised


@dataclass(frozen=True)
class Row:
    """One method on the problem; NaN and None stand for what is not known.

    Attributes
    ----------
    name
        As in :data:`~bilevel.comparison.methods.METHODS`.
    method
        The solvers behind the name.
    status, sentence
        Name of a :class:`~bilevel.status.Status` and its sentence; ``"ERROR"`` and the error where it raised.
    true_error, estimated_error
        Relative error against the truth, and what ``h.relative_error`` says.
    lower, adjoint, error
        Matvecs of the lower-level solve, of the adjoint, and of the error estimate.
    compile_seconds, run_seconds
        Of tracing and compiling, and the median of the runs, error estimate included.
    memory
        Bytes of arguments, results and temporaries of the compiled program.
    steered
        Whether the method needs its error estimate to choose its work.
    """

    name: str
    method: str = ""
    status: str = ERROR
    sentence: str = ""
    true_error: float = math.nan
    estimated_error: float = math.nan
    lower: int | None = None
    adjoint: int | None = None
    error: int | None = None
    compile_seconds: float = math.nan
    run_seconds: float = math.nan
    memory: int | None = None
    steered: bool = False

    @property
    def failed(self) -> bool:
        """Whether the method gave no hypergradient to be used."""
        return self.status == ERROR or Status[self.status].failed

    @property
    def matvecs(self) -> int | None:
        """What the hypergradient took: the error estimate counts only where the method is steered by it."""
        if self.lower is None or self.adjoint is None or self.error is None:
            return None
        return self.lower + self.adjoint + (self.error if self.steered else 0)


@dataclass(frozen=True)
class Comparison:
    """All rows on one problem, with the truth they are judged by.

    Attributes
    ----------
    name, case, budget
        What was compared on what.
    truth
        The reference hypergradient.
    rows
        One for each method.
    runs
        Timed runs of every method.
    origin
        How the problem was made, as plain values for the record.
    """

    name: str
    case: Case
    budget: Budget
    truth: Truth
    rows: list[Row]
    runs: int
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """Whether true errors are known."""
        return self.truth.grad is not None

    def error_of(self, row: Row) -> float:
        """The true relative error of a row, or where no truth is known the estimated one."""
        return row.true_error if self.judged else row.estimated_error


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def compare(
    case: Case,
    name: str = "problem",
    methods: Iterable[str] | None = None,
    budget: Budget | None = None,
    progress: Progress = silent,
    origin: Mapping[str, Any] | None = None,
) -> Comparison:
    """Compare methods on a problem.

    Parameters
    ----------
    case
        The problem with its ``lam``, start and data.
    name
        What to call it.
    methods
        Names from :data:`~bilevel.comparison.methods.METHODS`; None for all that fit the problem.
    budget
        What they may spend; default ``Budget()``.
    progress
        Called as ``progress(stage, done, total)`` with the stages ``"compile"``, ``"run"`` and ``"truth"``.
    origin
        How the problem was made, as plain values for the record.

    Returns
    -------
    Comparison
        One row for each method. A method that fails or raises is a row, too.

    Raises
    ------
    ProblemError
        The problem has the wrong form, or a method is unknown or does not fit it.

    Notes
    -----
    Compile times are those of a first call: programs that the process or a persistent compilation cache already
    holds make them too small.

    Examples
    --------
    >>> from bilevel.comparison import Budget, compare
    >>> from bilevel.models.catalog import draw
    >>> found = compare(draw("ridge", size=5), methods=["aid-cg"], budget=Budget(steps=500, products=5))
    >>> found.rows[0].adjoint, found.rows[0].true_error < 1e-2
    (5, True)
    """
    budget = Budget() if budget is None else budget
    chosen = choose(Setting(case, budget), methods)
    jax.eval_shape(validate, case.problem, case.lam, case.w0, case.lower_data, case.upper_data)
    programs: dict[str, Program] = {}
    errors: dict[str, str] = {}
    for count, (label, method) in enumerate(chosen.items()):
        progress("compile", count, len(chosen))
        outcome = attempt(lambda method=method: start(method, case))
        if isinstance(outcome, str):
            errors[label] = outcome
        else:
            programs[label] = outcome
    progress("compile", len(chosen), len(chosen))
    seconds, runs = run_seconds(programs, lambda done, total: progress("run", done, total))
    progress("truth", 0, 1)
    truth = find_truth(case)  # last: a tight automatic run shares the programs whose compilation was timed
    progress("truth", 1, 1)
    rows = [
        Row(label, sentence=errors[label])
        if label in errors
        else _row(label, programs[label], seconds[label], truth, steered=isinstance(method, Automatic))
        for label, method in chosen.items()
    ]
    return Comparison(name, case, budget, truth, rows, runs, origin or {})


def _row(name: str, program: Program, seconds: float, truth: Truth, *, steered: bool) -> Row:
    h = program.result
    status = Status(int(h.status))
    return Row(
        name, h.method, status.name, status.sentence, true_error=truth.relative_error_of(h.grad),
        estimated_error=float(h.relative_error), lower=int(h.lower.matvecs), adjoint=int(h.adjoint.matvecs),
        error=int(h.error_info.matvecs), compile_seconds=program.compile_time(seconds), run_seconds=seconds,
        memory=program.memory, steered=steered,
    )  # fmt: skip
