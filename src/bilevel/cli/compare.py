"""``bilevel compare``: methods side by side on a built-in problem or on a user's file."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from bilevel.cli.environment import configure_for_timing
from bilevel.cli.options import AsJson, Condition, Dtype, ProblemName, Quiet, Seed, Size, find_case
from bilevel.cli.progress import live_progress
from bilevel.cli.show_comparison import show_comparison
from bilevel.comparison import METHODS, Budget, compare, record, write
from bilevel.comparison.output import make_directory

STAGES = {"compile": "methods compiled", "run": "rounds of timed runs", "truth": "truth"}
defaults = Budget()


def compare_command(
    problem: ProblemName,
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
    size: Size = None,
    condition: Condition = None,
    seed: Seed = None,
    dtype: Dtype = "float64",
    out: Annotated[
        Path | None, typer.Option(help="Directory for compare.json and compare.png.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare hypergradient methods on one problem: true and estimated error, work, time and memory."""
    budget = Budget(tol, steps, products)
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    configure_for_timing(dtype)
    with redirect_stdout(sys.stderr):  # users' files may print
        case, origin = find_case(problem, dtype, size=size, condition=condition, seed=seed)
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
