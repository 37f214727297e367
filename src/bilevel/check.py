"""Is a hypergradient right? Any method on a user's problem, against the dense or the finite-difference truth."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from bilevel import tree
from bilevel.checking.derivatives import (
    SAFETY,
    against_differences,
    compare_derivatives,
    compare_symmetry,
    point,
)
from bilevel.checking.reference import (
    OF_ACCURACY,
    Reference,
    find_reference,
    honest,
    objective_differences,
    with_its_adjoint,
)
from bilevel.checking.report import Check, Part
from bilevel.hypergradient import hypergradient
from bilevel.lagrangian import Instance
from bilevel.methods.base import ROUNDING, Hypergradient
from bilevel.precision import full_precision
from bilevel.problems import Problem
from bilevel.status import ProblemError, Status

Tree = Any

DEFAULT_TOL = 1e-3
LEFT_TO_THE_METHOD = 0.5  # of the tolerance: an error estimate is right within a factor of two


@full_precision
def check_hypergradient(
    problem: Problem,
    lam: Tree,
    w0: Tree,
    *,
    lower_data: Tree = None,
    upper_data: Tree = None,
    method: Any = None,
    tol: float = DEFAULT_TOL,
    key: Array | None = None,
) -> Check:
    """Check the hypergradient of a problem by a method, and say which part of it is wrong.

    Parameters
    ----------
    problem, lam, w0, lower_data, upper_data
        As for :func:`~bilevel.hypergradient.hypergradient`.
    method
        The method to be checked; None for the automatic one, asked for half of ``tol``.
    tol
        Relative accuracy that the hypergradient, its parts and the derivatives of the user's functions are held to.
    key
        Random key of the directions and of stochastic methods.

    Returns
    -------
    Check
        ``.ok``, ``.explain()``, and for every part what was found; see there.

    Raises
    ------
    ProblemError
        The problem or an argument has the wrong form. That something is wrong with numbers is never raised.

    Notes
    -----
    Up to 2000 unknowns the truth is ``Exact``, above that central differences of the re-solved upper objective
    along four random directions; these are taken in either case, as ``Exact`` uses the derivatives of the same
    functions. Cost: for the differences some 40 to 60 solves of the lower level from a warm start.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bilevel as bl
    >>> def loss(w, lam, data):
    ...     return jnp.sum((w - data) ** 2) + jax.lax.stop_gradient(jnp.exp(lam)) * jnp.sum(w**2)
    >>> problem = bl.Problem(bl.minimization(loss), lambda w, lam, data: jnp.sum((w - 1) ** 2))
    >>> check = bl.check_hypergradient(problem, 0.5, jnp.zeros(2), lower_data=jnp.array([1.0, 2.0]))
    >>> check.ok, [part.name for part in check.wrong]
    (False, ['finite differences', 'cross derivative'])
    """
    if not 0 < tol < 1:
        raise ProblemError(f"tol must lie between 0 and 1, but is {tol:g}.")
    key = jax.random.key(0) if key is None else key
    for_method, for_directions = jax.random.split(key)
    lam, w0 = tree.strong((lam, w0))
    h = hypergradient(
        problem, lam, w0, lower_data=lower_data, upper_data=upper_data, method=method, key=for_method,
        tol=LEFT_TO_THE_METHOD * tol if method is None else None, on_failure="keep",
    )  # fmt: skip
    at = Instance(honest(problem), lam, lower_data, upper_data)
    reference = find_reference(at, h.w if _finite(h.w) else w0)
    truth = reference.h.grad if not reference.trouble else h.grad
    where = point(at, *_best(h, reference, w0), for_directions)
    objective = objective_differences(at, reference.h, where, tol)
    slopes = np.asarray(jax.vmap(lambda z: tree.dot(truth, z))(where.z_lam), np.float64)
    solution, adjoint = _causes(at, h, reference, tol)
    distances = _distances(at, h, reference)
    return Check(
        method=h.method,
        tol=tol,
        truth="Exact" if reference.how == "Exact" and not reference.trouble else "finite differences",
        hypergradient=_whole(h, reference, tol),
        differences=against_differences("finite differences", "re-solved objective", slopes, objective, tol),
        solution=solution,
        adjoint=adjoint,
        symmetry=compare_symmetry(at._replace(problem=problem), where),
        **compare_derivatives(at, where, tol)._asdict(),
        order=_typical(objective.order),
        noise=float(np.max(objective.noise)),
        distance=distances.w,
        residual_norm=distances.residual,
        reference_residual_norm=float(reference.h.lower.residual_norm),
        adjoint_residual_norm=distances.adjoint_residual,
    )


def _typical(order: np.ndarray) -> float:
    """The median of what is known; NaN where nothing is."""
    known = order[np.isfinite(order)]
    return float(np.median(known)) if known.size else np.nan


def _finite(w: Tree) -> bool:
    return bool(tree.all_finite(w))


def _best(h: Hypergradient, reference: Reference, w0: Tree) -> tuple[Tree, Tree]:
    """The point at which derivatives are compared: what the method found, else the reference, else the start."""
    for w, v in ((h.w, h.v), (reference.h.w, reference.h.v)):
        if _finite(w):
            return w, v
    return w0, tree.zeros_like(w0)


def _size(truth: Hypergradient) -> float:
    """Norm of the true gradient, but of one that cancels what rounding leaves of its terms."""
    return max(float(tree.norm(truth.grad)), tree.eps(truth.grad) ** 0.5 * float(truth.scale))


def _part(name: str, what: str, distance: Any, reference: Reference, tol: float, status: Any) -> Part:
    """An error of the hypergradient in units of the true one; a failure is one of any size."""
    outcome, size = Status(int(status)), _size(reference.h)
    remark = outcome.sentence if outcome.failed else ""
    if reference.trouble:
        remark = remark or f"There is no reference: {reference.trouble}"
        return Part(name, what, np.inf if outcome.failed else np.nan, tol, remark)
    rounding = ROUNDING * tree.eps(reference.h.grad) * float(reference.h.scale) + SAFETY * float(reference.h.error)
    limit = tol if size == 0 else tol + rounding / size
    error = float(distance) / size if size > 0 else float(distance)
    error = np.inf if np.isnan(error) or outcome not in OF_ACCURACY else error
    return Part(name, what, error, limit, remark if error > limit else "")


def _whole(h: Hypergradient, reference: Reference, tol: float) -> Part:
    distance = tree.norm(tree.sub(h.grad, reference.h.grad))
    return _part("hypergradient", f"against {reference.how}", distance, reference, tol, h.status)


def _causes(at: Instance, h: Hypergradient, reference: Reference, tol: float) -> tuple[Part, Part]:
    """The error of the hypergradient as what ``w`` causes and what is left for the adjoint.

    ``grad - true = [g(w) - true] + [grad - g(w)]`` with ``g(w)`` the hypergradient at w with its exact adjoint.
    """
    between = with_its_adjoint(at, h.w)
    from_w, from_v = tree.sub(between, reference.h.grad), tree.sub(h.grad, between)
    return (
        _part("solution", "error due to w", tree.norm(from_w), reference, tol, h.lower.status),
        _part("adjoint", "error due to v", tree.norm(from_v), reference, tol, h.adjoint.status),
    )


class _Distances(NamedTuple):
    w: float
    residual: float
    adjoint_residual: float


def _distances(at: Instance, h: Hypergradient, reference: Reference) -> _Distances:
    """How far ``w`` is from the solution, and both residuals at what was found."""
    away, size, residual, adjoint_residual = map(float, _norms(at, h.w, h.v, reference.h.w))
    distance = np.nan if reference.trouble else away / size if size > 0 else away
    return _Distances(distance, residual, adjoint_residual)


@jax.jit
def _norms(at: Instance, w: Tree, v: Tree, true_w: Tree) -> tuple[Array, Array, Array, Array]:
    F, A = at.linearize(w)
    adjoint = tree.sub(A.mv_transpose(v), at.upper_gradient(w)[1])
    return tree.norm(tree.sub(w, true_w)), tree.norm(true_w), tree.norm(F), tree.norm(adjoint)
