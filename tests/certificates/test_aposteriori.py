"""``h.bound`` is never below the true error, and within a small factor of it."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import tree
from bilevel.certificates.aposteriori import certify, used
from bilevel.certificates.bound import EVALUATION, bound_at
from bilevel.certificates.constants import constants_of
from certificates.instances import instance, with_constants
from families import FAMILIES, dense_truth, relative_distance

SEEDS, CONDITIONS = range(3), (1e1, 1e3, 1e6)
RTOLS = {"float64": (3e-1, 1e-2, 1e-4, 1e-6, 1e-8, 1e-11), "float32": (1e-1, 1e-3, 1e-5)}


UNCERTAIN = 10 * np.finfo(np.float64).eps  # times the condition number: relative error of a dense truth


def aid(case, rtol):
    """Slow solvers, whose residuals lie along the eigenvectors of the least eigenvalues; one program for all rtol."""
    if case.tags.minimization:
        return bl.AID(bl.GradientDescent(rtol=rtol), bl.CG(rtol=rtol))
    return bl.AID(bl.Picard(rtol=rtol), bl.Richardson(rtol=rtol, steps=20_000))


def compute(case, method):
    return bl.hypergradient(
        *case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method, on_failure="keep"
    )


def judge(h, truth):
    """The bound and the true error, both relative to the norm of the truth."""
    return float(h.bound) / float(tree.norm(truth.grad)), relative_distance(h.grad, truth.grad)


@pytest.fixture(scope="module")
def measured():
    cache = {}

    def get(family, dtype):
        """Rows (bound, true error, condition), relative, of every seed, condition and budget."""
        if (family, dtype) not in cache:
            rows = []
            for seed in SEEDS:
                for condition in CONDITIONS:
                    case = with_constants(family, seed, jnp.dtype(dtype), condition)
                    truth = dense_truth(*case[:5])
                    for rtol in RTOLS[dtype]:
                        h = compute(case, aid(case, jnp.asarray(rtol, dtype)))
                        assert bool(h.proved) == np.isfinite(h.bound)
                        rows.append((*judge(h, truth), truth.condition))
            cache[family, dtype] = np.array(rows)
        return cache[family, dtype]

    return get


@pytest.mark.float64
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_is_never_below_the_error(family, dtype, measured):
    bound, true, condition = measured(family, dtype).T
    proved = np.isfinite(bound)
    assert (bound >= true - UNCERTAIN * condition)[proved].all()
    regular = condition <= (1e4 if dtype == "float64" else 1e2)
    assert proved[regular].mean() >= 0.8
    for seed_and_condition in np.unique(condition[regular]):  # for some budget it says something
        assert np.nanmin(bound[condition == seed_and_condition]) <= 1.0


@pytest.mark.float64
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_is_within_a_small_factor_of_the_error(family, measured):
    bound, true, condition = measured(family, "float64").T
    # Below, the rounding part of the bound rules: 1e-8 is eps times condition 1e3 squared, a few tens of times.
    resolved = np.isfinite(bound) & (true > 1e-8) & (true < 1e-2) & (condition < 1e5)
    ratio = bound[resolved] / true[resolved]
    print(f"\n{family}: {len(ratio)} ratios, median {np.median(ratio):.2f}, 95 % {np.percentile(ratio, 95):.1f}")
    assert len(ratio) >= 10
    assert np.median(ratio) <= 30
    assert np.percentile(ratio, 95) <= 1e4


REFINED = bl.AID(bl.GradientDescent(rtol=1e-3), bl.CG(rtol=1e-3), refine=1)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("family", "method"),
    [("kernel_ridge", REFINED), ("logistic", None), ("logistic", bl.Exact())],
    ids=["refined", "automatic", "exact"],
)
def test_every_method_has_a_bound(family, method):
    case = with_constants(family, 3, jnp.float64, condition=30.0)
    h, truth = compute(case, method), dense_truth(*case[:5])
    bound, true = judge(h, truth)
    assert h.proved
    assert true <= bound <= max(5 * true, 1e-6)
    assert "proved" in h.explain()


def test_without_constants_there_is_no_bound_and_no_cost(dtype):
    case, method, _ = ridge_case(dtype)
    h, without = compute(case, method), compute(with_values(case, None), method)
    assert not without.proved
    assert np.isnan(without.bound)
    assert int(h.error_info.matvecs) >= int(without.error_info.matvecs) + 3
    assert "at most" not in without.explain()


@pytest.mark.float64
@pytest.mark.parametrize("family", ["ridge", "affine"])
def test_a_gradient_of_another_kind_is_judged_from_any_point(family):
    """ITD: its gradient is no ``d_lam l(w, v)``, but ``(w_T, v)`` proves a bound of it."""
    case = with_constants(family, 3, jnp.float64, condition=30.0)
    h, truth = compute(case, bl.ITD(steps=60)), dense_truth(*case[:5])
    prove = jax.jit(certify)
    found = prove(instance(case), h.w, h.v, h.grad, h.lower.matvecs + h.adjoint.matvecs)
    bound, true = judge(replace(h, bound=found.bound), truth)
    assert found.proved
    assert true <= bound <= 5 * true
    far = prove(instance(case), case.w0, tree.zeros_like(case.w0), h.grad, jnp.asarray(400))
    assert not far.bound < tree.norm(tree.sub(h.grad, truth.grad))


def ridge_case(dtype):
    case = with_constants("ridge", 0, dtype)
    method = bl.AID(bl.GradientDescent(rtol=1e-3), bl.CG(rtol=1e-3))
    return case, method, constants_of(instance(case))


def with_values(case, c):
    return case._replace(problem=replace(case.problem, constants=c))


def test_one_estimated_constant_unproves_the_bound(dtype):
    case, method, c = ridge_case(dtype)
    assert compute(with_values(case, replace(c, estimated=("q",), q=0.9)), method).proved  # it is not used
    h = compute(with_values(case, replace(c, estimated=("nu2",))), method)
    assert not h.proved
    assert h.bound > 0
    assert "estimated constants" in h.explain()


@pytest.mark.parametrize("family", ["ridge", "multinomial"])
def test_what_a_bound_uses_is_all_that_it_depends_on(family, dtype):
    case = with_constants(family, 0, dtype)
    c, w = constants_of(instance(case)), jax.tree.map(jnp.ones_like, case.w0)

    @jax.jit
    def bound(c, w):
        return bound_at(instance(case), c, tree.scale(1e-3, w), w)[0]

    for name in [f.name for f in fields(c) if f.name != "estimated" and c.known(f.name)]:
        changed = bound(jax.tree.map(jnp.asarray, replace(c, **{name: jnp.nan})), w)
        assert np.isnan(changed) == (name in used(c)), name
    assert not any(replace(c, estimated=(name,)).given(*used(c)) for name in used(c))


NEITHER = {"mu": None, "self_concordance": None}


@pytest.mark.parametrize("change", [{"nu1": None}, NEITHER, {"mu": 0.0}, {"mu": -1.0}, {"mu": np.nan}])
def test_no_bound_without_the_constants(change, dtype):
    case, method, c = ridge_case(dtype)
    h = compute(with_values(case, replace(c, **change)), method)
    assert np.isnan(h.bound)
    assert not h.proved
    assert int(h.status) in (bl.Status.OK, bl.Status.UNRESOLVED)


def test_error_false_asks_for_no_bound(dtype):
    case, method, _ = ridge_case(dtype)
    h = bl.hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method, error=False)
    assert np.isnan(h.bound)
    assert not h.proved
    assert int(h.error_info.matvecs) == 0


@pytest.mark.float64
@pytest.mark.parametrize("wide", [False, True])
def test_without_b0_the_frobenius_norm_takes_its_place(wide):
    """By products with the fewer of ``dim(lam)`` and ``n`` unit vectors; ``B(w) = w`` and ``diag(w)``."""
    case, _, _ = ridge_case(jnp.float64)
    if not wide:
        case = case._replace(lam=jnp.mean(case.lam))
    at = instance(case)
    c, w = constants_of(at), jnp.linspace(0.5, 1.0, case.w0.size)
    with_b0, products = bound_at(at, c, w, w)
    without, more = bound_at(at, replace(c, B0=None), w, w)
    assert without == pytest.approx(with_b0)  # |diag(w)|_F = |w|
    assert more - products == (case.w0.size if wide else 1)


@pytest.mark.float64
def test_a_failed_solve_has_no_bound():
    case, _, c = ridge_case(jnp.float64)
    h = compute(with_values(case, c), bl.AID(bl.GradientDescent(steps=400, step=10.0), bl.CG(steps=5)))
    assert not h.proved
    assert np.isnan(h.bound)


@pytest.mark.float64
def test_the_matvecs_of_a_bound_are_counted():
    """Three at the point, two dense matrices where they are needed; no steps where the first bound is sharp."""
    case, _, c = ridge_case(jnp.float64)
    truth, at = dense_truth(*case[:5]), instance(with_values(case, c))
    wrong = truth.grad + 1e3  # by so much that the bound at the solution cannot matter
    found = jax.jit(certify)(at, jnp.asarray(truth.w), jnp.asarray(truth.v), wrong, jnp.asarray(100))
    assert int(found.matvecs) == EVALUATION
    assert found.bound == pytest.approx(1e3 * np.sqrt(wrong.size), rel=1e-2)
    case, counts = with_constants("multinomial", 0, jnp.float64), []
    jax.eval_shape(lambda at, w: counts.append(bound_at(at, constants_of(at), w, w)[1]), instance(case), case.w0)
    assert counts == [EVALUATION + 2 * tree.size(case.w0)]
