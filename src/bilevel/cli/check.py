"""``bilevel check``: is the hypergradient of a problem right, and if not, which part of it is wrong."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from bilevel.check import DEFAULT_TOL, check_hypergradient
from bilevel.checking.report import Check, Part
from bilevel.cli.environment import configure_jax
from bilevel.cli.options import AsJson, Condition, Dtype, ProblemName, Seed, Size, find_case, in_a_sentence
from bilevel.cli.show_check import show_check
from bilevel.comparison import METHODS, Budget
from bilevel.comparison.methods import Setting, choose
from bilevel.comparison.record import facts
from bilevel.models.catalog import Case
from bilevel.records import plain, versions

AUTOMATIC = METHODS[0].name
budget = Budget()


def check_command(
    problem: ProblemName,
    method: Annotated[
        str, typer.Option(help=f"What to check, one of {', '.join(entry.name for entry in METHODS)}.")
    ] = AUTOMATIC,
    tol: Annotated[
        float, typer.Option(help="Relative accuracy that the hypergradient and its parts are held to.")
    ] = DEFAULT_TOL,
    steps: Annotated[int, typer.Option(help="Steps of the lower-level iterations.")] = budget.steps,
    products: Annotated[
        int, typer.Option(help="Products of the adjoint solves; steps of truncated ITD.")
    ] = budget.products,
    size: Size = None,
    condition: Condition = None,
    seed: Seed = None,
    dtype: Dtype = "float64",
    as_json: AsJson = False,
) -> None:
    """Check a hypergradient against the truth, and say which part is wrong. Exit code 1: something is."""
    configure_jax(dtype)
    with redirect_stdout(sys.stderr):  # users' files may print
        case, origin = find_case(problem, dtype, size=size, condition=condition, seed=seed)
        chosen = choose(Setting(case, Budget(tol, steps, products)), [method])[method]
        with in_a_sentence(problem, "its hypergradient cannot be computed"):
            found = check_hypergradient(
                case.problem, case.lam, case.w0, lower_data=case.lower_data, upper_data=case.upper_data,
                method=None if method == AUTOMATIC else chosen, tol=tol,
            )  # fmt: skip
    name = Path(problem).name
    if as_json:
        sys.stdout.write(json.dumps(record(found, name, case, origin), indent=2, allow_nan=False) + "\n")
    else:
        show_check(found, name, case)
    if not found.ok:
        raise typer.Exit(1)


def record(found: Check, name: str, case: Case, origin: dict[str, Any]) -> dict[str, Any]:
    """Everything that was found. No NaN: what is not a finite number is None."""
    values = {item.name: getattr(found, item.name) for item in fields(found)}
    parts = {key: value for key, value in values.items() if isinstance(value, Part)}
    return plain({
        "command": "check",
        "problem": {"name": name, **facts(case), "origin": origin},
        "ok": found.ok,
        "summary": found.summary,
        **{key: value for key, value in values.items() if value is not None and key not in parts},
        "parts": {key: {**asdict(part), "verdict": part.verdict} for key, part in parts.items()},
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    })  # fmt: skip
