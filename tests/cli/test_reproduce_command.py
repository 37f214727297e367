import json
from dataclasses import replace
from pathlib import Path

import pytest

from bilevel.cli import reproduce
from bilevel.cli.app import run
from bilevel.experiments import EXPERIMENTS, contraction, mnist
from bilevel.experiments.lines import read_lines

NAME = "p1-contraction"
KEPT = Path(__file__).parents[2] / "benchmarks" / "records" / f"{NAME}.jsonl"


def recorded(settings, seed, progress):
    """The kept records, in place of computing them again."""
    assert settings is contraction.QUICK
    progress("map", 1, 1)
    yield from ({**line, "seed": seed} for line in read_lines(KEPT, NAME))


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "configure_jax", lambda _: None)  # its settings would outlive the test
    monkeypatch.setitem(EXPERIMENTS, NAME, replace(EXPERIMENTS[NAME], run=recorded))
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist, "ORIGIN", (tmp_path / "nowhere").as_uri() + "/")
    monkeypatch.chdir(tmp_path)


def test_records_figures_and_claims_and_all_of_it_again_from_the_records(capsys):
    assert run(["reproduce", NAME, "--quick", "--out", "made", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0] == NAME
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("holds") for line in lines) == 4
    assert "FAILS" not in printed.out
    records = read_lines(Path(f"made/{NAME}.jsonl"), NAME)
    assert records == [{**line, "seed": 3} for line in read_lines(KEPT, NAME)]
    picture = Path(f"made/{NAME}.png").read_bytes()

    assert run(["reproduce", NAME, "--from", f"made/{NAME}.jsonl", "--out", "again", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["seed"], values["records"]) == (3, len(records))
    assert [check["holds"] for check in values["checks"]] == [True] * 4
    assert read_lines(Path(f"again/{NAME}.jsonl"), NAME) == records
    assert Path(f"again/{NAME}.png").read_bytes() == picture


def test_a_claim_that_does_not_hold_is_told(capsys):
    lines = [json.dumps({**line, "flagged": False}) for line in read_lines(KEPT, NAME)]
    Path("wrong.jsonl").write_text("\n".join(lines))
    assert run(["reproduce", NAME, "--from", "wrong.jsonl"]) == 1
    assert "FAILS  every relative error above 0.1 is flagged" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_claims_hold_in_the_kept_records(name, capsys):
    assert run(["reproduce", name, "--from", str(KEPT.with_name(f"{name}.jsonl"))]) == 0
    assert "FAILS" not in capsys.readouterr().out


BAD = {
    "unknown name": (["p1-figure9"], "unknown experiment 'p1-figure9': there are p1-figure1, p1-contraction"),
    "negative seed": ([NAME, "--seed", "-1"], "seed must be 0 or more, but is -1"),
    "no data": (["p1-equilibrium", "--quick"], "could not be downloaded"),
    "out is a file": ([NAME, "--out", "file"], "cannot write to file"),
    "no records": ([NAME, "--from", "none.jsonl"], "cannot read none.jsonl"),
    "no JSON": ([NAME, "--from", "file"], "file must hold one JSON object a line"),
    "other records": ([NAME, "--from", "others"], f"others must hold records of {NAME}"),
    "both": ([NAME, "--from", "others", "--quick"], "--quick computes a small version and --from computes nothing"),
}


@pytest.mark.parametrize("fault", BAD)
def test_wrong_words_are_one_sentence(fault, capsys):
    words, expected = BAD[fault]
    Path("file").write_text("text\n")
    Path("others").write_text('{"experiment": "p1-figure1"}\n')
    assert run(["reproduce", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert expected in printed.err
    assert printed.err.count("\n") == 1
