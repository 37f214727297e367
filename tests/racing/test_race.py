"""Races: what is recorded is what happened, and what is read from the records."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from matplotlib.image import imread

import bilevel as bl
from bilevel.algorithms import QuasiNewton
from bilevel.racing import ALGORITHMS, TASKS, Budget, choose, entrant, race, summary, write
from bilevel.racing.ours import OURS
from bilevel.racing.plot import curve, figure
from bilevel.racing.published import PUBLISHED
from bilevel.racing.settings import SET_THEIR_OWN
from bilevel.status import ProblemError


def silent(*_):
    """Report nothing."""


@pytest.fixture(scope="module")
def task():
    return TASKS["quadratics"](0, True)


@pytest.fixture(scope="module")
def lines(task):
    """SOBA as it is, SOBA that diverges, and an algorithm that raises."""
    soba = entrant("SOBA", task)
    entrants = [soba, entrant("FSLA", task)._replace(algorithm=replace(soba.algorithm, sampler=None)),
                entrant("SABA", task)._replace(algorithm=entrant("SOBA", task, step=1e6).algorithm)]  # fmt: skip
    return list(race(task, entrants, Budget(2 * sum(task.rows), 0.001), [3, 4], silent))


def test_every_run_has_a_record_with_what_it_was_made_of(lines):
    assert [(line["algorithm"], line["run"]) for line in lines] == [
        (name, seed) for name in ("SOBA", "FSLA", "SABA") for seed in (3, 4)
    ]
    assert [line["status"] for line in lines[::2]] == ["OK", "ERROR", "DIVERGED"]
    assert "sampler of SOBA must be bl.Sampler" in lines[2]["sentence"]
    for line in lines:
        assert (line["experiment"], line["dtype"], line["seed"]) == ("race-quadratics", "float32", 3)
        assert line["config"] == {"samples": 2560, "seconds": 0.001, "runs": 2, "lower_rows": 1024, "upper_rows": 256}
        assert {"device", "versions", "time", "setting", "origin"} <= line.keys()


def test_a_run_goes_on_until_both_budgets_are_spent(lines):
    first = lines[0]
    assert (first["step"][0], first["samples"][0], first["seconds"][0]) == (0, 0, 0.0)
    assert all(np.all(np.diff(first[name]) > 0) for name in ("step", "samples", "seconds"))
    assert first["samples"][-1] >= 2560
    assert first["seconds"][-1] >= 0.001
    assert np.all(np.array(first["samples"]) == 128 * np.array(first["step"]))


def test_the_stretches_change_nothing(task, lines):
    """The end of a run is that of one uninterrupted run, to the last bit."""
    first = lines[0]
    whole = bl.optimize(
        task.problem, task.lam0, task.w0, algorithm=entrant("SOBA", task).algorithm, steps=first["step"][-1],
        lower_data=task.lower_data, upper_data=task.upper_data, key=jax.random.key(3),
    )  # fmt: skip
    assert first["metric"][-1] == task.metric(whole.w, whole.lam)
    assert first["metric"][0] == task.metric(task.w0, task.lam0)
    assert first["final_value"] == task.judge(whole.w, whole.lam).value
    assert lines[1]["metric"][-1] != first["metric"][-1]


def test_a_search_may_end_before_the_budget_is_spent(task):
    """On a quadratic it is at the solution, where rounding ends it; every product counts as all rows."""
    (found,) = race(task, [entrant("QuasiNewton", task)], Budget(1e9, 100.0), [0], silent)
    assert (found["status"], found["ended"], found["origin"], found["setting"]) == ("OK", True, "own", None)
    assert found["metric"][-1] < 1e-6 * found["metric"][0]
    assert np.all(np.diff(found["samples"]) >= 1024 + 256)
    assert np.all((np.diff(found["samples"]) - 256) % 1024 == 0)
    assert np.all(np.diff(found["seconds"]) > 0)


def test_of_a_search_whose_last_step_failed_the_points_before_it_are_kept(task):
    quasi_newton = entrant("QuasiNewton", task)
    (found,) = race(task, [quasi_newton._replace(algorithm=QuasiNewton(max_matvecs=3))], Budget(1, 1), [0], silent)
    assert (found["status"], found["ended"], found["step"]) == ("TOLERANCE_UNMET", True, [0])
    assert found["final_value"] == task.judge(task.w0, task.lam0).value
    (row,) = summary([found])
    assert (row.status, row.failed, row.final) == ("TOLERANCE_UNMET", False, found["metric"][0])


def test_the_default_for_minibatches_races_on_rows_that_it_draws(task):
    """A stretch: 100 steps of 64 and 64 rows, two batches for the curvature, a look at all 1280 rows."""
    (found,) = race(task, [entrant("AdaptiveSOBA", task)], Budget(1e9, 100.0), [0], silent)
    assert (found["status"], found["ended"], found["origin"]) == ("OK", True, "own")
    assert found["metric"][-1] < 1e-6 * found["metric"][0]
    assert np.diff(found["samples"])[0] == 102 * 64 + 100 * 64 + 1280


def test_a_budget_is_positive():
    with pytest.raises(ProblemError, match="seconds of a race must be positive and finite, but is 0"):
        Budget(100, 0)
    with pytest.raises(ProblemError, match="samples of a race must be positive and finite, but is inf"):
        Budget(float("inf"), 1)


def line(name, speed, rate, *, logarithmic=True, status="OK", seed=0, last=1000):
    """A run that draws ``speed`` samples a second and whose metric falls as ``10^(-rate samples)``."""
    samples = np.linspace(0, last, 11)
    return {
        "experiment": "race-t", "about": "t", "dtype": "float32", "metric_name": "m", "logarithmic": logarithmic,
        "config": {"lower_rows": 60, "upper_rows": 40, "runs": 1}, "algorithm": name, "origin": "ours", "run": seed,
        "status": status, "sentence": "It ended.", "ended": False, "step": list(samples / 10), "samples": list(samples),
        "seconds": list(samples / speed), "metric": list(10.0 ** (-rate * samples)), "final_value": rate,
    }  # fmt: skip


def test_equal_samples_and_equal_seconds_are_where_all_still_run():
    made = [line("SOBA", 100, 0.002), line("SABA", 400, 0.001), line("SRBA", 100, 0.01, last=500)]
    rows = {row.name: row for row in summary(made)}
    # 500 samples are common to all, and 2.5 seconds: 250, 1000, 250 samples
    assert {name: pytest.approx(row.at_samples) for name, row in rows.items()} == {
        "SOBA": 0.1,
        "SABA": 10**-0.5,
        "SRBA": 1e-5,
    }
    assert {name: pytest.approx(row.at_seconds) for name, row in rows.items()} == {
        "SOBA": 10**-0.5, "SABA": 0.1, "SRBA": 10**-2.5,
    }  # fmt: skip
    assert list(rows) == ["SRBA", "SOBA", "SABA"]
    assert (rows["SOBA"].steps_per_second, rows["SABA"].samples_per_second) == (10, 400)
    assert (rows["SABA"].final, rows["SABA"].value) == (pytest.approx(0.1), 0.001)


def test_a_search_whose_last_step_failed_keeps_what_it_reached():
    ended = {**line("AdaptiveSOBA", 100, 0.01, last=200, status="TOLERANCE_UNMET"), "ended": True}
    best, other = summary([ended, line("SABA", 100, 0.001)])
    assert (best.name, best.status, best.failed, best.final) == ("AdaptiveSOBA", "TOLERANCE_UNMET", False, 0.01)
    assert other.at_samples == pytest.approx(0.1)


def test_error_rates_are_interpolated_as_they_are():
    made = [line("SOBA", 100, 1e-3, logarithmic=False), line("SABA", 100, 0.0, last=550)]
    at = {row.name: row.at_samples for row in summary(made)}["SOBA"]
    assert at == pytest.approx((10**-0.5 + 10**-0.6) / 2)


def test_an_algorithm_of_which_a_run_failed_is_last_and_not_waited_for():
    made = [
        line("SOBA", 100, 0.1, status="DIVERGED", last=10),
        line("SABA", 100, 0.001),
        line("SOBA", 100, 0.1, seed=1),
    ]
    best, failed = summary(made)
    assert (best.name, best.at_samples) == ("SABA", pytest.approx(0.1))
    assert (failed.name, failed.failed, failed.status) == ("SOBA", True, "DIVERGED")
    assert np.isnan(failed.at_samples)


def test_what_ended_of_its_own_keeps_what_it_reached():
    made = [{**line("QuasiNewton", 100, 0.01, last=200), "ended": True}, line("SABA", 100, 0.001)]
    best, other = summary(made)
    assert (best.name, best.at_samples, best.at_seconds) == ("QuasiNewton", pytest.approx(0.01), pytest.approx(0.01))
    assert other.at_samples == pytest.approx(0.1)
    assert summary(made[:1])[0].at_samples == pytest.approx(0.01)


def test_every_algorithm_has_settings_for_every_task():
    for name in TASKS:
        assert PUBLISHED[name].keys() | OURS[name].keys() == ALGORITHMS.keys() - set(SET_THEIR_OWN)
        assert not PUBLISHED[name].keys() & OURS[name].keys()


def test_algorithms_are_made_from_their_settings(task):
    made = entrant("SRBA", task)
    assert (made.origin, made.algorithm.period) == ("published", 10)  # half of 1280 rows in batches of 64
    assert (made.algorithm.sampler.batch_size, made.algorithm.upper_sampler.batch_size) == (64, 64)
    amigo = entrant("AmIGO", task)
    assert (amigo.setting.step, amigo.setting.ratio) == (0.01, 0.1)
    assert (amigo.algorithm.step(0), amigo.algorithm.outer_step(5)) == (0.01, pytest.approx(0.1))
    given = entrant("AmIGO", task, step=0.5)
    assert (given.origin, given.setting.step, given.setting.ratio) == ("given", 0.5, 0.1)
    of_a_file = replace(task, name="mine")
    assert {entrant(name, of_a_file).origin for name in ALGORITHMS} == {"default", "own"}


def test_unknown_algorithms_are_told():
    assert choose(["SABA", "SOBA", "SABA"]) == ["SABA", "SOBA"]
    with pytest.raises(ProblemError, match="unknown algorithm 'ADAM': the algorithms are SOBA, SABA, "):
        choose(["SOBA", "ADAM"])


@pytest.mark.parametrize("logarithmic", [True, False])
def test_the_files_hold_records_and_a_picture(lines, logarithmic, tmp_path):
    made = [{**line, "logarithmic": logarithmic} for line in lines]
    write(made, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["race-quadratics.jsonl", "race-quadratics.png"]
    read = [json.loads(text) for text in (tmp_path / "race-quadratics.jsonl").read_text().splitlines()]
    assert [line["algorithm"] for line in read] == [line["algorithm"] for line in lines]
    assert np.ptp(imread(tmp_path / "race-quadratics.png")[..., :3]) > 0.9
    assert [row.name for row in summary(read)] == ["SOBA", "FSLA", "SABA"]


def test_the_picture_names_all_that_raced_in_their_families():
    made = [line(name, 100, 1e-3) for name in ALGORITHMS]
    drawn = figure(made)
    assert len(drawn.axes) == 10
    named = [text.get_text() for axes in drawn.axes for text in axes.texts]
    assert sorted(named) == sorted(ALGORITHMS)
    assert all(len(axes.lines) >= len(ALGORITHMS) for axes in drawn.axes)  # the others behind, in gray


def test_what_left_no_curve_is_named_as_failed():
    without = {**line("SOBA", 100, 0.1, status="ERROR"), "samples": [], "seconds": [], "metric": []}
    drawn = figure([without, line("SABA", 100, 0.1)])
    assert {text.get_text() for axes in drawn.axes for text in axes.texts} == {"SOBA (failed)", "SABA"}
    figure([without])  # nothing at all to draw


def test_curves_are_medians_of_the_runs():
    made = [line("SOBA", 100, rate, seed=seed) for seed, rate in enumerate((0.001, 0.002, 0.003))]
    middle = curve(made, "SOBA", "seconds")
    np.testing.assert_allclose(middle.y, 10.0 ** (-0.002 * 100 * middle.x))
