"""Lower-level solvers ``solver(lower, lam, w0, data) -> w, SolveInfo`` on pytrees."""

from bilevel.problems import Lower
from bilevel.solvers.base import Solver
from bilevel.solvers.newton_cg import NewtonCG
from bilevel.solvers.newton_krylov import NewtonKrylov


def default_solver(lower: Lower) -> Solver:
    """NewtonCG for minimizations; a few Picard steps, then Newton-GMRES for fixed points and roots."""
    return NewtonCG() if lower.kind == "minimization" else NewtonKrylov()
