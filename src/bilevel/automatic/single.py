"""The same problem in single precision: half the bytes for all that need not be exact.

Products with A wait for memory. What prepares or approximates (a first-order solver's way to the solution, the
factorization that preconditions, loose solves) is therefore done in float32 where the problem is in float64; every
residual by which a result is judged is in float64.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import tree
from bilevel.certificates.estimate import LOOSE, loose_solve
from bilevel.lagrangian import Instance
from bilevel.linear.cg import run_cg
from bilevel.linear.factorized import Factorized
from bilevel.linear.operator import LinearOperator, divisor
from bilevel.loops import bounded_while
from bilevel.status import SolveInfo, Status, code

Tree = Any

FINEST = 3e-4  # relative residual asked of one solve in single precision
MARGIN = 0.5  # part of the tolerance asked of it, so that the residual in double precision meets the whole
FALL = 0.3  # of the residual over one refinement, below which rounding has not ended it
REFINEMENTS = 6


class Aids(NamedTuple):
    """What makes loose solves cheap, each None where it is missing."""

    near: Factorized | None = None  # a factorization near A
    single: Instance | None = None  # the problem in single precision
    most: Any = None  # products of a solve in a pass: a factorization would cost less than more of them

    def solver(self, w: Tree) -> Callable[..., tuple[Tree, SolveInfo]]:
        """``solve(A, b, rtol, steps)`` as :func:`~bilevel.certificates.estimate.loose_solve`, A being that at w."""
        if self.near is not None or self.single is None:
            return partial(loose_solve, preconditioner=self.near)
        return partial(refined_solve, linearized(self.single, w))

    def limited_solver(self, w: Tree, left: Any) -> Callable[..., tuple[Tree, SolveInfo]]:
        """The same for two solves that share what is ``left`` of a budget; what is cut short is not ``OK``."""
        solve, limits = self.solver(w), [x for x in (self.most, left if left is None else left // 2) if x is not None]
        if not limits:
            return solve
        steps = limits[0] if len(limits) == 1 else jnp.minimum(*limits)

        def limited(A: LinearOperator, b: Tree) -> tuple[Tree, SolveInfo]:
            x, info = solve(A, b, steps=steps)
            cut = (info.status == Status.OK) & (info.steps >= steps)
            return x, replace(info, status=jnp.where(cut, code(Status.MAX_STEPS), info.status))

        return limited


def in_single(at: Instance, w: Tree) -> Instance | None:
    """The lower level in float32; None but for minimizations in float64 whose functions can be evaluated so."""
    if at.problem.lower.kind != "minimization" or tree.dtype((w, at.lam)) != jnp.float64:
        return None
    lam, data, w = (narrowed(x) for x in (at.lam, at.lower_data, w))
    try:
        F = jax.eval_shape(at.problem.lower.residual, w, lam, data)
        value = jax.eval_shape(at.problem.lower.function, w, lam, data)
    except (TypeError, ValueError):  # a function that insists on float64
        return None
    fits = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((F, value)))
    return at._replace(lam=lam, lower_data=data, upper_data=None) if fits else None


def narrowed(x: Tree) -> Tree:
    """float64 leaves as float32, all others as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if jnp.result_type(leaf) == jnp.float64 else leaf, x)


def widened(x: Tree, like: Tree) -> Tree:
    """``x`` in the dtypes of ``like``."""
    return jax.tree.map(lambda leaf, wide: leaf.astype(wide.dtype), x, like)


def linearized(single: Instance, w: Tree) -> LinearOperator:
    """``A`` at ``w`` in single precision."""
    return single.linearize(narrowed(w))[1]


class _Run(NamedTuple):
    x: Tree
    r: Tree
    residual_norm: Float[Array, ""]
    steps: Int[Array, ""]
    matvecs: Int[Array, ""]
    status: Int[Array, ""]


def refined_solve(
    single: LinearOperator, A: LinearOperator, b: Tree, rtol: Any = LOOSE, steps: Any = None, settle: Any = LOOSE
) -> tuple[Tree, SolveInfo]:
    """``A x = b`` by CG in single precision, refined with residuals in double (Higham 2002, Chapter 12).

    Tolerance and ``settle`` as in :class:`~bilevel.linear.cg.CG`; ``steps`` are those of all refinements. Status
    ``STAGNATED`` where refinement does not help: A is too ill-conditioned for single precision.
    """
    most = 10 * tree.size(b) + 100 if steps is None else steps
    target = rtol * tree.norm(b)

    def refine(s: _Run) -> _Run:
        unit = divisor(s.residual_norm)
        wanted = jnp.maximum(MARGIN * target / unit, FINEST).astype(jnp.float32)
        run = run_cg(single, narrowed(tree.scale(1 / unit, s.r)), lambda r: r, wanted, settle, most - s.steps)
        x = tree.axpy(unit, widened(run.x, b), s.x)
        r = tree.sub(b, A.mv(x))
        norm = tree.norm(r)
        stagnates = (run.status == Status.OK) & ~(norm <= jnp.maximum(FALL * s.residual_norm, target))
        status = jnp.where(stagnates, code(Status.STAGNATED), run.status)
        return _Run(x, r, norm, s.steps + run.step, s.matvecs + run.step + 1, status)

    start = _Run(tree.zeros_like(b), b, tree.norm(b), jnp.asarray(0), jnp.asarray(0), code(Status.OK))
    unfinished = lambda s: (s.status == Status.OK) & (s.residual_norm > target)  # noqa: E731
    s = bounded_while(unfinished, refine, start, REFINEMENTS)
    status = jnp.where(unfinished(s), code(Status.STAGNATED), s.status)
    return s.x, SolveInfo(s.steps, s.matvecs, s.residual_norm, status)
