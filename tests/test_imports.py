"""Imports go one way, none is hidden in a function, and the core needs no extra."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bilevel

ROOT = Path(bilevel.__file__).parent
# Lowest first. Rooms on one level do not import each other.
LEVELS = (
    ("precision", "tree", "citations"),
    ("status",),
    ("batch_axes", "permutation", "quadruple"),
    ("loops", "engine", "sampling", "schedules", "prox"),
    ("host",),
    ("linear",),
    ("problems",),
    ("lagrangian",),
    ("solvers",),
    ("certificates",),
    ("methods",),
    ("automatic",),
    ("hypergradient", "implicit", "sharpen"),
    ("plan",),
    ("checking",),
    ("diagnosis",),
    ("check", "diagnose"),
    ("algorithms",),
    ("driver",),
    ("optimize",),
    ("models", "data", "records"),
    ("tuning", "comparison"),
    ("experiments",),
    ("racing",),
    ("cli",),
    ("__init__",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
EXTRAS = (
    "typer",
    "rich",
    "pandas",
    "pyarrow",
    "sklearn",
    "matplotlib",
    "joblib",
    "equinox",
    "lineax",
    "numpy_quaddtype",
    "optimistix",
)
MODULES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name below the package: ``linear.cg``, ``tree``, ``__init__`` for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, by dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = {name.removeprefix("bilevel.") for name in found if name.startswith("bilevel.")}
    return {name if name in NAMES else name.rpartition(".")[0] or "__init__" for name in found}


def room(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    here = room(name_of(path))
    for target in imported(path):
        assert room(target) == here or LEVEL[room(target)] < LEVEL[here], f"{name_of(path)} imports {target}"


def test_every_room_has_a_level():
    assert {room(name) for name in NAMES} <= set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_import_hides_in_a_function(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            hidden = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not hidden, f"{name_of(path)}, line {hidden[0].lineno}"


def test_no_cycles_inside_rooms():
    graph = {name_of(path): imported(path) - {name_of(path)} for path in MODULES}
    while graph:
        leaves = {name for name, targets in graph.items() if not targets & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {name: targets for name, targets in graph.items() if name not in leaves}


def test_the_core_needs_no_extra_and_leaves_x64_alone():
    script = (
        "import sys, jax; before = jax.config.jax_enable_x64; import bilevel; "
        f"print([m for m in {EXTRAS} if m in sys.modules], before == jax.config.jax_enable_x64)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.split("\n")[0] == "[] True"
