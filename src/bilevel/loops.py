"""Bounded loops inside compiled programs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

State = Any


def bounded_while(
    condition: Callable[[State], Bool[Array, ""]], body: Callable[[State], State], state: State, steps: Any
) -> State:
    """``while condition(state): state = body(state)``, at most ``steps`` times."""

    def go_on(carry):
        count, state = carry
        return (count < steps) & condition(state)

    return jax.lax.while_loop(go_on, lambda carry: (carry[0] + 1, body(carry[1])), (jnp.asarray(0), state))[1]
