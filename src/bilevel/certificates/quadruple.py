"""Bounds of hypergradients in double precision, by terms evaluated in quadruple.

Where errors are themselves rounding, or A is ill-conditioned, the bound in the precision of the hypergradient is made
of rounding: ``eps cond(A)^2`` of the gradient and more. As from single to double precision
(:mod:`bilevel.certificates.double`) a more exact evaluation lowers that. The corrected point then has to be better than
float64 can hold: ``w`` and ``v`` are in quadruple precision, too, and reached by Newton steps whose linear systems are
solved in float64 (iterative refinement, Higham 2002, Chapter 12). Needs the extra ``quadruple``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bilevel import quadruple, tree
from bilevel.certificates.aposteriori import DENSE_SIZE, SHARP, Certificate, sufficient_constants, used
from bilevel.certificates.bound import EVALUATION, Sizes, Terms, bound_from, evaluate, rounding_unit
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
    Cost: n products of a factorization (n up to 2000), and for each point looked at a few solves with that, and three
    matvecs at 20 to 50 ns an operation.
    """
    c = sufficient_constants(at, w)
    if c is None:
        return Certificate(jnp.asarray(jnp.nan), jnp.asarray(False), jnp.asarray(0))
    near, matvecs = (_factorize(at, w), tree.size(w)) if tree.size(w) <= DENSE_SIZE else (None, 0)
    w, v, grad = quadruple.quadruple((w, v, grad))
    u, best = rounding_unit(w, quadruple.EPS), np.inf
    for _ in range(1 + ROUNDS):
        terms = quadruple.evaluate(_evaluate, at, w, v)
        r = jax.tree.map(np.subtract, terms.Av, terms.g)
        near_w, near_v, F, r_double = quadruple.double((w, v, terms.F, r))
        own, products = _bound(at, c, near_w, _sizes(w, v, terms, r), u)
        distance = quadruple.norm(jax.tree.map(np.subtract, grad, terms.grad))
        best, matvecs = np.fmin(best, distance + float(own)), matvecs + EVALUATION + int(products)
        if own <= SHARP * distance:
            break
        dw, dv, spent = _newton(at, near, near_w, near_v, F, r_double)
        w, v = jax.tree.map(np.add, (w, v), quadruple.quadruple((dw, dv)))
        matvecs += int(spent)
    bound = best * (1 + MARGIN) if np.isfinite(best) else np.nan
    proved = bool(np.isfinite(bound)) and c.given(*used(c))
    return Certificate(jnp.asarray(bound), jnp.asarray(proved), jnp.asarray(matvecs))


def _sizes(w: Tree, v: Tree, terms: Terms, r: Tree) -> Sizes:
    """What of the terms enters a bound, ``r = A^T v - d_w U``."""
    w_size, v_size, F, residual, g, direct = map(quadruple.norm, (w, v, terms.F, r, terms.g, terms.direct))
    return Sizes(w_size, v_size, F, residual, g, direct, energy=float(quadruple.dot(v, terms.Av)))


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
