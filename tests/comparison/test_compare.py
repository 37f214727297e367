"""Rows of a comparison against direct calls; failures are rows; the list of methods fits the problem."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import bilevel as bl
from bilevel.comparison import METHODS, Budget, compare, methods, record, truth
from bilevel.comparison.methods import Entry, Setting, choose
from bilevel.comparison.plot import FAMILIES
from bilevel.models.catalog import CATALOG, Case, draw
from families import relative_distance

BUDGET = Budget(tol=1e-3, steps=200, products=6)
DIRECT = {
    "auto": None,
    "aid-cg": bl.AID(bl.GradientDescent(steps=200), bl.CG(steps=6)),
    "itd": bl.ITD(bl.GradientDescent(steps=200)),
    "itd-checkpoint": bl.ITD(bl.GradientDescent(steps=200), checkpoint="sqrt"),
}


def front_door(case, method, **options):
    return bl.hypergradient(
        case.problem, case.lam, case.w0, lower_data=case.lower_data, upper_data=case.upper_data, method=method,
        **options,
    )  # fmt: skip


def names_for(case, budget=BUDGET):
    return list(choose(Setting(case, budget)))


def diverging(case):
    """The same minimization with a step far beyond 2 / L."""
    return case._replace(problem=replace(case.problem, lower=replace(case.problem.lower, step=1e3)))


@pytest.fixture(scope="module")
def case(dtype):
    return draw("logistic", size=12, condition=10.0, dtype=dtype)


@pytest.fixture(scope="module")
def found(case):
    return compare(case, "logistic", DIRECT, BUDGET)


@pytest.fixture(scope="module")
def exact(case):
    return front_door(case, bl.Exact())


@pytest.mark.parametrize("name", DIRECT)
def test_a_row_is_what_the_direct_call_gives(name, case, found, exact):
    row = next(row for row in found.rows if row.name == name)
    h = front_door(case, DIRECT[name], **({"tol": 1e-3} if name == "auto" else {}), on_failure="keep")
    assert (row.lower, row.adjoint, row.error) == (h.lower.matvecs, h.adjoint.matvecs, h.error_info.matvecs)
    assert row.status == bl.Status(int(h.status)).name
    rounding = 1e4 * np.finfo(found.case.w0.dtype).eps
    np.testing.assert_allclose(row.estimated_error, h.relative_error, rtol=1e-2, atol=rounding)
    np.testing.assert_allclose(row.true_error, relative_distance(h.grad, exact.grad), rtol=1e-2, atol=rounding)


def test_the_truth_is_exact_and_the_rows_are_in_the_order_of_the_list(found):
    assert found.truth.how == "Exact"
    assert found.truth.relative_error < 1e-4
    assert [row.name for row in found.rows] == list(DIRECT)
    assert not any(row.failed for row in found.rows)


def test_times_and_memory_are_of_the_right_kind(found):
    rows = {row.name: row for row in found.rows}
    assert all(row.run_seconds > 0 for row in found.rows)
    assert all(row.compile_seconds > row.run_seconds for row in found.rows)
    assert rows["aid-cg"].memory < rows["itd-checkpoint"].memory < rows["itd"].memory


def test_only_the_automatic_method_pays_for_its_error_estimate(found):
    for row in found.rows:
        assert row.matvecs == row.lower + row.adjoint + (row.error if row.name == "auto" else 0)


def test_a_method_that_fails_or_raises_is_a_row(case, monkeypatch):
    broken = Entry("aid-broken", lambda _: bl.ITD())  # neither a solver nor a number of steps
    monkeypatch.setattr(methods, "METHODS", (*METHODS, broken))
    result = compare(diverging(case), methods=["aid-newton", "aid-fp", "aid-broken"], budget=BUDGET)
    newton, fp, raised = result.rows
    assert (newton.status, newton.failed) == ("OK", False)
    assert newton.true_error < 1e-3
    assert (fp.status, fp.failed) == ("DIVERGED", True)
    assert fp.sentence == bl.Status.DIVERGED.sentence
    assert (raised.status, raised.failed, raised.matvecs) == ("ERROR", True, None)
    assert "exactly one of solver=, steps=" in raised.sentence


def test_where_dense_is_too_large_a_tight_automatic_run_is_the_truth(case, exact, monkeypatch):
    monkeypatch.setattr(truth, "EXACT_SIZE", 5)
    reference = truth.find_truth(case)
    assert reference.how.startswith("auto with tol ")
    assert reference.relative_error_of(exact.grad) < 1e-4


def test_without_truth_there_are_no_true_errors(dtype):
    """A loss that is flat in one direction: neither Exact nor any other method may answer."""
    loss = lambda w, lam, data: (w[0] - lam) ** 2  # noqa: E731
    zeros = jax.numpy.zeros(2, dtype)
    problem = bl.Problem(bl.minimization(loss), lambda w, lam, data: w[0] + w[1])
    result = compare(Case(problem, jax.numpy.ones((), dtype), zeros), methods=["aid-newton"])
    assert not result.judged
    assert "singular" in result.truth.note
    assert np.isnan(result.rows[0].true_error)
    assert record(result)["truth"]["found"] is False


@pytest.mark.parametrize("name", CATALOG)
def test_the_list_fits_the_problem(name, dtype):
    case = draw(name, size=20, dtype=dtype)
    names = names_for(case)
    minimization = case.problem.lower.kind == "minimization"
    assert {"auto", "aid-newton", "aid-fp", "aid-gmres", "itd", "itd-truncated", "itd-checkpoint"} <= set(names)
    assert ("aid-cg" in names) == case.problem.lower.symmetric
    assert ("itd-heavy-ball" in names) == ("aid-heavy-ball" in names) == minimization
    assert ("aid-anderson" in names) != minimization
    few = sum(leaf.size for leaf in jax.tree.leaves(case.lam)) <= 64
    assert ("itd-forward" in names) == few
    for method in choose(Setting(case, BUDGET)).values():
        method.check(case.problem)


def test_truncation_to_all_steps_is_no_method_of_its_own(case):
    assert "itd-truncated" not in names_for(case, Budget(steps=20, products=20))


def test_every_method_has_a_family_in_the_picture():
    assert {entry.name.partition("-")[0] for entry in METHODS} <= set(FAMILIES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["aid-cg", "newton"], "unknown method 'newton': the methods are auto, "),
        (["aid-anderson"], "'aid-anderson' does not fit this problem; those that do are auto, "),
        ([], "no method is named"),
    ],
)
def test_methods_that_cannot_be_compared_are_refused(case, names, message):
    with pytest.raises(bl.ProblemError, match=message):
        compare(case, methods=names)


@pytest.mark.parametrize("wrong", [{"tol": 0.0}, {"steps": 0}, {"products": -1}, {"tol": float("nan")}])
def test_a_budget_is_positive(wrong):
    with pytest.raises(bl.ProblemError, match=f"{next(iter(wrong))} must be positive"):
        Budget(**wrong)


@pytest.mark.parametrize("name", CATALOG)
def test_the_catalog_draws_what_was_asked_for(name, dtype):
    cases = [draw(name.replace("_", "-"), size=24, condition=30.0, seed=seed, dtype=dtype) for seed in (0, 0, 1)]
    leaves = [jax.tree.leaves((case.lam, case.w0)) for case in cases]
    assert all(leaf.dtype == dtype for leaf in leaves[0])
    assert 20 <= sum(leaf.size for leaf in jax.tree.leaves(cases[0].w0)) <= 28
    data = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(case[3:])]) for case in cases]
    np.testing.assert_array_equal(data[0], data[1])
    assert np.any(data[0] != data[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lasso"}, "unknown problem 'lasso': the built-in ones are ridge, "),
        ({"size": 1}, "size must be from 2 to 10000, but is 1"),
        ({"condition": 0.5}, "condition must be a number from 1 on, but is 0.5"),
        ({"condition": float("inf")}, "condition must be"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"name": "kernel_ridge", "size": 3, "condition": 1e19}, "cannot be drawn with condition 1e.19"),
    ],
)
def test_what_the_catalog_has_not_is_refused(options, message):
    with pytest.raises(bl.ProblemError, match=message):
        draw(**{"name": "ridge", **options})
