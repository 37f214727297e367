"""The derivatives a hypergradient is made of, each along random directions, against finite differences."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.checking.differences import Differences, differentiate, rounding_noise
from bilevel.checking.report import Part
from bilevel.lagrangian import Instance

Tree = Any

DIRECTIONS = 4
SAFETY = 4.0  # times the estimated error of finite differences
ENOUGH = 0.05  # of the tolerance: where finite differences may stop
ROUNDING = 100.0  # units of rounding, times sqrt(n), that a sum of n products may be wrong by
ASIDE = 0.5  # relative distance from w at which gradients are compared that may vanish at w

# In the order of the fields of Derivatives.
CURVES = (
    ("lower-level gradient", "d_w loss and differences"),
    ("Jacobian", "d_w F and differences"),
    ("cross derivative", "d_lam F and differences"),
    ("upper gradient", "d_w U and differences"),
    ("direct term", "d_lam U and differences"),
)


class Point(NamedTuple):
    """Where derivatives are compared, and the directions, one a row of every leaf."""

    w: Tree
    v: Tree
    z_w: Tree
    z_lam: Tree


@jax.jit
def point(at: Instance, w: Tree, v: Tree, key: Array) -> Point:
    """``w`` and ``v`` with random directions; a random ``v`` where it is zero or not finite."""
    for_v, for_w, for_lam = jax.random.split(key, 3)
    usable = tree.all_finite(v) & (tree.norm(v) > 0)
    v = tree.where(usable, v, tree.standard_normal(for_v, v))
    return Point(w, v, directions(for_w, w), directions(for_lam, at.lam))


def directions(key: Array, like: Tree) -> Tree:
    """Random signs times the size of each entry, ``DIRECTIONS`` of them.

    A step of h changes every entry by the part h of itself, so that no sign turns and units do not matter; an
    entry of zero has the size of its leaf. The mean of ``<g, z>^2`` is the square of the norm of g in these units.
    """
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    signs = [jax.random.rademacher(k, (DIRECTIONS, *x.shape), x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten([s * _size(x)[None] for s, x in zip(signs, leaves, strict=True)])


def _size(x: Float[Array, "..."]) -> Float[Array, "..."]:
    typical = jnp.sqrt(jnp.mean(jnp.square(x)))
    return jnp.where(x != 0, jnp.abs(x), jnp.where(typical > 0, typical, 1.0))


class Derivatives(NamedTuple):
    """The verdict on every derivative; there is no lower-level gradient but of a minimization."""

    lower_gradient: Part | None
    jacobian: Part
    cross_derivative: Part
    upper_gradient: Part
    direct_term: Part


def compare_derivatives(at: Instance, where: Point, tol: float) -> Derivatives:
    """Every derivative of the problem's functions against finite differences of what it is a derivative of."""
    eps = tree.eps(at.lam)

    def f(t: float) -> np.ndarray:
        return np.asarray(_values(at, where, t), np.float64)

    found = differentiate(f, rounding_noise(f, eps), lambda slope: ENOUGH * tol * np.abs(slope), eps)
    slopes = np.asarray(_slopes(at, where), np.float64)
    parts = [
        against_differences(name, what, slopes[:, row], Differences(*(x[:, row] for x in found)), tol)
        for row, (name, what) in enumerate(CURVES)
    ]
    compared = Derivatives(*parts)
    return compared if at.problem.lower.kind == "minimization" else compared._replace(lower_gradient=None)


def against_differences(name: str, what: str, slopes: np.ndarray, found: Differences, tol: float) -> Part:
    """Derivatives along all directions against their finite differences, relative to the larger of the two."""
    size = max(_rms(slopes), _rms(found.slope))
    if size == 0:
        return Part(name, what, 0.0, tol)
    if not np.isfinite(slopes).all():
        return Part(name, what, np.inf, tol, "The derivative is not finite.")
    if not np.isfinite(found.slope).all():
        return Part(name, what, np.nan, np.inf, "The finite differences do not exist or are not finite.")
    return Part(name, what, _rms(slopes - found.slope) / size, tol + SAFETY * _rms(found.error) / size)


def compare_symmetry(at: Instance, where: Point) -> Part | None:
    """``<A x, y>`` against ``<x, A y>`` for all pairs of directions, where A is held to be symmetric."""
    if not at.problem.lower.symmetric:
        return None
    M = np.asarray(_pairings(at, where), np.float64)
    size = _rms(M)
    error = 0.0 if size == 0 else _rms(M - M.T) / size
    limit = ROUNDING * tree.eps(where.w) * np.sqrt(tree.size(where.w))
    return Part("symmetry", "<A x, y> and <x, A y>", error, float(limit))


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _along(x: Tree, z: Tree, t: Any) -> Tree:
    return tree.axpy(t, z, x)


@jax.jit
def _values(at: Instance, where: Point, t: Any) -> Float[Array, "directions curves"]:
    """The functions of :data:`CURVES` at ``t`` on the lines through the point."""
    problem, lam, lower_data, upper_data = at
    w, v, z_w, z_lam = where
    lower = problem.lower

    def curves(z: Tree, z_lam: Tree):
        aside = _along(_along(w, z, ASIDE), z, t)
        loss = lower.function(aside, lam, lower_data) if lower.kind == "minimization" else jnp.zeros(())
        return jnp.stack([
            loss,
            tree.dot(v, lower.residual(_along(w, z, t), lam, lower_data)),
            tree.dot(v, lower.residual(w, _along(lam, z_lam, t), lower_data)),
            problem.upper(aside, lam, upper_data),
            problem.upper(w, _along(lam, z_lam, t), upper_data),
        ])  # fmt: skip

    return jax.vmap(curves)(z_w, z_lam)


@jax.jit
def _slopes(at: Instance, where: Point) -> Float[Array, "directions curves"]:
    """Their derivatives at zero, from what the methods use."""
    problem, lam, lower_data, upper_data = at
    w, v, z_w, z_lam = where
    lower = problem.lower
    _, A = at.linearize(w)
    cross = jax.grad(lambda lam: lower.pairing(v, w, lam, lower_data))(lam)
    direct = jax.grad(problem.upper, argnums=1)(w, lam, upper_data)

    def slopes(z: Tree, z_lam: Tree):
        aside = _along(w, z, ASIDE)
        loss = tree.dot(lower.residual(aside, lam, lower_data), z) if lower.kind == "minimization" else jnp.zeros(())
        upper = jax.grad(problem.upper)(aside, lam, upper_data)
        return jnp.stack([
            loss, tree.dot(v, A.mv(z)), tree.dot(cross, z_lam), tree.dot(upper, z), tree.dot(direct, z_lam),
        ])  # fmt: skip

    return jax.vmap(slopes)(z_w, z_lam)


@jax.jit
def _pairings(at: Instance, where: Point) -> Float[Array, "directions directions"]:
    """``<z_i, A z_j>``."""
    _, A = at.linearize(where.w)
    products = jax.vmap(A.mv)(where.z_w)
    return jax.vmap(lambda z: jax.vmap(partial(tree.dot, z))(products))(where.z_w)
