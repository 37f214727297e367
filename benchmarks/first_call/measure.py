"""What ``child.py`` does from its start on: the first call, those after it, and its measures as JSON."""

import importlib
import json
import math
import statistics
import sys
import time
from pathlib import Path

import jax

from first_call.libraries import ACCURACY, ADAPTERS, BUDGET, CALLS, LEAST
from first_call.problem import flat, load, load_truths, relative
from first_call.rows import ROWS


def main(start):
    name, library, setting, folder = sys.argv[1:]
    folder = Path(folder)
    adapter = importlib.import_module(f"first_call.{ADAPTERS[library]}")
    imported = time.perf_counter()
    problem = load(folder)
    origin = start + time.perf_counter() - imported  # as if reading the file took no time
    lams, *given = jax.device_put([problem[key] for key in ("lams", "w0", "lower_data", "upper_data")])
    calls = Calls(adapter.prepared(ROWS[name], json.loads(setting)), *given)

    answer = calls.attempt(lams[0], calls.w0, None)
    seconds = {"import": imported - start, "first": time.perf_counter() - origin}
    if answer is None:
        raise RuntimeError(f"first call: {calls.failure}")
    grads = warm_starts(calls, lams[1:CALLS], answer)
    seconds["thirty"] = time.perf_counter() - origin
    seconds["warm"] = cold_starts(calls, lams[CALLS:])
    pairs = zip(grads, load_truths(folder), strict=True)
    found = [math.inf if grad is None else relative(flat(grad), truth) for grad, truth in pairs]
    result = {
        "seconds": seconds, "error": number(found[0]), "worst_error": number(max(found)),
        "failures": sum(not error <= ACCURACY for error in found), "raised": calls.failure,
        "matvecs": adapter.matvecs(answer) if hasattr(adapter, "matvecs") else None,
        "device": jax.devices()[0].device_kind,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


class Calls:
    """Synchronized calls with the same data; ``failure`` is the first error raised, None as long as there is none."""

    def __init__(self, call, w0, lower_data, upper_data):
        self.call, self.w0, self.data, self.failure = call, w0, (lower_data, upper_data), None

    def attempt(self, lam, w, v):
        """An answer, None where the library raises."""
        try:
            return jax.block_until_ready(self.call(lam, w, v, *self.data))
        except Exception as error:
            words = " ".join(str(error).split())
            self.failure = self.failure or f"{type(error).__name__}: {words}"[:200]
            return None


def warm_starts(calls, lams, answer):
    """All hypergradients, each call from the last solution; None where the library raised."""
    grads = [answer.grad]
    for lam in lams:
        latest = calls.attempt(lam, answer.w, answer.v)
        grads.append(latest and latest.grad)
        answer = latest or answer
    return grads


def cold_starts(calls, lams):
    """The median time of calls from the first start, all of them compiled before."""
    seconds = []
    for lam in lams:
        if len(seconds) >= LEAST and sum(seconds) >= BUDGET:
            break
        begin = time.perf_counter()
        calls.attempt(lam, calls.w0, None)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def number(error):
    """The error, None where it is infinite, which JSON does not know."""
    return error if math.isfinite(error) else None
