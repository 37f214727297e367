"""Iterative differentiation: modes, memory, momentum, and what is learned about the iteration itself."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel import tree
from bilevel.status import Status
from families import FAMILIES, dense_truth, relative_distance

STEPS = 17
ITERATIONS = {
    "picard": bl.Picard(steps=STEPS, step=0.5),
    "heavy ball": bl.HeavyBall(steps=STEPS, step=0.5, momentum=0.3),
    "nesterov": bl.Nesterov(steps=STEPS, step=0.5),
    "anderson": bl.Anderson(steps=8, step=0.5),  # once it has converged, its mixing is that of rounding
    "adam": bl.Optax(optax.adam(0.1), steps=STEPS),
}
ON = [("logistic", name) for name in ITERATIONS] + [("equilibrium", "picard"), ("equilibrium", "anderson")]


def run(case, method, **options):
    return bl.hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method, **options)


def t_step_objective(case, iteration):
    """``lam -> U(w_T(lam), lam)``, written as a Python loop."""

    def objective(lam):
        lower = case.problem.lower
        at, _ = iteration.prepare(lower, lam, case.w0, case.lower_data)
        state = at.init(case.w0)
        for _ in range(at.steps):
            state = at.advance(state, lower.residual(at.params(state), lam, case.lower_data))
        return case.problem.upper(at.params(state), lam, case.upper_data)

    return objective


def difference_quotients(objective, lam, direction, steps):
    """Central differences along a direction."""
    value = jax.jit(lambda h: objective(tree.axpy(h, direction, lam)))
    return [float((value(h) - value(-h)) / (2 * h)) for h in steps]


@pytest.mark.float64
@pytest.mark.parametrize(("family", "name"), ON)
def test_reverse_mode_is_the_derivative_of_the_objective(family, name):
    """Central differences come closer as ``h^2`` until rounding, ``eps |U| / h``, takes over."""
    case = FAMILIES[family](2, jnp.float64, n=8, condition=10.0)
    h = run(case, bl.ITD(ITERATIONS[name]), error=False)
    direction = tree.standard_normal(jax.random.key(0), case.lam)
    # Small against the penalties, which are the least of the hyperparameters.
    sizes = 1e-3 * np.asarray([4.0, 2.0, 1.0]) * float(tree.norm(case.lam)) / float(tree.norm(direction))
    quotients = difference_quotients(t_step_objective(case, ITERATIONS[name]), case.lam, direction, sizes)
    errors = np.abs(np.asarray(quotients) - float(tree.dot(h.grad, direction)))
    rounding = 1e3 * float(jnp.finfo(jnp.float64).eps) * abs(float(h.value)) / sizes
    assert errors[1] <= errors[0] / 3 + rounding[1]
    assert errors[2] <= errors[1] / 3 + rounding[2]
    assert errors[2] <= 1e-4 * np.abs(quotients[2]) + rounding[2]


@pytest.mark.parametrize(("family", "name"), ON)
def test_forward_mode_and_checkpoints_are_reverse_mode(family, name, dtype):
    case = FAMILIES[family](2, dtype, n=8, condition=10.0)
    iteration, steps = ITERATIONS[name], ITERATIONS[name].steps
    reverse = run(case, bl.ITD(iteration), error=False)
    # Anderson's mixing solves normal equations: rounding grows with the square of their condition.
    allowed = (1e7 if name == "anderson" else 1e3) * float(jnp.finfo(dtype).eps)
    for method, back in (
        (bl.ITD(iteration, mode="forward"), steps * tree.size(case.lam)),
        (bl.ITD(iteration, checkpoint=1), 2 * steps),
        (bl.ITD(iteration, checkpoint="sqrt"), 2 * steps),
    ):
        h = run(case, method, error=False)
        assert relative_distance(h.grad, reverse.grad) <= allowed
        assert relative_distance(h.w, reverse.w) <= allowed
        assert (int(h.lower.matvecs), int(h.adjoint.steps), int(h.adjoint.matvecs)) == (steps + 1, steps, back)
    assert int(reverse.adjoint.matvecs) == steps


@pytest.mark.parametrize("options", [{"mode": "forward"}, {"checkpoint": "sqrt"}])
def test_truncation_in_every_mode(options, dtype):
    case = FAMILIES["logistic"](2, dtype, n=8, condition=10.0)
    iteration = ITERATIONS["heavy ball"]
    reverse = run(case, bl.ITD(iteration, truncate=6), error=False)
    h = run(case, bl.ITD(iteration, truncate=6, **options), error=False)
    assert relative_distance(h.grad, reverse.grad) <= 1e3 * float(jnp.finfo(dtype).eps)
    assert int(h.adjoint.steps) == 6
    assert relative_distance(h.grad, run(case, bl.ITD(iteration), error=False).grad) > 1e-3


@pytest.mark.parametrize("name", ["heavy ball", "nesterov", "anderson"])
def test_momentum_knows_its_error(name, dtype):
    """The error of ITD through a momentum method is that of its gradient, however w came about."""
    case = FAMILIES["logistic"](5, dtype, n=10, condition=10.0)
    exact = run(case, bl.Exact())
    h = run(case, bl.ITD(replace(ITERATIONS[name], steps=25)))
    true = float(tree.norm(tree.sub(h.grad, exact.grad)))
    assert Status(int(h.status)) in (Status.OK, Status.UNRESOLVED)
    if h.relative_error <= 0.1:
        floor = 1e3 * float(jnp.finfo(dtype).eps) * float(h.scale)
        assert true / 2 - floor <= float(h.error) <= 2 * true + floor


@pytest.mark.float64
def test_heavy_ball_brings_its_rate_to_the_gradient():
    """``sqrt kappa``: what takes gradient descent thousands of steps takes the heavy ball some hundred."""
    kappa = 1e3
    case = FAMILIES["biased_regularization"](0, jnp.float64, n=30, condition=kappa)
    exact = dense_truth(*case[:5]).grad
    mu, L = 1 / kappa, 1.0

    def errors(solver, steps):
        return [relative_distance(run(case, bl.ITD(replace(solver, steps=t)), error=False).grad, exact) for t in steps]

    p = (kappa**0.5 - 1) / (kappa**0.5 + 1)
    before, after = errors(bl.HeavyBall(mu=mu, L=L), (150, 300))
    assert (after / before) ** (1 / 150) <= p + 1e-2
    slow = errors(bl.GradientDescent(step=2 / (L + mu)), (150, 300))
    assert (slow[1] / slow[0]) ** (1 / 150) >= 1 - 3 / kappa


def two_curvatures(w, lam, data):
    return jnp.sum(data * w**2) / 2


def log_distance(w, lam, data):
    return jnp.log(jnp.sum(w**2))


@pytest.mark.float64
def test_a_learned_step_size_approaches_two_over_l_plus_mu():
    """``sum_i (1 - a h_i)^(2 T)`` with h in {mu, L}: its minimizer tends to ``2 / (L + mu)`` as T grows."""
    problem = bl.Problem(bl.minimization(two_curvatures), log_distance)
    spectrum = jnp.asarray([0.2, 1.0])

    def learned(steps):
        method = bl.ITD(learned_solver=lambda lam: bl.GradientDescent(steps=steps, step=jnp.exp(lam)))
        result = bl.optimize(
            problem, jnp.log(0.5), jnp.ones(2), lower_data=spectrum, upper_data=None,
            algorithm=bl.algorithms.HypergradientDescent(optax.adam(0.02), method=method, warm_start=False), steps=400,
        )  # fmt: skip
        return float(jnp.exp(result.lam))

    best = 2 / 1.2
    short, long = learned(2), learned(20)
    assert abs(long - best) < abs(short - best) / 3
    assert abs(long - best) <= 0.02 * best


@pytest.mark.float64
def test_learned_step_and_momentum_against_differences():
    case = FAMILIES["logistic"](3, jnp.float64, n=6, condition=10.0)
    lam = {"penalties": case.lam, "step": jnp.asarray(0.7), "momentum": jnp.asarray(0.4)}
    lower, upper = case.problem.lower.function, case.problem.upper
    problem = bl.Problem(
        bl.minimization(lambda w, lam, data: lower(w, lam["penalties"], data)),
        lambda w, lam, data: upper(w, lam["penalties"], data),
    )

    def solver(lam):
        return bl.HeavyBall(steps=12, step=lam["step"], momentum=lam["momentum"])

    case = case._replace(problem=problem, lam=lam)
    h = run(case, bl.ITD(learned_solver=solver))
    assert jnp.isnan(h.error)
    assert Status(int(h.status)) == Status.OK

    def objective(lam):
        return t_step_objective(case, solver(lam))(lam)

    for name in ("step", "momentum"):
        direction = {**jax.tree.map(jnp.zeros_like, lam), name: jnp.ones(())}
        (quotient,) = difference_quotients(objective, lam, direction, [1e-5])
        assert abs(float(h.grad[name]) - quotient) <= 1e-8 * abs(quotient) + 1e-10
    assert relative_distance(run(case, bl.ITD(learned_solver=solver, checkpoint="sqrt")).grad, h.grad) <= 1e-12
    assert relative_distance(run(case, bl.ITD(learned_solver=solver, mode="forward")).grad, h.grad) <= 1e-12


@pytest.mark.float64
def test_a_learned_start_on_quadratics():
    """MAML: ``grad = (I - a H)^T ... (I - a H)^T d_w U(w_T)``."""
    case = FAMILIES["ridge"](1, jnp.float64, n=6, condition=10.0)
    lower, penalties = case.problem.lower.function, case.lam
    problem = bl.Problem(bl.minimization(lambda w, lam, data: lower(w, penalties, data)),
                         lambda w, lam, data: case.problem.upper(w, penalties, data))  # fmt: skip
    start = jnp.linspace(-1.0, 1.0, 6)
    method = bl.ITD(bl.GradientDescent(steps=5, step=0.5), learned_start=lambda lam: lam)
    h = run(case._replace(problem=problem, lam=start), method)
    H = jax.hessian(lambda w: lower(w, penalties, case.lower_data))(start)
    g = jax.grad(lambda w: case.problem.upper(w, penalties, case.upper_data))(h.w)
    assert relative_distance(h.grad, np.linalg.matrix_power(np.eye(6) - 0.5 * H, 5).T @ g) <= 1e-12


def test_lam_that_reaches_nothing_is_refused(dtype):
    case = FAMILIES["ridge"](1, dtype, n=6, condition=10.0)
    lower, upper, penalties = case.problem.lower.function, case.problem.upper, case.lam
    problem = bl.Problem(bl.minimization(lambda w, lam, data: lower(w, penalties, data)),
                         lambda w, lam, data: upper(w, penalties, data))  # fmt: skip
    start = jnp.ones(6, dtype)
    blind = bl.ITD(learned_solver=lambda lam: bl.GradientDescent(steps=5, step=0.5))
    for method in (bl.ITD(bl.GradientDescent(steps=5)), blind):
        with pytest.raises(bl.ProblemError, match="lam does not reach"):
            run(case._replace(problem=problem, lam=start), method)


REFUSED = {
    "two solvers": (bl.ITD(bl.Picard(steps=3), steps=3), "exactly one"),
    "no solver": (bl.ITD(), "exactly one"),
    "mode": (bl.ITD(steps=3, mode="backward"), "mode must be"),
    "forward checkpoints": (bl.ITD(steps=3, mode="forward", checkpoint=1), "forward mode keeps no"),
    "checkpoint": (bl.ITD(steps=3, checkpoint=0), "positive count"),
    "truncated start": (bl.ITD(steps=3, truncate=2, learned_start=lambda lam: lam), "leave one of them out"),
    "no steps": (bl.ITD(learned_solver=lambda lam: bl.GradientDescent()), "fixed number of steps"),
    "no iteration": (bl.ITD(learned_solver=lambda lam: bl.NewtonCG(steps=3)), "none that can be"),
    "truncate": (bl.ITD(learned_solver=lambda lam: bl.Picard(steps=3), truncate=4), "truncate must lie"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name, dtype):
    case = FAMILIES["logistic"](3, dtype, n=6, condition=10.0)
    method, message = REFUSED[name]
    with pytest.raises(bl.ProblemError, match=message):
        run(case, method)


def memory(method):
    """Temporary bytes of the compiled hypergradient of a logistic regression with 200 rows and 20 features."""
    case = FAMILIES["logistic"](0, None, n=20, condition=10.0)

    def gradient(lam, w0, lower_data, upper_data):
        return bl.hypergradient(
            case.problem, lam, w0, lower_data=lower_data, upper_data=upper_data, method=method, error=False
        ).grad

    compiled = jax.jit(gradient).lower(*case[1:5]).compile()
    return compiled.memory_analysis().temp_size_in_bytes


LENGTHS = (100, 1000, 10_000)


def growth(make):
    """Memory at each length, less that of the shortest possible run."""
    base = memory(make(1))
    return [memory(make(steps)) - base for steps in LENGTHS]


@pytest.mark.float64
def test_memory_of_itd_grows_as_its_mode_says():
    """Within a factor of two of ``c sqrt(T)`` with checkpoints, of ``c T`` without; K last steps, constant."""
    plain = growth(lambda T: bl.ITD(bl.GradientDescent(steps=T, step=0.5)))
    sqrt = growth(lambda T: bl.ITD(bl.GradientDescent(steps=T, step=0.5), checkpoint="sqrt"))
    for held, power in ((plain, 1.0), (sqrt, 0.5)):
        constants = [bytes_ / T**power for bytes_, T in zip(held, LENGTHS, strict=True)]
        assert max(constants) <= 2 * min(constants)
    assert sqrt[-1] <= 0.05 * plain[-1]
    short = [memory(bl.ITD(bl.GradientDescent(steps=T, step=0.5), truncate=10)) for T in LENGTHS]
    forward = [memory(bl.ITD(bl.GradientDescent(steps=T, step=0.5), mode="forward")) for T in LENGTHS]
    aid = [memory(bl.AID(bl.GradientDescent(steps=T, step=0.5), bl.CG(steps=20))) for T in LENGTHS]
    for held in (short, forward, aid):
        assert max(held) <= min(held) + 64
