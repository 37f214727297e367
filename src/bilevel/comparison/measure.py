"""What one method does and costs on one problem: result, compile time, run time, memory."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax

from bilevel.automatic.method import Automatic
from bilevel.hypergradient import hypergradient
from bilevel.methods.base import Hypergradient
from bilevel.models.catalog import Case

SECONDS = 4.0  # that the timed runs of all methods together should take
FEWEST_RUNS, MOST_RUNS = 3, 15


@dataclass(frozen=True)
class Program:
    """A method that is ready to run on a problem.

    Attributes
    ----------
    call
        One run, up to the arrival of its result.
    result
        Of the first run.
    first_seconds
        Time of tracing, compiling and the first run.
    compile_seconds
        Time of tracing and compiling; None where they cannot be told from the first run.
    memory
        Bytes of the arguments, results and temporaries of the compiled program; None where the backend
        does not tell.
    """

    call: Callable[[], Hypergradient]
    result: Hypergradient
    first_seconds: float
    compile_seconds: float | None
    memory: int | None

    def compile_time(self, run_seconds: float) -> float:
        """Seconds of compilation, for a program whose runs take ``run_seconds``."""
        return max(self.first_seconds - run_seconds, 0.0) if self.compile_seconds is None else self.compile_seconds


def start(method: Any, case: Case) -> Program:
    """Compile a method for a problem and run it once.

    The automatic method is a loop on the host over compiled stages; its memory is that of the one program it
    becomes inside transformations.
    """
    begin = time.perf_counter()
    if isinstance(method, Automatic):
        result = jax.block_until_ready(run(method, case))
        first = time.perf_counter() - begin
        return Program(
            lambda: jax.block_until_ready(run(method, case)), result, first, None, memory(compiled(method, case))
        )
    program = compiled(method, case)
    compile_seconds = time.perf_counter() - begin
    result = jax.block_until_ready(program(method, case))
    first = time.perf_counter() - begin
    return Program(
        lambda: jax.block_until_ready(program(method, case)), result, first, compile_seconds, memory(program)
    )


def run(method: Any, case: Case) -> Hypergradient:
    """The hypergradient with its error estimate, as it is also after a failure."""
    return hypergradient(
        case.problem, case.lam, case.w0, lower_data=case.lower_data, upper_data=case.upper_data, method=method,
        on_failure="keep",
    )  # fmt: skip


def compiled(method: Any, case: Case) -> Any:
    """:func:`run` as one program."""
    return jax.jit(run).lower(method, case).compile()


def memory(program: Any) -> int | None:
    """Peak memory in bytes that a compiled program needs by XLA's analysis."""
    analysis = program.memory_analysis()
    if analysis is None:
        return None
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return held + analysis.temp_size_in_bytes


def run_seconds(programs: Mapping[str, Program], progress: Callable[[int, int], None]) -> tuple[dict[str, float], int]:
    """Median seconds of a run of every program, and the number of runs.

    The programs take turns, so that a change of the machine's load meets them all alike.
    """
    rounds = [_one_round(programs)]
    count = max(FEWEST_RUNS, min(MOST_RUNS, int(SECONDS / max(sum(rounds[0].values()), 1e-9))))
    while len(rounds) < count:
        progress(len(rounds), count)
        rounds.append(_one_round(programs))
    progress(count, count)
    return {name: median(times[name] for times in rounds) for name in programs}, count


def _one_round(programs: Mapping[str, Program]) -> dict[str, float]:
    times = {}
    for name, program in programs.items():
        begin = time.perf_counter()
        program.call()
        times[name] = time.perf_counter() - begin
    return times
