"""The automatic method: solve, correct, and repeat until the error is below the tolerance.

The lower level is solved loosely; from there each pass is one Newton step on ``F = 0``, ``d_w l = 0``
(:mod:`bilevel.lagrangian`), which starts from ``v = 0`` or a warm start. The change that a pass makes to the
hypergradient is the error of the pass before it, so that the loop knows when to stop, and how tightly the next
linear solves must be done. Two linear solves a pass; nothing else is tuned.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.certificates.estimate import LOOSE, loose_solve
from bilevel.lagrangian import Instance, correct, gradient
from bilevel.linear.cg import run_cg
from bilevel.linear.dense import Dense
from bilevel.linear.gmres import GMRES
from bilevel.linear.spectral import probe_vector
from bilevel.methods.base import Hypergradient, accepts, conclude, nothing_done
from bilevel.problems import Problem, validate
from bilevel.solvers import default_solver
from bilevel.status import SolveInfo, Status, code, is_failure

Tree = Any

MAX_PASSES = 24
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
        return _finish(self, at, state, probe=v0 is None)

    def staged(
        self, problem: Problem, lam: Tree, w0: Tree, v0: Tree | None, lower_data: Tree, upper_data: Tree
    ) -> Hypergradient:
        """The same passes as separately compiled stages under a loop on the host."""
        at = Instance(problem, lam, lower_data, upper_data)
        state = _begin_compiled(self, at, w0, tree.zeros_like(w0) if v0 is None else v0)
        while state.running:
            state = _advance_compiled(self, at, state)
        return _finish_compiled(self, at, state, probe=bool(state.cold & state.solved))


class Passes(NamedTuple):
    """Where the automatic method stands: the present ``(w, v)`` and what is known of the point judged last."""

    w: Tree
    v: Tree
    grad: Tree
    scale: Float[Array, ""]
    error: Float[Array, ""]
    at_rounding: Bool[Array, ""]  # the error is no larger than rounding makes it
    rtol: Float[Array, ""]  # of the next linear solves
    passes: Int[Array, ""]
    stalls: Int[Array, ""]  # passes in a row that did not halve the error
    lower: SolveInfo
    adjoint: SolveInfo
    error_info: SolveInfo
    running: Bool[Array, ""]
    cold: Bool[Array, ""]  # the adjoint started from zero

    @property
    def solved(self) -> Bool[Array, ""]:
        """Whether the last linear solves reached what was asked of them, so that the error can be trusted."""
        return (self.error_info.status == Status.OK) & jnp.isfinite(self.error)


def _begin(method: Automatic, at: Instance, w0: Tree, v0: Tree) -> Passes:
    """Solve the lower level so far that one Newton step brings it to the tolerance."""
    validate(at.problem, at.lam, w0, at.lower_data, at.upper_data)
    dtype = tree.dtype(w0)
    rtol = jnp.clip(0.1 * jnp.sqrt(jnp.asarray(method.tol, dtype)), tree.eps(w0) ** 0.75, 0.03)
    w, lower = default_solver(at.problem.lower)(at.problem.lower, at.lam, w0, at.lower_data, rtol=rtol)
    # At the bottom to rounding a line search may find no descent: the error decides, not the solver.
    lower = replace(lower, status=jnp.where(lower.status == Status.NO_DESCENT, code(Status.OK), lower.status))
    infinite = jnp.asarray(jnp.inf, tree.dtype(at.lam))
    cold = tree.norm(v0) == 0
    return Passes(
        w=w, v=v0, grad=tree.zeros_like(at.lam), scale=infinite, error=infinite,
        at_rounding=jnp.asarray(False), rtol=_solve_rtol(jnp.where(cold, 0.1 * method.tol, LOOSE), w0),
        passes=jnp.asarray(0), stalls=jnp.asarray(0), lower=lower, adjoint=nothing_done(w0),
        error_info=nothing_done(w0), running=~is_failure(lower.status), cold=cold,
    )  # fmt: skip


def _advance(method: Automatic, at: Instance, s: Passes) -> Passes:
    """One pass: judge the hypergradient at ``(w, v)``, and if its error is too large take the Newton step.

    The linear solves of a step that is taken found the answer; those of the last one, which is not, are what
    the error estimate cost.
    """
    result = gradient(at, s.w, s.v)
    step = correct(at, s.w, s.v, lambda A, b: loose_solve(A, b, s.rtol))
    error, size = tree.norm(step.change), tree.norm(result.grad)
    solved = step.lower.then(step.adjoint)
    failed = is_failure(solved.status) & (solved.status > Status.STAGNATED)
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
        w=tree.add(s.w, step.dw), v=tree.add(s.v, step.dv), rtol=_solve_rtol(method.tol * size / error, s.w),
        lower=replace(lower, status=s.lower.status), adjoint=replace(adjoint, status=code(Status.OK)),
    )  # fmt: skip
    return tree.where(go_on, taken, judged._replace(error_info=solved))


def _finish(method: Automatic, at: Instance, s: Passes, *, probe: bool) -> Hypergradient:
    """The answer with its verdict, after a probe where it is asked for."""
    spent = s.error_info.then(_probe(at, s.w)) if probe else s.error_info
    unsolved = spent.status <= Status.STAGNATED
    h = conclude(
        at.problem, "the automatic method", grad=s.grad, scale=s.scale,
        value=at.problem.upper(s.w, at.lam, at.upper_data), w=s.w, v=s.v, lower=s.lower, adjoint=s.adjoint,
        error=s.error, error_info=replace(spent, status=jnp.where(unsolved, code(Status.OK), spent.status)),
    )  # fmt: skip
    met = s.solved & accepts(h.error, tree.norm(h.grad), h.scale, method.tol, method.atol)
    # A gradient that vanishes has no relative accuracy; that it is zero to rounding is all that can be said.
    vanishing = s.at_rounding & (s.stalls > 0) & (tree.norm(h.grad) <= VANISHING * h.error)
    verdict = jnp.where(vanishing, code(Status.UNRESOLVED), code(Status.TOLERANCE_UNMET))
    return replace(h, status=jnp.where(met | is_failure(h.status), h.status, verdict))


def _probe(at: Instance, w: Tree) -> SolveInfo:
    """Look for negative curvature and null directions with a random right-hand side."""
    _, A = at.linearize(w)
    z = probe_vector(w)
    if tree.size(w) <= DENSE_PROBE:
        return Dense()(A, z)[1]
    if A.definite:
        run = run_cg(A, z, lambda r: r, PROBE_RTOL * tree.norm(z), None, 10 * tree.size(z) + 100)
        info = SolveInfo(run.step, run.step, run.residual_norm, run.status)
    else:
        _, info = GMRES()(A, z, rtol=PROBE_RTOL, steps=200)
    inconclusive = info.status <= Status.STAGNATED
    return replace(info, status=jnp.where(inconclusive, code(Status.OK), info.status))


def _at_rounding(w: Tree, step: Any, error: Any, scale: Any) -> Bool[Array, ""]:
    """Whether the error is below ``sqrt(eps)`` times the size the hypergradient can have.

    That is the larger of its two terms before they cancel, and of its change when w changes by its own size,
    read off the last step: where the adjoint vanishes too, only the second tells.
    """
    dw = tree.norm(step.dw)
    sensitivity = jnp.where(dw > 0, error / jnp.where(dw > 0, dw, 1.0) * tree.norm(w), 0.0)
    return error <= jnp.sqrt(jnp.finfo(error.dtype).eps) * jnp.maximum(scale, sensitivity)


def _solve_rtol(rtol: Any, w: Tree) -> Float[Array, ""]:
    """Tolerance of the next linear solves: what is needed, within what the dtype can do and what is useful."""
    rtol = jnp.asarray(rtol, tree.dtype(w))
    return jnp.clip(jnp.where(jnp.isfinite(rtol), rtol, LOOSE), 16 * tree.eps(w), LOOSE)


_begin_compiled = jax.jit(_begin)
_advance_compiled = jax.jit(_advance)
_finish_compiled = jax.jit(_finish, static_argnames="probe")
