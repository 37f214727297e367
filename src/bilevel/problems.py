"""Bilevel problems: a lower level ``F(w, lam) = 0`` and an upper objective ``U(w, lam)``."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.batch_axes import Axes, as_axes, spread
from bilevel.linear.operator import LinearOperator
from bilevel.prox import ProximalGradient
from bilevel.status import ProblemError

Tree = Any
Function = Callable[[Tree, Tree, Tree], Any]
Kind = Literal["minimization", "fixed_point", "root"]


@tree.record
@dataclass(frozen=True)
class Lower:
    """A lower-level problem, read as the residual equation ``F(w, lam) = 0``.

    Made by :func:`minimization`, :func:`fixed_point`, :func:`composite`, :func:`root` and :func:`batched`. With
    ``members``, the axes of a batch of independent problems, ``function`` is that of one member and ``A`` is block
    diagonal.
    """

    function: Function = field(metadata={"static": True})
    kind: Kind = field(metadata={"static": True})
    symmetric: bool = field(metadata={"static": True})
    step: Any = None
    members: Axes | None = field(default=None, metadata={"static": True})

    def each(
        self, function: Callable[..., Any], w: Tree, lam: Tree, data: Tree, *vectors: Tree, out_axes: Any = 0
    ) -> Any:
        """``function(member, w, lam, data, *vectors)`` for every member of a batch at once, ``vectors`` being like w.

        For a problem that is no batch, itself is the only member.
        """
        if self.members is None:
            return function(self, w, lam, data, *vectors)
        member, axes = replace(self, members=None), self.member_axes
        in_axes = (*axes, *[axes[0]] * len(vectors))
        return jax.vmap(partial(function, member), in_axes, out_axes)(w, lam, data, *vectors)

    @property
    def member_axes(self) -> tuple[Any, Any, Any]:
        """``in_axes`` of ``jax.vmap`` for ``(w, lam, data)`` of a batch."""
        assert self.members is not None
        return self.members.structure.unflatten(self.members.leaves)

    def loss(self, w: Tree, lam: Tree, data: Tree) -> Float[Array, ""]:
        """What a minimization minimizes; of a batch the sum over its members."""
        losses = self.each(lambda one, *arguments: one.function(*arguments), w, lam, data)
        return losses if self.members is None else jnp.sum(losses)

    def residual(self, w: Tree, lam: Tree, data: Tree) -> Tree:
        """``F(w, lam)``, a vector like ``w``. Cost: one matvec."""
        if self.members is not None:
            return self.each(Lower.residual, w, lam, data, out_axes=self.member_axes[0])
        if self.kind == "minimization":
            return jax.grad(self.function)(w, lam, data)
        if self.kind == "fixed_point":
            return tree.sub(w, self.function(w, lam, data))
        return self.function(w, lam, data)

    def pairing(self, v: Tree, w: Tree, lam: Tree, data: Tree) -> Float[Array, ""]:
        """``<v, F(w, lam)>``; for a minimization the derivative of the loss along ``v``."""
        if self.members is not None:
            return jnp.sum(self.each(lambda one, w, lam, data, v: one.pairing(v, w, lam, data), w, lam, data, v))
        if self.kind == "minimization":
            return jax.jvp(lambda w: self.function(w, lam, data), (w,), (v,))[1]
        return tree.dot(v, self.residual(w, lam, data))

    def linearize(self, w: Tree, lam: Tree, data: Tree) -> tuple[Tree, LinearOperator]:
        """``F(w, lam)`` and ``A = d_w F(w, lam)``; the nonlinear part is evaluated once, here."""
        F, mv = jax.linearize(lambda w: self.residual(w, lam, data), w)
        step = self.step if self.kind == "minimization" else 1.0
        batch = self.members is not None
        if self.symmetric:
            definite = self.kind == "minimization"
            return F, LinearOperator(mv, mv, symmetric=True, definite=definite, step=step, batch=batch)
        transpose = jax.linear_transpose(mv, w)
        return F, LinearOperator(mv, lambda x: transpose(x)[0], step=step, batch=batch)


@tree.record
@dataclass(frozen=True)
class ConstantsOf:
    """A function ``(lam, lower_data, upper_data) -> Constants`` as a pytree that holds no array.

    Unlike ``jax.tree_util.Partial`` it equals another of the same function.
    """

    function: Callable[[Tree, Tree, Tree], Any] = field(metadata={"static": True})

    def __call__(self, lam: Tree, lower_data: Tree, upper_data: Tree) -> Any:
        """Constants at this ``lam`` and these data."""
        return self.function(lam, lower_data, upper_data)


@tree.record
@dataclass(frozen=True)
class Problem:
    """A bilevel problem ``min_lam U(w(lam), lam)`` with ``w(lam)`` given by the lower level.

    Parameters
    ----------
    lower
        The lower level, from :func:`minimization`, :func:`fixed_point`, :func:`composite` or :func:`root`.
    upper
        ``upper(w, lam, data) -> scalar``, the upper-level objective.
    constants
        :class:`~bilevel.certificates.constants.Constants` for proved bounds, or a function
        ``(lam, lower_data, upper_data) -> Constants``, which is kept as :class:`ConstantsOf`; None where they are
        not known.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bilevel as bl
    >>> lower = bl.minimization(lambda w, lam, data: jnp.sum((w - data) ** 2) + lam * jnp.sum(w**2))
    >>> problem = bl.Problem(lower, lambda w, lam, data: jnp.sum((w - data) ** 2))
    >>> train, valid = jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0])
    >>> h = bl.hypergradient(problem, 0.5, jnp.zeros(2), lower_data=train, upper_data=valid)
    >>> print(f"{h.grad:.4f}")  # w = 2 / (1 + lam), so U' = 2 (w - 1) * -2 / (1 + lam)^2
    -0.5926
    """

    lower: Lower
    upper: Function = field(metadata={"static": True})
    constants: Any = None

    def __post_init__(self):
        if callable(self.constants) and jax.tree_util.all_leaves([self.constants]):
            object.__setattr__(self, "constants", ConstantsOf(self.constants))


def minimization(loss: Function, step: Any = None) -> Lower:
    """Lower level ``w(lam) = argmin_w loss(w, lam, data)``, so ``F = d_w loss`` and ``A`` its Hessian.

    Parameters
    ----------
    loss
        ``loss(w, lam, data) -> scalar``, twice differentiable in ``w``.
    step
        Step of gradient descent on it (for the map ``w - step * d_w loss``); estimated where needed and None.
    """
    return Lower(loss, "minimization", symmetric=True, step=step)


def fixed_point(fp_map: Function, symmetric: bool = False) -> Lower:
    """Lower level ``w(lam) = fp_map(w(lam), lam, data)``, so ``F = w - fp_map`` and ``A = I - d_w fp_map``.

    Parameters
    ----------
    fp_map
        ``fp_map(w, lam, data) -> w``, of the structure, shapes and dtypes of ``w``.
    symmetric
        Promise that ``d_w fp_map`` is symmetric; CG is allowed only then.
    """
    return Lower(fp_map, "fixed_point", symmetric)


def composite(
    smooth: Function, prox: Callable[[Tree, Tree, Any], Tree], step: float | Callable[[Tree, Tree], Any]
) -> Lower:
    """Lower level ``w(lam) = argmin_w smooth(w, lam, data) + g(w, lam)``, with a nonsmooth g given by its prox.

    It is the fixed point of ``prox(w - step * d_w smooth(w))``, a :func:`fixed_point` for every method.

    Parameters
    ----------
    smooth
        ``smooth(w, lam, data) -> scalar``, twice differentiable in ``w``; for stochastic methods a mean over the
        samples of a batch.
    prox
        ``prox(u, lam, step) = argmin_w g(w, lam) + |w - u|^2 / (2 step)``, made of :mod:`bilevel.prox` or of
        ``optax.projections``.
    step
        Positive; below ``2 / L`` for the smoothness L of ``smooth``. A number, or a function ``(lam, data) -> number``
        that is evaluated at every step; of data that are drawn in batches it may use those leaves only that are
        not batched.

    Raises
    ------
    ProblemError
        ``step`` is something else.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bilevel as bl
    >>> from bilevel.prox import soft_threshold
    >>> def smooth(w, lam, data):
    ...     return jnp.sum((w - data) ** 2) / 2
    >>> lower = bl.composite(smooth, lambda u, lam, step: soft_threshold(u, step * lam), step=0.5)
    >>> problem = bl.Problem(lower, lambda w, lam, data: jnp.sum((w - data) ** 2) / 2)
    >>> train, valid = jnp.array([2.0, 0.1]), jnp.array([1.0, 1.0])
    >>> h = bl.hypergradient(problem, 0.5, jnp.zeros(2), lower_data=train, upper_data=valid)
    >>> print(f"{h.grad:.4f}")  # w = (2 - lam, 0), so U' = -(w_1 - 1)
    -0.5000
    """
    if not (callable(step) or (isinstance(step, int | float) and step > 0)):
        raise ProblemError(f"step must be a positive number or a function (lam, data) -> number, but is {step!r}.")
    return fixed_point(ProximalGradient(smooth, prox, step))


def root(residual: Function, symmetric: bool = False) -> Lower:
    """Lower level ``residual(w(lam), lam, data) = 0``.

    Parameters
    ----------
    residual
        ``residual(w, lam, data)``, of the structure, shapes and dtypes of ``w``.
    symmetric
        Promise that ``d_w residual`` is symmetric; CG is allowed only then.
    """
    return Lower(residual, "root", symmetric)


def batched(lower: Lower, in_axes: Any = (0, None, 0)) -> Lower:
    """Independent lower-level problems of one kind, solved side by side: folds, tasks.

    The functions of ``lower`` are those of one member. Every member has its own steps and status, and ``A`` is block
    diagonal: it is never factorized as one dense matrix. The upper-level objective takes the ``w`` of all members.

    Parameters
    ----------
    lower
        The problem of one member.
    in_axes
        Where the members lie in ``(w, lam, data)``, as in ``jax.vmap``: an axis, None for what all members share, or a
        pytree of these for each of the three.

    Raises
    ------
    ProblemError
        ``lower`` is a batch already, ``in_axes`` has not three entries, or members share ``w``.

    Examples
    --------
    Two folds of a ridge regression, one penalty for both:

    >>> import jax.numpy as jnp
    >>> import bilevel as bl
    >>> def loss(w, lam, data):
    ...     x, y, weights = data
    ...     return jnp.sum(weights * (w * x - y) ** 2) + lam * w**2
    >>> def validation(w, lam, data):
    ...     x, y, weights = data  # rows by folds, as in the lower level
    ...     return jnp.sum((1 - weights) * (x[:, None] * w[None] - y[:, None]) ** 2)
    >>> lower = bl.batched(bl.minimization(loss), in_axes=(0, None, (None, None, 1)))
    >>> data = jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]), jnp.eye(2)
    >>> h = bl.hypergradient(bl.Problem(lower, validation), 1.0, jnp.zeros(2), lower_data=data, upper_data=data)
    >>> print(h.w.round(3), h.lower.status, f"{h.grad:.3f}")
    [0.5 1.2] [0 0] 1.904
    """
    if lower.members is not None:
        raise ProblemError("lower is a batch already: give batched(...) the problem of one member.")
    if not isinstance(in_axes, tuple) or len(in_axes) != 3:
        raise ProblemError(f"in_axes must hold three entries, those of w, lam and data, but is {in_axes!r}.")
    if None in jax.tree.leaves(in_axes[0], is_leaf=lambda axis: axis is None):
        raise ProblemError(f"Every leaf of w needs an axis for the members, but in_axes holds {in_axes[0]!r} for w.")
    return replace(lower, members=as_axes(in_axes))


def validate_lower(lower: Lower, lam: Tree, w: Tree, data: Tree) -> None:
    """Check the forms of ``w``, ``lam`` and what the lower-level function returns; runs at trace time.

    Raises
    ------
    ProblemError
        One sentence that names the argument, what was expected and what came.
    """
    _require_floating("w0", w)
    _require_floating("lam", lam)
    if lower.members is not None:
        members = [_first_member(*pair) for pair in zip(lower.member_axes, (w, lam, data), strict=True)]
        lower, (w, lam, data) = replace(lower, members=None), members
    if lower.kind == "minimization":
        _require_scalar("loss", lower.function, w, lam, data)
    elif isinstance(lower.function, ProximalGradient):
        _require_scalar("smooth", lower.function.smooth, w, lam, data)
        _require_like_w("prox", lower.function, w, lam, data)
    else:
        _require_like_w("fp_map" if lower.kind == "fixed_point" else "residual", lower.function, w, lam, data)


def validate(
    problem: Problem,
    lam: Tree,
    w: Tree,
    lower_data: Tree,
    upper_data: Tree,
    reach: Callable[..., Tree] = lambda *_: (),
) -> None:
    """Check a whole problem, and that ``lam`` matters; runs at trace time, once per shapes.

    Whether a leaf of ``lam`` reaches ``F`` is read off the jaxpr: numerically ``d_lam F = 0`` at ``w = 0`` for
    every ridge problem. ``reach(problem, lam, w, lower_data)`` is what of the method itself depends on ``lam``.

    Raises
    ------
    ProblemError
        One sentence that names the argument, what was expected and what came.
    """
    validate_lower(problem.lower, lam, w, lower_data)
    _require_scalar("upper", problem.upper, w, lam, upper_data)
    reaches_lower = leaves_used(problem.lower.residual, w, lam, lower_data)
    reaches_upper = leaves_used(problem.upper, w, lam, upper_data)
    reaches_method = leaves_used(lambda w, lam, data: reach(problem, lam, w, data), w, lam, lower_data)
    if not any(reaches_lower) and not any(reaches_method):
        raise ProblemError(
            "lam does not reach the lower-level problem: no leaf of lam enters its residual, so the solution "
            "does not depend on lam. If lam is the starting point of the training, use ITD(learned_start=...), "
            "or add a proximal term such as |w - lam|^2 to the loss."
        )
    for (path, _), *uses in zip(
        jax.tree_util.tree_leaves_with_path(lam), reaches_lower, reaches_upper, reaches_method, strict=True
    ):
        if not any(uses):
            raise ProblemError(
                f"lam{jax.tree_util.keystr(path)} enters neither the lower-level problem nor the upper objective; "
                "remove it from lam or use it."
            )


def _first_member(axes: Any, batch: Tree) -> Tree:
    """The shapes of one member."""
    leaves, structure = jax.tree.flatten(batch)
    taken = [
        x if axis is None else jax.eval_shape(lambda x, axis=axis: jax.lax.index_in_dim(x, 0, axis, False), x)
        for x, axis in zip(leaves, spread(axes, batch), strict=True)
    ]
    return structure.unflatten(taken)


def _require_floating(name: str, value: Tree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(value)
    if not leaves:
        raise ProblemError(f"{name} must hold at least one floating array, but it has no leaves.")
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ProblemError(
                f"{name}{jax.tree_util.keystr(path)} must be a floating array, but its dtype is "
                f"{jnp.result_type(leaf)}; integer and boolean choices have no gradient: pass them in data, or convert."
            )


def _require_scalar(name: str, function: Function, w: Tree, lam: Tree, data: Tree) -> None:
    out = jax.eval_shape(function, w, lam, data)
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise ProblemError(f"{name} must return one floating scalar, but it returned {jax.tree.structure(out)}.")
    if out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ProblemError(
            f"{name} must return one floating scalar, but it returned shape {out.shape} of dtype {out.dtype}."
        )


def _require_like_w(name: str, function: Function, w: Tree, lam: Tree, data: Tree) -> None:
    out = jax.eval_shape(function, w, lam, data)
    if jax.tree.structure(out) != jax.tree.structure(w):
        raise ProblemError(
            f"{name} must return the structure of w0, {jax.tree.structure(w)}, "
            f"but it returned {jax.tree.structure(out)}."
        )
    for (path, have), want in zip(jax.tree_util.tree_leaves_with_path(out), jax.tree.leaves(w), strict=True):
        if (have.shape, have.dtype) != (jnp.shape(want), jnp.result_type(want)):
            raise ProblemError(
                f"{name} must keep the shapes and dtypes of w0: at leaf w0{jax.tree_util.keystr(path)} it returned "
                f"{have.dtype}{list(have.shape)} for {jnp.result_type(want)}{list(jnp.shape(want))}."
            )


def leaves_used(function: Function, w: Tree, lam: Tree, data: Tree) -> list[bool]:
    """For every leaf of lam, whether the value of ``function(w, lam, data)`` depends on it structurally."""
    w, lam, data = jax.tree.map(jax.typeof, (w, lam, data))
    jaxpr = jax.make_jaxpr(function)(w, lam, data).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    first = len(jax.tree.leaves(w))
    return used[first : first + len(jax.tree.leaves(lam))]
