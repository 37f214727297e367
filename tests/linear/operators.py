"""The table of matrices that the laws of the linear solvers go over, and one compiled, counted solve."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import linear_call

import bilevel as bl
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.operator import LinearOperator
from bilevel.status import SolveInfo, Status

N = 12


class Operator(NamedTuple):
    """A matrix and what a solver may know of it."""

    matrix: np.ndarray
    symmetric: bool = False
    definite: bool = False
    contraction: bool = False  # I - step A is one, in the 2-norm
    step: float = 1.0
    float64_only: bool = False

    @property
    def condition(self) -> float:
        return float(np.linalg.cond(self.matrix))


class Solution(NamedTuple):
    """What a solve returned, and the products with A that really happened."""

    x: Any
    info: SolveInfo
    products: int

    @property
    def status(self) -> Status:
        return Status(int(self.info.status))


def orthogonal(seed: int, n: int = N) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def with_spectrum(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    Q = orthogonal(seed, len(eigenvalues))
    A = (Q * eigenvalues) @ Q.T
    return (A + A.T) / 2


def spd(condition: float, n: int = N) -> Operator:
    return Operator(with_spectrum(np.geomspace(1.0 / condition, 1.0, n)), True, True, True)


def _contraction(q: float) -> np.ndarray:
    J = np.random.default_rng(1).normal(size=(N, N))
    return np.eye(N) - q * J / np.linalg.norm(J, 2)


def _non_normal() -> np.ndarray:
    return np.eye(N) - np.diag(np.full(N - 1, 0.9), 1) - np.diag(np.full(N - 2, 0.4), 2)


def _rotation(angle: float) -> np.ndarray:
    plane = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.kron(np.eye(N // 2), plane)


OPERATORS = {
    "identity": Operator(np.eye(N), True, True, True),
    "spd 1e1": spd(1e1),
    "spd 1e3": spd(1e3),
    "spd 1e6": spd(1e6)._replace(float64_only=True),
    "spd tiny": Operator(1e-10 * spd(1e1).matrix, True, True, True, 1e10),
    "spd huge": Operator(1e8 * spd(1e1).matrix, True, True, True, 1e-8),
    "contraction": Operator(_contraction(0.5), contraction=True),
    "non-normal": Operator(_non_normal()),
    "rotation": Operator(_rotation(1.2), contraction=True, step=0.3),
    "rotation, far": Operator(_rotation(2.5)),
}
SPD = [name for name, operator in OPERATORS.items() if operator.definite]

_products = 0


def _tick(_) -> None:
    global _products
    _products += 1


def _counted(A, x):
    jax.debug.callback(_tick, x[0])
    return A @ x


def _counted_transpose(A, x):
    return _counted(A.T, x)


@partial(jax.jit, static_argnames=("symmetric", "definite", "transposed", "transposable"))
def _solve(solver, A, b, x0, rtol, steps, step, P, *, symmetric, definite, transposed, transposable):
    mv, mv_transpose = partial(_counted, A), partial(_counted_transpose, A)
    if transposable:  # by jax.linear_transpose, which knows no debug callbacks; then not in a block
        mv = partial(linear_call, _counted, _counted_transpose, A)
        mv_transpose = partial(linear_call, _counted_transpose, _counted, A)
    precondition = None if P is None else lambda r: P @ r
    operator = LinearOperator(mv, mv_transpose, symmetric, definite, step)
    operator = operator.T if transposed else operator
    return solver(operator, b, x0, preconditioner=precondition, rtol=rtol, steps=steps)


def solve(
    solver,
    operator: Operator,
    b,
    dtype,
    *,
    x0=None,
    rtol=None,
    steps=None,
    P=None,
    transposed=False,
    transposable=False,
) -> Solution:
    """``solver`` on ``operator``, compiled once for all matrices of one size, its products with A and A^T counted."""
    jax.effects_barrier()
    before = _products
    A, b, x0, rtol, step, P = (
        None if a is None else jnp.asarray(a, dtype) for a in (operator.matrix, b, x0, rtol, operator.step, P)
    )
    ignores_flags = isinstance(solver, bl.GMRES | bl.Richardson | NormalCG) and solver.preconditioner is None
    reads_flags = not ignores_flags or step is None
    flags = {"symmetric": operator.symmetric and reads_flags, "definite": operator.definite and reads_flags}
    flags |= {"transposed": transposed, "transposable": transposable}
    x, info = jax.block_until_ready(_solve(solver, A, b, x0, rtol, steps, step, P, **flags))
    jax.effects_barrier()
    return Solution(x, info, _products - before)


def rhs(n: int = N, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def in_dtype(a: np.ndarray, dtype) -> np.ndarray:
    """The float64 numbers that ``a`` becomes in ``dtype``."""
    return np.asarray(np.asarray(a, dtype), np.float64)


def truth(operator: Operator, b, dtype) -> np.ndarray:
    return np.linalg.solve(in_dtype(operator.matrix, dtype), in_dtype(b, dtype))


def residual(operator: Operator, b, x, dtype) -> float:
    """``norm(b - A x)`` in float64."""
    return float(np.linalg.norm(in_dtype(b, dtype) - in_dtype(operator.matrix, dtype) @ np.asarray(x, np.float64)))
