"""Hypergradients by optimistix, with lineax for the adjoint."""

import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from harness import run
from jax_losses import lower, start, tables, upper

SOLVERS = {"BFGS": optx.BFGS, "L-BFGS": optx.LBFGS}


def implicit(inputs, steps, products):
    """Gradient descent, the implicit function theorem and CG; every residual by recursion."""
    cg = lx.CG(rtol=0.0, atol=0.0, max_steps=products, stabilise_every=None)
    return gradient(inputs, descent(inputs), steps + 1, optx.ImplicitAdjoint(cg))


def unrolled(inputs, steps):
    """Reverse mode through gradient descent, with as many checkpoints as steps."""
    return gradient(inputs, descent(inputs), steps + 1, optx.RecursiveCheckpointAdjoint(checkpoints=steps + 1))


def checkpointed(inputs, steps):
    """Reverse mode through gradient descent, with the default number of checkpoints."""
    return gradient(inputs, descent(inputs), steps + 1, optx.RecursiveCheckpointAdjoint())


def quasi_newton(inputs, solver, tolerance, adjoint_tolerance):
    """BFGS or L-BFGS, the implicit function theorem and CG."""
    cg = lx.CG(rtol=adjoint_tolerance, atol=0.0)
    return gradient(inputs, SOLVERS[solver](rtol=tolerance, atol=tolerance), 1000, optx.ImplicitAdjoint(cg))


def descent(inputs):
    return optx.GradientDescent(float(inputs.step), rtol=0.0, atol=0.0)


def gradient(inputs, solver, max_steps, adjoint):
    train, valid = tables(inputs)
    lam, w0 = jnp.asarray(inputs.lam), jnp.asarray(inputs.w0)

    @jax.jit
    def compiled(lam, w0, train, valid):
        def objective(lam):
            solution = optx.minimise(
                lambda w, args: lower(w, *args), solver, w0, args=(lam, train), max_steps=max_steps, adjoint=adjoint,
                throw=False, tags=frozenset({lx.positive_semidefinite_tag}),
            )  # fmt: skip
            return upper(solution.value, valid)

        return jax.grad(objective)(lam)

    return lambda: (compiled(lam, w0, train, valid).block_until_ready(), None)


if __name__ == "__main__":
    start()
    run({"implicit": implicit, "unrolled": unrolled, "checkpointed": checkpointed, "quasi-Newton": quasi_newton})
