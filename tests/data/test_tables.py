import bz2
import gzip

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import dump_svmlight_file

from bilevel.data import (
    BUNDLED,
    DataError,
    Encoder,
    assign_folds,
    fit_encoder,
    load,
    read_target,
    split_rows,
)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "size": rng.normal(5.0, 3.0, 60),
            "color": rng.choice(["red", "green", "blue"], 60),
            "new": rng.choice([True, False], 60),
            "constant": 1.5,
            "price": rng.normal(size=60),
        }
    )


def to_csv(frame, path):
    frame.to_csv(path, index=False)


def to_parquet(frame, path):
    frame.to_parquet(path)


@pytest.mark.parametrize(
    ("name", "writer"), [("t.csv", to_csv), ("t.csv.gz", to_csv), ("t.csv.bz2", to_csv), ("t.parquet", to_parquet)]
)
def test_every_format_gives_the_same_table(table, tmp_path, name, writer):
    writer(table, tmp_path / name)
    read = load(str(tmp_path / name), "price")
    pd.testing.assert_frame_equal(read.features, table.drop(columns="price"), check_dtype=False)
    np.testing.assert_array_equal(read.target, table["price"])


@pytest.mark.parametrize("opener", [open, gzip.open, bz2.open])
@pytest.mark.parametrize("named", [True, False])
def test_svmlight_with_and_without_its_suffix(tmp_path, opener, named):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(30, 4)), rng.choice([-1, 1], 30)
    compressed = {open: "", gzip.open: ".gz", bz2.open: ".bz2"}[opener]
    path = tmp_path / (("a.svmlight" if named else "heart_scale") + compressed)
    with opener(path, "wb") as file:
        dump_svmlight_file(X, y, file, zero_based=False)
    read = load(str(path))
    np.testing.assert_allclose(read.features.to_numpy(), X, rtol=1e-12)
    np.testing.assert_array_equal(read.target, y)


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_bundled_tables_can_be_encoded(name):
    read = load(name)
    target = read_target(read.target)
    assert (target.task == "regression") == (name in ("diabetes", "noisy_regression"))
    assert np.all(np.isfinite(fit_encoder(read.features)(read.features)))


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([0, 1] * 20, "classification"),
        ([0.0, 1.0, 2.0, 3.0] * 20, "classification"),
        (["a", "b"] * 20, "classification"),
        ([True, False] * 20, "classification"),
        ([0.5, 1.5, 2.5, 1.0] * 20, "regression"),
        (list(range(40)), "regression"),
        ([str(k) for k in range(40)], "regression"),
    ],
)
def test_task_follows_from_the_target(values, task):
    assert read_target(pd.Series(values, name="y")).task == task


def test_labels_keep_their_type():
    assert read_target(pd.Series([3.0, 7.0] * 9)).classes == (3, 7)
    assert read_target(pd.Series(["no", "yes"] * 9)).classes == ("no", "yes")


def test_encoder_standardizes_the_rows_it_saw_and_codes_categories(table):
    X = table.drop(columns="price")
    encoder = fit_encoder(X)
    encoded = encoder(X)
    assert encoder.names == ("size", "color=blue", "color=green", "color=red", "new")
    np.testing.assert_allclose(encoded.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(encoded.std(axis=0), 1, rtol=1e-12)
    red = encoded[:, encoder.names.index("color=red")]
    assert set(np.flatnonzero(red > 0)) == set(np.flatnonzero(table["color"] == "red"))


def test_other_rows_never_influence_the_encoder(table):
    train = table.drop(columns="price").iloc[:40]
    wild = pd.concat([train, train.assign(size=1e9, color="violet")])
    assert fit_encoder(wild.iloc[:40]) == fit_encoder(train)
    assert fit_encoder(train).unseen(wild) == ["color=violet"]


def test_unseen_categories_become_zeros(table):
    train = table[["color", "size"]]
    encoder = fit_encoder(train)
    columns = [encoder.names.index(f"color={c}") for c in ("blue", "green", "red")]
    raw = encoder(train.assign(color="violet")) * np.array(encoder.scale) + np.array(encoder.mean)
    np.testing.assert_allclose(raw[:, columns], 0, atol=1e-12)


def test_encoder_survives_plain_values(table):
    encoder = fit_encoder(table)
    assert Encoder.from_dict(encoder.to_dict()) == encoder


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "diabetes"])
def test_split_and_folds_are_partitions(name):
    target = read_target(load(name).target)
    n = len(target.values)
    train, test = split_rows(target, 0.25, seed=3)
    assert sorted([*train, *test]) == list(range(n))
    fold = assign_folds(target, train, 5, seed=3)
    counts = np.bincount(fold, minlength=5)
    assert counts.sum() == len(train)
    assert counts.max() - counts.min() <= max(1, len(target.classes))
    for code in range(len(target.classes)):
        share = np.bincount(fold[target.values[train] == code], minlength=5)
        assert share.max() - share.min() <= 1
    again, _ = split_rows(target, 0.25, seed=3)
    np.testing.assert_array_equal(train, again)
    assert not np.array_equal(train, split_rows(target, 0.25, seed=4)[0])


def test_a_prediction_table_without_a_column_is_refused(table):
    with pytest.raises(DataError, match="lacks the columns color"):
        fit_encoder(table)(table.drop(columns="color"))
    with pytest.raises(DataError, match=r"'size' has 1 value\(s\) that are not finite numbers"):
        fit_encoder(table)(table.assign(size=["x", *["1.0"] * 59]))
