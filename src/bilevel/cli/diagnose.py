"""``bilevel diagnose``: what kind of problem this is, which method fits it, and what the others would take."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from bilevel.cli.environment import configure_jax
from bilevel.cli.options import AsJson, Condition, Dtype, ProblemName, Seed, Size, find_case, in_a_sentence
from bilevel.cli.show_diagnosis import show_diagnosis
from bilevel.comparison.record import facts
from bilevel.diagnose import diagnose
from bilevel.diagnosis.report import Diagnosis
from bilevel.hypergradient import DEFAULT_TOL
from bilevel.models.catalog import Case
from bilevel.records import plain, versions


def diagnose_command(
    problem: ProblemName,
    tol: Annotated[float, typer.Option(help="Relative accuracy that methods are judged by.")] = DEFAULT_TOL,
    max_matvecs: Annotated[
        int | None, typer.Option(help="Budget of the recommended method, which is run.", show_default=False)
    ] = None,
    cite: Annotated[bool, typer.Option("--cite", help="Print the papers behind the recommendation as BibTeX.")] = False,
    size: Size = None,
    condition: Condition = None,
    seed: Seed = None,
    dtype: Dtype = "float64",
    as_json: AsJson = False,
) -> None:
    """Diagnose a problem: symmetry, contraction, conditioning, the method to use, and what others would take."""
    configure_jax(dtype)
    with redirect_stdout(sys.stderr):  # users' files may print
        case, origin = find_case(problem, dtype, size=size, condition=condition, seed=seed)
        with in_a_sentence(problem, "it cannot be diagnosed"):
            found = diagnose(
                case.problem, case.lam, case.w0, lower_data=case.lower_data, upper_data=case.upper_data, tol=tol,
                max_matvecs=max_matvecs,
            )  # fmt: skip
    name = Path(problem).name
    if as_json:
        sys.stdout.write(json.dumps(record(found, name, case, origin), indent=2, allow_nan=False) + "\n")
    else:
        show_diagnosis(found, name, cite=cite)


def record(found: Diagnosis, name: str, case: Case, origin: dict[str, Any]) -> dict[str, Any]:
    """Everything that was found, methods in words. No NaN: what is not a finite number is None."""
    measured = found.facts
    recommended = None
    if found.recommendation is not None:
        recommended = {**_without_method(found.recommendation), "papers": list(found.recommendation.papers)}
    return plain({
        "command": "diagnose",
        "problem": {"name": name, **facts(case), "origin": origin},
        "tol": found.tol,
        "findings": [*found.findings, found.advice],
        "reaches": {f"lam{path}": reached for path, reached in found.reaches.items()},
        "facts": {**asdict(measured), "condition": measured.condition, "floor": measured.floor},
        "recommendation": recommended,
        "alternatives": [_without_method(alternative) for alternative in found.alternatives],
        "citations": found.citations,
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    })  # fmt: skip


def _without_method(value: Any) -> dict[str, Any]:
    """The fields of a method's record but the method itself, which is no plain value."""
    return {key: item for key, item in vars(value).items() if key != "method"}
