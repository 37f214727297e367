"""What one waits for: the import, the first hypergradient, thirty of them, and one that is compiled.

    python benchmarks/first_call.py                              # all rows and libraries
    python benchmarks/first_call.py --rows ridge folds           # only these rows
    python benchmarks/first_call.py --settings                   # with the settings of the last search
    python benchmarks/first_call.py --render                     # only print the page's part, from the newest records

Every call of this kind needs a process of its own: one per library, row and repetition, without a cache of compiled
programs. bilevel is asked for an accuracy; every other library runs with the fastest setting found that reaches it,
and so does a program written in JAX by hand. One JSON line per row and library is appended to
``benchmarks/records/first_call.jsonl``. What is missing is installed under ``out/bench-env``.
"""

import argparse
import json
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from environments import CORES, ROOT, UnavailableError, last_line, python_of, variables, versions
from first_call.libraries import ACCURACY, ADAPTERS, BY_HAND
from first_call.page import OURS, RECORDS, newest, render
from first_call.problem import sampled, save
from first_call.rows import ROWS
from page import append, read

SETTINGS = ROOT / "out" / "first_call_settings.json"
TIMEOUT = {"truth": 1800.0, "search": 3600.0, "child": 600.0}  # seconds of a process


class FailedError(Exception):
    """A process that did not come to its end, with the reason."""


def main():
    options = arguments()
    if not options.render:
        run = datetime.now(UTC).isoformat(timespec="seconds")
        benchmark = Benchmark(options)
        for name in options.rows:
            for record in benchmark.measure(name):
                append({"run": run, **record}, options.records)
    print(render(newest(read(options.records))))


class Benchmark:
    """The processes of a run and the records they give."""

    def __init__(self, options):
        self.options, self.pythons, self.failures = options, {}, {}
        self.settings = json.loads(SETTINGS.read_text()) if options.settings else {}
        for library in options.libraries:
            try:
                self.pythons[library] = python_of(home(library))
            except UnavailableError as error:
                self.failures[library] = str(error)

    def measure(self, name):
        """One record per library."""
        failures = dict(self.failures)
        with TemporaryDirectory() as folder:
            folder = Path(folder)
            save(sampled(ROWS[name], self.options.seed), folder)
            self.process("truth", OURS, folder, name)
            settings = self.settings_of(name, folder, failures)
            results = self.repeated(name, settings, folder, failures)
        return [self.record(name, library, settings, results, failures) for library in self.options.libraries]

    def settings_of(self, name, folder, failures):
        """The setting of every library; one that has none is added to the failures."""
        found = {OURS: {"tolerance": ACCURACY}}
        for library in [name for name in self.pythons if name != OURS]:
            key = f"{name}, {library}, seed {self.options.seed}"
            if key not in self.settings:
                self.settings[key] = self.searched(name, library, folder)
                SETTINGS.parent.mkdir(exist_ok=True)
                SETTINGS.write_text(json.dumps(self.settings, indent=1))
            found[library], failure = (self.settings[key][part] for part in ("setting", "failure"))
            if failure:
                failures[library] = failure
        return found

    def searched(self, name, library, folder):
        """The result of a search."""
        try:
            return self.process("search", library, folder, name, library)
        except FailedError as error:
            return {"setting": None, "failure": f"search: {error}", "tried": []}

    def repeated(self, name, settings, folder, failures):
        """The results of every library, in as many rounds, every other one backwards."""
        results = {library: [] for library in self.options.libraries}
        for turn in range(self.options.repetitions):
            for library in self.options.libraries[:: -1 if turn % 2 else 1]:
                if library not in failures:
                    try:
                        setting = json.dumps(settings[library])
                        results[library].append(self.process("child", library, folder, name, library, setting))
                    except FailedError as error:
                        failures[library] = str(error)
        return results

    def process(self, module, library, folder, *words):
        """What a module of ``first_call`` writes as its result, in the interpreter of the library."""
        print(" ".join([module, *words]), flush=True)
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        python = self.pythons.get(library) or python_of(home(library))
        command = [python, "-m", f"first_call.{module}", *words, folder]
        try:
            done = subprocess.run(
                command, cwd=Path(__file__).parent, env=environment(library), capture_output=True, text=True,
                timeout=TIMEOUT[module],
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise FailedError(f"took longer than {TIMEOUT[module]:.0f} s") from error
        if done.returncode:
            raise FailedError(last_line(done.stderr))
        return json.loads(result.read_text()) if result.exists() else None

    def record(self, name, library, settings, results, failures):
        """The line of a row and library; that of a failure has no times."""
        failure, done = failures.get(library), results[library]
        known = {
            "row": name, "title": ROWS[name].title, "library": library, "dtype": "float64",
            "seed": self.options.seed, "setting": settings.get(library), "failure": failure, "threads": CORES,
            "versions": versions(home(library), self.pythons[library], None) if library in self.pythons else None,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        return known if failure else known | summary(done)


def home(library):
    """Whose environment a library runs in: what is written by hand needs JAX alone, as ours does."""
    return OURS if library == BY_HAND else library


def environment(library):
    """That of a process: nothing compiled by XLA is kept, what Python compiles is, as where libraries are installed."""
    values = variables(home(library), "float64", None) | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    values.pop("PYTHONDONTWRITEBYTECODE", None)
    return values


def summary(results):
    """Several repetitions in one: times as median, min and max, the worst of everything else."""
    spreads = {}
    for name in results[0]["seconds"]:
        times = [result["seconds"][name] for result in results]
        spreads[name] = {"median": statistics.median(times), "min": min(times), "max": max(times)}
    worst = max(results, key=lambda result: result["failures"])
    kept = ("error", "worst_error", "failures", "raised", "matvecs")
    device = f"{worst['device']}, {platform.machine()}"
    return {"seconds": spreads, "repetitions": len(results), "device": device} | {name: worst[name] for name in kept}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--libraries", nargs="+", default=list(ADAPTERS), choices=ADAPTERS, help="only these")
    parser.add_argument("--repetitions", type=int, default=5, help="processes of every row and library")
    parser.add_argument("--seed", type=int, default=1, help="of the problems")
    parser.add_argument("--settings", action="store_true", help=f"those of {SETTINGS.relative_to(ROOT)}, if there")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where they are appended")
    parser.add_argument("--render", action="store_true", help="only print the page's part")
    return parser.parse_args()


if __name__ == "__main__":
    main()
