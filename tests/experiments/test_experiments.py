"""Every experiment through a small configuration: what its records claim, and figures made of them alone."""

import gzip
import math
import struct
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.experiments import EXPERIMENTS, contraction, equilibrium, equilibrium_model, figure1
from bilevel.experiments.counted import aid, itd
from bilevel.experiments.lines import compact
from bilevel.experiments.panels import BIASED, BIASED_DESCENT, LOGISTIC
from bilevel.models.catalog import draw
from bilevel.models.samples import Samples

# Those below; the others have a file of their own.
NAMES = ("p1-figure1", "p1-contraction", "p1-equilibrium")
SMALL_PANELS = (
    replace(LOGISTIC, n=40, d=12, condition=30.0, steps=400),
    replace(BIASED, n=40, d=14, steps=120),
    replace(BIASED_DESCENT, n=40, d=14, steps=120),
)


def nothing(*_):
    """No progress."""


def computed(module, settings):
    return [compact(line) for line in module.run(settings, 0, nothing)]


def write_mnist(folder, train, test):
    """Small files in MNIST's format; each digit lights up pixels of its own, so that it can be learned."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        digits = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, digit in zip(images, digits, strict=True):
            image[2 * digit : 2 * digit + 3] = 255
        for kind, values in (("images-idx3", images), ("labels-idx1", digits)):
            head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records of the experiments, computed once, by name."""
    found = {}
    root = tmp_path_factory.mktemp("data")
    write_mnist(root / "mnist", train=120, test=60)

    def of(name):
        if name in found:
            return found[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BILEVEL_DATA", str(root))
            settings = {
                "p1-figure1": figure1.Settings(draws=2, points=6, panels=SMALL_PANELS),
                "p1-contraction": contraction.Settings(
                    factors=(0.6, 1.3, 2.2), shown=(("orthogonal", 2.2),), times=(10, 100), samples=2, states=10
                ),
                "p1-equilibrium": equilibrium.Settings(
                    train=60, valid=40, test=30, states=12, inner_steps=10, steps=6, every=30
                ),
            }[name]
            module = {"p1-figure1": figure1, "p1-contraction": contraction, "p1-equilibrium": equilibrium}[name]
            found[name] = computed(module, settings)
        return found[name]

    return of


@pytest.mark.float64
@pytest.mark.parametrize("name", NAMES)
def test_what_the_paper_says_holds(name, records):
    checks = EXPERIMENTS[name].checks(records(name))
    assert all(check.holds for check in checks), [check for check in checks if not check.holds]


@pytest.mark.float64
@pytest.mark.parametrize("name", NAMES)
def test_figures_are_made_of_the_records_alone(name, records, tmp_path):
    for draw_figure in EXPERIMENTS[name].figures.values():
        figure = draw_figure(records(name))
        figure.savefig(tmp_path / "figure.png")
        assert any(axes.lines for axes in figure.axes)
        assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.float64
@pytest.mark.parametrize("name", NAMES)
def test_every_record_tells_where_it_was_made(name, records):
    for line in records(name):
        assert line["experiment"] == name
        assert {"time", "seed", "dtype", "device", "versions", "config", "method", "status"} <= set(line)


@pytest.mark.float64
def test_figure1_has_every_point_once_and_all_its_numbers(records):
    lines = records("p1-figure1")
    keys = [(line["panel"], line["lam"], line["method"], line["t"]) for line in lines]
    assert len(set(keys)) == len(keys) == len(SMALL_PANELS) * 2 * 5 * 6
    for line in lines:
        assert all(math.isfinite(line[name]) for name in ("error", "estimated_error", "gradient_norm", "matvecs"))
        assert (line["apriori_bound"] is None) == (line["panel"] == "BR")
        assert line["k"] in (line["t"], 10)


@pytest.mark.float64
def test_estimated_errors_are_right_within_two_where_they_are_resolved(records):
    """Relative errors from 1e-10 to 1e-2, which rounding does not reach and first order describes."""
    lines = [line for line in records("p1-figure1") if 1e-10 < line["relative_error"] < 1e-2]
    assert len(lines) > 20
    for line in lines:
        assert 0.5 <= line["estimated_error"] / line["error"] <= 2.0


@pytest.mark.float64
def test_failing_configurations_are_flagged_and_others_are_not(records):
    last = [line for line in records("p1-contraction") if line["t"] == 100]
    flagged = {(line["map"], line["q"], line["method"]): line["flagged"] for line in last}
    for method in contraction.METHODS:
        assert not flagged["orthogonal", 0.6, method]
        assert flagged["orthogonal", 2.2, method]


@pytest.mark.float64
def test_claims_do_not_hold_of_records_that_contradict_them(records):
    """Every claim can fail."""

    def failing(name, change):
        return sum(not check.holds for check in EXPERIMENTS[name].checks([change(line) for line in records(name)]))

    def worse_cg(line):
        return {**line, "error": 1e3 * line["error"]} if line["method"].startswith("CG") else line

    assert failing("p1-figure1", worse_cg) >= 2 * len(SMALL_PANELS)
    assert failing("p1-figure1", lambda line: {**line, "distance_to_itd": line["gradient_norm"]}) == 1
    assert failing("p1-contraction", lambda line: {**line, "flagged": False}) == 1
    assert failing("p1-contraction", lambda line: {**line, "distance_to_gradient_of_ft": 1e-3}) == 1
    assert failing("p1-contraction", lambda line: {**line, "relative_error": 0.5}) == 3
    assert failing("p1-equilibrium", lambda line: {**line, "relative_distance_to_itd": 0.5}) == 2
    assert failing("p1-equilibrium", lambda line: {**line, "flagged": line["projected"]}) == 1
    blown_up = {"train_loss": 9.0, "flagged": False}
    assert failing("p1-equilibrium", lambda line: {**line, **blown_up} if line["step"] else line) == 1


@pytest.mark.parametrize("t", [1, 7, 20])
def test_counted_methods_are_the_plain_ones(t, dtype):
    """ITD through t of 20 steps, and AID with counts as data, against the counts in the program."""
    case = draw("ridge", size=6, condition=5.0, dtype=dtype)
    step = 0.5
    pairs = [
        (itd(bl.Picard(step=step), t, 20), bl.ITD(bl.Picard(steps=t, step=step))),
        (aid(bl.Picard(step=step), bl.CG(), t, 3), bl.AID(bl.Picard(steps=t, step=step), bl.CG(steps=3))),
    ]
    for counted, plain_method in pairs:
        h, expected = (
            bl.hypergradient(*case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method)
            for method in (counted, plain_method)
        )
        scale = float(expected.scale)
        np.testing.assert_allclose(h.grad, expected.grad, rtol=0, atol=50 * float(jnp.finfo(dtype).eps) * scale)


def test_the_pulled_back_hypergradient_is_that_of_the_whole_map(dtype):
    """Against the map that computes ``B x_i + c`` itself."""
    case = draw("equilibrium", size=40, condition=3.0, dtype=dtype)
    method = bl.ITD(bl.Picard(steps=6))
    expected = bl.hypergradient(
        *case[:3], lower_data=case.lower_data, upper_data=case.upper_data, method=method, error=False
    )
    grad, h = equilibrium_model.hypergradient_of(method, case.lam, case.upper_data, error=False)
    assert h.grad["drive"].shape == case.w0.shape
    for name, value in expected.grad.items():
        tolerance = 100 * float(jnp.finfo(dtype).eps) * float(expected.scale)
        np.testing.assert_allclose(grad[name], value, rtol=0, atol=tolerance)


def test_the_projection_cuts_singular_values_off(dtype):
    A = jnp.asarray(np.diag([3.0, 0.5, 0.99]) @ np.eye(3)[[1, 2, 0]], dtype)
    values = np.linalg.svd(equilibrium_model.project(A), compute_uv=False)
    np.testing.assert_allclose(values, [0.99, 0.99, 0.5], rtol=20 * float(jnp.finfo(dtype).eps))


def test_small_training_runs_in_single_precision(dtype):
    """The experiment itself is in float32, in either kind of process."""
    data = Samples(jnp.zeros((5, 784), jnp.float32), jnp.arange(5))
    lam = equilibrium_model.start(4, 0, jnp.float32)
    method = equilibrium_model.method_of("FP", 3)
    after = equilibrium_model.train_step(method, equilibrium_model.begin(lam), data, projected=True)
    assert all(leaf.dtype == jnp.float32 for leaf in after.lam.values())
    assert float(jnp.max(jnp.abs(after.lam["coef"] - lam["coef"]))) > 0
