"""Bounds of hypergradients in double precision, by terms evaluated in quadruple.

Where errors are themselves rounding, or A is ill-conditioned, the bound in the precision of the hypergradient is made
of rounding: ``eps cond(A)^2`` of the gradient and more. As from single to double precision
(:mod:`bilevel.certificates.double`) a more exact evaluation lowers that. The corrected point then has to be better than
float64 can hold: ``w`` and ``v`` are in quadruple precision, too, and reached by Newton steps whose linear systems are
solved in float64 (iterative refinement, Higham 2002, Chapter 12). Needs the extra ``quadruple``.
"""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bilevel import quadruple, tree
from bilevel.certificates.aposteriori import DENSE_SIZE, SHARP, Certificate, sufficient_constants, used
from bilevel.certificates.bound import EVALUATION, bound_from, evaluate, rounding_unit, sizes_of
from bilevel.certificates.constants import Constants
from bilevel.certificates.estimate import loose_solve
from bilevel.lagrangian import Instance
from bilevel.linear.factorized import Factorized, factorize

Tree = Any

ROUNDS = 8  # Newton steps
RTOL = 1e-6  # of its linear solves
MARGIN = 1e-15  # relative, for the rounding of distance and bound themselves to float64


def certify_in_quadruple(at: Instance, w: Tree, v: Tree, grad: Tree) -> Certificate:
    """Bound of the error of ``grad`` by terms in quadruple precision, from any ``(w, v)``. Eager only, in float64.

    Newton steps follow until the bound at the point is below half of its distance from ``grad``, at most eight.

    Raises
    ------
    ProblemError
        A function of the problem cannot be evaluated in quadruple precision.

    Notes
    -----
    Cost: three matvecs at 20 to 50 ns an operation for every point looked at; where there is a step n products of a
    factorization (n up to 2000), and a few products of its solves.
    """
    c = sufficient_constants(at, w)
    if c is None:
        return Certificate(jnp.asarray(jnp.nan), jnp.asarray(False), jnp.asarray(0))
    w, v = quadruple.quadruple((w, v))
    here = _look(at, c, w, v, grad)
    best, matvecs, near = here.total, here.matvecs, None
    for _ in range(ROUNDS):
        if here.bound <= SHARP * here.distance:
            break
        if near is None and tree.size(here.w) <= DENSE_SIZE:
            near, matvecs = _factorize(at, here.w), matvecs + tree.size(here.w)
        dw, dv, spent = _newton(at, near, here.w, here.v, here.F, here.r)
        w, v = jax.tree.map(operator.add, (w, v), quadruple.quadruple((dw, dv)))
        here = _look(at, c, w, v, grad)
        best, matvecs = np.fmin(best, here.total), matvecs + int(spent) + here.matvecs
    bound = best * (1 + MARGIN) if np.isfinite(best) else np.nan
    proved = bool(np.isfinite(bound)) and c.given(*used(c))
    return Certificate(jnp.asarray(bound), jnp.asarray(proved), jnp.asarray(matvecs))


class _Looked(NamedTuple):
    """A point, ``F`` and ``r = A^T v - d_w U`` there, all rounded to float64, and what it proves as a reference."""

    w: Tree
    v: Tree
    F: Tree
    r: Tree
    distance: float
    bound: float
    matvecs: int

    @property
    def total(self) -> float:
        return self.distance + self.bound


def _look(at: Instance, c: Constants, w: Tree, v: Tree, grad: Tree) -> _Looked:
    """The terms of a bound at ``(w, v)``, and that bound."""
    terms = quadruple.evaluate(_evaluate, at, w, v)
    sizes = sizes_of(w, v, terms, quadruple.norm, quadruple.dot)
    near_w = quadruple.double(w)
    bound, products = _bound(at, c, near_w, sizes, rounding_unit(w, quadruple.EPS))
    distance = quadruple.norm(jax.tree.map(operator.sub, quadruple.quadruple(grad), terms.grad))
    near_v, F, r = quadruple.double((v, terms.F, jax.tree.map(operator.sub, terms.Av, terms.g)))
    return _Looked(near_w, near_v, F, r, distance, float(bound), EVALUATION + int(products))


@jax.jit
def _newton(
    at: Instance, near: Factorized | None, w: Tree, v: Tree, F: Tree, r: Tree
) -> tuple[Tree, Tree, Int[Array, ""]]:
    """``A dw = -F``, ``A^T dv = d_w l + d2_ww l dw`` with ``d_w l = -r``, and what the two solves took."""
    _, A = at.linearize(w)
    dw, lower = loose_solve(A, tree.neg(F), RTOL, preconditioner=near)
    _, l_ww_dw = jax.jvp(jax.grad(lambda w: at.value(w, v)), (w,), (dw,))
    dv, adjoint = loose_solve(A.T, tree.sub(l_ww_dw, r), RTOL, preconditioner=near)
    return dw, dv, lower.matvecs + adjoint.matvecs + 1


@jax.jit
def _factorize(at: Instance, w: Tree) -> Factorized:
    return factorize(at.linearize(w)[1], w)


_evaluate, _bound = jax.jit(evaluate), jax.jit(bound_from)
