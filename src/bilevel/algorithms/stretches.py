"""Stretches of SOBA whose steps fall to zero, and what can be seen where they end."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.algorithms.oracles import Oracles, Point, Streams, all_directions, descend, directions

POWER_STEPS = 6  # of the power iteration on a batch


class Seen(NamedTuple):
    """A point, looked at with all data.

    Attributes
    ----------
    point
        Where that is.
    lagrangian
        ``U - <v, F>``, which is ``U(w(lam), lam)`` up to errors of second order in those of w and v.
    value
        ``U(w, lam)``.
    slope, steepest
        Norm and largest component of ``d_lam U - B^T v``.
    """

    point: Point
    lagrangian: Float[Array, ""]
    value: Float[Array, ""]
    slope: Float[Array, ""]
    steepest: Float[Array, ""]


@jax.jit
def stretch(
    oracles: Oracles, point: Point, streams: Streams, step: Any, outer_step: Any, steps: Any
) -> tuple[Point, Streams]:
    """Steps of SOBA, the k-th ``(1 - k / steps)`` times as long as the first.

    In the end lam hardly moves, so that w and v catch up with it, and the noise of batches has been averaged out:
    the last iterate is as good as the best mean of iterates (Defazio, Cutkosky, Mehta and Mishchenko 2023,
    arXiv 2310.07831).
    """

    def body(k: Any, carry: tuple[Point, Streams]) -> tuple[Point, Streams]:
        point, streams = carry
        (direction,), streams = directions(oracles, streams, point)
        left = 1 - k / steps
        return descend(point, direction, left * step, left * outer_step), streams

    return jax.lax.fori_loop(0, steps, body, (point, streams))


@jax.jit
def curvature(
    oracles: Oracles, point: Point, streams: Streams, key: Array, batches: Any
) -> tuple[Float[Array, ""], Streams]:
    """The largest norm of ``A`` on so many batches, by a few power iterations on each."""

    def of_batch(batch: Any, start: Any) -> Float[Array, ""]:
        def power(x: Any, _: None) -> tuple[Any, Float[Array, ""]]:
            norm = tree.norm(x)
            x = tree.scale(1 / jnp.where(norm > 0, norm, 1.0), x)
            x = oracles.adjoint_product(x, point.w, point.lam, batch)
            return x, tree.norm(x)

        return jax.lax.scan(power, start, length=POWER_STEPS)[1][-1]

    def body(i: Any, carry: tuple[Float[Array, ""], Streams]) -> tuple[Float[Array, ""], Streams]:
        largest, streams = carry
        start = tree.standard_normal(jax.random.fold_in(key, i), point.w)
        norm, streams = oracles.lower(lambda batch: of_batch(batch, start), streams)
        return jnp.maximum(largest, norm), streams

    return jax.lax.fori_loop(0, batches, body, (jnp.zeros((), tree.dtype(point.w)), streams))


@jax.jit
def look(oracles: Oracles, point: Point, streams: Streams) -> tuple[Seen, Streams]:
    """The Lagrangian and its derivative in lam at a point, with all data."""
    direction, streams = all_directions(oracles, streams, point)
    value = oracles.problem.upper(point.w, point.lam, oracles.upper_data)
    lagrangian = value - tree.dot(point.v, direction.w)
    return Seen(point, lagrangian, value, tree.norm(direction.lam), tree.largest(direction.lam)), streams
