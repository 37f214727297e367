"""Laws of data on the host: the numbers of data in memory, whatever is read at once, and no batch met twice."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import SGD, SID, ConvergenceError, HostArrays, HostBatches, ProblemError, Sampler
from bilevel import StochasticRichardson as Richardson

ROWS, FEATURES, STEPS, STEP = 60, 3, 40, 0.3
KEY = jax.random.key(0)
DECREASING = bl.Decreasing(2.0, 4.0)


def ridge(w, lam, data):
    """The mixed derivative has a variance: the penalty, too, is a mean over the rows."""
    X, y, weight = data
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.exp(lam) * jnp.mean(weight) * jnp.sum(w**2)


def validation(w, lam, data):
    X, y, _ = data
    return 0.5 * jnp.mean((X @ w - y) ** 2)


PROBLEM = bl.Problem(bl.minimization(ridge), validation)


def draw(dtype, seed):
    rng = np.random.default_rng(seed)
    X, weight = rng.normal(size=(ROWS, FEATURES)), rng.exponential(size=ROWS)
    return tuple(np.asarray(x, dtype) for x in (X, X @ np.array([1.0, -1.0, 0.5]) + rng.normal(size=ROWS), weight))


def cut(data, size):
    """A list of batches, the last one short."""
    return [tuple(x[i : i + size] for x in data) for i in range(0, ROWS, size)]


class Draws:
    """An iterable that counts the batches that were taken of it."""

    def __init__(self, batches):
        self.batches, self.taken = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.taken += 1
            yield batch


@pytest.fixture(scope="module")
def lower(dtype):
    return draw(dtype, 0)


@pytest.fixture(scope="module")
def upper(dtype):
    return draw(dtype, 1)


def method(b=7, *, rates=True, t=STEPS, k=STEPS, **fields):
    given = (DECREASING, STEP) if rates else ()
    return SID(**{"sampler": Sampler(b), "solver": SGD(t, *given), "linear_solver": Richardson(k, *given), **fields})


def compute(method, lower, upper, **options):
    w0 = jnp.zeros(FEATURES, jnp.result_type(float))
    arguments = {"lower_data": lower, "upper_data": upper, "method": method, "key": KEY, **options}
    return bl.hypergradient(PROBLEM, jnp.asarray(-1.0), w0, **arguments)


def assert_equal_to_rounding(a, b, dtype):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e3 * jnp.finfo(dtype).eps, atol=30 * jnp.finfo(dtype).eps)


EXACT = {"runs": 1, "upper_sampler": Sampler(5)}
J = {"jacobian_samples": 5, "upper_sampler": Sampler(7)}
CASES = {  # method, error, levels on the host
    "estimated rates": (method(4, rates=False, runs=2), True, (HostArrays, tuple)),
    "short batches": (method(7, runs=2, **J), False, (HostArrays, HostArrays)),
    "all of both levels": (method(4, **EXACT), False, (HostArrays, HostArrays)),
    "with replacement": (
        method(sampler=Sampler(4, replace=True), runs=1, jacobian_samples=5),
        False,
        (HostArrays, tuple),
    ),
    "upper level alone": (method(4, runs=1, **J), False, (tuple, HostArrays)),
}


@pytest.mark.parametrize("name", CASES)
def test_arrays_on_the_host_give_the_numbers_of_arrays_in_memory(name, lower, upper, dtype):
    """Same key, same batches, same results and counts."""
    method, error, (of_lower, of_upper) = CASES[name]
    h, expected = (compute(method, *data, error=error) for data in ((of_lower(lower), of_upper(upper)), (lower, upper)))
    assert_equal_to_rounding(h, expected, dtype)
    assert (h.lower.matvecs, h.adjoint.matvecs, h.error_info.matvecs) == (
        expected.lower.matvecs, expected.adjoint.matvecs, expected.error_info.matvecs,
    )  # fmt: skip


SOURCES = {"arrays": HostArrays, "batches": lambda data, chunk: HostBatches(cut(data, 7), chunk)}


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_read_at_once_changes_nothing(name, lower, upper, dtype):
    """Epochs of eight batches and a short one; on a CPU bit for bit, a GPU adds up stacks of other sizes otherwise."""
    of = SOURCES[name]
    results = [
        compute(method(jacobian_samples=5, upper_sampler=Sampler(7), runs=2), of(lower, chunk), of(upper, chunk))
        for chunk in (1, 7, None)
    ]
    for h in results[1:]:
        if jax.default_backend() == "cpu":
            jax.tree.map(np.testing.assert_array_equal, h, results[0])
        assert_equal_to_rounding(h, results[0], dtype)


def test_consecutive_batches_for_map_adjoint_and_mixed_derivative(lower, upper, dtype):
    """The algorithm in NumPy, with t, k and J batches that follow each other."""
    lam, t, k, J = -1.0, 10, 8, 6
    source = Draws(cut(lower, 7))
    h = compute(method(t=t, k=k, jacobian_samples=J, runs=1), HostBatches(source, 4), upper, error=False)
    assert source.taken == t + k + J  # none is read that is not used
    batches = (source.batches * 3)[: t + k + J]
    w, v, mixed = np.zeros(FEATURES), np.zeros(FEATURES), []
    eta = [STEP * 2 / (4 + i) for i in range(max(t, k))]
    for i, (X, y, weight) in enumerate(batches[:t]):
        w -= eta[i] * (X.T @ (X @ w - y) / len(y) + np.exp(lam) * weight.mean() * w)
    b = upper[0].T @ (upper[0] @ w - upper[1]) / ROWS
    for i, (X, y, weight) in enumerate(batches[t : t + k]):
        v += eta[i] * (b - X.T @ (X @ v) / len(y) - np.exp(lam) * weight.mean() * v)
    mixed = [np.exp(lam) * weight.mean() * w @ v for _, _, weight in batches[t + k :]]
    assert_equal_to_rounding((h.w, h.v, h.grad), (w, v, -np.mean(mixed)), dtype)


def test_runs_and_calls_take_batches_that_no_other_has(lower, upper, dtype):
    """Every run goes on where the one before stopped, every call where the last one did; a list begins anew."""
    source = Draws(cut(lower, 10))
    data, few = HostBatches(source), method(10, t=3, k=2, jacobian_samples=2, runs=1)
    first, second = (compute(few, data, upper, error=False) for _ in range(2))
    assert source.taken == 14 > len(source.batches)
    behind = HostBatches(source.batches[1:] + source.batches[:1])  # seven batches later
    jax.tree.map(np.testing.assert_array_equal, second, compute(few, behind, upper, error=False))
    twice = compute(replace(few, runs=2), HostBatches(cut(lower, 10)), upper, error=False)
    assert first.grad != second.grad
    # Two runs: the map has 2 x 3 batches, the adjoint the 2 x 2 behind, the mixed derivative the 2 x 2 behind those.
    order = [0, 1, 2, 6, 7, 10, 11, 3, 4, 5, 8, 9, 12, 13]
    batches = (source.batches * 3)[:14]
    one, other = (
        compute(few, HostBatches([batches[i] for i in part]), upper, error=False) for part in (order[:7], order[7:])
    )
    np.testing.assert_allclose(twice.grad, (one.grad + other.grad) / 2, rtol=30 * jnp.finfo(dtype).eps)


def test_all_of_the_data_weigh_short_batches_by_their_rows(lower, upper, dtype):
    h = compute(method(runs=1), HostBatches(cut(lower, 7)), upper, error=False)
    assert_equal_to_rounding(h.grad, -np.exp(-1.0) * lower[2].mean() * float(h.w @ h.v), dtype)
    assert h.adjoint.matvecs == STEPS + -(-ROWS // 7)


def test_rates_are_estimated_from_batches_of_the_source(lower, upper):
    """32 batches for each of the two, short ones among them; the steps they give converge."""
    source = Draws(cut(lower, 7))
    h = compute(method(t=400, k=400, rates=False, runs=1), HostBatches(source), upper, error=False)
    assert source.taken == 2 * 32 + 800 + -(-ROWS // 7)
    (X, y, weight), (Xu, yu, _), penalty = lower, upper, np.exp(-1.0)
    H = X.T @ X / ROWS + penalty * weight.mean() * np.eye(FEATURES)
    w = np.linalg.solve(H, X.T @ y / ROWS)
    v = np.linalg.solve(H, Xu.T @ (Xu @ w - yu) / ROWS)
    np.testing.assert_allclose(h.grad, -penalty * weight.mean() * w @ v, rtol=0.2)


def test_keys_in_arrays_are_fresh_at_every_draw(lower, dtype):
    """As in memory, on every kind of row axis."""

    def noisy(w, lam, data):
        X, y, key = data
        X = X.T * (1 + 0.1 * jax.random.normal(key, X.shape[::-1], X.dtype))
        return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)

    data = {"lower_data": (lower[0].T.copy(), lower[1], jax.random.key(7)), "upper_data": None}
    problem = bl.Problem(bl.minimization(noisy), lambda w, lam, data: jnp.sum(w**2))
    few = method(sampler=Sampler(6, (1, 0, None)), jacobian_samples=3, runs=1)
    arguments = {"method": few, "key": KEY, "error": False}
    at = problem, jnp.asarray(-1.0), jnp.zeros(FEATURES, dtype)
    expected = bl.hypergradient(*at, **data, **arguments)
    h = bl.hypergradient(*at, lower_data=HostArrays(data["lower_data"], chunk=8), **arguments)
    assert_equal_to_rounding(h, expected, dtype)


def test_memory_mapped_files_and_upper_level_runs(lower, upper, dtype, tmp_path):
    """BSGM with growing counts, by the numbers of data in memory."""
    mapped = []
    for i, x in enumerate(lower):
        np.save(tmp_path / f"{i}.npy", x)
        mapped.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    algorithm = bl.algorithms.BSGM(method(runs=1), step=1.0, counts=bl.algorithms.LinearCounts(5))
    options = {"algorithm": algorithm, "steps": 3, "upper_data": upper, "key": KEY}
    at = PROBLEM, jnp.asarray(-1.0), jnp.zeros(FEATURES, dtype)
    expected, result = (bl.optimize(*at, lower_data=x, **options) for x in (lower, HostArrays(tuple(mapped))))
    assert_equal_to_rounding((result.lam, result.w), (expected.lam, expected.w), dtype)
    np.testing.assert_array_equal(result.history.samples, expected.history.samples)


def test_a_diverging_run_stops_reading(lower, upper):
    source = Draws(cut(lower, 7) * 200)
    wild = method(t=1000, solver=SGD(1000, bl.Constant(100.0), 0.5), jacobian_samples=2, runs=1)
    with pytest.raises(ConvergenceError, match="DIVERGED") as caught:
        compute(wild, HostBatches(source, chunk=8), upper, error=False)
    h = caught.value.result
    assert 0 < h.lower.steps < 100
    assert source.taken <= h.lower.steps + 3 * 8 + STEPS + 2  # at most what was read ahead
    assert np.all(np.isfinite(h.w))


class Tensor:
    """What ``numpy.asarray`` takes, as the tensors of other libraries."""

    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.x, dtype)


def test_batches_hold_whatever_numpy_takes(lower, upper):
    few = method(t=5, k=5, runs=1)
    tensors = [[Tensor(x) for x in batch] for batch in cut(lower, 7)]
    h, expected = (compute(few, HostBatches(x), upper, error=False) for x in (tensors, cut(lower, 7)))
    jax.tree.map(np.testing.assert_array_equal, h, expected)


def test_data_loaders(lower, upper):
    torch = pytest.importorskip("torch")
    rows = torch.utils.data.TensorDataset(*map(torch.from_numpy, lower))
    loader = torch.utils.data.DataLoader(rows, batch_size=7)
    few = method(t=12, k=5, runs=1)
    h, expected = (compute(few, HostBatches(x), upper, error=False) for x in (loader, cut(lower, 7)))
    jax.tree.map(np.testing.assert_array_equal, h, expected)


FEW = method(t=5, k=5, runs=1)
BAD = {
    "no SID": (lambda x: x, bl.AID(), r"for method=SID\(\.\.\.\), but method is AID"),
    "automatic": (lambda x: x, None, "but method is None, the automatic one"),
    "solver": (lambda x: x, replace(FEW, solver=bl.NewtonCG()), r"solver is NewtonCG, .* give SGD"),
    "adjoint": (lambda x: x, replace(FEW, linear_solver=bl.CG()), "linear_solver is CG, .* give StochasticRichardson"),
    "empty": (lambda _: HostBatches([]), FEW, "lower_data is empty: its source, a list, gave no batch"),
    "ended": (lambda x: HostBatches(iter(x.source[:7])), replace(FEW, jacobian_samples=2),
              "lower_data ended after 7 of the 12 batches that this call needs"),
    "once": (lambda x: HostBatches(iter(x.source * 9)), FEW, "iterator can be gone through only once: give a number J"),
    "no batches": (lambda _: HostBatches(3), FEW, "needs an iterable of batches, but source is a int"),
    "large": (lambda x: x, replace(FEW, sampler=Sampler(5)), "A batch of lower_data has 7 rows, .* batch_size=5"),
    "replace": (lambda x: x, replace(FEW, sampler=Sampler(7, replace=True)), "leave out replace=True"),
    "structure": (lambda x: HostBatches([*x.source[:2], x.source[0][:2]]), FEW, "must have one structure"),
    "objects": (lambda _: HostBatches([("a", "b", "c")]), FEW, "must hold arrays of numbers, but a leaf is a str"),
    "keys": (lambda x: HostBatches([(*x.source[0][:2], KEY)]), FEW, "PRNG keys that would be read from the host"),
    "chunk": (lambda x: HostBatches(x.source, chunk=0), FEW, "chunk must be at least 1 or None, but is 0"),
    "rows": (lambda _: HostArrays((np.zeros((4, 3)), np.zeros(3), np.zeros(4))), FEW, "same number of rows"),
    "no rows": (lambda _: HostArrays(np.zeros((4, 3))), replace(FEW, sampler=Sampler(None, None)), "give its sampler"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_a_sentence(name, lower, upper):
    change, method, sentence = BAD[name]
    with pytest.raises(ProblemError, match=sentence):
        compute(method, change(HostBatches(cut(lower, 7))), upper, error=False)


def test_what_cannot_be_read_is_refused_in_a_sentence(lower, upper):
    with pytest.raises(ProblemError, match="give SID an upper_sampler"):
        compute(FEW, lower, HostArrays(upper), error=False)
    with pytest.raises(ProblemError, match=r"SID\(runs=1\) has no spread"):
        compute(FEW, HostArrays(lower), upper)
    for nested in ((HostArrays(lower[0]), *lower[1:]), (HostBatches([]), *lower[1:])):
        with pytest.raises(ProblemError, match=r"is for hypergradient and optimize with SID"):
            compute(FEW, nested, upper, error=False)
    with pytest.raises(ProblemError, match="HostArrays is for hypergradient and optimize"):
        bl.monte_carlo(PROBLEM, -1.0, jnp.zeros(FEATURES), lower_data=HostArrays(lower), method=FEW, key=KEY, runs=2)
    with pytest.raises(ProblemError, match="cannot be read inside jit, grad or vmap"):
        jax.jit(lambda key: compute(FEW, HostArrays(lower), upper, error=False, key=key).grad)(KEY)
