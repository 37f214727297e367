"""``h.error`` is the true error within a factor of two: a small draw of what ``benchmarks/certificates.py`` draws."""

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import tree
from families import FAMILIES, dense_truth, relative_distance

pytestmark = pytest.mark.float64

EPS = float(np.finfo(np.float64).eps)
BUDGETS = {
    True: bl.AID(bl.GradientDescent(steps=300), bl.CG(steps=30)),
    False: bl.AID(bl.Picard(steps=200), bl.Richardson(steps=150)),
}
FAMILY_NAMES = ["ridge", "logistic", "biased_regularization", "hyper_representation", "equilibrium", "affine"]


def refined(method):
    return bl.AID(method.solver, method.linear_solver, refine=1)


def measure(case, method, truth):
    """Ratio of estimated to true error, the true relative error, and the share of the estimate in the matvecs."""
    h = bl.hypergradient(
        *case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method, on_failure="keep"
    )
    relative = relative_distance(h.grad, truth.grad)
    share = int(h.error_info.matvecs) / int(h.lower.matvecs + h.adjoint.matvecs)
    return float(h.error) / max(relative * float(tree.norm(truth.grad)), 1e-300), relative, share


def test_error_is_within_a_factor_of_two_on_a_draw():
    ratios = []
    for name in FAMILY_NAMES:
        method = BUDGETS[FAMILIES[name].tags.symmetric]
        for condition in (2.0, 5.0, 10.0, 30.0, 100.0):
            for seed in range(3):
                case = FAMILIES[name](seed, jnp.float64, n=24, condition=condition)
                truth = dense_truth(*case[:5])
                for m in (method, refined(method)):
                    ratio, relative, share = measure(case, m, truth)
                    assert share <= 0.5
                    if np.isfinite(relative) and 10 * EPS * truth.condition <= relative <= 0.1:
                        ratios.append(ratio)
    ratios = np.array(ratios)
    within = (ratios >= 0.5) & (ratios <= 2)
    assert len(ratios) >= 50
    assert within.mean() >= 0.98, np.sort(ratios)[[0, 1, 2, -3, -2, -1]]


@pytest.mark.parametrize("family", ["logistic", "affine"])
def test_itd_knows_its_error(family):
    case = FAMILIES[family](1, jnp.float64, n=24, condition=30.0)
    truth = dense_truth(*case[:5])
    for steps in (60, 200):
        ratio, relative, _ = measure(case, bl.ITD(steps=steps), truth)
        assert 0.5 <= ratio <= 2, relative


def test_the_status_says_when_the_error_is_not_resolved():
    case = FAMILIES["ridge"](0, jnp.float64, n=24, condition=1e4)
    h = bl.hypergradient(
        *case[:3], lower_data=case.lower_data, upper_data=case.upper_data,
        method=bl.AID(bl.GradientDescent(steps=10), bl.CG(steps=2)),
    )  # fmt: skip
    truth = dense_truth(*case[:5])
    assert relative_distance(h.grad, truth.grad) > 0.1
    assert bl.Status(int(h.status)) == bl.Status.UNRESOLVED
