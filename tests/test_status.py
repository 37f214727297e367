"""Outcomes: each has its sentence, and the cause comes before its consequences."""

from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import bilevel as bl
from bilevel.status import SolveInfo, Status, code, first_failure, is_failure, raise_if_failed

OK, DAMPED, UNRESOLVED, MAX_STEPS, DIVERGED, SINGULAR = (
    Status.OK, Status.DAMPED, Status.UNRESOLVED, Status.MAX_STEPS, Status.DIVERGED, Status.SINGULAR
)  # fmt: skip


@pytest.mark.parametrize("status", Status)
def test_every_outcome_is_a_sentence(status):
    assert status.sentence[0].isupper() or status.sentence.startswith("NaN")
    assert status.sentence.endswith(".")
    assert status.failed == bool(is_failure(code(status))) == (status not in (OK, DAMPED, UNRESOLVED))


def _first(statuses):
    """The first failure, else the gravest."""
    return next((s for s in statuses if s.failed), max(statuses, key=(OK, DAMPED, UNRESOLVED, *Status).index))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_failure_is_the_cause(count):
    for statuses in product((OK, DAMPED, UNRESOLVED, MAX_STEPS, DIVERGED), repeat=count):
        assert int(first_failure(*map(code, statuses))) == _first(statuses)


def test_costs_add_up_and_the_last_residual_stands():
    first = SolveInfo(jnp.asarray(3), jnp.asarray(5), jnp.asarray(0.5), code(OK))
    later = SolveInfo(jnp.asarray(2), jnp.asarray(4), jnp.asarray(0.1), code(SINGULAR))
    both = first.then(later).plus(7)
    assert [int(x) for x in (both.steps, both.matvecs, both.status)] == [5, 16, SINGULAR]
    assert both.residual_norm == later.residual_norm
    assert int(later.then(first).status) == SINGULAR


def test_infos_pass_through_transformations():
    info = SolveInfo(jnp.asarray(3), jnp.asarray(5), jnp.asarray(0.5), code(OK))
    assert isinstance(jax.jit(lambda i: i.plus(1))(info), SolveInfo)


def test_failures_raise_with_their_result():
    result = SimpleNamespace(status=code(DIVERGED))
    with pytest.raises(bl.ConvergenceError, match=r"Solve: .*diverge.*\[DIVERGED\]") as caught:
        raise_if_failed(result, "Solve")
    assert caught.value.result is result
    assert caught.value.status == DIVERGED
    assert isinstance(caught.value, bl.BilevelError)
    for status in (OK, DAMPED, UNRESOLVED):
        raise_if_failed(SimpleNamespace(status=code(status)), "Solve")


def test_every_error_is_a_bilevel_error():
    assert issubclass(bl.ProblemError, bl.BilevelError)
    assert issubclass(bl.ProblemError, ValueError)
    assert issubclass(bl.ConvergenceError, RuntimeError)
