"""Kernel ridge regression: a Gaussian kernel with one inverse width per feature."""

from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.certificates.constants import Constants
from bilevel.models.samples import Instance, Samples, floating, squared_error
from bilevel.models.spectra import eigenvalue_range, greatest_singular_value, relative_smoothness
from bilevel.problems import Problem, minimization


class Widths(TypedDict):
    """Inverse squared widths of the kernel, and the ridge penalty."""

    gamma: Float[Array, " d"]
    beta: Float[Array, ""]


class Validation(NamedTuple):
    """The points the kernel expansion is built on, and the samples to predict."""

    points: Float[Array, "n d"]
    X: Float[Array, "m d"]
    y: Float[Array, " m"]


def kernel(gamma: Float[Array, " d"], X: Float[Array, "n d"], Z: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """``K_ik = exp(-sum_j gamma_j (X_ij - Z_kj)^2)``, the square expanded: O(n m d), no n x m x d array."""
    norms = [jnp.square(points) @ gamma for points in (X, Z)]
    return jnp.exp(2.0 * (X * gamma[None]) @ Z.T - norms[0][:, None] - norms[1][None])


def loss(w: Float[Array, " n"], lam: Widths, data: Samples) -> Float[Array, ""]:
    """``1/n (1/2 w^T (K(gamma) + beta I) w - w^T y)``, whose solution is ``(K + beta I) w = y``."""
    Mw = kernel(lam["gamma"], data.X, data.X) @ w + lam["beta"] * w
    return jnp.sum(w * (0.5 * Mw - data.y)) / len(w)


def upper(w: Float[Array, " n"], lam: Widths, data: Validation) -> Float[Array, ""]:
    """``1/(2m) |K(gamma) w - y|^2`` with the kernel between validation and training points."""
    return squared_error(kernel(lam["gamma"], data.X, data.points) @ w, data.y)


def problem() -> Problem:
    """Tune widths and penalty of kernel ridge regression on validation samples.

    The lower data are :class:`~bilevel.models.samples.Samples`, the upper data :class:`Validation`.

    References
    ----------
    Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, problem "KRR".
    """
    return Problem(minimization(loss), upper)


def solution(lam: Widths, data: Samples) -> Float[Array, " n"]:
    """``w = (K + beta I)^{-1} y``."""
    return jnp.linalg.solve(_system(lam, data.X), data.y)


def hypergradient(lam: Widths, lower_data: Samples, upper_data: Validation) -> Widths:
    """``dU/dbeta = -w^T v``, ``dU/dgamma_j = r^T (dK'/dgamma_j) w / m - v^T (dK/dgamma_j) w``.

    Here ``(K + beta I) v = d_w U``, K' is the validation kernel, which depends on gamma too, and r its
    residual. Closed form with dense solves: O(n^3).
    """
    X, points, gamma = lower_data.X, upper_data.points, lam["gamma"]
    w = solution(lam, lower_data)
    K = kernel(gamma, upper_data.X, points)
    r = (K @ w - upper_data.y) / len(upper_data.y)
    v = jnp.linalg.solve(_system(lam, X), K.T @ r)
    direct = _slopes(gamma, upper_data.X, points, r, w)
    return Widths(gamma=direct - _slopes(gamma, X, X, v, w), beta=-jnp.sum(w * v))


def constants(lam: Widths, lower_data: Samples, upper_data: Validation) -> Constants:
    """Constants of :func:`loss` and :func:`upper`, for all w; ``beta > 0``.

    ``A = (K + beta I) / n``. The columns of ``B(w)`` are ``w / n`` and ``(dK/dgamma_j) w / n``: it is linear in
    w, and ``|B(w)|_F = |T w| / n`` with the stack T of I and all ``dK/dgamma_j``. With the validation kernel K'
    and the stack T' of its derivatives, ``d_gamma_j U = (K' w - y)^T (dK'/dgamma_j) w / m`` is quadratic in w:
    ``mu1 = |K'|^2 / m``, ``mu2 = |T'| |y| / m``, ``mu2_growth = 2 |T'| |K'| / m``. Cost: O(n^3 + d n^2 m).
    """
    X, points, gamma, beta = lower_data.X, upper_data.points, lam["gamma"], lam["beta"]
    n, m = len(lower_data.y), len(upper_data.y)
    least, greatest = eigenvalue_range(kernel(gamma, X, X))
    mu, L = (jnp.maximum(least, 0.0) + beta) / n, (greatest + beta) / n
    stack = jnp.sqrt(1.0 + _slopes_gram_norm(gamma, X, X))
    stack_upper = jnp.sqrt(_slopes_gram_norm(gamma, upper_data.X, points))
    K_upper = kernel(gamma, upper_data.X, points)
    norm_upper = greatest_singular_value(K_upper)
    mu1 = norm_upper**2 / m
    relative = relative_smoothness(K_upper / m**0.5, _system(lam, X) / n, mu=mu, L=L, mu1=mu1)
    return Constants(
        mu=mu, L=L, nu1=0.0, nu2=stack / n, B0=0.0, mu1=mu1, mu1_relative=relative,
        mu2=stack_upper * jnp.linalg.norm(upper_data.y) / m, mu2_growth=2 * stack_upper * norm_upper / m,
        self_concordance=0.0,
    )  # fmt: skip


def _slopes_gram_norm(gamma: Float[Array, " d"], X: Float[Array, "m d"], Z: Float[Array, "n d"]) -> Float[Array, ""]:
    """``|sum_j (dK/dgamma_j)^T (dK/dgamma_j)|``."""
    K = kernel(gamma, X, Z)

    def add(total: Float[Array, "n n"], columns: tuple) -> tuple[Float[Array, "n n"], None]:
        x, z = columns
        slope = -jnp.square(x[:, None] - z[None]) * K
        return total + slope.T @ slope, None

    total, _ = jax.lax.scan(add, jnp.zeros((len(Z), len(Z)), K.dtype), (X.T, Z.T))
    return eigenvalue_range(total)[1]


def sample(seed: int, n: int, d: int, condition: float = 10.0, dtype: Any = None) -> Instance:
    """Random instance with n training and n validation samples of a smooth function.

    The penalty beta is chosen so that ``K + beta I`` has this condition number; it must lie above one and
    below that of K.
    """
    rng = np.random.default_rng(seed)
    gamma = rng.uniform(0.02, 0.1, d) / d
    X, Z = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    slope = rng.standard_normal(d) / np.sqrt(d)
    y, y_valid = (np.sin(2.0 * points @ slope) + 0.1 * rng.standard_normal(n) for points in (X, Z))
    squares = np.square(X[:, None] - X[None]) @ gamma
    eigenvalues = np.linalg.eigvalsh(np.exp(-squares))
    least, greatest = max(eigenvalues[0], 0.0), eigenvalues[-1]
    beta = (greatest - condition * least) / (condition - 1.0)  # (greatest + beta) / (least + beta) = condition
    if not beta > 0:
        raise ValueError(f"The kernel matrix itself has condition {greatest / least:.1e}, below {condition:.1e}.")
    lam = Widths(gamma=floating(gamma, dtype), beta=floating(beta, dtype))
    X, Z, y, y_valid = (floating(array, dtype) for array in (X, Z, y, y_valid))
    return Instance(lam, jnp.zeros_like(y), Samples(X, y), Validation(X, Z, y_valid))


def _system(lam: Widths, X: Float[Array, "n d"]) -> Float[Array, "n n"]:
    return kernel(lam["gamma"], X, X) + lam["beta"] * jnp.eye(len(X), dtype=X.dtype)


def _slopes(
    gamma: Float[Array, " d"],
    X: Float[Array, "n d"],
    Z: Float[Array, "m d"],
    left: Float[Array, " n"],
    right: Float[Array, " m"],
) -> Float[Array, " d"]:
    """``left^T (dK/dgamma_j) right`` for all j, from ``dK/dgamma_j = -(X_ij - Z_kj)^2 K_ik``."""
    P = left[:, None] * kernel(gamma, X, Z) * right[None]
    return -jnp.einsum("ik,ikj->j", P, jnp.square(X[:, None] - Z[None]))
