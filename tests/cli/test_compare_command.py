import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bilevel.cli.app import run
from bilevel.cli.show_comparison import conclusion, show_comparison
from bilevel.comparison import Budget, Comparison, Row
from bilevel.comparison.truth import Truth
from bilevel.models.catalog import CATALOG, draw

ROOT = Path(__file__).parents[2]
GOOD = """
import jax.numpy as jnp
import bilevel as bl

problem = bl.Problem(
    bl.minimization(lambda w, lam, data: jnp.sum((w - lam) ** 2)), lambda w, lam, data: jnp.sum(w**3)
)
lam, w0 = jnp.ones(3), jnp.zeros(3)

def make_problem():
    return problem, lam, w0
"""


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # its settings would outlive the test


def returning(value):
    return GOOD.replace("return problem, lam, w0", f"return {value}")


# Content of p.py, and what the sentence must say of it.
BAD_FILES = {
    "syntax": ("def make_problem(:\n    pass\n", "p.py, line 1: expected Python, but it is not: "),
    "binary": (b"\x00\x01\xff", "p.py: expected Python, but it is not"),
    "wrong encoding": (b"x = 1\ny = '\xff\xfe'\n", "expected Python, but it is not"),
    "raises on import": ("x = 1\nraise ValueError('no\\nluck')\n", "p.py, line 2: the file raised: ValueError: no\n"),
    "import of what is not there": ("import absent_module\n", "p.py, line 1: the file raised: ModuleNotFoundError: "),
    "ends the process": ("import sys\nsys.exit(3)\n", "p.py, line 2: the file raised: SystemExit: 3"),
    "no make_problem": ("x = 1\n", "p.py: expected a function make_problem() that returns (problem, lam, w0) or "),
    "make_problem is no function": ("make_problem = 3\n", "expected a function make_problem()"),
    "needs arguments": ("def make_problem(n):\n    pass\n", "p.py: make_problem() raised: TypeError: "),
    "raises": ("def make_problem():\n    return 1 / 0\n", "p.py, line 2: make_problem() raised: ZeroDivisionError: "),
    "raises without a message": (
        "def make_problem():\n    raise KeyError\n", "p.py, line 2: make_problem() raised: KeyError\n",
    ),
    "returns None": ("def make_problem():\n    pass\n", "make_problem() must return (problem, lam, w0) or "),
    "returns two": (returning("problem, lam"), "but returned a tuple of 2"),
    "returns four": (returning("problem, lam, w0, None"), "but returned a tuple of 4"),
    "returns a list": (returning("[problem, lam, w0]"), "but returned a list of 3"),
    "wrong order": (returning("lam, problem, w0"), "must be a bilevel.Problem, but is of type ArrayImpl"),
    "lower level alone": (returning("problem.lower, lam, w0"), "must be a bilevel.Problem, but is of type Lower"),
    "lam is text": (returning("problem, 'one', w0"), "lam of make_problem() must be an array of numbers"),
    "text in the data": (
        returning("problem, lam, w0, {'X': 'a.csv'}, None"), "lower_data['X'] of make_problem() must be an array",
    ),
    "integer lam": (returning("problem, 1, w0"), "is not valid: lam must be a floating array, but its dtype is int"),
    "integer start": (returning("problem, lam, [0, 0]"), "is not valid: w0[0] must be a floating array"),
    "lam is None": (returning("problem, None, w0"), "lam must hold at least one floating array"),
    "lam reaches nothing": (
        GOOD.replace("(w - lam)", "(w - 1.0)"), "is not valid: lam does not reach the lower-level problem",
    ),
    "loss is no scalar": (GOOD.replace("jnp.sum((w - lam) ** 2)", "w - lam"), "loss must return one floating scalar"),
    "loss raises": (
        GOOD.replace("jnp.sum((w - lam) ** 2)", "jnp.sum(w - data[1])"),
        "p.py, line 6: the problem of make_problem() raised: TypeError: ",
    ),
    "shapes do not fit": (returning("problem, jnp.ones(2), w0"), "p.py, line 6: the problem of make_problem() raised:"),
}  # fmt: skip


def complaint(arguments, capsys):
    """The one line on stderr that wrong input ends with."""
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bilevel: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_file_is_one_sentence_that_names_the_place(fault, tmp_path, monkeypatch, capsys):
    content, expected = BAD_FILES[fault]
    monkeypatch.chdir(tmp_path)
    Path("p.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert expected in complaint(["compare", "p.py", "--out", "out"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["p.py"]


BAD_WORDS = {
    "unknown name": (["lasso"], "unknown problem 'lasso': the built-in ones are ridge, logistic, "),
    "missing file": (["absent.py"], "absent.py: expected a Python file with make_problem(), but there is no such"),
    "missing directory": (["absent/p.py"], "there is no such file"),
    "directory": (["."], "there is no such file"),
    "unknown method": (
        ["ridge", "--size", "9", "--methods", "auto,newton"],
        "unknown method 'newton': the methods are auto, ",
    ),
    "method that does not fit": (
        ["affine", "--size", "9", "--methods", "aid-cg"],
        "'aid-cg' does not fit this problem",
    ),
    "option of built-in problems": (["p.py", "--size", "20"], "--size is an option of built-in problems, but p.py is"),
    "wrong size": (["ridge", "--size", "1"], "size must be from 2"),
    "wrong condition": (["ridge", "--condition", "0"], "condition must be a number from 1 on"),
    "wrong steps": (["ridge", "--steps", "0"], "steps must be positive"),
    "wrong tol": (["ridge", "--tol", "nan"], "tol must be positive"),
    "wrong dtype": (["ridge", "--dtype", "float16"], "dtype must be one of float64, float32, but is 'float16'"),
    "out is a file": (["p.py", "--out", "p.py"], "cannot write to p.py"),
    "unknown option": (["ridge", "--alpha", "1"], "--alpha"),
    "no problem": ([], "argument"),
}


@pytest.mark.parametrize("fault", BAD_WORDS)
def test_wrong_words_are_one_sentence(fault, tmp_path, monkeypatch, capsys, dtype):
    words, expected = BAD_WORDS[fault]
    monkeypatch.chdir(tmp_path)
    Path("p.py").write_text(GOOD)
    words = words if "--dtype" in words else [*words, "--dtype", str(dtype)]
    assert expected in complaint(["compare", *words], capsys)


@pytest.mark.parametrize("name", CATALOG)
def test_every_built_in_problem_runs_and_fits_80_columns(name, capsys, monkeypatch, dtype):
    monkeypatch.setenv("COLUMNS", "200")  # a pipe knows no width
    words = ["compare", name, "--methods", "aid-fp", "--size", "20", "--dtype", str(dtype), "--quiet"]
    assert run(words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"{name}: {'minimization' if name not in ('affine', 'equilibrium') else 'fixed point'}")
    assert [line.split()[0] for line in lines if line.startswith(("aid", "auto", "itd"))] == ["aid-fp"]
    assert "error" in lines[-1] or "error" in lines[-2]


def test_the_record_is_all_that_is_printed(tmp_path, monkeypatch, capsys):
    """Whatever the user's file prints, imports from beside it, or is called."""
    monkeypatch.chdir(tmp_path)
    Path("beside.py").write_text("WORD = 'hello'\n")
    Path("p.txt").write_text("from beside import WORD\nprint(WORD)\n" + GOOD)
    assert run(["compare", "p.txt", "--methods", "aid-newton", "--json", "--out", "made"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert printed.err == "hello\n"
    assert facts == json.loads(Path("made/compare.json").read_text())
    assert Path("made/compare.png").stat().st_size > 10_000
    assert facts["problem"] | {"dtype": ""} == {
        "name": "p.txt", "kind": "minimization", "symmetric": True, "unknowns": 3, "hyperparameters": 3, "dtype": "",
        "origin": {"file": "p.txt"},
    }  # fmt: skip
    assert facts["truth"]["method"] == "Exact"
    assert facts["rows"][0]["true_error"] < 1e-3


def test_where_nothing_could_be_computed_the_exit_code_is_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.py").write_text(GOOD.replace("(w - lam) ** 2", "-((w - lam) ** 2)"))
    assert run(["compare", "p.py", "--methods", "aid-newton"]) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "no truth, as Exact failed: " in printed.out.replace("\n", " ")
    assert "No method gave a hypergradient" in printed.out


def test_the_record_says_how_a_problem_was_drawn(capsys, dtype):
    words = [
        "compare",
        "ridge",
        "--size",
        "3",
        "--seed",
        "7",
        "--methods",
        "aid-newton",
        "--dtype",
        str(dtype),
        "--json",
    ]
    assert run(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["problem"]["origin"] == {"size": 3, "condition": 100.0, "seed": 7}
    assert facts["budget"] == {"tol": 1e-4, "steps": 100, "products": 20}


def comparison(dtype, rows, known=True):
    case = draw("ridge", size=3, dtype=dtype)
    return Comparison("ridge", case, Budget(), Truth("Exact", case.lam if known else None, 1e-12), rows, 5)


def row(name, error, lower=100, seconds=1e-3, **values):
    return Row(name, "", values.pop("status", "OK"), "", error, error, lower, 0, 0, 1.0, seconds, 1000, **values)


def test_a_crowded_table_fits_80_columns(dtype, capsys):
    huge = Row(
        "itd-checkpoint", "", "NEGATIVE_CURVATURE", "A sentence. " * 20, 1e-300, math.inf, 10**5, 10**7, 99_999,
        123.456, 1234.5, 10**10,
    )  # fmt: skip
    show_comparison(comparison(dtype, [huge, Row("aid-cg", sentence="No.")]), Path("d" * 90))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(word in text for word in ("itd-checkpoint", "negative", "<1e-12", "100k", "10000k", "99999", "123.46"))
    assert "1234500" in text
    assert "aid-cg: No." in text


CONCLUSIONS = {
    "one is best": (
        [row("a", 1e-6, 10, 1.0), row("b", 1e-6, 20, 2.0), row("c", 1e-2, 1, 0.1)],
        "Fewest matvecs with the true error below 1e-04: a, 10, which is also the fastest.",
    ),
    "two are best": (
        [row("a", 1e-6, 10, 2.0), row("b", 1e-6, 20, 1e-3)],
        "Fewest matvecs with the true error below 1e-04: a, 10; the fastest is b, 1.00 ms.",
    ),
    "a failure is not": (
        [row("a", 1e-6, 10, status="DIVERGED"), row("b", 1e-3), row("c", 1e-2)],
        "No true error is below 1e-04; the smallest is that of b, 1.0e-03.",
    ),
    "nothing": ([Row("a")], "No method gave a hypergradient whose error is known."),
}


@pytest.mark.parametrize("case", CONCLUSIONS)
def test_what_to_read_from_it(case, dtype):
    rows, expected = CONCLUSIONS[case]
    assert conclusion(comparison(dtype, rows)) == expected


def test_without_truth_the_estimates_are_read(dtype):
    unjudged = comparison(dtype, [row("a", 1e-6)], known=False)
    assert conclusion(unjudged).startswith("Fewest matvecs with the estimated error below 1e-04: a,")


def test_the_example_in_its_own_process(tmp_path):
    """Float64 without being asked, and no compiled program is read from a cache, or left in one."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("JAX_")},
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT / "src"),
    }
    command = [sys.executable, "-c", "from bilevel.cli import main; main()"]
    words = ["compare", str(ROOT / "examples" / "my_problem.py"), "--methods", "aid-newton,aid-cg", "--json"]
    done = subprocess.run([*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert (facts["problem"]["name"], facts["problem"]["dtype"]) == ("my_problem.py", "float64")
    assert [row["status"] for row in facts["rows"]] == ["OK", "OK"]
    assert facts["rows"][0]["true_error"] < 1e-6
    assert not list(tmp_path.glob("programs/*"))
    assert not list(tmp_path.glob("cache/bilevel/*"))


def test_help_says_what_there_is(capsys):
    assert run(["compare", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("make_problem", "hyper_representation", "itd-truncated", "--products"))
