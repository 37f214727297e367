"""What tuning one penalty per feature gains over the best single one, on five splits of six data sets.

    python benchmarks/tune_table.py            # run all and append a JSON line for every split
    python benchmarks/tune_table.py wine 2     # some data sets, fewer splits
    python benchmarks/tune_table.py --table    # only print the tables of the last run of every split
    python benchmarks/tune_table.py --draws    # the noisy demonstrations on eight draws of their data, one split each

Every line of ``benchmarks/records/tune.jsonl`` is the record of ``bilevel tune DATA --seed S`` and the time it was
made. The table is made from these lines only: means over the splits, and the standard error of the mean
difference of test losses. Seconds are those of the last split, without what the earlier splits have compiled,
and of the first, compilation included; processor seconds count all threads and tell a busy machine from a slow one.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np

from bilevel.data import Table, load
from bilevel.data.bundled import noisy_classification, noisy_regression
from bilevel.tuning import Settings, record, tune

RECORDS = Path(__file__).parent / "records" / "tune.jsonl"
DRAW_RECORDS = RECORDS.with_name("tune_draws.jsonl")
DRAWS = (0, *range(10, 17))  # 0 was looked at while the procedure was made, the others were not
DATA = ("noisy_classification", "noisy_regression", "breast_cancer", "digits", "diabetes", "wine")
SPLITS = 5


def main(words):
    if words == ["--draws"]:
        jax.config.update("jax_enable_x64", True)
        for demonstration in (noisy_classification, noisy_regression):
            for draw in DRAWS:
                frame = demonstration(draw)
                table = Table(demonstration.__name__, frame.drop(columns="target"), frame["target"])
                append({**run(table, 0), "draw": draw}, DRAW_RECORDS)
    elif words != ["--table"]:
        jax.config.update("jax_enable_x64", True)
        names = [word for word in words if not word.isdigit()] or DATA
        splits = next((int(word) for word in words if word.isdigit()), SPLITS)
        for name in names:
            for seed in range(splits):
                append(run(load(name), seed), RECORDS)
    print(render(read(RECORDS)) + "\n\n" + render_draws(read(DRAW_RECORDS)))


def run(table, seed):
    """One record; a failure is one too."""
    stamp = {"time": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        facts = record(tune(table, Settings(seed=seed)))
    except Exception as error:
        return {**stamp, "data": {"name": table.name}, "seed": seed, "error": repr(error)}
    del facts["grid"]
    return {**stamp, **facts, "error": None}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(line, path):
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def render(lines):
    """The last line of every data set and seed, as a Markdown table."""
    last = {(line["data"]["name"], line["seed"]): line for line in lines}
    rows = [
        "| data | loss, no tuning | best of 25 | tuned | tuned - best | accuracy or R2, best of 25 | tuned "
        "| spread chosen | seconds, last / first | processor seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows += [row(name, [last[key] for key in sorted(last) if key[0] == name]) for name in DATA]
    return "\n".join(rows)


def row(name, lines):
    failed = [line for line in lines if line["error"]]
    if failed or not lines:
        return f"| {name} | {len(failed)} of {len(lines)} runs failed |" + " |" * 8
    test = {
        (model, what): np.array([line["result"][model]["test"][what] for line in lines])
        for model in ("no_tuning", "single_penalty", "tuned")
        for what in ("loss", "quality")
    }
    losses = [test[model, "loss"].mean() for model in ("no_tuning", "single_penalty", "tuned")]
    change = test["tuned", "loss"] - test["single_penalty", "loss"]
    error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else float("nan")
    relative = change.mean() / losses[1]
    spreads = ", ".join(f"{line['chosen']['spread']:.2g}" for line in lines)
    seconds = [line["seconds"] for line in (lines[-1], lines[0])]
    cells = [
        name,
        *(f"{loss:.4f}" for loss in losses),
        f"{change.mean():+.4f} ± {error:.4f} ({relative:+.1%})",
        *(f"{test[model, 'quality'].mean():.3f}" for model in ("single_penalty", "tuned")),
        spreads,
        " / ".join(f"{s['total']:.0f}" for s in seconds),
        " / ".join(f"{s['cpu']:.0f}" if "cpu" in s else "-" for s in seconds),
    ]
    return "| " + " | ".join(cells) + " |"


def render_draws(lines):
    """Test losses of every draw; the mean is over the draws that nothing was chosen on."""
    last = {(line["data"]["name"], line["draw"]): line for line in lines if not line["error"]}
    rows = ["| data | draw | best of 25 | tuned | change |", "|---|---|---|---|---|"]
    for name in ("noisy_classification", "noisy_regression"):
        pairs = {d: [last[k]["result"][m]["test"]["loss"] for m in ("single_penalty", "tuned")]
                 for k in sorted(last) if k[0] == name for d in [k[1]]}  # fmt: skip
        fresh = [pair for draw, pair in pairs.items() if draw >= 10]
        if fresh:
            pairs[f"mean of {len(fresh)} fresh draws"] = np.mean(fresh, axis=0)
        rows += [f"| {name} | {d} | {a:.4f} | {b:.4f} | {b / a - 1:+.1%} |" for d, (a, b) in pairs.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
