"""Losses and accuracies of predictions."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.tuning.families import Family
from bilevel.tuning.fits import Fits, Weights, coefficients, scores


@dataclass(frozen=True)
class Score:
    """How good predictions are.

    Attributes
    ----------
    loss
        Mean cross-entropy, or mean squared error of the standardized target.
    quality
        Accuracy, or the coefficient of determination R2.
    """

    loss: float
    quality: float


def score(family: Family, z: Float[np.ndarray, "rows c"], y: Float[np.ndarray, "rows c"]) -> Score:
    """Score linear scores ``z`` against standardized quantities, 0/1 or one-hot classes."""
    loss = float(_mean_loss(family, z, y))
    if family.name == "ridge":
        return Score(loss, 1.0 - loss / float(np.mean(np.square(y - np.mean(y))) or np.nan))
    right = z.argmax(axis=1) == y.argmax(axis=1) if y.shape[1] > 1 else (z[:, 0] > 0) == (y[:, 0] > 0.5)
    return Score(loss, float(np.mean(right)))


def pooled_scores(family: Family, members: int, w: Weights, fits: Fits) -> list[Score]:
    """Score of every member's predictions of held-out rows, pooled; a member holds out a row at most once."""
    judged = np.asarray(fits.held_out).any(axis=1)
    z = np.asarray(_held_out_scores(members, w, fits))[judged]
    return [score(family, z[:, m], np.asarray(fits.y)[judged]) for m in range(members)]


@partial(jax.jit, static_argnums=0)
def _mean_loss(family: Family, z: Float[Array, "rows c"], y: Float[Array, "rows c"]) -> Float[Array, ""]:
    return family.unit * jnp.mean(family.row_losses(z[:, None, :], y))


@partial(jax.jit, static_argnums=0)
def _held_out_scores(members: int, w: Weights, fits: Fits) -> Float[Array, "n members c"]:
    belongs = jax.nn.one_hot(fits.member, members, dtype=fits.X.dtype)
    z = scores(coefficients(w, fits), w, fits.X)
    return jnp.einsum("nf,fm,nfc->nmc", fits.held_out, belongs, z)
