"""The result of every hypergradient method, and the protocol."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bilevel import tree
from bilevel.certificates.aposteriori import Certificate
from bilevel.certificates.estimate import RESOLVED
from bilevel.lagrangian import as_saddle
from bilevel.problems import Problem
from bilevel.status import SolveInfo, Status, code, first_failure, is_failure, raise_if_failed

Tree = Any

ROUNDING = 100.0  # errors below so many eps of the gradient's terms are rounding


@tree.record
@dataclass(frozen=True)
class Hypergradient:
    """A hypergradient with its error.

    Attributes
    ----------
    grad
        Approximation of ``d U(w(lam), lam) / d lam``, a pytree like ``lam``; NaN after a failure that could not
        be raised.
    value
        Upper objective ``U(w, lam)`` at the ``w`` found.
    w, v
        Lower-level solution and adjoint, pytrees like ``w0``; pass them on for a warm start.
    error
        Estimated 2-norm of ``grad`` minus the true hypergradient; NaN where it was not asked for.
    bound, proved
        Upper bound of the error from the constants of the problem (:mod:`bilevel.certificates.aposteriori`), and
        whether it is proved: with estimated constants it is not. NaN and False where constants are missing, the
        residuals too large for a bound, or no error was asked for.
    scale
        Sum of the norms of the direct and the implicit term of ``grad``, before they cancel.
    lower, adjoint, error_info
        What the lower-level solve, the adjoint solve and the error estimate did.
    status
        A :class:`~bilevel.status.Status` code.
    method
        Name of the method.
    damping
        Of the adjoint, as used; 0 where there is none. ``grad`` and ``error`` are those of the damped problem.
    """

    grad: Tree
    value: Float[Array, ""]
    w: Tree
    v: Tree
    error: Float[Array, ""]
    bound: Float[Array, ""]
    proved: Bool[Array, ""]
    scale: Float[Array, ""]
    lower: SolveInfo
    adjoint: SolveInfo
    error_info: SolveInfo
    status: Int[Array, ""]
    method: str = field(metadata={"static": True})
    damping: Float[Array | np.ndarray, ""] = field(default_factory=lambda: np.zeros(()))

    @property
    def relative_error(self) -> Float[Array, ""]:
        """``error / norm(grad)``; 0 where both are 0."""
        size = tree.norm(self.grad)
        return jnp.where(self.error == 0, 0.0, self.error / jnp.where(size > 0, size, 0.0))

    @property
    def matvecs(self) -> Int[Array, ""]:
        """What all of it has cost: lower level, adjoint and error estimate."""
        return self.lower.matvecs + self.adjoint.matvecs + self.error_info.matvecs

    @property
    def failed(self) -> Bool[Array, ""]:
        """Whether the status is a failure."""
        return is_failure(self.status)

    def raise_if_failed(self) -> "Hypergradient":
        """Raise :class:`~bilevel.status.ConvergenceError` on a failure, else return itself. Eager only."""
        steps = f"after {int(self.lower.steps)} lower and {int(self.adjoint.steps)} adjoint steps"
        raise_if_failed(self, f"Hypergradient by {self.method}, {steps}")
        return self

    def explain(self) -> str:
        """The result in words. Eager only."""
        return "\n".join(
            [
                f"Hypergradient by {self.method}.",
                *_damping_in_words(self),
                f"  norm(grad) {float(tree.norm(self.grad)):.3e}, upper value {float(self.value):.6g}",
                f"  {_error_in_words(self)}",
                f"  lower level: {_solve_in_words(self.lower)}",
                f"  adjoint: {_solve_in_words(self.adjoint)}",
                f"  error estimate: {int(self.error_info.matvecs)} matvecs",
                f"  {Status(int(self.status)).sentence}",
            ]
        )


class Method(Protocol):
    """``method(problem, lam, w0, v0, lower_data, upper_data, key, error=True) -> Hypergradient``; pure."""

    def check(self, problem: Problem) -> None:
        """Refuse combinations that are mathematically invalid, at trace time, before anything is computed."""
        ...

    def __call__(
        self,
        problem: Problem,
        lam: Tree,
        w0: Tree,
        v0: Tree | None,
        lower_data: Tree,
        upper_data: Tree,
        key: Array | None,
        *,
        error: bool = True,
    ) -> Hypergradient:
        """Compute."""
        ...


def nothing_done(like: Tree) -> SolveInfo:
    """The info of a solve that was not asked for."""
    return SolveInfo(jnp.asarray(0), jnp.asarray(0), jnp.zeros((), tree.dtype(like)), code(Status.OK))


def conclude(
    problem: Problem,
    method: str,
    *,
    grad: Tree,
    scale: Float[Array, ""],
    value: Float[Array, ""],
    w: Tree,
    v: Tree,
    lower: SolveInfo,
    adjoint: SolveInfo,
    error: Float[Array, ""] | None,
    error_info: SolveInfo,
    certificate: Certificate | None = None,
    damping: Float[Array, ""] | None = None,
) -> Hypergradient:
    """Assemble the result; the status is the first failure in causal order, and saddles are called so.

    Where the adjoint is damped, negative curvature is that of ``A + damping I`` and does not make ``w`` a saddle.
    """
    nan = jnp.asarray(jnp.nan, tree.dtype(grad))
    bound, proved, matvecs = certificate or Certificate(nan, jnp.asarray(False), jnp.asarray(0))
    if error is not None:
        # An estimate cut short by its budget may be too small, but not where it is rounding already.
        rounding = (error_info.status == Status.UNRESOLVED) & (error <= ROUNDING * tree.eps(grad) * scale)
        error_info = replace(error_info, status=jnp.where(rounding, code(Status.OK), error_info.status))
    damping = jnp.zeros_like(nan) if damping is None else damping
    is_damped = damping != 0
    statuses = [
        as_saddle(problem, lower.status),
        *(jnp.where(is_damped, info.status, as_saddle(problem, info.status)) for info in (adjoint, error_info)),
        jnp.where(tree.all_finite((grad, value)), code(Status.OK), code(Status.NONFINITE)),
        jnp.where(is_damped, code(Status.DAMPED), code(Status.OK)),
    ]
    result = Hypergradient(
        grad=grad, value=value, w=w, v=v, error=nan if error is None else error, bound=bound, proved=proved,
        scale=scale, lower=lower, adjoint=adjoint, error_info=error_info.plus(matvecs),
        status=first_failure(*statuses), method=method, damping=damping,
    )  # fmt: skip
    if error is None:
        return result
    resolved = jnp.where(result.relative_error <= RESOLVED, code(Status.OK), code(Status.UNRESOLVED))
    return replace(result, status=first_failure(result.status, resolved))


def accepts(error: Any, size: Any, scale: Any, tol: Any, atol: Any) -> Array:
    """Acceptance rule ``error <= tol * norm(grad) + atol``; ``atol`` None: ``tol * sqrt(eps) * scale``."""
    atol = tol * jnp.sqrt(jnp.finfo(error.dtype).eps) * scale if atol is None else atol
    return error <= tol * size + atol


def judged(h: Hypergradient, tol: Any, atol: Any) -> Hypergradient:
    """The result with ``TOLERANCE_UNMET`` where it is finite and not accepted."""
    unmet = ~accepts(h.error, tree.norm(h.grad), h.scale, tol, atol) & ~is_failure(h.status)
    return replace(h, status=jnp.where(unmet, code(Status.TOLERANCE_UNMET), h.status))


def _damping_in_words(h: Hypergradient) -> list[str]:
    if h.damping == 0:
        return []
    delta = f"{float(h.damping):.3g}"
    return [f"  It is damped: the adjoint solves (A^T + {delta} I) v = d_w U, and the error is the distance to that."]


def _error_in_words(h: Hypergradient) -> str:
    if jnp.isnan(h.error):
        return "its error was not estimated"
    words = f"estimated error {float(h.error):.1e}, relative {float(h.relative_error):.1e}"
    if jnp.isnan(h.bound):
        return words
    return f"{words}; at most {float(h.bound):.1e}, {'proved' if h.proved else 'by estimated constants'}"


def _solve_in_words(info: SolveInfo) -> str:
    return f"{int(info.steps)} steps, {int(info.matvecs)} matvecs, residual {float(info.residual_norm):.1e}"
