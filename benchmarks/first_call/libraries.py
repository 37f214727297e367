"""The libraries of ``benchmarks/first_call.py``, and what an adapter of one offers.

An adapter is a module of this folder. Its ``prepared(row, setting)`` makes ``call(lam, w0, v0, lower_data,
upper_data) -> Answer`` with the setting's numbers as constants. That of a library whose settings are searched has
``variants(row)``, too, and ``gradient(row, variant)``, a function of ``(lam, w0, lower_data, upper_data, tolerance,
adjoint_tolerance)`` that can be compiled once for all tolerances and returns the hypergradient and the solution.
"""

from functools import partial
from typing import Any, NamedTuple

import jax

BY_HAND = "jax"  # written in JAX by hand
ADAPTERS = {
    "bilevel": "with_bilevel",
    "jaxopt": "with_jaxopt",
    "optimistix": "with_optimistix",
    BY_HAND: "by_hand",
}
ACCURACY = 1e-6
CALLS = 30  # from the first on, each from the solution of the one before
COLD_CALLS = 20  # at most so many more, each from the first start
BUDGET, LEAST = 3.0, 3  # seconds after which no cold call is begun, and how many there are at least
LONG = 1000  # at most so many iterations of a solver, so many products of an adjoint


class Answer(NamedTuple):
    """One hypergradient; what a warm start takes; what else the library returned."""

    grad: Any
    w: Any
    v: Any = None
    report: Any = None


def constant(gradient, setting):
    """The ``call`` of an adapter from its ``gradient``, compiled as a user would: tolerances are Python's floats."""
    names = ("tolerance", "adjoint_tolerance")
    compiled = jax.jit(partial(gradient, **{name: setting[name] for name in names}))

    def call(lam, w0, _v0, lower_data, upper_data):
        return Answer(*compiled(lam, w0, lower_data, upper_data))

    return call
