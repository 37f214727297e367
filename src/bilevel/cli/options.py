"""What the commands about one problem share: their options, and the problem these name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bilevel.cli.problem_file import load_problem
from bilevel.comparison.attempt import in_words
from bilevel.models.catalog import CATALOG, CONDITION, SIZE, Case, draw
from bilevel.status import BilevelError, ProblemError

ProblemName = Annotated[
    str,
    typer.Argument(
        metavar="NAME_OR_FILE",
        help=f"Python file with make_problem(), or one of {', '.join(CATALOG)}.",
        show_default=False,
    ),
]
Size = Annotated[int | None, typer.Option(help="Lower-level unknowns of a built-in problem.", show_default=str(SIZE))]
Condition = Annotated[
    float | None, typer.Option(help="Condition number of a built-in problem.", show_default=f"{CONDITION:g}")
]
Seed = Annotated[int | None, typer.Option(help="Seed of a built-in problem.", show_default="0")]
Dtype = Annotated[str, typer.Option(help="float64 or float32.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the record as JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def find_case(problem: str, dtype: str, **options: Any) -> tuple[Case, dict[str, Any]]:
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


@contextmanager
def in_a_sentence(problem: str, failure: str) -> Iterator[None]:
    """What the functions of a user's file raise inside becomes one sentence, ``problem: failure: reason``."""
    try:
        yield
    except BilevelError:
        raise
    except Exception as error:
        raise ProblemError(f"{problem}: {failure}: {in_words(error)}") from error
