"""Hypergradients far more exact than any that is judged: extended precision for affine families, dense for others.

Of the affine families the two linear systems are solved by LU in double and iterative refinement with residuals in
extended precision (``numpy.longdouble``, of 64 bits on x86; Higham 2002, Chapter 12), so that the error is that of
extended precision as long as ``eps cond(A) < 1``. The data are read as the numbers they are, in float32 too. Of the
others ``dense_truth`` of the tests is exact to about ``eps cond(A)`` of float64.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from families import dense_truth

EPS = float(np.finfo(np.float64).eps)
REFINEMENTS = 8
ALLOWANCE = 10.0  # eps cond(A) that a dense truth in float64 may be wrong by


class Judge(NamedTuple):
    """True hypergradient, a pytree of arrays; its uncertainty relative to its norm; and cond(A)."""

    grad: Any
    uncertainty: float
    condition: float


def truth_of(name, case, condition):
    """The judge of a case of a family; ``condition`` is what its sampler was asked for, which affine ones hit."""
    if name in AFFINE:
        grad = AFFINE[name](*jax.tree.map(extended, (case.lam, case.lower_data, case.upper_data)))
        return Judge(grad, 0.0, condition if jax.tree.leaves(case.w0)[0].size > 1 else 1.0)
    truth = dense_truth(case.problem, case.lam, case.w0, case.lower_data, case.upper_data)
    return Judge(truth.grad, ALLOWANCE * EPS * truth.condition, truth.condition)


def distance(a, b):
    """``|a - b|`` of two pytrees as vectors."""
    return norm(jax.tree.map(lambda x, y: extended(x) - extended(y), a, b))


def norm(a):
    """2-norm of a pytree as a vector."""
    return float(np.sqrt(sum(np.sum(np.square(extended(x))) for x in jax.tree.leaves(a))))


def extended(leaf):
    """The array in extended precision."""
    return np.asarray(leaf).astype(np.longdouble)


def solve(A, mv, b):
    """``A^-1 b``, the product ``mv`` in extended precision and A in double."""
    factors = scipy.linalg.lu_factor(A)
    x = np.zeros_like(b)
    for _ in range(REFINEMENTS):
        x = x + scipy.linalg.lu_solve(factors, (b - mv(x)).astype(np.float64))
    return x


def regression(X, penalties, b, X_upper, y_upper, H=None):
    """w and v of ``A = Z^T Z / n + diag(penalties)``, Z = X H, ``A w = b``, ``A v = d_w U``."""
    n, m = len(X), len(X_upper)

    def forth(M, x):
        return M @ (x if H is None else H @ x)

    def back(M, r):
        return r @ M if H is None else (r @ M) @ H

    def mv(x):
        return back(X, forth(X, x)) / n + penalties * x

    Z = X.astype(np.float64) if H is None else X.astype(np.float64) @ H.astype(np.float64)
    A = Z.T @ Z / n + np.diag(np.broadcast_to(penalties, len(b)).astype(np.float64))
    w = solve(A, mv, b)
    return w, solve(A, mv, back(X_upper, forth(X_upper, w) - y_upper) / m)


def ridge(lam, lower, upper):
    """``-w v``."""
    w, v = regression(lower.X, lam, lower.y @ lower.X / len(lower.y), upper.X, upper.y)
    return -w * v


def biased_regularization(lam, lower, upper):
    """``beta v``."""
    b = lower.y @ lower.X / len(lower.y) + lower.beta * lam
    _, v = regression(lower.X, lower.beta, b, upper.X, upper.y)
    return lower.beta * v


def hyper_representation(H, lower, upper):
    """``r' w^T - r v^T - s w^T``: r' and r gradients by H w of the two losses, s of the lower one along v."""
    n, m = len(lower.y), len(upper.y)
    w, v = regression(lower.X, lower.beta, (lower.y @ lower.X) @ H / n, upper.X, upper.y, H)
    direct = (upper.X @ (H @ w) - upper.y) @ upper.X / m
    r, s = (lower.X @ (H @ w) - lower.y) @ lower.X / n, (lower.X @ (H @ v)) @ lower.X / n
    return np.outer(direct - s, w) - np.outer(r, v)


def kernel_ridge(lam, lower, upper):
    """``-w^T v`` by beta and ``r^T (dK'/dgamma_j) w - v^T (dK/dgamma_j) w`` by gamma_j."""
    gamma, beta, n, m = lam["gamma"], lam["beta"], len(lower.y), len(upper.y)

    def squares(X, Z):
        return np.square(X[:, None] - Z[None])

    lower_squares, upper_squares = squares(lower.X, lower.X), squares(upper.X, upper.points)
    K, K_upper = np.exp(-lower_squares @ gamma), np.exp(-upper_squares @ gamma)
    A = (K + beta * np.eye(n)).astype(np.float64)
    w = solve(A, lambda x: K @ x + beta * x, lower.y)
    r = (K_upper @ w - upper.y) / m
    v = solve(A, lambda x: K @ x + beta * x, r @ K_upper)
    slopes = [
        v @ ((lower_squares[..., j] * K) @ w) - r @ ((upper_squares[..., j] * K_upper) @ w) for j in range(len(gamma))
    ]
    return {"gamma": np.array(slopes), "beta": -np.sum(w * v)}


def affine(lam, M, target):
    """``(M w) v`` and v."""
    gain, n = lam["gain"], len(M)
    A = (np.eye(n) - gain[:, None] * M).astype(np.float64)
    w = solve(A, lambda x: x - gain * (M @ x), lam["offset"])
    v = solve(A.T, lambda x: x - (gain * x) @ M, w - target)
    return {"gain": v * (M @ w), "offset": v}


AFFINE = {f.__name__: f for f in (ridge, biased_regularization, hyper_representation, kernel_ridge, affine)}
