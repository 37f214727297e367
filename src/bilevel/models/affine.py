"""A nonsymmetric affine fixed-point map: the simplest problem on which transposes matter."""

from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.certificates.constants import Constants
from bilevel.models.samples import Instance, floating, normal_contraction
from bilevel.models.spectra import DENSE_SIZE, longest_row, singular_range
from bilevel.problems import Problem, fixed_point


class Parameters(TypedDict):
    """Gains of the rows of the matrix, and the offset."""

    gain: Float[Array, " n"]
    offset: Float[Array, " n"]


def fp_map(w: Float[Array, " n"], lam: Parameters, data: Float[Array, "n n"]) -> Float[Array, " n"]:
    """``w -> diag(gain) M w + offset`` with ``M = data``."""
    return lam["gain"] * (data @ w) + lam["offset"]


def upper(w: Float[Array, " n"], _lam: Parameters, data: Float[Array, " n"]) -> Float[Array, ""]:
    """``1/2 |w - target|^2`` with ``target = data``."""
    return 0.5 * jnp.sum(jnp.square(w - data))


def problem() -> Problem:
    """Bring the fixed point to a target. The lower data are the matrix M, the upper data the target."""
    return Problem(fixed_point(fp_map), upper)


def solution(lam: Parameters, data: Float[Array, "n n"]) -> Float[Array, " n"]:
    """``w = (I - diag(gain) M)^{-1} offset``."""
    return jnp.linalg.solve(_system(lam, data), lam["offset"])


def hypergradient(lam: Parameters, lower_data: Float[Array, "n n"], upper_data: Float[Array, " n"]) -> Parameters:
    """``dU/dgain = v * (M w)`` and ``dU/doffset = v`` with ``(I - diag(gain) M)^T v = w - target``."""
    w = solution(lam, lower_data)
    v = jnp.linalg.solve(_system(lam, lower_data).T, w - upper_data)
    return Parameters(gain=v * (lower_data @ w), offset=v)


def constants(lam: Parameters, lower_data: Float[Array, "n n"], _upper_data: Float[Array, " n"]) -> Constants:
    """Constants of the map and of :func:`upper`, for all w.

    ``mu`` and ``L`` are the extreme singular values of ``A = I - diag(gain) M``, and ``q = |diag(gain) M|``; above
    n = 2000 ``mu = 1 - q`` and ``L = 1 + q``. ``B(w) = -[diag(M w), I]``: ``|B(w)| <= 1 + nu2 |w|`` with
    ``nu2 = max_i |M_i|``. Cost: O(n^3).
    """
    _, q = singular_range(lam["gain"][:, None] * lower_data)
    mu, L = singular_range(_system(lam, lower_data)) if len(lower_data) <= DENSE_SIZE else (1 - q, 1 + q)
    return Constants(mu=mu, L=L, q=q, nu1=0.0, nu2=longest_row(lower_data), B0=1.0, mu1=1.0, mu2=0.0)


def sample(seed: int, n: int, condition: float = 10.0, dtype: Any = None) -> Instance:
    """Random contraction on R^n, n >= 2, whose ``I - diag(gain) M`` has this condition number."""
    rng = np.random.default_rng(seed)
    gain = rng.uniform(0.5, 1.5, n)
    M = normal_contraction(rng, n, condition) / gain[:, None]
    lam = Parameters(gain=floating(gain, dtype), offset=floating(rng.standard_normal(n), dtype))
    w0, target = np.zeros(n), rng.standard_normal(n)
    return Instance(lam, floating(w0, dtype), floating(M, dtype), floating(target, dtype))


def _system(lam: Parameters, M: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return jnp.eye(len(M), dtype=M.dtype) - lam["gain"][:, None] * M
