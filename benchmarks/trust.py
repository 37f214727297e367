"""What every library returns where hypergradients are hard or do not exist: ``docs/trust.md``.

    python benchmarks/trust.py                       # this library, and the peers from PyPI
    python benchmarks/trust.py --hypertorch PATH     # hypertorch, too, from a checkout
    python benchmarks/trust.py --render              # only remake the page from the newest records

Records go to ``benchmarks/records/trust.jsonl``. Peers are installed under ``out/bench-env`` when they are missing.
"""

import argparse
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from environments import UnavailableError, last_line, python_of, variables, versions
from page import append, read
from trust_faults import faults
from trust_page import PAGE, render

RECORDS = Path(__file__).parent / "records" / "trust.jsonl"
RUNNERS = Path(__file__).parent / "peers"
LIBRARIES = ("bilevel", "jaxopt", "optimistix", "hypertorch")
TIMEOUT = 900.0  # seconds of one library in one precision


def main():
    options = arguments()
    if not options.render:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        for name in LIBRARIES:
            if name != "hypertorch" or options.hypertorch:
                compare(name, options.hypertorch, started)
    records = read(RECORDS)
    PAGE.write_text(render([r for r in records if r["run"] == records[-1]["run"]]))


def compare(name, hypertorch, started):
    """Records of one library."""
    try:
        python = python_of(name)
        numbers = versions(name, python, hypertorch)
    except (UnavailableError, subprocess.SubprocessError, OSError) as error:
        print(f"{name}: {error}")
        return
    truths = {fault.name: fault.truth for fault in faults()}
    for dtype in dict.fromkeys(fault.dtype for fault in faults()):
        print(f"{name} {dtype}", flush=True)
        for result in process(name, python, dtype, hypertorch):
            truth = truths[result["fault"]]
            record = {"run": started, "library": name, "dtype": dtype, **result, "truth": truth}
            append({**record, "error": true_error(result["grad"], truth), "versions": numbers}, RECORDS)


def process(name, python, dtype, hypertorch):
    """What the runner of a library reports."""
    with TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [python, RUNNERS / f"trust_{name}.py", dtype, results]
        environment = variables(name, dtype, hypertorch)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode:
            raise SystemExit(f"{name}: {last_line(done.stderr)}")
        return json.loads(results.read_text())


def true_error(grad, truth):
    """Relative error of a finite number where there is a truth."""
    return abs(grad - truth) / abs(truth) if isinstance(grad, float) and truth is not None else None


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hypertorch", type=Path, help="a checkout of hypertorch")
    parser.add_argument("--render", action="store_true", help="only remake the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
