"""The part of ``docs/gpu.md`` on upper levels."""

import numpy as np
from page import block


def upper_levels(records):
    """Steps of SOBA, and whole runs."""
    soba, runs = ([r for r in records if r["table"] == table] for table in ("soba", "optimize"))
    return [*(steps_of_soba(soba) if soba else []), *(whole_runs(runs) if runs else [])]


def steps_of_soba(records):
    (lower, upper), steps = records[0]["rows"], records[0]["steps"]
    return [
        "",
        "## Minibatches",
        "",
        f"SOBA on ijcnn1 (22 features, {lower} and {upper} rows), float32, on the device and on the CPU of the same",
        f"machine: thousands of steps per second, medians of runs of {steps} steps.",
        "",
        "- *optimize*: `bl.optimize`, which draws batches and counts rows;",
        "- *fixed*: the same step over batches in a fixed order, without counts;",
        "- *busy*, *kernels*, *reads*: of a step, microseconds in which the device computes, what it runs, and copies",
        "  to the host, for which the next step waits.",
        "",
        *block(soba_table(records)),
        *verdict(records),
    ]


def verdict(records):
    """From which batch size on the device takes less time than the CPU."""
    rates = {(device(r), r["batch"]): r["steps_per_second"]["optimize"] for r in records}
    devices = [name for name in dict.fromkeys(map(device, records)) if name != "CPU"]
    if not devices:
        return []
    faster = [b for name, b in rates if name == devices[0] and rates[name, b] > rates.get(("CPU", b), np.inf)]
    where = f"from batches of {min(faster)} rows on" if faster else "at none of these sizes"
    shares = sorted(share(r) for r in records if device(r) != "CPU")
    return [
        "",
        f"The device computes in {shares[0]:.0%} to {shares[-1]:.0%} of the time of a step, the rest is launches,",
        f"branches and waits. It is faster than the CPU {where}.",
    ]


def share(r):
    """Part of the time of ``optimize`` in which the device computes."""
    return r["traced"]["optimize"]["busy"] / r["traced_steps"] * r["steps_per_second"]["optimize"]


def whole_runs(records):
    task, (lower, upper) = records[0]["task"], records[0]["rows"]
    return [
        "",
        "## Whole runs",
        "",
        f"`bl.optimize` on {task} (MNIST, {lower} and {upper} images, one weight per image) in float32, batches of 64.",
        "",
        "- *first*, *s*: seconds of the first run, compilation included, and of a second one;",
        "- *stretches*, *search*: lines of the history by minibatches, and along hypergradients; with ms of a line;",
        f"- *value*, *metric*: the upper level in the end, and the {records[0]['metric_name']}.",
        "",
        *block(run_table(records)),
    ]


def soba_table(records):
    """Steps per second, and what a step of the device is made of."""
    lines = [" " * 31 + "thousands of steps / s     optimize, a step            fixed, a step"]
    lines += ["device                 batch   optimize     fixed      busy kernels reads     busy kernels reads"]
    for r in records:
        rates = (f"{r['steps_per_second'][name] / 1e3:9.1f}" for name in ("optimize", "fixed"))
        steps = (step_cells(r["traced"][name], r["traced_steps"]) for name in ("optimize", "fixed"))
        lines.append(f"{device(r):<22} {r['batch']:>5}  {' '.join(rates)}  {' '.join(steps)}".rstrip())
    return "\n".join(lines)


def step_cells(traced, steps):
    if traced["busy"] is None:
        return ""
    return f"{1e6 * traced['busy'] / steps:8.1f} {traced['kernels'] / steps:7.1f} {traced['reads'] / steps:5.1f}"


def run_table(records):
    """Seconds of runs and of their lines."""
    lines = ["device                 algorithm      first      s  stretches      ms  search      ms    value  metric"]
    for r in records:
        parts = f"{cell(r['stretches'], r['stretch'], 10)} {cell(r['hypergradients'], r['hypergradient'], 7)}"
        lines.append(
            f"{device(r):<22} {r['algorithm']:<13} {r['first']:6.1f} {r['seconds']:6.2f} {parts} {r['value']:8.5f} "
            f"{r['metric']:7.4f}"
        )
    return "\n".join(lines)


def cell(count, seconds, width):
    return f"{count:{width}d} " + (f"{'-':>7}" if seconds is None else f"{1e3 * seconds:7.1f}")


def device(r):
    return "CPU" if r["device"] == "cpu" else r["device"]
