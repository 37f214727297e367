"""Ridge regression with one penalty, or one per feature."""

from dataclasses import replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.certificates.constants import Constants
from bilevel.models.samples import (
    Instance,
    Samples,
    floating,
    penalties,
    quadratic,
    regression,
    spectrum,
    squared_error,
)
from bilevel.models.spectra import DENSE_SIZE, eigenvalue_range, gram_range, relative_smoothness
from bilevel.problems import Problem, minimization

Penalties = Float[Array, ""] | Float[Array, " d"]


def loss(w: Float[Array, " d"], lam: Penalties, data: Samples) -> Float[Array, ""]:
    """``1/(2n) |X w - y|^2 + 1/2 sum_j lam_j w_j^2``."""
    return squared_error(data.X @ w, data.y, data.weights) + quadratic(w, lam)


def log_loss(w: Float[Array, " d"], lam: Penalties, data: Samples) -> Float[Array, ""]:
    """:func:`loss` with the penalties ``exp(lam)``."""
    return loss(w, jnp.exp(lam), data)


def upper(w: Float[Array, " d"], _lam: Penalties, data: Samples) -> Float[Array, ""]:
    """``1/(2n) |X w - y|^2``."""
    return squared_error(data.X @ w, data.y, data.weights)


def problem(penalty: Literal["plain", "log"] = "plain") -> Problem:
    """Tune the penalties, or their logarithms, of ridge regression on validation samples.

    ``lam`` is a scalar or has one entry per feature; both data are :class:`~bilevel.models.samples.Samples`.
    """
    return Problem(minimization(loss if penalty == "plain" else log_loss), upper)


def solution(lam: Penalties, data: Samples) -> Float[Array, " d"]:
    """``w = A^{-1} X^T S y / n``."""
    return jnp.linalg.solve(hessian(lam, data), _weighted(data).T @ data.y)


def hypergradient(lam: Penalties, lower_data: Samples, upper_data: Samples) -> Penalties:
    """``dU/dlam_j = -w_j v_j`` with ``A v = d_w U``; their sum for a scalar penalty.

    Closed form with dense solves: O(n d^2 + d^3).
    """
    w = solution(lam, lower_data)
    g = _weighted(upper_data).T @ (upper_data.X @ w - upper_data.y)
    product = -w * jnp.linalg.solve(hessian(lam, lower_data), g)
    return jnp.sum(product) if jnp.ndim(lam) == 0 else product


def hessian(lam: Penalties, data: Samples) -> Float[Array, "d d"]:
    """Hessian ``A = X^T S X / n + diag(lam)``."""
    d = data.X.shape[1]
    return _weighted(data).T @ data.X + jnp.diag(jnp.broadcast_to(lam, (d,)))


def constants(lam: Penalties, lower_data: Samples, upper_data: Samples) -> Constants:
    """Constants of :func:`loss` and :func:`upper`, for all w; ``lam > 0`` and weights not negative.

    ``mu`` and ``L`` are the extreme eigenvalues of A, or above 2000 features those of ``X^T S X / n`` and of
    ``diag(lam)``, added up. ``B(w) = diag(w)``, or w for a scalar penalty: ``|B(w)| <= |w|``, ``nu2 = 1``.
    ``d_w U`` is affine with the matrix ``X^T S X / n`` of the validation samples. Cost: O(n d^2 + d^3).
    """
    A = hessian(lam, lower_data)
    if len(A) <= DENSE_SIZE:
        mu, L = eigenvalue_range(A)
        mu = jnp.maximum(mu, jnp.min(lam))
    else:
        least, greatest = gram_range(lower_data.X, lower_data.weights)
        mu, L = least + jnp.min(lam), greatest + jnp.max(lam)
    _, mu1 = gram_range(upper_data.X, upper_data.weights)
    relative = relative_smoothness(root_rows(upper_data), A, mu=mu, L=L, mu1=mu1)
    return Constants(
        mu=mu, L=L, nu1=0.0, nu2=1.0, B0=0.0, mu1=mu1, mu1_relative=relative, mu2=0.0, self_concordance=0.0
    )


def log_constants(lam: Penalties, lower_data: Samples, upper_data: Samples) -> Constants:
    """Those of :func:`log_loss`: ``B(w) = diag(exp(lam) w)``, so ``nu2 = max exp(lam)``."""
    strengths = jnp.exp(lam)
    return replace(constants(strengths, lower_data, upper_data), nu2=jnp.max(strengths))


def sample(seed: int, n: int, d: int, condition: float = 10.0, dtype: Any = None) -> Instance:
    """Random instance with n >= d training and n validation samples, whose A has this condition number."""
    rng = np.random.default_rng(seed)
    lam = penalties(rng, d, condition)
    lower_data, upper_data, _ = regression(rng, n, spectrum(rng, d, condition) - np.diag(lam), dtype)
    return Instance(floating(lam, dtype), floating(np.zeros(d), dtype), lower_data, upper_data)


def root_rows(data: Samples) -> Float[Array, "n d"]:
    """``(S / n)^1/2 X``, whose Gram matrix is the Hessian of :func:`upper`."""
    weights = jnp.ones_like(data.y) if data.weights is None else data.weights
    return data.X * jnp.sqrt(weights / len(data.y))[:, None]


def _weighted(data: Samples) -> Float[Array, "n d"]:
    weights = jnp.ones_like(data.y) if data.weights is None else data.weights
    return data.X * (weights / len(data.y))[:, None]
