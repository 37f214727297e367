"""True hypergradients of a problem, by means of no library: ``python -m first_call.truth ROW FOLDER``.

The solution for the first hyperparameters comes from Newton's method with a dense Hessian. Its factors then serve all
other hyperparameters, which are near, and the adjoints: corrections by them go on until they are as small as rounding
lets them be, which checks the residuals. Of a fixed point the corrections are its own iterations.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree

from first_call.libraries import CALLS
from first_call.problem import flat, load, save_truths
from first_call.rows import ROWS, whole

NEWTON_STEPS, HALVINGS, CORRECTIONS = 50, 30, 3000
SMALL, ENOUGH = 1e-14, 1e-11  # relative corrections: where one stops, what there must be where they fall no more


class Equations:
    """``F(w, lam) = 0`` on flat ``w``: the gradient of a loss, or ``w`` less its map."""

    def __init__(self, row, problem):
        self.w0, unravel = ravel_pytree(problem["w0"])
        lower, self.fixed_point = whole(row), row.kind == "fixed_point"

        def loss(w, lam, data):
            return lower(unravel(w), lam, data)

        def displacement(w, lam, data):
            return w - ravel_pytree(lower(unravel(w), lam, data))[0]

        def upper(w, lam, data):
            return row.upper(unravel(w), lam, data)

        F = displacement if self.fixed_point else jax.grad(loss)
        data, upper_data = problem["lower_data"], problem["upper_data"]
        self.loss = partial(jax.jit(loss), data=data)
        self.residual = partial(jax.jit(F), data=data)
        self.jacobian = partial(jax.jit(jax.jacfwd(F)), data=data)
        self.transposed = partial(jax.jit(lambda w, lam, v, data: jax.vjp(F, w, lam, data)[1](v)[:2]), data=data)
        self.slopes = partial(jax.jit(jax.grad(upper, argnums=(0, 1))), data=upper_data)


def main():
    row, folder = ROWS[sys.argv[1]], Path(sys.argv[2])
    problem = jax.device_put(load(folder))
    save_truths(np.stack([flat(grad) for grad in hypergradients(Equations(row, problem), problem["lams"])]), folder)


def hypergradients(equations, lams):
    """Those of all calls that are judged."""
    w, solve = equations.w0, lambda b: b
    if not equations.fixed_point:
        w, solve = newton(equations, w, lams[0])
    for lam in lams[:CALLS]:
        w = corrected(w, partial(equations.residual, lam=lam), solve)
        slope, direct = equations.slopes(w, lam)
        v = corrected(slope, lambda v, w=w, lam=lam, b=slope: equations.transposed(w, lam, v)[0] - b, solve)
        yield jax.tree.map(jnp.subtract, direct, equations.transposed(w, lam, v)[1])


def newton(equations, w, lam):
    """The solution by damped steps, and what solves with the Hessian there."""
    for _ in range(NEWTON_STEPS):
        factors = scipy.linalg.cho_factor(equations.jacobian(w, lam))
        step = scipy.linalg.cho_solve(factors, equations.residual(w, lam))
        if np.linalg.norm(step) <= 1e-9 * np.linalg.norm(w):
            return w, partial(scipy.linalg.cho_solve, factors)
        sizes = 0.5 ** np.arange(HALVINGS)
        value = equations.loss(w, lam)
        w = next((w - size * step for size in sizes if equations.loss(w - size * step, lam) <= value), w)
    raise RuntimeError("Newton's method does not converge.")


def corrected(x, residual, solve):
    """``x`` less ``solve(residual(x))`` until that is small, or as small as it gets."""
    last = np.inf
    for _ in range(CORRECTIONS):
        step = solve(residual(x))
        x = x - step
        size = np.linalg.norm(step) / np.linalg.norm(x)
        if size <= SMALL or last <= size <= ENOUGH:
            return x
        last = size
    raise RuntimeError(f"The corrections are still of size {last:.1e}.")


if __name__ == "__main__":
    main()
