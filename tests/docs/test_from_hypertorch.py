"""The page "Coming from hypertorch": our blocks against NumPy, and theirs against ours where they can run."""

import importlib.util
import os
import re
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "from-hypertorch.md"
CHECKOUT = os.environ.get("HYPERTORCH")

pytestmark = pytest.mark.float64


def sections():
    """Heading to blocks ``(whose, code)``, in the order of the page."""
    found = {}
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"```python\n# (both|hypertorch|bilevel)\n(.*?)```", part, flags=re.DOTALL)
        found[part.splitlines()[0]] = blocks
    return found


def run(whose):
    """What the blocks of one library leave: hypergradients by heading, and the names at the end."""
    names, left = {}, {}
    for heading, blocks in sections().items():
        for owner, code in blocks:
            if owner in ("both", whose):
                exec(compile(code, f"{PAGE.name}, {heading}", "exec"), names)
        if any(owner == whose for owner, _ in blocks):
            left[heading] = names.get("g") if whose == "hypertorch" else names.get("h")
    return left, names


@pytest.fixture(scope="module")
def ours():
    return run("bilevel")


@pytest.fixture(scope="module")
def theirs():
    if not CHECKOUT:
        pytest.skip("HYPERTORCH does not name a checkout of hypertorch")
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    sys.path.insert(0, CHECKOUT)
    with warnings.catch_warnings(action="ignore"):  # PyTorch's and hypertorch's own
        left = run("hypertorch")
    sys.path.remove(CHECKOUT)
    return left


class Ridge:
    """The page's problem in NumPy: every method as the recursion that defines it."""

    def __init__(self, names):
        self.__dict__.update({key: names[key] for key in ("X", "y", "X_valid", "y_valid", "penalties", "T", "K")})
        self.step, self.momentum = names["step"], names["momentum"]
        self.A = self.X.T @ self.X / 60 + np.diag(self.penalties)
        self.b = self.X.T @ self.y / 60

    def path(self, momentum=0.0, step=None):
        """Iterates of gradient descent or heavy ball."""
        step = self.step if step is None else step
        w = [np.zeros(20)] * 2
        for _ in range(self.T):
            w.append(w[-1] - step * (self.A @ w[-1] - self.b) + momentum * (w[-1] - w[-2]))
        return w[1:]

    def upper_gradient(self, w):
        return self.X_valid.T @ (self.X_valid @ w - self.y_valid) / 60

    def upper(self, w):
        return np.mean((self.X_valid @ w - self.y_valid) ** 2) / 2

    def iterative(self, last, momentum=0.0):
        """Reverse mode through the last steps: p is the derivative by w_i, q what it sends to w_{i-1} by momentum."""
        path = self.path(momentum)
        p, q, grad = self.upper_gradient(path[-1]), np.zeros(20), np.zeros(20)
        for w in path[-2 : -2 - last : -1]:
            grad -= self.step * w * p
            p, q = p - self.step * (self.A @ p) + momentum * p + q, -momentum * p
        return grad

    def series(self, terms):
        """``-w v`` with so many terms of the Neumann series for v."""
        w = self.path()[-1]
        g = self.upper_gradient(w)
        v = np.zeros(20)
        for _ in range(terms):
            v = v + self.step * (g - self.A @ v)
        return -w * v

    def krylov(self, normal):
        """``-w v`` with v the minimizer over the Krylov space of the energy norm of the error, or of the residual."""
        w = self.path()[-1]
        g = self.upper_gradient(w)
        M, r = (self.A @ self.A, self.A @ g) if normal else (self.A, g)
        basis = r[:, None]
        for _ in range(self.K - 1):
            basis = np.linalg.qr(np.column_stack([basis, M @ basis[:, -1]]))[0]
        return -w * (basis @ np.linalg.solve(basis.T @ M @ basis, basis.T @ r))

    def exact(self):
        w = np.linalg.solve(self.A, self.b)
        return -w * np.linalg.solve(self.A, self.upper_gradient(w))

    def learned(self):
        """Reverse mode for the penalties, a central difference for the logarithm of the step."""
        change = 1e-5
        high, low = (self.upper(self.path(step=self.step * np.exp(sign * change))[-1]) for sign in (1, -1))
        return np.append(self.iterative(self.T), (high - low) / (2 * change))


EXPECTED = {
    "Reverse mode: reverse_unroll": (lambda p: p.iterative(p.T), 1e-12),
    "Stored iterates: reverse": (lambda p: p.iterative(p.T), 1e-12),
    "Truncated reverse": (lambda p: p.iterative(p.K), 1e-12),
    "Fixed-point method: fixed_point": (lambda p: p.series(p.K), 1e-12),
    "Neumann series: neumann": (lambda p: p.series(p.K + 1), 1e-12),
    "Conjugate gradients: CG": (lambda p: p.krylov(normal=False), 1e-12),
    "Normal equations: CG_normaleq": (lambda p: p.krylov(normal=True), 1e-12),
    "The exact hypergradient: exact": (lambda p: p.exact(), 1e-12),
    "Heavy ball": (lambda p: p.iterative(p.T, p.momentum), 1e-12),
    "Momentum": (lambda p: p.iterative(p.T, p.momentum), 1e-12),
    "A map of your own": (lambda p: p.krylov(normal=False), 1e-12),
    "Learned step sizes": (lambda p: p.learned(), 1e-7),
    "Tolerances": (lambda p: p.exact(), 1e-8),
    "Warm starts": (lambda p: p.exact(), 1e-8),
}
COMPARED = [heading for heading in EXPECTED if heading not in ("Tolerances", "Warm starts")]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_every_section_with_our_code_is_checked(ours):
    left, _ = ours
    assert {heading for heading, h in left.items() if h is not None} == set(EXPECTED)


@pytest.mark.parametrize("heading", EXPECTED)
def test_our_blocks_give_what_their_definitions_say(ours, heading):
    left, names = ours
    expected, tolerance = EXPECTED[heading]
    assert relative(flat(left[heading].grad), expected(Ridge(names))) < tolerance


def test_the_methods_of_the_page_can_be_told_apart(ours):
    left, _ = ours
    grads = [flat(left[heading].grad) for heading in COMPARED[2:8]]
    assert all(relative(a, b) > 1e-8 for i, a in enumerate(grads) for b in grads[:i])


@pytest.mark.parametrize("heading", COMPARED)
def test_their_blocks_give_the_same(ours, theirs, heading):
    g = np.concatenate([np.ravel(t.detach().numpy()) for t in theirs[0][heading]])
    assert relative(flat(ours[0][heading].grad), g) < 1e-9


def test_their_conjugate_gradients_drop_the_iterate_that_converged(theirs):
    names = theirs[1]
    assert not names["lost"][0].any()
    assert names["target"].all()
