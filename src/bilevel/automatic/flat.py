"""A problem on vectors: programs on one array compile in a fraction of the time of those on many."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel.batch_axes import as_axes
from bilevel.lagrangian import Instance
from bilevel.problems import Problem

Tree = Any


@dataclass(frozen=True)
class Layout:
    """How a pytree of floating arrays lies in one vector; with ``axes``, that of every member of a batch."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...] | None  # None where all leaves have that of the vector
    axes: Any = None  # of the members, as leaves of the whole pytree

    @property
    def trivial(self) -> bool:
        """Whether the pytree is a vector already."""
        return self.axes is None and self.structure == jax.tree.structure(0) and len(self.shapes[0]) == 1

    def ravel(self, x: Tree) -> Array:
        """The vector of a pytree, or a row for each member."""
        leaves = self.structure.flatten_up_to(x)
        if self.axes is not None:
            return jax.vmap(replace(self, axes=None).ravel, (self.structure.unflatten(self.axes),))(x)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])

    def unravel(self, x: Array) -> Tree:
        """The pytree of a vector, or of a row for each member."""
        if self.axes is not None:
            return jax.vmap(replace(self, axes=None).unravel, 0, self.structure.unflatten(self.axes))(x)
        ends = accumulate(map(prod, self.shapes))
        leaves = [x[end - prod(shape) : end].reshape(shape) for shape, end in zip(self.shapes, ends, strict=True)]
        if self.dtypes is not None:
            leaves = [leaf.astype(dtype) for leaf, dtype in zip(leaves, self.dtypes, strict=True)]
        return self.structure.unflatten(leaves)


def layout(x: Tree, axes: tuple[int, ...] | None = None) -> Layout:
    """The layout of a pytree; ``axes`` are those of the members in its leaves."""
    leaves, structure = jax.tree.flatten(x)
    dtypes = tuple(jnp.result_type(leaf) for leaf in leaves)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if axes is not None:
        shapes = [shape[:axis] + shape[axis + 1 :] for shape, axis in zip(shapes, axes, strict=True)]
    return Layout(structure, tuple(shapes), dtypes if len(set(dtypes)) > 1 else None, axes)


@dataclass(frozen=True)
class OnVectors:
    """A function ``(w, lam, data)`` of pytrees as one of vectors."""

    function: Callable[[Tree, Tree, Tree], Any]
    w: Layout
    lam: Layout | None  # None where lam stays a pytree
    like_w: bool = False  # whether it returns a pytree like w

    def __call__(self, w: Array, lam: Tree, data: Tree) -> Any:
        """Call it."""
        value = self.function(self.w.unravel(w), lam if self.lam is None else self.lam.unravel(lam), data)
        return self.w.ravel(value) if self.like_w else value


@lru_cache(maxsize=256)
def _on_vectors(problem: Problem, w: Layout, lam: Layout | None) -> Problem:
    lower = problem.lower
    member_axes = None if lower.members is None else as_axes((0, *lower.member_axes[1:]))
    function = OnVectors(lower.function, replace(w, axes=None), lam, lower.kind != "minimization")
    return Problem(replace(lower, function=function, members=member_axes), OnVectors(problem.upper, w, lam))


def on_vectors(at: Instance, w: Layout, lam: Layout | None) -> Instance:
    """The problem on vectors; ``lam`` itself and the data are still what they were."""
    # The cache makes one object of one problem, which compiled programs recognize at once.
    problem = _on_vectors(Problem(replace(at.problem.lower, step=None), at.problem.upper), w, lam)
    return at._replace(problem=replace(problem, lower=replace(problem.lower, step=at.problem.lower.step)))
