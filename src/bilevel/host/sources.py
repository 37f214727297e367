"""Where batches on the host come from: arrays that a sampler cuts, or an iterable that makes them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from operator import length_hint
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bilevel.batch_axes import count_rows, spread
from bilevel.host.stacks import signature
from bilevel.sampling import Sampler, Stream, begins
from bilevel.status import ProblemError

Tree = Any
Leaves = tuple[np.ndarray | None, ...]  # of a batch; None where a leaf has no rows and does not change


class Feed(NamedTuple):
    """The batches of one level in one call.

    Attributes
    ----------
    draw
        Batches for training, by a random key: without end, or ended by a :class:`ProblemError`.
    once
        Batches that meet each row once.
    rows
        Rows of a batch.
    first
        A batch, for its shapes; it is not drawn by that.
    whole
        The leaves without rows that all batches share, None for the others.
    structure
        Pytree of a batch.
    epoch
        Batches that meet all rows; None where that is not known.
    chunk
        Batches to be put on the device at once, None for as many as :func:`~bilevel.host.stacks.chunks` takes.
    """

    draw: Callable[[Array], Iterator[Leaves]]
    once: Callable[[], Iterator[Leaves]]
    rows: Callable[[Leaves], int]
    first: Leaves
    whole: tuple
    structure: Any
    epoch: int | None
    chunk: int | None


@dataclass(frozen=True, eq=False)
class HostArrays:
    """NumPy arrays that stay on the host, such as memory-mapped ones, for ``lower_data`` or ``upper_data``.

    The batches are those that the sampler of the method draws from the same data in memory with the same key.

    Parameters
    ----------
    arrays
        Any pytree of arrays, rows as ``batch_axes`` of the sampler says. Leaves without rows, PRNG keys too, go to the
        device whole.
    chunk
        Batches read at once; None: as many as 16 MB hold, at most 64. It does not change the result.

    Notes
    -----
    By epochs batches are contiguous slices: on a disk they want rows that lie in random order. ``replace=True`` reads
    row by row.
    """

    arrays: Tree
    chunk: int | None = None

    def __post_init__(self):
        _check_chunk(self.chunk)

    def feed(self, name: str, sampler: Sampler, _: int) -> Feed:
        """Its batches for one call, as many as that needs."""
        if sampler.batch_size is None:
            raise ProblemError(f"{name} is HostArrays, whose rows are to be read: give its sampler a batch_size.")
        n, b = sampler.check(self.arrays), sampler.batch_size
        leaves, structure = jax.tree.flatten(self.arrays)
        axes = spread(sampler.batch_axes, self.arrays)
        arrays = [leaf if axis is None else _as_array(name, leaf) for leaf, axis in zip(leaves, axes, strict=True)]

        def cut(rows: slice | np.ndarray) -> Leaves:
            pairs = zip(arrays, axes, strict=True)
            return tuple(None if axis is None else x[(slice(None),) * axis + (rows,)] for x, axis in pairs)

        return Feed(
            draw=lambda key: map(cut, _drawn(sampler, n, key)),
            once=lambda: (cut(slice(begin, min(begin + b, n))) for begin in range(0, n, b)),
            rows=lambda batch: next(x.shape[a] for x, a in zip(batch, axes, strict=True) if x is not None),
            first=cut(slice(0, b)),
            whole=jax.device_put(tuple(x if axis is None else None for x, axis in zip(leaves, axes, strict=True))),
            structure=structure,
            epoch=sampler.batches(self.arrays),
            chunk=self.chunk,
        )


@dataclass(eq=False)
class HostBatches:
    """Batches made by an iterable, such as a PyTorch ``DataLoader``, for ``lower_data`` or ``upper_data``.

    Every call goes on where the one before stopped. A source that can be gone through again, such as a list, begins
    anew when it ends; an iterator that ends too early is an error.

    Parameters
    ----------
    source
        Iterable of batches, pytrees of what ``numpy.asarray`` takes. Batches may differ in the number of rows, which
        is at most the ``batch_size`` of the sampler of the method; its ``batch_axes`` says where they lie. The source
        says in which order they come, and the key nothing.
    chunk
        Batches put on the device at once; None: as many as 16 MB hold, at most 64. It does not change the result.

    Notes
    -----
    The batches are read in a thread of their own, ahead of the steps, but never more than the call needs. A program is
    compiled for every shape of batches.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import bilevel as bl
    >>> lower = bl.minimization(lambda w, lam, x: jnp.mean((w - x) ** 2) + lam * w**2, step=0.2)  # w = 1 / (1 + lam)
    >>> problem = bl.Problem(lower, lambda w, lam, _: w**2)
    >>> constant = bl.Constant(1.0)
    >>> method = bl.SID(bl.Sampler(2), bl.SGD(30, constant), bl.StochasticRichardson(30, constant), runs=1)
    >>> batches = bl.HostBatches([np.array([1.0, 1.0], np.float32)] * 4)
    >>> h = bl.hypergradient(problem, 1.0, 0.0, lower_data=batches, method=method, key=jax.random.key(0), error=False)
    >>> print(f"{h.grad:.3f}")  # -2 / (1 + lam)^3
    -0.250
    """

    source: Iterable
    chunk: int | None = None
    _place: Iterator | None = field(default=None, init=False, repr=False)
    _seen: list = field(default_factory=list, init=False, repr=False)  # the next batch, where its shapes were looked at

    def __post_init__(self):
        _check_chunk(self.chunk)
        if not isinstance(self.source, Iterable):
            raise ProblemError(f"HostBatches needs an iterable of batches, but source is a {_kind(self.source)}.")

    def feed(self, name: str, sampler: Sampler, needed: int) -> Feed:
        """Its batches for one call; ``needed`` is how many it takes if nothing fails."""
        if sampler.replace:
            raise ProblemError(f"{name} comes as batches, from which no rows are drawn: leave out replace=True.")
        first = next(self._take(), None)
        if first is None:
            raise ProblemError(f"{name} is empty: its source, a {_kind(self.source)}, gave no batch.")
        self._seen.append(first)
        structure = jax.tree.structure(first)
        counts: dict[Any, int] = {}  # rows by shapes: each shape is looked at once
        taken = 0

        def ready(batch: Tree) -> Leaves:
            arrays = tuple(_as_array(name, leaf) for leaf in jax.tree.leaves(batch))
            if signature(arrays) not in counts:
                counts[signature(arrays)] = _count_rows(name, sampler, structure, batch, arrays)
            return arrays

        def draw(_: Array) -> Iterator[Leaves]:
            nonlocal taken
            for batch in self._take():
                taken += 1
                yield ready(batch)
            raise ProblemError(
                f"{name} ended after {taken} of the {needed} batches that this call needs: give a longer iterator, one "
                "that begins anew, such as a list or a DataLoader, or fewer steps."
            )

        def once() -> Iterator[Leaves]:
            if isinstance(self.source, Iterator):
                raise ProblemError(
                    f"jacobian_samples=None goes through all of {name}, but an iterator can be gone through only once: "
                    "give a number J."
                )
            return map(ready, self.source)

        arrays = ready(first)
        return Feed(
            draw=draw, once=once, rows=lambda batch: counts[signature(batch)], first=arrays,
            whole=(None,) * len(arrays), structure=structure,
            epoch=length_hint(self.source, 0) or None, chunk=self.chunk,
        )  # fmt: skip

    def _take(self) -> Iterator[Tree]:
        """Batches from where the last one was taken."""
        if self._seen:
            yield self._seen.pop()
        while True:
            anew = self._place is None
            self._place = place = iter(self.source) if self._place is None else self._place
            empty = True
            for batch in place:
                empty = False
                yield batch
            self._place = None
            if (anew and empty) or isinstance(self.source, Iterator):
                return


def _refuse(data: Any, *_: Any) -> Any:
    """What every compiled function and every function of trees meets that takes such data for arrays."""
    raise ProblemError(
        f"{_kind(data)} is for hypergradient and optimize with SID(...), as lower_data or upper_data itself: all else "
        "needs arrays in memory."
    )


for _data in (HostArrays, HostBatches):
    jax.tree_util.register_pytree_node(_data, _refuse, _refuse)


def _drawn(sampler: Sampler, n: int, key: Array) -> Iterator[slice | np.ndarray]:
    """Rows of batch after batch, those that the sampler draws from n rows in memory."""
    sampler, b = replace(sampler, batch_axes=0), sampler.batch_size or 1
    if sampler.replace:
        stream = sampler.start(np.broadcast_to(np.int8(0), (n,)), key)
        while True:
            rows, stream = _draw(sampler, n, stream)
            yield np.asarray(rows)
    for epoch in count():
        for position, begin in enumerate(np.asarray(_epoch(key, epoch, n, b)).tolist()):
            yield _window(begin, min(b, n - position * b), n)


def _window(begin: int, size: int, n: int) -> slice | np.ndarray:
    """``size`` rows from ``begin`` on, going around."""
    return slice(begin, begin + size) if begin + size <= n else np.arange(begin, begin + size) % n


@partial(jax.jit, static_argnums=(0, 1))
def _draw(sampler: Sampler, n: int, stream: Stream) -> tuple[Int[Array, " b"], Stream]:
    """Numbers of the rows drawn next."""
    return sampler.evaluate(lambda rows: rows, jnp.arange(n), stream)


@partial(jax.jit, static_argnums=(2, 3))
def _epoch(key: Array, epoch: int, n: int, b: int) -> Int[Array, " m"]:
    """The first rows of all batches of an epoch."""
    return begins(key, epoch, jnp.arange(-(-n // b)), n, b)


def _count_rows(name: str, sampler: Sampler, structure: Any, batch: Tree, arrays: Leaves) -> int:
    """Rows of a batch, refused where it does not fit."""
    if jax.tree.structure(batch) != structure:
        raise ProblemError(
            f"All batches of {name} must have one structure, but {structure} and {jax.tree.structure(batch)} came."
        )
    if sampler.batch_size is None:
        return 1
    data = structure.unflatten(arrays)
    rows = count_rows(data, spread(sampler.batch_axes, data))
    if rows > sampler.batch_size:
        raise ProblemError(
            f"A batch of {name} has {rows} rows, but its sampler says batch_size={sampler.batch_size}: HostBatches "
            "takes batches as they come, HostArrays cuts them from arrays."
        )
    return rows


def _as_array(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ProblemError(
            f"{name} holds PRNG keys that would be read from the host: give seeds of which the function makes keys, or "
            "in HostArrays one key without rows."
        )
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMm":
        raise ProblemError(f"{name} must hold arrays of numbers, but a leaf is a {_kind(leaf)} of dtype {array.dtype}.")
    return array


def _kind(value: Any) -> str:
    return type(value).__name__


def _check_chunk(chunk: int | None) -> None:
    if chunk is not None and chunk < 1:
        raise ProblemError(f"chunk must be at least 1 or None, but is {chunk}.")
