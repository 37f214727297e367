"""What stochastic methods share: independent runs, their joint outcome and its statistical error."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from scipy.special import stdtrit

from bilevel import tree
from bilevel.status import ProblemError, SolveInfo

Tree = Any

LEAST_CONFIDENCE = 0.8  # below it an error spread over several directions may exceed Student's quantile more often


class Spread(NamedTuple):
    """Mean of independent runs, and the sum over all components of their variance.

    ``standard_error`` is that of the mean: ``sqrt(variance / runs)``.
    """

    mean: Tree
    variance: Float[Array, ""]
    standard_error: Float[Array, ""]


def spread(values: Tree) -> Spread:
    """Of values with the runs along the leading axis of every leaf."""
    mean = mean_of_runs(values)
    deviations = jax.tree.map(lambda x, m: x - m[None], values, mean)
    runs = jax.tree.leaves(values)[0].shape[0]
    # Scaled before it is squared: gradients may be small or large.
    unit = tree.norm(deviations) / jnp.sqrt(max(runs - 1, 1))
    return Spread(mean, unit**2, unit / jnp.sqrt(runs))


def mean_of_runs(values: Tree) -> Tree:
    """Mean over the leading axis of every leaf."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), values)


def statistical_error(grads: Tree, with_half: Tree, confidence: float) -> Float[Array, ""]:
    """Estimated bias plus ``T`` times the standard errors of the mean and of that bias together.

    See :class:`~bilevel.methods.sid.SID`.

    Parameters
    ----------
    grads, with_half
        Hypergradients of R runs and those of the same runs with half the steps, leading axis R.
    confidence
        Two-sided confidence of Student's quantile ``T`` with ``R - 1`` degrees of freedom.
    """
    runs = jax.tree.leaves(grads)[0].shape[0]
    quantile = float(stdtrit(runs - 1, (1 + confidence) / 2))
    difference = spread(tree.sub(grads, with_half))
    noise = jnp.hypot(spread(grads).standard_error, difference.standard_error)
    return tree.norm(difference.mean) + quantile * noise


def joined(infos: SolveInfo) -> SolveInfo:
    """One info of those of all runs: costs together, the steps of a single run, of the first to fail where one does."""
    residual_norm = jnp.sqrt(jnp.mean(infos.residual_norm**2))
    return SolveInfo(jnp.min(infos.steps), jnp.sum(infos.matvecs), residual_norm, jnp.max(infos.status))


def require_key(method: str, key: Array | None) -> Array:
    """The key, which a stochastic method cannot do without."""
    if key is None:
        raise ProblemError(f"{method} draws random samples: give key=, such as jax.random.key(0).")
    return key


def check_runs(method: str, runs: int, confidence: float) -> None:
    """Refuse numbers out of range."""
    if runs < 1:
        raise ProblemError(f"runs of {method} must be at least 1, but is {runs}.")
    if not LEAST_CONFIDENCE <= confidence < 1:
        raise ProblemError(
            f"confidence of {method} must be at least {LEAST_CONFIDENCE} and below 1, but is {confidence}."
        )


def require_spread(method: str, runs: int) -> None:
    """An error estimate needs two runs."""
    if runs < 2:
        raise ProblemError(
            f"{method}(runs={runs}) has no spread to estimate its error from: give runs=2 or more, or error=False."
        )
