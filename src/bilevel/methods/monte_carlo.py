"""Bias and variance of a stochastic method, measured over many independent runs."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.methods.base import Method
from bilevel.methods.stochastic import require_key, spread
from bilevel.precision import full_precision
from bilevel.problems import Problem, validate
from bilevel.status import ProblemError, raise_if_failed

Tree = Any

CHUNK = 64  # runs computed as one batch


@tree.record
@dataclass(frozen=True)
class MonteCarlo:
    """What R independent hypergradients have in common, and how they scatter.

    Attributes
    ----------
    mean
        Their mean, a pytree like ``lam``.
    variance
        Sum over the components of the variance of a single one.
    standard_error
        ``sqrt(variance / R)``, of the mean.
    bias
        ``mean - truth``; NaN where no truth was given.
    mse, mse_standard_error
        Mean squared 2-norm of the error of a single one, and its standard error; NaN where no truth was given.
    status
        The gravest :class:`~bilevel.status.Status` of the runs.
    runs
        Their number R.
    """

    mean: Tree
    variance: Float[Array, ""]
    standard_error: Float[Array, ""]
    bias: Tree
    mse: Float[Array, ""]
    mse_standard_error: Float[Array, ""]
    status: Int[Array, ""]
    runs: int = field(metadata={"static": True})


@full_precision
def monte_carlo(
    problem: Problem,
    lam: Tree,
    w0: Tree,
    *,
    method: Method,
    key: Array,
    runs: int,
    truth: Tree | None = None,
    lower_data: Tree = None,
    upper_data: Tree = None,
    v0: Tree | None = None,
    chunk: int = CHUNK,
) -> MonteCarlo:
    """Bias, variance and mean squared error of the ``grad`` of a stochastic method over independent runs.

    Parameters
    ----------
    problem, lam, w0, lower_data, upper_data, v0
        As of :func:`~bilevel.hypergradient.hypergradient`.
    method
        The method, such as ``SID(..., runs=1)``: each of the ``runs`` here is one whole call of it.
    key
        Random key, split over the runs.
    runs
        Number of runs, at least 2.
    truth
        The hypergradient to compare with, a pytree like ``lam``.
    chunk
        Runs that are computed as one batch; it does not change the result but for rounding.

    Raises
    ------
    ProblemError
        An argument has the wrong form.
    ConvergenceError
        A run failed; ``.result`` holds the readout of all.
    """
    if runs < 2 or chunk < 1:
        raise ProblemError(f"runs must be at least 2 and chunk at least 1, but they are {runs} and {chunk}.")
    method.check(problem)
    problem, lam, w0, v0, method = tree.strong((problem, lam, w0, v0, method))
    keys = jax.random.split(require_key("monte_carlo", key), runs)
    readout = _compute(method, problem, lam, w0, v0, lower_data, upper_data, keys, truth, chunk=min(chunk, runs))
    raise_if_failed(readout, f"At least one of {runs} runs")
    return readout


@partial(jax.jit, static_argnames="chunk")
def _compute(method, problem, lam, w0, v0, lower_data, upper_data, keys, truth, *, chunk) -> MonteCarlo:
    validate(problem, lam, w0, lower_data, upper_data)

    def one(key: Array) -> tuple[Tree, Array]:
        h = method(problem, lam, w0, v0, lower_data, upper_data, key, error=False)
        return h.grad, h.status

    grads, statuses = jax.lax.map(one, keys, batch_size=chunk)
    runs = keys.shape[0]
    mean, variance, standard_error = spread(grads)
    nan = jnp.full_like(variance, jnp.nan)
    readout = MonteCarlo(mean, variance, standard_error, tree.fill(mean, jnp.nan), nan, nan, jnp.max(statuses), runs)
    if truth is None:
        return readout
    squares = jax.vmap(lambda grad: tree.norm(tree.sub(grad, truth)) ** 2)(grads)
    of_squares = spread(squares)
    return replace(
        readout, bias=tree.sub(mean, truth), mse=of_squares.mean, mse_standard_error=of_squares.standard_error
    )
