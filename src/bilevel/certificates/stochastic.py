"""Bounds for stochastic hypergradients: bias and mean squared error after t and k steps, with J samples.

For the map ``w - a F(w)`` with the step a, a q-contraction, sampled as ``w <- w - eta_i a F_z(w)``, and its adjoint
sampled as ``v <- v + eta_j a (d_w U - A_z^T v)``, both from zero; every draw of z independent of all others. With the
constants of ``F``, its noise (:class:`~bilevel.certificates.noise.Noise`), ``m = (1 - q) / a``, ``V = L_U / m >= |v|``,

    C = mu2 + nu2 V + L_B (nu1 V + mu1) / m                         |w - w*| changes the hypergradient by C |w - w*|

    rho   >= E|w_t - w*|^2      s1 of the recursion below is a^2 s1,       s2 is s2,          e_0 = D^2
    sigma >= E|v_k - v|^2       s1 is 2 a^2 m1 V^2,                        s2 is 2 m1 / m^2,  e_0 = V^2

    |E grad - true|   <= C sqrt(rho) + L_B |E v_k - v|,             |E v_k - v| <= V prod_j (1 - eta_j (1 - q))
    E|grad - true|^2  <= 2 m2 / J (V^2 + sigma) + 2 C^2 rho + 2 L_B^2 sigma

Any other solvers have a rho and a sigma, too. A q-contraction whose samples have variance ``s1 + s2 |T(w) - w|^2``
comes as close to its fixed point as ``e_{i+1} <= (1 - eta_i (1 - q^2)) e_i + eta_i^2 s1``, if all
``eta_i <= 1 / (1 + s2)``.

The constants ``L_U`` and ``L_B`` must hold wherever the iterates go. Those of
:func:`~bilevel.certificates.constants.on_ball` are about the ball ``|w - w*| <= D``, which noise may leave.

References
----------
Grazzi, Pontil and Salzo (2021), arXiv 2011.07122.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.certificates import apriori
from bilevel.certificates.constants import Constants
from bilevel.certificates.noise import Noise
from bilevel.schedules import Constant, Decreasing, Schedule, from_rates
from bilevel.status import ProblemError

Number = Any  # a scalar, Python's or an array
Counts = Any  # steps or samples, a number or an array of them; infinite is allowed


@tree.record
@dataclass(frozen=True)
class Recursion:
    """An iteration ``w <- w + eta_i (T_z(w) - w)`` of a sampled contraction T.

    Attributes
    ----------
    q
        Contraction factor of the mean T.
    s1, s2
        ``Var[T_z(w)] <= s1 + s2 |T(w) - w|^2``.
    start
        Squared distance of the start from the fixed point.
    """

    q: Number
    s1: Number
    s2: Number
    start: Number


@tree.record
@dataclass(frozen=True)
class Rates:
    """What the bounds are made of, at one ``lam``.

    Attributes
    ----------
    lower, adjoint
        The two iterations.
    adjoint_norm
        ``V``, a bound of the norm of the adjoint.
    sensitivity
        ``C``.
    mixed_norm, mixed_noise
        ``L_B`` and ``m2``.
    """

    lower: Recursion
    adjoint: Recursion
    adjoint_norm: Number
    sensitivity: Number
    mixed_norm: Number
    mixed_noise: Number


class Bound(NamedTuple):
    """Norm of the bias, and mean squared error, of a stochastic hypergradient."""

    bias: Float[Array, "..."]
    mse: Float[Array, "..."]


class Plan(NamedTuple):
    """Steps t and k, samples J and the two schedules that a wished accuracy needs."""

    t: Float[Array, "..."]
    k: Float[Array, "..."]
    J: Float[Array, "..."]
    lower: Constant | Decreasing
    adjoint: Constant | Decreasing


def rates(constants: Constants, noise: Noise, step: Number = None) -> Rates:
    """Rates of the map with this step; not a number where it is no contraction, or where ``D`` is zero.

    Parameters
    ----------
    constants, step
        As in :func:`bilevel.certificates.apriori.rates`.
    noise
        Of the batches that are drawn.

    Raises
    ------
    ProblemError
        A constant is missing.
    """
    c, r = constants, apriori.rates(constants, step)
    a = 1.0 if c.known("q") else 2 / (c.L + c.mu) if step is None else step
    m = (1 - r.q) / a
    V = c.L_U / m
    return Rates(
        lower=Recursion(r.q, a**2 * noise.s1, noise.s2, c.D**2),
        # Var[a A_z^T v] <= a^2 m1 |v|^2 and |v|^2 <= 2 V^2 + 2 |T(v) - v|^2 / (1 - q)^2.
        adjoint=Recursion(r.q, 2 * a**2 * noise.m1 * V**2, 2 * noise.m1 / m**2, V**2),
        adjoint_norm=V,
        sensitivity=(r.c1 + r.c2 / (1 - r.q)) / c.D,
        mixed_norm=c.L_B,
        mixed_noise=noise.m2,
    )


def squared_distance(r: Recursion, schedule: Schedule, t: Counts) -> Float[Array, "..."]:
    """Bound of ``E|w_t - w*|^2``; not a number where the schedule does not meet its conditions.

    Constant steps ``eta <= 1 / (1 + s2)``, with ``e = eta s1 / (1 - q^2)``:
    ``(1 - eta (1 - q^2))^t (e_0 - e) + e``. Decreasing steps with ``beta > 1 / (1 - q^2)`` and
    ``gamma >= beta (1 + s2)``: ``max(gamma e_0, beta^2 s1 / (beta (1 - q^2) - 1)) / (gamma + t)``.

    Raises
    ------
    ProblemError
        The schedule is another.
    """
    t, gap = jnp.asarray(t), 1 - r.q**2
    if isinstance(schedule, Constant):
        rest = schedule.eta * r.s1 / gap
        bound = _left(schedule.eta * gap, t) * (r.start - rest) + rest
        return jnp.where(schedule.eta * (1 + r.s2) <= 1 + _slack(bound), bound, jnp.nan)
    if isinstance(schedule, Decreasing):
        beta, gamma = schedule.beta, schedule.gamma
        bound = _reach(r, schedule) / (gamma + t)
        return jnp.where((beta * gap > 1) & (gamma * (1 + _slack(bound)) >= beta * (1 + r.s2)), bound, jnp.nan)
    raise ProblemError(
        f"bounds are known for the schedules Constant and Decreasing, but schedule is {type(schedule).__name__}."
    )


def damping(q: Number, schedule: Constant | Decreasing, k: Counts) -> Float[Array, "..."]:
    """Bound of ``prod_(j < k) (1 - eta_j (1 - q))``, the part of ``v`` that the mean of ``v_k`` still lacks.

    The mean of the iterates of an affine map follows the map exactly: noise is not in it. Of decreasing steps it is
    ``prod_j (1 - c / (gamma + j)) <= exp(-sum_j c / (gamma + j)) <= (gamma / (gamma + k))^c``, ``c = beta (1 - q)``.
    """
    k = jnp.asarray(k)
    if isinstance(schedule, Constant):
        return _left(schedule.eta * (1 - q), k)
    return (schedule.gamma / (schedule.gamma + k)) ** (schedule.beta * (1 - q))


def aid(r: Rates, rho: Number, sigma: Number, lack: Number, J: Counts) -> Bound:
    """Bias and mean squared error with any solvers.

    Parameters
    ----------
    r
        From :func:`rates`.
    rho, sigma
        Bounds of ``E|w_t - w*|^2`` and of ``E|v_k - v|^2``.
    lack
        Bound of ``|E v_k - v|``; ``sqrt(sigma)`` always is one.
    J
        Samples of the mixed derivative; infinite for the exact one.
    """
    bias = r.sensitivity * jnp.sqrt(rho) + r.mixed_norm * lack
    sampling = 2 * r.mixed_noise / jnp.asarray(J) * (r.adjoint_norm**2 + sigma)
    return Bound(bias, sampling + 2 * r.sensitivity**2 * rho + 2 * r.mixed_norm**2 * sigma)


def sid(
    r: Rates, t: Counts, k: Counts, J: Counts, lower: Constant | Decreasing, adjoint: Constant | Decreasing
) -> Bound:
    """Bias and mean squared error of SID after t and k steps with these schedules, with J samples.

    Examples
    --------
    >>> c = Constants(mu=0.5, L=1.5, nu1=0.0, nu2=1.0, mu1=1.0, mu2=0.0, D=1.0, L_U=1.0, L_B=2.0)
    >>> r = rates(c, Noise(s1=1.0, s2=1.0, m1=0.1, m2=0.1))
    >>> lower, adjoint = (from_rates(x.q, x.s2) for x in (r.lower, r.adjoint))
    >>> for t in (100, 10_000):
    ...     bound = sid(r, t, t, t, lower, adjoint)
    ...     print(f"bias {bound.bias:.1e}, mean squared error {bound.mse:.1e}")
    bias 1.6e+00, mean squared error 6.3e+00
    bias 1.6e-01, mean squared error 6.7e-02
    """
    rho, sigma = squared_distance(r.lower, lower, t), squared_distance(r.adjoint, adjoint, k)
    return aid(r, rho, sigma, r.adjoint_norm * damping(r.adjoint.q, adjoint, k), J)


def counts(r: Rates, eps: Number, kind: Literal["decreasing", "constant"] = "decreasing") -> Plan:
    """Steps, samples and schedules with which the mean squared error is at most ``eps^2``, a third from each term.

    Decreasing steps, those of :func:`~bilevel.schedules.from_rates`, take ``t`` of order ``1 / eps^2``. Constant steps
    are made for this ``eps``, small enough that the noise leaves a half of its third: ``log(1 / eps) / eps^2``.
    """
    third = jnp.asarray(eps) ** 2 / 3
    t, lower = _steps(r.lower, third / (2 * r.sensitivity**2), kind)
    wished = third / (2 * r.mixed_norm**2)
    k, adjoint = _steps(r.adjoint, wished, kind)
    J = 2 * r.mixed_noise * (r.adjoint_norm**2 + wished) / third
    return Plan(t, k, jnp.maximum(jnp.ceil(J), 1.0), lower, adjoint)


def _steps(r: Recursion, wished: Number, kind: str) -> tuple[Float[Array, "..."], Constant | Decreasing]:
    """Steps after which the squared distance is at most ``wished``, and their schedule."""
    if kind == "decreasing":
        schedule = from_rates(r.q, r.s2)
        return jnp.maximum(jnp.ceil(_reach(r, schedule) / wished - schedule.gamma), 0.0), schedule
    gap = 1 - r.q**2
    eta = jnp.minimum(1 / (1 + r.s2), wished * gap / (2 * r.s1))
    t = jnp.log(2 * r.start / wished) / -jnp.log1p(-eta * gap)
    return jnp.maximum(jnp.ceil(t), 0.0), Constant(eta)


def _reach(r: Recursion, schedule: Decreasing) -> Number:
    """``c`` of the bound ``c / (gamma + t)`` of decreasing steps."""
    noise = schedule.beta**2 * r.s1 / (schedule.beta * (1 - r.q**2) - 1)
    return jnp.maximum(schedule.gamma * r.start, noise)


def _left(part: Number, t: Counts) -> Float[Array, "..."]:
    """``(1 - part)^t`` without the rounding of ``1 - part``, which the power would enlarge."""
    return jnp.where(t > 0, jnp.exp(t * jnp.log1p(-part)), 1.0)


def _slack(like: Array) -> float:
    """Rounding by which a condition may be missed that is met with equality."""
    return 8 * float(jnp.finfo(like.dtype).eps)
