"""The compiled pieces of the automatic method; each returns ``vectors, numbers``, of a batch one for each member."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel import tree
from bilevel.automatic.flat import Layout, layout, on_vectors
from bilevel.batch_axes import spread
from bilevel.lagrangian import Instance
from bilevel.linear.cg import run_cg
from bilevel.linear.gmres import GMRES
from bilevel.linear.operator import divisor
from bilevel.linear.richardson import Richardson
from bilevel.problems import validate
from bilevel.solvers.newton import Solution
from bilevel.solvers.picard import Picard
from bilevel.status import SolveInfo, Status, code

Tree = Any


def layouts_of(at: Instance, w: Tree) -> tuple[Layout, Layout | None]:
    """Those of w and lam; lam stays a pytree where members have one of their own."""
    lower = at.problem.lower
    if lower.members is None:
        return layout(w), layout(at.lam)
    axes, lam_axes, _ = lower.member_axes
    own = any(axis is not None for axis in spread(lam_axes, at.lam))
    w_axes = tuple(axis for axis in spread(axes, w) if axis is not None)
    return layout(w, w_axes), None if own else layout(at.lam)


@partial(jax.jit, static_argnames="narrow")
def prepare(at: Instance, w0: Tree, v0: Tree | None, narrow: bool) -> tuple[tuple[Any, Any, Any], Any]:
    """Vectors of w, v and lam, once the problem has been checked, and ``(lam, lower_data)`` in single precision.

    The last is None but for losses and maps in float64 that can be evaluated so.
    """
    validate(at.problem, at.lam, w0, at.lower_data, at.upper_data)
    w, lam = layouts_of(at, w0)
    vectors = w.ravel(w0), None if v0 is None else w.ravel(v0), at.lam if lam is None else lam.ravel(at.lam)
    if not narrow or at.problem.lower.kind == "root" or tree.dtype(vectors) != jnp.float64:
        return vectors, None
    single = tree.in_single((vectors[0], vectors[2], at.lower_data))
    try:
        F = jax.eval_shape(on_vectors(at, w, lam).problem.lower.residual, *single)
    except (TypeError, ValueError):  # a function that insists on float64
        return vectors, None
    return vectors, single[1:] if F.dtype == jnp.float32 else None


@partial(jax.jit, static_argnames="layouts")
def unravel(layouts: tuple[Layout, Layout | None], w: Array, v: Array, grad: Any) -> tuple[Tree, Tree, Tree]:
    """The pytrees of the result."""
    of_w, of_lam = layouts
    return of_w.unravel(w), of_w.unravel(v), grad if of_lam is None else of_lam.unravel(grad)


@partial(jax.jit, static_argnames=("transposed", "single", "contraction"))
def krylov(
    at: Instance,
    w: Array,
    b: Array,
    sign: Any,
    rtol: Any,
    settle: Any,
    steps: Any,
    *,
    transposed: bool,
    single: bool = False,
    contraction: bool = False,
) -> tuple[Array, Solution]:
    """``A x = sign b`` with ``A = d_w F`` at ``w``, or ``A^T``: by CG where A must be definite, else by GMRES.

    Of a ``contraction`` by a few steps of the map, Richardson's iteration. With ``single`` the problem is given in
    single precision, and so are the products. Along a direction of negative curvature x goes as far again as it has
    come.
    """

    def of(one: Any, w: Array, lam: Tree, data: Tree, b: Array, sign: Any, rtol: Any, settle: Any) -> Any:
        sign, rtol, settle = (jnp.asarray(x, b.dtype) for x in (sign, rtol, settle))
        unit = divisor(tree.quick_norm(b))
        rhs = (sign / unit) * b
        narrow = tree.in_single if single else lambda x: x
        w, rhs, rtol, settle = narrow((w, rhs, rtol, settle))
        A = one.linearize(w, lam, data)[1]
        if A.definite:
            run = run_cg(A, rhs, None, rtol, settle, steps)
            bent = run.status == Status.NEGATIVE_CURVATURE
            x = run.x + jnp.where(bent, tree.quick_norm(run.x) / divisor(tree.quick_norm(run.p)), 0.0) * run.p
            info, norm_A = SolveInfo(run.step, run.step, run.residual_norm, run.status), run.largest
        else:
            solver = Richardson() if contraction else GMRES()
            x, info = solver(A.T if transposed else A, rhs, rtol=rtol, steps=steps)
            norm_A = tree.quick_norm(A.mv(rhs)) if one.kind == "root" else jnp.ones_like(unit)  # of I - J about one
        x = unit * x.astype(b.dtype)
        norms = tree.quick_norm(x), sign * tree.dot(b, x), unit * info.residual_norm, norm_A
        norm, slope, residual, size = (y.astype(b.dtype) for y in norms)
        return x, Solution(norm, slope, residual, size, info.matvecs, info.status)

    return at.problem.lower.each(of, w, at.lam, at.lower_data, b, sign, rtol, settle)


class Inverse(NamedTuple):
    """What is known of a matrix that was inverted: whether it is regular to rounding, its norm, its status."""

    regular: Any
    norm: Any
    status: Any


@partial(jax.jit, static_argnames=("single", "modified"))
def invert(at: Instance, w: Array, single: bool = False, modified: bool = False) -> tuple[Array, Inverse]:
    """Dense inverse of ``A = d_w F`` at ``w``. Cost: n products in a block, O(n^3).

    ``modified``: of an A that must be positive definite and is not, that of ``|A|`` (Nocedal and Wright 2006, Section
    3.4); in place of that of another singular A a short gradient step on ``|F|^2 / 2``.
    """

    def of(one: Any, w: Array, lam: Tree, data: Tree) -> tuple[Array, Inverse]:
        real = w.dtype
        w = tree.in_single(w) if single else w
        A = one.linearize(w, lam, data)[1]
        M = A.dense(w)
        norm, eps = jnp.max(jnp.sum(jnp.abs(M), axis=1)), jnp.finfo(M.dtype).eps
        factor = jnp.linalg.cholesky(M) if A.definite else None
        eye = jnp.eye(len(M), dtype=M.dtype)
        inverse = jnp.linalg.inv(M) if factor is None else jax.scipy.linalg.cho_solve((factor, True), eye)
        regular = norm * jnp.max(jnp.sum(jnp.abs(inverse), axis=1)) * eps < 1
        status = jnp.where(regular, code(Status.OK), code(Status.SINGULAR))
        if modified:
            usable = _of_absolute if A.definite else _gradient_step
            inverse, status = jax.lax.cond(regular, lambda: (inverse, status), lambda: usable(M))
        status = jnp.where(jnp.isfinite(norm), status, code(Status.NONFINITE))
        return inverse.astype(real), Inverse(regular, norm.astype(real), status)

    return at.problem.lower.each(of, w, at.lam, at.lower_data)


def _of_absolute(M: Array) -> tuple[Array, Array]:
    """Inverse of ``|M|``, with the largest eigenvalue in directions null to rounding; M is indefinite or singular."""
    values, Q = jnp.linalg.eigh(jnp.where(jnp.isfinite(M), M, 0.0))
    largest = jnp.max(jnp.abs(values))
    null = jnp.abs(values) <= len(M) * jnp.finfo(M.dtype).eps * largest
    inverse = (Q / divisor(jnp.where(null, largest, jnp.abs(values)))[None]) @ Q.T
    return inverse, jnp.where(jnp.any((values < 0) & ~null), code(Status.NEGATIVE_CURVATURE), code(Status.SINGULAR))


def _gradient_step(M: Array) -> tuple[Array, Array]:
    """``M^T / (|M|_1 |M|_inf)``."""
    rows, columns = (jnp.max(jnp.sum(jnp.abs(M), axis=axis)) for axis in (0, 1))
    return M.T / divisor(rows * columns), code(Status.SINGULAR)


@jax.jit
def invert_again(at: Instance, w: Array, inverse: Array, known: Inverse, wanted: Any) -> tuple[Array, Inverse]:
    """The modified inverse at ``w`` where it is wanted, else the one there is."""
    return jax.lax.cond(jnp.any(wanted), lambda: invert(at, w, False, True), lambda: (inverse, known))


@partial(jax.jit, static_argnames="transposed")
def apply(at: Instance, w: Array, inverse: Array, b: Array, sign: Any, transposed: bool) -> tuple[Array, Solution]:
    """``x = sign A^-1 b`` by a dense inverse, or ``A^-T b``."""

    def of(_: Any, __: Array, ___: Tree, ____: Tree, inverse: Array, b: Array, sign: Any) -> tuple[Array, Solution]:
        sign = jnp.asarray(sign, b.dtype)
        x = sign * ((inverse.T if transposed else inverse) @ b)
        finite = jnp.all(jnp.isfinite(x))
        x = jnp.where(finite, x, 0.0)
        status = jnp.where(finite, code(Status.OK), code(Status.NONFINITE))
        zero = jnp.zeros((), x.dtype)
        return x, Solution(jnp.linalg.norm(x), sign * jnp.dot(b, x), zero, zero, jnp.asarray(0), status)

    return at.problem.lower.each(of, w, at.lam, at.lower_data, inverse, b, sign)


class Stationary(NamedTuple):
    """A point ``(w, v)`` and the gradients there of the Lagrangian ``l = U - <v, F>``."""

    w: Array
    v: Array
    l_w: Array
    grad: Tree  # d_lam l


class Sizes(NamedTuple):
    """Numbers of such a point: U, the size of the two terms of grad before they cancel, and norms; of all members."""

    value: Any
    scale: Any
    grad: Any
    change: Any
    l_w: Any
    v: Any
    finite: Any


@jax.jit
def stationarity(at: Instance, w: Array, v: Array, dv: Array, beta: Any, last: Tree) -> tuple[Stationary, Sizes]:
    """The Lagrangian's gradients at ``(w, v + beta dv)``; ``change`` is that of grad from ``last``. Cost: a matvec."""
    v, norm = tree.axpy(beta, dv, v), tree.quick_norm
    U, (U_w, U_lam) = jax.value_and_grad(at.problem.upper, argnums=(0, 1))(w, at.lam, at.upper_data)
    transpose = jax.vjp(lambda w, lam: at.problem.lower.residual(w, lam, at.lower_data), w, at.lam)[1]
    F_w_v, F_lam_v = transpose(v)
    l_w, grad = tree.sub(U_w, F_w_v), tree.sub(U_lam, F_lam_v)
    sizes = Sizes(
        U, norm(U_lam) + norm(F_lam_v), norm(grad), norm(tree.sub(grad, last)), norm(l_w), norm(v),
        tree.all_finite((grad, U)),
    )  # fmt: skip
    return Stationary(w, v, l_w, grad), sizes


@jax.jit
def defect(at: Instance, w: Array, p: Array, part: Any, x: Array, length: Any, z: Array) -> tuple[None, Any]:
    """Norm of ``A x - z`` with A at ``w + part p + length x``. Cost: a matvec."""

    def of(one: Any, w: Array, lam: Tree, data: Tree, p: Array, part: Any, x: Array, length: Any, z: Array) -> Any:
        w = tree.axpy(length, x, tree.axpy(part, p, w))
        return tree.quick_norm(jax.jvp(lambda w: one.residual(w, lam, data), (w,), (x,))[1] - z)

    return None, at.problem.lower.each(of, w, at.lam, at.lower_data, p, part, x, length, z)


@jax.jit
def picard(at: Instance, w: Array, rtol: Any, steps: Any) -> tuple[Array, SolveInfo]:
    """A few steps of the map itself; where they have not lowered the residual, ``w``."""

    def of(one: Any, w: Array, lam: Tree, data: Tree) -> tuple[Array, SolveInfo]:
        end, info = Picard()(one, lam, w, data, rtol=rtol, steps=steps)
        return jnp.where(info.residual_norm < tree.quick_norm(one.residual(w, lam, data)), end, w), info.plus(1)

    return at.problem.lower.each(of, w, at.lam, at.lower_data)
