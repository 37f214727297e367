"""The hypergradient that the others are judged by, where it can be had."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy.linalg import norm  # safe from overflow, for iterates that diverge

from bilevel import tree
from bilevel.automatic.method import Automatic
from bilevel.checking.reference import EXACT_SIZE
from bilevel.comparison.attempt import attempt
from bilevel.comparison.measure import run
from bilevel.methods.exact import Exact
from bilevel.models.catalog import Case
from bilevel.status import Status

Tree = Any


@dataclass(frozen=True)
class Truth:
    """A reference hypergradient.

    Attributes
    ----------
    how
        ``"Exact"``, or the tight automatic run in words.
    grad
        The hypergradient; None where it could not be computed.
    relative_error
        Its own estimated relative error: errors of others below it are not resolved. NaN without ``grad``.
    note
        Why there is none; empty where there is one.
    """

    how: str
    grad: Tree | None = None
    relative_error: float = math.nan
    note: str = ""

    def relative_error_of(self, grad: Tree) -> float:
        """``norm(grad - truth) / norm(truth)``; NaN where it is not known."""
        vector = _vector(grad)
        if self.grad is None or not np.isfinite(vector).all():
            return math.nan
        truth = _vector(self.grad)
        distance, size = float(norm(vector - truth)), float(norm(truth))
        return 0.0 if distance == 0 else distance / size if size > 0 else math.nan


def find_truth(case: Case) -> Truth:
    """``Exact()`` up to :data:`EXACT_SIZE` unknowns, above them the automatic method close to rounding."""
    if tree.size(case.w0) <= EXACT_SIZE:
        how, method = "Exact", Exact()
    else:
        tol = tree.eps(case.w0) ** (2 / 3)
        how, method = f"auto with tol {tol:.0e}", Automatic(tol)
    h = attempt(lambda: run(method, case))
    if isinstance(h, str):
        return Truth(how, note=h)
    status = Status(int(h.status))
    if status.failed:
        return Truth(how, note=status.sentence)
    return Truth(how, h.grad, float(h.relative_error))


def _vector(grad: Tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(grad)])
