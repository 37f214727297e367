"""What a bound is made of, term by term: cases in which every inequality is an equality, and the model of rounding."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import tree
from bilevel.certificates.bound import EVALUATION, bound_at
from bilevel.certificates.constants import Constants
from bilevel.lagrangian import Instance, gradient
from bilevel.models.catalog import CATALOG
from families import FAMILIES

pytestmark = pytest.mark.float64


def scalar_root(w, lam, data):
    """``A* = 1.7`` and ``B* = -2.5`` at ``w* = -1``, ``lam = 1``; A and B change with w by 0.3 and 0.5."""
    return 1.5 * w + 0.15 * w**2 + lam * (-2.0 + 0.5 * w) + 3.85


def scalar_upper(w, lam, data):
    """``d_w U`` and ``d_lam U`` change with w by 0.7 and 0.4; the adjoint is ``v* = -1``."""
    return 0.35 * (w - 2.0) ** 2 + 0.4 * w * lam


SCALAR = Constants(mu=1.7, L=2.0, nu1=0.3, nu2=0.5, B0=2.0, mu1=0.7, mu2=0.4)


def test_where_all_terms_add_up_the_bound_is_the_error():
    """In one dimension, all signs alike, every inequality is an equality: no term and no constant can be smaller."""
    at = Instance(bl.Problem(bl.root(scalar_root), scalar_upper), jnp.asarray(1.0), None, None)
    w, v = jnp.asarray(-1.0 + 1e-5), jnp.asarray(-1.0 + 3e-5)
    error = float(gradient(at, w, v).grad - gradient(at, jnp.asarray(-1.0), jnp.asarray(-1.0)).grad)
    assert at.linearize(jnp.asarray(-1.0))[0] == pytest.approx(0.0, abs=1e-15)

    def bound(c):
        return float(bound_at(at, c, w, v)[0])

    assert error <= bound(SCALAR) <= 1.0001 * error
    for name in ("nu1", "nu2", "B0", "mu1", "mu2"):
        assert bound(replace(SCALAR, **{name: 0.9 * getattr(SCALAR, name)})) < error, name
    assert bound(replace(SCALAR, mu=1.1 * SCALAR.mu)) < error
    assert bound(replace(SCALAR, mu2=0.2, mu2_growth=0.2)) == pytest.approx(bound(SCALAR), rel=1e-4)


def unconstrained(loss, upper):
    """The problem at ``lam = 1`` without data."""
    return Instance(bl.Problem(bl.minimization(loss), upper), jnp.asarray(1.0), None, None)


def test_a_quadratic_is_bounded_in_the_norm_of_its_energy():
    """``A = diag(1, 1/1000)``, ``d2_ww U = 3 A``, both residuals along the second axis with signs that add up."""
    spectrum = jnp.array([1.0, 1e-3])
    at = unconstrained(
        lambda w, lam, data: 0.5 * jnp.sum(spectrum * w**2) - lam * w[1],
        lambda w, lam, data: 1.5 * jnp.sum(spectrum * w**2),
    )
    c = Constants(mu=1e-3, L=1.0, nu1=0.0, nu2=0.0, B0=1.0, mu1=3.0, mu1_relative=3.0, mu2=0.0, self_concordance=0.0)
    w, v = jnp.array([0.0, 1e3 + 0.1]), jnp.array([0.0, 3e3 + 0.5])  # w* = 1e3, v* = grad = 3 w*
    error = float(gradient(at, w, v).grad) - 3e3

    def bound(c):
        return float(bound_at(at, c, w, v)[0])

    assert error == pytest.approx(0.5)
    assert error <= bound(c) <= 1.0001 * error
    assert bound(replace(c, mu1_relative=2.7)) < error
    assert bound(replace(c, self_concordance=None)) > 100 * error  # by mu1 / mu


@pytest.mark.parametrize("distance", [-0.2, 0.3])
def test_self_concordance_stands_for_constant_hessians(distance):
    """``A = exp(-w)``, ``d2_ww U = 3 A``, so ``v* = 3 (e^w* - 1)``; dense matrices in place of ``mu, mu1_relative``."""
    at = unconstrained(
        lambda w, lam, data: jnp.sum(w + jnp.exp(-w)) - 0.2 * lam * jnp.sum(w),
        lambda w, lam, data: 3 * jnp.sum(w + jnp.exp(-w)),
    )
    solution = -np.log(0.8)
    c = Constants(L=2.0, nu1=1e3, nu2=0.0, B0=0.2, mu1=1e3, mu2=0.0, self_concordance=1.0)
    w = jnp.array([solution + distance])
    for v in (3 * jnp.expm1(w), 3 * jnp.expm1(w) + 0.3, 3 * jnp.expm1(w) - 0.3):
        error = abs(float(gradient(at, w, v).grad) - 0.2 * 3 * np.expm1(solution))
        bound, products = bound_at(at, c, w, v)
        assert error <= bound <= 6 * max(error, 0.2 * 0.3)
        assert products == EVALUATION + 2 * w.size


def cast(inputs, dtype):
    """All floating arrays in this precision."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_within_half_of_its_model(family):
    """``F(w)`` in float32 against float64 at the same numbers, n of 1 (or few) and 100."""
    for n in (1 if family in ("ridge", "hyper_representation") else 4, 100):
        inputs = CATALOG[family].sample(0, n, 3.0, jnp.float32)
        w = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype), inputs.w0)
        found = []
        for dtype in (jnp.float32, jnp.float64):
            lam, w, *data = cast((inputs.lam, w, inputs.lower_data, inputs.upper_data), dtype)
            found.append(Instance(CATALOG[family].problem(), lam, *data).linearize(w)[0])
        c = CATALOG[family].constants(lam, *data)
        error = tree.norm(tree.sub(cast(found[0], jnp.float64), found[1]))
        model = (n**0.5 / 8 + 6) * np.finfo(np.float32).eps * (tree.norm(found[1]) + 2 * c.L * tree.norm(w))
        assert 1e-3 * model < error < 0.5 * model
