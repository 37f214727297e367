"""The truth of a fault in dense float64, apart from the library's solvers, and what rounding leaves of it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from families import newton, solve

FEW = 16.0  # rounding errors of a product, in units of eps times the norms


class Truth(NamedTuple):
    """A hypergradient to rounding in float64, and the change that rounding can make of it, in units of eps.

    The rule of what is representable: residuals of the lower level and of the adjoint cannot be told from ones of
    ``FEW eps (|A| |w| + |F(0)|)`` and ``FEW eps (|A| |v| + |d_w U|)``; what these change in the hypergradient to first
    order is ``eps * sensitivity``.
    """

    w: np.ndarray
    v: np.ndarray
    grad: np.ndarray
    sensitivity: float


def dense_truth(problem: Any, lam: Any, w0: Any, lower_data: Any, upper_data: Any, exact: bool = False) -> Truth:
    """Truth at the solution that Newton's method with dense Jacobians finds from ``w0``; all arguments flat arrays.

    With ``exact``, for affine ``F``, the systems are solved for residuals in exact arithmetic: right to the last
    digits whatever the condition number.
    """
    with jax.enable_x64(True):
        lam, w0, lower_data, upper_data = jax.tree.map(_double, (lam, w0, lower_data, upper_data))
        at = problem.lower, lam, lower_data
        if exact:
            zero = jnp.zeros_like(w0)
            w = solve_exactly(np.asarray(_jacobian(zero, *at)[0]), -np.asarray(_residual(zero, *at)))
        else:
            w = newton(
                lambda x: np.asarray(_residual(x, *at)), lambda x: np.asarray(_jacobian(x, *at)[0]), np.asarray(w0)
            )
        return _truth_at(problem, w, lam, lower_data, upper_data, solve_exactly if exact else solve)


def _truth_at(problem: Any, w: np.ndarray, lam: Any, lower_data: Any, upper_data: Any, solve: Any) -> Truth:
    A, B = (np.asarray(J) for J in _jacobian(w, problem.lower, lam, lower_data))
    B = B.reshape(len(w), -1)
    g, direct = (np.asarray(x) for x in _upper_gradients(problem, w, lam, upper_data))
    v = solve(A.T, g)
    grad = direct.ravel() - B.T @ v
    l_ww, l_lw = (np.asarray(x) for x in _second_derivatives(problem, w, v, lam, lower_data, upper_data))
    P = np.linalg.solve(A, B)  # -d w / d lam
    by_lower = np.linalg.solve(A.T, (l_lw.reshape(-1, len(w)) - P.T @ l_ww).T)  # d grad / d F
    norm_A = np.linalg.norm(A, 2)
    at_zero = np.linalg.norm(np.asarray(_residual(w, problem.lower, lam, lower_data)) - A @ w)
    lower = np.linalg.norm(by_lower) * (norm_A * np.linalg.norm(w) + at_zero)
    adjoint = np.linalg.norm(P) * (norm_A * np.linalg.norm(v) + np.linalg.norm(g))
    scale = np.linalg.norm(direct) + np.linalg.norm(B) * np.linalg.norm(v)
    return Truth(w, v, grad, FEW * float(lower + adjoint + scale))


def _evaluate(w: Any, lam: Any, lower: Any, data: Any) -> Any:
    if lower.kind == "minimization":
        return jax.grad(lower.function)(w, lam, data)
    return w - lower.function(w, lam, data) if lower.kind == "fixed_point" else lower.function(w, lam, data)


@jax.jit
def _residual(w: Any, lower: Any, lam: Any, data: Any) -> Any:
    return _evaluate(w, lam, lower, data)


@jax.jit
def _jacobian(w: Any, lower: Any, lam: Any, data: Any) -> Any:
    """``A = d_w F`` and ``d_lam F``."""
    return jax.jacfwd(_evaluate, argnums=(0, 1))(w, lam, lower, data)


@jax.jit
def _upper_gradients(problem: Any, w: Any, lam: Any, data: Any) -> Any:
    return jax.grad(problem.upper, argnums=(0, 1))(w, lam, data)


@jax.jit
def _second_derivatives(problem: Any, w: Any, v: Any, lam: Any, lower_data: Any, upper_data: Any) -> Any:
    """``d2_ww l`` and ``d2_lam,w l`` of the Lagrangian."""

    def lagrangian(w, lam):
        return problem.upper(w, lam, upper_data) - jnp.dot(v, _evaluate(w, lam, problem.lower, lower_data))

    return tuple(jax.jacfwd(jax.grad(lagrangian, argnums=i))(w, lam) for i in (0, 1))


def solve_exactly(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``A^{-1} b`` to the last digits, by iterative refinement on residuals in exact arithmetic."""
    x = np.linalg.solve(A, b)
    for _ in range(8):
        x = x + np.linalg.solve(A, residual(A, x, b))
    return x


def residual(A: np.ndarray, x: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``b - A x`` rounded once: every product split into two numbers without error (Dekker 1971), summed exactly."""
    high, low = _product(A, np.broadcast_to(x, A.shape))
    return np.array([math.fsum([y, *-p, *-q]) for y, p, q in zip(b, high, low, strict=True)])


def _product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return p, a2 * b2 - (((p - a1 * b1) - a2 * b1) - a1 * b2)


def _halves(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high = 134217729.0 * a  # 2^27 + 1
    high = high - (high - a)
    return high, a - high


def _double(leaf: Any) -> Any:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
