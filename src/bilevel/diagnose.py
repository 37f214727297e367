"""What kind of lower level is this, and which method fits it at which cost."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import citations, tree
from bilevel.checking.reference import with_its_adjoint
from bilevel.diagnosis.facts import Facts, measure
from bilevel.diagnosis.predict import Start, memory_of_automatic, predict
from bilevel.diagnosis.report import Diagnosis, Recommendation
from bilevel.hypergradient import DEFAULT_TOL, hypergradient
from bilevel.lagrangian import Instance
from bilevel.linear.spectral import largest_eigenvalue
from bilevel.methods.base import Hypergradient
from bilevel.precision import full_precision
from bilevel.problems import Problem, leaves_used, validate_lower
from bilevel.status import ProblemError, Status

Tree = Any


@full_precision
def diagnose(
    problem: Problem,
    lam: Tree,
    w0: Tree,
    *,
    lower_data: Tree = None,
    upper_data: Tree = None,
    tol: float = DEFAULT_TOL,
    max_matvecs: int | None = None,
) -> Diagnosis:
    """Look at a problem: its lower level, the method to use, and what others would take.

    Parameters
    ----------
    problem, lam, w0, lower_data, upper_data
        As for :func:`~bilevel.hypergradient.hypergradient`.
    tol
        Relative accuracy of the hypergradient that methods are judged by.
    max_matvecs
        Budget of the recommended method, which is run.

    Returns
    -------
    Diagnosis
        ``.explain()``, and everything in it as numbers.

    Raises
    ------
    ProblemError
        The problem or an argument has the wrong form. What is wrong with the mathematics is in the report.

    Notes
    -----
    Cost: one hypergradient; up to 300 unknowns one dense Jacobian and its decomposition, above that 32 to 128
    Lanczos steps, twice as many products and more on nonsymmetric problems; one adjoint solve at ``w0``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bilevel as bl
    >>> lower = bl.minimization(lambda w, lam, data: jnp.sum(data * w**2) + lam * jnp.sum((w - 1) ** 2))
    >>> problem = bl.Problem(lower, lambda w, lam, data: jnp.sum(w**2))
    >>> report = bl.diagnose(problem, 1.0, jnp.zeros(3), lower_data=jnp.array([0.0, 1.0, 3.0]))
    >>> print(f"{report.facts.condition:.1f} {report.facts.radius:.2f}")
    4.0 0.60
    """
    if not tol > 0:
        raise ProblemError(f"tol must be positive, but is {tol:g}.")
    lam, w0 = tree.strong((lam, w0))
    jax.eval_shape(validate_lower, problem.lower, lam, w0, lower_data)
    reaches = _reaches(problem, lam, w0, lower_data)
    h = None
    if any(reaches.values()):
        h = hypergradient(
            problem, lam, w0, lower_data=lower_data, upper_data=upper_data, tol=tol, max_matvecs=max_matvecs,
            on_failure="keep",
        )  # fmt: skip
    at = Instance(problem, lam, lower_data, upper_data)
    w = h.w if h is not None and bool(tree.all_finite(h.w)) else w0
    facts = measure(at, w)
    alternatives = []
    if h is not None and not Status(int(h.status)).failed:
        alternatives = predict(at, w, facts, _start(at, w0, h), tol, int(h.lower.matvecs))
    return Diagnosis(
        kind=problem.lower.kind,
        promised_symmetric=problem.lower.symmetric,
        hyperparameters=tree.size(lam),
        dtype=str(tree.dtype(w0)),
        tol=tol,
        reaches=reaches,
        facts=facts,
        recommendation=None if h is None else _recommend(at, w, h, facts),
        alternatives=alternatives,
    )


def _reaches(problem: Problem, lam: Tree, w0: Tree, data: Tree) -> dict[str, bool]:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(lam)]
    return dict(zip(paths, leaves_used(problem.lower.residual, w0, lam, data), strict=True))


def _start(at: Instance, w0: Tree, h: Hypergradient) -> Start:
    """What the start and a zero adjoint are wrong by, relative to the hypergradient."""
    size = float(tree.norm(h.grad)) or 1.0
    from_w, from_v, largest = map(float, _start_errors(at, w0, h.w, h.grad))
    return Start(from_w / size, from_v / size, largest)


@jax.jit
def _start_errors(at: Instance, w0: Tree, w: Tree, grad: Tree) -> tuple[Array, Array, Float[Array, ""]]:
    direct = jax.grad(at.problem.upper, argnums=1)(w, at.lam, at.upper_data)
    _, A = at.linearize(w0)
    largest = largest_eigenvalue(A, w0)[0] if at.problem.lower.symmetric else jnp.zeros(())
    first = with_its_adjoint(at, w0)
    return tree.norm(tree.sub(first, grad)), tree.norm(tree.sub(grad, direct)), largest


def _recommend(at: Instance, w: Tree, h: Hypergradient, facts: Facts) -> Recommendation:
    status = Status(int(h.status))
    minimization = at.problem.lower.kind == "minimization"
    papers = [citations.GRAZZI_2020, citations.PEDREGOSA_2016, citations.EISENSTAT_WALKER]
    papers += [citations.HESTENES_STIEFEL] if minimization else [citations.KNOLL_KEYES, citations.SAAD_SCHULTZ]
    spent = int(h.matvecs)
    return Recommendation(
        method=None,
        name=h.method,
        matvecs=spent,
        memory=memory_of_automatic(at, w, facts, spent),
        relative_error=float(h.relative_error),
        trouble=status.sentence if status.failed else "",
        papers=tuple(papers),
    )
