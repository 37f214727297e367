import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from bilevel.hypergradient import hypergradient
from bilevel.methods.exact import Exact
from bilevel.tuning.choice import choose, hopeless
from bilevel.tuning.families import FAMILIES
from bilevel.tuning.fits import (
    Goal,
    Hyperparameters,
    coefficients,
    columns,
    finals,
    intercepts,
    make_fits,
    zero_weights,
)
from bilevel.tuning.quasi_newton import QuasiNewton
from bilevel.tuning.search import METHOD, solve
from bilevel.tuning.transform import recenter

FOLDS = 4


def draw(family, n=60, d=4):
    """Standardized features, targets and folds."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    signal = X @ rng.standard_normal((d, 3)) + 0.7 * rng.standard_normal((n, 3))
    y = {
        "ridge": signal[:, :1],
        "logistic": (signal[:, :1] > 0).astype(float),
        "multinomial": np.eye(3)[signal.argmax(axis=1)],
    }[family]
    return X, y, rng.permutation(np.arange(n) % FOLDS)


def hyperparameters(members, d, dtype):
    rng = np.random.default_rng(1)
    return Hyperparameters(
        shared=jnp.asarray(rng.normal(1.0, 0.5, members), dtype),
        deviation=jnp.asarray(rng.normal(0.0, 0.5, (members, d)), dtype),
    )


@pytest.mark.parametrize("holdout", [False, True])
@pytest.mark.parametrize("folds", [3, 5, 7])
def test_every_member_holds_its_rows_apart(folds, holdout):
    fold = np.random.default_rng(0).permutation(np.arange(70) % folds)
    which = columns(fold, folds, holdout)
    assert not np.any(which.train & which.held_out)
    selection = which.held_out[:, ~which.validates]
    np.testing.assert_array_equal(selection.sum(axis=1), 1)  # each row selects once
    for member in range(which.member.max() + 1):
        mine = which.member == member
        validation = which.held_out[:, mine & which.validates]
        assert validation.shape[1] == (1 if holdout else len(set(fold[validation.any(axis=1)])))
        assert validation.sum(axis=1).max() == 1
        if member == 0:
            assert holdout or validation.all(axis=1).sum() == 0
            assert holdout or np.all(validation.any(axis=1))
        else:
            kept = which.held_out[:, mine & ~which.validates][:, 0]
            assert not np.any(which.train[:, mine][kept])  # the hypergradients never see a row it selects with
            assert not np.any(validation[kept])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fits_agree_with_scikit_learn_at_the_same_penalty(family, dtype):
    X, y, fold = draw(family)
    fits = make_fits(X, y, columns(fold, FOLDS, False), dtype)
    members = FOLDS + 1
    penalty = np.array([0.3, 1.0, 3.0, 10.0, 30.0])
    lam = Hyperparameters(shared=jnp.asarray(np.log(penalty), dtype), deviation=jnp.zeros((members, X.shape[1]), dtype))
    w = zero_weights(fits)
    exact = dtype == np.float64
    for _ in range(2):
        w, _, fits = recenter(FAMILIES[family], lam, w, w, fits)
        w, info = solve(FAMILIES[family], lam, w, fits, 1e-9 if exact else 1e-4)
    assert int(info.status) == 0
    C, b = np.asarray(coefficients(w, fits)), np.asarray(intercepts(w, y.shape[1]))
    for f in range(0, len(fits.member), 4):
        rows, alpha = np.asarray(fits.train)[:, f] > 0, penalty[int(fits.member[f])]
        label = y[:, 0] if y.shape[1] == 1 else y.argmax(axis=1)
        model = Ridge(alpha=alpha) if family == "ridge" else LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=1000)
        model.fit(X[rows], label[rows])
        theirs = model.decision_function(X) if family != "ridge" else model.predict(X)
        ours = X @ C[:, f] + b[f]
        theirs, ours = (z.reshape(len(X), -1) for z in (theirs, ours))
        if family == "multinomial":  # scores are defined up to a common shift of the classes
            theirs, ours = (z - z.mean(axis=1, keepdims=True) for z in (theirs, ours))
        np.testing.assert_allclose(ours, theirs, atol=2e-5 if exact else 2e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_coordinates_change_nothing_but_the_conditioning(family, dtype):
    X, y, fold = draw(family)
    fits = make_fits(X, y, columns(fold, FOLDS, False), dtype)
    lam = hyperparameters(FOLDS + 1, X.shape[1], dtype)
    rng = np.random.default_rng(2)
    w = {key: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), dtype) for key, leaf in zero_weights(fits).items()}
    new, _, moved = recenter(FAMILIES[family], lam, w, w, fits)
    tolerance = 1e3 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(coefficients(new, moved), coefficients(w, fits), atol=tolerance)
    loss = FAMILIES[family].loss
    np.testing.assert_allclose(loss(new, lam, moved), loss(w, lam, fits), rtol=tolerance)

    def hessian_times(w, fits):
        return jax.jvp(lambda u: jax.grad(loss)(u, lam, fits), (w,), (w,))[1]["coef"]

    if family != "multinomial":
        np.testing.assert_allclose(len(X) * hessian_times(new, moved)[..., :], new["coef"], atol=3.0)


@pytest.mark.float64
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_search_hypergradients_agree_with_the_dense_truth(family):
    X, y, fold = draw(family)
    fits = make_fits(X, y, columns(fold, FOLDS, False), "float64")
    lam = hyperparameters(FOLDS + 1, X.shape[1], "float64")
    w = v = zero_weights(fits)
    w, v, fits = recenter(FAMILIES[family], lam, w, v, fits)
    goal = Goal(fits, jnp.full(FOLDS + 1, 0.01))
    problem = FAMILIES[family].problem
    truth = hypergradient(problem, lam, w, lower_data=fits, upper_data=goal, method=Exact(), error=False)
    rough = hypergradient(problem, lam, w, lower_data=fits, upper_data=goal, method=METHOD, error=False)
    for name in lam:
        scale = np.linalg.norm(truth.grad[name])
        assert np.linalg.norm(rough.grad[name] - truth.grad[name]) <= 0.03 * scale


def test_members_do_not_mix(dtype):
    X, y, fold = draw("logistic")
    fits = make_fits(X, y, columns(fold, FOLDS, False), dtype)
    lam = hyperparameters(FOLDS + 1, X.shape[1], dtype)
    other = Hyperparameters(shared=lam["shared"].at[2].add(1.0), deviation=lam["deviation"])
    rtol = 1e-9 if dtype == np.float64 else 1e-4
    (w, _), (u, _) = (solve(FAMILIES["logistic"], at, zero_weights(fits), fits, rtol) for at in (lam, other))
    mixed = np.asarray(fits.member) == 2
    tolerance = 1e-7 if dtype == np.float64 else 1e-3
    np.testing.assert_allclose(w["coef"][~mixed], u["coef"][~mixed], atol=tolerance)
    assert np.min(np.max(np.abs(w["coef"][mixed] - u["coef"][mixed]), axis=(1, 2))) > 10 * tolerance


def test_final_fits_let_only_the_tuned_model_reach_the_upper_level():
    fold = np.arange(30) % 3
    which = finals(columns(fold, 3, False), 3, judged=2)
    assert set(which.member[which.validates]) == {2}
    assert [int(np.sum(which.train[:, which.member == m].all(axis=0))) for m in range(3)] == [1, 1, 1]


def test_quasi_newton_minimizes_quadratics_and_knows_the_prior():
    rng = np.random.default_rng(0)
    A = [np.diag(rng.uniform(0.1, 2.0, 6)) for _ in range(2)]
    c = 0.5 * rng.standard_normal((2, 6))
    model, x = QuasiNewton(np.ones((2, 6))), np.zeros((2, 6))

    def gradient(x):
        return np.stack([Am @ (xm - cm) for Am, xm, cm in zip(A, x, c, strict=True)])

    for strength in (1.0, 0.1):
        known = np.full((2, 6), strength)
        for _ in range(14):
            step = model.step(gradient(x) + known * x, known)
            model.learn(step, gradient(x + step) - gradient(x))
            x = x + step
        exact = np.stack([np.linalg.solve(Am + strength * np.eye(6), Am @ cm) for Am, cm in zip(A, c, strict=True)])
        np.testing.assert_allclose(x, exact, atol=1e-6)


def test_choice_prefers_the_stronger_prior_within_one_standard_error():
    rng = np.random.default_rng(0)
    base, noise = rng.exponential(size=400), rng.standard_normal(400)
    noise = (noise - noise.mean()) / noise.std()
    losses = [base + 0.2 + noise, base + 0.03 + noise, base, base + 0.01 * noise + 0.1]
    choice = choose(losses)
    assert (choice.best, choice.chosen) == (2, 1)  # 0.2 is four standard errors, 0.03 less than one
    assert choose(losses[2:3] + losses).chosen == 0
    assert hopeless(losses)
    assert not hopeless(losses[:3])
