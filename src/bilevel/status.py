"""Outcomes of solves, as codes inside compiled programs and as sentences outside, and the library's errors."""

import enum
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree


class Status(enum.IntEnum):
    """What a solve ended with. Codes from ``MAX_STEPS`` on are failures; :attr:`sentence` says it in words."""

    DAMPED = -1
    OK = 0
    UNRESOLVED = 1
    MAX_STEPS = 2
    STAGNATED = 3
    DIVERGED = 4
    NONFINITE = 5
    NEGATIVE_CURVATURE = 6
    SADDLE = 7
    SINGULAR = 8
    NO_DESCENT = 9
    TOLERANCE_UNMET = 10

    @property
    def sentence(self) -> str:
        """The outcome as one sentence."""
        return _SENTENCES[self]

    @property
    def failed(self) -> bool:
        """Whether the outcome is a failure."""
        return self >= Status.MAX_STEPS


_SENTENCES = {
    Status.OK: "The solve ended as asked.",
    Status.DAMPED: (
        "The solve ended as asked, with a damped adjoint: hypergradient and error are those of the damped problem, "
        "not of the one that was given."
    ),
    Status.UNRESOLVED: (
        "The result stands, but its relative error is above 10 % or was not resolved within the budget: "
        "take the error estimate as a warning, not as a number."
    ),
    Status.MAX_STEPS: "The tolerance was not reached within the allowed steps; allow more steps or ask for less.",
    Status.STAGNATED: (
        "The residual stopped falling above the tolerance: rounding in this dtype allows no more; "
        "use float64 or a larger tolerance."
    ),
    Status.DIVERGED: (
        "The iterates of the lower-level problem diverge: the map is no contraction there, the step is too "
        "large, or no solution exists."
    ),
    Status.NONFINITE: "NaN or infinity appeared: check the data, the starting point and the functions.",
    Status.NEGATIVE_CURVATURE: (
        "A conjugate-gradient solve met negative curvature: the matrix is not positive definite."
    ),
    Status.SADDLE: (
        "The lower-level Hessian has negative curvature at the point found: it is a saddle, not a minimum, "
        "and the hypergradient of the minimization does not exist there; start elsewhere."
    ),
    Status.SINGULAR: (
        "The lower-level problem is singular: its solution or adjoint is not unique, so the hypergradient "
        "depends on the start; add a regularizer or remove the redundancy."
    ),
    Status.NO_DESCENT: (
        "The line search found no descent although the gradient is not small: the loss and its gradient "
        "disagree or the dtype allows no more."
    ),
    Status.TOLERANCE_UNMET: (
        "The hypergradient was computed, but its estimated error is above the tolerance and further work "
        "did not lower it."
    ),
}


@tree.record
@dataclass(frozen=True)
class SolveInfo:
    """What one solve did.

    Attributes
    ----------
    steps
        Iterations that changed the solution.
    matvecs
        Evaluations of the map, of the loss or of its gradient, plus products with ``A`` or its transpose.
        These are what a solve costs: each reads the data about once forth and once back.
    residual_norm
        2-norm of the residual of the value returned: ``F(w, lam)`` for the lower level, ``b - A x`` for
        linear systems.
    status
        A :class:`Status` code.
    """

    steps: Int[Array, ""]
    matvecs: Int[Array, ""]
    residual_norm: Float[Array, ""]
    status: Int[Array, ""]

    def plus(self, matvecs: Any) -> "SolveInfo":
        """The same outcome with further matvecs counted."""
        return replace(self, matvecs=self.matvecs + matvecs)

    def then(self, later: "SolveInfo") -> "SolveInfo":
        """Join this solve and a later one of the same unknown: costs add up, the residual is the later one's."""
        status = first_failure(self.status, later.status)
        return SolveInfo(self.steps + later.steps, self.matvecs + later.matvecs, later.residual_norm, status)


def code(status: Status) -> Int[Array, ""]:
    """Status as a scalar array for use inside compiled programs."""
    return jnp.asarray(int(status), jnp.int32)


def is_failure(status: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether a status code is a failure, inside compiled programs."""
    return status >= Status.MAX_STEPS


def first_failure(*statuses: Int[Array, ""]) -> Int[Array, ""]:
    """The first failure in causal order, else the gravest of what remains: ``UNRESOLVED``, ``DAMPED``, ``OK``."""
    result = statuses[-1]
    for status in reversed(statuses[:-1]):
        result = jnp.where(is_failure(status), status, jnp.where(is_failure(result), result, _graver(status, result)))
    return result


def _graver(a: Int[Array, ""], b: Int[Array, ""]) -> Int[Array, ""]:
    """Of two outcomes that are no failures. ``DAMPED`` has its place between ``OK = 0`` and ``UNRESOLVED = 1``."""
    larger = jnp.maximum(a, b)
    return jnp.where(larger == Status.OK, jnp.minimum(a, b), larger)


class BilevelError(Exception):
    """Base of every error this library raises for its users."""


class ProblemError(BilevelError, ValueError):
    """A problem or argument is not of the form that was asked for."""


class ConvergenceError(BilevelError, RuntimeError):
    """A solve failed. ``result`` holds everything that was computed, ``status`` the reason."""

    def __init__(self, message: str, result: Any):
        super().__init__(message)
        self.result = result
        self.status = Status(int(result.status))


def raise_if_failed(result: Any, what: str) -> None:
    """Raise :class:`ConvergenceError` if ``result.status``, a concrete code, is a failure."""
    status = Status(int(result.status))
    if status.failed:
        raise ConvergenceError(f"{what}: {status.sentence} [{status.name}]", result)
