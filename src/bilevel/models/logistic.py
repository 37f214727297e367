"""Binary logistic regression with one penalty, or one per feature."""

from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.certificates.constants import Constants
from bilevel.models.samples import Instance, Samples, designs, floating, mean, penalties, quadratic, spectrum
from bilevel.models.spectra import gram_range, longest_row
from bilevel.problems import Problem, minimization

Penalties = Float[Array, ""] | Float[Array, " d"]

PSI2 = 1 / 4  # max psi'', where psi'' = s (1 - s) with the sigmoid s
PSI3 = 3**-0.5 / 6  # max |d^3 psi| = max s (1 - s) |1 - 2 s|


def loss(w: Float[Array, " d"], lam: Penalties, data: Samples) -> Float[Array, ""]:
    """``1/n sum_i psi(y_i x_i^T w) + 1/2 sum_j lam_j w_j^2``, ``psi(u) = log(1 + e^-u)``."""
    return upper(w, lam, data) + quadratic(w, lam)


def log_loss(w: Float[Array, " d"], lam: Penalties, data: Samples) -> Float[Array, ""]:
    """:func:`loss` with the penalties ``exp(lam)``."""
    return loss(w, jnp.exp(lam), data)


def upper(w: Float[Array, " d"], _lam: Penalties, data: Samples) -> Float[Array, ""]:
    """``1/n sum_i psi(y_i x_i^T w)``."""
    return mean(row_losses(data.X @ w, data.y), data.weights)


def row_losses(z: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """``psi(y z)`` on each row, labels in {-1, +1}."""
    return jax.nn.softplus(-y * z)


def problem(penalty: Literal["plain", "log"] = "plain") -> Problem:
    """Tune the penalties, or their logarithms, of logistic regression on validation samples.

    ``lam`` is a scalar or has one entry per feature; both data are :class:`~bilevel.models.samples.Samples`
    with labels in {-1, +1}.

    References
    ----------
    Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, problem "LR".
    """
    return Problem(minimization(loss if penalty == "plain" else log_loss), upper)


def constants(lam: Penalties, lower_data: Samples, upper_data: Samples) -> Constants:
    """Constants of :func:`loss` and :func:`upper`, for all w; ``lam > 0`` and weights not negative.

    ``A(w) = X^T S diag(psi'') X / n + diag(lam)`` with ``0 < psi'' <= 1/4``: ``mu = min(lam)``,
    ``L = |X^T S X / n| / 4 + max(lam)``. Since ``|d^3 psi| <= 1 / (6 sqrt 3)``, ``A`` changes by at most
    ``nu1 = |X^T S X / n| max_i |x_i| / (6 sqrt 3)``; and ``|d^3 psi| <= psi''`` makes both levels self-concordant
    with ``max_i |x_i|``. ``B`` as for ridge regression. ``d_w U`` is Lipschitz with ``|X^T S X / n| / 4`` of the
    validation samples. Cost: O(n d^2 + d^3).
    """
    gram, gram_upper = (gram_range(samples.X, samples.weights)[1] for samples in (lower_data, upper_data))
    longest, longest_upper = longest_row(lower_data.X), longest_row(upper_data.X)
    return Constants(
        mu=jnp.min(lam), L=PSI2 * gram + jnp.max(lam), nu1=PSI3 * gram * longest, nu2=1.0, B0=0.0,
        mu1=PSI2 * gram_upper, mu2=0.0, self_concordance=jnp.maximum(longest, longest_upper),
    )  # fmt: skip


def log_constants(lam: Penalties, lower_data: Samples, upper_data: Samples) -> Constants:
    """Those of :func:`log_loss`: ``B(w) = diag(exp(lam) w)``, so ``nu2 = max exp(lam)``."""
    strengths = jnp.exp(lam)
    return replace(constants(strengths, lower_data, upper_data), nu2=jnp.max(strengths))


def sample(seed: int, n: int, d: int, condition: float = 10.0, dtype: Any = None) -> Instance:
    """Random instance with n >= d training and n validation samples.

    A has this condition number at ``w = 0``; at the solution, where ``psi''`` is smaller, at most four
    times it.
    """
    rng = np.random.default_rng(seed)
    lam = penalties(rng, d, condition)
    gram = 4.0 * (spectrum(rng, d, condition) - np.diag(lam))  # psi''(0) = 1/4
    w = rng.standard_normal(d)
    w *= 1.5 / np.sqrt(w @ gram @ w)  # margins of variance 1.5^2, so that the classes overlap
    lower_data, upper_data = (_labeled(rng, X, w, dtype) for X in designs(rng, n, gram))
    return Instance(floating(lam, dtype), floating(np.zeros(d), dtype), lower_data, upper_data)


def _labeled(rng: np.random.Generator, X: np.ndarray, w: np.ndarray, dtype: Any) -> Samples:
    y = np.where(X @ w + rng.logistic(size=len(X)) > 0, 1.0, -1.0)
    return Samples(floating(X, dtype), floating(y, dtype))
