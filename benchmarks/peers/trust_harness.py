"""What the runners of the trust table share: every fault, every setting, and what came back.

A runner is started as ``python RUNNER DTYPE RESULTS.json``. It offers settings by name for each kind of problem:
``compute(fault) -> grad, claimed`` with the error that the library says, None where it says none.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from trust_faults import faults  # one folder up


def run(settings):
    """Do every fault of the precision of the command line with every setting of its kind."""
    dtype, results = sys.argv[1:]
    done = [
        {"fault": fault.name, "setting": name, **outcome(compute, fault)}
        for fault in faults()
        if fault.dtype == dtype
        for name, compute in settings[fault.kind].items()
    ]
    Path(results).write_text(json.dumps(done))


def outcome(compute, fault):
    """The gradient, the error claimed, and what was said: an exception or warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            grad, claimed = compute(fault)
        except Exception as error:
            return {"grad": None, "claimed": None, "said": said(error), "raised": True}
    relevant = [
        warning for warning in caught if "Converting a tensor" not in str(warning.message)
    ]  # of torch, to float
    relevant = [warning for warning in relevant if not issubclass(warning.category, DeprecationWarning)]
    grad = float(np.asarray(grad, np.float64))
    return {
        "grad": grad if np.isfinite(grad) else str(grad),
        "claimed": claimed,
        "said": said(relevant[0].message) if relevant else None,
        "raised": False,
    }


def said(message):
    """An exception or a warning as one short line."""
    status = getattr(message, "status", None)
    words = " ".join(str(message).split()).rsplit("Error: ", 1)[-1]  # of errors raised in callbacks the last one
    return status.name if status is not None else f"{type(message).__name__}: {words}"[:200]
