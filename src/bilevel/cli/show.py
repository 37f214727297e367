"""What a person sees of a tuning run: the names of its stages, scores at the end."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from bilevel.tuning.record import record
from bilevel.tuning.run import MODELS, Result

STAGES = {
    "grid": "one penalty: grid of 25",
    "priors": "one per feature: path of priors",
    "final": "last hypergradient, refit, test",
}
LABELS = {"no_tuning": "no tuning (penalty 1)", "single_penalty": "best of 25", "tuned": "tuned"}


def show(result: Result, out: Path | None) -> None:
    """Print scores, the choice and why, and what it cost."""
    console = Console(highlight=False, soft_wrap=True)
    facts = record(result)
    data, chosen = facts["data"], facts["chosen"]
    console.print(
        f"[bold]{data['name']}[/]: {facts['model']} regression of '{data['target']}' on {data['features']} features, "
        f"{data['train_rows']} training and {data['test_rows']} test rows"
    )
    console.print(_scores(result, facts))
    console.print(f"loss: {facts['loss']}; best single penalty {facts['single_penalty']:.3g}")
    spread = "the single penalty" if chosen["spread"] == 0 else f"log penalties spread by {chosen['spread']:.3g}"
    strength = "infinite" if chosen["strength"] is None else f"{chosen['strength']:.3g}"
    console.print(f"prior chosen: strength {strength} ({spread}): {chosen['reason']}")
    error = facts["relative_error"]
    console.print(
        f"last hypergradient: relative error {'unknown' if error is None else f'{error:.1e}'}; "
        f"{facts['hypergradients']} hypergradients, {facts['matvecs']} matvecs, {facts['seconds']['total']:.1f} s"
    )
    if facts["unconverged_solves"]:
        console.print(f"note: {facts['unconverged_solves']} solves of the search missed their tolerance")
    for note in facts["notes"]:
        console.print(f"note: {note}")
    if out is not None:
        console.print(f"written: {out}")


def _scores(result: Result, facts: dict) -> Table:
    quality = facts["quality"]
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("")
    table.add_column("tuned", justify="right")
    for part in ("valid.", "test"):
        table.add_column(f"{part} loss", justify="right")
        table.add_column(f"{part} {quality}", justify="right")
    for name in MODELS:
        count = {"no_tuning": 0, "single_penalty": 1, "tuned": facts["hyperparameters"]}[name]
        scores = (result.validation[name], result.test[name])
        table.add_row(LABELS[name], str(count), *(f"{x:.4f}" for s in scores for x in (s.loss, s.quality)))
    return table
