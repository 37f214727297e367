"""Hypergradients by this library: nothing but a tolerance."""

import bilevel as bl
from first_call.libraries import Answer
from first_call.rows import whole


def prepared(row, setting):
    """The call of the automatic method."""
    problem = bl.Problem(lower_level(row), row.upper)

    def call(lam, w0, v0, lower_data, upper_data):
        h = bl.hypergradient(
            problem, lam, w0, v0=v0, lower_data=lower_data, upper_data=upper_data, tol=setting["tolerance"]
        )
        return Answer(h.grad, h.w, h.v, h)

    return call


def lower_level(row):
    """The lower level; of members where the library knows of them."""
    if row.kind == "fixed_point":
        return bl.fixed_point(row.lower)
    if row.members and hasattr(bl, "batched"):
        return bl.batched(bl.minimization(row.lower), in_axes=row.member_axes)
    return bl.minimization(whole(row))


def matvecs(answer):
    """Gradients and Hessian-vector products of the call."""
    h = answer.report
    counts = {"lower": h.lower, "adjoint": h.adjoint, "error": h.error_info}
    return {name: int(info.matvecs) for name, info in counts.items()}
