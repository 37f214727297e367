"""The table of lower-level problems for the solvers' laws, each with its residual a second time in NumPy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.problems import Lower
from bilevel.status import SolveInfo, Status

N, ROWS = 6, 20


class Case(NamedTuple):
    """A problem at one ``lam``, all numbers float64 NumPy arrays."""

    lower: Lower
    lam: Any
    w0: Any
    data: Any
    residual: Callable[[np.ndarray], np.ndarray]  # F on flat vectors, in NumPy

    def truth(self) -> tuple[np.ndarray, float]:
        """The solution as a flat vector, and ``norm(A^-1)`` there times ``norm(A)``, the larger of start and solution.

        The step that measures residuals is one over ``norm(A)`` at the start.
        """
        start = np.asarray(ravel_pytree(jax.tree.map(np.asarray, self.w0))[0])
        w = scipy.optimize.root(self.residual, np.ones(start.size), tol=1e-15).x
        for _ in range(3):
            w = w - np.linalg.solve(self.jacobian(w), self.residual(w))
        norms = [np.linalg.norm(self.jacobian(x), 2) for x in (start, w)]
        return w, float(max(norms) * np.linalg.norm(np.linalg.inv(self.jacobian(w)), 2))

    def jacobian(self, w: np.ndarray) -> np.ndarray:
        """``A`` by central differences, with an error of about ``h^2 = 1e-10``."""
        return np.stack([self.residual(w + e) - self.residual(w - e) for e in 1e-5 * np.eye(w.size)], axis=1) / 2e-5


class Run(NamedTuple):
    """What a solver returned, and the evaluations of the user's function and its products that really happened."""

    w: Any
    info: SolveInfo
    evaluations: int

    @property
    def status(self) -> Status:
        return Status(int(self.info.status))

    @property
    def flat(self) -> np.ndarray:
        return np.asarray(ravel_pytree(self.w)[0], np.float64)


_count = 0


def _tick(_) -> None:
    global _count
    _count += 1


def _seen(w: Any) -> None:
    jax.debug.callback(_tick, jax.tree.leaves(w)[0].ravel()[0])


@jax.custom_jvp
def watched(w: Any) -> Any:
    """``w``; every evaluation and every product with the Jacobian is counted."""
    _seen(w)
    return w


@watched.defjvp
def _(primals, tangents):
    _seen(tangents[0])
    return watched(primals[0]), tangents[0]


def ridge_loss(w, lam, data):
    _seen(w)
    return data["scale"] * (jnp.mean((data["X"] @ w - data["y"]) ** 2) + jnp.sum(jnp.exp(lam) * w**2)) / 2


def logistic_loss(w, lam, data):
    _seen(w)
    margins = jnp.sign(data["y"]) * (data["X"] @ w)
    return data["scale"] * (jnp.mean(jax.nn.softplus(-margins)) + jnp.sum(jnp.exp(lam) * w**2) / 2)


def leaves_loss(w, lam, data):
    """Ridge with an intercept and the weights in two leaves."""
    _seen(w)
    prediction = data["X"][:, :2] @ w["first"][:, 0] + data["X"][:, 2:] @ w["rest"][0] + w["intercept"]
    penalty = jnp.sum(jnp.exp(lam[:2]) * w["first"][:, 0] ** 2) + jnp.sum(jnp.exp(lam[2:]) * w["rest"][0] ** 2)
    return data["scale"] * (jnp.mean((prediction - data["y"]) ** 2) + penalty) / 2


def rosenbrock_loss(w, lam, data):
    _seen(w)
    return data["scale"] * jnp.sum((1 - w[0]) ** 2 + jnp.exp(lam[0]) * (w[1] - w[0] ** 2) ** 2)


def saddle_loss(w, lam, data):
    return data * (w[0] ** 2 - w[1] ** 2 + lam * w[1] ** 4)


def tanh_map(w, lam, data):
    return jnp.tanh(data["M"] @ watched(w) + lam + data["y"][:N])


def affine_map(w, lam, data):
    return data["M"] @ watched(w) + jnp.exp(lam) * data["y"][:N]


def leaves_map(w, lam, data):
    """The affine map on two leaves."""
    w = watched(w)
    new = data["M"] @ jnp.concatenate([w[0].ravel(), w[1]]) + lam
    return (new[:4].reshape(2, 2), new[4:])


def cubic_residual(w, lam, data):
    w = watched(w)
    return data["scale"] * (2.0 * w - data["M"] @ w + w**3 - lam - data["y"][:N])


def _sigmoid(t):
    return 1 / (1 + np.exp(-t))


def _data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    M = rng.normal(size=(N, N))
    X = rng.normal(size=(ROWS, N))
    y = X @ rng.normal(size=N) + rng.normal(size=ROWS)
    return {"X": X, "y": y, "M": 0.7 * M / np.linalg.norm(M, 2), "scale": np.float64(1.0)}


D = _data()
X, Y, M, LAM = D["X"], D["y"], D["M"], np.linspace(-1.0, 1.0, N)
X1 = np.column_stack([np.ones(ROWS), X])  # leaves come in the order first, intercept, rest
LEAVES = X1[:, [1, 2, 0, 3, 4, 5, 6]]
PENALTIES = np.exp(np.concatenate([LAM[:2], [-np.inf], LAM[2:]]))


def _rosenbrock(w):
    a = np.exp(2.0)
    return np.array([-2 * (1 - w[0]) - 4 * a * w[0] * (w[1] - w[0] ** 2), 2 * a * (w[1] - w[0] ** 2)])


CASES = {
    "ridge": Case(
        bl.minimization(ridge_loss), LAM, np.zeros(N), D, lambda w: X.T @ (X @ w - Y) / ROWS + np.exp(LAM) * w
    ),
    "logistic": Case(
        bl.minimization(logistic_loss), LAM - 2, np.zeros(N), D,
        lambda w: -X.T @ (np.sign(Y) * _sigmoid(-np.sign(Y) * (X @ w))) / ROWS + np.exp(LAM - 2) * w,
    ),
    "leaves": Case(
        bl.minimization(leaves_loss), LAM,
        {"first": np.zeros((2, 1)), "intercept": np.zeros(()), "rest": np.zeros((1, 4))}, D,
        lambda w: LEAVES.T @ (LEAVES @ w - Y) / ROWS + PENALTIES * w,
    ),
    "rosenbrock": Case(bl.minimization(rosenbrock_loss), np.array([2.0]), np.array([-1.0, 1.5]), D, _rosenbrock),
    "tanh map": Case(bl.fixed_point(tanh_map), LAM, np.zeros(N), D, lambda w: w - np.tanh(M @ w + LAM + Y[:N])),
    "affine map": Case(bl.fixed_point(affine_map), LAM, np.zeros(N), D, lambda w: w - M @ w - np.exp(LAM) * Y[:N]),
    "leaves map": Case(
        bl.fixed_point(leaves_map), LAM, (np.zeros((2, 2)), np.zeros(2)), D, lambda w: w - M @ w - LAM
    ),
    "cubic root": Case(bl.root(cubic_residual), LAM, np.zeros(N), D, lambda w: 2 * w - M @ w + w**3 - LAM - Y[:N]),
}  # fmt: skip
MINIMIZATIONS = ["ridge", "logistic", "leaves", "rosenbrock"]
MAPS = ["tanh map", "affine map", "leaves map"]
FIRST_ORDER = ["GradientDescent", "HeavyBall", "Nesterov", "Nesterov, mu", "Optax"]
PAIRS = [
    *(("NewtonCG", name) for name in MINIMIZATIONS),
    *(("LBFGS", name) for name in MINIMIZATIONS[1:]),
    *((solver, name) for solver in FIRST_ORDER for name in MINIMIZATIONS[1:3]),
    *(("Anderson", name) for name in ["logistic", *MAPS]),
    *(("Picard", name) for name in MAPS),
    *(("NewtonKrylov", name) for name in [*MAPS[1:], "cubic root"]),
]
SOLVERS = {
    "NewtonCG": bl.NewtonCG(),
    "LBFGS": bl.LBFGS(),
    "GradientDescent": bl.GradientDescent(),
    "HeavyBall": bl.HeavyBall(),
    "Nesterov": bl.Nesterov(),
    "Nesterov, mu": bl.Nesterov(mu=0.05),
    "Anderson": bl.Anderson(),
    "Optax": bl.Optax(optax.sgd(0.2, momentum=0.5)),
    "Picard": bl.Picard(),
    "NewtonKrylov": bl.NewtonKrylov(),
}
FIRST = {"NewtonCG": "logistic", "LBFGS": "logistic", "Picard": "tanh map", "Anderson": "tanh map",
         "NewtonKrylov": "cubic root", **dict.fromkeys(FIRST_ORDER, "logistic")}  # fmt: skip


@jax.jit
def _run(solver, lower, lam, w0, data, rtol):
    return solver(lower, lam, w0, data, rtol=rtol)


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def run(solver: Any, case: Case, dtype: Any, *, rtol: Any = None) -> Run:
    """``solver`` on ``case``, compiled once for each pair, with the calls of the user's function counted."""
    jax.effects_barrier()
    before = _count
    w, info = jax.block_until_ready(_run(solver, case.lower, *cast((case.lam, case.w0, case.data, rtol), dtype)))
    jax.effects_barrier()
    return Run(w, info, _count - before)


def at_solution(case: Case) -> Case:
    """The same problem, started at its solution."""
    return case._replace(w0=ravel_pytree(jax.tree.map(np.asarray, case.w0))[1](case.truth()[0]))
