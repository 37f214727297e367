"""Backtracking along a direction."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.loops import bounded_while

Tree = Any

MAX_HALVINGS = 40
DECREASE = 1e-4  # Armijo's constant: the part of the predicted decrease that must come


def backtrack(
    function: Callable[[Tree], Float[Array, ""]],
    w: Tree,
    p: Tree,
    acceptable: Callable[[Any, Any], Bool[Array, ""]],
) -> tuple[Float[Array, ""], Float[Array, ""], Int[Array, ""]]:
    """First ``alpha`` in 1, 1/2, 1/4, ... for which ``acceptable(alpha, function(w + alpha p))``.

    Returns ``alpha`` (0 where none was found), the function there, and the number of evaluations. NaN is never
    acceptable.
    """

    def trial(alpha):
        return function(tree.axpy(alpha, p, w))

    def halve(carry):
        alpha, _, count = carry
        return alpha / 2, trial(alpha / 2), count + 1

    one = jnp.ones((), tree.dtype(w))
    first = (one, trial(one), jnp.asarray(1))
    alpha, value, count = bounded_while(lambda c: ~acceptable(c[0], c[1]), halve, first, MAX_HALVINGS)
    return jnp.where(acceptable(alpha, value), alpha, 0.0), value, count
