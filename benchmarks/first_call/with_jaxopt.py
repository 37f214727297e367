"""Hypergradients by jaxopt."""

from functools import partial

import jax
import jaxopt

from first_call.libraries import LONG, constant
from first_call.rows import whole

LINE_SEARCHES = ("zoom", "backtracking")
FIXED_POINTS = {"Picard": jaxopt.FixedPointIteration, "Anderson": jaxopt.AndersonAcceleration}
ADJOINTS = {
    "normal CG": jaxopt.linear_solve.solve_normal_cg,
    "GMRES": jaxopt.linear_solve.solve_gmres,
    "BiCGStab": jaxopt.linear_solve.solve_bicgstab,
}


def variants(row):
    """Line searches of L-BFGS, or solvers and adjoints of a fixed point."""
    if row.kind == "fixed_point":
        return [f"{solver}, {adjoint}" for solver in FIXED_POINTS for adjoint in ADJOINTS]
    return LINE_SEARCHES


def prepared(row, setting):
    """The call with this setting."""
    return constant(gradient(row, setting["variant"]), setting)


def gradient(row, variant):
    """The implicit function theorem at the solution of the variant's solver."""

    def of_tolerances(lam, w0, lower_data, upper_data, tolerance, adjoint_tolerance):
        solver = solver_of(row, variant, tolerance, adjoint_tolerance)

        def objective(lam):
            w = solver.run(w0, lam, lower_data).params
            return row.upper(w, lam, upper_data), w

        return jax.grad(objective, has_aux=True)(lam)

    return of_tolerances


def solver_of(row, variant, tolerance, adjoint_tolerance):
    """L-BFGS and CG with this line search, or what a fixed point takes."""
    if row.kind == "fixed_point":
        solver, adjoint = variant.split(", ")
        solve = partial(ADJOINTS[adjoint], tol=adjoint_tolerance, maxiter=LONG)
        return FIXED_POINTS[solver](row.lower, tol=tolerance, maxiter=LONG, implicit_diff_solve=solve)
    solve = partial(jaxopt.linear_solve.solve_cg, tol=adjoint_tolerance, maxiter=LONG)
    return jaxopt.LBFGS(whole(row), tol=tolerance, maxiter=LONG, linesearch=variant, implicit_diff_solve=solve)
