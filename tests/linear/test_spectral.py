"""Lanczos and power iteration against dense spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operators import OPERATORS, SPD, N, orthogonal, rhs, with_spectrum

from bilevel.linear.operator import from_matrix
from bilevel.linear.spectral import lanczos, largest_eigenvalue, power_iteration, ritz_values

SPECTRA = {
    **{name: OPERATORS[name].matrix for name in SPD},
    "indefinite": with_spectrum(np.linspace(-1.0, 2.0, N)),
    "rank two": with_spectrum(np.array([0.0] * (N - 2) + [1.0, 2.0])),
    "zero": np.zeros((N, N)),
}


@jax.jit
def _spectra(A, start):
    """Ritz values after 1, 3, 6 and n steps."""
    return [ritz_values(*lanczos(from_matrix(A, symmetric=True), start, m)) for m in (1, 3, 6, N)]


@pytest.mark.parametrize("name", SPECTRA)
def test_ritz_values(name, dtype):
    """Inside the spectrum for every number of steps; the distinct eigenvalues after n steps."""
    A = SPECTRA[name]
    exact, size = np.linalg.eigvalsh(A), np.linalg.norm(A, 2)
    rounding = 50 * N * float(jnp.finfo(dtype).eps) * size
    runs = [np.asarray(ritz) for ritz in _spectra(jnp.asarray(A, dtype), jnp.asarray(rhs(), dtype))]
    for ritz in runs:
        assert (np.diff(ritz) >= 0).all()
        assert ritz[0] >= exact[0] - rounding
        assert ritz[-1] <= exact[-1] + rounding
    for value in exact:  # a multiple eigenvalue is met once
        assert np.abs(runs[-1] - value).min() <= rounding
    extreme = [ritz[-1] for ritz in runs]
    assert (np.diff(extreme) >= -rounding).all()


def test_the_tridiagonal_matrix(dtype):
    """``T = V^T A V``: its first entries by hand."""
    A, v = SPECTRA["indefinite"], rhs() / np.linalg.norm(rhs())
    diagonal, off = lanczos(from_matrix(jnp.asarray(A, dtype), symmetric=True), jnp.asarray(rhs(), dtype), 2)
    assert diagonal.shape == off.shape == (2,)
    alpha = v @ A @ v
    np.testing.assert_allclose(diagonal[0], alpha, rtol=100 * jnp.finfo(dtype).eps)
    np.testing.assert_allclose(off[0], np.linalg.norm(A @ v - alpha * v), rtol=100 * jnp.finfo(dtype).eps)


_largest = jax.jit(lambda A: largest_eigenvalue(from_matrix(A, symmetric=True), A[0]))


@pytest.mark.parametrize("condition", [1e1, 1e3])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e8])
def test_the_largest_eigenvalue_from_below(condition, scale, dtype):
    n = 100
    A = scale * with_spectrum(np.geomspace(1 / condition, 1.0, n))
    estimate, matvecs = _largest(jnp.asarray(A, dtype))
    assert int(matvecs) == 16
    assert 0.95 * scale <= float(estimate) <= scale * (1 + 100 * float(jnp.finfo(dtype).eps))


def test_the_largest_eigenvalue_of_small_systems(dtype):
    A = jnp.asarray([[3.0]], dtype)
    estimate, matvecs = largest_eigenvalue(from_matrix(A, symmetric=True), A[0])
    assert (float(estimate), matvecs) == (3.0, 1)


def _similar(block: np.ndarray) -> np.ndarray:
    """A nonsymmetric matrix with the spectrum of ``block`` and of 0.1 I."""
    M = 0.1 * np.eye(N)
    M[: len(block), : len(block)] = block
    S = orthogonal(0) * np.geomspace(1.0, 3.0, N)
    return S @ M @ np.linalg.inv(S)


_power = jax.jit(lambda M, start: power_iteration(lambda x: M @ x, start, 60))


@pytest.mark.parametrize(
    ("block", "modulus"),
    [
        ([[0.9]], 0.9),
        ([[-1.5]], 1.5),
        ([[0.9, 1.0], [0.0, 0.5]], 0.9),
        ([[0.6, -0.6], [0.6, 0.6]], 0.6 * 2**0.5),
        ([[1e8]], 1e8),
    ],
    ids=["real", "negative", "non-normal", "complex pair", "huge"],
)
def test_power_iteration(block, modulus, dtype):
    M = jnp.asarray(_similar(np.array(block)), dtype)
    assert float(_power(M, jnp.asarray(rhs(), dtype))) == pytest.approx(modulus, rel=0.03)


def test_power_iteration_of_a_nilpotent_matrix_is_zero(dtype):
    assert float(_power(jnp.asarray(np.diag(np.ones(N - 1), 1), dtype), jnp.asarray(rhs(), dtype))) == 0.0
