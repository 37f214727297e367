"""Hypergradients by optimistix, with lineax for the adjoint."""

import jax
import lineax as lx
import optimistix as optx

from first_call.libraries import LONG, constant
from first_call.rows import whole

FIXED_POINTS = ("Picard", "Newton")
ADJOINTS = {"GMRES": lx.GMRES, "BiCGStab": lx.BiCGStab}
INNER = 1e-2  # relative residual of the linear systems of Newton's method


def variants(row):
    """L-BFGS, or solvers and adjoints of a fixed point."""
    if row.kind == "fixed_point":
        return [f"{solver}, {adjoint}" for solver in FIXED_POINTS for adjoint in ADJOINTS]
    return ["L-BFGS"]


def prepared(row, setting):
    """The call with this setting."""
    return constant(gradient(row, setting["variant"]), setting)


def gradient(row, variant):
    """The implicit function theorem at the solution of the variant's solver."""
    solve = fixed_point if row.kind == "fixed_point" else minimum

    def of_tolerances(lam, w0, lower_data, upper_data, tolerance, adjoint_tolerance):
        def objective(lam):
            w = solve(row, variant, tolerance, adjoint_tolerance, w0, (lam, lower_data))
            return row.upper(w, lam, upper_data), w

        return jax.grad(objective, has_aux=True)(lam)

    return of_tolerances


def minimum(row, _variant, tolerance, adjoint_tolerance, w0, args):
    """L-BFGS and CG."""
    solver = optx.LBFGS(rtol=tolerance, atol=tolerance)
    adjoint = optx.ImplicitAdjoint(lx.CG(rtol=adjoint_tolerance, atol=adjoint_tolerance))
    return optx.minimise(
        lambda w, args: whole(row)(w, *args), solver, w0, args=args, max_steps=LONG, adjoint=adjoint, throw=False,
        tags=frozenset({lx.positive_semidefinite_tag}),
    ).value  # fmt: skip


def fixed_point(row, variant, tolerance, adjoint_tolerance, w0, args):
    """A fixed point; the linear systems of Newton's method by the adjoint's solver."""
    name, adjoint = variant.split(", ")
    linear = ADJOINTS[adjoint]
    if name == "Newton":
        inner = linear(rtol=INNER, atol=INNER * tolerance)
        solver = optx.Newton(rtol=tolerance, atol=tolerance, linear_solver=inner)
    else:
        solver = optx.FixedPointIteration(rtol=tolerance, atol=tolerance)
    return optx.fixed_point(
        lambda w, args: row.lower(w, *args), solver, w0, args=args, max_steps=LONG,
        adjoint=optx.ImplicitAdjoint(linear(rtol=adjoint_tolerance, atol=adjoint_tolerance)), throw=False,
    ).value  # fmt: skip
