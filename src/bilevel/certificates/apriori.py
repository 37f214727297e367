"""A-priori bounds of the error of a hypergradient: what t steps below and k products of the adjoint guarantee.

For the map ``Phi = w - a F`` with the step a, a q-contraction, started at ``w_0 = 0`` and ``v_0 = 0``. With the
constants of ``F`` (:class:`~bilevel.certificates.constants.Constants`) and ``m = (1 - q) / a``, which is ``mu`` for
gradient descent with ``a <= 2 / (L + mu)``:

    c1 = (mu2 + mu1 L_B / m) D        c2 = a (nu2 + nu1 L_B / m) L_U D        c3 = L_U L_B / m

    ITD                     |grad - true| <= (c1 + c2 t / q + c3) q^t
    AID                     |grad - true| <= (c1 + c2 / (1 - q)) rho + c3 sigma
    AID-FP                  |grad - true| <= (c1 + c2 (1 - q^k) / (1 - q)) q^t + c3 q^k
    AID-CG, A definite      sigma = 2 sqrt(kappa) p^k,  p = (sqrt(kappa) - 1) / (sqrt(kappa) + 1)

where ``|w_t - w*| <= rho |w*|`` and ``|v - v_t| <= sigma |v_t|`` for the exact solution ``v_t`` of the adjoint
system at ``w_t``. Rounding is not in them: they fall below it after some ``36 / log(1 / q)`` steps in float64.

References
----------
Grazzi, Franceschi, Pontil, Salzo (2020), arXiv 2006.16218, Theorems 2.1 and 2.2 and Section 2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.certificates.constants import Constants
from bilevel.status import ProblemError

Number = Any  # a scalar, Python's or an array
Counts = Any  # steps, a number or an array of them

NEEDED = ("nu1", "nu2", "mu1", "mu2", "mu2_growth", "D", "L_U", "L_B")
DOUBLINGS = 64


@tree.record
@dataclass(frozen=True)
class Rates:
    """What the bounds are made of, at one ``lam``.

    Attributes
    ----------
    q
        Contraction factor of the map.
    kappa
        Bound of the condition number of A.
    c1, c2, c3
        As above; units of the hypergradient.
    jacobian_slope, jacobian_start
        ``|w_t' - w'| <= jacobian_slope t q^(t-1) + jacobian_start q^t`` for the derivative of ``w_t`` by ``lam``.
    """

    q: Number
    kappa: Number
    c1: Number
    c2: Number
    c3: Number
    jacobian_slope: Number
    jacobian_start: Number


def rates(constants: Constants, step: Number = None) -> Rates:
    """Rates of the map with this step; not a number where it is no contraction.

    Parameters
    ----------
    constants
        With ``q``, or ``mu`` and ``L`` of a minimization, and ``D``, ``L_U`` and ``L_B``, which
        :func:`~bilevel.certificates.constants.on_ball` finds.
    step
        Of gradient descent; default ``2 / (L + mu)``. A fixed-point problem has none.

    Raises
    ------
    ProblemError
        A constant is missing.

    Examples
    --------
    >>> c = Constants(mu=0.5, L=1.5, nu1=0.0, nu2=1.0, mu1=1.0, mu2=0.0, D=1.0, L_U=1.0, L_B=2.0)
    >>> r = rates(c)
    >>> print(f"{r.q:.2f} {aid_fp(r, 20, 20):.1e} {itd(r, 20):.1e}")
    0.50 9.5e-06 4.6e-05
    """
    c = constants
    needed = (*NEEDED, *(() if c.known("q") else ("mu", "L")))
    if missing := [name for name in needed if not c.known(name)]:
        raise ProblemError(f"a-priori bounds need the constants {', '.join(missing)}, which are not known.")
    if c.known("q"):
        q, step = _contraction(c.q), 1.0
        kappa = (1 + q) / (1 - q)
    else:
        step = 2 / (c.L + c.mu) if step is None else step
        q = _contraction(jnp.maximum(jnp.abs(1 - step * c.mu), jnp.abs(1 - step * c.L)))
        kappa = c.L / c.mu
    m = (1 - q) / step
    slope = c.nu2 + c.nu1 * c.L_B / m  # |d w'| <= slope |dw| / m
    mu2 = c.mu2 + 2 * c.mu2_growth * c.D  # |w| <= 2 D on the ball
    return Rates(
        q=q, kappa=kappa, c1=(mu2 + c.mu1 * c.L_B / m) * c.D, c2=step * slope * c.L_U * c.D, c3=c.L_U * c.L_B / m,
        jacobian_slope=step * slope * c.D, jacobian_start=c.L_B / m,
    )  # fmt: skip


def _contraction(q: Number) -> Float[Array, ""]:
    return jnp.where(jnp.asarray(q) < 1, q, jnp.nan)


def jacobian(r: Rates, t: Counts) -> Float[Array, "..."]:
    """``|w_t' - w'|`` of ITD after t steps (first inequality in the proof of Theorem 2.1)."""
    return r.jacobian_slope * t * r.q ** (jnp.asarray(t) - 1) + r.jacobian_start * r.q ** jnp.asarray(t)


def itd(r: Rates, t: Counts) -> Float[Array, "..."]:
    """Error of ITD after t steps (Theorem 2.1)."""
    return (r.c1 + r.c2 * jnp.asarray(t) / r.q + r.c3) * r.q ** jnp.asarray(t)


def aid(r: Rates, rho: Number, sigma: Number) -> Float[Array, "..."]:
    """Error of AID for any solvers of these rates (Theorem 2.2)."""
    return (r.c1 + r.c2 / (1 - r.q)) * rho + r.c3 * sigma


def aid_fp(r: Rates, t: Counts, k: Counts) -> Float[Array, "..."]:
    """Error of AID after t steps of the map and k of its transpose."""
    t, k = jnp.asarray(t), jnp.asarray(k)
    return (r.c1 + r.c2 * (1 - r.q**k) / (1 - r.q)) * r.q**t + r.c3 * r.q**k


def aid_cg(r: Rates, t: Counts, k: Counts) -> Float[Array, "..."]:
    """Error of AID after t steps of the map and k of CG, on a positive definite ``A``."""
    return aid(r, r.q ** jnp.asarray(t), 2 * jnp.sqrt(r.kappa) * _cg_rate(r) ** jnp.asarray(k))


def steps_itd(r: Rates, eps: Number) -> Float[Array, "..."]:
    """Least t for which :func:`itd` is at most ``eps`` from there on."""
    return _least(lambda t: itd(r, t), eps, after=1 / jnp.log(1 / r.q))  # c2 t q^t falls from there on


def steps_aid_fp(r: Rates, eps: Number) -> Float[Array, "..."]:
    """Least ``t = k`` for which :func:`aid_fp` is at most ``eps`` by ``(c1 + c2 / (1 - q) + c3) q^t <= eps``."""
    return _power(r.c1 + r.c2 / (1 - r.q) + r.c3, r.q, eps)


def steps_aid_cg(r: Rates, eps: Number) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Least t and k for which each of the two terms of :func:`aid_cg` is at most ``eps / 2``.

    With ``step = 2 / (L + mu)``, ``t <= 1 + kappa / 2 log(.)`` and ``k <= 1 + sqrt(kappa) / 2 log(.)``.
    """
    t = _power(r.c1 + r.c2 / (1 - r.q), r.q, jnp.asarray(eps) / 2)
    return t, _power(2 * jnp.sqrt(r.kappa) * r.c3, _cg_rate(r), jnp.asarray(eps) / 2)


def _cg_rate(r: Rates) -> Float[Array, "..."]:
    return (jnp.sqrt(r.kappa) - 1) / (jnp.sqrt(r.kappa) + 1)


def _power(c: Number, rate: Number, eps: Number) -> Float[Array, "..."]:
    """Least whole t >= 0 with ``c rate^t <= eps``."""
    return jnp.maximum(jnp.ceil(jnp.log(c / jnp.asarray(eps)) / jnp.log(1 / rate)), 0.0)


def _least(bound: Callable[[Counts], Array], eps: Number, after: Number) -> Float[Array, "..."]:
    """Least whole t from ``after`` on with ``bound(t) <= eps``, for a bound that falls from there on; by bisection."""

    def double(_: int, high: Array) -> Array:
        return jnp.where(bound(high) <= eps, high, 2 * high)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = jnp.floor((low + high) / 2)
        met = bound(middle) <= eps
        return jnp.where(met, low, jnp.minimum(middle + 1, high)), jnp.where(met, middle, high)

    start = jnp.maximum(jnp.ceil(after), 1.0) + jnp.zeros(jnp.shape(eps))
    high = jax.lax.fori_loop(0, DOUBLINGS, double, start)
    return jax.lax.fori_loop(0, DOUBLINGS, halve, (start, high))[1]
