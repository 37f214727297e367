"""The setting of a library: ``python -m first_call.search ROW LIBRARY FOLDER``.

For every variant, the adjoint's tolerance is loosened from step to step, and for each of them that of the solver
tightened until all calls that are judged are accurate. Of the settings found, the fastest from the first start is
the library's. In the search the tolerances are arguments of one compiled program.
"""

import importlib
import json
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import jax

from first_call.libraries import ACCURACY, ADAPTERS, CALLS
from first_call.problem import flat, load, load_truths, relative
from first_call.rows import ROWS

TOLERANCES = tuple(float(f"{digit}e-{power}") for power in range(3, 13) for digit in (5, 2, 1))  # loose to tight
ADJOINT_TOLERANCES = (1e-9, 1e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4)  # tight to loose
NEXT = 4  # so many tolerances of the solver for each but the tightest of the adjoint
ROUNDS, BUDGET = 7, 1.0  # calls of every setting that is good; seconds after which no round is begun


class Search:
    """What the settings of a row are tried on."""

    def __init__(self, row, adapter, folder):
        problem = load(folder)
        self.truths = load_truths(folder)
        self.lams, self.w0, *self.data = jax.device_put(
            [problem[key] for key in ("lams", "w0", "lower_data", "upper_data")]
        )
        self.variants = adapter.variants(row)
        self.exact = getattr(adapter, "EXACT", ())
        self.compiled = {variant: jax.jit(adapter.gradient(row, variant)) for variant in self.variants}
        self.tried = []

    def best(self):
        """The fastest good setting, None where there is none."""
        good = [setting for variant in self.variants for setting in loosest(self.good(variant))]
        seconds = self.seconds(good)
        return good[seconds.index(min(seconds))] if good else None

    def good(self, variant):
        """For every tolerance of the adjoint the loosest of the solver."""
        begin, end = 0, len(TOLERANCES)
        for adjoint_tolerance in (None,) if variant in self.exact else ADJOINT_TOLERANCES:
            settings = [
                {"variant": variant, "tolerance": tolerance, "adjoint_tolerance": adjoint_tolerance}
                for tolerance in TOLERANCES[begin:end]
            ]
            found = next(filter(self.reaches, settings), None)
            if found is None:
                return
            yield found
            begin = TOLERANCES.index(found["tolerance"])
            end = begin + NEXT

    def reaches(self, setting):
        """Whether all calls are accurate, each from the solution of the one before."""
        w, worst = self.w0, 0.0
        for lam, truth in zip(self.lams[:CALLS], self.truths, strict=True):
            try:
                grad, w = jax.block_until_ready(self.call(setting, lam, w))
            except Exception:  # as where a solver does not end
                worst = math.inf
                break
            worst = max(worst, relative(flat(grad), truth))
            if worst > ACCURACY:
                break
        self.tried.append({**setting, "error": worst})
        return worst <= ACCURACY

    def call(self, setting, lam, w):
        return self.compiled[setting["variant"]](
            lam, w, *self.data, tolerance=setting["tolerance"], adjoint_tolerance=setting["adjoint_tolerance"]
        )

    def seconds(self, settings):
        """The median time of every setting, in rounds."""
        calls = [partial(timed, partial(self.call, setting)) for setting in settings]
        seconds, begin = [[] for _ in settings], time.perf_counter()
        for lam in self.lams[CALLS : CALLS + ROUNDS]:
            if all(seconds) and time.perf_counter() - begin > BUDGET * len(settings):
                break
            for call, times in zip(calls, seconds, strict=True):
                times.append(call(lam, self.w0))
        return list(map(statistics.median, seconds))


def main():
    name, library, folder = sys.argv[1:]
    folder, row = Path(folder), ROWS[name]
    search = Search(row, importlib.import_module(f"first_call.{ADAPTERS[library]}"), folder)
    setting = search.best()
    failure = None if setting else f"did not reach {ACCURACY:g}, the best {min(t['error'] for t in search.tried):.1e}"
    result = {"setting": setting, "failure": failure, "tried": search.tried}
    (folder / "result.json").write_text(json.dumps(result))


def loosest(settings):
    """For every tolerance of the solver the last of the adjoint, as each is looser than the one before."""
    return list({setting["tolerance"]: setting for setting in settings}.values())


def timed(call, *args):
    """Seconds of a call."""
    begin = time.perf_counter()
    jax.block_until_ready(call(*args))
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
