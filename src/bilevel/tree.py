"""Vector algebra on pytrees: a pytree of floating arrays is one vector in R^n."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Tree = Any
T = TypeVar("T")


def record(cls: type[T]) -> type[T]:
    """Register a frozen dataclass as a pytree; fields with ``metadata={"static": True}`` are its static part.

    What ``jax.tree_util.register_dataclass`` does, except that the class itself is static, too: there, structures
    of two classes with the same field values compare equal (jax 0.10), so that ``jit`` may run the program
    compiled for ``Picard()`` on ``NewtonKrylov()``.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # checked by it: cls is a dataclass
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    data = tuple(f.name for f in fields if not f.metadata.get("static"))

    def flatten_with_keys(x):
        children = [(jax.tree_util.GetAttrKey(name), getattr(x, name)) for name in data]
        return children, (cls, *(getattr(x, name) for name in static))

    def flatten(x):
        return [getattr(x, name) for name in data], (cls, *(getattr(x, name) for name in static))

    def unflatten(aux, children):
        return cls(**dict(zip(data, children, strict=True)), **dict(zip(static, aux[1:], strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def add(a: Tree, b: Tree) -> Tree:
    """``a + b``."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """``a - b``."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(alpha: Any, a: Tree) -> Tree:
    """``alpha * a``, in the dtypes of ``a``."""
    return jax.tree.map(lambda x: jnp.asarray(alpha, x.dtype) * x, a)


def axpy(alpha: Any, a: Tree, b: Tree) -> Tree:
    """``alpha * a + b``, in the dtypes of ``b``."""
    return jax.tree.map(lambda x, y: jnp.asarray(alpha, y.dtype) * x + y, a, b)


def neg(a: Tree) -> Tree:
    """``-a``."""
    return jax.tree.map(jnp.negative, a)


def dot(a: Tree, b: Tree) -> Float[Array, ""]:
    """Inner product ``<a, b>``. Sums of products, not ``vdot``: raveling breaks under explicit sharding."""
    return _total(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))


def norm(a: Tree) -> Float[Array, ""]:
    """2-norm, safe from overflow and underflow of the squares; NaN and infinity come through."""
    leaves = jax.tree.leaves(a)
    if not leaves:
        return jnp.zeros(())
    most = largest(a)
    unit = jnp.where((most > 0) & jnp.isfinite(most), most, 1.0)
    return unit * jnp.sqrt(_total([jnp.sum(jnp.square(x / unit.astype(x.dtype))) for x in leaves]))


def quick_norm(a: Tree) -> Float[Array, ""]:
    """2-norm by one pass where float64 holds the squares of all but the most extreme numbers, else :func:`norm`."""
    return jnp.sqrt(dot(a, a)) if dtype(a) == jnp.float64 else norm(a)


def largest(a: Tree) -> Float[Array, ""]:
    """Largest absolute value of an entry; 0 where there is none."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0).astype(dtype(a)) for x in jax.tree.leaves(a)]))


def zeros_like(a: Tree) -> Tree:
    """The zero vector of the space of ``a``."""
    return jax.tree.map(jnp.zeros_like, a)


def where(condition: Bool[Array, ""], a: Tree, b: Tree) -> Tree:
    """``a`` where the scalar condition holds, else ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def fill(a: Tree, value: float) -> Tree:
    """A vector like ``a`` with every entry ``value``."""
    return jax.tree.map(lambda x: jnp.full_like(x, value), a)


def all_finite(a: Tree) -> Bool[Array, ""]:
    """Whether no entry is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(a)] or [jnp.array(True)]))


def size(a: Tree) -> int:
    """Dimension n of the vector."""
    return sum(x.size for x in jax.tree.leaves(a))


def dtype(a: Tree) -> Any:
    """The dtype in which inner products of ``a`` are held."""
    return jnp.result_type(*jax.tree.leaves(a)) if jax.tree.leaves(a) else jnp.result_type(float)


def eps(a: Tree) -> float:
    """Machine epsilon of the dtype of ``a``."""
    return float(jnp.finfo(dtype(a)).eps)


def standard_normal(key: Array, a: Tree) -> Tree:
    """A vector like ``a`` of independent N(0, 1) entries."""
    leaves, treedef = jax.tree.flatten(a)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def masked_mean(values: Tree, mask: Bool[Array, " k"]) -> Tree:
    """Mean over the leading axis of those entries where ``mask`` is True; NaN where it is nowhere.

    For batches of problems: what failed is left out whatever it holds, ``masked_mean(h.grad, ~h.failed)``.

    Parameters
    ----------
    values
        Pytree of arrays of shape (k, ...).
    mask
        Shape (k,).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> print(masked_mean(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True])))
    2.0
    """
    count = jnp.sum(mask)

    def mean(x):
        kept = jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0)
        return jnp.sum(kept, axis=0) / count.astype(x.dtype)

    return jax.tree.map(mean, values)


def strong(a: Tree) -> Tree:
    """The same arrays without weak types, so that ``1.0`` and ``jnp.ones(())`` compile to one program."""

    def strengthen(x):
        if isinstance(x, int | float):
            return np.asarray(x, jnp.result_type(x))  # put on the device with the call, not before it
        x = x if isinstance(x, jax.Array) else jnp.asarray(x)
        return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x

    return jax.tree.map(strengthen, a)


def in_double(a: Tree) -> Tree:
    """Floating arrays in float64, all others as they are; with x64 enabled."""
    return jax.tree.map(lambda x: jnp.asarray(x, float) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, a)


def in_single(a: Tree) -> Tree:
    """Arrays of float64 in float32, all others as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.result_type(x) == jnp.float64 else x, a)


def astype(a: Tree, like: Tree) -> Tree:
    """``a`` in the dtypes of ``like``."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), a, like)


def _total(sums: Tree) -> Float[Array, ""]:
    return jnp.sum(jnp.stack(jax.tree.leaves(sums))) if jax.tree.leaves(sums) else jnp.zeros(())
