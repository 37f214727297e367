"""The search: a grid of single penalties, then a path of priors from the best of them to one penalty per feature.

All members (the one whose penalties are used, and those that judge the priors) run through it together, as one
bilevel problem.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.hypergradient import hypergradient
from bilevel.linear.cg import CG
from bilevel.methods.aid import AID
from bilevel.solvers.newton_cg import NewtonCG
from bilevel.status import SolveInfo, Status
from bilevel.tuning.choice import Choice, choose, hopeless
from bilevel.tuning.families import Family
from bilevel.tuning.fits import Fits, Goal, Hyperparameters, Weights, coefficients, plain, scores, zero_weights
from bilevel.tuning.quasi_newton import QuasiNewton
from bilevel.tuning.transform import recenter

GRID = np.linspace(2.0, -6.0, 25)  # log10 of the single penalty per training row, strong to weak
SPREADS = tuple(0.25 * 2 ** (k / 2) for k in range(9))  # prior standard deviations of the log penalties, 0.25 to 4
STEPS = 5  # upper-level steps at every strength
ENOUGH = 1e-4  # of the validation loss: a predicted decrease that is not worth another step
# Of the solves on the way; the last hypergradient is computed tightly, with its error.
LOWER_RTOL = 3e-3
ADJOINT_RTOL = 1e-2

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Point:
    """Hyperparameters of all members, and what they gave.

    Attributes
    ----------
    shared, deviation
        Log penalties, shapes (members,) and (members, d).
    validation
        Validation loss of every member.
    selection
        Loss of every training row under the member that was tuned without it, shape (n,).
    """

    shared: np.ndarray
    deviation: np.ndarray
    validation: np.ndarray
    selection: np.ndarray


@dataclass
class Search:
    """What the search found and what it cost.

    Attributes
    ----------
    grid_validation, grid_selection
        Single penalties, a row for each of ``GRID``: validation losses (25, members), selection losses (25, n).
    path
        Best single penalty first, then a point for every spread that was tried.
    spreads
        Prior standard deviations of the log penalties at the points of the path; 0 first.
    matvecs, hypergradients, failures
        Products with the data, hypergradients, and solves that missed their tolerance.
    choice
        Which point of the path, and why.
    """

    grid_validation: np.ndarray
    grid_selection: np.ndarray
    path: list[Point] = field(default_factory=list)
    spreads: list[float] = field(default_factory=lambda: [0.0])
    matvecs: int = 0
    hypergradients: int = 0
    failures: int = 0
    choice: Choice | None = None


def search(family: Family, fits: Fits, progress: Progress) -> Search:
    """Run the grid and the path.

    Parameters
    ----------
    family
        What is fitted.
    fits
        From :func:`~bilevel.tuning.fits.columns`.
    progress
        Called as ``progress(stage, done, total)``.
    """
    run = _Run(family, fits)
    run.grid(progress)
    # A prior counts like a row's negative log-likelihood, which for ridge is the loss over twice the noise.
    unit = float(np.mean(run.best.validation)) * 2 if family.name == "ridge" else 1.0
    for number, spread in enumerate(SPREADS):
        progress("priors", number, len(SPREADS))
        run.prior(spread, unit / (len(fits.X) * spread**2))
        if hopeless([point.selection for point in run.found.path]):
            break
    progress("priors", len(SPREADS), len(SPREADS))
    run.found.choice = choose([point.selection for point in run.found.path])
    return run.found


class _Run:
    """Warm starts, the best point so far of every member with the gradient of V there, and the curvature of V."""

    best: Point
    gradient: np.ndarray
    curvature: QuasiNewton

    def __init__(self, family: Family, fits: Fits):
        self.family, self.fits, self.dtype = family, fits, fits.X.dtype
        self.w = self.v = zero_weights(fits)
        self.members = int(np.max(np.asarray(fits.member))) + 1
        self.owner = _owner(fits)
        self.log_grid = GRID * np.log(10.0) + np.log(len(fits.X))
        self.found = Search(np.empty((len(GRID), self.members)), np.empty((len(GRID), len(fits.X))))

    def grid(self, progress: Progress) -> None:
        """Every single penalty, each started from the last; then every member at its best one."""
        solutions = []
        flat = np.zeros((self.members, self.fits.X.shape[1]))
        for number, value in enumerate(self.log_grid):
            progress("grid", number, len(GRID))
            lam = _hyperparameters(np.full(self.members, value), flat, self.dtype)
            self.w, self.v, self.fits = recenter(self.family, lam, self.w, self.v, self.fits)
            self.w, info = solve(self.family, lam, self.w, self.fits, LOWER_RTOL)
            self._count(info)
            self.found.grid_validation[number], self.found.grid_selection[number] = self._judge()
            solutions.append((np.asarray(coefficients(self.w, self.fits)), np.asarray(self.w["intercept"])))
        progress("grid", len(GRID), len(GRID))
        self._start_at_best(solutions, flat)

    def _start_at_best(self, solutions: list, flat: np.ndarray) -> None:
        values = self.found.grid_validation
        best = np.argmin(np.where(np.isfinite(values), values, np.inf), axis=0)
        members, of_fit = np.arange(self.members), best[np.asarray(self.fits.member)]
        selection = self.found.grid_selection[best[self.owner], np.arange(len(self.owner))]
        self.best = Point(self.log_grid[best], flat, values[best, members], selection)
        self.found.path.append(self.best)
        C = np.stack([solutions[k][0][:, f] for f, k in enumerate(of_fit)])
        b = np.stack([solutions[k][1][f] for f, k in enumerate(of_fit)])
        self.w, self.v = Weights(coef=jnp.asarray(C), intercept=jnp.asarray(b)), zero_weights(self.fits)
        self.fits = plain(self.fits)
        self.curvature = QuasiNewton(self._first_curvature(best))
        _, self.gradient = self._evaluate(self.best.shared, self.best.deviation)

    def _first_curvature(self, best: np.ndarray) -> np.ndarray:
        """Second difference of the validation loss along the grid for the shared penalty, less for the others."""
        values, members = self.found.grid_validation, np.arange(self.members)
        middle = np.clip(best, 1, len(GRID) - 2)
        step = self.log_grid[0] - self.log_grid[1]
        second = (values[middle - 1, members] - 2 * values[middle, members] + values[middle + 1, members]) / step**2
        shared = np.maximum(np.nan_to_num(second), 1e-3 * values[best, members])[:, None]
        return np.concatenate([shared, np.repeat(shared / 3, self.fits.X.shape[1], axis=1)], axis=1)

    def prior(self, spread: float, strength: float) -> None:
        """A few quasi-Newton steps under one prior, from the best point under the last one.

        A step that makes a member's objective worse is not taken there, only learned from, and the next one
        is shorter.
        """
        known = np.concatenate([np.zeros((self.members, 1)), np.full(self.best.deviation.shape, strength)], axis=1)
        length = np.ones((self.members, 1))
        for _ in range(STEPS):
            x = np.concatenate([self.best.shared[:, None], self.best.deviation], axis=1)
            total = self.gradient + known * x
            step = length * self.curvature.step(total, known)
            step[:, 0] = np.clip(x[:, 0] + step[:, 0], self.log_grid[-1], self.log_grid[0]) - x[:, 0]
            if np.all(-np.sum(total * step, axis=1) <= 2 * ENOUGH * self.best.validation):
                break
            trial, gradient = self._evaluate(x[:, 0] + step[:, 0], x[:, 1:] + step[:, 1:])
            self.curvature.learn(step, gradient - self.gradient)
            slack = 1e-5 * self.best.validation  # the losses are not known better than this
            better = _objective(trial, strength) <= _objective(self.best, strength) + slack
            length = np.where(better[:, None], np.minimum(1.0, 2 * length), 0.3 * length)
            self._accept(trial, gradient, better)
        self.found.spreads.append(spread)
        self.found.path.append(self.best)

    def _accept(self, trial: Point, gradient: np.ndarray, better: np.ndarray) -> None:
        """The trial becomes the best point of the members where it is better."""
        of_row, best = better[self.owner], self.best
        self.best = Point(
            np.where(better, trial.shared, best.shared),
            np.where(better[:, None], trial.deviation, best.deviation),
            np.where(better, trial.validation, best.validation),
            np.where(of_row, trial.selection, best.selection),
        )
        self.gradient = np.where(better[:, None], gradient, self.gradient)

    def _evaluate(self, shared: np.ndarray, deviation: np.ndarray) -> tuple[Point, np.ndarray]:
        """Losses, and the gradient of V, at these hyperparameters."""
        lam = _hyperparameters(shared, deviation, self.dtype)
        self.w, self.v, self.fits = recenter(self.family, lam, self.w, self.v, self.fits)
        goal = Goal(self.fits, jnp.zeros(self.members, self.dtype))
        h = hypergradient(
            self.family.problem, lam, self.w, v0=self.v, lower_data=self.fits, upper_data=goal, method=METHOD,
            error=False, on_failure="keep",
        )  # fmt: skip
        self.w, self.v = h.w, h.v
        self._count(h.lower)
        self._count(h.adjoint)
        self.found.hypergradients += 1
        gradient = np.concatenate([np.asarray(h.grad["shared"])[:, None], np.asarray(h.grad["deviation"])], axis=1)
        return Point(shared, deviation, *self._judge()), gradient.astype(float)

    def _judge(self) -> tuple[np.ndarray, np.ndarray]:
        """Validation loss of every member and selection loss of every row at the present weights."""
        validation, selection = _judge(self.family, self.members, self.w, self.fits)
        return np.asarray(validation, float), np.asarray(selection, float)

    def _count(self, info: SolveInfo) -> None:
        self.found.matvecs += int(info.matvecs)
        self.found.failures += Status(int(info.status)).failed


METHOD = AID(solver=NewtonCG(rtol=LOWER_RTOL), linear_solver=CG(rtol=ADJOINT_RTOL))


@partial(jax.jit, static_argnums=0)
def solve(family: Family, lam: Hyperparameters, w: Weights, fits: Fits, rtol: Any):
    """The lower level alone: all fits at these hyperparameters."""
    return NewtonCG()(family.problem.lower, lam, w, fits, rtol=rtol)


@partial(jax.jit, static_argnums=(0, 1))
def _judge(family: Family, members: int, w: Weights, fits: Fits) -> tuple[Float[Array, " members"], Float[Array, " n"]]:
    rows = family.unit * family.row_losses(scores(coefficients(w, fits), w, fits.X), fits.y)
    per_fit = fits.share * jnp.sum(fits.held_out * rows, axis=0)
    selecting = jnp.where(fits.share[None] == 0, fits.held_out, 0.0)
    return jax.ops.segment_sum(per_fit, fits.member, members), jnp.sum(selecting * rows, axis=1)


def _owner(fits: Fits) -> np.ndarray:
    """The member that selects with each row."""
    selecting = np.asarray(fits.held_out) * (np.asarray(fits.share) == 0)
    return np.asarray(fits.member)[np.argmax(selecting, axis=1)]


def _objective(point: Point, strength: float) -> np.ndarray:
    return point.validation + 0.5 * strength * np.sum(np.square(point.deviation), axis=1)


def _hyperparameters(shared: np.ndarray, deviation: np.ndarray, dtype: Any) -> Hyperparameters:
    return Hyperparameters(shared=jnp.asarray(shared, dtype), deviation=jnp.asarray(deviation, dtype))
