"""A fixed method, for use inside transformations, chosen by running the automatic one."""

from typing import Any

import jax

from bilevel import tree
from bilevel.hypergradient import DEFAULT_TOL, hypergradient
from bilevel.linear.cg import CG
from bilevel.linear.dense import Dense
from bilevel.linear.gmres import GMRES
from bilevel.linear.operator import LinearSolver
from bilevel.methods.aid import AID
from bilevel.methods.base import Hypergradient
from bilevel.problems import Lower, Problem
from bilevel.solvers import default_solver
from bilevel.status import Status

Tree = Any

DENSE = 300  # unknowns up to which A is factorized
MARGIN = 0.1  # part of the tolerance that is used, for problems a little harder than the one at hand
TIGHTER = 0.1  # from the tolerances of one trial to those of the next


def plan(
    problem: Problem,
    lam: Tree,
    w0: Tree,
    *,
    lower_data: Tree = None,
    upper_data: Tree = None,
    tol: float = DEFAULT_TOL,
    atol: Any = None,
    max_matvecs: Any = None,
) -> AID:
    """Method with fixed tolerances that meets ``tol`` on this problem with a margin; eager only.

    Under ``jit`` the automatic method carries its probe and its loops along, under ``vmap`` all of them for every
    problem. What this returns does not, and is a pytree that passes through both. It suits problems like the one it was
    made for; each result still says its own error, and ``tol=`` given with the method holds it to that.

    Parameters
    ----------
    problem, lam, w0, lower_data, upper_data
        A problem of the kind to come; see :func:`~bilevel.hypergradient.hypergradient`.
    tol, atol
        Accuracy, as there.
    max_matvecs
        Budget of the automatic method, which is run first.

    Returns
    -------
    AID
        The default solver of the lower level, a dense factorization up to 300 unknowns, else CG or GMRES, one
        refinement, and the loosest tolerances found by trials that reach a tenth of ``tol``.

    Raises
    ------
    ConvergenceError
        The automatic method failed, or no tolerances will do; ``.result`` holds the last hypergradient.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bilevel as bl
    >>> lower = bl.minimization(lambda w, lam, data: jnp.sum((w - data) ** 2) + lam * jnp.sum(w**2))
    >>> problem = bl.Problem(lower, lambda w, lam, data: jnp.sum((w - data) ** 2))
    >>> train, valid = jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0])
    >>> data = {"lower_data": train, "upper_data": valid}
    >>> method = bl.plan(problem, 0.5, jnp.zeros(2), **data)
    >>> many = jax.vmap(lambda lam: bl.hypergradient(problem, lam, jnp.zeros(2), method=method, **data).grad)
    >>> print(many(jnp.array([0.5, 2.0])).round(4))
    [-0.5926  0.1481]
    """
    data = {"lower_data": lower_data, "upper_data": upper_data}
    hypergradient(problem, lam, w0, tol=tol, atol=atol, max_matvecs=max_matvecs, **data)

    def trial(rtol: float) -> tuple[AID, Hypergradient]:
        method = AID(default_solver(problem.lower, rtol=rtol), _linear_solver(problem.lower, w0, rtol), refine=1)
        wish = {"tol": MARGIN * tol, "atol": atol, "on_failure": "keep"}
        return method, hypergradient(problem, lam, w0, method=method, **wish, **data)

    rtol = MARGIN * tol**0.5  # the refinement squares the error
    method, h = trial(rtol)
    # Tighter solves mend an error that is too large; what else fails would fail again.
    while Status(int(h.status)) == Status.TOLERANCE_UNMET and rtol > tree.eps(w0):
        rtol *= TIGHTER
        method, h = trial(rtol)
    h.raise_if_failed()
    return jax.device_get(method)


def _linear_solver(lower: Lower, w0: Tree, rtol: float) -> LinearSolver:
    if tree.size(w0) <= DENSE and lower.members is None:
        return Dense()
    return CG(rtol=rtol) if lower.kind == "minimization" else GMRES(rtol=rtol)
