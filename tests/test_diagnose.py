"""What a diagnosis measures is so in closed form; what it predicts is what the methods take; trouble is a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import citations
from bilevel.diagnose import diagnose
from bilevel.diagnosis.facts import DENSE_SIZE
from families import FAMILIES, relative_distance

TOL = 1e-3
OVERESTIMATE = 6  # predicted counts divided by it no longer reach the tolerance


def quadratic(w, lam, data):
    return 0.5 * jnp.sum(data["h"] * w**2) - jnp.sum(lam["offset"] * w)


def linear_map(w, lam, data):
    return data["M"] @ w + lam["offset"]


def upper(w, lam, data):
    return 0.5 * jnp.sum((w - 1.0) ** 2) + 0.5 * jnp.sum(lam["above"] ** 2)


def lam_of(n, dtype):
    return {"above": jnp.ones(2, dtype), "offset": jnp.ones(n, dtype)}


def minimization(h, dtype):
    h = jnp.asarray(h, dtype)
    problem = bl.Problem(bl.minimization(quadratic), upper)
    return diagnose(problem, lam_of(h.size, dtype), jnp.zeros(h.size, dtype), lower_data={"h": h}, tol=TOL)


def fixed_point(M, dtype, symmetric=False):
    M = jnp.asarray(M, dtype)
    problem = bl.Problem(bl.fixed_point(linear_map, symmetric), upper)
    return diagnose(problem, lam_of(len(M), dtype), jnp.zeros(len(M), dtype), lower_data={"M": M}, tol=TOL)


SIZES = {"dense": 6, "iterative": DENSE_SIZE + 100}


@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
def test_a_quadratic_has_its_spectrum(n, dtype):
    report = minimization(np.linspace(2, 50, n), dtype)
    f = report.facts
    accuracy = 1e-4 if n <= DENSE_SIZE else 0.1
    assert f.symmetric
    assert f.settled
    assert f.least == f.smallest == pytest.approx(2, rel=accuracy)
    assert f.largest == pytest.approx(50, rel=accuracy)
    assert f.condition == pytest.approx(25, rel=accuracy)
    assert f.radius == pytest.approx((50 - 2) / (50 + 2), rel=accuracy / 10)
    assert f.floor == pytest.approx(25 * float(jnp.finfo(dtype).eps), rel=accuracy)
    assert f.matvecs < n + 20 if n <= DENSE_SIZE else f.matvecs < 250
    assert report.reaches == {"['above']": False, "['offset']": True}
    words = report.explain()
    assert "Of lam, lam['above'] does not reach F" in words
    assert "A is positive definite" in words


def rotation(n, radius):
    """Blocks of a rotation: normal, complex spectrum on a circle."""
    return radius * np.kron(np.eye(n // 2), [[0.6, -0.8], [0.8, 0.6]])


def jordan(n, radius):
    """One block: the norm is well above the spectral radius."""
    return radius * np.eye(n) + 0.7 * np.eye(n, k=1)


MAPS = {
    "rotation": (rotation(6, 0.9), 0.9, 0.9),
    "large rotation": (rotation(SIZES["iterative"], 0.9), 0.9, 0.9),
    "transient growth": (jordan(6, 0.5), 0.5, np.linalg.norm(jordan(6, 0.5), 2)),
    "no contraction": (rotation(6, 1.3), 1.3, 1.3),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_has_its_radius_and_norm(name, dtype):
    M, radius, norm = MAPS[name]
    report = fixed_point(M, dtype)
    f, words = report.facts, report.explain()
    # The eigenvalue of a block of six moves by the sixth root of rounding.
    assert f.radius == pytest.approx(radius, rel=0.25 if name == "transient growth" else 1e-3)
    assert f.norm == pytest.approx(norm, rel=1e-3)
    A = np.eye(len(M)) - M
    assert f.condition == pytest.approx(np.linalg.cond(A), rel=0.1)
    assert not f.symmetric
    assert ("does not converge" in words) == (radius > 1)
    assert ("may grow before it shrinks" in words) == (name == "transient growth")
    unused = [a.reason for a in report.alternatives if a.method is None]
    assert ("A is not symmetric" in unused) == (radius < 1)
    assert any("no contraction: spectral radius 1.3" in reason for reason in unused) == (radius > 1)
    assert report.recommendation is not None
    assert report.recommendation.trouble == ""
    assert citations.SAAD_SCHULTZ in report.citations


def test_symmetry_is_measured_whatever_is_promised(dtype):
    symmetric = 0.5 * np.exp(-np.abs(np.subtract.outer(np.arange(6), np.arange(6))))
    assert "which symmetric=True may promise" in fixed_point(symmetric, dtype).explain()
    false = fixed_point(0.5 * np.tri(6), dtype, symmetric=True)
    assert "is promised to be symmetric but is not" in false.explain()


TROUBLES = {
    "saddle": ([1.0, -2.0, 3.0], "The Hessian has the eigenvalue -2.0e+00: the point is a saddle"),
    "singular": ([1.0, 0.0, 3.0], "A is singular to rounding"),
    "NaN data": ([1.0, np.nan, 3.0], "not finite at the point reached"),
    "infinite data": ([1.0, np.inf, 3.0], "not finite at the point reached"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_is_a_sentence(trouble, dtype):
    h, expected = TROUBLES[trouble]
    report = minimization(h, dtype)
    assert expected in report.explain()
    assert "No method is recommended" in report.explain()
    assert report.alternatives == []


def test_a_map_without_fixed_point_is_a_sentence(dtype):
    """``w + 1``."""
    report = fixed_point(np.eye(4), dtype)
    assert "A is singular to rounding" in report.explain()
    assert report.recommendation is not None
    assert report.recommendation.trouble


def test_lam_that_reaches_nothing_is_a_sentence(dtype):
    problem = bl.Problem(bl.minimization(lambda w, lam, data: jnp.sum((w - 1) ** 2)), lambda w, lam, data: lam * w[0])
    report = diagnose(problem, jnp.ones((), dtype), jnp.zeros(3, dtype))
    assert report.recommendation is None
    assert report.citations == ""
    assert "lam does not reach F" in report.explain()
    assert "there is no hypergradient to compute" in report.explain()


def test_a_wrong_form_is_refused(dtype):
    problem = bl.Problem(bl.minimization(lambda w, lam, data: w * lam), upper)
    with pytest.raises(bl.ProblemError, match="loss must return one floating scalar"):
        diagnose(problem, jnp.ones((), dtype), jnp.zeros(3, dtype))


@jax.jit
def aid(problem, lam, w0, lower_data, upper_data, method, steps, products):
    """AID as the method does it, with its counts as data: one program for all."""
    w, _ = method.solver(problem.lower, lam, w0, lower_data, steps=steps)
    _, A = problem.lower.linearize(w, lam, lower_data)
    g = jax.grad(problem.upper)(w, lam, upper_data)
    v, _ = method.linear_solver(A.T, g, steps=products)
    direct = jax.grad(problem.upper, argnums=1)(w, lam, upper_data)
    cross = jax.vjp(lambda lam: problem.lower.residual(w, lam, lower_data), lam)[1](v)[0]
    return jax.tree.map(jnp.subtract, direct, cross)


@pytest.mark.parametrize("family", ["logistic", "multinomial", "kernel_ridge", "equilibrium", "affine"])
def test_predicted_counts_reach_the_tolerance_and_are_not_wasteful(family, dtype):
    """Within a factor of two below; divided by six they no longer reach it."""
    case = FAMILIES[family](5, dtype, n=24, condition=30.0)
    data = {"lower_data": case.lower_data, "upper_data": case.upper_data}
    report = diagnose(*case[:3], **data, tol=TOL)
    truth = bl.hypergradient(*case[:3], **data, method=bl.Exact()).grad
    found = {a.name: a for a in report.alternatives}
    for name in ("AID-FP", "AID-CG", "AID-GMRES"):
        a = found[name]
        if a.method is None:
            assert not case.tags.symmetric
            continue
        at = case.problem, *case[1:5], a.method
        error = relative_distance(aid(*at, 2 * a.steps, 2 * a.products), truth)
        assert error <= TOL, (name, error)
        few = relative_distance(aid(*at, a.steps // OVERESTIMATE, max(a.products // OVERESTIMATE, 1)), truth)
        assert few > TOL, (name, few)
        assert a.matvecs == a.steps + a.products + 1


def test_itd_is_predicted_in_all_its_modes(dtype):
    case = FAMILIES["affine"](5, dtype, n=16, condition=10.0)  # buffers are multiples of 64 bytes
    data = {"lower_data": case.lower_data, "upper_data": case.upper_data}
    truth = bl.hypergradient(*case[:3], **data, method=bl.Exact()).grad
    for a in diagnose(*case[:3], **data, tol=TOL).alternatives:
        if a.name.startswith("ITD"):
            h = bl.hypergradient(*case[:3], **data, method=a.method, error=False)
            assert relative_distance(h.grad, truth) <= 2 * TOL
            assert int(h.lower.matvecs + h.adjoint.matvecs) == a.matvecs
            memory = temporaries(case, a.method)
            assert memory / 2 <= a.memory <= 2 * memory, a.name


def temporaries(case, method):
    """Bytes beside the arguments of the compiled hypergradient."""

    def gradient(lam, w0, lower_data, upper_data):
        return bl.hypergradient(
            case.problem, lam, w0, lower_data=lower_data, upper_data=upper_data, method=method, error=False
        ).grad

    return jax.jit(gradient).lower(*case[1:5]).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.float64
def test_memory_is_that_of_the_compiled_program():
    """Within a factor of two: ITD keeps activations, too, GMRES its basis, Exact its matrices."""
    case = FAMILIES["logistic"](5, None, n=60, condition=10.0)
    report = diagnose(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, tol=TOL)
    for a in report.alternatives:
        if a.name in ("ITD", "AID-CG", "AID-GMRES", "Exact"):
            memory = temporaries(case, a.method)
            assert memory / 2 <= a.memory <= 2 * memory, a.name


def test_entries_of_bibtex_carry_their_keys():
    for key, entry in citations.BIBTEX.items():
        assert entry.split("{", 1)[1].startswith(f"{key},")
        assert entry.count("{") == entry.count("}")
        for field in ("title", "author", "year"):
            assert f"  {field} = {{" in entry
