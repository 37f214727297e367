"""What stochastic algorithms see of a bilevel problem: its derivatives on random batches, and the state they carry.

Notation of the literature on the left, of this library on the right: ``z, v, x`` is ``w, v, lam``; the inner function
G is the lower-level loss, the outer function F is ``upper``. With the lower-level residual ``F = d_w G`` all formulas
hold for fixed points, too; ``A = d_w F``, ``B = d_lam F``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel import tree
from bilevel.problems import Problem
from bilevel.sampling import Sampler, Stream

Tree = Any
T = TypeVar("T", bound=Any)


class Point(NamedTuple):
    """Lower-level variable, adjoint and hyperparameters; also a direction in their space."""

    w: Tree
    v: Tree
    lam: Tree


class Streams(NamedTuple):
    """Where the drawing of both levels stands; ``others`` counts rows met otherwise."""

    lower: Stream
    upper: Stream
    others: Int[Array, ""]


class State(NamedTuple):
    """What every algorithm carries.

    Attributes
    ----------
    point
        The iterate.
    streams
        State of the sampling.
    step
        Upper-level steps done.
    memory
        What the algorithm keeps besides, or None.
    """

    point: Point
    streams: Streams
    step: Int[Array, ""]
    memory: Any = None

    @property
    def lam(self) -> Tree:
        """The hyperparameters."""
        return self.point.lam

    @property
    def w(self) -> Tree:
        """The lower-level variable."""
        return self.point.w


class Oracles(NamedTuple):
    """A problem with its data and the samplers of both levels. Draws of the two levels are independent."""

    problem: Problem
    lower_data: Tree
    upper_data: Tree
    lower_sampler: Sampler
    upper_sampler: Sampler

    def start(self, key: Array) -> Streams:
        """The streams of a run; one key gives one run, bit for bit."""
        lower, upper = jax.random.split(key)
        return Streams(
            self.lower_sampler.start(self.lower_data, lower),
            self.upper_sampler.start(self.upper_data, upper),
            jnp.zeros((), int),  # not of a weak type, which the first sum would change
        )

    def lower(self, f: Callable[[Tree], T], streams: Streams) -> tuple[T, Streams]:
        """``f`` on the next batch of the lower-level data."""
        value, stream = self.lower_sampler.evaluate(f, self.lower_data, streams.lower)
        return value, streams._replace(lower=stream)

    def upper(self, f: Callable[[Tree], T], streams: Streams) -> tuple[T, Streams]:
        """``f`` on the next batch of the upper-level data."""
        value, stream = self.upper_sampler.evaluate(f, self.upper_data, streams.upper)
        return value, streams._replace(upper=stream)

    def all_lower(self, f: Callable[[Tree], T], streams: Streams) -> tuple[T, Streams]:
        """``f`` on all lower-level data."""
        rows = self.lower_sampler.check(self.lower_data)
        return f(self.lower_data), streams._replace(others=streams.others + rows)

    def all_upper(self, f: Callable[[Tree], T], streams: Streams) -> tuple[T, Streams]:
        """``f`` on all upper-level data."""
        rows = self.upper_sampler.check(self.upper_data)
        return f(self.upper_data), streams._replace(others=streams.others + rows)

    def samples(self, streams: Streams) -> Any:
        """Rows drawn so far, of both levels; a row at which several derivatives are taken counts once."""
        lower = self.lower_sampler.rows_drawn(self.lower_data, streams.lower)
        upper = self.upper_sampler.rows_drawn(self.upper_data, streams.upper)
        return lower + upper + streams.others

    def rows_by_level(self) -> tuple[int, int]:
        """Rows of the lower and of the upper level."""
        return self.lower_sampler.check(self.lower_data), self.upper_sampler.check(self.upper_data)

    def rows(self) -> int:
        """Rows of both levels together: the cost of a pass over all data."""
        return sum(self.rows_by_level())

    def residual(self, w: Tree, lam: Tree, batch: Tree) -> Tree:
        """``F(w, lam)`` on a batch: the gradient of the lower-level loss."""
        return self.problem.lower.residual(w, lam, batch)

    def adjoint_product(self, v: Tree, w: Tree, lam: Tree, batch: Tree) -> Tree:
        """``A^T v`` on a batch; ``A v`` of a minimization, whose ``A`` is a Hessian."""
        return jax.vjp(lambda w: self.residual(w, lam, batch), w)[1](v)[0]

    def lower_terms(self, point: Point, batch: Tree) -> Point:
        """``F, A^T v, B^T v`` on a batch, from one linearization."""
        F, pull = jax.vjp(lambda w, lam: self.residual(w, lam, batch), point.w, point.lam)
        return Point(F, *pull(point.v))

    def upper_terms(self, point: Point, batch: Tree) -> tuple[Tree, Tree]:
        """``d_w U, d_lam U`` on a batch."""
        return jax.grad(self.problem.upper, argnums=(0, 1))(point.w, point.lam, batch)


def begin(oracles: Oracles, point: Point, key: Array, memory: Any = None) -> State:
    """The state of an algorithm before its first step."""
    return State(point, oracles.start(key), jnp.zeros((), int), memory)


def joined(lower: Point, upper: tuple[Tree, Tree]) -> Point:
    """``(F, A^T v - d_w U, d_lam U - B^T v)``: where all three vanish ``lam`` is stationary."""
    (F, Av, Bv), (U_w, U_lam) = lower, upper
    return Point(F, tree.sub(Av, U_w), tree.sub(U_lam, Bv))


def directions(oracles: Oracles, streams: Streams, *points: Point) -> tuple[list[Point], Streams]:
    """:func:`joined` directions at each of the points, all on the same new batch of either level."""
    return _directions(oracles, oracles.lower, oracles.upper, streams, points)


def all_directions(oracles: Oracles, streams: Streams, point: Point) -> tuple[Point, Streams]:
    """:func:`joined` directions from all data."""
    (direction,), streams = _directions(oracles, oracles.all_lower, oracles.all_upper, streams, (point,))
    return direction, streams


def _directions(
    oracles: Oracles, draw_lower: Callable, draw_upper: Callable, streams: Streams, points: tuple[Point, ...]
) -> tuple[list[Point], Streams]:
    lower, streams = draw_lower(lambda drawn: [oracles.lower_terms(point, drawn) for point in points], streams)
    upper, streams = draw_upper(lambda drawn: [oracles.upper_terms(point, drawn) for point in points], streams)
    return [joined(*terms) for terms in zip(lower, upper, strict=True)], streams


def descend(point: Point, direction: Point, step: Any, outer_step: Any) -> Point:
    """``w - rho D_w, v - rho D_v, lam - gamma D_lam``."""
    return Point(
        tree.axpy(-step, direction.w, point.w),
        tree.axpy(-step, direction.v, point.v),
        tree.axpy(-outer_step, direction.lam, point.lam),
    )
