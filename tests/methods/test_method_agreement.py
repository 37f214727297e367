"""Every method on every family agrees with the dense oracle, and knows its own error."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.models.catalog import CATALOG
from bilevel.status import Status
from families import FAMILIES

CONDITION = 20.0


def tight(rtol):
    """Methods by name, their solvers as tight as the dtype allows."""
    return {
        "default": bl.AID(),
        "aid-newton-krylov": bl.AID(bl.NewtonKrylov(rtol=rtol), bl.GMRES(rtol=rtol)),
        "aid-newton-cg": bl.AID(bl.NewtonCG(rtol=rtol), bl.CG(rtol=rtol)),
        "aid-lbfgs": bl.AID(bl.LBFGS(rtol=rtol), bl.CG(rtol=rtol)),
        "aid-picard-cg": bl.AID(bl.Picard(steps=400), bl.CG(steps=60)),
        "aid-picard-fp": bl.AID(bl.Picard(steps=400), bl.Richardson(steps=400)),
        "aid-dense": bl.AID(linear_solver=bl.Dense()),
        "aid-refined": bl.AID(bl.Picard(steps=200), bl.GMRES(steps=20), refine=1),
        "itd": bl.ITD(steps=500),
        "itd-truncated": bl.ITD(steps=700, truncate=350),
        "itd-checkpointed": bl.ITD(steps=500, checkpoint="sqrt"),
        "itd-forward": bl.ITD(steps=500, mode="forward"),
        "itd-anderson": bl.ITD(bl.Anderson(steps=60)),
        "itd-heavy-ball": bl.ITD(bl.HeavyBall(steps=250)),
        "itd-nesterov": bl.ITD(bl.Nesterov(steps=400)),
        "aid-anderson-normal": bl.AID(bl.Anderson(rtol=rtol), bl.NormalCG(rtol=rtol)),
        "aid-heavy-ball": bl.AID(bl.HeavyBall(rtol=rtol), bl.CG(rtol=rtol)),
        "aid-neumann": bl.AID(bl.Picard(steps=400), bl.Neumann(terms=400)),
    }


ONLY_SYMMETRIC = {"aid-newton-cg", "aid-lbfgs", "aid-picard-cg", "aid-heavy-ball", "itd-heavy-ball", "itd-nesterov"}
EVERYWHERE = {"default", "aid-picard-fp", "itd"}  # the rest on one family of each kind: compiles cost seconds


def pairs():
    for name in tight(None):
        for family, table in FAMILIES.items():
            one_of_a_kind = family in ("multinomial", "equilibrium")
            if (name in EVERYWHERE or one_of_a_kind) and (name not in ONLY_SYMMETRIC or table.tags.minimization):
                yield family, name


@pytest.fixture(scope="module")
def oracle(dtype):
    cache = {}

    def get(family):
        if family not in cache:
            case = FAMILIES[family](3, dtype, n=12, condition=CONDITION)
            exact = bl.hypergradient(
                *case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=bl.Exact()
            )
            cache[family] = case, exact
        return cache[family]

    return get


def distance(a, b):
    return float(jnp.linalg.norm(ravel_pytree(a)[0] - ravel_pytree(b)[0]))


@pytest.mark.parametrize(("family", "name"), list(pairs()))
def test_agrees_with_exact_and_knows_its_error(family, name, oracle, dtype):
    case, exact = oracle(family)
    eps = float(jnp.finfo(dtype).eps)
    method = tight(eps**0.75)[name]
    h = bl.hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method)
    size = float(jnp.linalg.norm(ravel_pytree(exact.grad)[0]))
    true = distance(h.grad, exact.grad)
    # Rounding reaches the gradient through two solves of condition 20, each amplifying eps by it; the factor
    # covers sums over some tens of rows. The scale is that of the terms before they cancel.
    floor = 100 * eps * CONDITION * float(h.scale)
    assert true <= 2 * float(h.error) + floor
    assert float(h.error) <= 2 * true + floor
    # sqrt(eps) solves of condition 20, or 400 steps of a 20-conditioned contraction: q^400 = 3e-18.
    assert true <= 20 * CONDITION * eps**0.5 * size
    assert Status(int(h.status)) == Status.OK
    assert jax.tree.structure(h.grad) == jax.tree.structure(case.lam)
    assert all(g.dtype == dtype for g in jax.tree.leaves((h.grad, h.w, h.v)))


@pytest.mark.parametrize("name", sorted(ONLY_SYMMETRIC))
def test_minimization_methods_are_refused_on_maps(name, oracle):
    case, _ = oracle("affine")
    with pytest.raises(bl.ProblemError, match=r"symmetric|minimization"):
        bl.hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=tight(1e-6)[name])


@pytest.mark.parametrize(
    ("family", "method"), [("affine", bl.AID()), ("logistic", bl.ITD(steps=60)), ("logistic", None)]
)
def test_jit_is_eager_and_vmap_is_loop(family, method, oracle, dtype):
    case, _ = oracle(family)
    eps = float(jnp.finfo(dtype).eps)
    tol = 1e-3

    def grad(lam):
        return bl.hypergradient(
            case.problem, lam, case.w0, lower_data=case.lower_data, upper_data=case.upper_data,
            method=method, tol=tol if method is None else None,
        ).grad  # fmt: skip

    lams = [jax.tree.map(lambda x, s=s: x * s, case.lam) for s in (1.0, 0.9)]
    eager = [grad(lam) for lam in lams]
    # Other orders of summation change how far an iteration gets by rounding only; the automatic method may also
    # stop one pass earlier or later, both within tol.
    allowed = (2 * tol if method is None else 2000 * eps * CONDITION) * float(jnp.linalg.norm(ravel_pytree(eager)[0]))
    assert distance(jax.jit(grad)(lams[0]), eager[0]) <= allowed
    batched = jax.vmap(grad)(jax.tree.map(lambda *x: jnp.stack(x), *lams))
    for i, alone in enumerate(eager):
        assert distance(jax.tree.map(lambda x, i=i: x[i], batched), alone) <= allowed


@pytest.mark.parametrize("method", [None, bl.Exact()], ids=["automatic", "exact"])
def test_constants_of_a_program_are_no_values(method, oracle, dtype):
    """Under ``jit`` also what does not depend on its arguments is computed later."""
    case, _ = oracle("logistic")
    case = case._replace(problem=replace(case.problem, constants=CATALOG["logistic"].constants))

    def compute():
        return bl.hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method)

    eager, traced = compute(), jax.jit(compute)()
    assert traced.grad.dtype == dtype
    assert distance(traced.grad, eager.grad) <= 2e-4 * float(jnp.linalg.norm(eager.grad))


def test_counts_are_exact(oracle):
    case, _ = oracle("affine")
    h = bl.hypergradient(
        *case[:3], lower_data=case.lower_data, upper_data=case.upper_data,
        method=bl.AID(bl.Picard(steps=17), bl.Richardson(steps=9)), error=False,
    )  # fmt: skip
    assert (int(h.lower.steps), int(h.lower.matvecs)) == (17, 18)
    assert (int(h.adjoint.steps), int(h.adjoint.matvecs)) == (9, 9)
    assert int(h.error_info.matvecs) == 0
    assert jnp.isnan(h.error)


def test_nothing_is_recompiled_for_other_numbers(oracle):
    case, _ = oracle("ridge")
    traces = []

    def upper(w, lam, data):
        traces.append(1)
        return case.problem.upper(w, lam, data)

    problem = bl.Problem(case.problem.lower, upper)

    def run(**options):
        return bl.hypergradient(problem, *case[1:3], lower_data=case.lower_data, upper_data=case.upper_data, **options)

    run(tol=1e-2)
    run(method=bl.AID(bl.NewtonCG(rtol=1e-3), bl.CG(rtol=1e-3)))
    before = len(traces)
    run(tol=1e-3)
    run(method=bl.AID(bl.NewtonCG(rtol=1e-4), bl.CG(rtol=1e-2)))
    bl.hypergradient(
        bl.Problem(case.problem.lower, upper),
        *case[1:3],
        lower_data=case.lower_data,
        upper_data=case.upper_data,
        tol=0.1,
    )
    assert len(traces) == before
