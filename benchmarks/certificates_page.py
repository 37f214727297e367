"""Pages of the counts: docs/error-law.md, and the tables between two marks of docs/bounds.md."""

import numpy as np

EPS = {name: float(np.finfo(name).eps) for name in ("float64", "float32")}
FLOOR = {"float64": 1e-9, "float32": 1e-4}  # relative, of a-priori bounds: rounding is not in them
SMALL_ERROR = 1e-2  # below which a bound is compared with the error
LONG = 5.0  # log of what q^t must fall by for a slope to be told from the ups and downs of a curve
KINDS = {"float64": ("bound", "sharpened"), "float32": ("bound",)}
QUOTIENT = 1e-14  # relative rounding of the numbers of the records, which are quotients of float64
DECADES = range(8)
MARKS = "<!-- counts by benchmarks/certificates.py -->", "<!-- end of counts -->"


def summarize(records, docs):
    """Print both tables and write them into the pages."""
    law, counts = "\n".join(law_page(records)) + "\n", "\n".join(bounds_part(records)) + "\n"
    print(law, counts, sep="\n")
    (docs / "error-law.md").write_text(law)
    page = docs / "bounds.md"
    before, _, rest = page.read_text().partition(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n\n{counts}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


def law_page(records):
    """The error estimate against the true error."""
    rows = [row for row in hypergradients(records) if in_window(row)]
    seen = sorted({", ".join(f"{name} {version}" for name, version in r["versions"].items()) for r in records})
    computed = sum(len(record["hypergradients"]) for record in records)
    lines = [
        "# The error estimate against the true error",
        "",
        "Made by `python benchmarks/certificates.py summary` from the records of",
        "`python benchmarks/certificates.py draw`.",
        "",
        f"{len(records)} random problems, {computed} hypergradients, {'; '.join(seen)}. The true relative error of",
        f"{len(rows)} of them lies between `10 eps cond(A)` and 0.1, where the law speaks; the tables are of these.",
        "Truths are of quadruple precision.",
        "",
        "- *within 2*: share whose `h.error` is within a factor of two of the true error;",
        "- *flagged*: share whose status says that the error was not resolved, and *within 2* among the others;",
        "- *cost*: matvecs of the estimate over those of the hypergradient: of the totals, then median and 95th",
        "  percentile. Where the hypergradient took less than 24, the estimate may take 12 all the same.",
    ]
    for refine in (0, 1):
        lines += ["", f"## {'Refined once' if refine else 'Unrefined'}", ""]
        lines += ["| group | hypergradients | within 2 | flagged | within 2, not flagged | cost | median | 95th |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += [law_row(key, group) for key, group in groups([row for row in rows if row.get("refine") == refine])]
    return lines


def bounds_part(records):
    """Bounds against true errors."""
    rows = hypergradients(records)
    proved = [(row, row[kind]) for row in rows for kind in KINDS[row["dtype"]] if None not in (row[kind], row["true"])]
    below = sum(bound < row["true"] * (1 - QUOTIENT) for row, bound in proved)
    unrolled = [record for record in records if record["apriori"]]
    points = [point for record in unrolled for point in apriori_points(record)]
    above = sum(not error <= bound + floor for error, bound, floor in points)
    slopes = [slope for record in unrolled for slope in relative_slopes(record)]
    flat, long_flat = ([slope for slope, range_ in slopes if slope < 0.9 and range_ >= least] for least in (0, LONG))
    long = sum(range_ >= LONG for _, range_ in slopes)
    sizes = [record["n"] for record in records]
    lines = [
        f"Over {len(records)} random problems (n from {min(sizes)} to {max(sizes)}, condition 1 to 1e8, float32 and",
        f"float64, loose to tight budgets) a bound was below the true error in {below} of {len(proved)} comparisons,",
        f"and an a-priori bound in {above} of {len(points)} points of its curves (beside a floor of",
        "1e-9, float32 1e-4, for rounding). Errors fell more slowly than 0.9 of the rate of their bound in",
        f"{len(long_flat)} of {long} curves that fall by five powers of e, and in {len(flat)} of all {len(slopes)}.",
        "Bound over error, where the true relative error is below 1e-2, no bound counting as infinite; and the same",
        "after `sharpen_bound`:",
        "",
        "| family | dtype | hypergradients | median | 95th percentile | sharpened: median | 95th percentile |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = sorted({(row["family"], row["dtype"]) for row in rows})
    lines += [ratio_row(key, [row for row in rows if (row["family"], row["dtype"]) == key]) for key in keys]
    lines += [
        "",
        "Share of problems some bound of which is below the norm of the gradient, by decade of the condition number;",
        "a second percentage is after `sharpen_bound`:",
        "",
        "| family | dtype | " + " | ".join(f"1e{decade}" for decade in DECADES) + " |",
        "|---|---|" + "---|" * len(DECADES),
    ]
    for key in keys:
        mine = [record for record in records if (record["family"], record["dtype"]) == key]
        cells = [informative_share([r for r in mine if decade_of(r) == decade]) for decade in DECADES]
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    return lines


def hypergradients(records):
    """One row for each hypergradient, with the facts of its problem."""
    facts = ("family", "n", "dtype", "condition")
    return [{name: record[name] for name in facts} | h for record in records for h in record["hypergradients"]]


def in_window(row):
    """Whether the true relative error lies where the law of the estimate speaks."""
    return row["true"] is not None and above_rounding(row) and row["true"] <= 0.1


def above_rounding(row):
    """Whether the true error is above what rounding makes of the solution."""
    return row["true"] >= 10 * EPS[row["dtype"]] * row["condition"]


def decade_of(row):
    """Of the condition number; 1e8 belongs to the last."""
    return min(int(np.log10(row["condition"])), DECADES[-1])


def groups(rows):
    """All, and by family, dtype, size and decade of the condition number, with their names."""
    found = {"all": rows}
    for row in rows:
        size, decade = f"n {'>=' if row['n'] >= 900 else '<'} 900", f"condition 1e{decade_of(row)}"
        for key in (row["family"], row["dtype"], size, decade):
            found.setdefault(key, []).append(row)
    return [("all", found.pop("all")), *sorted(found.items())]


def law_row(key, rows):
    """One line of a table of the law."""
    if not rows:
        return f"| {key} | 0 |" + " - |" * 6
    within = np.array([row["error"] is not None and 0.5 <= row["error"] / row["true"] <= 2.0 for row in rows])
    flagged = np.array([row["status"] != "OK" for row in rows])
    rest = f"{within[~flagged].mean():.1%}" if not flagged.all() else "-"
    cost = np.array([[row["estimate_matvecs"], max(row["matvecs"], 1)] for row in rows], float)
    numbers = [cost[:, 0].sum() / cost[:, 1].sum(), *np.quantile(cost[:, 0] / cost[:, 1], [0.5, 0.95])]
    cells = [key, str(len(rows)), f"{within.mean():.1%}", f"{flagged.mean():.1%}", rest]
    return "| " + " | ".join(cells + [f"{number:.2f}" for number in numbers]) + " |"


def ratio_row(key, rows):
    """Bound over error of all small errors; no bound counts as infinite."""
    small = [row for row in rows if row["true"] is not None and 0 < row["true"] < SMALL_ERROR]
    cells = [*key, str(len(small))]
    for kind in KINDS[key[1]]:
        ratios = [np.inf if row[kind] is None else row[kind] / row["true"] for row in small]
        cells += [f"{np.quantile(ratios, q, method='higher'):.2g}" for q in (0.5, 0.95)] if ratios else ["-", "-"]
    return "| " + " | ".join(cells + ["-"] * (7 - len(cells))) + " |"


def informative_share(records):
    """Share of the problems some bound of which is below the norm of the gradient, and of sharpened ones if other."""
    if not records:
        return "-"

    def share(kind):
        bounds = [[h[kind] for h in r["hypergradients"] if h[kind] is not None] for r in records]
        return f"{np.mean([min(found, default=np.inf) <= 1.0 for found in bounds]):.0%}"

    return " -> ".join(dict.fromkeys(map(share, KINDS[records[0]["dtype"]])))  # one where the second is alike


def apriori_points(record):
    """Error, bound and floor, relative, of every point of the a-priori curves."""
    floor = FLOOR[record["dtype"]]
    for rows in record["apriori"]["curves"].values():
        for error, bound in rows:
            if bound is not None:
                yield np.inf if error is None else error, bound, floor


def relative_slopes(record):
    """Fitted slopes of the log errors of ITD, FP and CG with k = t, over ``log q``; and what ``q^t`` falls by, its log.

    Of ITD the error over t, for its factor ``t q^t``. Fitted from ``t >= 1 / log(1 / q)`` on, where the bounds begin to
    fall, down to rounding; curves with fewer than three such points say nothing, and short ones
    little: errors of ITD rise and fall on their way.
    """
    found = record["apriori"]
    rate, t = np.log(1 / found["q"]), np.array(found["t"], float)
    rounding = max(0.1 * FLOOR[record["dtype"]], 100 * EPS[record["dtype"]] * record["condition"])
    for name in ("ITD", "FP k=t", "CG k=t"):
        if name in found["curves"]:
            error = np.array([np.nan if error is None else error for error, _ in found["curves"][name]])
            known = (error > rounding) & (t * rate >= 1)
            if known.sum() >= 3:
                decay = error / t if name == "ITD" else error
                yield -np.polyfit(t[known], np.log(decay[known]), 1)[0] / rate, rate * np.ptp(t[known])
