"""Is ``h.error`` the true error? Random problems of every family against dense truths.

    python benchmarks/error_law.py draw       appends one JSON line per problem and refinement to the records
    python benchmarks/error_law.py summary    prints the table of the records and writes docs/error-law.md

Half of the draws are of nonlinear families, a quarter has a lower level of a thousand unknowns, which the
library sees through products only. The condition number is 2 or a decade from 10 to 1e8. The lower level takes t
steps of gradient descent, L-BFGS (minimizations) or Picard's iteration (maps), the adjoint k of CG or of
Richardson's iteration, t and k log-uniform. The law speaks of problems whose true relative error lies between
``10 eps cond(A)`` and ``0.1``: draws go on until enough of them do.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bilevel as bl
from bilevel import models, tree
from bilevel.status import Status

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from families import FAMILIES, dense_truth, relative_distance  # noqa: E402 - the table of families lives with the laws

RECORDS = ROOT / "benchmarks" / "records" / "error_law.jsonl"
PAGE = ROOT / "docs" / "error-law.md"
NONLINEAR = [name for name, family in FAMILIES.items() if not family.tags.affine]
AFFINE = [name for name, family in FAMILIES.items() if family.tags.affine]
SMALL, LARGE = 40, 1000  # unknowns of the lower level
EPS = float(np.finfo(np.float64).eps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw")
    draw.add_argument("--count", type=int, default=500, help="problems inside the window, for each refinement")
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument("--records", type=Path, default=RECORDS)
    summary = commands.add_parser("summary")
    summary.add_argument("--records", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    if arguments.command == "draw":
        jax.config.update("jax_enable_x64", True)
        draw_records(arguments.count, arguments.seed, arguments.records)
    else:
        page = render(read(arguments.records))
        print(page)
        PAGE.write_text(page)


def draw_records(count, seed, path):
    """Append records to the file until ``count`` problems of each refinement lie inside the window.

    Goes on behind the last batch of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read(path) if path.exists() else []
    inside = Counter(record["refine"] for record in done if in_window(record))
    batch = 1 + max((record["seed"][1] for record in done), default=-1)
    with path.open("a") as file:
        while min(inside[0], inside[1]) < count:
            records = list(draw_batch(seed, batch))
            inside.update(record["refine"] for record in records if in_window(record))
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            batch += 1


def draw_batch(seed, batch):
    """Records of one batch: problems of one family, size and lower-level solver, each unrefined and refined."""
    rng = np.random.default_rng([seed, batch])
    name = str(rng.choice(NONLINEAR if batch // 2 % 2 else AFFINE))
    large = batch % 2
    solver = str(rng.choice(["GradientDescent", "LBFGS"] if FAMILIES[name].tags.minimization else ["Picard"]))
    for i in range(10 if large else 30):
        condition = max(10.0 ** rng.integers(0, 9), 2.0)  # at 1 the matrix A is a multiple of I
        t, k = log_uniform(rng, 8, 300 if large else 3000), log_uniform(rng, 4, 1000)
        case = FAMILIES[name](int(rng.integers(2**31)), n=LARGE if large else SMALL, condition=condition)
        truth, actual_condition = solve_exactly(name, case, condition)
        for refine in (0, 1):
            yield {
                "family": name,
                "n": sum(leaf.size for leaf in jax.tree.leaves(case.w0)),
                "condition": actual_condition,
                **measure(case, truth, t, k, solver, refine),
                "dtype": "float64",
                "seed": [seed, batch, i],
                "versions": {"jax": jax.__version__, "numpy": np.__version__},
            }


@tree.record
@dataclass(frozen=True)
class Budget:
    """A lower-level or linear solver with its number of steps as an array: other steps, same program."""

    solver: Any
    steps: Any

    @property
    def needs_symmetry(self):
        return self.solver.needs_symmetry

    def __call__(self, *problem, **options):
        return self.solver(*problem, **options, steps=self.steps)


def solve_exactly(name, case, condition):
    """Hypergradient and condition number: closed forms of affine families, dense Newton for the others."""
    if case.tags.affine:  # their samplers hit the condition number exactly
        return getattr(models, name).hypergradient(case.lam, case.lower_data, case.upper_data), condition
    truth = dense_truth(*case[:5])
    return truth.grad, truth.condition


def measure(case, truth, t, k, solver, refine):
    """Estimated and true error of one hypergradient, and what they cost."""
    method = bl.AID(
        solver=Budget(getattr(bl, solver)(), t),
        linear_solver=Budget(bl.CG() if case.tags.symmetric else bl.Richardson(), k),
        refine=refine,
    )
    data = {"lower_data": case.lower_data, "upper_data": case.upper_data}
    h = bl.hypergradient(case.problem, case.lam, case.w0, **data, method=method, on_failure="keep")
    relative = relative_distance(h.grad, truth)
    true = relative * float(tree.norm(truth))
    return {
        "t": t,
        "k": k,
        "solver": solver,
        "refine": refine,
        "true_error": true,
        "true_relative_error": relative,
        "error": float(h.error),
        "ratio": float(h.error) / true if true else None,
        "matvecs": {"lower": int(h.lower.matvecs), "adjoint": int(h.adjoint.matvecs)},
        "error_matvecs": int(h.error_info.matvecs),
        "status": Status(int(h.status)).name,
    }


def read(path):
    """Records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_uniform(rng, low, high):
    """Integer with a uniform logarithm."""
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def in_window(record):
    """Whether the true relative error lies where the law speaks."""
    return 10 * EPS * record["condition"] <= record["true_relative_error"] <= 0.1


def render(records):
    """The page: what was drawn, and one table for each refinement."""
    inside = [record for record in records if in_window(record)]
    seen = sorted({", ".join(f"{name} {version}" for name, version in r["versions"].items()) for r in records})
    lines = [
        "# The error estimate against the true error",
        "",
        "Made by `python benchmarks/error_law.py summary` from the records of `python benchmarks/error_law.py draw`.",
        "",
        f"{len(records)} hypergradients of random problems, float64, {'; '.join(seen)}. The true relative error of",
        f"{len(inside)} of them lies between `10 eps cond(A)` and 0.1, where the law speaks; the tables are of these.",
        "",
        "- *within 2*: share of problems whose `h.error` is within a factor of two of the true error;",
        "- *flagged*: share whose status says that the error was not resolved, and *within 2* among the others;",
        "- *cost*: matvecs of the estimate over those of the hypergradient: of the totals, then median, 95th",
        "  percentile and maximum over problems.",
    ]
    for refine in (0, 1):
        lines += ["", f"## {'Refined once' if refine else 'Unrefined'}", ""]
        lines += table([record for record in inside if record["refine"] == refine])
    return "\n".join(lines) + "\n"


def table(records):
    """Markdown rows: all records, by family, by size, by decade of the condition number."""
    groups = {"all": records}
    for record in records:
        decade = f"condition 1e{round(np.log10(record['condition']))}"
        for key in (record["family"], f"n {'>=' if record['n'] >= 900 else '<'} 900", decade):
            groups.setdefault(key, []).append(record)
    order = ["all", *sorted(key for key in groups if key != "all")]
    head = "| group | problems | within 2 | flagged | within 2, not flagged | cost | median | 95th | maximum |"
    return [head, "|---|---|---|---|---|---|---|---|---|", *(row(key, groups[key]) for key in order if groups[key])]


def row(key, records):
    """One line of the table."""
    within = np.array([record["ratio"] is not None and 0.5 <= record["ratio"] <= 2.0 for record in records])
    flagged = np.array([record["status"] != "OK" for record in records])
    rest = f"{within[~flagged].mean():.1%}" if not flagged.all() else "-"
    cost = np.array([[record["error_matvecs"], sum(record["matvecs"].values())] for record in records], float)
    numbers = [cost[:, 0].sum() / cost[:, 1].sum(), *np.quantile(cost[:, 0] / cost[:, 1], [0.5, 0.95, 1.0])]
    cells = [key, str(len(records)), f"{within.mean():.1%}", f"{flagged.mean():.1%}", rest]
    return "| " + " | ".join(cells + [f"{number:.2f}" for number in numbers]) + " |"


if __name__ == "__main__":
    main()
