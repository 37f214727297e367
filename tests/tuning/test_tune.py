import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from bilevel.data import DataError, Table, load
from bilevel.tuning import Settings, load_model, record, tune, write

pytestmark = pytest.mark.float64


@pytest.fixture(scope="module")
def table():
    """Few rows, two useful features of eight, one category."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.standard_normal((90, 7)), columns=[f"x{j}" for j in range(7)])
    frame["kind"] = rng.choice(["a", "b", "c"], 90)
    signal = 2 * frame["x0"] - frame["x1"] + 0.5 * rng.standard_normal(90)
    target = pd.Series(np.where(signal > 0, "up", "down"), name="trend")
    return Table("small", frame, target)


@pytest.fixture(scope="module")
def result(table):
    return tune(table, Settings(folds=3, seed=1))


def test_the_same_seed_gives_the_same_result(table, result):
    again = tune(table, Settings(folds=3, seed=1))
    first, second = record(result), record(again)
    for facts in (first, second):
        del facts["seconds"]
    assert first == second


def test_test_rows_never_influence_the_model(table, result):
    wild = table.features.copy()
    wild.iloc[result.test_rows, :7] = 1e6
    other = tune(dataclasses.replace(table, features=wild), Settings(folds=3, seed=1))
    np.testing.assert_array_equal(other.model.coef, result.model.coef)
    assert other.model.encoder == result.model.encoder


def test_the_tuned_model_is_the_optimum_of_what_its_docstring_says(table, result):
    model = result.model
    train = result.train_rows
    X = model.encoder(table.features.iloc[train])
    y = (table.target.iloc[train] == model.classes[1]).to_numpy()
    p = model.predict_proba(table.features.iloc[train])[:, 1]
    np.testing.assert_allclose(X.T @ (p - y) + model.penalties * model.coef[:, 0], 0, atol=1e-4)
    np.testing.assert_allclose(np.sum(p - y), 0, atol=1e-4)


def test_scores_are_those_of_the_model_on_the_test_rows(table, result):
    rows = table.features.iloc[result.test_rows]
    truth = table.target.iloc[result.test_rows].to_numpy()
    assert np.mean(result.model.predict(rows) == truth) == result.test["tuned"].quality
    p = result.model.predict_proba(rows)[np.arange(len(truth)), (truth == "up").astype(int)]
    np.testing.assert_allclose(-np.mean(np.log(p)), result.test["tuned"].loss, rtol=1e-10)


def test_a_saved_model_predicts_identically(table, result, tmp_path):
    write(result, tmp_path / "run")
    files = {"model.json", "penalties.csv", "record.json", "validation_curve.png", "penalties.png"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == files
    again = load_model(tmp_path / "run")
    np.testing.assert_array_equal(again.predict_proba(table.features), result.model.predict_proba(table.features))
    np.testing.assert_array_equal(again.predict(table.features), result.model.predict(table.features))
    assert json.loads((tmp_path / "run" / "record.json").read_text()) == record(result)
    penalties = pd.read_csv(tmp_path / "run" / "penalties.csv")
    np.testing.assert_allclose(penalties["penalty"], again.penalties, rtol=1e-12)
    write(result, tmp_path / "run")  # an earlier run is replaced
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="holds other files"):
        write(result, tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', '{"format": 99}', "[1]"])
def test_what_is_no_model_is_refused(tmp_path, text):
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(DataError):
        load_model(path)
    with pytest.raises(DataError):
        load_model(tmp_path / "none.json")


@pytest.mark.parametrize(("name", "family"), [("diabetes", "ridge"), ("wine", "multinomial")])
def test_families_on_real_data(name, family, tmp_path):
    result = tune(load(name), Settings(folds=3, validation="holdout"))
    assert result.model.family == family
    assert result.relative_error < 1e-3
    assert result.test["tuned"].quality > {"ridge": 0.2, "multinomial": 0.85}[family]
    result.model.save(tmp_path / "m.json")
    features = load(name).features
    np.testing.assert_array_equal(load_model(tmp_path / "m.json").predict(features), result.model.predict(features))


def test_progress_counts_to_the_end(table):
    seen = []
    tune(table, Settings(folds=3, seed=1), lambda *event: seen.append(event))
    stages = [stage for stage, done, total in seen if done == total]
    assert stages == ["grid", "priors", "final"]


def test_noise_is_told_from_signal():
    result = tune(load("noisy_regression"), Settings(folds=3))
    assert result.test["tuned"].loss < 0.9 * result.test["single_penalty"].loss
    penalty = result.penalties.set_index("feature")["penalty"]
    signal = penalty[[name for name in penalty.index if name.startswith("signal")]]
    noise = penalty[[name for name in penalty.index if name.startswith("noise")]]
    assert signal.median() < 0.3 * noise.median()
