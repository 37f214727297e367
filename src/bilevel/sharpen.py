"""The sharpest bound of a hypergradient: its terms in quadruple precision."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import tree
from bilevel.certificates.double import rounded_up
from bilevel.certificates.quadruple import certify_in_quadruple
from bilevel.lagrangian import Instance
from bilevel.methods.base import Hypergradient
from bilevel.precision import full_precision
from bilevel.problems import Problem
from bilevel.status import ProblemError

Tree = Any


@full_precision
def sharpen_bound(
    problem: Problem, lam: Tree, h: Hypergradient, *, lower_data: Tree = None, upper_data: Tree = None
) -> Hypergradient:
    """``h`` with a bound that is its error to a few digits, where that is rounding, too. Eager only.

    The bound of :func:`bilevel.hypergradient` in float64 has a floor made of rounding, which grows with the square of
    cond(A). Here residuals are evaluated in quadruple precision, on the host, at a point of that precision. Needs the
    extra ``quadruple``: ``pip install "bilevel[quadruple]"``.

    Parameters
    ----------
    problem
        With constants.
    lam, lower_data, upper_data
        As in the call of :func:`bilevel.hypergradient` that returned ``h``.
    h
        A hypergradient, of any method.

    Returns
    -------
    Hypergradient
        The same with ``bound``, ``proved``, and what that took added to ``error_info``.

    Raises
    ------
    ProblemError
        The problem has no constants, or functions that cannot be evaluated in quadruple precision: those of linear
        algebra beyond products, special functions, loops and branches, or more than 4e8 operations.

    Notes
    -----
    Cost: 20 to 50 ns for every operation of about ten gradients, so a second for a million numbers of data.
    """
    if problem.constants is None:
        raise ProblemError("sharpen_bound needs a problem with constants: Problem(..., constants=...).")
    with jax.enable_x64(True):
        at, w, v, grad = tree.in_double((Instance(problem, lam, lower_data, upper_data), h.w, h.v, h.grad))
        found = certify_in_quadruple(at, w, v, grad)
    found = rounded_up(found, tree.dtype(h.grad))
    better = (found.bound < h.bound) | jnp.isnan(h.bound)
    return replace(
        h,
        bound=jnp.where(better, found.bound, h.bound),
        proved=jnp.where(better, found.proved, h.proved),
        error_info=h.error_info.plus(found.matvecs),
    )
