"""Proved bounds of the error of a computed hypergradient, by the best point that proves one.

The factors ``1 / mu`` make the bound of :mod:`bilevel.certificates.bound` too large by up to the condition number
and more. But any other point ``(w', v')`` proves a bound, too:

    |grad - true| <= |grad - d_lam l(w', v')| + bound at (w', v')

and at a point corrected by Newton steps (:mod:`bilevel.lagrangian`) the second term is as small as its linear
solves are tight, while the first is the estimated error. So the bound is within a small factor of the error
where the solves can be made that tight.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.certificates.bound import EVALUATION, bound_from, evaluate, rounding_unit, sizes_of
from bilevel.certificates.constants import Constants, constants_of
from bilevel.certificates.estimate import FEWEST_STEPS, LOOSE, loose_solve
from bilevel.lagrangian import Instance, correct
from bilevel.linear.factorized import Factorized, factorize
from bilevel.loops import bounded_while

Tree = Any

DENSE_SIZE = 2000  # unknowns up to which the least eigenvalue of A(w) is computed
SMALL = 300  # unknowns up to which A is factorized where a bound is to be sharpened
ROUNDS = 3  # Newton steps that sharpen a bound
SHARP = 0.5  # part of the distance below which the bound at a reference point need not be lowered


class Certificate(NamedTuple):
    """A bound of the 2-norm of the error of a hypergradient.

    ``bound`` is NaN where constants are missing, or where the residuals are too large for a bound; ``proved`` says
    whether it is finite and made of given constants only. ``matvecs`` is what it cost.
    """

    bound: Float[Array, ""]
    proved: Bool[Array, ""]
    matvecs: Int[Array, ""]


class Reference(NamedTuple):
    """A point ``(w', v')`` that proves a bound: its distance from the hypergradient judged, and its own bound."""

    w: Tree
    v: Tree
    distance: Float[Array, ""]
    bound: Float[Array, ""]

    @property
    def total(self) -> Float[Array, ""]:
        """The bound proved; infinite where there is none."""
        total = self.distance + self.bound
        return jnp.where(total >= 0, total, jnp.inf)


def used(c: Constants) -> tuple[str, ...]:
    """Names of the constants that a bound is made of."""
    beside = [name for name in ("mu", "B0", "self_concordance") if c.known(name)]
    if c.known("mu", "self_concordance", "mu1_relative"):
        beside.append("mu1_relative")
    return ("L", "nu1", "nu2", "mu1", "mu2", "mu2_growth", *beside)


def certify(at: Instance, w: Tree, v: Tree, grad: Tree, spent: Int[Array, ""]) -> Certificate | None:
    """Bound of the error of ``grad``, proved at a reference point; None for a problem without constants.

    ``(w, v)`` is any such point: where an error estimate has found a correction, the corrected one. Newton steps
    follow until the part of the bound that they can lower is below half of the rest, at most three, and within
    about as many matvecs as were ``spent`` before, and n for a factorization (n up to 300).

    Notes
    -----
    Cost, besides these steps: three matvecs for every point looked at; the 2 n of dense ``A(w)`` and ``d2_ww U(w)``
    in two blocks where ``self_concordance`` is given without ``mu`` or ``mu1_relative`` (n up to 2000; above it is
    not used); ``min(n, dim(lam))`` in blocks for the Frobenius norm of ``B(w)`` where ``B0`` is not given.
    """
    if at.problem.constants is None:
        return None
    c = sufficient_constants(at, w)
    if c is None:
        return Certificate(jnp.asarray(jnp.nan, tree.dtype(grad)), jnp.asarray(False), jnp.asarray(0))
    best, matvecs = _sharpened(at, c, w, v, grad, spent)
    bound = jnp.where(jnp.isfinite(best.total), best.total, jnp.nan).astype(tree.dtype(grad))
    return Certificate(bound, jnp.isfinite(bound) & c.given(*used(c)), matvecs)


def sufficient_constants(at: Instance, w: Tree) -> Constants | None:
    """Constants that a bound at ``w`` is made of; None where one of those that it needs is missing."""
    c = constants_of(at)
    if tree.size(w) > DENSE_SIZE and not c.known("mu1_relative"):
        c = replace(c, self_concordance=None)
    return c if c.known(*used(c)) and (c.known("mu") or c.known("self_concordance")) else None


class _Search(NamedTuple):
    best: Reference
    improved: Bool[Array, ""]
    matvecs: Int[Array, ""]


def _sharpened(
    at: Instance, c: Constants, w: Tree, v: Tree, grad: Tree, spent: Int[Array, ""]
) -> tuple[Reference, Int[Array, ""]]:
    """The best reference point found, and the matvecs it took."""
    most = jnp.maximum(spent // (2 * ROUNDS), FEWEST_STEPS)  # of each linear solve

    def judge(w: Tree, v: Tree) -> tuple[Reference, int]:
        terms = evaluate(at, w, v)
        bound, products = bound_from(at, c, w, sizes_of(w, v, terms), rounding_unit(w))
        return Reference(w, v, tree.norm(tree.sub(grad, terms.grad)), bound), products + EVALUATION

    def unfinished(s: _Search) -> Bool[Array, ""]:
        return s.improved & ~(s.best.bound <= SHARP * s.best.distance)

    def body(s: _Search) -> _Search:
        wished = 0.5 * SHARP * s.best.distance / s.best.bound
        rtol = jnp.clip(jnp.where(jnp.isfinite(wished), wished, LOOSE), 16 * tree.eps(w), LOOSE)
        step = correct(at, s.best.w, s.best.v, lambda A, b: loose_solve(A, b, rtol, most, near))
        new, products = judge(tree.add(s.best.w, step.dw), tree.add(s.best.v, step.dv))
        none_yet = jnp.isinf(s.best.total)  # too far for any bound: any step may bring one
        best = tree.where(none_yet | (new.total < s.best.total), new, s.best)
        matvecs = s.matvecs + step.lower.matvecs + step.adjoint.matvecs + products
        return _Search(best, none_yet | (new.total < 0.5 * s.best.total), matvecs)

    first, products = judge(w, v)
    begin = _Search(first, jnp.asarray(True), jnp.asarray(products))
    near, matvecs = _factorized(at, w, unfinished(begin)) if tree.size(w) <= SMALL else (None, 0)
    end = bounded_while(unfinished, body, begin, ROUNDS)
    return end.best, end.matvecs + matvecs


def _factorized(at: Instance, w: Tree, wanted: Bool[Array, ""]) -> tuple[Factorized, Int[Array, ""]]:
    """A factorization of ``A`` at ``w`` where it is wanted, else no good one, and the products that took."""

    def make() -> Factorized:
        return factorize(at.linearize(w)[1], w)

    near = jax.lax.cond(wanted, make, lambda: tree.zeros_like(jax.eval_shape(make)))
    return near, jnp.where(wanted, tree.size(w), 0)
