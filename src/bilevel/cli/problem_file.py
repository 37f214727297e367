"""A user's Python file with ``make_problem()``. Whatever is wrong with it is one sentence that names the place."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from bilevel.comparison.attempt import in_words
from bilevel.models.catalog import Case
from bilevel.problems import Problem, validate
from bilevel.status import ProblemError

T = TypeVar("T")

MODULE = "problem_file"  # what the user's module is called inside this process
RETURNS = "(problem, lam, w0) or (problem, lam, w0, lower_data, upper_data)"


def load_problem(path: Path) -> Case:
    """Run the file, call its ``make_problem()``, and check what it returns.

    Parameters
    ----------
    path
        A Python file; modules beside it can be imported, as if it were run.

    Raises
    ------
    ProblemError
        The file cannot be read or run, or does not make a valid problem; one sentence with the file, the line
        where it raised, what was expected and what came.
    """
    module = _run_file(path)
    make_problem = getattr(module, "make_problem", None)
    if not callable(make_problem):
        raise ProblemError(f"{path}: expected a function make_problem() that returns {RETURNS}, but there is none")
    returned = _guarded(path, "make_problem()", make_problem)
    case = _as_case(path, returned)
    arguments = case.problem, case.lam, case.w0, case.lower_data, case.upper_data
    _guarded(path, "the problem of make_problem()", lambda: jax.eval_shape(validate, *arguments))
    return case


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ProblemError(f"{path}: expected a Python file with make_problem(), but there is no such file")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        code = compile(source, str(path), "exec")
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes
        line = getattr(error, "lineno", None)
        raise ProblemError(f"{_place(path, line)}: expected Python, but it is not: {_reason(error)}") from error
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        _guarded(path, "the file", lambda: exec(code, module.__dict__))
    finally:
        sys.path.pop(0)
    return module


def _guarded(path: Path, what: str, run: Callable[[], T]) -> T:
    """Run the user's code; an error becomes a sentence with the last line of the file that was on the way."""
    try:
        return run()
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        verb = "is not valid" if isinstance(error, ProblemError) else "raised"
        place = _place(path, lines[-1] if lines else None)
        raise ProblemError(f"{place}: {what} {verb}: {in_words(error)}") from error


def _as_case(path: Path, returned: Any) -> Case:
    """The returned tuple as a record of arrays."""
    if not isinstance(returned, tuple) or len(returned) not in (3, 5):
        raise ProblemError(f"{path}: make_problem() must return {RETURNS}, but returned {_described(returned)}")
    if not isinstance(returned[0], Problem):
        raise ProblemError(
            f"{path}: the first that make_problem() returns must be a bilevel.Problem, but is {_described(returned[0])}"
        )
    values = dict(zip(Case._fields[1:], returned[1:], strict=False))
    return Case(returned[0], **{name: _arrays(path, name, value) for name, value in values.items()})


def _arrays(path: Path, name: str, value: Any) -> Any:
    leaves = jax.tree_util.tree_leaves_with_path(value)
    for keys, leaf in leaves:
        try:
            jnp.asarray(leaf)
        except (TypeError, ValueError) as error:
            raise ProblemError(
                f"{path}: {name}{jax.tree_util.keystr(keys)} of make_problem() must be an array of numbers, but is "
                f"{_described(leaf)}"
            ) from error
    return jax.tree.map(jnp.asarray, value)


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"of type {type(value).__name__}"


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, SyntaxError) else str(error)


def _place(path: Path, line: int | None) -> str:
    return str(path) if line is None else f"{path}, line {line}"
