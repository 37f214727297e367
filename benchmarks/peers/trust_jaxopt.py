"""The trust table by jaxopt, differentiated implicitly as by its defaults."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import jaxopt
from trust_harness import run


def by(make, step=False):
    """Hypergradient through the solver ``make(function)``; ``step`` where it takes the one that the user gives."""

    @cache
    def compiled(function, stepsize):
        solver = make(partial(function, jnp), **({} if stepsize is None else {"stepsize": stepsize}))

        def value(lam, w0, data, t):
            return 0.5 * jnp.sum((solver.run(w0, lam, data).params - t) ** 2)

        return jax.jit(jax.grad(value))

    def compute(fault):
        data, t, w0 = jax.tree.map(jnp.asarray, (fault.data, fault.t, fault.w0))
        grad = compiled(fault.function, fault.step if step else None)
        return grad(jnp.asarray(fault.lam, w0.dtype), w0, data, t), None

    return compute


def tight(solver, **options):
    return lambda function, **given: solver(function, tol=1e-10, maxiter=10_000, **options, **given)


if __name__ == "__main__":
    run(
        {
            "minimization": {
                "GradientDescent": by(jaxopt.GradientDescent, step=True),
                "LBFGS": by(jaxopt.LBFGS),
                "LBFGS, tol=1e-10": by(tight(jaxopt.LBFGS)),
            },
            "fixed_point": {
                "FixedPointIteration": by(jaxopt.FixedPointIteration),
                "AndersonAcceleration": by(jaxopt.AndersonAcceleration),
                "AndersonAcceleration, tol=1e-10": by(tight(jaxopt.AndersonAcceleration)),
            },
        }
    )
