"""Preconditioners: exact where they must be, their theory, honest counts, reuse, transposes, failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operators import OPERATORS, N, Operator, in_dtype, orthogonal, residual, rhs, solve, spd, truth, with_spectrum

import bilevel as bl
from bilevel.linear.factorized import factorize
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.operator import LinearOperator, from_matrix
from bilevel.linear.preconditioners import Jacobi, Nystrom
from bilevel.status import ProblemError, Status

PRECONDITIONERS = {"Jacobi": Jacobi(), "Jacobi(4)": Jacobi(probes=4), "Nystrom": Nystrom(rank=5)}
COST = {"Jacobi": N, "Jacobi(4)": 4, "Nystrom": 5}
INDEFINITE = with_spectrum(np.concatenate([[-0.5], np.linspace(0.1, 1.0, N - 1)]))
SINGULAR = with_spectrum(np.concatenate([[0.0], np.linspace(0.1, 1.0, N - 1)]))


def eps(dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def operator_of(A, dtype, *, symmetric=True) -> LinearOperator:
    return from_matrix(jnp.asarray(A, dtype), symmetric=symmetric, definite=symmetric)


def built(preconditioner, A, dtype, *, symmetric=True):
    """What it builds, or the factorization where None is given."""

    @jax.jit
    def build(A):
        operator = operator_of(A, dtype, symmetric=symmetric)
        return factorize(operator, A[0]) if preconditioner is None else preconditioner.build(operator, A[0])[0]

    return build(jnp.asarray(A, dtype))


def matrix_of(M, n: int, dtype) -> np.ndarray:
    return np.asarray(jax.vmap(M, in_axes=1, out_axes=1)(jnp.eye(n, dtype=dtype)), np.float64)


@pytest.mark.parametrize("solver", [bl.CG, bl.GMRES, NormalCG, bl.Richardson])
def test_a_factorization_solves_in_one_step_at_no_cost(solver, dtype):
    operator = OPERATORS["spd 1e1" if solver is bl.CG else "non-normal"]
    exact = solver(preconditioner=built(None, operator.matrix, dtype, symmetric=operator.symmetric))
    for transposed in (False, True):
        run = solve(exact, operator, rhs(), dtype, rtol=eps(dtype) ** 0.5, transposed=transposed)
        assert (run.status, int(run.info.steps)) == (Status.OK, 1)
        assert run.products == int(run.info.matvecs) <= 3
        matrix = operator.matrix.T if transposed else operator.matrix
        x = truth(operator._replace(matrix=matrix), rhs(), dtype)
        assert np.linalg.norm(run.x - x) <= 10 * N * eps(dtype) * operator.condition * np.linalg.norm(x)


def test_a_factorization_knows_which_of_the_two_it_factored(dtype):
    A = operator_of(OPERATORS["non-normal"].matrix, dtype, symmetric=False)
    like = jnp.asarray(rhs(), dtype)
    of_A, of_T = factorize(A, like), factorize(A.T, like)
    for M in (of_A.build(A, like)[0], of_T.build(A.T.T, like)[0]):
        np.testing.assert_allclose(A.mv(M(like)), like, rtol=0, atol=1e3 * N * eps(dtype))
    for M in (of_A.build(A.T, like)[0], of_T):
        np.testing.assert_allclose(A.T.mv(M(like)), like, rtol=0, atol=1e3 * N * eps(dtype))


def test_a_factorization_serves_operators_near_it(dtype):
    """``|I - A M| <= q`` for a matrix changed by q relative to it: the residual falls by q a step."""
    A, q = OPERATORS["contraction"].matrix, 1e-2
    near = A @ (np.eye(N) + q * orthogonal(5))
    M = built(None, A, dtype, symmetric=False)
    for k in (1, 2):
        run = solve(bl.GMRES(preconditioner=M), Operator(near), rhs(), dtype, steps=k)
        size = np.linalg.norm(A, 2) * np.linalg.norm(np.linalg.inv(A), 2) * np.linalg.norm(rhs())
        assert residual(Operator(near), rhs(), run.x, dtype) <= (q**k + 100 * N * eps(dtype)) * size


def test_jacobi_undoes_a_diagonal_scaling(dtype):
    """CG on ``S B S x = S b`` with Jacobi takes the steps of CG on ``B`` with Jacobi, scaled by ``S^{-1}``.

    Rayleigh quotients of ``S B S`` fall from 1e10 to 1 on the way, which is no singularity.
    """
    B, b, s = spd(1e1).matrix, np.eye(N)[-1], np.geomspace(1.0, 1e5, N)
    jacobi = bl.CG(preconditioner=Jacobi(probes=None))
    for k in (1, 3, 5):
        plain = solve(jacobi, Operator(B, True, True), b, dtype, steps=k)
        scaled = solve(jacobi, Operator(s[:, None] * B * s, True, True), s * b, dtype, steps=k)
        assert plain.status == scaled.status == Status.OK
        np.testing.assert_allclose(s * scaled.x, plain.x, rtol=0, atol=1e3 * eps(dtype) * np.linalg.norm(plain.x))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_estimated_diagonal(symmetric, dtype):
    """Within 4.5 standard errors (one in 1e5), ``sum_{j != i} a_ij^2 / probes`` with a the symmetric part twice."""
    n, probes = 60, 40
    rng = np.random.default_rng(4)
    A = np.diag(np.where(symmetric, 1.0, np.sign(rng.normal(size=n))) * rng.uniform(20, 60, n)) + rng.normal(
        size=(n, n)
    )
    A = (A + A.T) / 2 if symmetric else A
    M = built(Jacobi(probes), A, dtype, symmetric=symmetric)
    d = np.diag(A)
    deviation = np.sqrt((np.sum(A**2, axis=1) - d**2) / probes)
    error = np.abs(1 / np.float64(M.inverse) - d)
    assert (error <= 4.5 * deviation).all()
    assert error.max() > deviation.max() / 10  # an estimate it is
    exact = Jacobi(None).build(operator_of(A, dtype, symmetric=symmetric), jnp.zeros(n, dtype))
    assert exact[1] == n
    np.testing.assert_allclose(exact[0].inverse, 1 / d, rtol=4 * eps(dtype))


def test_a_noisy_diagonal_stays_positive_and_away_from_zero(dtype):
    """Rank one: ``diag(A) = u^2`` with entries far below the noise of few probes."""
    u = np.geomspace(1e-3, 1.0, 60)
    inverse = np.asarray(built(Jacobi(8), np.outer(u, u) + 1e-6 * np.eye(60), dtype).inverse)
    assert (inverse > 0).all()
    noise = u * np.linalg.norm(u) / 8**0.5
    assert (inverse <= 10 / noise).all()


def test_nystrom_is_exact_where_the_rank_suffices(dtype):
    """Rank n: ``M = A^{-1}``. Low rank plus a known shift: ``M = A^{-1}`` as well, from ``rank`` products."""
    A = spd(1e1).matrix
    M = matrix_of(built(Nystrom(rank=N), A, dtype), N, dtype)
    np.testing.assert_allclose(M @ A, np.eye(N), rtol=0, atol=100 * N * eps(dtype))
    n, shift = 50, 1e-2
    U = np.random.default_rng(0).normal(size=(n, 4)) / n**0.5
    A = U @ U.T + shift * np.eye(n)
    M = matrix_of(built(Nystrom(rank=6, shift=shift), A, dtype), n, dtype)
    np.testing.assert_allclose(M @ A, np.eye(n), rtol=0, atol=100 * n * eps(dtype) / shift)


def test_nystrom_makes_large_eigenvalues_harmless(dtype):
    """The bound of its docstring, then CG's: steps that do not grow with the outliers."""
    n, large, rank, rtol = 80, 6, 12, 1e-3
    tail = np.linspace(1.0, 2.0, n - large)
    counts = []
    for size in (1e1, 1e2, 1e3):
        A = with_spectrum(np.concatenate([tail, size * np.linspace(1.0, 3.0, large)]))
        operator, b = Operator(A, True, True), rhs(n)
        M = built(Nystrom(rank), A, dtype)
        U, head, last = (np.asarray(a, np.float64) for a in (M.U, M.head, M.tail))
        lacking = np.linalg.norm(A - (U * head) @ U.T, 2)
        bound = (1 + lacking / last) * (1 + last / tail[0])
        values = np.linalg.eigvals(matrix_of(M, n, dtype) @ in_dtype(A, dtype)).real
        assert values.max() / values.min() <= bound * (1 + 10 * n * eps(dtype) * size)
        # |r_k| <= 2 sqrt(cond(A)) rate^k |b|, with the rate of cond(M A)
        rate = (bound**0.5 - 1) / (bound**0.5 + 1)
        most = np.ceil(np.log(rtol / 2 / (3 * size) ** 0.5) / np.log(rate))
        run = solve(bl.CG(preconditioner=Nystrom(rank)), operator, b, dtype, rtol=rtol)
        assert run.status == Status.OK
        assert run.products == int(run.info.matvecs) >= int(run.info.steps) + rank + 1
        assert int(run.info.steps) <= most
        counts.append(int(run.info.steps))
    assert max(counts) <= min(counts) + 3
    plain = solve(bl.CG(), operator, b, dtype, rtol=rtol)
    assert min(counts) < int(plain.info.steps)


@pytest.mark.parametrize("solver", [bl.CG, bl.GMRES, NormalCG])
@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_counts_include_the_build_and_reuse_is_free(solver, name, dtype):
    operator, b, rtol = OPERATORS["spd 1e3"], rhs(), eps(dtype) ** 0.5
    run = solve(solver(preconditioner=PRECONDITIONERS[name]), operator, b, dtype, rtol=rtol)
    kept = built(PRECONDITIONERS[name], operator.matrix, dtype)
    again = solve(solver(preconditioner=kept), operator, b, dtype, rtol=rtol)
    for r in (run, again):
        assert r.status == Status.OK
        assert r.products == int(r.info.matvecs)
        assert residual(operator, b, r.x, dtype) <= 1.01 * rtol * np.linalg.norm(b) + 1e3 * eps(dtype) * np.linalg.norm(
            r.x
        )
    a_step = 2 if solver is NormalCG else 1
    steps = int(run.info.steps) - int(again.info.steps)
    assert abs(steps) <= 3  # compiled apart, rounded apart
    assert run.products - again.products == COST[name] + a_step * steps


@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1.0, 1e8])
@pytest.mark.parametrize("name", [*PRECONDITIONERS, "factorize"])
def test_a_preconditioned_solve_still_sees_the_curvature(name, scale, dtype):
    def solver(A):
        if name == "factorize":
            return bl.CG(preconditioner=built(None, A, dtype))
        return bl.CG(preconditioner=PRECONDITIONERS[name])

    def outcome(A):
        return solve(solver(scale * A), Operator(scale * A, True, True), rhs(), dtype, rtol=eps(dtype) ** 0.5)

    assert outcome(spd(1e1).matrix).status == Status.OK
    assert outcome(INDEFINITE).status == outcome(-np.eye(N)).status == Status.NEGATIVE_CURVATURE
    assert outcome(SINGULAR).status in (Status.SINGULAR, Status.STAGNATED, Status.MAX_STEPS)
    assert outcome(np.zeros((N, N))).status == Status.SINGULAR
    nan = spd(1e1).matrix
    nan[0, 0] = np.nan
    assert outcome(nan).status == Status.NONFINITE


def test_an_indefinite_preconditioner_is_reported(dtype):
    run = solve(bl.CG(), spd(1e1), rhs(), dtype, rtol=1e-3, P=-np.eye(N))
    assert run.status == Status.NEGATIVE_CURVATURE
    np.testing.assert_allclose(run.x, rhs(), rtol=10 * eps(dtype))


def test_a_factorization_of_a_singular_matrix_is_finite(dtype):
    M = built(None, np.diag([1.0, 0.0, 2.0]), dtype, symmetric=False)
    assert np.isfinite(M(jnp.ones(3, dtype))).all()


def test_nystrom_refuses_what_is_not_symmetric(dtype):
    with pytest.raises(ProblemError, match="symmetric"):
        Nystrom().build(operator_of(OPERATORS["contraction"].matrix, dtype, symmetric=False), jnp.zeros(N, dtype))


@pytest.mark.parametrize("make", [Jacobi(), Nystrom(rank=5), None], ids=["Jacobi", "Nystrom", "factorize"])
def test_pytrees_and_batches(make, dtype):
    """What is built for a tree of leaves acts as for the flat vector, and is built in a batch as alone."""
    matrices = jnp.asarray(np.stack([spd(1e1).matrix, spd(1e3).matrix]), dtype)

    def flat(x):
        return jnp.concatenate([x["a"].ravel(), x["b"]])

    def split(x):
        return {"a": x[:6].reshape(2, 3), "b": x[6:]}

    def product(A, r):
        operator = LinearOperator(lambda x: split(A @ flat(x)), lambda x: split(A.T @ flat(x)), True, True)
        M = factorize(operator, split(r)) if make is None else make.build(operator, split(r))[0]
        return flat(M(split(r)))

    r = jnp.asarray(rhs(), dtype)
    batch = jax.jit(jax.vmap(product, in_axes=(0, None)))(matrices, r)
    for A, row in zip(matrices, batch, strict=True):
        alone = built(make, A, dtype)(r)
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e3 * eps(dtype) * 1e3 * np.linalg.norm(alone))
