"""Extreme eigenvalues and singular values that can be relied on, for the constants of the families.

Dense factorizations up to :data:`DENSE_SIZE`, with a margin for their rounding error; norms above it. No iterative
estimates.
"""

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

DENSE_SIZE = 2000

Weights = Float[Array, " n"] | None


def eigenvalue_range(M: Float[Array, "n n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Lower bound of the least and upper bound of the greatest eigenvalue of a symmetric matrix.

    Above :data:`DENSE_SIZE` by Gershgorin: the greatest absolute row sum, and minus it.
    """
    if len(M) > DENSE_SIZE:
        greatest = jnp.max(jnp.sum(jnp.abs(M), axis=1))
        return -greatest, greatest
    eigenvalues = jnp.linalg.eigvalsh(M)
    margin = _margin(M) * jnp.max(jnp.abs(eigenvalues))
    return eigenvalues[0] - margin, eigenvalues[-1] + margin


def singular_range(M: Float[Array, "m n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Lower bound of the least and upper bound of the greatest singular value.

    Above :data:`DENSE_SIZE` zero and ``sqrt(norm_1 norm_inf)``.
    """
    if min(M.shape) > DENSE_SIZE:
        magnitudes = jnp.abs(M)
        greatest = jnp.sqrt(jnp.max(jnp.sum(magnitudes, axis=0)) * jnp.max(jnp.sum(magnitudes, axis=1)))
        return jnp.zeros_like(greatest), greatest
    values = jnp.linalg.svd(M, compute_uv=False)
    margin = _margin(M) * values[0]
    return jnp.maximum(values[-1] - margin, 0.0), values[0] + margin


def greatest_singular_value(M: Float[Array, "m n"]) -> Float[Array, ""]:
    """``|M|`` from above."""
    return singular_range(M)[1]


def gram_range(X: Float[Array, "n d"], weights: Weights = None) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Bounds of the eigenvalues of ``X^T S X / n``, weights ``s_i >= 0``: not below zero, not above the trace.

    The eigenvalues are those of the smaller of ``X^T S X`` and ``S^1/2 X X^T S^1/2``.
    """
    n, d = X.shape
    rows = X if weights is None else X * jnp.sqrt(weights)[:, None]
    if min(n, d) > DENSE_SIZE:
        return jnp.zeros((), X.dtype), jnp.sum(jnp.square(rows)) / n
    least, greatest = eigenvalue_range((rows.T @ rows if d <= n else rows @ rows.T) / n)
    margin = _margin(rows) * greatest  # of the product
    return jnp.maximum(least - margin, 0.0) * (d <= n), greatest + margin


def relative_smoothness(
    rows: Float[Array, "m d"],
    A: Float[Array, "d d"],
    *,
    mu: Float[Array, ""],
    L: Float[Array, ""],
    mu1: Float[Array, ""],
) -> Float[Array, ""]:
    """The least c with ``rows^T rows <= c A``, from above, where ``mu I <= A <= L I`` and ``rows^T rows <= mu1 I``.

    With ``A = R R^T`` it is the greatest eigenvalue of ``R^-1 rows^T rows R^-T``. Rounding moves A and R R^T by at
    most the margin times L, so c by a factor ``1 + 2 margin L / mu``. Where that is no gain, where A is singular to
    working precision, and above :data:`DENSE_SIZE`, it is ``mu1 / mu``.
    """
    crude = mu1 / mu
    if len(A) > DENSE_SIZE:
        return crude
    halves = solve_triangular(jnp.linalg.cholesky(A), rows.T, lower=True)
    c = eigenvalue_range(halves @ halves.T)[1] * (1 + 2 * _margin(rows) * L / mu)
    return jnp.where(c <= crude, c, crude)


def longest_row(X: Float[Array, "n d"]) -> Float[Array, ""]:
    """``max_i |x_i|``."""
    return jnp.sqrt(jnp.max(jnp.sum(jnp.square(X), axis=1)))


def _margin(M: Float[Array, "m n"]) -> float:
    """Relative to ``|M|``; the backward errors of LAPACK and of products are small multiples of sizes times eps."""
    return sum(M.shape) * float(jnp.finfo(M.dtype).eps)
