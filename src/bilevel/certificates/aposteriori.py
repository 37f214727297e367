"""Proved bounds of the error of a computed hypergradient, from its residuals and the constants of the problem.

With ``e = w - w*`` and ``A, B, g = d_w F, d_lam F, d_w U`` at ``w``, a star at the solution, the adjoints
``A*^T v* = g*``, and the residuals ``r_w = |F(w)|``, ``r_v = |A^T v - g|``:

    mu |e| <= |F(w) - F(w*)|                                         |e| <= e_w = r_w / mu
    A*^T (v - v*) = (A* - A)^T v + (A^T v - g) + (g - g*)            |v - v*| <= e_v = (r_v + (nu1 |v| + mu1) e_w) / mu
    d_lam l(w, v) - grad = (d_lam U - d_lam U*) - B^T (v - v*) - (B - B*)^T v*,      |v*| <= |v| + e_v

    |d_lam l(w, v) - grad| <= |B| e_v + (mu2 + nu2 (|v| + e_v)) e_w

which is first order in both residuals. A fixed-point problem has ``mu = 1 - q``. It sharpens the bound of
Ehrhardt and Roberts (2023, arXiv 2301.04764), which passes through the exact adjoint at ``w``, and allows for
direct dependence of ``U`` on ``lam``.

That grows with ``1 / mu^2``: the first line turns a residual into an error of w, the second that into an error of v.
Of a convex loss with ``A(w') >= exp(-a |w - w'|) A(w)`` the two need not be worst at once. On the segment from w to
the solution all Hessians lie between ``1 / p`` and p times those at w, ``p = exp(a e_w)``, and with
``d2_ww U(w) <= c A(w)``, ``A(w) >= m`` and ``|x|_A^2 = <x, A(w) x>``,

    |e|_A <= p r_w / sqrt(m),     |(A* - A) v|_A^-1 <= (p - 1) |v|_A,     |g* - g|_A^-1 <= p c |e|_A
    |v - v*| <= e_v = p ((p - 1) sqrt(m) |v|_A + r_v + p^2 c r_w) / m

which is ``(r_v + c r_w) / m`` for a quadratic. Such a loss needs no global ``mu``, either: integrating along the
segment gives ``r_w >= m (1 - exp(-a |e|)) / a``, hence

    |e| <= e_w = -log(1 - a r_w / m) / a   if a r_w < m,             mu = m exp(-a e_w) on the segment.

Where c is not given, it and m are the extreme eigenvalues of dense matrices at w.

The factors ``1 / mu`` make the bound too large by up to the condition number and more. But any other point
``(w', v')`` proves a bound, too:

    |grad - true| <= |grad - d_lam l(w', v')| + bound at (w', v')

and at a point corrected by Newton steps (:mod:`bilevel.lagrangian`) the second term is as small as its linear
solves are tight, while the first is the estimated error. So the bound is within a small factor of the error
where the solves can be made that tight.

Rounding is a stated model: an evaluation errs by at most ``u = (sqrt(n) / 8 + 6) eps`` times the norms of the terms it
sums, n the number of unknowns: rounding errors of a sum are of either sign and grow with the root of the number of
its terms (Higham and Mary 2019, doi 10.1137/18M1226312). Those measured on all families are below a half of it
(docs/bounds.md). The terms of ``F(w)`` are at most ``|F(w)| + 2 L |w|``, since ``|F(0)| <= |F(w)| + L |w|``; likewise
of ``g``; and ``w`` itself is read with this relative error where ``A``, ``B`` and ``d_lam U`` depend on it. "Proved"
means proved up to this model.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.certificates.constants import Constants, constants_of
from bilevel.certificates.estimate import FEWEST_STEPS, LOOSE, loose_solve
from bilevel.lagrangian import Instance, correct, gradient
from bilevel.linear.operator import LinearOperator
from bilevel.loops import bounded_while

Tree = Any

DENSE_SIZE = 2000  # unknowns up to which the least eigenvalue of A(w) is computed
BLOCK = 64  # products done at once for the Frobenius norm
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


class Local(NamedTuple):
    """At ``w``: ``A(w) >= m`` and ``d2_ww U(w) <= c A(w)``."""

    m: Float[Array, ""]
    c: Float[Array, ""]


class Region(NamedTuple):
    """How far the solution may be, and the strong monotonicity of F from ``w`` to there."""

    e_w: Float[Array, ""]
    mu: Float[Array, ""]


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
    about as many matvecs as were ``spent`` before.

    Notes
    -----
    Cost, besides these steps: three matvecs for every point looked at; the 2 n of dense ``A(w)`` and ``d2_ww U(w)``
    in two blocks where ``self_concordance`` is given without ``mu`` or ``mu1_relative`` (n up to 2000; above it is
    not used); ``min(n, dim(lam))`` in blocks for the Frobenius norm of ``B(w)`` where ``B0`` is not given.
    """
    if at.problem.constants is None:
        return None
    c = constants_of(at)
    if tree.size(w) > DENSE_SIZE and not c.known("mu1_relative"):
        c = replace(c, self_concordance=None)
    if not c.known(*used(c)) or not (c.known("mu") or c.known("self_concordance")):
        return Certificate(jnp.asarray(jnp.nan, tree.dtype(grad)), jnp.asarray(False), jnp.asarray(0))
    best, matvecs = _sharpened(at, c, w, v, grad, spent)
    bound = jnp.where(jnp.isfinite(best.total), best.total, jnp.nan).astype(tree.dtype(grad))
    return Certificate(bound, jnp.isfinite(bound) & c.given(*used(c)), matvecs)


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
        bound, products = bound_at(at, c, w, v)
        distance = tree.norm(tree.sub(grad, gradient(at, w, v).grad))
        return Reference(w, v, distance, bound), products + 1

    def unfinished(s: _Search) -> Bool[Array, ""]:
        return s.improved & ~(s.best.bound <= SHARP * s.best.distance)

    def body(s: _Search) -> _Search:
        wished = 0.5 * SHARP * s.best.distance / s.best.bound
        rtol = jnp.clip(jnp.where(jnp.isfinite(wished), wished, LOOSE), 16 * tree.eps(w), LOOSE)
        step = correct(at, s.best.w, s.best.v, lambda A, b: loose_solve(A, b, rtol, most))
        new, products = judge(tree.add(s.best.w, step.dw), tree.add(s.best.v, step.dv))
        none_yet = jnp.isinf(s.best.total)  # too far for any bound: any step may bring one
        best = tree.where(none_yet | (new.total < s.best.total), new, s.best)
        matvecs = s.matvecs + step.lower.matvecs + step.adjoint.matvecs + products
        return _Search(best, none_yet | (new.total < 0.5 * s.best.total), matvecs)

    first, products = judge(w, v)
    end = bounded_while(unfinished, body, _Search(first, jnp.asarray(True), jnp.asarray(products)), ROUNDS)
    return end.best, end.matvecs


def bound_at(at: Instance, c: Constants, w: Tree, v: Tree) -> tuple[Float[Array, ""], int]:
    """The bound of ``d_lam l(w, v)``, term by term as derived above, and its matvecs."""
    F, A = at.linearize(w)
    _, g = at.upper_gradient(w)
    W, V, G, u = tree.norm(w), tree.norm(v), tree.norm(g), rounding_unit(w)
    r_w = tree.norm(F)
    r_w = r_w + u * (r_w + 2 * c.L * W)
    Av = A.mv_transpose(v)
    r_v = tree.norm(tree.sub(Av, g))
    r_v = r_v + u * (r_v + (c.L + c.nu1 * W) * V + G + 2 * c.mu1 * W)
    local, products = _local(at, c, A, w)
    e_w, mu = _region(c, local, r_w)
    B, products_B = _norm_of_jacobian(at, c, w)
    e_v = (r_v + (c.nu1 * V + c.mu1) * e_w) / mu
    if local is not None:
        energy = jnp.sqrt(jnp.maximum(tree.dot(v, Av), 0.0) + u * c.L * V**2)  # |v|_A
        e_v = jnp.minimum(e_v, _energy_bound(c, local, e_w, r_w, r_v, energy))
    mu2 = c.mu2 + c.mu2_growth * (W + e_w)
    truncation = B * e_v + (mu2 + c.nu2 * (V + e_v)) * e_w
    direct = tree.norm(jax.grad(at.problem.upper, argnums=1)(w, at.lam, at.upper_data))
    evaluation = u * (direct + B * V + 2 * (mu2 + c.nu2 * V) * W)
    return truncation + evaluation, 2 + products + products_B


def _local(at: Instance, c: Constants, A: LinearOperator, w: Tree) -> tuple[Local | None, int]:
    """Both of a self-concordant loss, given or from dense matrices, and the products that took."""
    if c.self_concordance is None:
        return None, 0
    if c.mu is not None and c.mu1_relative is not None:
        return Local(_positive(c.mu), c.mu1_relative), 0
    u, A_w = rounding_unit(w), A.dense(w)
    # Rounding moves the two matrices by u times what bounds their norms.
    m = jnp.linalg.eigvalsh(A_w)[0] - u * c.L
    m = _positive(m if c.mu is None else jnp.maximum(m, c.mu))
    R = jnp.linalg.cholesky(A_w)
    half = solve_triangular(R, _upper_hessian(at, w).dense(w), lower=True)
    relative = jnp.linalg.eigvalsh(solve_triangular(R, half.T, lower=True))[-1]
    relative = relative * (1 + u * c.L / m) + u * c.mu1 / m
    return Local(m, jnp.where(relative <= c.mu1 / m, relative, c.mu1 / m)), 2 * tree.size(w)


def _upper_hessian(at: Instance, w: Tree) -> LinearOperator:
    def mv(x: Tree) -> Tree:
        return jax.jvp(lambda w: at.upper_gradient(w)[1], (w,), (x,))[1]

    return LinearOperator(mv, mv, symmetric=True)


def _region(c: Constants, local: Local | None, r_w: Float[Array, ""]) -> Region:
    """``e_w`` and ``mu``; NaN where the residual is too large to know how far the solution is."""
    if c.mu is not None:
        return Region(r_w / _positive(c.mu), _positive(c.mu))
    assert local is not None
    a, m = c.self_concordance, local.m
    e_w = jnp.where(a > 0, -jnp.log(_positive(1 - a * r_w / m)) / jnp.where(a > 0, a, 1.0), r_w / m)
    return Region(e_w, m * jnp.exp(-a * e_w))


def _energy_bound(
    c: Constants, local: Local, e_w: Float[Array, ""], r_w: Float[Array, ""], r_v: Float[Array, ""], energy: Any
) -> Float[Array, ""]:
    """``e_v`` by energy norms, as derived above; infinite where the Hessians may change by more than a factor of e."""
    m, smoothness = local
    change = c.self_concordance * e_w  # log p
    p = jnp.exp(jnp.minimum(change, 1.0))
    e_v = p * (jnp.expm1(jnp.minimum(change, 1.0)) * jnp.sqrt(m) * energy + r_v + p**2 * smoothness * r_w) / m
    return jnp.where(change > 1, jnp.inf, e_v)


def _positive(x: Any) -> Float[Array, ""]:
    """``x``, not a number where it is not positive."""
    return jnp.where(jnp.asarray(x) > 0, x, jnp.nan)


def _norm_of_jacobian(at: Instance, c: Constants, w: Tree) -> tuple[Float[Array, ""], int]:
    """``|B(w)| <= B0 + nu2 |w|``, or without ``B0`` its Frobenius norm, and the products that took."""
    if c.B0 is not None:
        return c.B0 + c.nu2 * tree.norm(w), 0

    def residual(lam: Tree) -> Tree:
        return at.problem.lower.residual(w, lam, at.lower_data)

    if tree.size(at.lam) <= tree.size(w):
        product, like = jax.linearize(residual, at.lam)[1], at.lam
    else:
        product, like = (lambda v: jax.vjp(residual, at.lam)[1](v)[0]), w
    norms = jax.lax.map(lambda i: tree.norm(product(_unit(like, i))), jnp.arange(tree.size(like)), batch_size=BLOCK)
    return tree.norm(norms), tree.size(like)


def _unit(like: Tree, i: Any) -> Tree:
    """The i-th unit vector of the space of ``like``."""
    leaves, treedef = jax.tree.flatten(like)
    units = []
    for leaf in leaves:
        units.append((jnp.arange(leaf.size) == i).astype(leaf.dtype).reshape(leaf.shape))
        i = i - leaf.size
    return treedef.unflatten(units)


def rounding_unit(w: Tree) -> float:
    """``u = (sqrt(n) / 8 + 6) eps`` of the stated model of rounding."""
    return (tree.size(w) ** 0.5 / 8 + 6) * tree.eps(w)
