import json
from pathlib import Path

import pytest

from bilevel.cli import check
from bilevel.cli.app import run

FILE = """
import jax
import jax.numpy as jnp
import bilevel as bl

print("a user's file may print")

def loss(w, lam, data):
    return 0.5 * jnp.sum(data * w**2) - jnp.sum(jnp.sin(lam) * w)

def make_problem():
    problem = bl.Problem(bl.minimization(loss), lambda w, lam, data: 0.5 * jnp.sum((w - 1.0) ** 2))
    return problem, jnp.ones(3), jnp.zeros(3), jnp.array([1.0, 2.0, 3.0]), None
"""
STOPPED = FILE.replace("jnp.sin(lam)", "jax.lax.stop_gradient(jnp.sin(lam))")
# JAX cannot differentiate a custom_vjp in forward mode, which the derivative of F by lam needs.
RAISES = FILE.replace("data * w**2", "data * reverse_only(w)**2").replace(
    "def loss",
    """
@jax.custom_vjp
def reverse_only(x):
    return x

reverse_only.defvjp(lambda x: (x, None), lambda _, g: (g,))

def loss""",
)


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch):
    monkeypatch.setattr(check, "configure_jax", lambda _: None)  # its settings would outlive the test


@pytest.fixture
def words(dtype):
    return lambda *given: ["check", *given, "--dtype", str(dtype)]


def test_a_right_problem_ends_with_zero_and_fits_80_columns(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")  # a pipe knows no width
    monkeypatch.chdir(tmp_path)
    Path("p.py").write_text(FILE)
    assert run(words("p.py", "--method", "aid-newton")) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("p.py: minimization, n = 3, dim lam = 3, float")
    assert sum(line.rstrip().endswith("right") for line in lines) == 10
    assert "is right within 1e-03: it agrees with Exact." in " ".join(printed.out.split())
    assert printed.err == "a user's file may print\n"


def test_a_mismatch_ends_with_one_and_is_recorded(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.py").write_text(STOPPED)
    assert run(words("p.py", "--json", "--method", "aid-newton")) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["ok"] is False
    assert values["problem"]["origin"] == {"file": "p.py"}
    wrong = [name for name, part in values["parts"].items() if part["verdict"] == "wrong"]
    assert wrong == ["differences", "cross_derivative"]
    assert values["parts"]["cross_derivative"]["error"] == pytest.approx(1)
    assert values["truth"] == "Exact"


BAD = {
    "unknown name": (["lasso"], "unknown problem 'lasso'"),
    "unknown method": (["ridge", "--size", "4", "--method", "newton"], "unknown method 'newton'"),
    "method that does not fit": (["affine", "--size", "4", "--method", "aid-cg"], "method 'aid-cg' does not fit"),
    "wrong tolerance": (["ridge", "--size", "4", "--tol", "2"], "tol must lie between 0 and 1, but is 2"),
    "function without derivatives": (
        ["raises.py", "--method", "aid-newton"], "raises.py: its hypergradient cannot be computed: TypeError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_wrong_words_are_one_sentence(fault, words, tmp_path, monkeypatch, capsys):
    given, expected = BAD[fault]
    monkeypatch.chdir(tmp_path)
    Path("raises.py").write_text(RAISES)
    assert run(words(*given)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.removeprefix("a user's file may print\n")
    assert expected in line
    assert line.count("\n") == 1
