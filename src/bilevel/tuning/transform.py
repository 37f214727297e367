"""New coordinates for the coefficients, in which the Hessian of every fit is close to the identity.

With ``H_f = X^T diag(train_f * curvature_f) X + diag(penalty_f) = L L^T`` and coefficients ``L^-T u`` the Hessian
in u is the identity for ridge, and for the logistic models at the point where it was taken (up to what the
classes differ in). So conjugate gradients takes a handful of steps where it took hundreds.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.tuning.families import Family
from bilevel.tuning.fits import Fits, Hyperparameters, Weights, coefficients, log_penalties, scores


@partial(jax.jit, static_argnums=0)
def recenter(family: Family, lam: Hyperparameters, w: Weights, v: Weights, fits: Fits) -> tuple[Weights, Weights, Fits]:
    """Coordinates adapted to ``(w, lam)``; the weights and adjoints come back in them, otherwise unchanged.

    Cost: a d x d matrix of the data and its Cholesky factor per fit, or its diagonal where that is too large.
    """
    C = coefficients(w, fits)
    weights = fits.train * family.curvatures(scores(C, w, fits.X), fits.y)
    penalty = jnp.exp(log_penalties(lam))[fits.member]
    diagonal = weights.T @ jnp.square(fits.X) + penalty
    C, V = (jnp.moveaxis(matrix, 1, 0) for matrix in (C, coefficients(v, fits)))
    if fits.transform.ndim == 2:
        root = jnp.sqrt(diagonal)
        new, back = 1 / root, lambda coef: root[:, :, None] * coef
    else:
        new, factor = jax.lax.map(lambda of: _inverse_root(fits.X, *of), (weights.T, penalty))
        back = partial(jnp.einsum, "fed,fec->fdc", factor)
    return {**w, "coef": back(C)}, {**v, "coef": back(V)}, replace(fits, transform=new)


def _inverse_root(
    X: Float[Array, "n d"], weights: Float[Array, " n"], penalty: Float[Array, " d"]
) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
    """``L^-T`` and L with ``L L^T`` the Hessian, lifted where rounding could make it indefinite."""
    H = (weights[:, None] * X).T @ X
    lift = 10 * len(H) * jnp.finfo(X.dtype).eps * jnp.max(jnp.diagonal(H))
    L = jnp.linalg.cholesky(H + jnp.diag(jnp.maximum(penalty, lift)))
    eye = jnp.eye(len(H), dtype=X.dtype)
    return jax.scipy.linalg.solve_triangular(L.T, eye, lower=False), L
