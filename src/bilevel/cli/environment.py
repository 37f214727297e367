"""What the command line sets up for itself in JAX; the library never does."""

import os
import sys
from pathlib import Path

import jax

from bilevel.status import ProblemError

DTYPES = ("float64", "float32")


def configure_jax(dtype: str) -> None:
    """Turn on float64 where it is asked for, and keep compiled programs for the next run.

    Parameters
    ----------
    dtype
        ``"float64"`` or ``"float32"``.
    """
    _set_precision(dtype)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # then every run compiles anew
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def configure_for_timing(dtype: str) -> None:
    """As :func:`configure_jax`, but every program is compiled anew: how long that takes is measured."""
    _set_precision(dtype)
    jax.config.update("jax_enable_compilation_cache", False)


def _set_precision(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ProblemError(f"dtype must be one of {', '.join(DTYPES)}, but is '{dtype}'")
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)


def cache_directory() -> Path:
    """Where this user's programs keep what they can make again."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        base = Path(os.environ["LOCALAPPDATA"])
    else:
        base = Path.home() / ".cache"
    return base / "bilevel" / "jax"
