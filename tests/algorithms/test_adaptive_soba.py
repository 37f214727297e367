"""The default for minibatches: closed forms of its parts, the dense optimum, scales, limits, going on."""

import jax
import jax.numpy as jnp
import noisy_quadratic as quadratic
import numpy as np
import pytest

import bilevel as bl
from bilevel import ProblemError, Sampler, tree
from bilevel.algorithms import AdaptiveSOBA, QuasiNewton, adaptive_soba
from bilevel.algorithms.oracles import Point
from bilevel.algorithms.stretches import curvature, look, stretch

BATCH, ALL = Sampler(8), Sampler(quadratic.ROWS)
EPS = float(jnp.finfo(quadratic.DTYPE).eps)
H = np.asarray(quadratic.MEAN.H, np.float64)


def run(problem=quadratic.PROBLEM, *, steps=12, state=None, lower=quadratic.LOWER, **options):
    return bl.optimize(
        problem, quadratic.LAM0, quadratic.W0, algorithm=AdaptiveSOBA(BATCH), key=jax.random.key(0), steps=steps,
        lower_data=lower, upper_data=quadratic.UPPER, state=state, **options,
    )  # fmt: skip


def start(v=0.0):
    return Point(quadratic.W0, tree.fill(quadratic.W0, v), quadratic.LAM0)


def test_the_steps_of_a_stretch_fall_linearly_to_zero():
    """With all rows and lam at rest: ``w_K - w* = prod_k (I - (1 - k / K) rho H) (w_0 - w*)``."""
    oracles, rho, K = quadratic.oracles(ALL), 0.3, 12
    point, streams = stretch(oracles, start(), oracles.start(jax.random.key(0)), rho, 0.0, K)
    distance = -np.asarray(quadratic.quadratic.solution(quadratic.flat(quadratic.LAM0), quadratic.LOWER), np.float64)
    solution = -distance.copy()
    for k in range(K):
        distance = distance - (1 - k / K) * rho * H @ distance
    np.testing.assert_allclose(quadratic.flat(point.w), solution + distance, atol=300 * EPS * np.abs(solution).max())
    np.testing.assert_array_equal(quadratic.flat(point.lam), quadratic.flat(quadratic.LAM0))
    assert oracles.samples(streams) == 2 * K * quadratic.ROWS


def test_the_curvature_is_the_largest_eigenvalue_seen():
    """Power iteration comes from below; six products see it within a fifth where the spectrum is that of the rows."""
    oracles = quadratic.oracles(ALL)
    norm, streams = curvature(oracles, start(), oracles.start(jax.random.key(0)), jax.random.key(1), 2)
    largest = np.linalg.eigvalsh(H)[-1]
    assert 0.8 * largest <= float(norm) <= (1 + 100 * EPS) * largest
    assert oracles.samples(streams) == 2 * quadratic.ROWS
    noisy = quadratic.oracles(Sampler(1))
    of_rows, _ = curvature(noisy, start(), noisy.start(jax.random.key(0)), jax.random.key(1), 20)
    assert float(of_rows) > 1.5 * largest  # single rows have rank one


@pytest.mark.float64
def test_the_lagrangian_is_the_objective_up_to_second_order():
    """Errors of w and v half as large leave a quarter of the error; U itself has one of first order."""
    lam = quadratic.flat(quadratic.LAM0)
    w = quadratic.quadratic.solution(lam, quadratic.LOWER)
    v = jnp.linalg.solve(quadratic.MEAN.H, quadratic.upper_gradients(lam)[0])
    exact = quadratic.quadratic.value(w, lam, quadratic.UPPER)
    oracles = quadratic.oracles(BATCH)

    def errors(size):
        off = size * jnp.linspace(-1.0, 2.0, quadratic.DIM)
        point = Point(quadratic.as_w(w + off), quadratic.as_w(v + off), quadratic.LAM0)
        seen, _ = look(oracles, point, oracles.start(jax.random.key(0)))
        return abs(float(seen.lagrangian - exact)), abs(float(seen.value - exact))

    (coarse, first_coarse), (fine, first_fine) = errors(1e-2), errors(5e-3)
    assert coarse / fine == pytest.approx(4.0, rel=0.01)
    assert 1.5 < first_coarse / first_fine < 3.0
    assert fine < 0.1 * first_fine


@pytest.mark.float64
def test_reaches_the_dense_optimum_and_ends_by_itself():
    result = run(steps=200)
    assert not result.status.failed
    assert len(result.history) < 200
    distance = np.linalg.norm(quadratic.flat(result.lam) - quadratic.OPTIMUM)
    assert distance <= 1e-6 * np.linalg.norm(quadratic.OPTIMUM)
    assert result.hypergradient.error <= 1e-6
    assert np.isnan(result.history.error[0])  # of a stretch


@pytest.mark.parametrize("level", ["lower", "upper"])
def test_the_scale_of_the_objectives_does_not_matter(level):
    """Powers of two only shift exponents: all stretches are the same, bit for bit."""

    def scaled(w, lam, rows):
        return 2.0**-20 * quadratic.value(w, lam, rows)

    lower, upper = (bl.minimization(scaled), quadratic.value) if level == "lower" else (None, scaled)
    expected, found = run(steps=6), run(bl.Problem(lower or quadratic.PROBLEM.lower, upper), steps=6)
    np.testing.assert_array_equal(quadratic.flat(found.lam), quadratic.flat(expected.lam))
    assert np.linalg.norm(quadratic.flat(found.lam) - quadratic.flat(quadratic.LAM0)) > 1


def test_stretches_that_did_not_help_are_undone():
    """Where lam moved the Lagrangian has fallen; what was undone is looked at again, with lam at rest."""
    algorithm, seen = AdaptiveSOBA(BATCH), []
    state = algorithm.init(quadratic.LAM0, quadratic.W0, jax.random.key(0))
    while state.search is None:
        before = state
        state, info = algorithm.update(before, quadratic.PROBLEM, quadratic.LOWER, quadratic.UPPER)
        seen.append(bool(info.accepted))
        if info.accepted:
            np.testing.assert_array_equal(quadratic.flat(state.lam), quadratic.flat(info.lam))
            moved = np.any(quadratic.flat(state.lam) != quadratic.flat(before.lam))
            assert moved == (not before.rest)
            assert before.rest or state.best.lagrangian < before.best.lagrangian
        else:
            assert state.best is before.best
            assert state.rest
            assert state.outer_step == before.outer_step / 8
    assert not all(seen)  # noise ends it
    np.testing.assert_array_equal(quadratic.flat(state.search.lam), quadratic.flat(state.best.point.lam))


def test_a_stretch_that_left_the_finite_numbers_is_undone():
    """``w(lam) = 1 / sqrt(1 - lam)`` ends at one; ``w = 10`` at 0.99, where stretches step over that end."""
    rows = 1 + 0.1 * jax.random.normal(jax.random.key(0), (256,), quadratic.DTYPE)
    rows = rows / jnp.mean(rows)
    lower = bl.minimization(lambda w, lam, r: 0.5 * jnp.sqrt(1 - lam) * w**2 - w * jnp.mean(r))
    problem = bl.Problem(lower, lambda w, lam, r: 0.5 * (w - 10 * jnp.mean(r)) ** 2)
    zero = jnp.zeros((), quadratic.DTYPE)
    result = bl.optimize(
        problem, zero, zero, algorithm=AdaptiveSOBA(BATCH), steps=60, lower_data=rows, upper_data=rows,
        key=jax.random.key(0),
    )  # fmt: skip
    assert not np.all(np.isfinite(result.history.value))
    assert not result.status.failed
    assert float(result.lam) == pytest.approx(0.99, abs=1e-3)


def test_what_stretches_reached_is_kept_where_nothing_can_be_certified(monkeypatch):
    monkeypatch.setattr(adaptive_soba, "SEARCH", QuasiNewton(max_matvecs=3))
    result = run(steps=200)
    assert result.status == bl.Status.TOLERANCE_UNMET
    assert np.all(result.history.matvecs[:-1] == 0)
    assert 0 < result.history.matvecs[-1] < quadratic.flat(quadratic.W0).size
    np.testing.assert_array_equal(quadratic.flat(result.lam), quadratic.flat(result.state.best.point.lam))
    assert np.any(quadratic.flat(result.lam) != quadratic.flat(quadratic.LAM0))


def test_goes_on_bit_for_bit():
    """``state`` is that before the last step, which is done again."""
    whole, first = run(), run(steps=4)
    rest = run(steps=8, state=first.state)
    for a, b in zip(jax.tree.leaves((whole.lam, whole.w)), jax.tree.leaves((rest.lam, rest.w)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.history.value[4:], rest.history.value)


def test_rows_are_counted_and_bound_a_run():
    """102 lower batches, two of them for the curvature, 100 upper ones, and a look at all rows."""
    stretch_rows = 8 * (102 + 100) + 2 * quadratic.ROWS
    result = run(steps=None, samples=3 * stretch_rows + 1)
    assert list(result.history.samples) == [stretch_rows] * 4


def test_what_runs_unasked():
    """With a random key minibatches, else all data; both in a sentence where no limit is given."""
    given = {"lower_data": quadratic.LOWER, "upper_data": quadratic.UPPER}
    start = quadratic.PROBLEM, quadratic.LAM0, quadratic.W0
    with_key = bl.optimize(*start, steps=0, key=jax.random.key(0), **given)
    assert with_key.history.samples[0] > 0
    assert bl.optimize(*start, steps=0, **given).history.samples[0] == 0
    with pytest.raises(ProblemError, match=r"QuasiNewton may run: give steps=\.$"):
        bl.optimize(*start, **given)
    with pytest.raises(ProblemError, match=r"AdaptiveSOBA may run: give steps= or samples=\.$"):
        bl.optimize(*start, key=jax.random.key(0), **given)
    with pytest.raises(ProblemError, match="QuasiNewton counts steps, not samples"):
        bl.optimize(*start, samples=10, **given)
    with pytest.raises(ProblemError, match="QuasiNewton takes no random key"):
        bl.optimize(*start, steps=1, key=jax.random.key(0), algorithm=QuasiNewton(), **given)
    with pytest.raises(ProblemError, match="AdaptiveSOBA draws random samples: give key="):
        bl.optimize(*start, steps=1, algorithm=AdaptiveSOBA(BATCH), **given)
    with pytest.raises(ProblemError, match=r"sampler of AdaptiveSOBA must be bl\.Sampler"):
        bl.optimize(*start, steps=1, algorithm=AdaptiveSOBA(8), key=jax.random.key(0), **given)
