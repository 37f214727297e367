"""What a JAX user writes without a library: Newton-CG, a dense Newton's method or Picard, in one compiled program.

No error estimate; the tolerances are searched like those of the libraries.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_factor, cho_solve
from jax.scipy.sparse.linalg import cg

from first_call.libraries import LONG, constant
from first_call.rows import whole

NEWTON_STEPS, HALVINGS = 100, 30
DENSE, PICARD = "dense Newton", "Picard, Richardson"
EXACT = (DENSE,)  # variants without a tolerance of the adjoint
FORCINGS = {f"Newton-CG, {forcing:g}": forcing for forcing in (0.1, 0.01, 1e-4, 1e-7)}  # relative residuals of its CG


def variants(row):
    """How accurate the linear systems of Newton-CG are; one method elsewhere."""
    if row.kind == "fixed_point":
        return [PICARD]
    return [DENSE] if row.dense else FORCINGS


def prepared(row, setting):
    """The call with this setting."""
    return constant(gradient(row, setting["variant"]), setting)


def gradient(row, variant):
    """The function of the tolerances."""
    if row.kind == "fixed_point":
        return partial(fixed_point, row.lower, row.upper)
    if row.dense:
        return partial(dense_newton, whole(row), row.upper)
    return partial(newton_cg, whole(row), row.upper, FORCINGS[variant])


def newton_cg(loss, upper, forcing, lam, w0, lower_data, upper_data, tolerance, adjoint_tolerance):
    """Newton-CG until the gradient is at most the tolerance, then CG for the adjoint."""
    w0, unravel = ravel_pytree(w0)

    def f(w, lam):
        return loss(unravel(w), lam, lower_data)

    def product(w):
        return lambda p: jax.jvp(lambda w: jax.grad(f)(w, lam), (w,), (p,))[1]

    def direction(w, g):
        return cg(product(w), -g, tol=forcing, maxiter=LONG)[0]

    w = newton(lambda w: f(w, lam), direction, w0, tolerance)
    slope, direct = jax.grad(lambda w, lam: upper(unravel(w), lam, upper_data), (0, 1))(w, lam)
    v = cg(product(w), slope, tol=adjoint_tolerance, maxiter=LONG)[0]
    return total_derivative(f, w, lam, v, direct), unravel(w)


def dense_newton(loss, upper, lam, w0, lower_data, upper_data, tolerance, **_):
    """Newton's method by Cholesky factors, which serve the adjoint, too."""
    w0, unravel = ravel_pytree(w0)

    def f(w, lam):
        return loss(unravel(w), lam, lower_data)

    def solve(w, b):
        return cho_solve(cho_factor(jax.hessian(f)(w, lam)), b)

    w = newton(lambda w: f(w, lam), lambda w, g: -solve(w, g), w0, tolerance)
    slope, direct = jax.grad(lambda w, lam: upper(unravel(w), lam, upper_data), (0, 1))(w, lam)
    return total_derivative(f, w, lam, solve(w, slope), direct), unravel(w)


def newton(f, direction, w0, tolerance):
    """Steps along the direction, halved until the loss falls enough, up to its rounding."""

    def going(state):
        _, _, g, steps = state
        return (jnp.linalg.norm(g) > tolerance) & (steps < NEWTON_STEPS)

    def step(state):
        w, value, g, steps = state
        p = direction(w, g)
        enough = 1e-4 * jnp.vdot(g, p)

        def too_long(size):
            falls = f(w + size * p) <= value + size * enough + 1e-14 * jnp.abs(value)
            return ~falls & (size > 0.5**HALVINGS)

        w = w + jax.lax.while_loop(too_long, lambda size: size / 2, jnp.ones_like(value)) * p
        return w, *jax.value_and_grad(f)(w), steps + 1

    return jax.lax.while_loop(going, step, (w0, *jax.value_and_grad(f)(w0), 0))[0]


def total_derivative(f, w, lam, v, direct):
    """The upper gradient less the derivative of the lower one along the adjoint."""
    through = jax.vjp(lambda lam: jax.grad(f)(w, lam), lam)[1](v)[0]
    return jax.tree.map(jnp.subtract, direct, through)


def fixed_point(mapping, upper, lam, w0, lower_data, upper_data, tolerance, adjoint_tolerance):
    """Picard's iteration, then Richardson's with the transposed Jacobian, until steps are relatively small."""
    w = iterate(lambda w: mapping(w, lam, lower_data), w0, tolerance)
    slope, direct = jax.grad(upper, (0, 1))(w, lam, upper_data)
    back = jax.vjp(lambda w, lam: mapping(w, lam, lower_data), w, lam)[1]
    v = iterate(lambda v: back(v)[0] + slope, slope, adjoint_tolerance)
    return jax.tree.map(jnp.add, direct, back(v)[1]), w


def iterate(mapping, x, tolerance):
    """The map again and again until it moves ``x`` by at most the tolerance, relatively."""

    def going(state):
        x, before, steps = state
        return (jnp.linalg.norm(x - before) > tolerance * jnp.linalg.norm(x)) & (steps < LONG)

    return jax.lax.while_loop(going, lambda state: (mapping(state[0]), state[0], state[2] + 1), (mapping(x), x, 0))[0]
