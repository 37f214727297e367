"""The table of problem families that the laws go over, and a dense oracle apart from all solvers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree

from bilevel.models import catalog
from bilevel.problems import Lower, Problem


class Tags(NamedTuple):
    """What is known of a family: A symmetric, F a gradient, F affine in w."""

    symmetric: bool
    minimization: bool
    affine: bool


class Case(NamedTuple):
    """One problem at one ``lam``."""

    problem: Problem
    lam: Any
    w0: Any
    lower_data: Any
    upper_data: Any
    tags: Tags


class Truth(NamedTuple):
    """Hypergradient, solution and adjoint to rounding in float64, pytrees of NumPy arrays, and cond(A)."""

    grad: Any
    w: Any
    v: Any
    condition: float


class Family(NamedTuple):
    """A family of the catalog, and its tags."""

    name: str
    tags: Tags

    def __call__(self, seed: int, dtype: Any = None, n: int = 20, condition: float = 10.0) -> Case:
        """Case with about ``n`` lower-level unknowns, of this condition number as its sampler means it."""
        return Case(*catalog.draw(self.name, size=n, condition=condition, seed=seed, dtype=dtype), self.tags)


_QUADRATIC = Tags(symmetric=True, minimization=True, affine=True)
_CONVEX = Tags(symmetric=True, minimization=True, affine=False)
_MAP = Tags(symmetric=False, minimization=False, affine=False)

TAGS = {
    "ridge": _QUADRATIC,
    "logistic": _CONVEX,
    "multinomial": _CONVEX,  # pytrees of several leaves
    "kernel_ridge": _QUADRATIC,
    "biased_regularization": _QUADRATIC,
    "hyper_representation": _QUADRATIC,
    "equilibrium": _MAP,
    "affine": _MAP._replace(affine=True),
}
FAMILIES = {name: Family(name, TAGS[name]) for name in catalog.CATALOG}


def dense_truth(problem: Problem, lam: Any, w0: Any, lower_data: Any, upper_data: Any) -> Truth:
    """Hypergradient by dense linear algebra in float64, by nothing of the library's solvers.

    Newton's method on F, ``A = jacfwd(F)``, and LAPACK's LU with one step of iterative refinement. Inputs of
    lower precision are read as the float64 numbers they are. Needs x64.
    """
    lam, w0, lower_data, upper_data = jax.tree.map(_double, (lam, w0, lower_data, upper_data))
    start, unravel = ravel_pytree(w0)
    at = (problem.lower, w0, lam, lower_data)
    x = newton(lambda x: np.asarray(_residual(x, *at)), lambda x: np.asarray(_jacobian(x, *at)), np.asarray(start))
    A = np.asarray(_jacobian(x, *at))
    w = unravel(jnp.asarray(x))
    g, direct = _upper_gradients(problem, w, lam, upper_data)
    v = solve(A.T, np.asarray(ravel_pytree(g)[0]))
    indirect = _adjoint_product(jnp.asarray(v), x, *at)
    grad = jax.tree.map(lambda a, b: np.asarray(a - b), direct, indirect)
    w, v = jax.tree.map(np.asarray, (w, unravel(jnp.asarray(v))))
    return Truth(grad, w, v, float(np.linalg.cond(A)))


def _flat_residual(x: Any, lower: Lower, like: Any, lam: Any, data: Any) -> Any:
    """``F`` on flat vectors, by the definition of each kind of problem."""
    w = ravel_pytree(like)[1](x)
    if lower.kind == "minimization":
        return ravel_pytree(jax.grad(lower.function)(w, lam, data))[0]
    value = ravel_pytree(lower.function(w, lam, data))[0]
    return x - value if lower.kind == "fixed_point" else value


_residual = jax.jit(_flat_residual)
_jacobian = jax.jit(jax.jacfwd(_flat_residual))


@jax.jit
def _adjoint_product(v: Any, x: Any, lower: Lower, like: Any, lam: Any, data: Any) -> Any:
    """``(d_lam F)^T v``."""
    return jax.vjp(lambda lam: _flat_residual(x, lower, like, lam, data), lam)[1](v)[0]


@jax.jit
def _upper_gradients(problem: Problem, w: Any, lam: Any, data: Any) -> Any:
    """``d_w U`` and ``d_lam U``."""
    return jax.grad(problem.upper, argnums=(0, 1))(w, lam, data)


def newton(residual: Callable, jacobian: Callable, x: np.ndarray, steps: int = 100) -> np.ndarray:
    """Root of F by Newton's method with halved steps, until rounding ends the descent of ``|F|``."""
    F = residual(x)
    for _ in range(steps):
        direction = solve(jacobian(x), F)
        for halving in range(30):
            trial = x - 0.5**halving * direction
            F_trial = residual(trial)
            if np.linalg.norm(F_trial) < (1.0 - 0.25 * 0.5**halving) * np.linalg.norm(F):
                break
        else:
            return x
        x, F = trial, F_trial
    raise AssertionError(f"Newton's method has not ended in {steps} steps, at |F| = {np.linalg.norm(F):.1e}.")


def solve(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``A^{-1} b`` by LU and one step of iterative refinement."""
    lu = scipy.linalg.lu_factor(A)
    x = scipy.linalg.lu_solve(lu, b)
    return x + scipy.linalg.lu_solve(lu, b - A @ x)


def relative_distance(a: Any, b: Any) -> float:
    """``|a - b| / |b|`` of two pytrees as vectors, in float64."""
    a, b = (np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(t)]) for t in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _double(leaf: Any) -> Any:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
