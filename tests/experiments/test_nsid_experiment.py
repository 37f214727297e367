"""``nsid`` through a small configuration: its truth, its claims, and its figure."""

import jax
import numpy as np
import pytest

import bilevel as bl
from bilevel.experiments import EXPERIMENTS, nsid, nsid_model
from bilevel.experiments.lines import compact

pytestmark = pytest.mark.float64

EXPERIMENT = EXPERIMENTS["nsid"]
SMALL = nsid.Settings(
    exact=((0.02, 0.002, 500),), points=11, sampled=1000, batch=50, counts=(62, 125, 250, 500, 1000), runs=8,
    products=(1, 4, 16, 64),
)  # fmt: skip


@pytest.fixture(scope="module")
def records():
    return [compact(line) for line in nsid.run(SMALL, 0, lambda *_: None)]


@pytest.fixture(scope="module")
def case():
    return nsid_model.make_case(0.02, 0.002, *nsid_model.independent(np.random.default_rng(0)))


def test_the_closed_form_is_the_exact_hypergradient(case):
    w0 = np.zeros_like(case.lower_data.rows.X[0])
    data = {"lower_data": case.lower_data, "upper_data": case.upper_data}
    h = bl.hypergradient(nsid_model.PROBLEM, case.lam, w0, **data, method=bl.Exact())
    np.testing.assert_array_equal(h.w != 0, case.support)
    np.testing.assert_allclose([h.grad.l1, h.grad.l2], case.truth, rtol=1e-10)


def test_the_support_is_right_from_the_step_told_on(case):
    found = nsid_model.identification(case, 500)
    w, right = np.zeros_like(case.lower_data.rows.X[0]), []
    step = jax.jit(nsid_model.PROBLEM.lower.function)
    for _ in range(200):
        w = step(w, case.lam, case.lower_data)
        right.append(np.array_equal(w != 0, case.support))
    assert 1 < found < 200
    assert not right[found - 2]
    assert all(right[found - 1 :])


def test_its_rates_are_those_of_the_map(case):
    """``q`` against the norm of the Jacobian of the map where all features are on: there the prox is affine."""
    X = np.asarray(case.lower_data.rows.X)
    step, l2 = float(case.lower_data.step.at(case.lam.l2)), float(case.lam.l2)
    J = (np.eye(100) - step * X.T @ X / len(X)) / (1 + step * l2)
    np.testing.assert_allclose(case.lower_data.step.q(l2), np.linalg.norm(J, 2), rtol=1e-10)


def test_every_point_is_there_once_and_has_all_its_numbers(records):
    keys = [(line["part"], line["method"], line["k"], line.get("run")) for line in records]
    assert len(set(keys)) == len(keys) == 11 * 3 + 5 * 4 * 8 + 4
    for line in records:
        assert {"time", "seed", "dtype", "device", "versions", "config", "method", "status"} <= set(line)
        assert line["experiment"] == "nsid"
        assert np.isfinite([line[name] for name in ("error", "relative_error", "gradient_norm")]).all()


def test_what_the_paper_says_holds(records):
    failed = [check for check in EXPERIMENT.checks(records) if not check.holds]
    assert not failed


def test_claims_do_not_hold_of_records_that_contradict_them(records):
    def failing(change):
        return sum(not check.holds for check in EXPERIMENT.checks([{**line, **change(line)} for line in records]))

    def where(method, error):
        return lambda line: {"relative_error": error(line)} if line["method"] == method else {}

    flat = {"relative_error": 0.05}
    assert failing(lambda line: {"identified": 400} if line["part"] == "exact" else {}) == 1
    assert failing(lambda line: flat if line["method"] == "NSID, decreasing" else {}) >= 3
    assert failing(where("SID, decreasing", lambda line: 10 / line["k"])) >= 1
    assert failing(where("AID-FP", lambda line: line["relative_error"] * 100)) >= 2


def test_the_figure_is_made_of_the_records_alone(records, tmp_path):
    (draw,) = EXPERIMENT.figures.values()
    figure = draw(records)
    figure.savefig(tmp_path / "figure.png")
    assert len(figure.axes) == 2
    assert all(axes.lines for axes in figure.axes)
    assert EXPERIMENT.summary(records).rows
