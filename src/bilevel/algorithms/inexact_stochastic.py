"""Inexact stochastic gradient descent: minibatches of tasks, each hypergradient as accurate as its step asks."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.algorithms.certified import LOOSEST, Certified, certify_all, next_rtol, solver_of
from bilevel.algorithms.projected import projected_step
from bilevel.algorithms.settings import is_positive
from bilevel.algorithms.step_info import StepInfo, told
from bilevel.batch_axes import Axes, as_axes, count_rows, spread
from bilevel.certificates.estimate import RESOLVED
from bilevel.methods.aid import AID
from bilevel.methods.base import Hypergradient
from bilevel.methods.stochastic import joined, mean_of_runs, require_key
from bilevel.problems import Problem
from bilevel.schedules import Constant, as_schedule, check_schedule
from bilevel.status import ProblemError, SolveInfo, Status, code, first_failure, is_failure

Tree = Any

NUMBERS = (int, float, np.number, jax.Array)


class ISGDState(NamedTuple):
    """What is carried.

    Attributes
    ----------
    lam
        Hyperparameters.
    w, v
        Where the two solves of every task start, leaves (tasks, ...).
    rtol
        Relative tolerance of the next solves.
    key, step
        Random key, and the number of steps done.
    """

    lam: Tree
    w: Tree
    v: Tree
    rtol: Float[Array, ""]
    key: Array
    step: Int[Array, ""]


class Minibatch(NamedTuple):
    """What is told of the tasks of one step.

    Attributes
    ----------
    tasks, errors, statuses
        Their numbers, the errors (bounds, where the problem has constants) and the status of each, shape
        (batch_size,).
    tolerance
        Of this step.
    rounds
        How often the solves were run with another tolerance.
    """

    tasks: Int[Array, " b"]
    errors: Float[Array, " b"]
    statuses: Int[Array, " b"]
    tolerance: Float[Array, ""]
    rounds: Int[Array, ""]


@tree.record
@dataclass(frozen=True)
class ISGD:
    """``lam <- P(lam - alpha_s h_s)``, with ``h_s`` the mean of inexact hypergradients of a few random tasks.

    For ``f(lam) = mean_i U(w_i(lam), lam, upper_data_i)``, where every task i has a lower level of its own,
    ``w_i(lam)`` with ``lower_data_i``. Both solves of a task are repeated with smaller tolerances, each from where the
    last one ended, until the error of its hypergradient is certified to be at most ``tolerance`` of the step.

    Parameters
    ----------
    batch_size
        Tasks of a minibatch, distinct, drawn anew at every step; at most the number of tasks.
    step
        The step ``alpha_s``: a positive number, :class:`~bilevel.schedules.Decreasing` or a function of s.
    tolerance
        The largest error of each hypergradient at step s, a 2-norm: a positive number, or a schedule as for ``step``.
    batch_axes
        Where the tasks lie in ``(lower_data, upper_data)``, as in :class:`~bilevel.sampling.Sampler`; for instance
        ``(0, (0, None))`` where the tasks share the second of two leaves of ``upper_data``.
    method
        :class:`~bilevel.methods.aid.AID`, whose solvers get the tolerances; ``steps`` of theirs is the most they may
        take.
    projection
        ``lam -> lam``, onto the feasible set, which is convex.
    warm_start
        Whether the solves of a task start where its last ones ended; else from ``w0`` and zero.

    Notes
    -----
    ``w0`` has the tasks along the leading axis of every leaf; so has ``w`` of the result. Memory: twice ``w0``.

    The error is ``h.error``, taken as a number only where it is below a tenth of the terms of the hypergradient and
    resolved, or ``h.bound`` where the problem has constants. The mean over a uniformly drawn minibatch being unbiased,

        ``|E h_s - grad f(lam_s)| <= tolerance(s)``.

    A task whose solves fail, or that cannot be certified within 12 rounds or before rounding ends it
    (``TOLERANCE_UNMET``), fails the step, and the state stays: to leave such tasks out would bias the mean unseen.
    ``info.details`` tells which it is, by ``tasks`` and ``statuses``.

    The hypergradient of a step is the minibatch's: ``grad`` and ``value`` are means over its tasks, ``error`` and
    ``bound`` means of theirs, which bound the distance of ``grad`` from the mean of the exact hypergradients;
    ``proved`` if all are. ``w`` and ``v`` hold all tasks, like ``w0``, those of the minibatch new. ``steps`` are the
    most that a task took, ``matvecs`` all; ``samples`` are the tasks drawn.

    References
    ----------
    Salehi, Mukherjee, Roberts and Ehrhardt 2024, *Bilevel Learning with Inexact Stochastic Gradients*,
    arXiv 2412.12049; the certificate after Ehrhardt and Roberts 2023, arXiv 2301.04764.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bilevel as bl
    >>> lower = bl.minimization(lambda w, lam, x: jnp.sum((w - x) ** 2) + jnp.exp(lam) * jnp.sum(w**2))
    >>> problem = bl.Problem(lower, lambda w, lam, x: jnp.sum((w - x) ** 2))
    >>> noisy = jnp.array([[3.0, 1.0], [1.0, 2.0], [2.0, 1.0]])
    >>> clean = jnp.array([[2.0, 0.5], [0.5, 1.0], [1.0, 0.0]])
    >>> algorithm = bl.algorithms.ISGD(batch_size=2, step=bl.Decreasing(2.0, 4.0), tolerance=1e-3)
    >>> result = bl.optimize(problem, 1.0, jnp.zeros((3, 2)), algorithm=algorithm, steps=100, key=jax.random.key(0),
    ...                      lower_data=noisy, upper_data=clean)
    >>> print(f"{jnp.exp(result.lam):.1f}", bool(jnp.all(result.history.error <= 1e-3)))  # w = noisy / (1 + exp(lam))
    0.8 True
    """

    batch_size: int = field(metadata={"static": True})
    step: Any
    tolerance: Any
    batch_axes: Any = field(default=0, metadata={"static": True})
    method: Any = field(default_factory=AID)
    projection: Callable[[Tree], Tree] | None = field(default=None, metadata={"static": True})
    warm_start: bool = field(default=True, metadata={"static": True})

    stochastic = True

    def __post_init__(self):
        if not isinstance(self.batch_axes, Axes | int):
            object.__setattr__(self, "batch_axes", as_axes(self.batch_axes))
        for name in ("step", "tolerance"):
            given = getattr(self, name)
            object.__setattr__(self, name, Constant(given) if isinstance(given, NUMBERS) else as_schedule(given))

    def init(self, lam0: Tree, w0: Tree, key: Array | None) -> ISGDState:
        """State at ``lam0``; the adjoints start from zero."""
        _check(self)
        lam0, w0 = tree.strong((lam0, w0))
        rtol = jnp.asarray(LOOSEST, tree.dtype(w0))
        return ISGDState(lam0, w0, tree.zeros_like(w0), rtol, require_key("ISGD", key), jnp.zeros((), int))

    def update(
        self, state: ISGDState, problem: Problem, lower_data: Tree, upper_data: Tree, *, error: bool = True
    ) -> tuple[ISGDState, StepInfo]:
        """One step. After a failed hypergradient the state is the old one; the error is estimated whatever is asked."""
        del error
        return _update(self, state, problem, (lower_data, upper_data))


@jax.jit
def _update(algorithm: ISGD, state: ISGDState, problem: Problem, data: Tree) -> tuple[ISGDState, StepInfo]:
    """Draw tasks, solve them, take the step; a failed hypergradient moves nothing."""
    tolerance, alpha = algorithm.tolerance(state.step), algorithm.step(state.step)
    key, for_tasks = jax.random.split(state.key)
    axes = spread(algorithm.batch_axes, data)
    tasks = _draw(algorithm, for_tasks, count_rows(data, axes), state.w)
    solve = solver_of(algorithm.method, problem, state.lam, _take(data, tasks, axes), axes)
    w, v = jax.tree.map(lambda x: x[tasks], (state.w, state.v))
    done = certify_all(solve, problem, w, v, state.rtol, tolerance)
    h = _mean(done, state, tasks)
    lam, mapped = projected_step(state.lam, h.grad, alpha, algorithm.projection)
    starts = (h.w, h.v) if algorithm.warm_start else (state.w, state.v)
    moved = ISGDState(lam, *starts, next_rtol(done, tolerance), key, state.step + 1)
    minibatch = Minibatch(tasks, done.error, done.statuses, tolerance, done.rounds)
    info = told(state.lam, h, tree.norm(mapped), samples=algorithm.batch_size, details=minibatch)
    return tree.where(is_failure(h.status), state, moved), info


def _draw(algorithm: ISGD, key: Array, tasks: int, w: Tree) -> Int[Array, " b"]:
    """Numbers of the tasks of a minibatch."""
    if not 1 <= algorithm.batch_size <= tasks:
        raise ProblemError(
            f"batch_size must be at least 1 and at most the number of tasks, {tasks}, but is {algorithm.batch_size}."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(w):
        if leaf.shape[:1] != (tasks,):
            raise ProblemError(
                f"w0 must hold a start for each of the {tasks} tasks along the leading axis of its leaves, but "
                f"w0{jax.tree_util.keystr(path)} has the shape {leaf.shape}."
            )
    return jax.random.choice(key, tasks, (algorithm.batch_size,), replace=False)


def _take(data: Tree, tasks: Array, axes: list[int | None]) -> Tree:
    """The data of these tasks."""
    leaves, structure = jax.tree.flatten(data)
    pairs = zip(leaves, axes, strict=True)
    return structure.unflatten([x if axis is None else jnp.take(x, tasks, axis=axis) for x, axis in pairs])


def _mean(done: Certified, state: ISGDState, tasks: Array) -> Hypergradient:
    """The hypergradient of the minibatch."""
    h = done.h
    grad, value, error, bound, scale = mean_of_runs((h.grad, h.value, h.error, h.bound, h.scale))
    w, v = jax.tree.map(lambda all_, new: all_.at[tasks].set(new), (state.w, state.v), (h.w, h.v))
    failed = is_failure(h.status)
    gravest = jnp.where(failed.any(), jnp.max(jnp.where(failed, h.status, 0)), jnp.max(done.statuses))
    mean = replace(
        h, grad=grad, value=value, w=w, v=v, error=error, bound=bound, proved=h.proved.all(), scale=scale,
        lower=_together(h.lower), adjoint=_together(h.adjoint), error_info=_together(h.error_info), status=gravest,
        method=f"{h.method}, mean over {len(tasks)} tasks", damping=jnp.max(h.damping),
    )  # fmt: skip
    resolved = jnp.where(mean.relative_error <= RESOLVED, code(Status.OK), code(Status.UNRESOLVED))
    return replace(mean, status=first_failure(gravest, resolved))


def _together(infos: SolveInfo) -> SolveInfo:
    """One info of those of all tasks: the most steps, all costs."""
    return replace(joined(infos), steps=jnp.max(infos.steps))


def _check(algorithm: ISGD) -> None:
    """Refuse what is of the wrong form."""
    if not isinstance(algorithm.method, AID):
        raise ProblemError(f"method of ISGD must be AID(...), but is {algorithm.method!r}.")
    if algorithm.method.damping is not None:
        raise ProblemError("ISGD certifies the error of true hypergradients: method must be AID without damping=.")
    for name in ("step", "tolerance"):
        schedule = getattr(algorithm, name)
        check_schedule(schedule)
        first = schedule(0)
        if not (isinstance(first, Tracer) or is_positive(first)):
            raise ProblemError(f"{name} of ISGD must be positive and finite, but is {first} at the first step.")
