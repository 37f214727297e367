"""Faults with an affine residual: maps and quadratic losses that the data make hard or impossible.

All of one group are of one shape and share their compiled programs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl


class Fault(NamedTuple):
    """One problem at one ``lam``, in float64 NumPy; what follows the data says what may come back."""

    problem: Any
    lam: Any
    w0: Any
    lower_data: Any = None
    upper_data: Any = None
    v0: Any = None
    near: Any = None  # where the oracle starts, a list for several solutions; default w0
    exists: bool = True
    refusable: bool = False  # may be refused although the hypergradient exists
    exact: bool = False  # the truth is wanted to the last digits of float64

    def cast(self, dtype):
        """The same fault with floating leaves of this dtype."""

        def to(x):
            x = np.asarray(x)
            return jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else x.dtype)

        lam, w0, v0 = (jax.tree.map(to, x) for x in (self.lam, self.w0, self.v0))
        lower_data, upper_data = jax.tree.map(to, (self.lower_data, self.upper_data))
        return self._replace(lam=lam, w0=w0, v0=v0, lower_data=lower_data, upper_data=upper_data)


def bilinear_map(w, lam, data):
    M, b = data
    return lam * (M @ w) + b


def bilinear_root(w, lam, data):
    return w - bilinear_map(w, lam, data)


def quadratic(w, lam, data):
    H, d, b, scale = data
    return scale * (0.5 * w @ (H @ w) + 0.5 * lam * jnp.sum(d * w**2) - b @ w)


def target(w, lam, data):
    t, slope = data
    return 0.5 * jnp.sum((w - t) ** 2) + slope * lam


MAP = bl.Problem(bl.fixed_point(bilinear_map), target)
SYMMETRIC_ROOT = bl.Problem(bl.root(bilinear_root, symmetric=True), target)
QUADRATIC = bl.Problem(bl.minimization(quadratic), target)


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def with_eigenvalues(values, seed=0, skew=0.0):
    """``Q (diag(values) + skew N) Q^T`` with a random N above the diagonal: far from normal where skew is large."""
    n, Q = len(values), orthogonal(len(values), seed)
    N = np.triu(np.random.default_rng(seed + 1).normal(size=(n, n)), 1) / np.sqrt(n)
    return Q @ (np.diag(values) + skew * N) @ Q.T


def with_singular_values(values):
    n = len(values)
    return orthogonal(n, 1) @ np.diag(values) @ orthogonal(n, 2)


def jordan(n, eigenvalue, coupling):
    return eigenvalue * np.eye(n) + coupling * np.eye(n, k=1)


def rotations(n, radius, angles):
    """Rotations of planes by the angles, times the radius: eigenvalues on a circle."""
    c, s = radius * np.cos(np.resize(angles, n // 2)), radius * np.sin(np.resize(angles, n // 2))
    return np.kron(np.diag(c), np.eye(2)) + np.kron(np.diag(s), [[0, -1], [1, 0]])


def mapping(M, problem=MAP, exists=True, b=None):
    """Fixed point of ``lam M w + b`` at ``lam = 1``."""
    n = len(M)
    b = np.linspace(0.5, 1.5, n) if b is None else b
    return Fault(problem, 1.0, np.zeros(n), (M, b), (np.ones(n), 0.0), exists=exists, exact=exists)


def maps(n):
    gauss = np.random.default_rng(2).normal(size=(n, n)) / np.sqrt(n)
    circle = np.linspace(0.1, 2 * np.pi - 0.1, n // 2)
    inside = np.linspace(-0.5, 0.5, n - 1)
    on_one = np.concatenate([[1.0], inside])
    return {
        "nonsymmetric": mapping(0.9 * gauss),
        "non-normal": mapping(with_eigenvalues(np.append(inside, 0.2), skew=3.0)),
        "Jordan block": mapping(jordan(n, 0.5, 0.45)),
        "transient growth": mapping(jordan(n, 0.5, 2.0 if n < 10 else 0.52)),
        "rotating, radius 0.99": mapping(rotations(n, 0.99, circle)),
        "rotating, radius 1": mapping(rotations(n, 1.0, circle + 0.05)),
        "rotating, radius 1.5": mapping(rotations(n, 1.5, circle)),
        "rotating by a small angle": mapping(rotations(n, 0.99, [0.02])),
        "oscillating, -0.99": mapping(with_eigenvalues(np.linspace(-0.99, 0.5, n), skew=0.5)),
        "oscillating, -1": mapping(with_eigenvalues(np.linspace(-1, 0.5, n), skew=0.5)),
        "oscillating, -1.01": mapping(with_eigenvalues(np.linspace(-1.01, 0.5, n), skew=0.5)),
        "no contraction": mapping(3.0 * gauss),
        "no contraction in two directions": mapping(with_eigenvalues(np.append(inside[1:], [-3, 2]), skew=0.5)),
        "twice a permutation": mapping(2 * np.roll(np.eye(n), 1, axis=0)),
        "condition 1e4": mapping(np.eye(n) - with_singular_values(np.logspace(-4, 0, n))),
        "condition 1e8": mapping(np.eye(n) - with_singular_values(np.logspace(-8, 0, n))),
        "slow, 1 - 1e-6": mapping(with_eigenvalues(np.append(inside, 1 - 1e-6), skew=1.0)),
        "eigenvalue 1": mapping(with_eigenvalues(on_one), exists=False),
        "eigenvalue 1, many solutions": mapping(np.diag(on_one), exists=False, b=np.append([0.0], np.ones(n - 1))),
        "identity": mapping(np.eye(n), exists=False),
        "nilpotent residual": mapping(np.eye(n) - np.eye(n, k=1), exists=False),
        "NaN": mapping(np.full((n, n), np.nan), exists=False),
        "infinity": mapping(np.full((n, n), np.inf), exists=False),
    }


def symmetric_roots(n):
    inside = np.linspace(-0.5, 0.5, n - 2)
    return {
        "definite": mapping(with_eigenvalues(np.linspace(-0.9, 0.9, n)), SYMMETRIC_ROOT),
        "indefinite": mapping(with_eigenvalues(np.append(inside, [-3, 2])), SYMMETRIC_ROOT),
        "negative definite": mapping(with_eigenvalues(np.linspace(1.5, 4.0, n)), SYMMETRIC_ROOT),
        "off-diagonal blocks": mapping(np.eye(n) - np.kron([[0, 1], [1, 0]], np.eye(n // 2)), SYMMETRIC_ROOT),
        "singular": mapping(with_eigenvalues(np.append(inside, [1.0, 0.6])), SYMMETRIC_ROOT, exists=False),
    }


def loss(values, *, scale=1.0, b=None, t=None, slope=0.0, rotated=True, exists=True, **options):
    """Quadratic loss at ``lam = 1`` with the Hessian ``scale Q diag(values) Q^T``."""
    values = np.asarray(values, float)
    n = len(values)
    A = with_eigenvalues(values) if rotated else np.diag(values)
    d = 0.5 * values if not rotated else np.full(n, 0.25 * np.min(np.abs(np.diag(A))))
    data = ((A + A.T) / 2 - np.diag(d), d, np.linspace(0.5, 1.5, n) if b is None else b, scale)
    fault = Fault(QUADRATIC, 1.0, np.zeros(n), data, (np.ones(n) if t is None else t, slope), exists=exists)
    return fault._replace(**({"exact": exists} | options))


def quadratics(n):
    mild, harsh, ones = np.linspace(1, 10, n), np.logspace(-8, 0, n), np.ones(n)
    A, b = with_eigenvalues(mild), np.linspace(0.5, 1.5, n)
    w = np.linalg.solve(A, b)
    v, wrong = np.linalg.solve(A, w - 1.0), np.random.default_rng(5).normal(size=n)
    implicit = -0.25 * np.min(np.abs(np.diag(A))) * w @ v
    without = np.append(0.0, mild[1:]), orthogonal(n) @ np.append(0.0, ones[1:])
    negative = np.append(-1.0, mild[1:])
    return {
        "ordinary": loss(mild),
        "condition 1e4": loss(np.logspace(-4, 0, n)),
        "condition 1e8": loss(harsh),
        "condition 1e8, one small eigenvalue": loss(np.append(1e-8, np.linspace(0.5, 1, n - 1))),
        "condition 1e8, one large eigenvalue": loss(np.append(1e8, np.linspace(0.5, 1, n - 1))),
        "variables of units 1e-6 to 1e6": loss(np.logspace(-6, 6, n), rotated=False),
        "loss times 1e-10": loss(mild, scale=2.0**-33),
        "loss times 1e8": loss(mild, scale=2.0**27),
        "condition 1e8, loss times 1e-10": loss(harsh, scale=2.0**-33),
        "condition 1e8, loss times 1e8": loss(harsh, scale=2.0**27),
        "w of 1e8": loss(mild, b=1e8 * ones),
        "w of 1e-8": loss(mild, b=1e-8 * ones, t=1e-8 * ones),
        "start at 1e8": loss(mild, w0=1e8 * ones),
        "solution zero": loss(mild, b=0 * ones, w0=ones),
        "start at the solution zero": loss(mild, b=0 * ones),
        "start at the solution": loss(mild, w0=w),
        "start at solution and adjoint": loss(mild, w0=w, v0=v),
        "wrong adjoint": loss(mild, w0=w, v0=wrong),
        "wrong solution, right adjoint": loss(mild, v0=v),
        "huge adjoint": loss(mild, v0=1e10 * wrong),
        "condition 1e8, wrong adjoint": loss(harsh, v0=wrong),
        "perfect fit": loss(mild, t=w),
        "terms that cancel": loss(mild, slope=-implicit * (1 - 1e-6)),
        "slope 1e8": loss(mild, slope=1e8),
        "NaN in v0": loss(mild, v0=np.nan * ones, refusable=True),
        "infinity in w0": loss(mild, w0=np.inf * ones, refusable=True),
        "NaN in lam": loss(mild, lam=np.nan, exists=False),
        "NaN in the data": loss(mild, b=np.nan * ones, exists=False),
        "infinity in the upper data": loss(mild, t=np.inf * ones, exists=False),
        "NaN in the direct term": loss(mild, slope=np.nan, exists=False),
        "singular": loss(without[0], exists=False),
        "singular, many solutions": loss(without[0], b=without[1], exists=False),
        "singular, seen by no vector": loss(without[0], b=without[1], t=2 * without[1], exists=False),
        "half of the directions flat": loss(np.repeat([0.0, 1.0], n // 2), rotated=False, b=0 * ones, exists=False),
        "indefinite": loss(negative, exists=False),
        "indefinite, loss times 1e-10": loss(negative, scale=2.0**-33, exists=False),
        "indefinite, seen by no vector": loss(negative, b=without[1], t=2 * without[1], exists=False),
        "slightly indefinite, seen by no vector": loss(
            np.append(-1e-3, mild[1:]), rotated=False, b=np.append(0, ones[1:]), t=np.append(0, ones[1:]), exists=False
        ),
        "start at a saddle": loss(negative, b=0 * ones, exists=False),
        "negative definite": loss(-mild, exists=False),
        "zero Hessian": loss(0 * mild, rotated=False, exists=False),
    }
