"""The report of a diagnosis, and its words."""

import math
from dataclasses import dataclass
from typing import Any

from bilevel.citations import bibtex
from bilevel.diagnosis.facts import Facts
from bilevel.diagnosis.predict import Alternative
from bilevel.problems import Kind


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Attributes
    ----------
    method
        To be passed as ``method=``; None for the automatic one.
    name
        In words.
    matvecs
        What it took here, both levels and error estimate together.
    memory
        Bytes beside the arguments, predicted.
    relative_error
        That it estimates of its hypergradient.
    trouble
        Why it failed, in a sentence; empty where it did not.
    papers
        Keys of :mod:`bilevel.citations`.
    """

    method: Any
    name: str
    matvecs: int
    memory: int
    relative_error: float
    trouble: str
    papers: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`~bilevel.diagnose.diagnose` found.

    Attributes
    ----------
    kind, promised_symmetric, hyperparameters, dtype, tol
        The problem, and the accuracy that counts are predicted for.
    reaches
        For every leaf of ``lam``, by its path, whether it enters ``F``.
    facts
        What was measured of ``A = d_w F``.
    recommendation
        None where no hypergradient exists, as ``lam`` does not reach ``F``.
    alternatives
        The methods of the literature, with what they would take.
    """

    kind: Kind
    promised_symmetric: bool
    hyperparameters: int
    dtype: str
    tol: float
    reaches: dict[str, bool]
    facts: Facts
    recommendation: Recommendation | None
    alternatives: list[Alternative]

    @property
    def citations(self) -> str:
        """The papers behind the recommendation, as BibTeX."""
        return "" if self.recommendation is None else bibtex(self.recommendation.papers)

    def explain(self) -> str:
        """The report in sentences."""
        return "\n".join([*self.findings, self.advice, *map(_in_words, self.alternatives)])

    @property
    def findings(self) -> list[str]:
        """What was measured, a sentence each."""
        f = self.facts
        kind = self.kind.replace("_", " ")
        lower = f"The lower level is a {kind} in {f.n} unknowns; lam has {self.hyperparameters} entries."
        if not f.finite:
            broken = "F or its derivative is not finite at the point reached: check the data, lam and the start."
            return [lower, self._reach, broken]
        return [lower, self._reach, self._symmetry, self._definiteness, self._contraction, self._condition]

    @property
    def advice(self) -> str:
        """The recommendation in one or two sentences."""
        r = self.recommendation
        if r is None:
            return "No method is recommended: there is no hypergradient to compute."
        if r.trouble:
            return f"No method is recommended, as {r.name} failed: {r.trouble}"
        return f"Recommended is {r.name}: {r.matvecs} matvecs to an estimated relative error of {r.relative_error:.0e}."

    @property
    def _reach(self) -> str:
        missing = [f"lam{path}" for path, reached in self.reaches.items() if not reached]
        if not missing:
            return "All of lam reaches F."
        if len(missing) == len(self.reaches):
            return "lam does not reach F: the solution does not depend on it."
        return f"Of lam, {', '.join(missing)} does not reach F; it acts through the upper objective alone."

    @property
    def _symmetry(self) -> str:
        f = self.facts
        if f.symmetric:
            note = "" if self.promised_symmetric else ", which symmetric=True may promise, so that CG can be used"
            return f"A = d_w F is symmetric to rounding{note}."
        if self.promised_symmetric:
            return f"A = d_w F is promised to be symmetric but is not: it is off by {f.asymmetry:.0e}."
        return f"A = d_w F is not symmetric (by {f.asymmetry:.0e}): no CG."

    @property
    def _definiteness(self) -> str:
        f = self.facts
        if f.singular:
            return (
                f"A is singular to rounding (smallest singular value {f.smallest:.0e}): solution or adjoint is not "
                "unique; add a regularizer."
            )
        if f.indefinite and self.kind == "minimization":
            return f"The Hessian has the eigenvalue {f.least:.1e}: the point is a saddle, not a minimum."
        if f.indefinite:
            return f"A is indefinite (least eigenvalue {f.least:.1e}): no CG."
        if f.symmetric:
            return "A is positive definite, and the solution locally unique."
        return "A is nonsingular, and the solution locally unique."

    @property
    def _contraction(self) -> str:
        f = self.facts
        what = "gradient descent with step" if self.kind == "minimization" else "the map w - step F with step"
        if f.symmetric:
            return f"{what[0].upper()}{what[1:]} {f.step:.3g} has the contraction factor {f.radius:.6g}."
        grows = "" if f.norm < 1 or not f.contracts else ", which may grow before it shrinks"
        verdict = "converges" if f.contracts else "does not converge"
        return f"The map {verdict}: its Jacobian has spectral radius {f.radius:.4g} and norm {f.norm:.4g}{grows}."

    @property
    def _condition(self) -> str:
        f = self.facts
        if math.isnan(f.condition):
            return f"The condition of A is not known ({f.matvecs} matvecs)."
        bound = "" if f.settled else "at least "
        return (
            f"cond(A) is {bound}{f.condition:.2g} ({f.matvecs} matvecs); in {self.dtype} no hypergradient is "
            f"more accurate than about eps cond(A) = {f.floor:.0e}."
        )


def _in_words(a: Alternative) -> str:
    if a.reason:
        return f"  {a.name}: not for this problem, as {a.reason}."
    counts = f"T = {a.steps}, k = {a.products}, " if a.steps else ""
    return f"  {a.name}: {counts}{a.matvecs} matvecs, {a.memory / 1e6:.2g} MB."
