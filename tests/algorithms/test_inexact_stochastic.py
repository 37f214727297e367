"""Laws of inexact stochastic descent: certified errors, bias, convergence to the closed form, one key, loud ends."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import ProblemError, Status
from bilevel.algorithms import ISGD
from bilevel.certificates.constants import Constants
from bilevel.certificates.stochastic import Recursion, squared_distance

TASKS, ROWS, FEATURES, BATCH = 10, 6, 3, 3
MU = 0.5
RUNS = 200
KEY = jax.random.key(0)


def biased(w, lam, data):
    """Ridge towards lam: every task has data of its own."""
    X, y = data
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * MU * jnp.sum((w - lam) ** 2)


def validation(w, lam, data):
    X, y = data
    return 0.5 * jnp.mean((X @ w - y) ** 2)


class Truth:
    """``f_i(lam) = |V_i w_i(lam) - z_i|^2 / (2 m)`` with ``w_i(lam)`` affine, in NumPy."""

    rng = np.random.default_rng(0)
    X, V = rng.normal(size=(2, TASKS, ROWS, FEATURES))
    y, z = X @ [1.0, -2.0, 0.5] + rng.normal(size=(TASKS, ROWS)), V @ [1.0, -2.0, 0.5]
    A = np.swapaxes(X, 1, 2) @ X / ROWS + MU * np.eye(FEATURES)
    R = MU * V @ np.linalg.inv(A)  # V_i dw_i/dlam
    r = z - np.einsum("tmf,tf->tm", V @ np.linalg.inv(A), np.einsum("tmf,tm->tf", X, y) / ROWS)
    hessians = np.swapaxes(R, 1, 2) @ R / ROWS
    hessian = hessians.mean(axis=0)
    minimizer = np.linalg.solve(hessian, np.einsum("tmf,tm->f", R, r) / (ROWS * TASKS))
    curvatures = np.linalg.eigvalsh(A)
    largest_upper = np.linalg.norm(V, 2, axis=(1, 2)).max() ** 2 / ROWS

    @classmethod
    def gradients(cls, lam):
        """Of all tasks."""
        return np.einsum("tmf,tm->tf", cls.R, cls.R @ lam - cls.r) / ROWS


START = Truth.minimizer + np.array([2.0, -1.0, 1.0])
CONSTANTS = Constants(
    mu=float(Truth.curvatures.min()), L=float(Truth.curvatures.max()), nu1=0.0, nu2=0.0, B0=MU,
    mu1=float(Truth.largest_upper), mu2=0.0,
)  # fmt: skip
PROBLEM = bl.Problem(bl.minimization(biased), validation, CONSTANTS)
ESTIMATING = replace(PROBLEM, constants=None)
# A first-order solver, whose error is about that which its tolerance allows.
SLOW = bl.AID(bl.GradientDescent(step=float(1 / Truth.curvatures.max())), bl.CG())


def data(dtype):
    pairs = {"lower_data": (Truth.X, Truth.y), "upper_data": (Truth.V, Truth.z)}
    return {level: tuple(jnp.asarray(x, dtype) for x in pair) for level, pair in pairs.items()}


def isgd(step=0.5, tolerance=1e-2, batch_size=BATCH, **fields):
    return ISGD(batch_size, step, tolerance, **{"method": SLOW, **fields})


def starts(dtype):
    return jnp.asarray(START, dtype), jnp.zeros((TASKS, FEATURES), dtype)


def optimize(dtype, algorithm, steps, key=KEY, problem=PROBLEM, **options):
    arguments = {**data(dtype), **options}
    return bl.optimize(problem, *starts(dtype), algorithm=algorithm, steps=steps, key=key, **arguments)


@partial(jax.jit, static_argnames=("steps", "runs"))
def _paths(algorithm, problem, lam0, w0, arguments, steps, runs):
    def run(key):
        def step(state, _):
            moved, info = algorithm.update(state, problem, **arguments)
            return moved, (state.lam, info)

        end, (lams, infos) = jax.lax.scan(step, algorithm.init(lam0, w0, key), length=steps)
        return jnp.concatenate([lams, end.lam[None]]), infos

    return jax.vmap(run)(jax.random.split(KEY, runs))


def paths(dtype, algorithm, steps, runs, problem=PROBLEM):
    """``lam_0 .. lam_S`` and infos of independent runs, as one program."""
    lams, infos = _paths(algorithm, problem, *starts(dtype), data(dtype), steps, runs)
    return np.asarray(lams, np.float64), infos


@pytest.mark.parametrize("problem", [PROBLEM, ESTIMATING], ids=["bounds", "estimates"])
def test_every_error_is_certified_and_the_bias_is_at_most_their_mean(problem, dtype):
    """On every draw of every path; a smaller tolerance is met by more work."""
    work = []
    for tolerance in (0.3, 1e-3):
        lams, infos = paths(dtype, isgd(0.5, tolerance), 4, RUNS, problem)
        h = infos.hypergradient
        assert np.all(infos.details.statuses == Status.OK)
        assert not np.any(h.failed)
        assert np.all(infos.details.errors <= tolerance)
        exact = np.array([[Truth.gradients(lam)[t].mean(axis=0) for lam, t in zip(*run, strict=True)]
                          for run in zip(lams[:, :-1], np.asarray(infos.details.tasks), strict=True)])  # fmt: skip
        distance = np.linalg.norm(np.asarray(h.grad, np.float64) - exact, axis=-1)
        mean = np.asarray(h.bound if problem.constants else h.error, np.float64)
        np.testing.assert_allclose(mean, np.mean(infos.details.errors, axis=-1), rtol=100 * jnp.finfo(dtype).eps)
        # An estimate is of first order: within a tenth where it is a tenth; a bound is one.
        assert np.all(distance <= mean * (1.0 if problem.constants else 1.1) + 10 * jnp.finfo(dtype).eps)
        assert np.max(distance) > 1e-3 * tolerance  # not by being exact
        assert bool(jnp.all(h.proved)) == (problem.constants is not None)
        work.append((h.lower.matvecs + h.adjoint.matvecs).sum())
    assert work[1] > 1.2 * work[0]


def test_the_mean_is_unbiased_when_the_errors_vanish(dtype):
    """Of the first steps of 200 runs, in each component within 4 standard errors."""
    _, infos = paths(dtype, isgd(tolerance=1e-3), 4, RUNS)
    grads, truth = np.asarray(infos.hypergradient.grad[:, 0], np.float64), Truth.gradients(START)
    standard_error = grads.std(axis=0, ddof=1) / np.sqrt(len(grads))
    assert np.all(abs(grads.mean(axis=0) - truth.mean(axis=0)) < 4 * standard_error + 1e-3)
    # Distinct tasks: the variance of sampling without replacement.
    expected = truth.var(axis=0, ddof=1) / BATCH * (1 - BATCH / TASKS)
    np.testing.assert_allclose(grads.var(axis=0, ddof=1), expected, rtol=4 * np.sqrt(2 / len(grads)))
    tasks = np.asarray(infos.details.tasks[:, 0])
    assert all(len(set(drawn)) == BATCH for drawn in tasks)


def upper_rates(a):
    """The map ``lam - a grad f`` contracts by q, its samples have variance at most ``s1 + s2 |a grad f|^2``."""
    sampling = (1 - BATCH / TASKS) / BATCH * TASKS / (TASKS - 1)
    noise = a**2 * sampling * np.mean(np.sum(Truth.gradients(Truth.minimizer) ** 2, axis=1))
    spread = Truth.hessians - Truth.hessian
    inverse = np.linalg.inv(Truth.hessian)
    growth = sampling * np.linalg.norm(inverse @ np.mean(spread @ spread, axis=0) @ inverse, 2)
    q = np.abs(1 - a * np.linalg.eigvalsh(Truth.hessian)).max()
    distance = np.sum((START - Truth.minimizer) ** 2)
    return Recursion(q=q, s1=2 * noise, s2=2 * growth, start=distance)  # Var[x + y] <= 2 Var[x] + 2 Var[y]


def test_decreasing_steps_converge_to_the_closed_form_and_constant_ones_stall(dtype):
    """At the proved rate of SGD with the gradients' own noise, tolerances decreasing with the steps."""
    a = float(1 / np.linalg.eigvalsh(Truth.hessian)[-1])
    r = upper_rates(a)
    eta = bl.from_rates(r.q, r.s2)
    decreasing = isgd(bl.Decreasing(a * eta.beta, eta.gamma), bl.Decreasing(0.5, 50.0))
    squares = {}
    for name, algorithm in {"decreasing": decreasing, "constant": isgd(a / (1 + r.s2), 1e-2)}.items():
        lams, infos = paths(dtype, algorithm, 400, 8)
        assert not np.any(infos.hypergradient.failed)
        squares[name] = np.sum((lams - Truth.minimizer) ** 2, axis=-1)
    for t in (100, 200, 400):
        seen = squares["decreasing"][:, t]
        assert seen.mean() + 4 * seen.std(ddof=1) / np.sqrt(len(seen)) < squared_distance(r, eta, t)
    end = squares["decreasing"][:, 350:].mean()
    assert end < 1e-3 * r.start
    assert end < 0.5 * squares["decreasing"][:, 100:150].mean()
    assert squares["constant"][:, 350:].mean() > 5 * end


def test_one_key_one_run_and_a_history_in_tasks(dtype):
    one, again, other = (optimize(dtype, isgd(), 6, key=jax.random.key(i)) for i in (3, 3, 4))
    for column in ("value", "gradient_norm", "samples", "error", "matvecs"):
        np.testing.assert_array_equal(getattr(one.history, column), getattr(again.history, column))
    np.testing.assert_array_equal(one.lam, again.lam)
    assert jnp.all(one.lam != other.lam)
    np.testing.assert_array_equal(one.history.samples, BATCH)
    assert one.status in (Status.OK, Status.UNRESOLVED)
    assert np.all(one.history.error <= 1e-2)  # at every step, not only at every tenth
    assert one.w.shape == (TASKS, FEATURES)
    assert "GradientDescent, CG), mean over 3 tasks" in one.hypergradient.explain()


def positive(lam):
    return jnp.maximum(lam, 0.0)


@pytest.mark.parametrize(("warm", "projection"), [(True, None), (False, positive)])
def test_starts_and_projections(warm, projection, dtype):
    """Warm starts hold the last solutions of the tasks drawn, those of the others stay; the step is projected."""
    lam0, w0 = starts(dtype)
    algorithm = isgd(warm_start=warm, projection=projection)
    first = algorithm.init(lam0, w0, KEY)
    state, info = algorithm.update(first, PROBLEM, **data(dtype))
    h, others = info.hypergradient, np.setdiff1d(np.arange(TASKS), info.details.tasks)
    np.testing.assert_array_equal(state.w, h.w if warm else first.w)
    np.testing.assert_array_equal(state.v, h.v if warm else first.v)
    np.testing.assert_array_equal(h.w[others], first.w[others])
    assert jnp.all(h.w[info.details.tasks] != first.w[info.details.tasks])
    free = START - 0.5 * np.asarray(h.grad, np.float64)
    rounding = 10 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(state.lam, np.maximum(free, 0.0) if projection else free, rtol=rounding)
    assert projection is None or np.any(free < 0)
    mapped = (START - np.asarray(state.lam, np.float64)) / 0.5
    np.testing.assert_allclose(info.gradient_norm, np.linalg.norm(mapped), rtol=10 * rounding)
    assert state.step == 1


@pytest.mark.float64
def test_tasks_may_share_leaves_and_lie_along_any_axis(dtype):
    (X, y), (V, z) = data(dtype).values()
    moved = {"lower_data": (jnp.moveaxis(X, 0, -1), y), "upper_data": (V[0], z)}
    shared = isgd(tolerance=1e-3, batch_size=TASKS, batch_axes=((-1, 0), (None, 0)))
    grad = optimize(dtype, shared, 0, problem=ESTIMATING, **moved).hypergradient.grad
    w = np.linalg.solve(Truth.A, (np.einsum("tmf,tm->tf", Truth.X, Truth.y) / ROWS + MU * START)[:, :, None])
    residuals = (Truth.V[0] @ w)[:, :, 0] - Truth.z
    exact = MU * np.mean(np.linalg.solve(Truth.A, (residuals @ Truth.V[0])[:, :, None]), axis=0)[:, 0] / ROWS
    np.testing.assert_allclose(grad, exact, atol=1.1e-3)
    assert np.linalg.norm(exact) > 0.1


def test_a_task_that_fails_ends_the_run_and_is_named(dtype):
    """Once it is drawn; the state is then the old one, finite."""
    (X, y), upper = data(dtype).values()
    bad = {"lower_data": (X, y.at[7].set(jnp.nan)), "upper_data": upper}
    result = optimize(dtype, isgd(), 50, **bad)
    assert result.status == Status.NONFINITE
    last = result.history.step[-1]
    assert last < 50
    assert jnp.all(jnp.isfinite(result.lam))
    state = isgd().init(*starts(dtype), KEY)
    for _ in range(last + 1):
        before = state
        state, info = isgd().update(before, PROBLEM, **bad)
    assert list(info.details.tasks[info.details.statuses != Status.OK]) == [7]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before, state))
    with pytest.raises(bl.ConvergenceError, match=f"step {last}: "):
        optimize(dtype, isgd(), 50, on_failure="raise", **bad)


def test_a_tolerance_below_rounding_is_not_met_loudly(dtype):
    result = optimize(dtype, isgd(tolerance=1e-30), 5)
    assert result.status.failed
    assert len(result.history) == 1
    np.testing.assert_array_equal(result.lam, jnp.asarray(START, dtype))


def cut(level, tasks):
    return {level: tuple(x[:tasks] for x in data(jnp.result_type(float))[level])}


BAD = {
    "no key": (isgd(), {"key": None}, "ISGD draws random samples: give key="),
    "large batch": (isgd(batch_size=11), {}, "at most the number of tasks, 10, but is 11"),
    "no batch": (isgd(batch_size=0), {}, "batch_size must be at least 1"),
    "lengths": (isgd(), cut("upper_data", 9), "must have the same number of rows, but they have: .* 10, .* 9"),
    "starts": (isgd(), {"w0": (4, FEATURES)}, r"a start for each of the 10 tasks .* but w0 has the shape \(4, 3\)"),
    "step": (isgd(step=-1.0), {}, "step of ISGD must be positive and finite, but is -1.0 at the first step"),
    "tolerance": (isgd(tolerance=0), {}, "tolerance of ISGD must be positive and finite, but is 0 at the first step"),
    "method": (isgd(method=bl.ITD(steps=3)), {}, r"method of ISGD must be AID\(...\), but is ITD"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_a_sentence(name, dtype):
    algorithm, changes, sentence = BAD[name]
    lam0, w0 = starts(dtype)
    w0 = jnp.zeros(changes.get("w0", w0.shape), dtype)
    options = {"key": KEY, **data(dtype), **{k: v for k, v in changes.items() if k != "w0"}}
    with pytest.raises(ProblemError, match=sentence):
        bl.optimize(PROBLEM, lam0, w0, algorithm=algorithm, steps=1, **options)


@pytest.mark.parametrize("name", ["step", "tolerance"])
def test_a_word_is_no_schedule(name):
    with pytest.raises(ProblemError, match="a function of the step number, but is 'fast'"):
        isgd(**{name: "fast"})
