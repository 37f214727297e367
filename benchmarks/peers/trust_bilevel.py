"""The trust table by this library."""

from functools import cache, partial

import jax
import jax.numpy as jnp
from trust_harness import run

import bilevel as bl


@cache
def problem(kind, function, step):
    if kind == "minimization":
        lower = bl.minimization(lambda w, lam, data: function(jnp, w, lam, data), step=step)
    else:
        lower = bl.fixed_point(lambda w, lam, data: function(jnp, w, lam, data))
    return bl.Problem(lower, lambda w, _, t: 0.5 * jnp.sum((w - t) ** 2))


def automatic(fault, **options):
    data, t, w0 = jax.tree.map(jnp.asarray, (fault.data, fault.t, fault.w0))
    lam = jnp.asarray(fault.lam, w0.dtype)
    at = problem(fault.kind, fault.function, fault.step)
    h = bl.hypergradient(at, lam, w0, lower_data=data, upper_data=t, **options)
    return h.grad, float(h.relative_error)


if __name__ == "__main__":
    settings = {"default": automatic, "tol=1e-6": partial(automatic, tol=1e-6)}
    run({"minimization": settings, "fixed_point": settings})
