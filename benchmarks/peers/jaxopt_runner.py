"""Hypergradients by jaxopt."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxopt
from harness import run
from jax_losses import lower, start, tables, upper


def implicit(inputs, steps, products):
    """Gradient descent, the implicit function theorem and CG."""
    solver = descent(
        inputs, steps, implicit_diff_solve=partial(jaxopt.linear_solve.solve_cg, maxiter=products, tol=0.0)
    )
    return gradient(inputs, minimizer(solver))


def unrolled(inputs, steps):
    """Reverse mode through gradient descent."""
    return gradient(inputs, minimizer(descent(inputs, steps, implicit_diff=False)))


def scanned(inputs, steps):
    """Reverse mode through a scan of the descent's update."""
    solver = descent(inputs, steps)

    def solve(w0, lam, data):
        start = w0, solver.init_state(w0, lam, data)
        return jax.lax.scan(lambda state, _: (tuple(solver.update(*state, lam, data)), None), start, length=steps)[0][0]

    return gradient(inputs, solve)


def lbfgs(inputs, tolerance, adjoint_tolerance, linesearch):
    """L-BFGS, the implicit function theorem and CG."""
    solve = partial(jaxopt.linear_solve.solve_cg, tol=adjoint_tolerance, maxiter=1000)
    solver = jaxopt.LBFGS(lower, tol=tolerance, maxiter=1000, linesearch=linesearch, implicit_diff_solve=solve)
    return gradient(inputs, minimizer(solver))


def descent(inputs, steps, **options):
    return jaxopt.GradientDescent(
        lower, stepsize=float(inputs.step), maxiter=steps, tol=0.0, acceleration=False, **options
    )


def minimizer(solver):
    return lambda w0, lam, data: solver.run(w0, lam, data).params


def gradient(inputs, solve):
    """Gradient of the upper level through ``solve(w0, lam, data)``."""
    train, valid = tables(inputs)
    lam, w0 = jnp.asarray(inputs.lam), jnp.asarray(inputs.w0)

    @jax.jit
    def compiled(lam, w0, train, valid):
        return jax.grad(lambda lam: upper(solve(w0, lam, train), valid))(lam)

    return lambda: (compiled(lam, w0, train, valid).block_until_ready(), None)


if __name__ == "__main__":
    start()
    run({"implicit": implicit, "unrolled": unrolled, "scanned": scanned, "L-BFGS": lbfgs})
