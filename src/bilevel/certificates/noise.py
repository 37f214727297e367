"""The noise of the batches that a sampler draws: what bounds for stochastic methods need besides constants."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.linear.spectral import power_iteration, probe_vector
from bilevel.precision import full_precision
from bilevel.problems import Problem
from bilevel.sampling import Sampler

Tree = Any
Number = Any  # a scalar, Python's or an array

DRAWS = 64
POWER_STEPS = 16
PARTS = (1.0, 0.5, 0.25, 0.125)  # of the way from w to w0 at which the growth of the noise is looked at


@tree.record
@dataclass(frozen=True)
class Noise:
    """How far samples of the lower level ``F(w, lam) = 0`` are from their mean, at one ``lam``.

    With ``Var[x] = E|x - E x|^2``, of one draw of a batch z, at every w that is met and for every vector v. Like those
    of :class:`~bilevel.certificates.constants.Constants` they are of ``F`` itself: no step enters.

    Attributes
    ----------
    s1, s2
        ``Var[F_z(w)] <= s1 + s2 |F(w)|^2``. ``s1`` has the unit of F^2.
    m1
        ``Var[A_z(w)^T v] <= m1 |v|^2`` with ``A_z = d_w F_z``. Unit of A^2.
    m2
        ``Var[B_z(w)^T v] <= m2 |v|^2`` with ``B_z = d_lam F_z``. Unit of B^2.
    """

    s1: Number
    s2: Number
    m1: Number
    m2: Number


@full_precision
def estimate_noise(
    problem: Problem,
    lam: Tree,
    w: Tree,
    lower_data: Tree,
    *,
    sampler: Sampler,
    key: Array,
    w0: Tree | None = None,
    draws: int = DRAWS,
) -> Noise:
    """Noise of a sampler from the variance over some draws; estimates, so a bound made of them is not proved.

    ``s1`` is twice the variance at ``w``, which with ``Var[x + y] <= 2 Var[x] + 2 Var[y]`` leaves a finite ``s2``: the
    most that the variance exceeds it, relative to ``|F|^2``, on the way to ``w0``. ``m1`` and ``m2`` are the largest
    eigenvalues of the covariances, by power iteration at ``w``.

    Parameters
    ----------
    problem, lam, lower_data
        As in :func:`bilevel.hypergradient`.
    w
        Near the solution.
    sampler
        What draws the batches.
    key
        Random key.
    w0
        Where the iteration starts; default zero.
    draws
        At least 2.

    Notes
    -----
    Cost: about 70 evaluations on each of the drawn batches. From below: other points, and directions that few draws do
    not show, may be noisier.
    """
    w0 = tree.zeros_like(w) if w0 is None else w0
    return _estimate(problem, tree.strong(lam), tree.strong(w), lower_data, sampler, key, w0, draws=draws)


@partial(jax.jit, static_argnames="draws")
def _estimate(
    problem: Problem, lam: Tree, w: Tree, data: Tree, sampler: Sampler, key: Array, w0: Tree, *, draws: int
) -> Noise:
    def samples(f: Callable[[Tree], Tree]) -> Float[Array, "draws n"]:
        """The same draws for every f."""

        def draw(stream, _):
            value, stream = sampler.evaluate(lambda batch: ravel_pytree(f(batch))[0], data, stream)
            return stream, value

        return jax.lax.scan(draw, sampler.start(data, key), length=draws)[1]

    def residuals(w: Tree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """``Var[F_z]`` and ``|F|^2`` at ``w``, both unbiased."""
        drawn = samples(lambda batch: problem.lower.residual(w, lam, batch))
        variance = _variance(drawn)
        return variance, jnp.sum(jnp.mean(drawn, axis=0) ** 2) - variance / draws

    def largest(argument: int) -> Float[Array, ""]:
        """``max Var[d<v, F_z>] / |v|^2`` over v, with d by w or lam: the dominant eigenvalue of half its Hessian."""

        def half(v: Tree) -> Float[Array, ""]:
            by = jax.grad(lambda w, lam, batch: problem.lower.pairing(v, w, lam, batch), argnums=argument)
            return _variance(samples(lambda batch: by(w, lam, batch))) / 2

        return power_iteration(jax.grad(half), probe_vector(w), POWER_STEPS)

    s1 = 2 * residuals(w)[0]
    growth = jnp.zeros_like(s1)
    for part in PARTS:
        variance, square = residuals(tree.axpy(part, tree.sub(w0, w), w))
        growth = jnp.maximum(growth, jnp.where(square > 0, (variance - s1) / jnp.where(square > 0, square, 1.0), 0.0))
    return Noise(s1, growth, largest(0), largest(1))


def _variance(drawn: Float[Array, "draws n"]) -> Float[Array, ""]:
    """``E|x - E x|^2``."""
    return jnp.sum(jnp.var(drawn, axis=0, ddof=1))
