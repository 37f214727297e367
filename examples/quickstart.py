"""Quickstart: one penalty per feature of a logistic regression, tuned by gradient descent on the validation loss.

The lower level trains weights ``w`` for given penalties ``lam`` by 100 gradient steps from zero; the upper
level measures them on validation samples. The hypergradient goes back through the last 10 of these steps
(truncated reverse mode), and optax descends along it. Run it with ``python examples/quickstart.py``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel as bl


def loss(w, lam, data):
    """Mean logistic loss and penalties: ``1/n sum_i log(1 + exp(-y_i x_i^T w)) + 1/2 sum_j lam_j w_j^2``."""
    return validation_loss(w, lam, data) + 0.5 * jnp.sum(lam * w**2)


def validation_loss(w, _lam, data):
    """Mean logistic loss of labels y in {-1, +1}."""
    X, y = data
    return jnp.mean(jax.nn.softplus(-y * (X @ w)))


def draw(seed=1, n=1000, d=20):
    """Labels of a noisy linear rule, one half for training and one for validation."""
    rng = np.random.default_rng(seed)
    X, w = rng.standard_normal((n, d)), rng.standard_normal(d)
    y = np.where(X @ w + 0.1 * rng.standard_normal(n) > 0, 1.0, -1.0)
    return (X[: n // 2], y[: n // 2]), (X[n // 2 :], y[n // 2 :])


def tune(train, valid, steps=1000):
    """Validation loss before every step on the penalties and at the end, and the result of the run."""
    problem = bl.Problem(bl.minimization(loss), validation_loss)
    method = bl.ITD(solver=bl.GradientDescent(steps=100, step=0.1), truncate=10)
    descent = bl.algorithms.HypergradientDescent(
        optax.sgd(1.0, momentum=0.9), method=method, projection=lambda lam: jnp.maximum(lam, 1e-8), warm_start=False
    )
    train, valid = jax.tree.map(jnp.asarray, (train, valid))
    d = train[0].shape[1]
    result = bl.optimize(
        problem, jnp.ones(d), jnp.zeros(d), algorithm=descent, steps=steps, lower_data=train, upper_data=valid,
        error_every=100,
    )  # fmt: skip
    return result.history.value, result


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    curve, result = tune(*draw())
    for step in (0, 50, 100, 200, len(curve) - 1):
        print(f"step {step:4d}   validation loss {curve[step]:.4f}")
    print("penalties", np.array2string(np.asarray(result.lam), precision=4))
    print(result.hypergradient.explain())
