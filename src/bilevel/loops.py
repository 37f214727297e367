"""Bounded loops inside compiled programs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from bilevel import tree

State = Any


def bounded_while(
    condition: Callable[[State], Bool[Array, ""]], body: Callable[[State], State], state: State, steps: Any
) -> State:
    """``while condition(state): state = body(state)``, at most ``steps`` times."""

    def go_on(carry):
        count, state = carry
        return (count < steps) & condition(state)

    return jax.lax.while_loop(go_on, lambda carry: (carry[0] + 1, body(carry[1])), (jnp.asarray(0), state))[1]


def repeat(body: Callable[[State], State], state: State, steps: Any) -> State:
    """``state = body(state)``, ``steps`` times, in a loop that holds nothing else.

    Its length is known to the compiler where ``steps`` is an int: a GPU then need not ask the host before every
    step. There are no derivatives in reverse mode, as those of a truncated iteration are not those of what it
    approximates; :func:`unroll` has them.
    """
    return bounded_while(lambda _: jnp.asarray(True), body, state, steps)


def full_length_loop(
    condition: Callable[[State], Bool[Array, ""]], body: Callable[[State], State], state: State, steps: Any
) -> State:
    """:func:`bounded_while` for a loop that is expected to run all its ``steps``.

    Where these are known when the program is compiled, a GPU need not send the condition to the host, and wait there,
    before every step. The state stays as it is once the condition is false. As of all loops here but :func:`unroll`,
    there are no derivatives in reverse mode: those of a truncated iteration are not those of what it approximates.
    """
    if not isinstance(steps, int):
        return bounded_while(condition, body, state, steps)

    def step(carry: tuple[Array, State]) -> tuple[Array, State]:
        number, state = carry
        return number + 1, tree.where(condition(state), body(state), state)

    return jax.lax.while_loop(lambda carry: carry[0] < steps, step, (jnp.asarray(0), state))[1]


def unroll(step: Callable[[State], State], state: State, steps: int, segment: int | None = None) -> State:
    """``state = step(state)``, ``steps`` times, for differentiation.

    Reverse mode keeps what it needs of every step. With a ``segment`` of K steps it keeps every K-th state only
    and computes the steps between once more on the way back, a segment at a time (Griewank and Walther 2008,
    Section 12.1): ``steps / K`` states and K steps in memory.
    """

    def run(state: State, count: int) -> State:
        return jax.lax.scan(lambda s, _: (step(s), None), state, length=count)[0]

    if segment is None:
        return run(state, steps)
    segments, rest = divmod(steps, segment)
    # Inside a scan nothing can be merged with the first pass: the barriers against that would only cost.
    kept = jax.checkpoint(partial(run, count=segment), prevent_cse=False)
    state, _ = jax.lax.scan(lambda s, _: (kept(s), None), state, length=segments)
    return jax.checkpoint(partial(run, count=rest))(state) if rest else state
