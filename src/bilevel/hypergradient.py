"""The front door: one call, a hypergradient with its error."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from bilevel import tree
from bilevel.automatic.method import Automatic
from bilevel.certificates.double import certify_in_double, has_double
from bilevel.lagrangian import Instance
from bilevel.methods.aid import AID
from bilevel.methods.base import Hypergradient, judged
from bilevel.methods.exact import Exact
from bilevel.methods.host import check_on_host, sid_on_host
from bilevel.methods.host_levels import on_host
from bilevel.methods.itd import ITD
from bilevel.precision import full_precision
from bilevel.problems import Problem, validate
from bilevel.status import ProblemError, Status, is_failure

Tree = Any
OnFailure = Literal["raise", "nan", "keep"]

DEFAULT_TOL = 1e-4  # of the automatic method; float32 reaches it
CERTIFYING = (Automatic, AID, Exact, ITD)  # methods whose hypergradients have a bound


@full_precision
def hypergradient(
    problem: Problem,
    lam: Tree,
    w0: Tree,
    *,
    lower_data: Tree = None,
    upper_data: Tree = None,
    v0: Tree | None = None,
    method: Any = None,
    tol: Any = None,
    atol: Any = None,
    max_matvecs: Any = None,
    error: bool = True,
    key: Array | None = None,
    on_failure: OnFailure = "raise",
) -> Hypergradient:
    """Gradient of ``lam -> U(w(lam), lam)`` through the solution ``w(lam)`` of the lower level, with its error.

    Parameters
    ----------
    problem
        The bilevel problem.
    lam
        Hyperparameters, any pytree of floating arrays.
    w0
        Where the lower-level solver starts, any pytree of floating arrays; ``h.w`` for a warm start.
    lower_data, upper_data
        Data of the two levels, any pytrees of arrays; always arguments, never captured in the functions. Data that do
        not fit on the device: :class:`~bilevel.host.sources.HostArrays`, :class:`~bilevel.host.sources.HostBatches`.
    v0
        Where the adjoint solver starts; ``h.v`` for a warm start.
    method
        ``AID(...)``, ``ITD(...)``, ``Exact()``, ``SID(...)``; None chooses solvers and work by itself to meet ``tol``.
    tol
        Relative accuracy: accepted when ``h.error <= tol * norm(h.grad) + atol``. Default 1e-4 for the automatic
        method; a given method is held to it only where it is given.
    atol
        Absolute accuracy; default ``tol * sqrt(eps) * h.scale``, so that a vanishing gradient is no failure.
    max_matvecs
        Budget of the automatic method.
    error
        Whether to estimate the error (the automatic method always does).
    key
        Random key of stochastic methods, which cannot do without; one key gives one result, bit for bit.
    on_failure
        ``"raise"``: raise eagerly, fill ``grad`` with NaN inside transformations, where nothing can be raised;
        ``"nan"``: fill always; ``"keep"``: leave ``grad`` as it is. ``h.status`` tells why in every case.

    Returns
    -------
    Hypergradient
        ``grad``, ``value``, ``w``, ``v``, ``error``, ``relative_error``, ``status`` and what the solves cost.

    Raises
    ------
    ProblemError
        The problem or an argument has the wrong form.
    ConvergenceError
        The computation failed; ``.result`` holds everything that was computed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bilevel as bl
    >>> def loss(w, lam, data):
    ...     X, y = data
    ...     return jnp.mean((X @ w - y) ** 2) + jnp.exp(lam) * jnp.sum(w**2)
    >>> def validation(w, lam, data):
    ...     X, y = data
    ...     return jnp.mean((X @ w - y) ** 2)
    >>> X, y = jnp.array([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]]), jnp.array([1.0, 0.0, 1.0])
    >>> problem = bl.Problem(bl.minimization(loss), validation)
    >>> h = bl.hypergradient(problem, 0.0, jnp.zeros(2), lower_data=(X, y), upper_data=(X, y))
    >>> print(f"{h.grad:.4f}, accurate to {h.relative_error < 1e-4}")
    0.1343, accurate to True
    """
    if on_failure not in ("raise", "nan", "keep"):
        raise ProblemError(f'on_failure must be "raise", "nan" or "keep", but is {on_failure!r}.')
    if on_host(lower_data, upper_data):
        check_on_host(method)
    if method is None:
        method = Automatic(DEFAULT_TOL if tol is None else tol, atol, max_matvecs)
        tol = None
    elif max_matvecs is not None:
        raise ProblemError("max_matvecs is the budget of the automatic method; give steps= to the method's solvers.")
    elif tol is not None and not error:
        raise ProblemError("tol= needs the error estimate: leave error=True.")
    method.check(problem)
    problem, lam, w0, v0, method = tree.strong((problem, lam, w0, v0, method))
    inputs = (problem, lam, w0, v0, lower_data, upper_data)
    if on_host(lower_data, upper_data):
        h = sid_on_host(method, *inputs, key, error=error)
        return _deliver(h if tol is None else judged(h, tol, atol), on_failure)
    bounded = error and isinstance(method, CERTIFYING) and problem.constants is not None
    bounded &= getattr(method, "damping", None) is None
    eager = (isinstance(method, Automatic) or bounded) and not _is_traced((*inputs, method))
    at = Instance(problem, lam, lower_data, upper_data)
    double = eager and bounded and has_double(at, w0)
    if double:  # the bound comes later
        inputs = (replace(problem, constants=None), *inputs[1:])
    if eager and isinstance(method, Automatic):
        h = method.staged(*inputs)
    else:
        h = _compute(method, *inputs, key, tol, atol, error=error)
    return _deliver(_bounded_in_double(at, h) if double else h, on_failure)


@partial(jax.jit, static_argnames="error")
def _compute(method, problem, lam, w0, v0, lower_data, upper_data, key, tol, atol, *, error) -> Hypergradient:
    reach = {"reach": method.reach} if isinstance(method, ITD) else {}
    validate(problem, lam, w0, lower_data, upper_data, **reach)
    h = method(problem, lam, w0, v0, lower_data, upper_data, key, error=error)
    return h if tol is None else judged(h, tol, atol)


def _bounded_in_double(at: Instance, h: Hypergradient) -> Hypergradient:
    bound, proved, matvecs = certify_in_double(at, h.w, h.v, h.grad, h.lower.matvecs + h.adjoint.matvecs)
    return replace(h, bound=bound, proved=proved, error_info=h.error_info.plus(matvecs))


def _deliver(h: Hypergradient, on_failure: OnFailure) -> Hypergradient:
    """Make a failure loud: raise where a status can be read, poison the gradient where it cannot."""
    if on_failure == "keep":
        return h
    if isinstance(h.status, Tracer):
        poison = jnp.where(is_failure(h.status), jnp.nan, 0.0)
        return replace(h, grad=jax.tree.map(lambda g: g + poison.astype(g.dtype), h.grad))
    if Status(int(h.status)).failed:
        if on_failure == "raise":
            h.raise_if_failed()
        return replace(h, grad=tree.fill(h.grad, jnp.nan))
    return h


def _is_traced(inputs: Tree) -> bool:
    """Whether what is computed from these has no values yet; under ``jit`` that holds of constants, too."""
    return any(isinstance(leaf, Tracer) for leaf in (*jax.tree.leaves(inputs), jnp.asarray(0)))
