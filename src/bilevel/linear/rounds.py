"""Rounds of an iteration on the true residual, so that success is never said of a recursive one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.linear.operator import LinearOperator
from bilevel.loops import bounded_while
from bilevel.status import SolveInfo, Status, code

Tree = Any

MAX_ROUNDS = 4  # times the recursive residual is replaced by the true one before rounding is blamed


class Round(NamedTuple):
    """One round on ``A x = r`` from zero: status ``OK`` where its own residual says so."""

    x: Tree
    steps: Int[Array, ""]
    status: Int[Array, ""]


class _Rounds(NamedTuple):
    x: Tree
    r: Tree
    residual_norm: Float[Array, ""]
    steps: Int[Array, ""]
    matvecs: Int[Array, ""]
    status: Int[Array, ""]


def rounds(
    iterate: Callable[[Tree, Any], Round],
    A: LinearOperator,
    b: Tree,
    x: Tree,
    r: Tree,
    target: Float[Array, ""],
    steps: Any,
    products: int,
) -> tuple[Tree, SolveInfo]:
    """Rounds ``iterate(r, steps)``, each on the true residual of the last, until that one is below ``target``.

    ``x, r`` is the start with its residual; ``products`` is the number of matvecs of a step. Cost: those, and one
    for the true residual of each round. Status ``STAGNATED`` where a round does not halve the residual.
    """
    norm_r = tree.norm(r)
    running = code(Status.MAX_STEPS)  # what it will be if the loop runs out
    state = _Rounds(x, r, norm_r, jnp.asarray(0), jnp.asarray(0), _status(norm_r, target, running))

    def one_round(s: _Rounds) -> _Rounds:
        run = iterate(s.r, steps - s.steps)
        x = tree.add(s.x, run.x)
        r = tree.sub(b, A.mv(x))
        norm_r = tree.norm(r)
        stalled = jnp.where(norm_r > s.residual_norm / 2, code(Status.STAGNATED), running)
        status = jnp.where(run.status == Status.OK, _status(norm_r, target, stalled), run.status)
        return _Rounds(x, r, norm_r, s.steps + run.steps, s.matvecs + products * run.steps + 1, status)

    end = bounded_while(lambda s: (s.status == running) & (s.steps < steps), one_round, state, MAX_ROUNDS)
    status = jnp.where((end.status == running) & (end.steps < steps), code(Status.STAGNATED), end.status)
    return end.x, SolveInfo(end.steps, end.matvecs, end.residual_norm, status)


def _status(norm_r, target, otherwise) -> Int[Array, ""]:
    status = jnp.where(norm_r <= target, code(Status.OK), otherwise)
    return jnp.where(jnp.isfinite(norm_r), status, code(Status.NONFINITE))
