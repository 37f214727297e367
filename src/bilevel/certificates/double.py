"""Bounds of hypergradients in single precision, by terms evaluated in double.

The factors ``1 / mu`` of a bound make of rounding a floor of it, ``eps cond(A)^2`` of the gradient and more: in float32
that says nothing from a condition of a few hundred on, however good the hypergradient is. But a bound may be proved at
any point and in any precision. Numbers of float32 are numbers of float64 too, where the floor is a billionth of that;
what is bounded is the distance from the exact hypergradient at these numbers, the rounding of float32 included.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, subjaxprs
from jaxtyping import Array, Int

from bilevel import tree
from bilevel.certificates.aposteriori import Certificate, certify
from bilevel.lagrangian import Instance

Tree = Any


def has_double(at: Instance, w: Tree) -> bool:
    """Whether the problem is in less than float64, and its functions can be evaluated in that. Eager only."""
    if tree.dtype((w, at.lam)) == jnp.float64:
        return False
    with jax.enable_x64(True):
        try:
            traced = _functions.trace(*tree.in_double((at, w)))
        except (TypeError, ValueError):  # a function that insists on its precision
            return False
        return not _rounds(traced.jaxpr.jaxpr) and all(x.dtype == jnp.float64 for x in traced.jaxpr.out_avals)


def certify_in_double(at: Instance, w: Tree, v: Tree, grad: Tree, spent: Int[Array, ""]) -> Certificate:
    """:func:`~bilevel.certificates.aposteriori.certify` in float64, whether or not x64 is enabled. Eager only."""
    with jax.enable_x64(True):
        found = _certify(*tree.in_double((at, w, v, grad)), spent)
    return rounded_up(found, tree.dtype(grad))


def rounded_up(found: Certificate, dtype: Any) -> Certificate:
    """A certificate of float64 with a bound in ``dtype`` that is no lower."""
    bound = np.asarray(found.bound)
    lower = bound.astype(dtype) < bound
    upward = np.where(lower, np.nextafter(bound.astype(dtype), dtype.type(np.inf)), bound.astype(dtype))
    return Certificate(jnp.asarray(upward), found.proved, jnp.asarray(int(found.matvecs)))


@jax.jit
def _functions(at: Instance, w: Tree) -> tuple[Tree, Array]:
    return at.problem.lower.residual(w, at.lam, at.lower_data), at.problem.upper(w, at.lam, at.upper_data)


def _rounds(jaxpr: Jaxpr) -> bool:
    """Whether one of its operations turns float64 into a narrower floating type, rounds as if it did, or draws.

    Random numbers of another precision are other numbers.
    """
    return any(map(_narrows, jaxpr.eqns)) or any(map(_rounds, subjaxprs(jaxpr)))


def _narrows(eqn: JaxprEqn) -> bool:
    def floating(variables: list) -> set:
        dtypes = {getattr(x.aval, "dtype", jnp.dtype(bool)) for x in variables}
        return {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}

    double = {jnp.dtype("float64")}
    narrowed = double <= floating(eqn.invars) and not floating(eqn.outvars) <= double
    return narrowed or eqn.primitive.name in ("random_bits", "reduce_precision")


_certify = jax.jit(certify)
