"""The faults that every library is given: functions for any array module, numbers and truths in NumPy.

Functions take ``xp``, which is ``jax.numpy`` or ``torch``. All upper objectives are ``|w - t|^2 / 2``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

N = 20


def quadratic(xp, w, lam, data):
    H, d, b, scale = data
    return scale * (0.5 * w @ (H @ w) + 0.5 * lam * xp.sum(d * w**2) - b @ w)


def exponential_tail(xp, w, lam, _data):
    return xp.sum(xp.exp(-lam * w))


def rosenbrock(_xp, w, lam, _data):
    return (lam - w[0]) ** 2 + 100.0 * (w[1] - w[0] ** 2) ** 2


def two_wells(_xp, w, lam, _data):
    return 0.5 * lam * w[0] ** 2 - w[1] ** 2 + w[1] ** 4


def bilinear(_xp, w, lam, data):
    M, b = data
    return lam * (M @ w) + b


@dataclass(frozen=True)
class Fault:
    """A fault: ``truth`` is None where there is no hypergradient; ``step`` the one a user gives, ``smoothness`` L."""

    name: str
    kind: str  # "minimization" or "fixed_point"
    function: Any
    data: tuple
    w0: np.ndarray
    t: np.ndarray
    truth: float | None
    step: float | None = None
    smoothness: float = 1.0
    dtype: str = "float64"
    lam: float = 1.0


def of_eigenvalues(values):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(len(values), len(values))))[0]
    A = Q @ np.diag(values) @ Q.T
    return (A + A.T) / 2


def quadratic_fault(name, values, *, exists=True, rotated=True, b=None, t=None, scale=1.0, dtype="float64", **options):
    """Hessian ``A = H + lam diag(d)`` at ``lam = 1``; ``grad = -(w - t)^T A^{-1} d w``."""
    A = of_eigenvalues(values) if rotated else np.diag(values)
    n = len(A)
    d = np.full(n, 0.25 * np.min(np.abs(np.diag(A)))) if rotated else 0.5 * np.diag(A)
    b, t = np.linspace(0.5, 1.5, n) if b is None else b, np.ones(n) if t is None else t
    w0 = options.pop("w0", np.zeros(n))
    numbers = tuple(np.asarray(x, dtype) for x in (A - np.diag(d), d, b, t))
    H, d, b, t = (x.astype(np.float64) for x in numbers)
    A, truth = H + np.diag(d), None
    if exists:
        w = refined(A, b)
        truth = float(-(w - t) @ refined(A, d * w))
    data = (*numbers[:3], np.asarray(scale, dtype))
    smoothness = float(scale * np.max(np.abs(values))) or 1.0
    return Fault(
        name, "minimization", quadratic, data, w0.astype(dtype), numbers[3], truth, dtype=dtype, smoothness=smoothness,
        **options,
    )  # fmt: skip


def map_fault(name, M, exists=True):
    """``grad = (w - t)^T (I - M)^{-1} M w`` at ``lam = 1``."""
    n = len(M)
    b, t, A = np.linspace(0.5, 1.5, n), np.ones(n), np.eye(n) - M
    truth = None
    if exists:
        w = refined(A, b)
        truth = float((w - t) @ refined(A, M @ w))
    return Fault(name, "fixed_point", bilinear, (M, b), np.zeros(n), t, truth)


def refined(A, b):
    x = np.linalg.solve(A, b)
    return x + np.linalg.solve(A, (b.astype(np.longdouble) - A.astype(np.longdouble) @ x).astype(np.float64))


def rotations(n, radius):
    angles = np.linspace(0.1, 2 * np.pi - 0.1, n // 2)
    turn = [[0, -1], [1, 0]]
    return radius * (np.kron(np.diag(np.cos(angles)), np.eye(2)) + np.kron(np.diag(np.sin(angles)), turn))


def faults():
    """All rows of the table."""
    mild, ones, inside = np.linspace(1, 10, N), np.ones(N), np.linspace(-0.5, 0.5, N - 2)
    hidden, b = np.append(-1.0, mild[1:]), np.append(0.0, ones[1:])
    two, t = np.array([1.0, -1.0]), np.array([0.3, 0.2])
    return [
        quadratic_fault("well conditioned", mild),
        quadratic_fault("Hessian = identity", ones),
        quadratic_fault("condition 1e3", np.logspace(-3, 0, N)),
        quadratic_fault("condition 1e5", np.logspace(-5, 0, N)),
        quadratic_fault("condition 1e8", np.logspace(-8, 0, N)),
        quadratic_fault("loss times 1e-10", mild, scale=1e-10),
        quadratic_fault("loss times 1e8", mild, scale=1e8),
        quadratic_fault("given step 100 times too long", mild, step=10.0),
        quadratic_fault("float32, condition 1e4", np.logspace(-4, 0, N), dtype="float32"),
        # w = (lam, lam^2): grad = (lam - t_0) + 2 lam (lam^2 - t_1).
        Fault(
            "Rosenbrock", "minimization", rosenbrock, (), np.array([-1.2, 1.0]), t, (1 - 0.3) + 2 * (1 - 0.2),
            smoothness=1000.0,
        ),
        map_fault("map rotating, radius 0.99", rotations(N, 0.99)),
        map_fault("map rotating, radius 1.5", rotations(N, 1.5)),
        map_fault("map, eigenvalues -3 and 2", of_eigenvalues(np.append(inside, [-3.0, 2.0]))),
        map_fault("map w + b, no fixed point", np.eye(N), exists=False),
        map_fault("map with eigenvalue 1", of_eigenvalues(np.append(inside, [1.0, 0.6])), exists=False),
        Fault("start at a saddle", "minimization", two_wells, (), np.zeros(2), t, None, smoothness=10.0),
        quadratic_fault("saddle, seen by no vector", hidden, rotated=False, b=b, t=2 * b, exists=False),
        quadratic_fault("singular Hessian, many minima", np.append(0.0, mild[1:]), rotated=False, b=b, exists=False),
        quadratic_fault("unbounded below", hidden, exists=False),
        Fault("minimum at infinity", "minimization", exponential_tail, (), two, t, None, smoothness=3.0),
        quadratic_fault("NaN in the data", mild, b=np.nan * ones, exists=False),
    ]  # fmt: skip
