"""Settings of the whole suite: its precision comes from the process, JAX_ENABLE_X64=1 or 0."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# In their own products, too, the laws of float32 mean float32: by default a GPU keeps ten bits of it.
jax.config.update("jax_default_matmul_precision", "highest")

# The core is tested without the extras, too.
CLI = ("sklearn", "pandas", "pyarrow", "typer", "rich", "matplotlib", "joblib")
NEEDED_BY = {
    "cli": CLI, "comparison": CLI, "data": CLI, "experiments": CLI, "racing": CLI, "tuning": CLI,
    "models/test_models_against_sklearn.py": CLI,
    "linear/test_lineax.py": ("lineax",), "solvers/test_optimistix.py": ("optimistix",),
}  # fmt: skip
collect_ignore = [tests for tests, extras in NEEDED_BY.items() if not all(map(importlib.util.find_spec, extras))]


def pytest_report_header():
    flags = ("XLA_FLAGS", "JAX_ENABLE_X64", "OPENBLAS_CORETYPE")
    return ", ".join(f"{name}={os.environ.get(name, '')}" for name in flags)


def pytest_configure(config):
    config.addinivalue_line("markers", "float64: needs x64")


def pytest_runtest_setup(item):
    if item.get_closest_marker("float64") and not jax.config.jax_enable_x64:
        pytest.skip("x64 is off")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped():
    """XLA maps every compiled program into memory; a whole suite of them exceeds the limit of maps of a process."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def dtype():
    """The dtype that laws are held to in this process."""
    return jnp.dtype(jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)
