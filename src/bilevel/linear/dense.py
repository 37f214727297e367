"""Dense factorizations: exact up to rounding, for small systems and as the oracle."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from bilevel import tree
from bilevel.linear.operator import LinearOperator
from bilevel.status import SolveInfo, Status, code

Tree = Any


@tree.record
@dataclass(frozen=True)
class Dense:
    """Direct solve with the materialized matrix by LU; where ``A`` must be definite, Cholesky tells whether it is.

    One step of iterative refinement follows the factorization.

    Notes
    -----
    Cost: n matvecs as one block, n^2 memory, O(n^3) operations; ``rtol``, ``steps`` and a preconditioner have
    no meaning here and are ignored. Statuses: ``NEGATIVE_CURVATURE`` (not positive definite though it must
    be), ``SINGULAR`` (condition above 1/eps), ``NONFINITE``.
    """

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
        M = A.dense(b)
        rhs, unravel = ravel_pytree(b)
        factors = jax.scipy.linalg.lu_factor(M)

        def solve(y: Float[Array, " n"]) -> Float[Array, " n"]:
            return jax.scipy.linalg.lu_solve(factors, y)

        x = solve(rhs)
        x = x + solve(rhs - M @ x)
        residual = rhs - M @ x
        regular = condition(solve, _max_norm(M), rhs) * jnp.finfo(M.dtype).eps < 1
        status = jnp.where(regular, code(Status.OK), code(Status.SINGULAR))
        if A.symmetric and A.definite:
            status = jnp.where(is_definite(M), status, code(Status.NEGATIVE_CURVATURE))
        status = jnp.where(jnp.isfinite(M).all() & jnp.isfinite(rhs).all(), status, code(Status.NONFINITE))
        n = jnp.asarray(rhs.size)
        return unravel(x), SolveInfo(jnp.asarray(1), n, jnp.linalg.norm(residual), status)


def is_definite(M: Float[Array, "n n"]) -> Bool[Array, ""]:
    """Whether a symmetric M is positive definite up to rounding: a singular matrix is told from an indefinite one."""
    shift = len(M) * jnp.finfo(M.dtype).eps * _max_norm(M) + jnp.finfo(M.dtype).tiny
    return jnp.isfinite(jnp.linalg.cholesky(M + shift * jnp.eye(len(M), dtype=M.dtype))).all()


def _max_norm(M: Float[Array, "n n"]) -> Float[Array, ""]:
    """Largest absolute row sum, an upper bound of the spectral radius."""
    return jnp.max(jnp.sum(jnp.abs(M), axis=1))


def condition(
    solve: Callable[[Array], Array], norm: Float[Array, ""], like: Float[Array, " n"], steps: int = 4
) -> Float[Array, ""]:
    """``norm(A) norm(A^-1)`` from below, by a few steps of inverse iteration from a fixed random vector.

    Infinite for NaN, and where the fourth power overflows.
    """
    x = [jnp.asarray(fixed_vector(like.size), like.dtype)]
    for _ in range(steps):
        x.append(norm * solve(x[-1]))  # of about unit size, so that there is one norm of all at the end
    sizes = jnp.linalg.norm(jnp.stack(x), axis=1)
    growth = jnp.max(sizes[1:] / sizes[:-1])
    return jnp.where(jnp.isfinite(growth), growth, jnp.inf)


def fixed_vector(n: int) -> np.ndarray:
    """A fixed random vector of unit variance, as a constant: a program needs longer to draw than to use it."""
    return np.random.default_rng(1).standard_normal(n)
