"""One text for two ways to run: steered from the host over small compiled kernels, or compiled as one program.

An algorithm calls kernels that return ``vectors, numbers``, computes with the numbers by the functions of ``engine.xp``
and loops by ``engine.loop``. On the host every kernel is compiled by itself, when it is first needed, and the numbers
are NumPy's. Traced, the same text becomes one program. Of a batch the numbers hold one entry for each member.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import tree

State = Any


class Engine(NamedTuple):
    """How an algorithm runs."""

    eager: bool
    xp: Any  # the namespace of the numbers: numpy or jax.numpy
    call: Callable[..., tuple[Any, Any]]  # call(kernel, *arguments) -> vectors, numbers
    loop: Callable[[Callable, Callable, State], State]  # while any(condition(state)): state = body(state)
    choose: Callable[[Any, Any, Any], Any]  # choose(condition, a, b) of whole states


def _call_on_host(kernel: Callable, *arguments: Any) -> tuple[Any, Any]:
    vectors, numbers = kernel(*arguments)
    return vectors, jax.device_get(numbers)


def _loop_on_host(condition: Callable, body: Callable, state: State) -> State:
    while np.any(condition(state)):
        state = body(state)
    return state


def _loop_traced(condition: Callable, body: Callable, state: State) -> State:
    state = jax.tree.map(jnp.asarray, state)
    same_dtypes = lambda s: tree.astype(jax.tree.map(jnp.asarray, body(s)), s)  # noqa: E731
    return jax.lax.while_loop(lambda s: jnp.any(condition(s)), same_dtypes, state)


HOST = Engine(True, np, _call_on_host, _loop_on_host, lambda condition, a, b: a if condition else b)
TRACED = Engine(False, jnp, lambda kernel, *arguments: kernel(*arguments), _loop_traced, tree.where)
