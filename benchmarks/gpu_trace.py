"""What a device does during one call: from a trace of the profiler."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import jax
import numpy as np


class Traced(NamedTuple):
    """Of one call.

    Attributes
    ----------
    busy
        Seconds in which the device computes or copies; None where the profiler shows no device.
    kernels
        Programs that it runs, copies among them.
    reads
        Copies from the device to the host, of which most are waited for: conditions of loops, branches and stages.
    """

    busy: float | None
    kernels: int
    reads: int


def traced(call):
    """One call, traced."""
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        traces = [jax.profiler.ProfileData.from_file(str(path)) for path in Path(folder).rglob("*.xplane.pb")]
        events = [
            (event.start_ns, event.start_ns + event.duration_ns, event.name)
            for trace in traces
            for plane in trace.planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]
    busy = covered([(begin, stop) for begin, stop, _ in events]) / 1e9 if events else None
    return Traced(busy, len(events), sum(name == "MemcpyD2H" for _, _, name in events))


def covered(spans):
    """Length of the union of intervals."""
    total, end = 0.0, -np.inf
    for begin, stop in sorted(spans):
        total += max(stop - max(begin, end), 0.0)
        end = max(end, stop)
    return total
