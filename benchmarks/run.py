"""All benchmarks of hypergradients: ``make bench``, or

    python benchmarks/run.py                       # the floor, and the peers from PyPI
    python benchmarks/run.py --hypertorch PATH     # hypertorch, too, from a checkout
    python benchmarks/run.py --small               # a quick look, which leaves records and page alone
    python benchmarks/run.py --render              # only remake docs/benchmarks.md from the newest records

Records go to ``benchmarks/records``. Peers are installed under ``out/bench-env`` when they are missing.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from compare import Comparison
from environments import LIBRARIES, variables
from page import PAGE, PEER_RECORDS, append, comparison_tables, newest_records, render

LARGE, SMALL = (10_000, 1_000, 1), (500, 50, 3)  # samples, features, rounds
REPEAT = {"least": 1, "most": 100, "budget": 1.0}  # calls of a row in one process; the budget in seconds


def main():
    options = arguments()
    if options.render:
        PAGE.write_text(render(*newest_records()))
    elif options.small:
        records = []
        compare(options, [(*SMALL[:2], 1)], records.append)
        print("\n\n".join(comparison_tables(records)))
    else:
        floor = Path(__file__).with_name("fixed_budget.py")
        subprocess.run([sys.executable, floor], env=variables("bilevel", "float64", None), check=True)
        compare(options, [LARGE, SMALL], lambda record: append(record, PEER_RECORDS))
        PAGE.write_text(render(*newest_records()))


def compare(options, sizes, append):
    """Both comparisons at these sizes."""
    comparison = Comparison(REPEAT, options.hypertorch, append)
    comparison.prepare([name for name in LIBRARIES if name != "hypertorch" or options.hypertorch])
    for n, d, rounds in sizes:
        for dtype in ("float64", "float32"):
            comparison.at_budget(n, d, dtype, rounds)
        comparison.at_accuracy(n, d, rounds)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hypertorch", type=Path, help="a checkout of hypertorch")
    parser.add_argument("--small", action="store_true", help="one round of the small problem; only printed")
    parser.add_argument("--render", action="store_true", help="only remake the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
