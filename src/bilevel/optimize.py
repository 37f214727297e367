"""The driver of upper-level algorithms: history, callback, early stop, and an end that tells what happened."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array

from bilevel.methods.base import Hypergradient
from bilevel.methods.sid import is_stochastic
from bilevel.problems import Problem
from bilevel.status import ProblemError, Status, raise_if_failed

Tree = Any


class Record(NamedTuple):
    """One line of the history: the state of things at one ``lam``, before the step from there.

    ``error`` is NaN where it was not estimated; ``matvecs`` counts lower level, adjoint and error estimate of
    this step, ``samples`` the rows that it drew, 0 for algorithms that use all data; ``seconds`` is all the time since
    the start.
    """

    step: int
    value: float
    gradient_norm: float
    error: float
    matvecs: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class History:
    """Columns of :class:`Record`, arrays of shape (number of lines,)."""

    records: list[Record] = field(default_factory=list)

    def __getattr__(self, column: str) -> np.ndarray:
        if column not in Record._fields:
            raise AttributeError(column)
        return np.array([getattr(record, column) for record in self.records])

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class OptimizeResult:
    """Where an upper-level run ended.

    Attributes
    ----------
    lam, w
        The last hyperparameters whose hypergradient did not fail, and the lower-level solution there.
    hypergradient
        The last hypergradient, with its error: at ``lam``, or after a failure the failed one.
    history
        One line per step and one for the end.
    status
        ``OK``; ``MAX_STEPS`` where ``gtol`` was asked for and not reached; else why the last step failed.
    """

    lam: Tree
    w: Tree
    hypergradient: Hypergradient
    history: History
    status: Status


def optimize(
    problem: Problem,
    lam0: Tree,
    w0: Tree,
    *,
    algorithm: Any,
    steps: int,
    lower_data: Tree = None,
    upper_data: Tree = None,
    key: Array | None = None,
    gtol: float | None = None,
    error_every: int = 10,
    callback: Callable[[Record, Tree], bool | None] | None = None,
    on_failure: Literal["keep", "raise"] = "keep",
) -> OptimizeResult:
    """Minimize ``U(w(lam), lam)`` over ``lam``.

    Parameters
    ----------
    problem
        The bilevel problem.
    lam0, w0
        Starting hyperparameters and lower-level start, pytrees of floating arrays.
    algorithm
        ``bl.algorithms.HypergradientDescent(optax.adam(0.1))``, ``bl.algorithms.BSGM(bl.Sampler(50), step=0.1)`` or
        another one of their protocol.
    steps
        Upper-level steps at most.
    lower_data, upper_data
        Data of the two levels.
    key
        Random key of stochastic algorithms, which cannot do without; one key gives one run, bit for bit.
    gtol
        Stop when the norm of the projected gradient is at most this; None runs all steps.
    error_every
        The error of the hypergradient is estimated every so many steps, and at the end; of stochastic ones only where
        they have several runs.
    callback
        Called as ``callback(record, lam)`` before every step; a true result ends the run.
    on_failure
        ``"keep"``: end with the last good ``lam`` and the status of the failure; ``"raise"``: raise.

    Returns
    -------
    OptimizeResult
        ``lam``, ``w``, ``history``, ``status`` and the last ``hypergradient``.

    Raises
    ------
    ProblemError
        An argument has the wrong form.
    ConvergenceError
        A hypergradient failed and ``on_failure="raise"``; ``.result`` is the result.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> import bilevel as bl
    >>> lower = bl.minimization(lambda w, lam, data: jnp.sum((w - data) ** 2) + jnp.exp(lam) * jnp.sum(w**2))
    >>> problem = bl.Problem(lower, lambda w, lam, data: jnp.sum((w - data) ** 2))
    >>> result = bl.optimize(problem, 0.0, jnp.zeros(1), algorithm=bl.algorithms.HypergradientDescent(optax.sgd(0.5)),
    ...                      steps=100, lower_data=jnp.array([3.0]), upper_data=jnp.array([2.0]), gtol=1e-4)
    >>> print(f"{jnp.exp(result.lam):.2f} {result.status.name}")  # w = 3 / (1 + exp(lam)) = 2
    0.50 OK
    """
    if steps < 0 or error_every < 1:
        raise ProblemError(f"steps must be >= 0 and error_every >= 1, but they are {steps} and {error_every}.")
    start = time.perf_counter()

    def update(state, *, error):
        return algorithm.update(state, problem, lower_data, upper_data, error=error)

    state = _begin(algorithm, lam0, w0, key)
    lam, w = state.lam, state.w
    history, step = History(), 0
    while True:
        last, before = step == steps, state
        with_error = last or step % error_every == 0
        state, info = update(before, error=with_error)
        record, status = _record(step, info, start), Status(int(info.hypergradient.status))
        if status.failed:
            history.records.append(record)
            break
        lam, w = before.lam, info.hypergradient.w
        stationary = gtol is not None and record.gradient_norm <= gtol
        stop = stationary or (callback is not None and callback(record, lam))
        if stop and not with_error:
            _, info = update(before, error=True)
            record = _record(step, info, start)
        history.records.append(record)
        if last and gtol is not None and not stationary:
            status = Status.MAX_STEPS
        if stop or last:
            break
        step += 1
    result = OptimizeResult(lam, w, info.hypergradient, history, status)
    if on_failure == "raise":
        raise_if_failed(result, f"Upper-level optimization, step {step}")
    return result


def _begin(algorithm: Any, lam0: Tree, w0: Tree, key: Array | None) -> Any:
    """The first state."""
    if is_stochastic(algorithm):
        return algorithm.init(lam0, w0, key)
    if key is not None:
        raise ProblemError(f"{type(algorithm).__name__} takes no random key: leave key= out, or use BSGM.")
    return algorithm.init(lam0, w0)


def _record(step: int, info: Any, start: float) -> Record:
    h = info.hypergradient
    matvecs = int(h.lower.matvecs) + int(h.adjoint.matvecs) + int(h.error_info.matvecs)
    samples = int(info.samples)
    seconds = time.perf_counter() - start
    return Record(step, float(h.value), float(info.gradient_norm), float(h.error), matvecs, samples, seconds)
