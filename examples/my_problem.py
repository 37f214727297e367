"""A problem of one's own for ``bilevel compare``: find the wrong labels of a training set.

The lower level trains a softmax classifier on samples weighted by ``sigmoid(lam_i)``; the upper level measures it
on a few clean samples. The hypergradient says which weights to lower: those of samples whose labels mislead.
Compare the methods on it with ``bilevel compare examples/my_problem.py``.
"""

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl

FEATURES, CLASSES, PENALTY = 20, 4, 1e-3


def loss(w, lam, data):
    """Weighted mean cross-entropy with an l2 penalty, which makes the minimum unique."""
    X, y = data
    return jnp.mean(jax.nn.sigmoid(lam) * cross_entropy(w, X, y)) + 0.5 * PENALTY * jnp.sum(w**2)


def clean_loss(w, _lam, data):
    """Mean cross-entropy on the clean samples. Like the loss it takes (w, lam, data), needed or not."""
    X, y = data
    return jnp.mean(cross_entropy(w, X, y))


def cross_entropy(w, X, y):
    """Minus the log-probability of every label."""
    return -jnp.take_along_axis(jax.nn.log_softmax(X @ w), y[:, None], axis=1)[:, 0]


def make_problem(n=300, corrupted=0.3, seed=0):
    """The problem, where to take the hypergradient, the start of the lower level, and the data of both levels."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((FEATURES, CLASSES))
    X = rng.standard_normal((2 * n, FEATURES))
    y = np.argmax(X @ truth + rng.gumbel(size=(2 * n, CLASSES)), axis=1)
    noisy = np.where(rng.uniform(size=n) < corrupted, rng.integers(CLASSES, size=n), y[:n])
    problem = bl.Problem(bl.minimization(loss), clean_loss)
    lam, w0 = jnp.zeros(n), jnp.zeros((FEATURES, CLASSES))
    return problem, lam, w0, (X[:n], noisy), (X[n:], y[n:])
