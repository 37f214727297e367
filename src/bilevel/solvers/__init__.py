"""Lower-level solvers ``solver(lower, lam, w0, data) -> w, SolveInfo`` on pytrees."""

from typing import Any

from bilevel.linear.operator import Preconditioner
from bilevel.problems import Lower
from bilevel.solvers.base import Solver
from bilevel.solvers.newton_cg import NewtonCG
from bilevel.solvers.newton_krylov import NewtonKrylov


def default_solver(
    lower: Lower, preconditioner: Preconditioner | None = None, rtol: Any = None, max_matvecs: Any = None
) -> Solver:
    """NewtonCG for minimizations; a few Picard steps, then Newton-GMRES for fixed points and roots."""
    solver = NewtonCG if lower.kind == "minimization" else NewtonKrylov
    return solver(rtol=rtol, preconditioner=preconditioner, max_matvecs=max_matvecs)
