"""The bound of the error of ``d_lam l(w, v)``, from its residuals and the constants of the problem.

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

Rounding is a stated model: an evaluation errs by at most ``u = (sqrt(n) / 8 + 6) eps`` times the norms of the terms it
sums, n the number of unknowns: rounding errors of a sum are of either sign and grow with the root of the number of
its terms (Higham and Mary 2019, doi 10.1137/18M1226312). Those measured on all families are below a half of it
(docs/bounds.md). The terms of ``F(w)`` are at most ``|F(w)| + 2 L |w|``, since ``|F(0)| <= |F(w)| + L |w|``; likewise
of ``g``; and ``w`` itself is read with this relative error where ``A``, ``B`` and ``d_lam U`` depend on it. "Proved"
means proved up to this model.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.certificates.constants import Constants, Number
from bilevel.lagrangian import Instance, gradient
from bilevel.linear.operator import LinearOperator

Tree = Any

EVALUATION = 3  # matvecs of the terms of a bound
BLOCK = 64  # products done at once for the Frobenius norm


class Terms(NamedTuple):
    """What is evaluated at ``(w, v)``: ``F``, ``A^T v``, ``g = d_w U``, the direct term ``d_lam U`` and ``d_lam l``."""

    F: Tree
    Av: Tree
    g: Tree
    direct: Tree
    grad: Tree


class Sizes(NamedTuple):
    """What of that, and of ``(w, v)``, enters a bound: norms, ``|A^T v - g|``, and ``<v, A^T v>``."""

    w: Number
    v: Number
    F: Number
    adjoint_residual: Number
    g: Number
    direct: Number
    energy: Number


class Local(NamedTuple):
    """At ``w``: ``A(w) >= m`` and ``d2_ww U(w) <= c A(w)``."""

    m: Float[Array, ""]
    c: Float[Array, ""]


class Region(NamedTuple):
    """How far the solution may be, and the strong monotonicity of F from ``w`` to there."""

    e_w: Float[Array, ""]
    mu: Float[Array, ""]


def evaluate(at: Instance, w: Tree, v: Tree) -> Terms:
    """The terms at ``(w, v)``, by ``EVALUATION`` matvecs."""
    F, A = at.linearize(w)
    _, g = at.upper_gradient(w)
    direct = jax.grad(at.problem.upper, argnums=1)(w, at.lam, at.upper_data)
    return Terms(F, A.mv_transpose(v), g, direct, gradient(at, w, v).grad)


def sizes_of(
    w: Tree, v: Tree, terms: Terms, norm: Callable[[Tree], Number] = tree.norm, dot: Callable[..., Number] = tree.dot
) -> Sizes:
    """What of the terms enters a bound, by the norm and the inner product of their precision."""
    r = jax.tree.map(operator.sub, terms.Av, terms.g)
    w_size, v_size, F, residual, g, direct = map(norm, (w, v, terms.F, r, terms.g, terms.direct))
    return Sizes(w_size, v_size, F, residual, g, direct, energy=dot(v, terms.Av))


def bound_from(at: Instance, c: Constants, w: Tree, s: Sizes, u: float) -> tuple[Float[Array, ""], int]:
    """The bound of ``d_lam l(w, v)``, term by term as derived above, and its matvecs.

    ``u`` is the unit of rounding of the terms, which may have been evaluated in a higher precision than that of ``w``.
    """
    r_w = s.F + u * (s.F + 2 * c.L * s.w)
    terms_v = (c.L + c.nu1 * s.w) * s.v + s.g + 2 * c.mu1 * s.w
    r_v = s.adjoint_residual + u * (s.adjoint_residual + terms_v)
    local, products = _local(at, c, w)
    e_w, mu = _region(c, local, r_w)
    B, products_B = _norm_of_jacobian(at, c, w)
    e_v = (r_v + (c.nu1 * s.v + c.mu1) * e_w) / mu
    if local is not None:
        energy = jnp.sqrt(jnp.maximum(s.energy, 0.0) + u * c.L * s.v**2)  # |v|_A
        e_v = jnp.minimum(e_v, _energy_bound(c, local, e_w, r_w, r_v, energy))
    mu2 = c.mu2 + c.mu2_growth * (s.w + e_w)
    truncation = B * e_v + (mu2 + c.nu2 * (s.v + e_v)) * e_w
    evaluation = u * (s.direct + B * s.v + 2 * (mu2 + c.nu2 * s.v) * s.w)
    return truncation + evaluation, products + products_B


def bound_at(at: Instance, c: Constants, w: Tree, v: Tree) -> tuple[Float[Array, ""], int]:
    """The bound of ``d_lam l(w, v)`` by terms in the precision of ``w``, and its matvecs."""
    bound, products = bound_from(at, c, w, sizes_of(w, v, evaluate(at, w, v)), rounding_unit(w))
    return bound, products + EVALUATION


def _local(at: Instance, c: Constants, w: Tree) -> tuple[Local | None, int]:
    """Both of a self-concordant loss, given or from dense matrices, and the products that took."""
    if c.self_concordance is None:
        return None, 0
    if c.mu is not None and c.mu1_relative is not None:
        return Local(_positive(c.mu), c.mu1_relative), 0
    u, A_w = rounding_unit(w), at.linearize(w)[1].dense(w)
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


def rounding_unit(w: Tree, eps: float | None = None) -> float:
    """``u = (sqrt(n) / 8 + 6) eps`` of the stated model of rounding; default the eps of ``w``."""
    return (tree.size(w) ** 0.5 / 8 + 6) * (tree.eps(w) if eps is None else eps)
