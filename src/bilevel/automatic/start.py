"""The start of the automatic method: the lower level and the adjoint to about the tolerance, and a probe."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.automatic.secant import secant_steps
from bilevel.automatic.single import Aids, linearized, narrowed, refined_solve, widened
from bilevel.certificates.estimate import LOOSE
from bilevel.lagrangian import Instance
from bilevel.linear.cg import run_cg
from bilevel.linear.dense import Dense, fixed_vector
from bilevel.linear.factorized import Factorized, factorize, solve_near
from bilevel.linear.gmres import GMRES
from bilevel.linear.operator import LinearOperator
from bilevel.linear.spectral import probe_vector
from bilevel.loops import bounded_while
from bilevel.methods.base import nothing_done
from bilevel.solvers import default_solver
from bilevel.solvers.base import scale
from bilevel.solvers.lbfgs import LBFGS
from bilevel.status import SolveInfo, Status, code, is_failure

Tree = Any

ADJOINT = 0.2  # relative residual of the first adjoint solve, in units of the tolerance
PROBE_RTOL = 0.03  # of the probe, at most
SHARE = 0.1  # of what a direction holds of a random vector on average: eleven of twelve hold more
BLOCK = 12  # products in a block taken to cost one by itself; seen on CPU: from 2, with the data in cache, to 25
MANY = 12  # products of a Newton step that a good factorization does not need
SAVED = 16  # products that the solves at the solution do not need with a factorization there
MODEL = 0.1  # part of the residual by which it may differ from its linear model after a step
PROBE_STEPS = 200  # of GMRES
SHORT = 0.03  # steps of L-BFGS are so much shorter than the distance to the solution
CLOSE = 0.1  # secant steps end so much closer: they do not fall off as the last Newton steps do
FEW = 4  # Newton steps
POLISH = 4  # Newton steps in single precision
STABLE = 0.3  # relative change of A, against its inverse, over the distance to the solution


class Wish(NamedTuple):
    """What is asked for: ``error <= tol * norm(grad) + atol`` within ``max_matvecs``; None where nothing is.

    ``lower_rtol`` bounds the relative step to which the lower level is solved, where ``tol`` would allow more.
    """

    tol: Any
    atol: Any
    max_matvecs: Any
    lower_rtol: Any


class Start(NamedTuple):
    """A point ``(w, v)`` from which Newton's method converges, and what it took."""

    w: Tree
    v: Tree
    lower: SolveInfo
    adjoint: SolveInfo
    probe: SolveInfo
    growth: Float[Array, ""]  # by which A^{-1} enlarges rounding of F, in units of w; zero where there was no probe


def lower_rtol(wish: Wish, w0: Tree) -> Float[Array, ""]:
    """Relative step to which the lower level is solved: one Newton step squares it."""
    root = 0.1 * jnp.sqrt(jnp.asarray(wish.tol, tree.dtype(w0)))
    return jnp.minimum(jnp.clip(root, tree.eps(w0) ** 0.75, 0.03), wish.lower_rtol)


def solve_lower(
    at: Instance, w0: Tree, rtol: Any, near: Factorized | None = None, most: Any = None
) -> tuple[Tree, SolveInfo]:
    """Solution of the lower level by its default solver, preconditioned by a factorization near it."""
    solver = default_solver(at.problem.lower, near, max_matvecs=most)
    return solver(at.problem.lower, at.lam, w0, at.lower_data, rtol=rtol)


def approach(
    at: Instance, w0: Tree, rtol: Any, steps: Any, most: Any, single: Instance | None
) -> tuple[Tree, SolveInfo]:
    """The same by so many steps of L-BFGS, which needs fewer products than Newton's method on the way.

    It does not leave saddles and stops where rounding hides the descent, in single precision where there is that;
    ``w0`` comes back from overflow. Fixed points and roots have no such solver: a few Newton steps.
    """
    lower = at.problem.lower
    if lower.kind == "minimization":
        lam, data, begin = (
            (at.lam, at.lower_data, w0) if single is None else (single.lam, single.lower_data, narrowed(w0))
        )
        w, info = LBFGS(max_matvecs=most)(lower, lam, begin, data, rtol=SHORT * rtol, steps=steps)
        w, info = widened(w, w0), replace(info, residual_norm=info.residual_norm.astype(tree.dtype(w0)))
    else:
        solver = default_solver(lower, max_matvecs=most)
        w, info = solver(lower, at.lam, w0, at.lower_data, rtol=rtol, steps=FEW)
    return tree.where(tree.all_finite(w), w, w0), info


def factorize_at(at: Instance, w: Tree, single: Instance | None = None) -> Factorized:
    """Dense factorization of ``A = d_w F`` at ``w``; in single precision first, if there A is regular to rounding."""
    if single is None:
        return factorize(at.linearize(w)[1], w)
    near = factorize(linearized(single, w), narrowed(w))
    near = replace(near, factors=tuple(factor.astype(tree.dtype(w)) for factor in near.factors))
    return jax.lax.cond(near.regular, lambda: near, lambda: factorize_at(at, w))


def solve_densely(
    wish: Wish, at: Instance, w0: Tree, rtol: Any, single: Instance | None
) -> tuple[Tree, SolveInfo, Factorized]:
    """Solution of the lower level with the factorization at its start, and another there.

    The second only where the first was of little use, or costs less than it saves all that follows. In first attempts,
    which have the problem in single precision, secant steps come first.
    """
    n = tree.size(w0)
    near = factorize_at(at, w0, single)
    left = budget_left(wish, n)
    w, lower = solve_lower(at, w0, rtol, near, left) if single is None else _solve_by_secants(at, w0, rtol, near, left)
    worth = ~near.regular | (lower.matvecs > n // BLOCK + MANY * (lower.steps + 1)) | (n // BLOCK < SAVED)
    worth &= True if left is None else lower.matvecs + n < left
    near = jax.lax.cond(worth, lambda: factorize_at(at, w, single), lambda: near)
    return w, lower.plus(n + jnp.where(worth, n, 0)), near


def _solve_by_secants(at: Instance, w0: Tree, rtol: Any, near: Factorized, left: Any) -> tuple[Tree, SolveInfo]:
    """Solution of the lower level by secant steps, or where they do not arrive as without them."""
    w, quick = secant_steps(at, w0, CLOSE * rtol, near)

    def without() -> tuple[Tree, SolveInfo]:
        w, lower = solve_lower(at, w0, rtol, near, left if left is None else left - quick.matvecs)
        return w, lower.plus(quick.matvecs)

    return jax.lax.cond(is_failure(quick.status), without, lambda: (w, quick))


def continued(first: SolveInfo, rest: SolveInfo) -> SolveInfo:
    """The info of a solve that went on from where another stood, however that ended."""
    return replace(first.then(rest), status=rest.status)


def start(wish: Wish, at: Instance, w0: Tree, v0: Tree | None, w: Tree, lower: SolveInfo, aids: Aids) -> Start:
    """Where the passes begin: at ``v0``, or for a cold start (None or zero) at the adjoint of one Newton step more.

    ``lower`` is the info of the solve that gave ``w``.
    """
    nothing, lower = nothing_done(w0), _within(wish, lower, lower.matvecs)
    no_growth = jnp.zeros((), tree.dtype(w0))
    found = Start(w, tree.zeros_like(w) if v0 is None else v0, lower, nothing, nothing, no_growth)
    stuck = lower.status == Status.NO_DESCENT
    cold = (True if v0 is None else tree.norm(v0) == 0) & ~is_failure(lower.status)

    def from_cold(s: Start) -> Start:
        return _from_cold(wish, at, s, scale(w, w0), aids)

    return jax.lax.cond(cold | stuck, from_cold, lambda s: s, found)


def _from_cold(wish: Wish, at: Instance, s: Start, size: Float[Array, ""], aids: Aids) -> Start:
    """A Newton step on the lower level, then the adjoint from zero, and the probe.

    With ``v = 0`` the first pass would not see how A changes along its step: its error would be that of w.
    A line search that found no descent was at rounding if that step is short, against ``size``, else stuck.
    """
    w, dw, step = _newton(wish, at, s, size, aids)
    stuck = (s.lower.status == Status.NO_DESCENT) & ~(tree.norm(dw) <= LOOSE * size)
    status = jnp.where(stuck, s.lower.status, serious(step.status))
    w, lower = tree.where(is_failure(status), s.w, w), s.lower.then(step)
    _, A = at.linearize(w)
    _, d_w_U = at.upper_gradient(w)
    rtol = jnp.clip(ADJOINT * jnp.asarray(wish.tol, tree.dtype(w)), 16 * tree.eps(w), LOOSE)
    v, adjoint = aids.solver(w)(A.T, d_w_U, rtol, steps=budget_left(wish, lower.matvecs))
    probe, growth = _probe(at, A, w, dw, aids, budget_left(wish, lower.matvecs + adjoint.matvecs))
    probe = _within(wish, probe, lower.matvecs + adjoint.matvecs + probe.matvecs)
    lower, adjoint = replace(lower, status=status), replace(adjoint, status=serious(adjoint.status))
    return Start(w, v, lower, adjoint, probe, growth)


def _newton(wish: Wish, at: Instance, s: Start, size: Float[Array, ""], aids: Aids) -> tuple[Tree, Tree, SolveInfo]:
    """Newton's method from ``s.w``, its last step, and what it took: one step, in single precision a few more.

    There the way began no closer than single precision comes, and steps are cheaper than the passes that follow.
    """
    enough = 100 * jnp.asarray(wish.tol, tree.dtype(s.w)) * size  # loose steps leave a twentieth of that

    def step(n: _Newton) -> _Newton:
        F, A = at.linearize(n.w)
        dw, info = aids.solver(n.w)(A, tree.neg(F), steps=budget_left(wish, s.lower.matvecs + n.info.matvecs))
        return _Newton(tree.add(n.w, dw), dw, tree.norm(dw), n.info.then(info))

    def unfinished(n: _Newton) -> Bool[Array, ""]:
        return (n.info.status == Status.OK) & (n.length > enough)

    begin = _Newton(s.w, s.w, jnp.full_like(size, jnp.inf), nothing_done(s.w))
    n = step(begin) if aids.single is None else bounded_while(unfinished, step, begin, POLISH)
    return n.w, n.dw, n.info


class _Newton(NamedTuple):
    w: Tree
    dw: Tree
    length: Float[Array, ""]
    info: SolveInfo


def budget_left(wish: Wish, spent: Any) -> Any:
    """Products that the budget has left; None where there is no budget."""
    return None if wish.max_matvecs is None else jnp.maximum(wish.max_matvecs - spent, 0)


def _within(wish: Wish, info: SolveInfo, spent: Int[Array, ""]) -> SolveInfo:
    """The info of a solve, with ``TOLERANCE_UNMET`` where the budget cut it short."""
    if wish.max_matvecs is None:
        return info
    cut = (info.status == Status.MAX_STEPS) & (spent >= wish.max_matvecs)
    return replace(info, status=jnp.where(cut, code(Status.TOLERANCE_UNMET), info.status))


def serious(status: Int[Array, ""]) -> Int[Array, ""]:
    """A status that is about the problem, not about how far a solve came: the error tells that."""
    return jnp.where(status <= Status.STAGNATED, code(Status.OK), status)


def model_holds(
    at: Instance, w: Tree, dw: Tree, F: Tree, model_norm: Float[Array, ""], size: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether ``F(w + dw)`` is about what the linear model ``F + A dw``, of norm ``model_norm``, says.

    First-order errors mean nothing where it is not: in a curved valley, along the tail of an exponential (F falls to
    1/e), at a degenerate minimum (to 8/27). A step at rounding, against ``size``, is taken at its word. One matvec.
    """
    after = at.problem.lower.residual(tree.add(w, dw), at.lam, at.lower_data)
    at_rounding = tree.norm(dw) <= jnp.sqrt(tree.eps(w)) * size
    return at_rounding | (tree.norm(after) <= model_norm + MODEL * tree.norm(F))


def _probe(
    at: Instance, A: LinearOperator, w: Tree, dw: Tree, aids: Aids, left: Any
) -> tuple[SolveInfo, Float[Array, ""]]:
    """Look for negative curvature and null directions by ``A x = z`` with a random z, ``dw`` being the last step.

    The second result is ``norm(A) norm(x) / norm(z)``: rounding of ``F``, ``eps norm(A) norm(w)``, makes ``eps`` times
    that of w. The norm is that of ``I`` in ``A = I - J`` for a map, else seen on z.

    With a factorization near A a few steps see every direction; where that was singular or indefinite a new one
    tells whether A is. Without, a direction is seen that holds enough of z.
    """
    near = aids.near
    z = probe_vector(w) if near is None else ravel_pytree(w)[1](jnp.asarray(fixed_vector(tree.size(w)), tree.dtype(w)))
    rtol = min(PROBE_RTOL, SHARE / tree.size(w) ** 0.5)  # below what one direction holds of z
    if near is None and aids.single is not None:
        x, info = refined_solve(linearized(aids.single, w), A, z, rtol, left, settle=None)
    elif near is None:
        x, info = _solve_probe(A, z, rtol, None, left)
    else:
        products = near.regular if left is None else near.regular | (left < tree.size(w))
        x, info = jax.lax.cond(products, lambda: _solve_probe(A, z, rtol, near, left), lambda: Dense()(A, z))
    norm_A = 1.0 if at.problem.lower.kind == "fixed_point" else tree.norm(A.mv(z)) / tree.norm(z)
    growth = norm_A * tree.norm(x) / tree.norm(z)
    # A = I - J is known to rounding of J, that is of one: a larger inverse is made of rounding.
    invisible = (at.problem.lower.kind == "fixed_point") & (100 * tree.eps(w) * growth >= 1)
    unseen = invisible | (info.status == Status.MAX_STEPS) | (info.status == Status.STAGNATED)
    unseen |= ~is_failure(info.status) & ~_is_stable(at, w, dw, growth, x, z)
    unseen &= True if left is None else (info.status != Status.MAX_STEPS) | (info.matvecs < left)
    return replace(info.plus(3), status=jnp.where(unseen, code(Status.SINGULAR), info.status)), growth


def _is_stable(at: Instance, w: Tree, dw: Tree, growth: Float[Array, ""], x: Tree, z: Tree) -> Bool[Array, ""]:
    """Whether ``x = A(w)^{-1} z`` still solves ``A(w') x = z`` nearly, at a w' as far away as the solution may be.

    That is the last step back, and along x what rounding leaves of w. Where it does not, the inverse is made of the
    distance to a double root or to a manifold of solutions.
    """
    blur = 32 * tree.eps(w) * growth * tree.norm(w)
    _, A = at.linearize(tree.axpy(blur / tree.norm(x), x, tree.sub(w, dw)))
    return tree.norm(tree.sub(A.mv(x), z)) <= STABLE * tree.norm(z)


def _solve_probe(A: LinearOperator, z: Tree, rtol: float, near: Factorized | None, left: Any) -> tuple[Tree, SolveInfo]:
    """Solve to a residual only: no direction may hide behind a solution that has settled."""
    if A.definite:
        most = 10 * tree.size(z) + 100
        most = most if left is None else jnp.minimum(most, left)
        if near is not None:
            return solve_near(A, z, near, rtol, None, most)
        run = run_cg(A, z, lambda r: r, rtol * tree.norm(z), None, most)
        return run.x, SolveInfo(run.step, run.step, run.residual_norm, run.status)
    return GMRES(preconditioner=near)(
        A, z, rtol=rtol, steps=PROBE_STEPS if left is None else jnp.minimum(PROBE_STEPS, left)
    )
