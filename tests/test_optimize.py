"""The driver of upper-level algorithms: it minimizes, stops, records, and ends failures with the last good lam."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.status import Status

METHODS = {
    "automatic": None,
    "aid": bl.AID(bl.GradientDescent(steps=30, step=0.2), bl.CG(steps=5)),
    "itd": bl.ITD(bl.GradientDescent(steps=30, step=0.2)),
}
TOLERANT = bl.AID(bl.GradientDescent(rtol=1e-3, step=0.2), bl.CG(rtol=1e-3))


def shrunk(w, lam, data):
    """``w(lam) = data / (1 + exp(lam))``."""
    return 0.5 * jnp.sum((w - data) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)


def distance(w, lam, data):
    return 0.5 * jnp.sum((w - data) ** 2)


PROBLEM = bl.Problem(bl.minimization(shrunk), distance)


def run(dtype, **options):
    data = {"lower_data": jnp.full(3, 3.0, dtype), "upper_data": jnp.full(3, 2.0, dtype)}
    method = options.pop("method", METHODS["aid"])
    extra = {k: options.pop(k) for k in ("projection", "warm_start", "tol") if k in options}
    algorithm = bl.algorithms.HypergradientDescent(options.pop("optimizer", optax.sgd(0.3)), method=method, **extra)
    start = options.pop("lam0", jnp.zeros((), dtype))
    return bl.optimize(PROBLEM, start, jnp.zeros(3, dtype), algorithm=algorithm, **data, **{"steps": 60, **options})


@pytest.mark.parametrize("name", METHODS)
def test_reaches_the_minimizer(name, dtype):
    """``U = 0`` at ``w = 2``, that is ``exp(lam) = 1/2``."""
    result = run(dtype, method=METHODS[name])
    assert abs(float(jnp.exp(result.lam)) - 0.5) <= 2e-3
    assert result.status in (Status.OK, Status.UNRESOLVED)  # the gradient vanishes
    assert len(result.history) == 61
    assert np.all(np.diff(result.history.value) <= 1e-6)
    assert np.all(np.diff(result.history.seconds) > 0)


def test_error_is_estimated_every_so_many_steps_and_at_the_end(dtype):
    result = run(dtype, steps=25, error_every=10)
    known = ~np.isnan(result.history.error)
    assert list(np.flatnonzero(known)) == [0, 10, 20, 25]
    assert result.history.matvecs[1] < result.history.matvecs[10]
    stopped = run(dtype, callback=lambda record, lam: record.step == 7)
    assert len(stopped.history) == 8
    assert not np.isnan(stopped.history.error[-1])


def test_stops_at_the_projected_gradient(dtype):
    result = run(dtype, steps=200, gtol=1e-3)
    assert result.history.gradient_norm[-1] <= 1e-3 < result.history.gradient_norm[-2]
    assert result.status == Status.OK
    assert run(dtype, steps=2, gtol=1e-3).status == Status.MAX_STEPS


def test_projection_keeps_lam_feasible_and_its_boundary_is_stationary(dtype):
    """The minimizer ``log(1/2)`` is cut off by ``lam >= 0``."""
    result = run(dtype, lam0=jnp.ones((), dtype), projection=optax.projections.projection_non_negative, gtol=1e-5)
    assert float(result.lam) == 0
    assert result.status == Status.OK
    assert result.history.gradient_norm[-1] == 0
    assert abs(float(result.hypergradient.grad)) > 0.1


def test_warm_starts_save_and_cold_starts_repeat_the_single_call(dtype):
    warm = run(dtype, method=TOLERANT, steps=10)
    cold = run(dtype, method=TOLERANT, steps=10, warm_start=False)
    assert warm.history.matvecs[5] < cold.history.matvecs[5]
    short = bl.AID(bl.GradientDescent(steps=2, step=0.2), bl.CG(steps=2))
    result = run(dtype, method=short, steps=4, warm_start=False)
    h = bl.hypergradient(
        PROBLEM, result.lam, jnp.zeros(3, dtype), v0=jnp.zeros(3, dtype),
        lower_data=jnp.full(3, 3.0, dtype), upper_data=jnp.full(3, 2.0, dtype), method=short,
    )  # fmt: skip
    assert float(h.value) == pytest.approx(result.history.value[-1], rel=1e-5)


def test_history_and_callback_agree(dtype):
    seen = []
    result = run(dtype, steps=5, callback=lambda record, lam: seen.append((record, float(lam))))
    assert [record for record, _ in seen] == result.history.records
    assert seen[0][1] == 0
    assert float(result.lam) == seen[-1][1]


@pytest.mark.parametrize("on_failure", ["keep", "raise"])
def test_a_failed_step_ends_with_the_last_good_lam(on_failure, dtype):
    """A step far too large sends ``exp(lam)`` to infinity."""
    options = {"optimizer": optax.sgd(-1e4), "steps": 20, "on_failure": on_failure}
    if on_failure == "raise":
        with pytest.raises(bl.ConvergenceError) as caught:
            run(dtype, **options)
        result = caught.value.result
    else:
        result = run(dtype, **options)
    assert result.status.failed
    assert jnp.isfinite(result.lam)
    assert jnp.isfinite(result.w).all()
    assert len(result.history) < 21


def test_nothing_is_compiled_after_the_first_steps(dtype):
    traces = []

    def counted(w, lam, data):
        traces.append(1)
        return distance(w, lam, data)

    problem = bl.Problem(bl.minimization(shrunk), counted)
    algorithm = bl.algorithms.HypergradientDescent(optax.sgd(0.3), method=METHODS["aid"])

    def go(steps):
        bl.optimize(
            problem, jnp.zeros((), dtype), jnp.zeros(3, dtype), algorithm=algorithm, steps=steps, error_every=2,
            lower_data=jnp.full(3, 3.0, dtype), upper_data=jnp.full(3, 2.0, dtype),
        )  # fmt: skip
        return len(traces)

    assert go(3) == go(12)


@pytest.mark.parametrize("options", [{"steps": -1}, {"error_every": 0}])
def test_wrong_counts_are_refused(options, dtype):
    with pytest.raises(bl.ProblemError, match="steps"):
        run(dtype, **options)
