"""The loop of algorithms that step along hypergradients, each known with its status."""

from collections.abc import Callable
from functools import partial
from typing import Any

from bilevel.algorithms.step_info import StepInfo
from bilevel.driver.clock import Clock
from bilevel.driver.results import Callback, History, OptimizeResult, Record
from bilevel.methods.base import Hypergradient
from bilevel.status import Status

Tree = Any


def run_hypergradients(
    update: Callable[..., tuple[Any, StepInfo]],
    state: Any,
    *,
    steps: int | None,
    samples: int | None,
    gtol: float | None,
    error_every: int,
    evaluate: Callable[[Tree, Tree], Any] | None,
    callback: Callback | None,
) -> OptimizeResult:
    """``state, info = update(state, error=...)`` until it fails, is stationary, is stopped or has done its steps.

    Of a search only accepted points count. Steps without a hypergradient cannot fail.
    """
    lam, w, h = state.lam, state.w, None
    history, step, drawn, clock = History(), 0, 0, Clock()
    while True:
        before, with_error = state, step == steps or step % error_every == 0
        state, info = update(before, error=with_error)
        record, status = _record(step, info, clock()), Status.OK
        drawn += record.samples
        if info.accepted:
            h, status = info.hypergradient, _status(info.hypergradient)
            if status.failed:
                history.records.append(record)
                break
            lam, w = info.lam, info.w
        if evaluate is not None:
            record = record._replace(metrics=clock.stopped(partial(evaluate, w, lam)))
        stationary = gtol is not None and info.accepted and record.gradient_norm <= gtol
        last = step == steps or (samples is not None and drawn >= samples)
        stop = stationary or info.ended or (callback is not None and callback(record, lam))
        if (stop or last) and h is not None and info.accepted and not with_error:
            _, info = update(before, error=True)
            record, h = _record(step, info, clock())._replace(metrics=record.metrics), info.hypergradient
        history.records.append(record)
        if last and gtol is not None and not stationary:
            status = Status.MAX_STEPS
        if stop or last:
            break
        step += 1
    return OptimizeResult(lam, w, h, history, status, before)


def _status(h: Hypergradient | None) -> Status:
    return Status.OK if h is None else Status(int(h.status))


def _record(step: int, info: StepInfo, seconds: float) -> Record:
    return Record(
        step, float(info.value), float(info.gradient_norm), float(info.error), int(info.matvecs), int(info.samples),
        seconds,
    )  # fmt: skip
