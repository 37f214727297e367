"""The page ``docs/benchmarks.md``, from the newest records only."""

import json
from pathlib import Path

FLOOR_RECORDS = Path(__file__).parent / "records" / "fixed_budget.jsonl"
PEER_RECORDS = FLOOR_RECORDS.with_name("peers.jsonl")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
OURS, ACCURATE = "bilevel", "accuracy"


def append(record, path):
    """One JSON line."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def newest_records():
    """The last floor record of every size and method, and the records of the last comparison."""
    floor = {(r["n"], r["d"], r["method"]): r for r in read(FLOOR_RECORDS)}
    peers = read(PEER_RECORDS)
    return list(floor.values()), [r for r in peers if r["run"] == peers[-1]["run"]]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def render(floor, peers):
    """The page."""
    r = floor[0]
    lines = [
        "# What a hypergradient costs",
        "",
        "Measured by `make bench`. The problem is logistic regression with one penalty per feature, as many validation",
        "as training samples; every library reads the same arrays.",
        "Time to a relative error of 1e-6 at harder conditions: [accuracy](accuracy.md).",
        "",
        "## Against the floor",
        "",
        "100 gradient steps on the lower level, then 20 products for the adjoint (AID with CG, with the fixed-point",
        "iteration FP), or reverse mode through the steps (ITD). The floor is the time NumPy needs to read the data",
        f"matrix as often. {r['threads']} CPU threads, {r['dtype']}, {in_words(r['versions'])}, {r['time'][:10]}.",
        "",
        *block(floor_table(floor)),
    ]
    return "\n".join([*lines, *(comparison(peers) if peers else [])]) + "\n"


def floor_table(records):
    """Times over the floor, in 80 columns."""
    lines = [
        "first: first call, s.  ms, +error: median without and with h.error.",
        "/floor, +error: time over the floor, without and with h.error.",
        "",
        "size        method  first      ms  +error   floor  /floor  +error  matvecs(+err)",
    ]
    for r in records:
        counts = r["matvecs"]
        lines.append(
            f"{r['n']}x{r['d']}".ljust(12)
            + f"{r['method']:<7} {r['first_call_with_error']:5.2f} {1e3 * r['seconds']:7.1f} "
            + f"{1e3 * r['seconds_with_error']:7.1f} {1e3 * r['floor']:7.1f} {r['over_floor']:7.2f} "
            + f"{r['over_floor_with_error']:7.2f}  {counts['lower'] + counts['adjoint']:>6} (+{counts['error']})"
        )
    return "\n".join(lines)


def comparison(records):
    """The part of the page on other libraries."""
    versions = {r["library"]: in_words(r["versions"]) for r in records if r["versions"]}
    budget, accuracy = ([r for r in records if r["table"] == table] for table in ("budget", "accuracy"))
    return [
        "",
        "## Against other libraries, the same work",
        "",
        "The same 100 steps and 20 products, or 100 steps back. The libraries take turns in processes of their own;",
        f"ratios are those of medians in one run ({records[0]['run'][:10]}, {records[0]['threads']} CPU threads).",
        "",
        "- *ms*, *min*, *max*: one call, median and range over all rounds;",
        "- *first*: seconds of the first call, compilation included;",
        "- *ratio*: their time over ours without the error estimate; above 1 we are faster;",
        "- *error*: true relative error, against Newton's method and a dense solve in float64;",
        "- *differs*: relative distance to our hypergradient, which says whether the work is the same.",
        "",
        *blocks(budget),
        *faster(budget),
        "",
        "Not quite the same:",
        "",
        *notes(budget),
        "- PyTorch gets one thread at 500 x 50, where a second one does not help it.",
        "",
        "Versions:",
        "",
        *(f"- {name}: {words}." for name, words in versions.items()),
        "",
        "## Against other libraries, the same accuracy",
        "",
        "Time to a true relative error of 1e-6, float64. We are asked for `tol=1e-6` and nothing else; for every other",
        "library the fastest setting of a small grid that reaches 1e-6 was picked, which takes knowing the answer.",
        "",
        *blocks(accuracy),
        *faster(accuracy),
        "",
        "Settings:",
        "",
        *settings(accuracy),
    ]


def blocks(records):
    return [line for table in comparison_tables(records) for line in [*block(table), ""]]


def comparison_tables(records):
    """One table for every size and dtype, in 80 columns."""
    keys = dict.fromkeys(map(key, records))
    return [comparison_table([r for r in records if key(r) == wanted]) for wanted in keys]


def key(r):
    return r["table"], r["n"], r["d"], r["dtype"]


def comparison_table(records):
    r = records[0]
    titles = ["ms", "min", "max", "first", "ratio", "error", "differs"][: 7 if r["table"] == "budget" else 6]
    widths = [8, 8, 8, 7, 7, 7, 9]
    head = " " * 26 + "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=False))
    lines = [f"{r['n']} x {r['d']}, {r['dtype']}", "", head]
    for work in dict.fromkeys(r["work"] for r in records):
        lines += [] if work == ACCURATE else [work]
        lines += [row(r, ratio(r, records)) for r in records if r["work"] == work]
    return "\n".join(lines)


def row(r, ratio):
    """One library."""
    if r["failure"]:
        return f"  {r['label']:<24} {r['failure']}"[:80]
    seconds = r["seconds"]
    times = "".join(f"{1e3 * seconds[key]:8.{2 if seconds[key] < 1 else 0}f}" for key in ("median", "min", "max"))
    relation = f"{'-':>7}" if ratio is None else f"{ratio:7.2f}"
    text = f"  {r['label']:<24}{times}{r['first_call']:7.2f}{relation}{r['true_error']:7.0e}"
    return text if r["difference_to_ours"] is None else text + f"{r['difference_to_ours']:9.0e}"


def ratio(r, records):
    """Its time over ours for the same work; None where either failed."""
    same = (own for own in records if own["label"] == OURS and key(own) == key(r) and own["work"] == r["work"])
    own = next(same, None)
    if own is None or own["failure"] or r["failure"]:
        return None
    return r["seconds"]["median"] / own["seconds"]["median"]


def faster(records):
    """The rows of other libraries that took less time than ours."""
    lines = ["Faster than we are:", ""]
    for r in records:
        relation = ratio(r, records)
        if r["library"] != OURS and relation is not None and relation < 1:
            work = "" if r["work"] == ACCURATE else f"{r['work']}, "
            lines.append(f"- {r['n']} x {r['d']}, {r['dtype']}, {work}{r['label']}: {relation:.2f}.")
    return lines if len(lines) > 2 else ["None of them was faster."]


def notes(records):
    """What is not quite the same work, and why a row failed."""
    seen = dict.fromkeys((r["label"], text) for r in records for text in (r["note"], r["failure"]) if text)
    return [f"- {label}: {note}." for label, note in seen]


def settings(records):
    """The setting picked for every library and size."""
    lines = []
    for r in records:
        if not r["failure"]:
            words = ", ".join(f"{name} {value}" for name, value in r["setting"].items())
            lines.append(f"- {r['label']}, {r['n']} x {r['d']}: {r['method']}, {words}.")
    return lines


def block(text):
    return ["```", text, "```"]


def in_words(versions):
    return ", ".join(f"{name} {version}" for name, version in versions.items())
