"""Time to a relative error of 1e-6, the automatic method against other libraries: ``docs/accuracy.md``.

    python benchmarks/accuracy.py                                # the libraries on JAX, all rows
    python benchmarks/accuracy.py --hypertorch PATH              # hypertorch, too, from a checkout
    python benchmarks/accuracy.py --rows 500x50:100 5000x500:400 # only these rows, n x d : condition
    python benchmarks/accuracy.py --render                       # only remake the page from the newest records

One JSON line per row and library is appended to ``benchmarks/records/accuracy.jsonl``; the page shows the newest run
of every row. What is missing is installed under ``out/bench-env``.
"""

import argparse
import subprocess
from pathlib import Path

from accuracy_page import PAGE, RECORDS, newest, render
from environments import TOGETHER, python_of, variables
from page import read

RUNNER = Path(__file__).with_name("accuracy_rows.py")
SIZES = [(500, 50), (5_000, 500), (20_000, 200), (2_000, 2_000)]
ROWS = [f"{n}x{d}:{condition}" for n, d in SIZES for condition in (100, 400, 1500)]


def main():
    options = arguments()
    if not options.render:
        command = [python_of(TOGETHER), RUNNER, *options.rows]
        command += ["--hypertorch", options.hypertorch] if options.hypertorch else []
        subprocess.run(command, env=variables(TOGETHER, "float64", options.hypertorch), check=True)
    PAGE.write_text(render(newest(read(RECORDS))))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hypertorch", type=Path, help="a checkout of hypertorch")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help="of " + " ".join(ROWS))
    parser.add_argument("--render", action="store_true", help="only remake the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
