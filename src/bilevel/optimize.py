"""Minimize the upper level: the front door of all upper-level algorithms."""

from collections.abc import Callable
from typing import Any, Literal

from jaxtyping import Array

from bilevel import tree
from bilevel.algorithms.adaptive_soba import AdaptiveSOBA
from bilevel.algorithms.oracles import Point
from bilevel.algorithms.quasi_newton import QuasiNewton
from bilevel.algorithms.settings import oracles_of
from bilevel.driver.compiled import run_compiled, start_compiled
from bilevel.driver.hypergradients import run_hypergradients
from bilevel.driver.results import Callback, OptimizeResult
from bilevel.methods.sid import is_stochastic
from bilevel.methods.stochastic import require_key
from bilevel.precision import full_precision
from bilevel.problems import Problem, validate
from bilevel.sampling import Sampler
from bilevel.status import ProblemError, raise_if_failed

Tree = Any

BATCH = 64  # rows of the batches that are drawn unasked


@full_precision
def optimize(
    problem: Problem,
    lam0: Tree,
    w0: Tree,
    *,
    algorithm: Any = None,
    steps: int | None = None,
    samples: int | None = None,
    lower_data: Tree = None,
    upper_data: Tree = None,
    key: Array | None = None,
    state: Any = None,
    gtol: float | None = None,
    error_every: int = 10,
    evaluate: Callable[[Tree, Tree], Any] | None = None,
    evaluate_every: int | None = None,
    callback: Callback | None = None,
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
        Default: one that sets its own steps. With a random ``key`` that is
        :class:`~bilevel.algorithms.adaptive_soba.AdaptiveSOBA` on batches of 64 rows along the first axis of all leaves
        of the data; without one :class:`~bilevel.algorithms.quasi_newton.QuasiNewton` on all data. Else
        ``bl.algorithms.HypergradientDescent(optax.adam(0.1))``, ``bl.algorithms.SABA(bl.Sampler(64), 0.1, 0.1)`` or
        another one of :mod:`bilevel.algorithms`.
    steps, samples
        Upper-level steps at most, and rows after which it ends, of this call; at least one of the two. Rows are counted
        by algorithms whose steps need no hypergradient, and by ``AdaptiveSOBA``, whose steps are whole stretches.
    lower_data, upper_data
        Data of the two levels.
    key
        Random key of stochastic algorithms, which cannot do without; one key gives one run, bit for bit.
    state
        ``result.state`` of an earlier call with the same problem, data and algorithm: goes on from there. ``lam0``,
        ``w0`` and ``key`` are then not used.
    gtol
        Stop when the norm of the projected gradient is at most this; None runs all steps.
    error_every
        The error of the hypergradient is estimated every so many steps, and at the end; of stochastic ones only where
        they have several runs.
    evaluate
        ``evaluate(w, lam) -> metrics``, any value, kept in every line of the history. Its time is not counted.
    evaluate_every
        Rows between two lines of the history, for algorithms without hypergradients: between two lines their steps run
        as one compiled program. Default: the rows of both levels together. The others write a line at every step.
    callback
        Called as ``callback(record, lam)`` at every line of the history; a true result ends the run.
    on_failure
        ``"keep"``: end with the last good ``lam`` and the status of the failure; ``"raise"``: raise.

    Returns
    -------
    OptimizeResult
        ``lam``, ``w``, ``history``, ``status``, the last ``hypergradient`` and the ``state``, to go on from.

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
    algorithm = _default(key, lower_data, upper_data) if algorithm is None else algorithm
    if (steps is not None and steps < 0) or error_every < 1:
        raise ProblemError(f"steps must be >= 0 and error_every >= 1, but they are {steps} and {error_every}.")
    if _is_compiled(algorithm):
        result = _run_compiled(
            problem, lam0, w0, algorithm, lower_data, upper_data, key, state, gtol,
            steps=steps, samples=samples, evaluate_every=evaluate_every, evaluate=evaluate, callback=callback,
        )  # fmt: skip
    else:
        _check_limits(algorithm, steps, samples, evaluate_every)
        result = run_hypergradients(
            lambda state, *, error: algorithm.update(state, problem, lower_data, upper_data, error=error),
            _begin(algorithm, lam0, w0, key) if state is None else state,
            steps=steps, samples=samples, gtol=gtol, error_every=error_every, evaluate=evaluate, callback=callback,
        )  # fmt: skip
    if on_failure == "raise":
        raise_if_failed(result, f"Upper-level optimization, step {result.history.records[-1].step}")
    return result


def _default(key: Array | None, lower_data: Tree, upper_data: Tree) -> Any:
    """The algorithm where none is given: with a random key one for minibatches."""
    if key is None:
        return QuasiNewton()
    lower, upper = (Sampler(min(BATCH, Sampler(1).check(data))) for data in (lower_data, upper_data))
    return AdaptiveSOBA(lower, upper)


def _check_limits(algorithm: Any, steps: int | None, samples: int | None, evaluate_every: int | None) -> None:
    """Refuse what an algorithm along hypergradients cannot count."""
    name, counts_samples = type(algorithm).__name__, getattr(algorithm, "counts_samples", False)
    if evaluate_every is not None or (samples is not None and not counts_samples):
        raise ProblemError(f"{name} counts steps, not samples: give steps=, leave samples= and evaluate_every= out.")
    if steps is None and samples is None:
        raise ProblemError(f"Say how long {name} may run: give {'steps= or samples=' if counts_samples else 'steps='}.")


def _is_compiled(algorithm: Any) -> bool:
    """Whether the steps of an algorithm are cheap, without a hypergradient, and run in stretches."""
    return getattr(algorithm, "compiled", False)


def _run_compiled(
    problem: Problem, lam0: Tree, w0: Tree, algorithm: Any, lower_data: Tree, upper_data: Tree,
    key: Array | None, state: Any, gtol: float | None, **options: Any,
) -> OptimizeResult:  # fmt: skip
    if options["steps"] is None and options["samples"] is None:
        raise ProblemError("Say how long to run: give steps= or samples=.")
    for name, least in (("samples", 0), ("evaluate_every", 1)):
        if options[name] is not None and options[name] < least:
            raise ProblemError(f"{name} must be at least {least}, but is {options[name]}.")
    if gtol is not None:
        raise ProblemError(f"{type(algorithm).__name__} computes no gradient that gtol could be held against.")
    lam0, w0 = tree.strong((lam0, w0))
    validate(problem, lam0, w0, lower_data, upper_data)
    oracles = oracles_of(algorithm, problem, lower_data, upper_data)
    if state is None:
        key = require_key(type(algorithm).__name__, key)
        state = start_compiled(algorithm, oracles, Point(w0, tree.zeros_like(w0), lam0), key)
    return run_compiled(algorithm, oracles, state, **options)


def _begin(algorithm: Any, lam0: Tree, w0: Tree, key: Array | None) -> Any:
    """The first state."""
    if is_stochastic(algorithm):
        return algorithm.init(lam0, w0, key)
    if key is not None:
        raise ProblemError(f"{type(algorithm).__name__} takes no random key: leave key= out.")
    return algorithm.init(lam0, w0)
