"""The models that are tuned: their loss on every row, for many fits of the same data at once."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.models import logistic, multinomial
from bilevel.models.samples import half_squares
from bilevel.problems import Problem, minimization
from bilevel.tuning.fits import Fits, Goal, Hyperparameters, Weights, coefficients, log_penalties, scores

RowLosses = Callable[[Float[Array, "n fits c"], Float[Array, "n c"]], Float[Array, "n fits"]]


@dataclass(frozen=True, eq=False)
class Family:
    """A generalized linear model.

    Attributes
    ----------
    name
        ``ridge``, ``logistic`` or ``multinomial``.
    row_losses
        Negative log-likelihood of every row under the scores of every fit; ridge: half the squared residual.
    curvatures
        Mean second derivative of the row loss in the scores, shape (n, fits).
    unit
        The validation loss is this times the row loss: 2 makes half squares to squared errors.
    problem
        Lower level: the sum over the fits of ``(sum of training row losses + 1/2 sum_j penalty_j w_j^2) / n``.
        Upper level: the sum over the members of validation loss plus ``strength/2 |deviation|^2``.
    """

    name: str
    row_losses: RowLosses
    curvatures: RowLosses
    unit: float
    problem: Problem = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "problem", Problem(minimization(self.loss), self.goal))

    def loss(self, w: Weights, lam: Hyperparameters, fits: Fits) -> Float[Array, ""]:
        """The lower-level objective; it falls apart into one problem per fit."""
        C = coefficients(w, fits)
        penalty = jnp.exp(log_penalties(lam))[fits.member].T[:, :, None]
        data_term = jnp.sum(fits.train * self.row_losses(scores(C, w, fits.X), fits.y))
        return (data_term + 0.5 * jnp.sum(penalty * jnp.square(C))) / len(fits.X)

    def goal(self, w: Weights, lam: Hyperparameters, goal: Goal) -> Float[Array, ""]:
        """The upper-level objective; it falls apart into one per member."""
        rows = self.row_losses(scores(coefficients(w, goal.fits), w, goal.fits.X), goal.fits.y)
        prior = 0.5 * jnp.sum(goal.strength[:, None] * jnp.square(lam["deviation"]))
        return self.unit * jnp.sum(goal.fits.share[None] * goal.fits.held_out * rows) + prior


def _ridge(z, y):
    return half_squares(z[..., 0], y)


def _ones(z, y):
    return jnp.ones(z.shape[:2], z.dtype) * jnp.ones_like(y)


def _logistic(z, y):
    return logistic.row_losses(z[..., 0], 2 * y - 1)  # labels come as 0 and 1


def _bernoulli_variance(z, y):  # noqa: ARG001 - the curvature of a likelihood in its natural parameter knows no y
    p = jax.nn.sigmoid(z[..., 0])
    return p * (1 - p)


def _multinomial(z, y):
    return multinomial.row_losses(z, y[:, None])


def _categorical_variance(z, y):  # noqa: ARG001 - as above
    p = jax.nn.softmax(z, axis=-1)
    return (1 - jnp.sum(jnp.square(p), axis=-1)) / z.shape[-1]


RIDGE = Family("ridge", _ridge, _ones, 2.0)
LOGISTIC = Family("logistic", _logistic, _bernoulli_variance, 1.0)
MULTINOMIAL = Family("multinomial", _multinomial, _categorical_variance, 1.0)
FAMILIES = {family.name: family for family in (RIDGE, LOGISTIC, MULTINOMIAL)}
