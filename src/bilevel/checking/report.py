"""The verdicts of a check, one for each part of a hypergradient, and their words."""

import math
from dataclasses import dataclass, fields
from typing import Literal

Verdict = Literal["right", "wrong", "undecided"]

RULE = "look for a custom derivative rule or a stop_gradient"
ADVICE = {
    "finite differences": "The true derivative of the objective differs from what the derivatives of its parts give.",
    "solution": "The lower level is not solved well enough: allow its solver more steps or a smaller tolerance.",
    "adjoint": "The adjoint is not solved well enough: allow the linear solver, or ITD, more steps.",
    "symmetry": "d_w F is not symmetric: leave symmetric=True out, and solve with GMRES instead of CG.",
    "lower-level gradient": f"The loss and its gradient by w disagree: {RULE} on the way from w.",
    "Jacobian": f"F and its derivative by w disagree: {RULE} on the way from w to F.",
    "cross derivative": f"F and its derivative by lam disagree: {RULE} on the way from lam to F.",
    "upper gradient": f"The upper objective and its gradient by w disagree: {RULE} in it.",
    "direct term": f"The upper objective and its gradient by lam disagree: {RULE} in it.",
}
DECIDED = 0.1  # a comparison that cannot see relative errors of this size decides nothing


@dataclass(frozen=True)
class Part:
    """One comparison.

    Attributes
    ----------
    name, what
        The part, and what was compared with what.
    error
        Relative difference; infinite where there is nothing to compare, NaN where it could not be measured.
    limit
        What the tolerance, the dtype and the measured noise allow.
    remark
        A sentence about it, or nothing.
    """

    name: str
    what: str
    error: float
    limit: float
    remark: str = ""

    @property
    def verdict(self) -> Verdict:
        """``"right"``, ``"wrong"``, or ``"undecided"`` where noise hides errors of ten percent."""
        if self.error > self.limit:
            return "wrong"
        return "right" if self.error <= self.limit <= DECIDED else "undecided"

    def __str__(self) -> str:
        words = f"{self.name} ({self.what}): {self.verdict}, relative error {self.error:.1e}, limit {self.limit:.1e}."
        return f"{words} {self.remark}".rstrip()


@dataclass(frozen=True)
class Check:
    """What :func:`~bilevel.check.check_hypergradient` found.

    Attributes
    ----------
    method, tol
        What was checked, and the relative accuracy asked of it.
    truth
        What the hypergradient was compared with: ``"Exact"`` or ``"finite differences"``.
    hypergradient
        The gradient returned against a reference: ``Exact``, or for large problems tight iterative solves.
    differences
        That reference against central differences of the re-solved upper objective along random directions.
        It alone uses no derivative of the user's functions by ``lam`` and no adjoint.
    solution, adjoint
        What the ``w`` that was found, and what came of the adjoint after it, change the hypergradient by.
    symmetry
        ``<A x, y>`` against ``<x, A y>``, where the lower level is, or is promised to be, symmetric; else None.
    lower_gradient
        ``d_w loss`` against differences of the loss, for a minimization; else None.
    jacobian, cross_derivative, upper_gradient, direct_term
        ``A v = d_w F v``, ``d_lam F``, ``d_w U`` and ``d_lam U`` against differences.
    order, noise
        Observed order of the central differences of the re-solved objective, two where it is smooth and NaN where
        noise hides it; and the uncertainty of that objective.
    distance
        ``norm(w - w_true) / norm(w_true)``; NaN where no solution is known.
    residual_norm, reference_residual_norm
        ``norm(F)`` at the ``w`` found and at the reference's.
    adjoint_residual_norm
        ``norm(A^T v - d_w U)`` at the ``w`` and ``v`` found.
    """

    method: str
    tol: float
    truth: str
    hypergradient: Part
    differences: Part
    solution: Part
    adjoint: Part
    symmetry: Part | None
    lower_gradient: Part | None
    jacobian: Part
    cross_derivative: Part
    upper_gradient: Part
    direct_term: Part
    order: float
    noise: float
    distance: float
    residual_norm: float
    reference_residual_norm: float
    adjoint_residual_norm: float

    @property
    def parts(self) -> list[Part]:
        """All comparisons that were made."""
        values = [getattr(self, item.name) for item in fields(self)]
        return [value for value in values if isinstance(value, Part)]

    @property
    def wrong(self) -> list[Part]:
        """The parts that are wrong."""
        return [part for part in self.parts if part.verdict == "wrong"]

    @property
    def undecided(self) -> list[Part]:
        """The parts that could not be told."""
        return [part for part in self.parts if part.verdict == "undecided"]

    @property
    def judge(self) -> Part:
        """The comparison with the truth."""
        return self.hypergradient if self.truth == "Exact" else self.differences

    @property
    def ok(self) -> bool:
        """Whether the hypergradient agrees with the truth and no part is wrong."""
        return not self.wrong and self.judge.verdict == self.hypergradient.verdict == "right"

    def explain(self) -> str:
        """The report in sentences."""
        lines = [self.summary, *self.advice, *map(str, self.parts), self.differences_in_words]
        return "\n  ".join(lines)

    @property
    def advice(self) -> list[str]:
        """A sentence for every part that is wrong, and what was remarked on it."""
        sentences = [sentence for part in self.wrong for sentence in (ADVICE.get(part.name, ""), part.remark)]
        return [sentence for sentence in dict.fromkeys(sentences) if sentence]

    @property
    def summary(self) -> str:
        """The conclusion in one sentence."""
        whose = f"The hypergradient by {self.method}"
        if self.ok:
            return f"{whose} is right within {self.tol:.0e}: it agrees with {self.truth}."
        if not self.wrong:
            return f"{whose} could not be checked. Undecided: {', '.join(part.name for part in self.undecided)}."
        return f"{whose} does not pass the check. Wrong: {', '.join(part.name for part in self.wrong)}."

    @property
    def differences_in_words(self) -> str:
        """How far the finite differences can be trusted, in one sentence."""
        if math.isnan(self.order):
            order = "no order of convergence, as it is below their noise"
        else:
            order = f"order {self.order:.2f} of two"
        return (
            f"Finite differences of the re-solved objective show {order}; that objective is known to {self.noise:.0e}."
        )
