"""The fixed method that ``plan`` makes meets the tolerance, here and near here, inside transformations too."""

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from families import FAMILIES

CONDITION = {"float64": 1e3, "float32": 20.0}


@pytest.mark.parametrize(("family", "n"), [("logistic", 14), ("logistic", 320), ("equilibrium", 14)])
def test_meets_the_tolerance_with_a_margin(family, n, dtype):
    case = FAMILIES[family](3, dtype, n=n, condition=CONDITION[dtype.name])
    data = {"lower_data": case.lower_data, "upper_data": case.upper_data}
    tol = 1e-6 if dtype == jnp.float64 else 1e-3
    method = bl.plan(*case[:3], **data, tol=tol)
    truth = ravel_pytree(bl.hypergradient(*case[:3], method=bl.Exact(), **data).grad)[0]
    near = jax.tree.map(lambda x: 1.05 * x, case.lam)
    lams = jax.tree.map(lambda *x: jnp.stack(x), case.lam, near)

    @jax.jit
    @jax.vmap
    def both(lam):
        return bl.hypergradient(case.problem, lam, case.w0, method=method, tol=tol, **data)

    h = both(lams)
    here = ravel_pytree(jax.tree.map(lambda x: x[0], h.grad))[0]
    assert float(jnp.linalg.norm(here - truth)) <= tol * float(jnp.linalg.norm(truth))
    assert jnp.all(h.relative_error <= tol)


def test_a_problem_that_fails_has_no_plan(dtype):
    unbounded = bl.Problem(bl.minimization(lambda w, lam, data: lam * jnp.sum(w)), lambda w, lam, data: jnp.sum(w**2))
    with pytest.raises(bl.ConvergenceError):
        bl.plan(unbounded, jnp.ones((), dtype), jnp.zeros(2, dtype))
