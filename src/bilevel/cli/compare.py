"""``bilevel compare``: methods side by side on a built-in problem or on a user's file."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from bilevel.cli.environment import configure_for_timing
from bilevel.cli.problem_file import load_problem
from bilevel.cli.progress import live_progress
from bilevel.cli.show_comparison import show_comparison
from bilevel.comparison import METHODS, Budget, compare, record, write
from bilevel.comparison.output import make_directory
from bilevel.models.catalog import CATALOG, CONDITION, SIZE, Case, draw
from bilevel.status import ProblemError

STAGES = {"compile": "methods compiled", "run": "rounds of timed runs", "truth": "truth"}
DTYPES = ("float64", "float32")
defaults = Budget()


def compare_command(
    problem: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FILE",
            help=f"Python file with make_problem(), or one of {', '.join(CATALOG)}.",
            show_default=False,
        ),
    ],
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated names out of {', '.join(entry.name for entry in METHODS)}.",
            show_default="all that fit the problem",
        ),
    ] = None,
    tol: Annotated[float, typer.Option(help="Relative accuracy asked of the automatic method.")] = defaults.tol,
    steps: Annotated[int, typer.Option(help="Steps of the lower-level iterations.")] = defaults.steps,
    products: Annotated[
        int, typer.Option(help="Products of the adjoint solves; steps of truncated ITD.")
    ] = defaults.products,
    size: Annotated[
        int | None, typer.Option(help="Lower-level unknowns of a built-in problem.", show_default=str(SIZE))
    ] = None,
    condition: Annotated[
        float | None, typer.Option(help="Condition number of a built-in problem.", show_default=f"{CONDITION:g}")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a built-in problem.", show_default="0")] = None,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = DTYPES[0],
    out: Annotated[
        Path | None, typer.Option(help="Directory for compare.json and compare.png.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Compare hypergradient methods on one problem: true and estimated error, work, time and memory."""
    if dtype not in DTYPES:
        raise ProblemError(f"dtype must be one of {', '.join(DTYPES)}, but is '{dtype}'")
    budget = Budget(tol, steps, products)
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    configure_for_timing(dtype)
    with redirect_stdout(sys.stderr):  # users' files may print
        case, origin = load(problem, {"size": size, "condition": condition, "seed": seed}, dtype)
        if out is not None:
            make_directory(out)
        with live_progress(STAGES, enabled=not quiet) as progress:
            found = compare(case, Path(problem).name, names, budget, progress, origin)
    if out is not None:
        write(found, out)
    if as_json:
        sys.stdout.write(json.dumps(record(found), indent=2, allow_nan=False) + "\n")
    else:
        show_comparison(found, out)
    if all(row.failed for row in found.rows):
        raise typer.Exit(1)


def load(problem: str, options: dict[str, Any], dtype: str) -> tuple[Case, dict[str, Any]]:
    """The problem of a file, or a built-in one drawn with the options that are not None; and how it was made.

    Raises
    ------
    ProblemError
        No such file or name, or something is wrong with the file or the options.
    """
    given = {name: value for name, value in options.items() if value is not None}
    path = Path(problem)
    if path.suffix != ".py" and len(path.parts) == 1 and not path.exists():
        origin = {"size": SIZE, "condition": CONDITION, "seed": 0, **given}
        return draw(problem, dtype=dtype, **origin), origin
    if given:
        raise ProblemError(f"--{next(iter(given))} is an option of built-in problems, but {problem} is a file")
    return load_problem(path), {"file": problem}
