"""Virtual environments of the peers, made on demand under ``out/bench-env``."""

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "out" / "bench-env"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")  # XLA takes as many by itself


@dataclass(frozen=True)
class Library:
    """Where a library is installed, from what, and whose versions are recorded."""

    environment: str | None
    requirements: tuple[str, ...]
    versions: tuple[str, ...]


LIBRARIES = {
    "bilevel": Library(None, (), ("jax", "numpy")),
    "jaxopt": Library("jaxopt", ("jax==0.10.2", "jaxopt==0.8.5"), ("jaxopt", "jax", "numpy")),
    "optimistix": Library("optimistix", ("jax==0.10.2", "optimistix==0.1.0"), ("optimistix", "lineax", "jax", "numpy")),
    "torchopt": Library("torch", ("torch==2.13.0", "numpy", "torchopt==0.7.3"), ("torchopt", "torch", "numpy")),
    "hypertorch": Library("torch", ("torch==2.13.0", "numpy"), ("torch", "numpy")),
}
TOGETHER = "bilevel, jaxopt and optimistix"  # in one process, this library from its sources
_ENVIRONMENTS = LIBRARIES | {
    TOGETHER: Library(
        "together",
        (
            *LIBRARIES["jaxopt"].requirements,
            *LIBRARIES["optimistix"].requirements[1:],
            "optax==0.2.8",
            "jaxtyping==0.3.11",
        ),
        (),
    )
}


class UnavailableError(Exception):
    """A library that cannot be installed, with the reason."""


def python_of(name):
    """The interpreter that has a library, installed first where it is missing."""
    library = _ENVIRONMENTS[name]
    if library.environment is None:
        return Path(sys.executable)
    folder = FOLDER / library.environment
    python, stamp = folder / "bin" / "python", folder / f"{name}.txt"
    if not python.exists():
        venv.create(folder, with_pip=True)
    wanted = "\n".join(library.requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {name} in {folder.relative_to(ROOT)}", flush=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *library.requirements]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UnavailableError(f"not installed: {last_line(done.stderr)}")
        stamp.write_text(wanted)
    return python


def variables(name, dtype, hypertorch):
    """Environment variables of a runner: threads, precision, and the checkout of hypertorch."""
    values = {key: value for key, value in os.environ.items() if key not in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")}
    values |= dict.fromkeys(THREAD_VARIABLES, str(CORES))
    values["JAX_ENABLE_X64"] = "1" if dtype == "float64" else "0"
    if name != "bilevel":
        values["PYTHONPATH"] = {"hypertorch": str(hypertorch), TOGETHER: str(ROOT / "src")}.get(name, "")
    return values


def versions(name, python, hypertorch):
    """Versions of a library and of what it computes with; of a checkout the commit."""
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    names = LIBRARIES[name].versions
    numbers = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout.split()
    found = dict(zip(names, numbers, strict=True))
    if name == "hypertorch":
        command = ["git", "-C", hypertorch, "rev-parse", "--short", "HEAD"]
        found = {name: subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"} | found
    return found


def last_line(text):
    """The last line of an error message, not too long."""
    return (text.strip().splitlines() or ["no message"])[-1][:200]
