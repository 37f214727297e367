"""The automatic method: solve, correct, and repeat until the error is below the tolerance.

The lower level is solved to about the tolerance, then the adjoint. From there each pass is one Newton step on
``F = 0``, ``d_w l = 0`` (:mod:`bilevel.lagrangian`) with loose linear solves. The change that a pass makes to the
hypergradient is the error of the pass before it, so that the loop knows when to stop; each divides the error by
about thirty. Two linear solves a pass; nothing else is tuned.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.certificates.aposteriori import certify
from bilevel.certificates.estimate import LOOSE, loose_solve
from bilevel.lagrangian import Instance, correct, gradient
from bilevel.linear.cg import run_cg
from bilevel.linear.dense import Dense
from bilevel.linear.gmres import GMRES
from bilevel.linear.operator import LinearOperator
from bilevel.linear.spectral import probe_vector
from bilevel.methods.base import Hypergradient, accepts, conclude, nothing_done
from bilevel.problems import Problem, validate
from bilevel.solvers import default_solver
from bilevel.solvers.base import scale
from bilevel.status import SolveInfo, Status, code, is_failure

Tree = Any

MAX_PASSES = 24
ADJOINT = 0.05  # relative residual of the first adjoint solve, in units of the tolerance
VANISHING = 100.0  # a gradient below so many times its own rounding error is zero for all that can be known
PROBE_RTOL = 0.03  # the probe has seen every direction that holds a thousandth of a random vector's energy
DENSE_PROBE = 300  # systems up to this size are probed by a dense factorization


@tree.record
@dataclass(frozen=True)
class Automatic:
    """Hypergradient to an accuracy, ``error <= tol * norm(grad) + atol``, with nothing to tune.

    Parameters
    ----------
    tol
        Relative accuracy of the hypergradient.
    atol
        Absolute accuracy; default ``tol * sqrt(eps) * scale``, see :class:`~bilevel.methods.base.Hypergradient`.
    max_matvecs
        Stop with ``TOLERANCE_UNMET`` when so many have been spent; default no limit.

    Notes
    -----
    Cold starts end with a probe: one loose solve with a random right-hand side, which meets negative curvature
    and null directions that the right-hand sides of the problem need not contain.
    """

    tol: Any = 1e-4
    atol: Any = None
    max_matvecs: Any = None

    def check(self, problem: Problem) -> None:
        """Every problem is allowed."""

    def __call__(
        self,
        problem: Problem,
        lam: Tree,
        w0: Tree,
        v0: Tree | None,
        lower_data: Tree,
        upper_data: Tree,
        key: Array | None = None,
        *,
        error: bool = True,
    ) -> Hypergradient:
        """All passes in one program, for use inside transformations."""
        at = Instance(problem, lam, lower_data, upper_data)
        state = _begin(self, at, w0, tree.zeros_like(w0) if v0 is None else v0)
        state = jax.lax.while_loop(lambda s: s.running, lambda s: _advance(self, at, s), state)
        return _finish(self, at, state)

    def staged(
        self, problem: Problem, lam: Tree, w0: Tree, v0: Tree | None, lower_data: Tree, upper_data: Tree
    ) -> Hypergradient:
        """The same, with the passes after the first, which few problems need, compiled apart."""
        at = Instance(problem, lam, lower_data, upper_data)
        state, h = _first_compiled(self, at, w0, tree.zeros_like(w0) if v0 is None else v0)
        if not state.running:
            return h
        while state.running:
            state = _advance_compiled(self, at, state)
        return _finish_compiled(self, at, state)


class Passes(NamedTuple):
    """Where the automatic method stands: the present ``(w, v)`` and what is known of the point judged last."""

    w: Tree
    v: Tree
    grad: Tree
    scale: Float[Array, ""]
    error: Float[Array, ""]
    at_rounding: Bool[Array, ""]  # the error is no larger than rounding makes it
    passes: Int[Array, ""]
    stalls: Int[Array, ""]  # passes in a row that did not halve the error
    lower: SolveInfo
    adjoint: SolveInfo
    error_info: SolveInfo
    probe: SolveInfo
    running: Bool[Array, ""]

    @property
    def solved(self) -> Bool[Array, ""]:
        """Whether the last linear solves reached what was asked of them, so that the error can be trusted."""
        return (self.error_info.status == Status.OK) & jnp.isfinite(self.error)


def _begin(method: Automatic, at: Instance, w0: Tree, v0: Tree) -> Passes:
    """Solve the lower level to the root of the tolerance; a cold start goes on to the tolerance itself."""
    validate(at.problem, at.lam, w0, at.lower_data, at.upper_data)
    rtol = jnp.clip(0.1 * jnp.sqrt(jnp.asarray(method.tol, tree.dtype(w0))), tree.eps(w0) ** 0.75, 0.03)
    w, lower = default_solver(at.problem.lower)(at.problem.lower, at.lam, w0, at.lower_data, rtol=rtol)
    nothing = nothing_done(w0)
    start = _Start(w, v0, lower, nothing, nothing)
    stuck = lower.status == Status.NO_DESCENT
    cold = (tree.norm(v0) == 0) & ~is_failure(lower.status)
    start = jax.lax.cond(cold | stuck, lambda s: _from_cold(method, at, s, scale(w, w0)), lambda s: s, start)
    infinite = jnp.asarray(jnp.inf, tree.dtype(at.lam))
    return Passes(
        **start._asdict(), grad=tree.zeros_like(at.lam), scale=infinite, error=infinite,
        at_rounding=jnp.asarray(False), passes=jnp.asarray(0), stalls=jnp.asarray(0), error_info=nothing,
        running=~is_failure(start.lower.status) & ~is_failure(start.adjoint.status),
    )  # fmt: skip


class _Start(NamedTuple):
    w: Tree
    v: Tree
    lower: SolveInfo
    adjoint: SolveInfo
    probe: SolveInfo


def _from_cold(method: Automatic, at: Instance, s: _Start, size: Float[Array, ""]) -> _Start:
    """One Newton step on the lower level, then the adjoint from zero, and the probe.

    With ``v = 0`` the first pass would not see how A changes along its step: its error would be that of w.
    A line search that found no descent was at rounding if that step is short, against ``size``, else stuck.
    """
    F, A = at.linearize(s.w)
    dw, step = loose_solve(A, tree.neg(F), steps=_left(method, s.lower.matvecs))
    stuck = (s.lower.status == Status.NO_DESCENT) & ~(tree.norm(dw) <= LOOSE * size)
    status = jnp.where(stuck, s.lower.status, _serious(step.status))
    w = tree.where(is_failure(status), s.w, tree.add(s.w, dw))
    lower = s.lower.then(step)
    _, A = at.linearize(w)
    _, d_w_U = at.upper_gradient(w)
    rtol = jnp.clip(ADJOINT * jnp.asarray(method.tol, tree.dtype(w)), 16 * tree.eps(w), LOOSE)
    v, adjoint = loose_solve(A.T, d_w_U, rtol, steps=_left(method, lower.matvecs))
    return _Start(
        w, v, replace(lower, status=status), replace(adjoint, status=_serious(adjoint.status)),
        probe=_probe(A, w),
    )  # fmt: skip


def _left(method: Automatic, spent: Int[Array, ""]) -> Any:
    """Steps that the budget of a linear solve has left; None where there is no budget."""
    return None if method.max_matvecs is None else jnp.maximum(method.max_matvecs - spent, 0)


def _serious(status: Int[Array, ""]) -> Int[Array, ""]:
    """A status that is about the problem, not about how far a solve came: the error tells that."""
    return jnp.where(status <= Status.STAGNATED, code(Status.OK), status)


def _advance(method: Automatic, at: Instance, s: Passes) -> Passes:
    """One pass: judge the hypergradient at ``(w, v)``, and if its error is too large take the Newton step.

    The linear solves of a step that is taken found the answer; those of the last one, which is not, are what
    the error estimate cost.
    """
    result = gradient(at, s.w, s.v)
    step = correct(at, s.w, s.v, loose_solve)
    error, size = tree.norm(step.change), tree.norm(result.grad)
    solved = step.lower.then(step.adjoint)
    failed = is_failure(_serious(solved.status))
    enough = (solved.status == Status.OK) & accepts(error, size, result.scale, method.tol, method.atol)
    stalls = jnp.where(error > 0.5 * s.error, s.stalls + 1, 0)
    lower, adjoint = s.lower.then(step.lower), s.adjoint.then(step.adjoint)
    within = True if method.max_matvecs is None else lower.matvecs + adjoint.matvecs < method.max_matvecs
    promising = (stalls < 3) & (s.passes + 1 < MAX_PASSES) & jnp.isfinite(error)
    go_on = ~enough & ~failed & within & promising
    judged = s._replace(
        grad=result.grad, scale=result.scale, error=error, at_rounding=_at_rounding(s.w, step, error, result.scale),
        passes=s.passes + 1, stalls=stalls, running=go_on,
    )  # fmt: skip
    taken = judged._replace(
        w=tree.add(s.w, step.dw), v=tree.add(s.v, step.dv),
        lower=replace(lower, status=s.lower.status), adjoint=replace(adjoint, status=code(Status.OK)),
    )  # fmt: skip
    return tree.where(go_on, taken, judged._replace(error_info=solved))


def _first(method: Automatic, at: Instance, w0: Tree, v0: Tree) -> tuple[Passes, Hypergradient]:
    """All up to the first judgment, and the answer if it is the last."""
    state = _begin(method, at, w0, v0)
    state = jax.lax.cond(state.running, lambda s: _advance(method, at, s), lambda s: s, state)
    return state, _finish(method, at, state)


def _finish(method: Automatic, at: Instance, s: Passes) -> Hypergradient:
    """The answer with its verdict."""
    spent = s.error_info.then(s.probe)
    h = conclude(
        at.problem, "the automatic method", grad=s.grad, scale=s.scale,
        value=at.problem.upper(s.w, at.lam, at.upper_data), w=s.w, v=s.v, lower=s.lower, adjoint=s.adjoint,
        error=s.error, error_info=replace(spent, status=_serious(spent.status)),
        certificate=certify(at, s.w, s.v, s.grad, s.lower.matvecs + s.adjoint.matvecs),
    )  # fmt: skip
    met = s.solved & accepts(h.error, tree.norm(h.grad), h.scale, method.tol, method.atol)
    # A gradient that vanishes has no relative accuracy; that it is zero to rounding is all that can be said.
    vanishing = s.at_rounding & (s.stalls > 0) & (tree.norm(h.grad) <= VANISHING * h.error)
    verdict = jnp.where(vanishing, code(Status.UNRESOLVED), code(Status.TOLERANCE_UNMET))
    return replace(h, status=jnp.where(met | is_failure(h.status), h.status, verdict))


def _probe(A: LinearOperator, w: Tree) -> SolveInfo:
    """Look for negative curvature and null directions with a random right-hand side."""
    z = probe_vector(w)
    if tree.size(w) <= DENSE_PROBE:
        info = Dense()(A, z)[1]
    elif A.definite:
        run = run_cg(A, z, lambda r: r, PROBE_RTOL * tree.norm(z), None, 10 * tree.size(z) + 100)
        info = SolveInfo(run.step, run.step, run.residual_norm, run.status)
    else:
        _, info = GMRES()(A, z, rtol=PROBE_RTOL, steps=200)
    return replace(info, status=_serious(info.status))


def _at_rounding(w: Tree, step: Any, error: Any, scale: Any) -> Bool[Array, ""]:
    """Whether the error is below ``sqrt(eps)`` times the size the hypergradient can have.

    That is the larger of its two terms before they cancel, and of its change when w changes by its own size,
    read off the last step: where the adjoint vanishes too, only the second tells.
    """
    dw = tree.norm(step.dw)
    sensitivity = jnp.where(dw > 0, error / jnp.where(dw > 0, dw, 1.0) * tree.norm(w), 0.0)
    return error <= jnp.sqrt(jnp.finfo(error.dtype).eps) * jnp.maximum(scale, sensitivity)


_first_compiled = jax.jit(_first)
_advance_compiled = jax.jit(_advance)
_finish_compiled = jax.jit(_finish)
