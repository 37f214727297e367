"""``bilevel reproduce``: the experiments of the papers, their records and their figures."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bilevel.cli.environment import configure_jax
from bilevel.cli.options import AsJson, Quiet
from bilevel.cli.progress import live_progress
from bilevel.cli.show_reproduce import show
from bilevel.comparison.output import make_directory
from bilevel.experiments import EXPERIMENTS, Check, Experiment, read_lines, write_lines
from bilevel.experiments.lines import Line, compact
from bilevel.status import ProblemError

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="; ".join(f"{name}: {experiment.about}" for name, experiment in EXPERIMENTS.items()) + ".",
        show_default=False,
    ),
]


def reproduce_command(
    name: Name,
    quick: Annotated[bool, typer.Option("--quick", help="A small version of it.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the records NAME.jsonl and the figures.", show_default=False)
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="File of its records: redraw and check, compute nothing.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the data and of what is drawn at random.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Reproduce an experiment of a paper: records, figures, and whether what the paper says holds in them."""
    experiment = find_experiment(name)
    if seed < 0:
        raise ProblemError(f"seed must be 0 or more, but is {seed}")
    if source is not None and quick:
        raise ProblemError("--quick computes a small version and --from computes nothing: give one of them")
    if out is not None:
        make_directory(out)
    lines = read_lines(source, name) if source is not None else compute(experiment, quick, seed, quiet)
    if out is not None:
        save(name, experiment, lines, out)
    checks = experiment.checks(lines)
    if as_json:
        sys.stdout.write(json.dumps(report(name, lines, checks), indent=2, allow_nan=False) + "\n")
    else:
        show(name, experiment.summary(lines), checks, out)
    if not all(check.holds for check in checks):
        raise typer.Exit(1)


def find_experiment(name: str) -> Experiment:
    """The experiment of this name.

    Raises
    ------
    ProblemError
        There is none.
    """
    if name not in EXPERIMENTS:
        raise ProblemError(f"unknown experiment '{name}': there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def compute(experiment: Experiment, quick: bool, seed: int, quiet: bool) -> list[Line]:
    """The records of an experiment, as they are read from a file."""
    configure_jax(experiment.dtype)
    settings = experiment.quick if quick else experiment.full
    with live_progress({experiment.stage: experiment.stage_name}, enabled=not quiet) as progress:
        return [compact(line) for line in experiment.run(settings, seed, progress)]


def save(name: str, experiment: Experiment, lines: list[Line], out: Path) -> None:
    """Write records and figures, in place of those of an earlier run.

    Raises
    ------
    ProblemError
        The directory cannot be written to.
    """
    write_lines(lines, out / f"{name}.jsonl")
    for ending, draw in experiment.figures.items():
        try:
            draw(lines).savefig(out / f"{name}{ending}.png", dpi=150)
        except OSError as error:
            raise ProblemError(f"cannot write to {out}: {error.strerror or error}") from error


def report(name: str, lines: list[Line], checks: list[Check]) -> Line:
    """What was claimed and seen, as plain values."""
    first = lines[0]
    about = {key: first[key] for key in ("seed", "dtype", "device", "versions")}
    claims = [{**check._asdict(), "holds": bool(check.holds)} for check in checks]
    return {"command": "reproduce", "experiment": name, **about, "records": len(lines), "checks": claims}
