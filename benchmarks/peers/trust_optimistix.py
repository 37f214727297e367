"""The trust table by optimistix, with its default adjoint; it has no default tolerances."""

from functools import cache

import jax
import jax.numpy as jnp
import optimistix as optx
from trust_harness import run


def by(solve, make, tolerance):
    """Hypergradient through ``solve(function, make(tolerance, tolerance), ...)``, which raises where it fails."""

    @cache
    def compiled(function):
        solver = make(tolerance, tolerance)

        def value(lam, w0, data, t):
            solution = solve(lambda w, args: function(jnp, w, *args), solver, w0, args=(lam, data))
            return 0.5 * jnp.sum((solution.value - t) ** 2)

        return jax.jit(jax.grad(value))

    def compute(fault):
        data, t, w0 = jax.tree.map(jnp.asarray, (fault.data, fault.t, fault.w0))
        return compiled(fault.function)(jnp.asarray(fault.lam, w0.dtype), w0, data, t), None

    return compute


if __name__ == "__main__":
    run(
        {
            "minimization": {
                "BFGS, 1e-5": by(optx.minimise, optx.BFGS, 1e-5),
                "BFGS, 1e-10": by(optx.minimise, optx.BFGS, 1e-10),
            },
            "fixed_point": {
                "FixedPointIteration, 1e-5": by(optx.fixed_point, optx.FixedPointIteration, 1e-5),
                "Newton, 1e-10": by(optx.fixed_point, optx.Newton, 1e-10),
            },
        }
    )
