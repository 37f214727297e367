"""The fault table: every answer is right to the tolerance asked for, or loudly refused, and only what must be is.

The tolerance is data: no group of faults is compiled more than once.
"""

from functools import cache

import affine_faults
import jax.numpy as jnp
import nonlinear_faults
import numpy as np
import pytest
from fault_oracle import dense_truth, residual, solve_exactly

import bilevel as bl
from bilevel.status import Status

TOLERANCES = (1e-2, 1e-4, 1e-6, 1e-8)
SILENT = 10.0  # times the tolerance: beyond it an answer without a flag is a lie


def only(faults, *names):
    return {name: faults[name] for name in names}


GROUPS = {
    "map": affine_faults.maps(8),
    "symmetric root": affine_faults.symmetric_roots(8),
    "quadratic loss": affine_faults.quadratics(20),
    "loss": nonlinear_faults.losses(),
    "nonlinear map": nonlinear_faults.maps(),
    # Too large to be factorized at once.
    "large map": only(affine_faults.maps(400), "condition 1e8"),
    "large quadratic loss": only(
        affine_faults.quadratics(400), "ordinary", "condition 1e8", "singular, many solutions",
        "singular, seen by no vector", "indefinite, seen by no vector",
    ),
}  # fmt: skip
TABLE = [(group, name) for group, faults in GROUPS.items() for name in faults]


@cache
def truths(group, name, dtype):
    """The truths of a fault, one for every solution, from its numbers as they are in ``dtype``."""
    fault = GROUPS[group][name].cast(dtype)
    starts = [fault.w0] if fault.near is None else fault.near
    data = fault.lower_data, fault.upper_data
    return [dense_truth(fault.problem, fault.lam, w, *data, exact=fault.exact) for w in starts]


def complaint(fault, solutions, tol, eps):
    """What is wrong with what comes back at this tolerance; None if nothing is."""
    try:
        h = bl.hypergradient(
            fault.problem, fault.lam, fault.w0, lower_data=fault.lower_data, upper_data=fault.upper_data, v0=fault.v0,
            tol=tol,
        )  # fmt: skip
    except bl.ConvergenceError as error:
        return refusal(fault, solutions, tol, eps, error.result)
    if not fault.exists:
        return f"silent: {float(h.grad)} where there is no hypergradient"
    truth = min(solutions, key=lambda truth: np.linalg.norm(truth.w - np.asarray(h.w)))
    error, accepted = abs(float(h.grad) - truth.grad[0]), allowed(truth, h, tol, eps)
    if error > SILENT * accepted and int(h.status) == Status.OK:
        return f"silent: error {error:.1e}, said to be {float(h.error):.1e}, accepted {accepted:.1e}"
    if error > accepted + eps * truth.sensitivity:
        return f"error {error:.1e}, said to be {float(h.error):.1e}, accepted {accepted:.1e}"
    return None


def refusal(fault, solutions, tol, eps, result):
    """A refusal is right where there is no answer, or where rounding forbids the accuracy."""
    if not fault.exists or fault.refusable:
        return None
    representable = all(eps * truth.sensitivity <= allowed(truth, result, tol, eps) for truth in solutions)
    return f"refused: {Status(int(result.status)).name}" if representable else None


def allowed(truth, h, tol, eps):
    """The acceptance rule, ``tol * norm(grad) + atol`` with the default ``atol``."""
    scale = float(h.scale) if jnp.isfinite(h.scale) else 0.0
    return tol * abs(truth.grad[0]) + tol * eps**0.5 * scale


@pytest.mark.parametrize(("group", "name"), TABLE)
def test_right_or_loud(group, name, dtype):
    fault, eps = GROUPS[group][name].cast(dtype), float(jnp.finfo(dtype).eps)
    solutions = truths(group, name, dtype) if fault.exists else []
    complaints = {tol: complaint(fault, solutions, tol, eps) for tol in TOLERANCES}
    assert not any(complaints.values()), complaints


def test_the_oracle_is_right():
    """Exact refinement against a Hilbert matrix, whose inverse is known in integers, and a scalar by hand."""
    n = 8
    i, j = np.indices((n, n))
    hilbert = 360360.0 / (i + j + 1)  # integers, condition 2e10
    x = np.array([1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0])
    b = hilbert @ x
    assert np.all(residual(hilbert, x, b) == 0)
    np.testing.assert_allclose(solve_exactly(hilbert, b), x, rtol=1e-15)
    fault = GROUPS["nonlinear map"]["arctan, overshooting"]
    truth = dense_truth(fault.problem, fault.lam, fault.near[0], fault.lower_data, fault.upper_data)
    # w = lam in both variables: U' = sum(lam - t).
    np.testing.assert_allclose(truth.grad, 2 * 1.0 - 3.0, rtol=1e-14)
