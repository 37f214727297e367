import json
import math
from pathlib import Path

import jax
import pytest

from bilevel.cli import bounds
from bilevel.cli.app import run
from bilevel.cli.show_bounds import Bounds, Row, show
from bilevel.comparison.truth import Truth
from bilevel.models.catalog import draw

FILE = """
import jax.numpy as jnp
import bilevel as bl

def loss(w, lam, data):
    return 0.5 * jnp.sum(data * w**2) - jnp.sum(lam * w)

def make_problem():
    problem = bl.Problem(bl.minimization(loss), lambda w, lam, data: 0.5 * jnp.sum((w - 1.0) ** 2))
    return problem, jnp.ones(3), jnp.zeros(3), jnp.array([1.0, 2.0, 3.0]), None
"""
ROOT = FILE.replace("bl.minimization(loss)", "bl.root(lambda w, lam, data: data * w - lam)")


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # its settings would outlive the test


@pytest.fixture
def words(dtype):
    return lambda *given: ["bounds", *given, "--dtype", str(dtype)]


@pytest.mark.float64
def test_a_built_in_problem_is_proved_and_fits_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a pipe knows no width
    assert run(words("affine", "--size", "6", "--condition", "5", "--steps", "30")) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("affine: fixed point, n = 6, dim lam = 12, float64; truth: Exact")
    assert [line.split("  ")[0] for line in lines if line.startswith(("ITD", "AID"))] == ["ITD", "AID-FP, k = t"]
    assert "Of 14 a-posteriori bounds 14 are proved." in " ".join(lines)


@pytest.mark.float64
def test_a_file_without_constants_has_estimated_ones(words, tmp_path, monkeypatch, capsys):
    """Here they are exact: mu 1, L 3, and all bounds hold."""
    monkeypatch.chdir(tmp_path)
    Path("p.py").write_text(FILE)
    assert run(words("p.py", "--steps", "40", "--json", "--out", "made")) == 0
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert printed.err == ""
    assert values == json.loads(Path("made/bounds.json").read_text())
    assert Path("made/bounds.png").stat().st_size > 10_000
    assert values["problem"]["origin"] == {"file": "p.py"}
    assert values["constants"]["mu"] == pytest.approx(1.0)
    assert values["constants"]["L"] == pytest.approx(3.0)
    assert values["constants"]["nu1"] == 0
    assert values["rates"]["q"] == pytest.approx(0.5)
    assert "mu" in values["estimated"]
    assert {row["method"] for row in values["rows"]} == {"ITD", "AID-FP, k = t", "AID-CG, k = t", "AID-CG, k = 10"}
    for row in values["rows"]:
        assert not row["proved"]
        assert row["true_error"] <= row["bound"] * (1 + 1e-6) + 1e-14
        assert row["true_error"] <= row["apriori"] * (1 + 1e-6) + 1e-12


BAD = {
    "unknown name": (["lasso"], "unknown problem 'lasso'"),
    "wrong steps": (["ridge", "--steps", "0"], "steps must be positive, but is 0"),
    "wrong dtype": (["ridge", "--dtype", "float16"], "dtype must be one of float64, float32"),
    "a root": (["root.py"], "bounds are about a minimization or a fixed-point map, but the problem is a root"),
    "out is a file": (["root.py", "--out", "root.py"], "cannot write to root.py"),
}


@pytest.mark.parametrize("fault", BAD)
def test_wrong_words_are_one_sentence(fault, words, tmp_path, monkeypatch, capsys):
    given, expected = BAD[fault]
    monkeypatch.chdir(tmp_path)
    Path("root.py").write_text(ROOT)
    assert run(["bounds", *given] if "--dtype" in given else words(*given)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert expected in printed.err
    assert printed.err.count("\n") == 1


def test_what_is_not_known_is_a_dash(dtype, capsys):
    """A problem whose constants give no a-priori bound."""
    row = Row("ITD", 1, 1, 0.5, 0.5, math.nan, False, math.nan)
    constants = bounds.Constants(L=1.0, nu1=1.0)
    case = draw("ridge", size=3, dtype=dtype)
    show(Bounds("p", case, Truth("Exact", case.lam, 1e-12), constants, None, 1.0, [row]), None)
    printed = " ".join(capsys.readouterr().out.split())
    assert "ITD 1 1 5.0e-01 5.0e-01 - -" in printed
    assert "no a-priori bound: mu is not known" in printed
