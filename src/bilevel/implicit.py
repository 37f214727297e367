"""The lower-level solution as a differentiable function, by the implicit function theorem.

``F(w(lam), lam) = 0`` gives ``w'(lam) = -A^{-1} d_lam F`` with ``A = d_w F``: JAX's ``custom_root`` applies it at
the solution, whatever solver found that, and ``custom_linear_solve`` makes the solve with ``A`` itself
differentiable, so that forward mode, reverse mode and second derivatives all follow.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from bilevel import tree
from bilevel.linear.operator import LinearOperator
from bilevel.methods.aid import check_deterministic, check_symmetry, default_linear_solver
from bilevel.precision import full_precision
from bilevel.problems import Lower, validate_lower
from bilevel.solvers import default_solver
from bilevel.status import ProblemError, SolveInfo, is_failure, raise_if_failed

Tree = Any
OnFailure = Literal["raise", "nan", "keep"]


@dataclass(frozen=True)
class Implicit:
    """``w_star(lam, w0, data) -> w``, differentiable in ``lam`` and ``data``; made by :func:`implicit`."""

    lower: Lower
    solver: Any
    linear_solver: Any
    rtol: Any
    on_failure: OnFailure

    def __call__(self, lam: Tree, w0: Tree, data: Tree = None) -> Tree:
        """Solution ``w(lam)``, a pytree like ``w0``; constant in ``w0``."""
        w, info = self._solve(lam, w0, data)
        if self.on_failure == "keep":
            return w
        if self.on_failure == "raise" and not isinstance(info.status, Tracer):
            raise_if_failed(info, "Lower-level solve")
        # A factor, where a choice would leave NaN without derivative: that of a constant, zero.
        return tree.scale(jnp.where(is_failure(info.status), jnp.nan, 1.0), w)

    def info(self, lam: Tree, w0: Tree, data: Tree = None) -> SolveInfo:
        """What the lower-level solve does at these arguments."""
        return self._solve(lam, w0, data)[1]

    @full_precision
    def _solve(self, lam: Tree, w0: Tree, data: Tree) -> tuple[Tree, SolveInfo]:
        inputs = tree.strong((self.lower, self.solver, self.linear_solver, self.rtol, lam, w0))
        return _solve(*inputs, data, poison=self.on_failure != "keep")


def implicit(
    lower: Lower,
    solver: Any = None,
    linear_solver: Any = None,
    rtol: Any = None,
    on_failure: OnFailure = "nan",
) -> Implicit:
    """Differentiable solution map of a lower-level problem.

    Parameters
    ----------
    lower
        The lower-level problem; its function may close over values that are being differentiated.
    solver
        Lower-level solver; default NewtonCG for minimizations, NewtonKrylov for others.
    linear_solver
        Solver of the linear systems of the derivatives; default CG for symmetric problems, GMRES for others.
    rtol
        Tolerance of both; default: the square root of machine epsilon.
    on_failure
        ``"nan"``: a failed lower-level solve gives NaN, a failed linear solve gives NaN derivatives; ``"raise"``:
        moreover raise where the solve runs eagerly; ``"keep"``: return what there is.

    Returns
    -------
    Implicit
        A function ``w_star(lam, w0, data)``; ``w_star.info(lam, w0, data)`` tells what its solve did.

    Raises
    ------
    ProblemError
        ``linear_solver`` needs symmetry that the problem does not promise.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bilevel as bl
    >>> sqrt = bl.implicit(bl.root(lambda w, lam, data: w * w - lam))
    >>> print(f"{sqrt(4.0, 1.0):.3f} {jax.grad(sqrt)(4.0, 1.0):.3f} {jax.hessian(sqrt)(4.0, 1.0):.4f}")
    2.000 0.250 -0.0312
    """
    if on_failure not in ("raise", "nan", "keep"):
        raise ProblemError(f'on_failure must be "raise", "nan" or "keep", but is {on_failure!r}.')
    check_deterministic("implicit", solver, linear_solver)
    check_symmetry(linear_solver, lower)
    return Implicit(
        lower,
        default_solver(lower) if solver is None else solver,
        default_linear_solver(lower) if linear_solver is None else linear_solver,
        rtol,
        on_failure,
    )


def _implicit_solve(lower: Lower, solver, linear_solver, rtol, lam, w0, data, *, poison: bool):
    validate_lower(lower, lam, w0, data)

    def residual(w):
        return lower.residual(w, lam, data)

    def solve(_, w0):
        w, info = solver(lower, lam, w0, data, rtol=rtol)
        return w, jax.tree.map(lambda x: x.astype(tree.dtype(w0)), info)  # custom_root's aux must be floating

    def linear_solve(mv, b, transposed=False):
        """``A^{-1} b``, or ``A^{-T} b`` with the transposed product as ``mv``."""

        def mv_transpose(x):
            return mv(x) if lower.symmetric else jax.linear_transpose(mv, b)(x)[0]

        minimization = lower.kind == "minimization"
        step = lower.step if minimization else 1.0
        A = LinearOperator(mv, mv_transpose, lower.symmetric, minimization, step, transposed)
        x, info = linear_solver(A, b, rtol=rtol)
        return tree.where(is_failure(info.status) & poison, tree.fill(x, jnp.nan), x)

    def tangent_solve(mv, b):
        # The barrier materializes symbolic zeros: the transpose of the solve fails on them (jax issue 10929).
        b = jax.lax.optimization_barrier(b)
        transpose_solve = partial(linear_solve, transposed=not lower.symmetric)
        return jax.lax.custom_linear_solve(mv, b, linear_solve, transpose_solve, symmetric=lower.symmetric)

    w, info = jax.lax.custom_root(residual, w0, solve, tangent_solve, has_aux=True)
    counts = [x.astype(jnp.int32) for x in (info.steps, info.matvecs, info.status)]
    return w, SolveInfo(counts[0], counts[1], info.residual_norm, counts[2])


_solve = jax.jit(_implicit_solve, static_argnames="poison")
