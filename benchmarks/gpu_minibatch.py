"""Upper levels on an accelerator, a part of ``gpu.py``: steps of SOBA, and what ``optimize`` takes unasked.

    BILEVEL_DATA=FOLDER python benchmarks/gpu_minibatch.py --small --records FILE     # on any device

Everything is measured on the first device and, where that is none, on the CPU beside it, in float32:

    SOBA        steps per second of ``bl.optimize`` on ijcnn1, and of the same step in a loop over fixed contiguous
                batches, without sampler and counts
    optimize    whole runs of AdaptiveSOBA and QuasiNewton on data cleaning of MNIST: seconds of a line of the history

Without BILEVEL_DATA the data sets are downloaded.
"""

import argparse
import statistics
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from gpu_trace import traced
from page import append

sys.path.append(str(Path(__file__).with_name("peers")))

from harness import timed

import bilevel as bl
from bilevel.algorithms.oracles import Oracles, Point, descend, joined
from bilevel.racing import data_cleaning, ijcnn1

BATCHES = [64, 512, 4096]
STEP, RATIO = 0.03125, 0.01  # of SOBA, published for ijcnn1
STEPS, SMALL_STEPS, TRACED_STEPS = 4096, 64, 256
REPEATS = 5  # runs, after one that compiles
NOISE = 0.5  # part of the labels of MNIST that are drawn anew
LINES, SMALL_LINES = 25, 4  # steps of a whole run at most


def main():
    options = arguments()
    stamp = {"run": options.run, "dtype": "float32", "precision": "highest"}
    stamp["versions"] = {"jax": jax.__version__, "numpy": np.__version__}
    for device in dict.fromkeys([jax.devices()[0], jax.devices("cpu")[0]]):
        with jax.default_device(device):
            for record in (*soba(options.small), *whole_runs(options.small)):
                print(record, flush=True)
                time = {"time": datetime.now(UTC).isoformat(timespec="seconds")}
                append(stamp | {"device": device.device_kind} | record | time, options.records)


def soba(small):
    """One record for every batch size."""
    task = ijcnn1.make(seed=0, quick=small)
    steps = SMALL_STEPS if small else STEPS
    for b in BATCHES:
        runs = {"optimize": optimized(task, b), "fixed": fixed_batches(task, b)}
        seconds = {name: least_and_median(partial(run, steps)) for name, run in runs.items()}
        few = {name: partial(run, min(steps, TRACED_STEPS)) for name, run in runs.items()}
        yield {
            "table": "soba", "rows": task.rows, "batch": b, "steps": steps,
            "steps_per_second": {name: steps / median for name, (_, median) in seconds.items()},
            "best": {name: steps / least for name, (least, _) in seconds.items()},
            "traced_steps": min(steps, TRACED_STEPS),
            "traced": {name: traced_after_compiling(run)._asdict() for name, run in few.items()},
        }  # fmt: skip


def optimized(task, b):
    """``bl.optimize``, which draws batches and counts rows."""
    sampler = bl.Sampler(b)

    def run(steps):
        return bl.optimize(
            task.problem, task.lam0, task.w0, algorithm=bl.algorithms.SOBA(sampler, STEP, STEP / RATIO), steps=steps,
            key=jax.random.key(0), lower_data=task.lower_data, upper_data=task.upper_data, evaluate_every=2**30,
        ).lam  # fmt: skip

    return run


def fixed_batches(task, b):
    """The step alone: batch t is the slice ``t mod (n // b)``; as in ``optimize``, the loop may be of any length."""
    sampler = bl.Sampler(b)
    start = Point(task.w0, jnp.zeros_like(task.w0), task.lam0)

    def slice_of(t, rows):
        return jax.lax.dynamic_slice_in_dim(rows, t % (len(rows) // b) * b, b)

    @jax.jit
    def run(problem, point, lower_data, upper_data, steps):
        oracles = Oracles(problem, lower_data, upper_data, sampler, sampler)

        def step(t, point):
            lower, upper = (jax.tree.map(partial(slice_of, t), data) for data in (lower_data, upper_data))
            direction = joined(oracles.lower_terms(point, lower), oracles.upper_terms(point, upper))
            return descend(point, direction, STEP / jnp.sqrt(t + 1.0), STEP / RATIO / jnp.sqrt(t + 1.0))

        return jax.lax.fori_loop(0, steps, step, point)

    return lambda steps: run(task.problem, start, task.lower_data, task.upper_data, steps)


def whole_runs(small):
    """One record for either algorithm: the run that compiles, and a second one."""
    task = data_cleaning.make(NOISE, seed=0, quick=small)
    for algorithm in (bl.algorithms.AdaptiveSOBA(*task.samplers), bl.algorithms.QuasiNewton()):
        run = partial(
            bl.optimize, task.problem, task.lam0, task.w0, algorithm=algorithm, steps=SMALL_LINES if small else LINES,
            lower_data=task.lower_data, upper_data=task.upper_data,
            key=jax.random.key(0) if getattr(algorithm, "stochastic", False) else None,
        )  # fmt: skip
        first, _ = timed(run)
        seconds, result = timed(run)
        lines = np.diff(result.history.seconds, prepend=0.0)
        search = np.array([line.matvecs > 0 for line in result.history.records])
        yield {
            "table": "optimize", "task": task.name, "rows": task.rows, "algorithm": type(algorithm).__name__,
            "first": first, "seconds": seconds,
            "stretches": int((~search).sum()), "stretch": median_or_none(lines[~search]),
            "hypergradients": int(search.sum()), "hypergradient": median_or_none(lines[search]),
            "status": result.status.name, "value": float(result.history.value[-1]),
            "metric": task.metric(result.w, result.lam), "metric_name": task.metric_name,
        }  # fmt: skip


def least_and_median(run):
    """Seconds of a run."""
    times = [timed(lambda: jax.block_until_ready(run()))[0] for _ in range(REPEATS + 1)][1:]
    return min(times), statistics.median(times)


def traced_after_compiling(run):
    """A trace of the second call."""
    jax.block_until_ready(run())
    return traced(lambda: jax.block_until_ready(run()))


def median_or_none(values):
    return float(np.median(values)) if len(values) else None


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few rows and steps")
    parser.add_argument("--run", default=datetime.now(UTC).isoformat(timespec="seconds"), help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, required=True, help="a file of JSON lines to append to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
