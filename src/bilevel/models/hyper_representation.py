"""A learned linear representation under a ridge head: meta-learning of features."""

from typing import Any

import jax
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
    orthonormal,
    quadratic,
    regression,
    squared_error,
)
from bilevel.models.spectra import gram_range, greatest_singular_value, relative_smoothness
from bilevel.problems import Problem, minimization


def loss(w: Float[Array, " d"], lam: Float[Array, "p d"], data: BiasedSamples) -> Float[Array, ""]:
    """``1/(2n) |X H w - y|^2 + beta/2 |w|^2`` with the representation ``H = lam``."""
    return squared_error(data.X @ (lam @ w), data.y) + quadratic(w, data.beta)


def upper(w: Float[Array, " d"], lam: Float[Array, "p d"], data: Samples) -> Float[Array, ""]:
    """``1/(2n) |X H w - y|^2``; it depends on the representation itself too."""
    return squared_error(data.X @ (lam @ w), data.y)


def problem() -> Problem:
    """Learn the representation ``lam`` from validation samples.

    The lower data are :class:`~bilevel.models.samples.BiasedSamples`, the upper data
    :class:`~bilevel.models.samples.Samples`.

    References
    ----------
    Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, problem "HR".
    """
    return Problem(minimization(loss), upper)


def solution(lam: Float[Array, "p d"], data: BiasedSamples) -> Float[Array, " d"]:
    """``w = (H^T X^T X H / n + beta I)^{-1} H^T X^T y / n``: ridge on the features X H."""
    return ridge.solution(data.beta, Samples(data.X @ lam, data.y))


def hypergradient(lam: Float[Array, "p d"], lower_data: BiasedSamples, upper_data: Samples) -> Float[Array, "p d"]:
    """``d/dH U(w(H), H)`` by differentiating the closed form of ``w(H)``."""
    return jax.grad(lambda H: upper(solution(H, lower_data), H, upper_data))(lam)


def constants(lam: Float[Array, "p d"], lower_data: BiasedSamples, upper_data: Samples) -> Constants:
    """Constants of :func:`loss` and :func:`upper`, for all w.

    With ``G = X^T X / n`` and ``b = X^T y / n``: ``A = H^T G H + beta I``, and ``B(w)`` maps dH to
    ``dH^T (G H w - b) + H^T G dH w``, so that ``|B(w)| <= |b| + nu2 |w|``, ``nu2 = 2 |G H|``. With G and b of the
    validation samples ``d_lam U = (G H w - b) w^T``, which is quadratic in w: ``mu2 = |b|`` and
    ``mu2_growth = 2 |G H|``. Cost: O(n p d + d^3).
    """
    features, features_upper = Samples(lower_data.X @ lam, lower_data.y), Samples(upper_data.X @ lam, upper_data.y)
    least, greatest = gram_range(features.X)
    _, mu1 = gram_range(features_upper.X)
    (GH, b), (GH_upper, b_upper) = _moments(lam, lower_data), _moments(lam, upper_data)
    mu, L = least + lower_data.beta, greatest + lower_data.beta
    A = ridge.hessian(lower_data.beta, features)
    relative = relative_smoothness(ridge.root_rows(features_upper), A, mu=mu, L=L, mu1=mu1)
    return Constants(
        mu=mu, L=L, nu1=0.0, nu2=2 * GH, B0=b, mu1=mu1, mu1_relative=relative, mu2=b_upper, mu2_growth=2 * GH_upper,
        self_concordance=0.0,
    )  # fmt: skip


def _moments(H: Float[Array, "p d"], data: Samples | BiasedSamples) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``|X^T X H / n|`` and ``|X^T y / n|``."""
    n = len(data.y)
    GH = (data.X @ H).T @ data.X / n
    return greatest_singular_value(GH), jnp.linalg.norm(data.y @ data.X) / n


def sample(seed: int, n: int, d: int, condition: float = 10.0, dtype: Any = None) -> Instance:
    """Random instance with p = 2d raw features in n >= p training and n validation samples.

    ``A = H^T (X^T X / n) H + beta I`` has this condition number: X has orthogonal columns and H the
    singular values for it.
    """
    rng = np.random.default_rng(seed)
    beta = 0.5 / condition
    scales = np.sqrt(np.geomspace(1.0, 1.0 / condition, d) - beta)
    H = (orthonormal(rng, 2 * d, d) * scales) @ orthonormal(rng, d, d).T
    lower, upper_data, _ = regression(rng, n, np.eye(2 * d), dtype)
    lower_data = BiasedSamples(lower.X, lower.y, floating(beta, dtype))
    return Instance(floating(H, dtype), floating(np.zeros(d), dtype), lower_data, upper_data)
