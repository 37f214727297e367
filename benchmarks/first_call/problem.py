"""One problem as a file: what every library reads."""

import pickle

import jax
import numpy as np

from first_call.libraries import CALLS, COLD_CALLS

STEP = 0.01


def sampled(row, seed):
    """The problem of a seed; ``lams`` are one for every call, the first that of the row, the others near it."""
    problem = row.sample(seed)
    lam = problem.pop("lam")
    near = [moved(lam, np.random.default_rng([seed, call])) for call in range(1, CALLS + COLD_CALLS)]
    return {"lams": [lam, *near], **problem}


def moved(lam, rng):
    """Hyperparameters a little aside, of one leaf or a dictionary of them."""
    if isinstance(lam, dict):
        return {name: moved(leaf, rng) for name, leaf in lam.items()}
    return lam + STEP * rng.standard_normal(lam.shape)


def load(folder):
    """The problem in NumPy."""
    return pickle.loads((folder / "problem.pickle").read_bytes())


def save(problem, folder):
    (folder / "problem.pickle").write_bytes(pickle.dumps(problem))


def load_truths(folder):
    """The true hypergradients of the calls that are judged, one a row, flat."""
    return np.load(folder / "truths.npy")


def save_truths(truths, folder):
    np.save(folder / "truths.npy", truths)


def flat(grad):
    """Leaves in a row, in NumPy."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grad)])


def relative(grad, truth):
    """``norm(grad - truth) / norm(truth)``, infinite where ``grad`` is not finite."""
    if not np.all(np.isfinite(grad)):
        return np.inf
    return float(np.linalg.norm(grad - truth) / np.linalg.norm(truth))
