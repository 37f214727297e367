"""Minibatches inside compiled programs: each row exactly once an epoch, or drawn with replacement.

Speed decides how rows are met. On a CPU a contiguous slice costs nothing beside the work on it, a gather of single
rows about a third more, a permutation of all rows three times the work of the epoch. So an epoch goes over contiguous
slices of the data as they lie, in random order; rows that lie in an order of their own are put in a random one
beforehand, once, by :func:`shuffle`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from bilevel import tree
from bilevel.batch_axes import Axes, as_axes, count_rows, spread
from bilevel.permutation import below, permuted, seed_of
from bilevel.status import ProblemError

Tree = Any
T = TypeVar("T", bound=Any)


class Stream(NamedTuple):
    """Where the drawing stands, to be carried from draw to draw: what is drawn next depends on nothing else."""

    key: Array  # what the stream was started with
    draws: Int[Array, ""]  # so far


@tree.record
@dataclass(frozen=True)
class Sampler:
    """How random batches are drawn from data.

    An epoch is ``ceil(n / b)`` draws that meet each of the n rows exactly once. Where b divides n they are the
    contiguous slices of the data in random order. Where it does not, every epoch begins at a random row o: its batches
    are the circular windows ``(o + j b + [0 .. b)) % n``, again in random order, and last the ``n % b`` rows left.
    The mean over a draw, taken by itself, is an unbiased estimate of the mean over all rows, up to ``2^-16`` of weights
    where b divides n (:mod:`bilevel.permutation`).

    Parameters
    ----------
    batch_size
        Rows b of a batch. None draws no rows and passes all leaves whole, for functions that take their noise
        from a PRNG key alone; ``batch_axes`` must then be None.
    batch_axes
        The axis along which the rows lie, as ``in_axes`` of ``jax.vmap``: an int for all leaves, or a prefix of the
        pytree of data with an int or None for each part; None passes a leaf whole.
    replace
        Draw every row independently, uniformly, with replacement, instead of by epochs: the independence that the
        error bounds of stochastic iterations assume. By epochs the draws of one epoch depend on each other, which
        in practice lowers the error.

    Notes
    -----
    Leaves of the data that are PRNG keys (``jax.random.key``, not arrays of integers) become fresh keys at each draw:
    one without rows a new key a draw, one with rows a new key for every row drawn. Two streams started with different
    keys draw independently; that is how the map, the mixed derivative and the upper level get samples of their
    own.

    Slices are as random as the order of the rows: rows sorted by class, time or source make noisy batches, see
    :func:`shuffle`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> data, sampler = jnp.arange(6.0), Sampler(batch_size=2)
    >>> stream = sampler.start(data, jax.random.key(0))
    >>> total = 0.0
    >>> for _ in range(3):  # an epoch
    ...     part, stream = sampler.evaluate(jnp.sum, data, stream)
    ...     total += part
    >>> print(total)
    15.0
    """

    batch_size: int | None = field(metadata={"static": True})
    batch_axes: Any = field(default=0, metadata={"static": True})
    replace: bool = field(default=False, metadata={"static": True})

    def __post_init__(self):
        if not isinstance(self.batch_axes, Axes | int | None):
            object.__setattr__(self, "batch_axes", as_axes(self.batch_axes))

    def check(self, data: Tree) -> int:
        """Refuse data that do not fit, at trace time.

        Returns
        -------
        int
            Number of rows n; 1 where no rows are drawn.

        Raises
        ------
        ProblemError
            One sentence that says what was expected and what came.
        """
        axes = spread(self.batch_axes, data)
        if self.batch_size is None:
            if any(axis is not None for axis in axes):
                raise ProblemError("Sampler(batch_size=None) passes all leaves whole: give it batch_axes=None.")
            if not any(_is_key(leaf) for leaf in jax.tree.leaves(data)):
                raise ProblemError(
                    "Sampler(batch_size=None) draws nothing but keys, but data holds no PRNG key: put "
                    "jax.random.key(...) into data, or give a batch_size."
                )
            return 1
        rows = count_rows(data, axes)
        if not 1 <= self.batch_size <= rows:
            raise ProblemError(
                f"batch_size must be at least 1 and at most the number of rows, {rows}, but is {self.batch_size}."
            )
        return rows

    def batches(self, data: Tree) -> int:
        """Draws of an epoch, ``ceil(n / b)``."""
        return -(-self.check(data) // (self.batch_size or 1))

    def start(self, data: Tree, key: Array) -> Stream:
        """A stream of draws from data of these shapes; one key gives one stream, bit for bit."""
        self.check(data)
        return Stream(key, jnp.asarray(0))

    def evaluate(self, f: Callable[[Tree], T], data: Tree, stream: Stream) -> tuple[T, Stream]:
        """``f`` on the next batch, and the stream after it.

        Parameters
        ----------
        f
            Function of a batch, which is ``data`` with its rows cut. Where b does not divide n it is traced twice, for
            the last batch of an epoch is shorter.
        data
            The data that the stream was started with.
        stream
            From :meth:`start` or from the draw before.
        """
        if self.batch_size is None:
            value = f(self._cut(data, stream, None, 0))
        elif self.replace:
            drawn = jax.random.randint(self._key(stream), (self.batch_size,), 0, self.check(data))
            value = f(self._cut(data, stream, drawn, self.batch_size))
        else:
            value = self._by_epochs(f, data, stream, self.batch_size)
        return value, stream._replace(draws=stream.draws + 1)

    def evaluate_slice(self, f: Callable[[Tree], T], data: Tree, number: Any, stream: Stream) -> T:
        """``f`` on one of the ``ceil(n / b)`` fixed contiguous slices of the data, by its number, the last one short.

        For algorithms that keep a memory of every slice. ``stream`` tells PRNG keys in the data apart.
        """
        if self.batch_size is None or self.replace:
            raise ProblemError(f"Fixed slices need a batch_size and replace=False, but the sampler is {self}.")
        b = self.batch_size
        slices, rest = divmod(self.check(data), b)
        if rest == 0:
            return f(self._cut(data, stream, number * b, b))
        return lax.cond(
            number < slices,
            lambda: f(self._cut(data, stream, number * b, b)),
            lambda: f(self._cut(data, stream, slices * b, rest)),
        )

    def rows_drawn(self, data: Tree, stream: Stream) -> Any:
        """Rows that the stream has drawn so far; draws, where no rows are drawn."""
        if self.batch_size is None or self.replace:
            return stream.draws * (self.batch_size or 1)
        epochs, draws = jnp.divmod(stream.draws, self.batches(data))
        return epochs * self.check(data) + draws * self.batch_size  # the short batch ends its epoch

    def _by_epochs(self, f: Callable[[Tree], T], data: Tree, stream: Stream, b: int) -> T:
        rows = self.check(data)
        slices, rest = divmod(rows, b)
        # Where a batch begins is computed here: inside the branches it costs a step more.
        epoch, position = jnp.divmod(stream.draws, self.batches(data))
        begin = begins(stream.key, epoch, position, rows, b)
        if rest == 0:
            return f(self._cut(data, stream, begin, b))
        window = partial(self._circular, data, stream, begin)
        # The predicate depends on the number of draws alone, so that under vmap over keys it stays a branch.
        return lax.cond(position < slices, lambda: f(window(b)), lambda: f(window(rest)))

    def _key(self, stream: Stream) -> Array:
        """The key of the next draw."""
        return jax.random.fold_in(stream.key, stream.draws)

    def _circular(self, data: Tree, stream: Stream, start: Any, size: int) -> Tree:
        """Data with the batched leaves cut to ``(start + [0 .. size)) % n``, in an order of its own.

        Two slices and a choice between their rows: several times faster on a CPU than a gather of these rows.
        """
        last = self.check(data) - size
        beyond = jnp.maximum(start - last, 0)  # so many rows of the window lie behind the end, that is at the start
        tail, head = (self._cut(data, stream, begin, size) for begin in (jnp.minimum(start, last), 0))
        leaves, structure = jax.tree.flatten(tail)

        def choose(tail: Any, head: Any, axis: int | None) -> Any:
            if axis is None:
                return tail
            in_head = jnp.arange(size) < beyond
            return jnp.where(jnp.expand_dims(in_head, [i for i in range(tail.ndim) if i != axis]), head, tail)

        axes = spread(self.batch_axes, data)
        return structure.unflatten(map(choose, leaves, jax.tree.leaves(head), axes))

    def _cut(self, data: Tree, stream: Stream, rows: Any, size: int) -> Tree:
        """Data with the batched leaves cut to ``rows``: indices, or the first of ``size`` rows in sequence."""
        leaves, structure = jax.tree.flatten(data)

        def cut(leaf: Any, axis: int | None) -> Any:
            if axis is None:
                return _fresh(leaf, stream) if _is_key(leaf) else leaf
            if jnp.ndim(rows) == 0:
                part = lax.dynamic_slice_in_dim(leaf, rows, size, axis)
            else:
                part = jnp.take(leaf, rows, axis=axis, mode="clip")
            return _fresh(part, stream) if _is_key(leaf) else part

        return structure.unflatten(map(cut, leaves, spread(self.batch_axes, data)))


def begins(key: Array, epoch: Any, position: Int[Array, "*s"], rows: int, b: int) -> Int[Array, "*s"]:
    """The first rows of the batches at these positions of an epoch, each of b rows going around; the short one last."""
    seed, (slices, rest) = seed_of(key, epoch), divmod(rows, b)
    number = jnp.where(position < slices, permuted(seed, jnp.minimum(position, slices - 1), slices), slices)
    return (below(seed, rows) + number * b) % rows if rest else number * b


def shuffle(data: Tree, key: Array, batch_axes: Any = 0) -> Tree:
    """The same data with their rows in random order, alike in all leaves.

    Parameters
    ----------
    data
        Any pytree of arrays.
    key
        Random key.
    batch_axes
        As in :class:`Sampler`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> x, y = shuffle((jnp.arange(4), jnp.arange(4) * 10), jax.random.key(0))
    >>> print(sorted(x.tolist()), bool(jnp.all(y == 10 * x)))
    [0, 1, 2, 3] True
    """
    axes = spread(Sampler(1, batch_axes).batch_axes, data)
    order = jax.random.permutation(key, count_rows(data, axes))
    leaves, structure = jax.tree.flatten(data)

    def move(leaf: Any, axis: int | None) -> Any:
        return leaf if axis is None else jnp.take(leaf, order, axis=axis)

    return structure.unflatten(map(move, leaves, axes))


def _fresh(keys: Array, stream: Stream) -> Array:
    """Keys that no other draw and no other stream has; rows drawn twice in one batch get two."""
    of_stream = jax.random.bits(stream.key)

    def fresh(key, place):
        for number in (of_stream, stream.draws, place):
            key = jax.random.fold_in(key, number)
        return key

    return jax.vmap(fresh)(keys.reshape(-1), jnp.arange(keys.size)).reshape(keys.shape)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
