import json
from pathlib import Path

import pytest

from bilevel.cli import diagnose
from bilevel.cli.app import run

FILE = """
import jax.numpy as jnp
import bilevel as bl

print("a user's file may print")

def loss(w, lam, data):
    return 0.5 * jnp.sum(data * w**2) - jnp.sum(lam * w)

def make_problem():
    problem = bl.Problem(bl.minimization(loss), lambda w, lam, data: 0.5 * jnp.sum((w - 1.0) ** 2))
    return problem, jnp.ones(3), jnp.zeros(3), jnp.array([1.0, 2.0, 4.0]), None
"""
SADDLE = FILE.replace("[1.0, 2.0, 4.0]", "[1.0, -2.0, 4.0]")


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch):
    monkeypatch.setattr(diagnose, "configure_jax", lambda _: None)  # its settings would outlive the test


@pytest.fixture
def words(dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *given: ["diagnose", *given, "--dtype", str(dtype)]


def test_a_file_is_diagnosed_within_80_columns(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")  # a pipe knows no width
    Path("p.py").write_text(FILE)
    assert run(words("p.py", "--cite")) == 0
    printed = capsys.readouterr()
    report, _, papers = printed.out.partition("\n@")
    lines = report.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "p.py"
    rows = [line for line in lines if line.startswith(("recommended", "ITD", "AID", "Exact"))]
    assert len(rows) == 9
    text = " ".join(report.split())
    assert "with step 0.4 has the contraction factor 0.6." in text
    assert "cond(A) is 4 " in text
    assert "hestenes1952methods" in papers
    assert printed.err == "a user's file may print\n"


def test_a_saddle_is_a_finding_and_recorded_without_nan(words, capsys):
    Path("p.py").write_text(SADDLE)
    assert run(words("p.py", "--json")) == 0
    values = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert values["problem"]["origin"] == {"file": "p.py"}
    assert any("the point is a saddle" in sentence for sentence in values["findings"])
    assert values["facts"]["least"] == pytest.approx(-2)
    assert values["recommendation"]["trouble"]
    assert values["alternatives"] == []


BAD = {
    "unknown name": (["lasso"], "unknown problem 'lasso'"),
    "missing file": (["absent.py"], "there is no such file"),
    "option of built-in problems": (["p.py", "--size", "5"], "--size is an option of built-in problems"),
    "wrong tolerance": (["p.py", "--tol", "0"], "tol must be positive, but is 0"),
}


@pytest.mark.parametrize("fault", BAD)
def test_wrong_words_are_one_sentence(fault, words, capsys):
    given, expected = BAD[fault]
    Path("p.py").write_text(FILE)
    assert run(words(*given)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.removeprefix("a user's file may print\n")
    assert expected in line
    assert line.count("\n") == 1
