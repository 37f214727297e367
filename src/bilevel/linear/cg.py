"""Conjugate gradients for symmetric positive definite systems (Hestenes and Stiefel 1952)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.linear.operator import LinearOperator, default_rtol, start
from bilevel.loops import bounded_while
from bilevel.status import SolveInfo, Status, code

Tree = Any

MAX_ROUNDS = 4  # times the recursive residual is replaced by the true one before rounding is blamed


@tree.record
@dataclass(frozen=True)
class CG:
    """Conjugate gradients on ``A x = b``, ``A`` symmetric positive definite.

    Parameters
    ----------
    steps
        Iterations. Without ``rtol`` exactly so many run; with it, at most (default ``10 n + 100``).
    rtol
        Stop at ``norm(b - A x) <= rtol * norm(b)``, checked on the true residual. Default, where ``steps`` is
        not given either: the square root of machine epsilon.
    settle
        For loose solves whose solution, not residual, must be right: stop only when moreover the norm of the
        solution has grown by less than this fraction over the last third of the iterations (it grows
        monotonically: Steihaug 1983, Theorem 2.1).

    Notes
    -----
    Cost: one matvec a step, one more for a warm start, and one per check of the true residual (``rtol`` only).
    Statuses: ``NEGATIVE_CURVATURE``, ``SINGULAR``, ``MAX_STEPS``, ``STAGNATED`` (rounding), ``NONFINITE``. On a
    failure the iterate before it is returned, the right-hand side if it comes at once.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    settle: Any = None

    needs_symmetry = True

    def __call__(
        self,
        A: LinearOperator,
        b: Tree,
        x0: Tree | None = None,
        *,
        preconditioner: Callable[[Tree], Tree] | None = None,
        rtol: Any = None,
        steps: Any = None,
    ) -> tuple[Tree, SolveInfo]:
        """Solve ``A x = b``; see :class:`~bilevel.linear.operator.LinearSolver`."""
        rtol = self.rtol if rtol is None else rtol
        steps = self.steps if steps is None else steps
        precondition = preconditioner or (lambda r: r)
        x, r, matvecs = start(A, b, x0)
        if rtol is None and steps is not None:
            run = run_cg(A, r, precondition, None, self.settle, steps)
            info = SolveInfo(run.step, matvecs + run.step, run.residual_norm, run.status)
            return tree.add(x, run.x), info
        steps = 10 * tree.size(b) + 100 if steps is None else steps
        target = (default_rtol(b) if rtol is None else rtol) * tree.norm(b)
        return _refined(A, b, x, r, matvecs, precondition, target, self.settle, steps)


class CGRun(NamedTuple):
    """State of the iteration; ``x`` is the correction to the start, all vectors in units of ``norm(r_0)``."""

    x: Tree
    r: Tree
    p: Tree
    rz: Float[Array, ""]  # <r, M r>
    residual_norm: Float[Array, ""]
    step: Int[Array, ""]
    status: Int[Array, ""]
    largest: Float[Array, ""]  # largest Rayleigh quotient met
    x_mark: Float[Array, ""]  # norm(x)^2 at the last mark
    step_mark: Int[Array, ""]
    settled: Bool[Array, ""]


def run_cg(A, r0: Tree, precondition, target, settle, steps) -> CGRun:
    """CG on ``A x = r0`` from zero until the recursive residual is below ``target`` (None: exactly ``steps``).

    The kernel of :class:`CG`, for callers that can do without a check of the true residual (Newton steps,
    error estimates). ``settle`` as there; status ``MAX_STEPS`` where the target was not reached. Cost: one
    matvec a step.
    """
    unit = tree.norm(r0)
    unit = jnp.where(unit > 0, unit, 1.0)  # NaN stays NaN and is found below
    r = tree.scale(1 / unit, r0)
    z = precondition(r)
    zero = jnp.zeros((), tree.dtype(r0))
    state = CGRun(
        tree.zeros_like(r), r, z, tree.dot(r, z), tree.norm(r), jnp.asarray(0), code(Status.OK),
        zero, zero, jnp.asarray(0), jnp.asarray(settle is None),
    )  # fmt: skip
    small = tree.eps(r0)

    def reached(s: CGRun):
        if target is None:
            return jnp.asarray(False)
        return (s.residual_norm <= target / unit) & (s.settled | (s.residual_norm <= 1e-2 * target / unit))

    def body(s: CGRun) -> CGRun:
        Ap = A.mv(s.p)
        curvature, pp = tree.dot(s.p, Ap), tree.dot(s.p, s.p)
        largest = jnp.maximum(s.largest, jnp.where(pp > 0, curvature / pp, 0.0))
        status = _judge(curvature, pp, tree.dot(Ap, Ap), largest, small)
        status = jnp.where(s.residual_norm > small**2, status, code(Status.OK))
        # Past rounding the recursion only shrinks towards underflow: x stays as it is.
        ok = (status == Status.OK) & (s.residual_norm > small**2)
        alpha = jnp.where(ok, s.rz / jnp.where(ok, curvature, 1.0), 0.0)
        x = tree.axpy(alpha, s.p, s.x)
        r = tree.axpy(-alpha, Ap, s.r)
        z = precondition(r)
        rz = tree.dot(r, z)
        p = tree.axpy(jnp.where(ok, rz / jnp.where(ok, s.rz, 1.0), 0.0), s.p, z)
        at_once = (s.step == 0) & (status != Status.OK)
        x = tree.where(at_once, z, x)
        step = s.step + 1
        new = s._replace(
            x=x, r=r, p=p, rz=rz, residual_norm=jnp.sqrt(tree.dot(r, r)), step=step, status=status, largest=largest
        )
        return new if settle is None else _mark(new, settle)

    end = bounded_while(lambda s: (s.status == Status.OK) & ~reached(s), body, state, steps)
    ran_out = (end.status == Status.OK) & ~reached(end) & (target is not None)
    status = jnp.where(ran_out, code(Status.MAX_STEPS), end.status)
    return end._replace(x=tree.scale(unit, end.x), residual_norm=unit * end.residual_norm, status=status)


def _judge(curvature, pp, ApAp, largest, small) -> Int[Array, ""]:
    """Status after the product ``A p``: rounding makes ``p^T A p`` uncertain by ``eps |p| |A p|``.

    A Rayleigh quotient below ``eps`` times the largest one met cannot be told from zero. A semidefinite matrix
    then has ``A p = 0`` (``|A p|^2 <= |A| p^T A p``); where it has not, the curvature is negative elsewhere.
    """
    noise = small * jnp.maximum(jnp.sqrt(pp) * jnp.sqrt(ApAp), pp * largest)
    in_kernel = ApAp <= 100 * small * pp * largest**2  # the largest quotient met is below |A|
    negative = (curvature < -noise) | ~in_kernel
    status = jnp.where(negative, code(Status.NEGATIVE_CURVATURE), code(Status.SINGULAR))
    status = jnp.where(curvature > noise, code(Status.OK), status)
    return jnp.where(jnp.isfinite(curvature), status, code(Status.NONFINITE))


def _mark(s: CGRun, settle) -> CGRun:
    """Compare ``norm(x)`` with its value a third of the iterations ago."""
    due = s.step >= s.step_mark + s.step_mark // 2 + 3
    xx = tree.dot(s.x, s.x)
    settled = jnp.where(due, jnp.sqrt(xx) - jnp.sqrt(s.x_mark) <= settle * jnp.sqrt(xx), s.settled)
    return s._replace(
        settled=settled, x_mark=jnp.where(due, xx, s.x_mark), step_mark=jnp.where(due, s.step, s.step_mark)
    )


class _Rounds(NamedTuple):
    x: Tree
    r: Tree
    residual_norm: Float[Array, ""]
    steps: Int[Array, ""]
    matvecs: Int[Array, ""]
    status: Int[Array, ""]


def _refined(A, b, x, r, matvecs, precondition, target, settle, steps) -> tuple[Tree, SolveInfo]:
    """Rounds of CG, each on the true residual of the last, until that one is below ``target``."""
    norm_r = tree.norm(r)
    running = code(Status.MAX_STEPS)  # what it will be if the loop runs out
    state = _Rounds(x, r, norm_r, jnp.asarray(0), jnp.asarray(matvecs), _rounds_status(norm_r, target, running))

    def one_round(s: _Rounds) -> _Rounds:
        run = run_cg(A, s.r, precondition, target, settle, steps - s.steps)
        x = tree.add(s.x, run.x)
        r = tree.sub(b, A.mv(x))
        norm_r = tree.norm(r)
        stalled = jnp.where(norm_r > s.residual_norm / 2, code(Status.STAGNATED), running)
        status = jnp.where(run.status == Status.OK, _rounds_status(norm_r, target, stalled), run.status)
        return _Rounds(x, r, norm_r, s.steps + run.step, s.matvecs + run.step + 1, status)

    end = bounded_while(lambda s: (s.status == running) & (s.steps < steps), one_round, state, MAX_ROUNDS)
    status = jnp.where((end.status == running) & (end.steps < steps), code(Status.STAGNATED), end.status)
    return end.x, SolveInfo(end.steps, end.matvecs, end.residual_norm, status)


def _rounds_status(norm_r, target, otherwise) -> Int[Array, ""]:
    status = jnp.where(norm_r <= target, code(Status.OK), otherwise)
    return jnp.where(jnp.isfinite(norm_r), status, code(Status.NONFINITE))
