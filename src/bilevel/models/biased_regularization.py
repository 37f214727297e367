"""Regression pulled towards a learned center: meta-learning of a common bias."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.certificates.constants import Constants
from bilevel.models import ridge
from bilevel.models.samples import (
    BiasedSamples,
    Instance,
    Samples,
    floating,
    quadratic,
    regression,
    spectrum,
    squared_error,
)
from bilevel.models.spectra import gram_range, relative_smoothness
from bilevel.problems import Problem, minimization


def loss(w: Float[Array, " d"], lam: Float[Array, " d"], data: BiasedSamples) -> Float[Array, ""]:
    """``1/(2n) |X w - y|^2 + beta/2 |w - lam|^2``."""
    return squared_error(data.X @ w, data.y) + quadratic(w - lam, data.beta)


upper = ridge.upper


def problem() -> Problem:
    """Learn the center ``lam`` from validation samples.

    The lower data are :class:`~bilevel.models.samples.BiasedSamples`, the upper data
    :class:`~bilevel.models.samples.Samples`.

    References
    ----------
    Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, problem "BR".
    """
    return Problem(minimization(loss), upper)


def solution(lam: Float[Array, " d"], data: BiasedSamples) -> Float[Array, " d"]:
    """``w = A^{-1} (X^T y / n + beta lam)``, ``A = X^T X / n + beta I``."""
    A = ridge.hessian(data.beta, Samples(data.X, data.y))
    return jnp.linalg.solve(A, data.X.T @ data.y / len(data.y) + data.beta * lam)


def hypergradient(lam: Float[Array, " d"], lower_data: BiasedSamples, upper_data: Samples) -> Float[Array, " d"]:
    """``dU/dlam = beta A^{-1} d_w U``. Closed form with dense solves: O(n d^2 + d^3)."""
    w = solution(lam, lower_data)
    g = upper_data.X.T @ (upper_data.X @ w - upper_data.y) / len(upper_data.y)
    A = ridge.hessian(lower_data.beta, Samples(lower_data.X, lower_data.y))
    return lower_data.beta * jnp.linalg.solve(A, g)


def constants(_lam: Float[Array, " d"], lower_data: BiasedSamples, upper_data: Samples) -> Constants:
    """Constants of :func:`loss` and :func:`upper`, for all w, from the eigenvalues of ``X^T X / n``.

    ``A = X^T X / n + beta I`` and ``B = -beta I`` do not depend on w. Cost: O(n d^2 + d^3).
    """
    least, greatest = gram_range(lower_data.X)
    _, mu1 = gram_range(upper_data.X, upper_data.weights)
    beta = lower_data.beta
    mu, L = least + beta, greatest + beta
    A = ridge.hessian(beta, Samples(lower_data.X, lower_data.y))
    relative = relative_smoothness(ridge.root_rows(upper_data), A, mu=mu, L=L, mu1=mu1)
    return Constants(
        mu=mu, L=L, nu1=0.0, nu2=0.0, B0=beta, mu1=mu1, mu1_relative=relative, mu2=0.0, self_concordance=0.0
    )


def sample(seed: int, n: int, d: int, condition: float = 10.0, dtype: Any = None) -> Instance:
    """Random instance with n >= d training and n validation samples, whose A has this condition number.

    The center ``lam`` is near, not at, the weights that made the targets.
    """
    rng = np.random.default_rng(seed)
    beta = 0.5 / condition
    lower, upper_data, w = regression(rng, n, spectrum(rng, d, condition) - beta * np.eye(d), dtype)
    lam = floating(w + 0.5 * rng.standard_normal(d), dtype)
    return Instance(lam, jnp.zeros_like(lam), BiasedSamples(lower.X, lower.y, floating(beta, dtype)), upper_data)
