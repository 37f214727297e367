"""What is written: labels apart, and JSON without NaN."""

import json
import math

import numpy as np
import pytest
from matplotlib.image import imread

from bilevel.comparison import Budget, Comparison, Row, record, write
from bilevel.comparison.plot import spread
from bilevel.comparison.truth import Truth
from bilevel.models.catalog import draw
from bilevel.status import ProblemError

ROWS = [
    Row("auto", "a", "OK", "", 0.0, 1e-9, 30, 10, 60, 1.0, 1e-3, 1000, steered=True),
    Row("itd", "b", "OK", "", 1e-3, 1e-3, 100, 100, 20, 1.0, 2e-3, 2000),
    Row("itd-checkpoint", "b", "OK", "", 1e-3, 1e-3, 100, 100, 20, 1.0, 2e-3, 2000),
    Row("aid-fp", "c", "DIVERGED", "It diverges.", math.nan, math.inf, 100, 20, 5, 1.0, 2e-3, None),
    Row("aid-cg", sentence="ValueError: no"),
]


@pytest.fixture(scope="module")
def found(dtype):
    case = draw("ridge", size=3, dtype=dtype)
    return Comparison("ridge", case, Budget(), Truth("Exact", case.lam, 1e-15), ROWS, 5)


@pytest.mark.parametrize(
    "heights", [[0.5], [0.2, 0.2, 0.2], [0.0, 0.0, 0.9, 0.95, 1.0, 1.0], list(np.linspace(0.0, 1.0, 11)), [0.5] * 11]
)
def test_labels_are_a_line_apart_inside_the_axes_and_close_to_their_points(heights):
    moved = spread(heights, 0.1)
    assert np.all(np.diff(moved) >= 0.1 - 1e-12)
    assert np.all((moved >= -1e-12) & (moved <= 1 + 1e-12))
    assert np.abs(moved - heights).max() <= 0.1 * len(heights) / 2 + 1e-12


def test_labels_that_are_apart_stay():
    np.testing.assert_allclose(spread([0.1, 0.4, 0.8], 0.1), [0.1, 0.4, 0.8])


@pytest.mark.parametrize("rows", [ROWS, ROWS[3:]], ids=["some", "none"])
def test_files_are_written_whatever_failed(rows, found, tmp_path):
    compared = Comparison(found.name, found.case, found.budget, found.truth, rows, 5)
    write(compared, tmp_path / "new" / "out")
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["compare.json", "compare.png"]
    values = json.loads((tmp_path / "new" / "out" / "compare.json").read_text())
    assert values == json.loads(json.dumps(record(compared), allow_nan=False))
    picture = imread(tmp_path / "new" / "out" / "compare.png")
    assert np.ptp(picture[..., :3]) > 0.9


def test_what_is_not_known_is_null(found):
    rows = {row["name"]: row for row in record(found)["rows"]}
    assert rows["auto"]["matvecs"] == 100
    assert rows["itd"]["true_error"] == 1e-3
    assert rows["aid-fp"]["true_error"] is rows["aid-fp"]["estimated_error"] is rows["aid-fp"]["memory"] is None
    assert rows["aid-cg"]["matvecs"] is rows["aid-cg"]["run_seconds"] is None
    assert (rows["aid-cg"]["status"], rows["aid-cg"]["sentence"]) == ("ERROR", "ValueError: no")


def test_a_destination_that_is_a_file_is_refused(found, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ProblemError, match=r"cannot write to .*taken"):
        write(found, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
