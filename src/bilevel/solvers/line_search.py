"""Backtracking along a direction."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.linear.operator import divisor
from bilevel.loops import bounded_while

Tree = Any

MAX_TRIALS = 60
HALVINGS = 10  # after so many the step falls by tens: a Newton step from a flat start may be 1e20 times too long
DECREASE = 1e-4  # Armijo's constant: the part of the predicted decrease that must come


def backtrack(
    function: Callable[[Tree], Float[Array, ""]],
    w: Tree,
    p: Tree,
    acceptable: Callable[[Any, Any], Bool[Array, ""]],
    size: Any,
    extend: Any = False,
) -> tuple[Float[Array, ""], Float[Array, ""], Int[Array, ""]]:
    """First ``alpha`` in 1, 1/2, 1/4, ... for which ``acceptable(alpha, function(w + alpha p))``.

    Where ``extend`` is true and one is acceptable, alpha is doubled until the function rises: along negative
    curvature p has no length of its own. Returns ``alpha``, 0 where none was found that moves ``w``, of this ``size``,
    by more than rounding, the function there, and the number of evaluations. NaN is never acceptable.
    """
    shortest = tree.eps(w) * size / divisor(tree.norm(p))

    def trial(alpha):
        return function(tree.axpy(alpha, p, w))

    def shorten(carry):
        alpha, _, count = carry
        alpha = alpha * jnp.where(count <= HALVINGS, 0.5, 0.1)
        return alpha, trial(alpha), count + 1

    def unacceptable(carry):
        return ~acceptable(carry[0], carry[1]) & (carry[0] > shortest)

    one = jnp.ones((), tree.dtype(w))
    first = (one, trial(one), jnp.asarray(1))
    alpha, value, count = bounded_while(unacceptable, shorten, first, MAX_TRIALS)
    alpha = jnp.where(acceptable(alpha, value), alpha, 0.0)
    return _extend(trial, alpha, value, count, extend & (alpha == 1))


def _extend(trial, alpha, value, count, wanted):
    """Double alpha until the function rises, where that is wanted."""

    def double(carry):
        alpha, value, count, _ = carry
        new = trial(2 * alpha)
        falls = new <= value  # equal: too short a step to be seen
        return jnp.where(falls, 2 * alpha, alpha), jnp.where(falls, new, value), count + 1, falls

    return bounded_while(lambda carry: carry[3], double, (alpha, value, count, jnp.asarray(wanted)), MAX_TRIALS)[:3]
