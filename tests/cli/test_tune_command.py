import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bilevel.cli import app
from bilevel.cli.app import run
from bilevel.cli.environment import cache_directory

ROOT = Path(__file__).parents[2]


def good(rows=40):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.standard_normal((rows, 3)), columns=["a", "b", "c"])
    return frame.assign(y=np.where(np.arange(rows) % 2, "p", "q"))


def csv(frame):
    def make(path):
        frame.to_csv(path / "t.csv", index=False)
        return ["t.csv", "--target", "y"]

    return make


def text(content, name="t.csv"):
    def make(path):
        mode = "wb" if isinstance(content, bytes) else "w"
        with (path / name).open(mode) as file:
            file.write(content)
        return [name, "--target", "y"]

    return make


def words(*arguments):
    def make(path):
        good().to_csv(path / "t.csv", index=False)
        return list(arguments)

    return make


def changed(**values):
    frame = good()
    for name, (row, value) in values.items():
        frame[name] = frame[name].astype(object)
        frame.loc[row, name] = value
    return csv(frame)


def out_is_a_file(path):
    (path / "taken").write_text("mine")
    return [*words("t.csv", "--target", "y")(path), "--out", "taken"]


def out_is_below_a_file(path):
    (path / "taken").write_text("mine")
    return [*words("t.csv", "--target", "y")(path), "--out", "taken/deeper"]


def out_has_other_files(path):
    (path / "taken").mkdir()
    (path / "taken" / "thesis.txt").write_text("mine")
    return [*words("t.csv", "--target", "y")(path), "--out", "taken"]


def directory(path):
    (path / "t.csv").mkdir()
    return ["t.csv", "--target", "y"]


BAD = {
    "missing file": (words("absent.csv", "--target", "y"), "no such file: absent.csv"),
    "unknown name": (words("iris"), "unknown data set 'iris'"),
    "missing column": (words("t.csv", "--target", "z"), "no column 'z' in t.csv; it has a, b, c, y"),
    "no target given": (words("t.csv"), "say which column to predict with --target"),
    "bundled, wrong target": (words("wine", "--target", "grape"), "no column 'grape' in wine"),
    "directory": (directory, "not a file"),
    "empty file": (text(""), "t.csv is empty"),
    "header only": (text("a,y\n"), "t.csv has 0 rows"),
    "one row": (text("a,y\n1,2\n"), "t.csv has 1 row"),
    "only the target": (csv(good()[["y"]]), "no column besides the target"),
    "binary junk": (text(b"\x00\xff\xfe\x80junk\n\x9f"), "t.csv"),
    "ragged": (text("a,y\n1,2\n1,2,3,4\n"), "cannot read t.csv"),
    "unknown format": (text("hello", "t.docx"), "cannot tell the format of t.docx"),
    "broken parquet": (text("a,y\n1,2\n", "t.parquet"), "cannot read t.parquet"),
    "broken gzip": (text("a,y\n1,2\n", "t.csv.gz"), "cannot read t.csv.gz"),
    "broken svmlight": (text("1 1:2\n1 x:3\n", "t.svmlight"), "cannot read t.svmlight"),
    "empty svmlight": (text("", "t.svmlight"), "t.svmlight is empty"),
    "repeated column": (text("a,a,y\n1,2,3\n4,5,6\n"), ""),
    "junk among numbers": (
        changed(b=(6, "oops")), "column 'b' is numeric but for 1 value(s), the first being 'oops' in row 7",
    ),
    "NaN": (changed(b=(3, np.nan)), "column 'b' has 1 missing value(s)"),
    "infinity": (changed(b=(3, np.inf)), "column 'b' has 1 value(s) that are not finite numbers"),
    "NaN in the target": (changed(y=(3, np.nan)), "column 'y' has 1 missing value(s)"),
    "infinite target": (csv(good().assign(y=[*np.linspace(0, 1, 39), np.inf])), "column 'y' has 1 value(s)"),
    "constant target": (csv(good().assign(y=1.0)), "the target 'y' is constant"),
    "constant features": (csv(good().assign(a=1, b=2, c=3)), "no feature varies"),
    "names": (csv(good().assign(a=[f"person {k}" for k in range(40)])), "names or free text"),
    "text as regression": (words("t.csv", "--target", "y", "--task", "regression"), "not finite numbers"),
    "rare class": (csv(good().assign(y=["r"] * 3 + ["s"] * 37)), "too few training rows for 5 folds"),
    "single member of a class": (csv(good().assign(y=["r"] + ["s"] * 39)), "too few"),
    "numbers as classes": (
        words("t.csv", "--target", "a", "--task", "classification"), "leaves too few rows on one side",
    ),
    "few rows": (csv(good(9).assign(y=np.linspace(0, 1, 9))), "too few for 5 folds"),
    "wrong task": (words("t.csv", "--target", "y", "--task", "ranking"), "task must be one of"),
    "wrong validation": (words("t.csv", "--target", "y", "--validation", "loo"), "validation must be one of"),
    "wrong dtype": (words("t.csv", "--target", "y", "--dtype", "float16"), "dtype must be one of"),
    "folds too few": (words("t.csv", "--target", "y", "--folds", "2"), "folds must be from 3 to 20"),
    "folds no number": (words("t.csv", "--target", "y", "--folds", "many"), "--folds"),
    "test fraction": (words("t.csv", "--target", "y", "--test-fraction", "1.5"), "must be between 0 and 1"),
    "tiny test fraction": (words("t.csv", "--target", "y", "--test-fraction", "0.001"), "too few rows"),
    "negative seed": (words("t.csv", "--target", "y", "--seed", "-1"), "seed must be"),
    "unknown option": (words("t.csv", "--target", "y", "--alpha", "1"), "--alpha"),
    "no data": (words("--target", "y"), "argument"),
    "unknown command": (None, "frobnicate"),
    "out is a file": (out_is_a_file, "not a directory"),
    "out is below a file": (out_is_below_a_file, "cannot write to"),
    "out has other files": (out_has_other_files, "holds other files"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, tmp_path, monkeypatch, capsys):
    make, expected = BAD[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "configure_jax", lambda _: None)  # its settings would outlive the test
    arguments = ["frobnicate"] if make is None else ["tune", *make(tmp_path)]
    if "--out" not in arguments and make is not None:
        arguments += ["--out", "out"]
    before = sorted(tmp_path.rglob("*"))
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bilevel: ")
    assert printed.err.count("\n") == 1
    assert expected in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_help_says_what_there_is(capsys):
    assert run(["tune", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--target", "--folds", "--out", "--json", "noisy_regression"))


def test_the_command_in_its_own_process(tmp_path):
    """It switches float64 on by itself, prints nothing but the record, and caches where the user's cache is."""
    frame = good(60)
    frame.insert(0, "city", np.where(np.arange(60) % 3, "Ulm", "Bonn"))
    frame.to_csv(tmp_path / "t.csv", index=False)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("JAX_")},
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT / "src"),
    }
    command = [sys.executable, "-c", "from bilevel.cli import main; main()"]
    arguments = ["tune", "t.csv", "--target", "y", "--folds", "3", "--json", "--out", "made/run"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert facts == json.loads((tmp_path / "made" / "run" / "record.json").read_text())
    assert facts["dtype"] == "float64"
    assert facts["hyperparameters"] == 4
    assert facts["relative_error"] < 1e-4
    assert any((tmp_path / "cache" / "bilevel" / "jax").iterdir())
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["run"]


def test_cache_directory_follows_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "bilevel" / "jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory().is_relative_to(Path.home())
