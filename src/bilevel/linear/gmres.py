"""Restarted GMRES for nonsymmetric systems (Saad and Schultz 1986), with exact counts and early stops."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.linear.operator import LinearOperator, request, start
from bilevel.linear.spectral import basis_combine, basis_dot
from bilevel.loops import bounded_while
from bilevel.status import SolveInfo, Status, code

Tree = Any


@tree.record
@dataclass(frozen=True)
class GMRES:
    """GMRES(m) on ``A x = b`` for any nonsingular ``A``, preconditioned from the right.

    Parameters
    ----------
    steps
        Arnoldi steps in all. Without ``rtol`` exactly so many run, fewer where rounding ends the progress; with
        it, at most (default ``10 n + 100``).
    rtol
        Stop at ``norm(b - A x) <= rtol * norm(b)``, checked on the true residual. Default, where ``steps`` is
        not given either: the square root of machine epsilon.
    restart
        Steps m between restarts; ``m + 1`` vectors are kept.
    preconditioner
        A :class:`~bilevel.linear.operator.Preconditioner`.

    Notes
    -----
    Cost: one matvec a step, one per cycle for the true residual, one for a warm start, those of the
    preconditioner. Statuses: ``SINGULAR``, ``STAGNATED`` (a whole cycle without progress), ``MAX_STEPS``,
    ``NONFINITE``.
    """

    steps: int | None = field(default=None, metadata={"static": True})
    rtol: Any = None
    restart: int = field(default=40, metadata={"static": True})
    preconditioner: Any = None

    needs_symmetry = False

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
        most = 10 * tree.size(b) + 100
        ask = request(self, A, b, preconditioner=preconditioner, rtol=rtol, steps=steps, most=most)
        target, steps = ask.target, ask.steps
        m = min(self.restart, tree.size(b), *([steps] if isinstance(steps, int) else []))
        x, r, matvecs = start(A, b, x0)
        norm_r = tree.norm(r)
        running = code(Status.MAX_STEPS)
        state = _Cycles(x, r, norm_r, jnp.asarray(0), jnp.asarray(matvecs + ask.matvecs), running)

        def unfinished(s: _Cycles):
            return (s.status == running) & (s.residual_norm > target) & (s.steps < steps)

        def body(s: _Cycles) -> _Cycles:
            dx, taken, singular = _cycle(A, s.r, ask.precondition, target, jnp.minimum(m, steps - s.steps), m)
            x = tree.add(s.x, dx)
            r = tree.sub(b, A.mv(x))
            norm_r = tree.norm(r)
            better = (norm_r < 0.99 * s.residual_norm) | (norm_r <= target)
            # A cycle that made things worse (a singular system, or rounding) is not taken.
            x, r = tree.where(better, (x, r), (s.x, s.r))
            failed = jnp.where(singular, code(Status.SINGULAR), code(Status.STAGNATED))
            status = jnp.where(better, running, failed)
            status = jnp.where(jnp.isfinite(norm_r) | singular, status, code(Status.NONFINITE))
            return _Cycles(
                x, r, jnp.where(better, norm_r, s.residual_norm), s.steps + taken, s.matvecs + taken + 1, status
            )

        end = bounded_while(unfinished, body, state, steps)
        reached = (end.residual_norm <= target) | (ask.budget & (end.status <= Status.STAGNATED))
        status = jnp.where(reached, code(Status.OK), end.status)
        status = jnp.where(jnp.isfinite(end.residual_norm), status, code(Status.NONFINITE))
        return end.x, SolveInfo(end.steps, end.matvecs, end.residual_norm, status)


class _Cycles(NamedTuple):
    x: Tree
    r: Tree
    residual_norm: Float[Array, ""]
    steps: Int[Array, ""]
    matvecs: Int[Array, ""]
    status: Int[Array, ""]


class _Arnoldi(NamedTuple):
    V: Tree  # orthonormal basis, leading axis m + 1
    Q: Float[Array, "k k"]  # product of the Givens rotations, k = m + 1
    R: Float[Array, "k m"]  # triangular factor of the Hessenberg matrix
    residual_norm: Float[Array, ""]  # in units of norm(r)
    j: Int[Array, ""]


def _cycle(A, r: Tree, precondition, target, steps, m: int):
    """One cycle from zero: the correction, the steps taken, and whether the Krylov matrix was singular.

    Minimizes ``norm(r - A M V y)`` over y: with ``A M V_m = V_{m+1} H`` and ``Q H = R``, ``R y = Q e_1 norm(r)``.
    """
    beta = tree.norm(r)
    unit = jnp.where(beta > 0, beta, 1.0)
    dtype = tree.dtype(r)
    V = jax.tree.map(lambda x: jnp.zeros((m + 1, *x.shape), x.dtype).at[0].set(x / unit.astype(x.dtype)), r)
    state = _Arnoldi(V, jnp.eye(m + 1, dtype=dtype), jnp.zeros((m + 1, m), dtype), beta / unit, jnp.asarray(0))
    # Beyond this the residual of the small problem is rounding and further columns are noise.
    floor = jnp.maximum(target / unit, tree.eps(r) / 4)

    def body(s: _Arnoldi) -> _Arnoldi:
        u = A.mv(precondition(jax.tree.map(lambda B: B[s.j], s.V)))
        h = basis_dot(s.V, u)
        u = tree.sub(u, basis_combine(s.V, h))
        again = basis_dot(s.V, u)  # the second pass of Gram-Schmidt keeps V orthonormal to rounding
        u = tree.sub(u, basis_combine(s.V, again))
        below = tree.norm(u)
        column = s.Q @ (h + again).at[s.j + 1].set(below)
        rho = jnp.hypot(column[s.j], column[s.j + 1])
        safe = jnp.where(rho > 0, rho, 1.0)
        c, t = jnp.where(rho > 0, column[s.j] / safe, 1.0), column[s.j + 1] / safe
        upper, lower = s.Q[s.j], s.Q[s.j + 1]
        Q = s.Q.at[s.j].set(c * upper + t * lower).at[s.j + 1].set(c * lower - t * upper)
        R = s.R.at[:, s.j].set(column.at[s.j].set(rho).at[s.j + 1].set(0.0))
        following = tree.scale(1 / jnp.where(below > 0, below, 1.0), u)
        V = jax.tree.map(lambda B, x: B.at[s.j + 1].set(x), s.V, following)
        return _Arnoldi(V, Q, R, jnp.abs(Q[s.j + 1, 0]), s.j + 1)

    end = bounded_while(lambda s: s.residual_norm > floor, body, state, steps)
    used = jnp.arange(m) < end.j
    R = jnp.where(used[:, None] & used[None, :], end.R[:m], jnp.eye(m, dtype=dtype))
    diagonal = jnp.abs(jnp.diag(R))
    singular = jnp.any(used & (diagonal <= m * jnp.finfo(dtype).eps * jnp.max(jnp.where(used, diagonal, 0.0))))
    y = jax.scipy.linalg.solve_triangular(R, jnp.where(used, end.Q[:m, 0], 0.0))
    y = jnp.where(jnp.isfinite(y).all() | ~singular, y, 0.0)
    correction = precondition(basis_combine(jax.tree.map(lambda B: B[:m], end.V), y))
    return tree.scale(unit, correction), end.j, singular
