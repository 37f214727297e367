"""This library and its peers on the same inputs: the processes, and one record for every row.

Each library runs in a process of its own. The processes of all libraries alternate in rounds, so that a slow minute
of the machine meets all of them; medians are over the calls of all rounds.
"""

import json
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from environments import CORES, UnavailableError, last_line, python_of, variables, versions
from inputs import distance, draw, reference
from rows import ACCURACY, ACCURACY_GRIDS, BUDGET_ROWS

RUNNERS = Path(__file__).parent / "peers"
TIMEOUT = 600.0  # seconds of one process
SEARCH = {"least": 1, "most": 5, "budget": 0.5}


class Comparison:
    """Runs rows in rounds and makes their records."""

    def __init__(self, repeat, hypertorch, append):
        self.repeat, self.hypertorch, self.append = repeat, hypertorch, append
        self.run = datetime.now(UTC).isoformat(timespec="seconds")
        self.pythons, self.missing, self.versions = {}, {}, {}

    def prepare(self, libraries):
        """Install what is missing; a library that cannot be had becomes the reason why."""
        for name in libraries:
            try:
                self.pythons[name] = python_of(name)
                self.versions[name] = versions(name, self.pythons[name], self.hypertorch)
            except (UnavailableError, subprocess.SubprocessError, OSError) as error:
                self.missing[name] = str(error)

    def at_budget(self, n, d, dtype, rounds):
        """The same work in every library."""
        inputs = draw(n, d).astype(dtype)
        truth = reference(inputs)
        rows = [row for row in BUDGET_ROWS if row.library in self.pythons or row.library in self.missing]
        results = self.in_rounds(rows, inputs, dtype, rounds, self.repeat)
        pairs = list(zip(rows, results, strict=True))
        own = {row.work: result.get("grad") for row, result in pairs if row.label == "bilevel"}
        for row, result in pairs:
            self.append(self.record("budget", row, n, d, dtype, result, truth, own[row.work]))

    def at_accuracy(self, n, d, rounds):
        """The fastest setting of every library that reaches the accuracy."""
        inputs = draw(n, d)
        truth = reference(inputs)
        rows, failed = [], []
        for library in (*self.pythons, *self.missing):
            grid = ACCURACY_GRIDS[library]
            tried = self.in_rounds(grid, inputs, "float64", 1, SEARCH)
            best = fastest(grid, tried, truth)
            if best is None:
                failed.append((grid[0], {"failure": why_none(tried, truth)}))
            else:
                rows.append(best)
        timed = zip(rows, self.in_rounds(rows, inputs, "float64", rounds, self.repeat), strict=True)
        for row, result in [*timed, *failed]:
            self.append(self.record("accuracy", row, n, d, "float64", result, truth, None))

    def in_rounds(self, rows, inputs, dtype, rounds, repeat):
        """One result for every row, over alternating processes."""
        results = [[] for _ in rows]
        with TemporaryDirectory() as folder:
            inputs.save(Path(folder) / "inputs.npz")
            for turn in range(rounds):
                for library in dict.fromkeys(row.library for row in rows):
                    print(f"{len(inputs.y)}x{len(inputs.lam)} {dtype} round {turn + 1} {library}", flush=True)
                    mine = [i for i, row in enumerate(rows) if row.library == library]
                    done = self.process(library, [rows[i] for i in mine], Path(folder), dtype, repeat)
                    for i, result in zip(mine, done, strict=True):
                        results[i].append(result)
        return [merged(several) for several in results]

    def process(self, library, rows, folder, dtype, repeat):
        """Results of one process."""
        if library in self.missing:
            return [{"failure": self.missing[library]}] * len(rows)
        jobs, results = folder / "jobs.json", folder / "results.json"
        results.unlink(missing_ok=True)
        listed = [{"method": row.method, "setting": row.setting} for row in rows]
        jobs.write_text(json.dumps({"jobs": listed, "repeat": repeat}))
        runner = RUNNERS / f"{library}_runner.py"
        command = [self.pythons[library], runner, folder / "inputs.npz", jobs, results]
        environment = variables(library, dtype, self.hypertorch)
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return [{"failure": f"took longer than {TIMEOUT:.0f} s"}] * len(rows)
        if done.returncode or not results.exists():
            return [{"failure": last_line(done.stderr)}] * len(rows)
        return json.loads(results.read_text())

    def record(self, table, row, n, d, dtype, result, truth, own):
        """The line of a row."""
        record = {
            "run": self.run, "table": table, "library": row.library, "label": row.label, "work": row.work,
            "n": n, "d": d, "dtype": dtype, "method": row.method, "setting": row.setting, "note": row.note,
            "failure": result.get("failure"), "difference_to_ours": None, "threads": CORES,
            "versions": self.versions.get(row.library), "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        if record["failure"]:
            return record
        grad = np.array(result["grad"])
        if own is not None:
            record["difference_to_ours"] = distance(grad, np.array(own))
        return record | {
            "seconds": spread(result["seconds"]),
            "rounds": result["rounds"],
            "first_call": statistics.median(result["first_calls"]),
            "matvecs": result["matvecs"] or row.matvecs,
            "true_error": distance(grad, truth),
        }


def merged(results):
    """The results of several rounds as one; a failure in any is the result."""
    failures = [result for result in results if "failure" in result]
    if failures:
        return failures[0]
    return {
        "grad": results[0]["grad"],
        "matvecs": results[0]["matvecs"],
        "first_calls": [result["first_call"] for result in results],
        "seconds": [seconds for result in results for seconds in result["seconds"]],
        "rounds": len(results),
    }


def spread(seconds):
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "calls": len(seconds),
    }


def fastest(rows, results, truth):
    """The row with the least median time among those that are accurate enough, None where there is none."""
    good = [
        (statistics.median(result["seconds"]), i)
        for i, result in enumerate(results)
        if "failure" not in result and distance(result["grad"], truth) <= ACCURACY
    ]
    return rows[min(good)[1]] if good else None


def why_none(results, truth):
    """Why no setting will do."""
    errors = [distance(result["grad"], truth) for result in results if "failure" not in result]
    return f"no setting reached {ACCURACY:g}, the best {min(errors):.1e}" if errors else results[0]["failure"]
