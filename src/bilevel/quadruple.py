"""Functions of JAX evaluated in quadruple precision, on the host: unit roundoff 1e-34 where float64 has 1e-16.

JAX has no type beyond float64. What it traces of a function is a list of operations with known meaning, and each of
them is done here by NumPy, on arrays of the type ``numpy_quaddtype.QuadPrecDType`` (IEEE binary128). The inputs, in
float64, are taken as the numbers they are. Needs the extra ``quadruple``.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, subjaxprs
from numpy_quaddtype import QuadPrecDType

from bilevel.status import ProblemError

Tree = Any
Values = list[Any]

QUAD = QuadPrecDType()
EPS = 2.0**-112
MOST_WORK = 4e8  # scalar operations of an evaluation, at 20 to 50 ns each


def quadruple(x: Tree) -> Tree:
    """Floating arrays in quadruple precision, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(QUAD), x)


def double(x: Tree) -> Tree:
    """Rounded to float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float64), x)


def dot(a: Tree, b: Tree) -> float:
    """Inner product, rounded to float64."""
    return float(_dot(a, b))


def norm(a: Tree) -> float:
    """2-norm, rounded to float64; its squares do not underflow before that."""
    return float(np.sqrt(_dot(a, a)))


def _dot(a: Tree, b: Tree) -> Any:
    return sum(np.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def evaluate(function: Any, *args: Tree) -> Tree:
    """``function(*args)`` with all floating numbers in quadruple precision.

    Parameters
    ----------
    function
        Made by ``jax.jit``; traced in float64, so x64 has to be enabled.
    args
        Pytrees of arrays; floating ones in quadruple precision or less.

    Raises
    ------
    ProblemError
        It insists on less than float64 or rounds to that, has an operation that is not known here, or takes more than
        ``MOST_WORK``.
    """
    try:
        traced = function.trace(*jax.tree.map(lambda x: double(x) if _is_quadruple(x) else x, args))
    except TypeError as error:
        raise ProblemError(f"A function of the problem cannot be evaluated in float64: {error}") from error
    if work(traced.jaxpr.jaxpr) > MOST_WORK:
        raise ProblemError(f"In quadruple precision functions may have {MOST_WORK:.0e} operations, these have more.")
    with np.errstate(all="ignore"):  # as in JAX
        outputs = _run(traced.jaxpr, [_lifted(leaf) for leaf in jax.tree.leaves(args)])
    return jax.tree.unflatten(jax.tree.structure(traced.out_info), outputs)


def work(jaxpr: Jaxpr) -> float:
    """Scalar operations of an evaluation; those of a loop once."""

    def of(eqn: JaxprEqn) -> float:
        size = sum(math.prod(_shape(x)) for x in eqn.outvars)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            size *= math.prod(_shape(eqn.invars[0])[i] for i in contracted)
        return size

    return sum(map(of, jaxpr.eqns)) + sum(map(work, subjaxprs(jaxpr)))


def _run(jaxpr: ClosedJaxpr, args: Values) -> Values:
    """The outputs of a traced function, operation by operation."""
    values: dict[Var, Any] = dict(zip(jaxpr.jaxpr.invars, args, strict=True))
    values |= zip(jaxpr.jaxpr.constvars, map(_lifted, jaxpr.consts), strict=True)

    def read(x: Var | Literal) -> Any:
        return _lifted(x.val) if isinstance(x, Literal) else values[x]

    for eqn, dead in _needed(jaxpr.jaxpr):
        values |= zip(eqn.outvars, _apply(eqn, [read(x) for x in eqn.invars]), strict=True)
        for x in dead:
            del values[x]
    return [read(x) for x in jaxpr.jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> Iterator[tuple[JaxprEqn, list[Var]]]:
    """The operations on which an output depends, in order, and what is of no use after each."""
    live, found = {x for x in jaxpr.outvars if isinstance(x, Var)}, []
    for eqn in reversed(jaxpr.eqns):
        if live.isdisjoint(eqn.outvars):
            continue
        inputs = {x for x in eqn.invars if isinstance(x, Var)}
        unused = set(eqn.outvars) - live
        found.append((eqn, [*(inputs - live), *unused]))
        live = (live - set(eqn.outvars)) | inputs
    return reversed(found)


def _apply(eqn: JaxprEqn, args: Values) -> Values:
    """The outputs of one operation."""
    name, params = eqn.primitive.name, eqn.params
    if name in CALLS:
        inner = params[CALLS[name]]
        return _run(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), args)
    if not any(_floating(x.aval) for x in (*eqn.invars, *eqn.outvars)):
        return _bound(eqn, args)
    if name in MOVES:
        return _moved(eqn, args)
    if name in POINTWISE:
        return [POINTWISE[name](*args)]
    if name in RULES:
        return [RULES[name](*args, **params)]
    raise _unknown(name)


def _bound(eqn: JaxprEqn, args: Values) -> Values:
    """By JAX itself: exact for integers and truth values."""
    out = eqn.primitive.bind(*args, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _moved(eqn: JaxprEqn, args: Values) -> Values:
    """What only moves entries moves their numbers as well, which JAX can do."""
    flat = np.concatenate([x.ravel() for x in args if _is_quadruple(x)])
    numbers, begin = [], 0
    for x in args:
        if _is_quadruple(x):
            numbers.append(np.arange(begin, begin + x.size).reshape(x.shape))
            begin += x.size
        else:
            numbers.append(x)
    outs = [np.asarray(out) for out in _bound(eqn, numbers)]
    if any(out.size and out.min() < 0 for out in outs):
        raise _unknown(f"{eqn.primitive.name} out of bounds")
    return [flat[out] for out in outs]


def _dot_general(a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    """As products of matrices, one for each index of the batch."""
    (of_a, of_b), (batch_a, batch_b) = dimension_numbers
    free_a, free_b = (
        [i for i in range(x.ndim) if i not in (*used, *batch)]
        for x, used, batch in ((a, of_a, batch_a), (b, of_b, batch_b))
    )
    shape = [a.shape[i] for i in (*batch_a, *free_a)] + [b.shape[i] for i in free_b]
    batch, inner = math.prod(a.shape[i] for i in batch_a), math.prod(a.shape[i] for i in of_a)
    left = a.transpose((*batch_a, *free_a, *of_a)).reshape(batch, -1, inner)
    right = b.transpose((*batch_b, *of_b, *free_b)).reshape(batch, inner, -1)
    # One by one and in this order: matmul of numpy_quaddtype 1.0 is wrong for stacks of matrices and for all others.
    products = [np.ascontiguousarray(x) @ np.ascontiguousarray(y) for x, y in zip(left, right, strict=True)]
    return np.concatenate(products).reshape(shape)


def _broadcast_in_dim(x: Any, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> Any:
    spread = [1] * len(shape)
    for size, i in zip(x.shape, broadcast_dimensions, strict=True):
        spread[i] = size
    return np.broadcast_to(x.reshape(spread), shape)


def _convert_element_type(x: Any, *, new_dtype: Any, **_: Any) -> Any:
    if not _is_quadruple(x):
        return _lifted(np.asarray(x).astype(np.float64))
    if new_dtype != np.float64:
        raise _unknown(f"conversion to {new_dtype}")
    return x


def _select_n(which: Any, *cases: Any) -> Any:
    chosen = cases[0]
    for i, case in enumerate(cases[1:], start=1):
        chosen = np.where(np.asarray(which) == i, case, chosen)
    return chosen


def _reduction(ufunc: np.ufunc) -> Callable[..., Any]:
    return lambda x, *, axes, **_: np.asarray(ufunc.reduce(x, axis=tuple(axes)))


def _unknown(operation: str) -> ProblemError:
    return ProblemError(f"A function of the problem has an operation unknown in quadruple precision: {operation}.")


def _lifted(x: Any) -> Any:
    """Floating numbers in quadruple precision, all others as they are."""
    if _is_quadruple(x) or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return x
    return np.asarray(x).astype(QUAD)


def _shape(x: Var | Literal) -> tuple[int, ...]:
    return getattr(x.aval, "shape", ())


def _is_quadruple(x: Any) -> bool:
    return getattr(x, "dtype", None) == QUAD


def _floating(aval: Any) -> bool:
    return jnp.issubdtype(getattr(aval, "dtype", np.bool_), jnp.floating)


# Where the traced function of a call stands among its parameters.
CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}

MOVES = {
    "concatenate", "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "pad", "rev", "slice", "split",
    "stack", "tile", "unstack",
}  # fmt: skip

POINTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "copy": lambda x: x,
    "cos": np.cos,
    "cosh": np.cosh,
    "div": np.divide,
    "eq": np.equal,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": lambda x: x,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
}

RULES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "convert_element_type": _convert_element_type,
    "dot_general": _dot_general,
    "integer_pow": lambda x, *, y: np.power(x, QUAD.type(y)),
    "reduce_max": _reduction(np.maximum),
    "reduce_min": _reduction(np.minimum),
    "reduce_sum": _reduction(np.add),
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "select_n": _select_n,
    "squeeze": lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
}
