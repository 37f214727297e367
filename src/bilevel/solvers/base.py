"""What lower-level solvers share: the protocols, the scale of their tolerances, the step of the gradient map."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bilevel import tree
from bilevel.linear.spectral import largest_eigenvalue
from bilevel.problems import Lower
from bilevel.status import ProblemError, SolveInfo, Status

Tree = Any

MAX_STEPS = 10_000  # of first-order solvers that were given a tolerance but no budget
MAX_NEWTON_STEPS = 300
RUNNING = Status.MAX_STEPS  # what a run has come to if its loop ends first
FALLEN = 0.9  # part of the first residual above which a later one is that of a drift
HELD = 0.1  # part of the last residual by which the one after the last Newton step may miss the model's
FIRST_FORCING = 0.3  # tolerance of the first linear solve of a Newton method, and the loosest


class Solver(Protocol):
    """Solves the lower level: ``solver(lower, lam, w0, data, rtol=..., steps=...) -> w, SolveInfo``.

    The tolerance compares the last step, or ``norm(Phi(w) - w)``, with ``max(norm(w), norm(w0))``: never with
    the first residual, so that a warm start at the solution stops at once. With ``steps`` and no ``rtol``
    exactly that many steps run.
    """

    def __call__(
        self, lower: Lower, lam: Tree, w0: Tree, data: Tree, *, rtol: Any = None, steps: Any = None
    ) -> tuple[Tree, SolveInfo]:
        """Solve."""
        ...


class Request(NamedTuple):
    """What one solve is asked for."""

    budget: bool  # exactly ``steps`` steps, whatever the residual
    rtol: Any
    steps: Any


def request(solver: Any, rtol: Any, steps: Any, *, default: Any, most: int) -> Request:
    """What a call asks for, where it says nothing the fields of the solver, else ``default`` and ``most`` steps."""
    rtol = solver.rtol if rtol is None else rtol
    steps = solver.steps if steps is None else steps
    budget = rtol is None and steps is not None
    return Request(budget, default if rtol is None else rtol, most if steps is None else steps)


def scale(w: Tree, w0: Tree) -> Float[Array, ""]:
    """``max(norm(w), norm(w0))``, what a relative tolerance is relative to; never exactly zero."""
    floor = jnp.sqrt(jnp.finfo(tree.dtype(w)).tiny)
    return jnp.maximum(jnp.maximum(tree.norm(w), tree.norm(w0)), floor)


def fallen(norm: Any, first: Any, step: Any) -> Bool[Array, ""]:
    """Whether a residual has fallen since the first step.

    Where ``w`` merely drifts away (``w + 1``, an unbounded loss) its steps become small relative to ``w``, without
    coming closer to anything.
    """
    return (step == 0) | (norm < FALLEN * first)


def default_rtol(w: Tree) -> float:
    """Relative tolerance of lower-level solvers where none is given: the square root of machine epsilon."""
    return tree.eps(w) ** 0.5


def map_step(lower: Lower, lam: Tree, w0: Tree, data: Tree) -> tuple[Any, int]:
    """The ``a`` of the map ``w - a F(w)`` of a problem, and the matvecs of estimating it.

    One for fixed points and roots. For a minimization the step it was given, else ``1 / L`` with the largest
    eigenvalue L of the Hessian at ``w0`` by Lanczos; an estimated step is a constant of differentiation.
    """
    if lower.kind != "minimization":
        return 1.0, 0
    if lower.step is not None:
        return lower.step, 0
    lam, w0 = jax.lax.stop_gradient((lam, w0))
    _, A = lower.linearize(w0, lam, data)
    largest, matvecs = largest_eigenvalue(A, w0)
    return 1 / jnp.abs(largest), matvecs + 1  # a negative step would climb to a maximum


def require_minimization(solver: str, lower: Lower, instead: str) -> None:
    """Refuse problems that are no minimizations."""
    if lower.kind != "minimization":
        raise ProblemError(f"{solver} needs a minimization, but the problem is a {lower.kind}: use {instead}.")


def forcing(
    norm_F: Any, last_norm: Any, model_norm: Any, step_norm: Any, wished_step: Any, xp: Any = jnp
) -> Float[Array, ""]:
    """Relative tolerance of the linear solve of a Newton step.

    ``| norm(F) - norm(model) | / norm(F_last)``, the disagreement of the last linear model with what came
    (Eisenstat and Walker 1996, choice 1; on an affine ``F`` it is zero), but no tighter than a tenth of what
    brings the next step, predicted by the fall of the residual, to the wished size.
    """
    disagreement = abs(norm_F - model_norm) / last_norm
    predicted_step = step_norm * norm_F / last_norm
    needed = 0.1 * wished_step / predicted_step
    eta = xp.maximum(disagreement, needed)
    return xp.where(xp.isfinite(eta), xp.minimum(eta, FIRST_FORCING), FIRST_FORCING)
