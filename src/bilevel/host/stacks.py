"""Batches on their way to compiled programs: read ahead, stacked, met in order by a sampler of stacks."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from bilevel import tree
from bilevel.sampling import Sampler, Stream

Tree = Any
T = TypeVar("T", bound=Any)

MOST_BATCHES = 64  # put on the device at once: the time of a call is then nothing beside that of the steps
MOST_BYTES = 2**24  # as much is given back and taken again without new pages, each of which costs as much as its copy
ALIGNMENT = 64  # bytes; what begins so is not copied once more by a CPU


@tree.record
@dataclass(frozen=True)
class Stack:
    """Batches of one shape on the device, data of :class:`InOrder`.

    Attributes
    ----------
    batches
        Leaves with the batches along axis 0; None for leaves that they share.
    whole
        Those leaves, None for the others.
    first
        Draws before this stack.
    structure
        Pytree of a batch.
    """

    batches: tuple
    whole: tuple
    first: Any
    structure: Any = field(metadata={"static": True})


@tree.record
@dataclass(frozen=True)
class InOrder:
    """A sampler that draws the batches of a :class:`Stack` in order, and then from the first again.

    Parameters
    ----------
    batch_size
        Of the sampler in whose place it stands.
    epoch
        Batches that meet all data, where that is known.
    """

    batch_size: int | None = field(metadata={"static": True})
    epoch: int | None = field(default=None, metadata={"static": True})

    def batches(self, data: Stack) -> int:
        """Draws of an epoch."""
        return jax.tree.leaves(data.batches)[0].shape[0] if self.epoch is None else self.epoch

    def start(self, _: Stack, key: Array) -> Stream:
        """The stream before the first stack; the key is for keys in the data."""
        return Stream(key, jnp.asarray(0))

    def evaluate(self, f: Callable[[Tree], T], data: Stack, stream: Stream) -> tuple[T, Stream]:
        """``f`` on the next batch, and the stream after it."""
        place = (stream.draws - data.first) % jax.tree.leaves(data.batches)[0].shape[0]

        def on_batch(whole: tuple) -> T:
            leaves = (
                common if stacked is None else lax.dynamic_index_in_dim(stacked, place, keepdims=False)
                for stacked, common in zip(data.batches, whole, strict=True)
            )
            return f(data.structure.unflatten(leaves))

        return Sampler(None, None).evaluate(on_batch, data.whole, stream)  # keys become fresh ones


def chunks(batches: Iterator[T], draws: int | None, size: int | None) -> Iterator[tuple[T, int]]:
    """So many batches, stacked: pytrees with ``size`` batches along axis 0 and how many of them are meant.

    Consecutive batches of one shape are put together; stacks are filled up with zeros, so that one program does for
    all. ``draws`` None is all of them, ``size`` None as many as ``MOST_BYTES`` hold.
    """
    held = []
    for batch in islice(batches, draws):
        if held and (len(held) == size or signature(batch) != signature(held[0])):
            yield stacked(held, size), len(held)
            held = []
        held.append(batch)
        if size is None:
            size = max(1, min(MOST_BATCHES, MOST_BYTES // max(1, sum(x.nbytes for x in jax.tree.leaves(batch)))))
    if held:
        yield stacked(held, size), len(held)


def stacked(batches: list[T], size: int | None = None) -> T:
    """Batches of one shape along a new axis 0, filled up with zeros to ``size``."""
    size = len(batches) if size is None else size

    def stack(*leaves: np.ndarray) -> np.ndarray:
        shape, dtype = (size, *leaves[0].shape), leaves[0].dtype
        memory = np.empty(int(np.prod(shape)) * dtype.itemsize + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        buffer = memory[start : start + len(memory) - ALIGNMENT].view(dtype).reshape(shape)
        np.stack(leaves, out=buffer[: len(leaves)])
        buffer[len(leaves) :] = 0
        return buffer

    return jax.tree.map(stack, *batches)


def most_alike(batches: list[T]) -> list[T]:
    """Those of the shape that most of them have."""
    shape, _ = Counter(map(signature, batches)).most_common(1)[0]
    return [batch for batch in batches if signature(batch) == shape]


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = thread.submit(next, items, None)
            yield item


def signature(batch: Tree) -> tuple:
    """Shapes and dtypes."""
    return tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch))
