"""Hypergradients far more exact than any that is judged: in quadruple precision.

Linear systems are solved by LU in double and iterative refinement with residuals in quadruple precision (Higham 2002,
Chapter 12), so that the error is that of quadruple precision as long as ``eps cond(A) < 1``. The data are read as the
numbers they are, in float32 too. Affine families by their closed forms, in NumPy alone; others by Newton's method from
``dense_truth`` of the tests.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree

from bilevel import quadruple, tree
from bilevel.lagrangian import Instance

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from families import dense_truth

REFINEMENTS = 8
NEWTON_STEPS = 5


class Judge(NamedTuple):
    """True hypergradient, a pytree of arrays, and cond(A)."""

    grad: Any
    condition: float


def truth_of(name, case, condition):
    """The judge of a case of a family; ``condition`` is what its sampler was asked for, which affine ones hit."""
    if name in AFFINE:
        grad = AFFINE[name](*jax.tree.map(extended, (case.lam, case.lower_data, case.upper_data)))
        return Judge(grad, condition if jax.tree.leaves(case.w0)[0].size > 1 else 1.0)
    return refined(case)


def refined(case):
    """The judge by Newton's method with residuals in quadruple precision."""
    truth = dense_truth(case.problem, case.lam, case.w0, case.lower_data, case.upper_data)
    at = tree.in_double(Instance(case.problem, case.lam, case.lower_data, case.upper_data))
    factors = scipy.linalg.lu_factor(np.asarray(jacobian(at, truth.w)))
    w, v = truth.w, truth.v
    for _ in range(NEWTON_STEPS):
        F, r, grad = quadruple.evaluate(residuals, at, w, v)
        w, v = (moved(x, scipy.linalg.lu_solve(factors, flat(b), trans)) for x, b, trans in ((w, F, 0), (v, r, 1)))
    return Judge(grad, truth.condition)


def moved(x, step):
    """``x - step`` in quadruple precision, ``step`` a flat array in double."""
    return jax.tree.map(lambda x, d: extended(x) - extended(d), x, ravel_pytree(quadruple.double(x))[1](step))


def flat(x):
    """Leaves in a row, in double."""
    return np.asarray(ravel_pytree(quadruple.double(x))[0])


@jax.jit
def residuals(at, w, v):
    """``F``, ``A^T v - d_w U`` and ``d_lam U - (d_lam F)^T v``, by their definitions."""
    F, transposed = jax.vjp(lambda w, lam: at.problem.lower.residual(w, lam, at.lower_data), w, at.lam)
    g, direct = jax.grad(at.problem.upper, argnums=(0, 1))(w, at.lam, at.upper_data)
    Av, Bv = transposed(v)
    return F, tree.sub(Av, g), tree.sub(direct, Bv)


@jax.jit
def jacobian(at, w):
    """The dense ``A``."""
    x, unravel = ravel_pytree(w)
    return jax.jacfwd(lambda x: ravel_pytree(at.problem.lower.residual(unravel(x), at.lam, at.lower_data))[0])(x)


def distance(a, b):
    """``|a - b|`` of two pytrees as vectors."""
    return norm(jax.tree.map(lambda x, y: extended(x) - extended(y), a, b))


def norm(a):
    """2-norm of a pytree as a vector."""
    return float(np.sqrt(sum(np.sum(np.square(extended(x))) for x in jax.tree.leaves(a))))


def extended(leaf):
    """The array in quadruple precision."""
    return np.asarray(leaf).astype(quadruple.QUAD)


def solve(A, mv, b):
    """``A^-1 b``, the product ``mv`` in quadruple precision and A in double."""
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
    K, K_upper = (np.exp(-np.sum(D * gamma, axis=-1)) for D in (lower_squares, upper_squares))
    A = (K + beta * np.eye(n)).astype(np.float64)
    w = solve(A, lambda x: K @ x + beta * x, lower.y)
    r = (K_upper @ w - upper.y) / m
    v = solve(A, lambda x: K @ x + beta * x, r @ K_upper)

    def slope(left, squares, K):
        return np.sum(left[:, None] * squares * K * w)

    slopes = [slope(v, lower_squares[..., j], K) - slope(r, upper_squares[..., j], K_upper) for j in range(len(gamma))]
    return {"gamma": np.array(slopes), "beta": -np.sum(w * v)}


def affine(lam, M, target):
    """``(M w) v`` and v."""
    gain, n = lam["gain"], len(M)
    A = (np.eye(n) - gain[:, None] * M).astype(np.float64)
    w = solve(A, lambda x: x - gain * (M @ x), lam["offset"])
    v = solve(A.T, lambda x: x - (gain * x) @ M, w - target)
    return {"gain": v * (M @ w), "offset": v}


AFFINE = {f.__name__: f for f in (ridge, biased_regularization, hyper_representation, kernel_ridge, affine)}
