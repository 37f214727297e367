"""Faults of losses and maps of two variables; one program holds all losses, one all maps."""

import jax
import jax.numpy as jnp
import numpy as np
from affine_faults import Fault, target

import bilevel as bl

LOSSES = {
    "Rosenbrock": lambda w, lam, c: (lam - w[0]) ** 2 + c * (w[1] - w[0] ** 2) ** 2,
    "exponential": lambda w, lam, c: jnp.sum(jnp.exp(w) - lam * w),
    "logistic": lambda w, lam, c: jnp.logaddexp(0, -w[0]) + jnp.logaddexp(0, -w[0] - 0.3 * w[1])
    + 0.5 * c * lam * jnp.sum(w**2),
    "barrier": lambda w, lam, c: jnp.sum(w - lam * jnp.log(w)),
    "kink": lambda w, lam, c: jnp.sum(0.5 * (w - lam) ** 2 + c * jnp.abs(w)),
    "wells": lambda w, lam, c: 0.5 * lam * w[0] ** 2 - w[1] ** 2 + w[1] ** 4 + c * lam * w[1],
    "saddle": lambda w, lam, c: 0.5 * lam * (w[0] ** 2 - c * w[1] ** 2),
    "Cauchy": lambda w, lam, c: jnp.sum(jnp.log1p((w - lam) ** 2)),
    "falling": lambda w, lam, c: jnp.sum(jnp.exp(-lam * w)) - c * jnp.sum(w),
    "product": lambda w, lam, c: (w[0] * w[1] - lam) ** 2 + c * jnp.sum(w**2),
    "root": lambda w, lam, c: jnp.sum(jnp.sqrt(c + (w - lam) ** 2)),
}  # fmt: skip

TURN = np.array([[0.6, -0.8], [0.8, 0.6]])
MAPS = {
    "tanh": lambda w, lam, c: jnp.tanh(c * TURN.astype(w.dtype) @ w + lam),
    "drift": lambda w, lam, c: w + c * lam,
    "exponential": lambda w, lam, c: lam * jnp.exp(c * w),
    "tail": lambda w, lam, c: w + c * jnp.exp(-lam * w),
    "relu": lambda w, lam, c: jax.nn.relu(c * TURN.astype(w.dtype) @ w + lam),
    "arctan": lambda w, lam, c: w - c * jnp.arctan(w - lam),
}


def any_loss(w, lam, data):
    which, c = data
    return jax.lax.switch(which, list(LOSSES.values()), w, lam, c)


def any_map(w, lam, data):
    which, c = data
    return jax.lax.switch(which, list(MAPS.values()), w, lam, c)


LOSS = bl.Problem(bl.minimization(any_loss), target)
MAP = bl.Problem(bl.fixed_point(any_map), target)


def of(problem, table):
    """Make faults of the functions of a table: ``make(name, lam, w0, c)``."""

    def make(name, lam, w0, c=1.0, t=(1.0, 2.0), near=None, **options):
        data = (np.int32(list(table).index(name)), c)
        near = near if isinstance(near, list | None) else [near]
        near = near and [np.broadcast_to(np.asarray(x, float), 2) for x in near]
        return Fault(problem, lam, np.array(w0, float), data, (np.array(t, float), 0.0), near=near, **options)

    return make


def losses():
    make, well = of(LOSS, LOSSES), 0.5**0.5
    return {
        "Rosenbrock": make("Rosenbrock", 1.0, [-1.2, 1.0], 100.0, t=(0.3, 0.2), near=1.0),
        "Rosenbrock, far start": make("Rosenbrock", 1.0, [-1e3, 1e3], 100.0, t=(0.3, 0.2), near=1.0, refusable=True),
        "exp, lam 1e-8": make("exponential", 1e-8, [0.0, 1.0], near=np.log(1e-8)),
        "exp, lam 1e8": make("exponential", 1e8, [0.0, 1.0], near=np.log(1e8)),
        "exp, flat start": make("exponential", 1.0, [-50.0, -20.0], near=0.0),
        "exp, steep start": make("exponential", 1.0, [50.0, 20.0], near=0.0),
        "separable logistic, penalty 1e-8": make("logistic", 1.0, [0.0, 0.0], 1e-8),
        "separable logistic, no penalty": make("logistic", 1.0, [0.0, 0.0], 0.0, exists=False),
        "barrier": make("barrier", 1.0, [3.0, 0.1], near=1.0),
        "barrier, solution 1e-6": make("barrier", 1e-6, [1.0, 1.0], near=1e-6),
        "barrier, start outside": make("barrier", 1.0, [-1.0, 1.0], near=1.0, refusable=True),
        "kink elsewhere": make("kink", 2.0, [0.5, 3.0], near=1.0),
        "solution at a kink": make("kink", 0.5, [0.5, 3.0], exists=False),
        "absolute value of w": make("kink", 0.0, [0.5, 3.0], 1.0, exists=False),
        "two wells, from the saddle": make("wells", 1.0, [0.0, 0.0], 0.0, near=[[0, well], [0, -well]], refusable=True),
        "two wells, near the saddle": make("wells", 1.0, [1.0, 1e-3], 0.0, near=[0, well], t=(1.0, 2.0)),
        "tilted wells, from the saddle": make("wells", 1.0, [0.0, 0.0], 0.1, near=[[0, 0.68], [0, -0.73]]),
        "saddle": make("saddle", 1.0, [0.0, 0.0], exists=False),
        "saddle, seen by no vector": make("saddle", 1.0, [1.0, 0.0], 1e-3, t=(1.0, 0.0), exists=False),
        "near a saddle, unbounded": make("saddle", 1.0, [1.0, 1e-8], exists=False),
        "one variable does not matter": make("saddle", 1.0, [1.0, 2.0], 0.0, exists=False),
        "concave tails": make("Cauchy", 1.0, [10.0, -100.0], near=1.0),
        "minimum at infinity": make("falling", 1.0, [1.0, 2.0], 0.0, exists=False),
        "minimum at infinity, far out": make("falling", 1.0, [300.0, 200.0], 0.0, exists=False),
        "unbounded below": make("falling", 1.0, [1.0, 2.0], 1.0, exists=False),
        "manifold of minima": make("product", 2.0, [1.0, 3.0], 0.0, exists=False),
        "manifold of minima, from its saddle": make("product", 2.0, [0.0, 0.0], 0.0, exists=False),
        "product, regularized": make("product", 2.0, [1.0, 3.0], 1e-2, near=1.41),
        "nearly a kink": make("root", 1.0, [0.0, 3.0], 1e-12, near=1.0, refusable=True),
    }  # fmt: skip


def maps():
    make, low, high = of(MAP, MAPS), 0.3574029, 2.1532924
    return {
        "tanh, norm 0.9": make("tanh", 0.1, [0.0, 0.0], 0.9),
        "tanh, norm 1.5": make("tanh", 0.1, [0.0, 0.0], 1.5),
        "tanh, norm 5": make("tanh", 0.1, [0.0, 0.0], 5.0),
        "w + 1": make("drift", 1.0, [0.0, 0.0], exists=False),
        "w + 1e-10 from 1e8": make("drift", 1.0, [1e8, 1e8], 1e-10, exists=False),
        "exp(w)": make("exponential", 1.0, [0.0, 0.0], exists=False),
        "exp(w) / 4": make("exponential", 0.25, [0.0, 0.0], near=low),
        "exp(w) / 4, unstable root": make(
            "exponential", 0.25, [2.5, 2.5], near=[[a, b] for a in (low, high) for b in (low, high)]
        ),
        "exp(w) / e, double root": make("exponential", np.exp(-1.0), [0.0, 0.0], exists=False),
        "exp(-3 w), oscillating": make("exponential", 1.0, [0.0, 1.0], -3.0, near=0.35),
        "w + exp(-w)": make("tail", 1.0, [0.0, 0.0], exists=False),
        "relu": make("relu", 1.0, [0.0, 0.0]),
        "relu, dead": make("relu", -1.0, [0.0, 0.0], near=0.0),
        "arctan, overshooting": make("arctan", 1.0, [10.0, -30.0], 3.0, near=1.0),
        "NaN": make("drift", 1.0, [0.3, -3.0], np.nan, exists=False),
    }
