"""Many fits of one model to parts of one table, as one problem.

A *fit* is a set of training rows with its own weights; a *member* is a set of fits that share
hyperparameters. Member 0 has all folds and gives the penalties that are used; every other member leaves out a
selection part, which judges what was tuned without it. X is shared, rows are chosen by 0/1 weights.
"""

from dataclasses import dataclass, replace
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel import tree

MOST_DENSE = 30_000_000  # entries of all dense transforms together
MOST_SELECTIONS = 5


class Hyperparameters(TypedDict):
    """``log penalty_j = shared + deviation_j``, one row per member."""

    shared: Float[Array, " members"]
    deviation: Float[Array, "members d"]


class Weights(TypedDict):
    """Coefficients in the coordinates of ``Fits.transform``, and intercepts (the first class of several has 0)."""

    coef: Float[Array, "fits d c"]
    intercept: Float[Array, "fits b"]


@tree.record
@dataclass(frozen=True)
class Fits:
    """The data of all fits.

    Attributes
    ----------
    X, y
        Features (n, d) and targets (n, c): standardized quantities, 0/1, or one-hot classes.
    train, held_out
        0/1 weights (n, fits): rows a fit is trained on, rows it is judged on.
    share
        Shape (fits,): one over the validation rows of the fit's member, 0 for the fits that only judge.
    member
        Shape (fits,): which row of the hyperparameters a fit uses.
    transform
        The coefficients are ``transform @ coef``: dense (fits, d, d) or diagonal (fits, d). The solution does
        not depend on it; close to the inverse root of the Hessian, it makes every solve well conditioned.
    """

    X: Float[Array, "n d"]
    y: Float[Array, "n c"]
    train: Float[Array, "n fits"]
    held_out: Float[Array, "n fits"]
    share: Float[Array, " fits"]
    member: Int[Array, " fits"]
    transform: Float[Array, "fits d d"] | Float[Array, "fits d"]


@tree.record
@dataclass(frozen=True)
class Goal:
    """Data of the upper level: the fits, and the strength of the prior of every member."""

    fits: Fits
    strength: Float[Array, " members"]


@dataclass(frozen=True)
class Columns:
    """Rows of every fit as Boolean columns (n, fits), its member, and whether the upper level sees it."""

    train: np.ndarray
    held_out: np.ndarray
    member: np.ndarray
    validates: np.ndarray


def columns(fold: Int[np.ndarray, " n"], folds: int, holdout: bool) -> Columns:
    """The fits of tuning with selection.

    Member 0 validates on every fold, or on fold 0 alone with ``holdout``. Member s leaves out selection part s
    (the folds ``k = s - 1 modulo 5``), validates on the folds (one fold) of the rest, and has one more fit, on
    all of the rest, judged on the selection part.
    """
    parts = min(folds, MOST_SELECTIONS)
    made = []
    for s in range(parts + 1):
        rest = np.full(len(fold), True) if s == 0 else fold % parts != s - 1
        inner = sorted(set(fold[rest].tolist()), key=lambda k, s=s: (k - s) % folds)
        validating = inner[:1] if holdout else inner
        made.extend((rest & (fold != k), fold == k, s, True) for k in validating)
        if s > 0:
            made.append((rest, ~rest, s, False))
    train, held_out, member, validates = zip(*made, strict=True)
    return Columns(np.stack(train, 1), np.stack(held_out, 1), np.array(member), np.array(validates))


def finals(which: Columns, models: int, judged: int) -> Columns:
    """The validating fits of member 0 and one fit on all rows, for each of several models with their own penalties.

    Only the validation of the model ``judged`` reaches the upper level.
    """
    keep = (which.member == 0) & which.validates
    everything = np.full((len(which.train), 1), True)
    train = np.concatenate([which.train[:, keep], everything], axis=1)
    held_out = np.concatenate([which.held_out[:, keep], ~everything], axis=1)
    member = np.repeat(np.arange(models), keep.sum() + 1)
    validates = np.tile([*keep[keep], False], models) & (member == judged)
    return Columns(np.tile(train, models), np.tile(held_out, models), member, validates)


def make_fits(X: np.ndarray, y: np.ndarray, which: Columns, dtype: Any) -> Fits:
    """Put data and columns together, with the identity as the transform."""
    seen = np.sum(which.held_out * which.validates, axis=0)
    validation_rows = np.bincount(which.member, weights=seen)
    share = which.validates / np.maximum(validation_rows[which.member], 1)
    number, d = len(which.member), X.shape[1]
    dense = number * d * d <= MOST_DENSE
    transform = np.tile(np.eye(d), (number, 1, 1)) if dense else np.ones((number, d))
    return Fits(
        X=jnp.asarray(X, dtype),
        y=jnp.asarray(y, dtype),
        train=jnp.asarray(which.train, dtype),
        held_out=jnp.asarray(which.held_out, dtype),
        share=jnp.asarray(share, dtype),
        member=jnp.asarray(which.member),
        transform=jnp.asarray(transform, dtype),
    )


def plain(fits: Fits) -> Fits:
    """The same fits in the coordinates of the coefficients themselves."""
    d, dtype = fits.X.shape[1], fits.X.dtype
    identity = jnp.eye(d, dtype=dtype) if fits.transform.ndim == 3 else jnp.ones(d, dtype)
    return replace(fits, transform=jnp.broadcast_to(identity, fits.transform.shape))


def zero_weights(fits: Fits) -> Weights:
    """The start of the first solve."""
    (_, d), c, number = fits.X.shape, fits.y.shape[1], len(fits.member)
    dtype = fits.X.dtype
    return Weights(coef=jnp.zeros((number, d, c), dtype), intercept=jnp.zeros((number, max(c - 1, 1)), dtype))


def log_penalties(lam: Hyperparameters) -> Float[Array, "members d"]:
    """``shared + deviation_j``."""
    return lam["shared"][:, None] + lam["deviation"]


def coefficients(w: Weights, fits: Fits) -> Float[Array, "d fits c"]:
    """Coefficients on the standardized features."""
    if fits.transform.ndim == 2:
        return jnp.moveaxis(fits.transform[:, :, None] * w["coef"], 0, 1)
    return jnp.einsum("fde,fec->dfc", fits.transform, w["coef"])


def intercepts(w: Weights, c: int) -> Float[Array, "fits c"]:
    """Intercepts of all classes, that of the first of several being 0."""
    b = w["intercept"]
    return b if c == 1 else jnp.concatenate([jnp.zeros_like(b[:, :1]), b], axis=1)


def scores(C: Float[Array, "d fits c"], w: Weights, X: Float[Array, "n d"]) -> Float[Array, "n fits c"]:
    """``X C + intercept``."""
    d, number, c = C.shape
    return (X @ C.reshape(d, number * c)).reshape(-1, number, c) + intercepts(w, c)[None]
