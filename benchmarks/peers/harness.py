"""What the runners share: read inputs and jobs, time the calls, write seconds and gradients.

A runner is started as ``python RUNNER INPUTS.npz JOBS.json RESULTS.json`` in the environment of its library. It
offers methods ``build(inputs, **setting) -> call``; ``call()`` returns the hypergradient and, where it knows them,
its matvecs. A job names a method and its setting. Calls of all jobs alternate, after a first call each.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from inputs import Inputs  # one folder up


def run(methods):
    """Do the jobs of the command line."""
    inputs_path, jobs_path, results_path = sys.argv[1:]
    inputs, task = Inputs.load(inputs_path), json.loads(Path(jobs_path).read_text())
    started = [start(methods, inputs, job) for job in task["jobs"]]
    calls = {i: call for i, (call, _) in enumerate(started) if call is not None}
    for i, seconds in alternate(calls, **task["repeat"]).items():
        started[i][1]["seconds"] = seconds
    Path(results_path).write_text(json.dumps([result for _, result in started]))


def start(methods, inputs, job):
    """The first call of a job: the call, None where it fails, and the result so far."""
    try:
        call = methods[job["method"]](inputs, **job["setting"])
        first, (grad, matvecs) = timed(call)
    except Exception as error:
        return None, {"failure": one_line(error)}
    grad = np.asarray(grad, np.float64)
    if not np.all(np.isfinite(grad)):
        return None, {"failure": "returned a hypergradient that is not finite", "first_call": first}
    return call, {"first_call": first, "grad": grad.tolist(), "matvecs": matvecs and [int(count) for count in matvecs]}


def alternate(calls, least, most, budget):
    """Seconds of every call in alternating sweeps: at least so many, at most so many, else a budget of seconds each."""
    seconds = {i: [] for i in calls}
    for sweep in range(most):
        for i, call in calls.items():
            if sweep < least or sum(seconds[i]) < budget:
                seconds[i].append(timed(call)[0])
    return seconds


def timed(call):
    """Seconds and result of one call."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def one_line(error):
    """An exception as one short line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:200]
