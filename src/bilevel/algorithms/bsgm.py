"""The bilevel stochastic gradient method: projected descent along stochastic hypergradients."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int

from bilevel import tree
from bilevel.algorithms.projected import projected_step
from bilevel.algorithms.settings import is_positive
from bilevel.algorithms.step_info import StepInfo, told
from bilevel.hypergradient import hypergradient
from bilevel.linear.stochastic import with_rates
from bilevel.methods.base import Hypergradient
from bilevel.methods.host_levels import on_host
from bilevel.methods.sid import SID, is_stochastic
from bilevel.methods.stochastic import require_key
from bilevel.problems import Problem
from bilevel.sampling import Sampler
from bilevel.schedules import Decreasing
from bilevel.solvers.sgd import jacobian_samples, map_step
from bilevel.status import ProblemError, is_failure

Tree = Any


@dataclass(frozen=True)
class LinearCounts:
    """``t_s = ceil(c (s + 1))``: with squared errors of order ``1 / t_s`` the bound falls like ``log(S) / S``."""

    c: float

    def __call__(self, s: Int[Array, ""] | int) -> Int[Array, ""]:
        """The count of step ``s``."""
        return jnp.ceil(self.c * (s + 1)).astype(int)


@dataclass(frozen=True)
class SqrtCounts:
    """``t_s = ceil(c sqrt(s + 1))``: fewer samples a step, and the bound falls like ``1 / sqrt(S)``."""

    c: float

    def __call__(self, s: Int[Array, ""] | int) -> Int[Array, ""]:
        """The count of step ``s``."""
        return jnp.ceil(self.c * jnp.sqrt(s + 1)).astype(int)


class Rates(NamedTuple):
    """Step and schedule of a stochastic solver."""

    step: Any
    schedule: Any


class BSGMState(NamedTuple):
    """What is carried: hyperparameters, starts of the two solves, the random key, the number of steps done.

    ``rates`` are those of the lower-level and of the adjoint solver, None where they are not estimated.
    """

    lam: Tree
    w: Tree
    v: Tree
    key: Array
    step: Int[Array, ""]
    rates: tuple[Rates | None, Rates | None]


@tree.record
@dataclass(frozen=True)
class BSGM:
    """``lam_{s+1} = P(lam_s - alpha h_s)``, with ``h_s`` by SID with counts ``t_s, k_s, J_s``.

    Parameters
    ----------
    method
        :class:`~bilevel.methods.sid.SID`, or a :class:`~bilevel.sampling.Sampler`: ``SID(sampler, runs=1)``. Of a
        SID with more runs ``h_s`` is their mean; only then are errors estimated.
    step
        The step ``alpha > 0``, at most ``1 / (2 L_f)`` for ``L_f``-smooth ``f(lam) = U(w(lam), lam)``.
    counts
        ``s -> t_s = k_s = J_s``, or ``s -> (t_s, k_s, J_s)`` where J None is the exact mixed derivative; integers of
        at least 1. :class:`LinearCounts`, :class:`SqrtCounts` or any function; default those of ``method`` at every
        step. A deterministic solver in ``method`` keeps its own.
    projection
        ``lam -> lam``, onto the feasible set, which is convex; for instance
        ``optax.projections.projection_non_negative``.
    warm_start
        ``"none"``: the solvers start from ``w0`` and zero at every step; ``"w"``: the lower-level solver from the last
        ``w``; ``"both"``: the adjoint solver from the last ``v``, too.

    Notes
    -----
    With ``G_s = (lam_s - P(lam_s - alpha grad f(lam_s))) / alpha`` and ``e_s = h_s - grad f(lam_s)``, on every path

        ``mean_s norm(G_s)^2 <= 8 (f(lam_0) - inf f) / (alpha S) + 6 mean_s norm(e_s)^2``.

    So constant counts stall at a floor that they set, and growing ones converge.

    Cost of a step: ``t_s + k_s + J_s`` batches. Where step or schedule of a stochastic solver are not given, they are
    estimated at the first step, at ``w0``, for up to 544 batches for each of the two, and kept: for data on the host
    they are estimated at every step.

    References
    ----------
    Grazzi, Pontil and Salzo 2022, *Bilevel Optimization with a Lower-level Contraction: Optimal Sample Complexity
    without Warm-Start*, arXiv 2202.03397.
    """

    method: Any
    step: Any
    counts: Callable[[Any], Any] | None = field(default=None, metadata={"static": True})
    projection: Callable[[Tree], Tree] | None = field(default=None, metadata={"static": True})
    warm_start: Literal["none", "w", "both"] = field(default="none", metadata={"static": True})

    stochastic = True

    def __post_init__(self):
        if isinstance(self.method, Sampler):
            object.__setattr__(self, "method", SID(self.method, runs=1))

    def init(self, lam0: Tree, w0: Tree, key: Array | None) -> BSGMState:
        """State at ``lam0``; the adjoint starts from zero."""
        _check(self)
        lam0, w0 = tree.strong((lam0, w0))
        rates = _unknown_rates(self.method.solver, w0), _unknown_rates(self.method.linear_solver, w0)
        return BSGMState(lam0, w0, tree.zeros_like(w0), require_key("BSGM", key), jnp.zeros((), int), rates)

    def update(
        self, state: BSGMState, problem: Problem, lower_data: Tree, upper_data: Tree, *, error: bool = True
    ) -> tuple[BSGMState, StepInfo]:
        """One step. After a failed hypergradient the state is the old one."""
        key, for_step, for_rates = jax.random.split(state.key, 3)
        method, matvecs = _with_counts(self, state.step), 0
        if state.rates != (None, None) and not on_host(lower_data, upper_data):
            state, matvecs = _with_rates(method, state, problem, lower_data, for_rates)
            method = _rated(method, state.rates)
        h = hypergradient(
            problem, state.lam, state.w, v0=state.v, lower_data=lower_data, upper_data=upper_data, method=method,
            key=for_step, error=error and method.runs > 1, on_failure="keep",
        )  # fmt: skip
        return _move(self, state, key, replace(h, lower=h.lower.plus(matvecs)))


@jax.jit
def _move(algorithm: BSGM, state: BSGMState, key: Array, h: Hypergradient) -> tuple[BSGMState, StepInfo]:
    """The step; a failed hypergradient moves nothing."""
    lam, mapped = projected_step(state.lam, h.grad, algorithm.step, algorithm.projection)
    w = state.w if algorithm.warm_start == "none" else h.w
    v = h.v if algorithm.warm_start == "both" else state.v
    failed = is_failure(h.status)
    lam, w, v = tree.where(failed, (state.lam, state.w, state.v), (lam, w, v))
    moved = BSGMState(lam, w, v, jnp.where(failed, state.key, key), state.step + ~failed, state.rates)
    return moved, told(state.lam, h, tree.norm(mapped), samples=h.matvecs * (algorithm.method.sampler.batch_size or 1))


def _unknown_rates(solver: Any, like: Tree) -> Rates | None:
    """A place for what a solver has not been given; None where nothing is to be estimated."""
    if not is_stochastic(solver) or (solver.schedule is not None and solver.step is not None):
        return None
    zero = jnp.zeros((), tree.dtype(like))
    return Rates(zero, Decreasing(zero, zero) if solver.schedule is None else solver.schedule)


@jax.jit
def _with_rates(method: SID, state: BSGMState, problem: Problem, data: Tree, key: Array) -> tuple[BSGMState, Any]:
    """The state with rates, estimated at the first step, and the batches that took."""
    lower, places = problem.lower, state.rates

    def estimate() -> tuple[tuple[Rates | None, ...], Any]:
        of_A = jacobian_samples(lower, state.lam, state.w, data, method.sampler)
        of_transpose = of_A._replace(product=of_A.transposed, transposed=of_A.product)
        found, matvecs = [], jnp.asarray(0)
        for solver, place, samples, k in zip(
            (method.solver, method.linear_solver), places, (of_A, of_transpose), jax.random.split(key), strict=True
        ):
            if place is not None:
                ready, spent = with_rates(solver, map_step(lower), samples, method.sampler.start(data, k), state.w)
                place = jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), Rates(ready.step, ready.schedule), place)
                matvecs += spent
            found.append(place)
        return tuple(found), matvecs

    rates, matvecs = jax.lax.cond(state.step == 0, estimate, lambda: (places, jnp.asarray(0)))
    return state._replace(rates=rates), matvecs


def _rated(method: SID, rates: tuple[Rates | None, Rates | None]) -> SID:
    """The method whose solvers have the estimated rates."""
    solver, linear = (
        solver if found is None else replace(solver, step=found.step, schedule=found.schedule)
        for solver, found in zip((method.solver, method.linear_solver), rates, strict=True)
    )
    return replace(method, solver=solver, linear_solver=linear)


def _with_counts(algorithm: BSGM, step: Int[Array, ""]) -> SID:
    """The method with the counts of this step, as data: no step compiles anew."""
    method = algorithm.method
    if algorithm.counts is None:
        return method
    t, k, J = _counts(algorithm.counts, step if isinstance(step, Tracer) else int(step))
    solver, linear = method.solver, method.linear_solver
    return replace(
        method,
        solver=replace(solver, steps=t) if is_stochastic(solver) else solver,
        linear_solver=replace(linear, steps=k) if is_stochastic(linear) else linear,
        jacobian_samples=J,
    )


def _counts(counts: Callable[[Any], Any], s: Any) -> tuple[Any, Any, Any]:
    """``t_s, k_s, J_s``."""
    given = counts(s)
    t, k, J = given if isinstance(given, tuple) and len(given) == 3 else (given, given, given)
    if not (_is_count(t) and _is_count(k) and (J is None or _is_count(J))):
        raise ProblemError(
            "counts must give an integer of at least 1, or three of them, (t, k, J), J perhaps None, "
            f"but gives {given!r} at step {s}."
        )
    return t, k, J


def _is_count(count: Any) -> bool:
    if not (jnp.isscalar(count) and jnp.issubdtype(jnp.result_type(count), jnp.integer)):
        return False
    return isinstance(count, Tracer) or bool(count >= 1)


def _check(algorithm: BSGM) -> None:
    """Refuse what is of the wrong form."""
    if not isinstance(algorithm.method, SID):
        raise ProblemError(f"method of BSGM must be SID(...) or Sampler(...), but is {algorithm.method!r}.")
    if not (isinstance(algorithm.step, Tracer) or is_positive(algorithm.step)):
        raise ProblemError(f"step of BSGM must be positive and finite, but is {algorithm.step}.")
    if algorithm.counts is not None and not callable(algorithm.counts):
        raise ProblemError(f"counts must be a function of the step number, but is {algorithm.counts!r}.")
    if algorithm.warm_start not in ("none", "w", "both"):
        raise ProblemError(f'warm_start must be "none", "w" or "both", but is {algorithm.warm_start!r}.')
