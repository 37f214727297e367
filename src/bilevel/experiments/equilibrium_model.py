"""The equilibrium model of ``p1-equilibrium``, its hypergradient, and a step of its training.

``B x_i + c`` is the same in all steps of the map and by far its greatest part. So the map that is solved and
differentiated takes the drive ``D = X B^T + c`` as a hyperparameter in place of B and c, and the hypergradient by
``(A, D, readout)`` is pulled back through ``lam -> (A, D, readout)``: one product with X forth and one back a step.
"""

from functools import partial
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from bilevel import tree
from bilevel.experiments.mnist import CLASSES, PIXELS
from bilevel.hypergradient import hypergradient
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.richardson import Richardson
from bilevel.methods.aid import AID
from bilevel.methods.base import Hypergradient
from bilevel.methods.itd import ITD
from bilevel.models import equilibrium
from bilevel.models.equilibrium import Parameters
from bilevel.models.samples import Samples
from bilevel.problems import Problem, fixed_point
from bilevel.solvers.picard import Picard

Tree = Any

LEARNING_RATE, MOMENTUM = 0.5, 0.9
INITIAL_SCALE = 0.01
LARGEST_SINGULAR_VALUE = 0.99


class Driven(TypedDict):
    """The layer with its drive in place of B and c, and the readout."""

    A: Float[Array, "h h"]
    drive: Float[Array, "n h"]
    coef: Float[Array, "h classes"]
    intercept: Float[Array, " classes"]


class Training(NamedTuple):
    """What is carried from step to step: parameters, a :class:`Parameters`, and the momentum of each."""

    lam: Tree
    velocity: Tree


def driven_map(w: Float[Array, "n h"], lam: Driven, _data: None) -> Float[Array, "n h"]:
    """``w_i -> tanh(A w_i + D_i)`` for every image i."""
    return jnp.tanh(w @ lam["A"].T + lam["drive"])


def drive(lam: Parameters, X: Float[Array, "n p"]) -> Driven:
    """``D = X B^T + c``."""
    D = X @ lam["B"].T + lam["c"][None]
    return Driven(A=lam["A"], drive=D, coef=lam["coef"], intercept=lam["intercept"])


def problem() -> Problem:
    """Train layer, drive and readout; the upper data are the images with their digits."""
    return Problem(fixed_point(driven_map), equilibrium.upper)


def method_of(name: str, inner_steps: int) -> Any:
    """The hypergradient method of a curve."""
    solver = Picard(steps=inner_steps)
    return {
        "ITD": ITD(solver),
        "FP": AID(solver, Richardson(steps=inner_steps)),
        "CG": AID(solver, NormalCG(steps=inner_steps)),
    }[name]


def hypergradient_of(method: Any, lam: Parameters, data: Samples, *, error: bool) -> tuple[Tree, Hypergradient]:
    """The hypergradient by ``lam``, and that by ``(A, D, readout)`` which it is pulled back from, with its error."""
    driven, pull_back = jax.vjp(lambda lam: drive(lam, data.X), lam)
    w0 = jnp.zeros_like(driven["drive"])
    h = hypergradient(problem(), driven, w0, upper_data=data, method=method, error=error, on_failure="keep")
    return pull_back(h.grad)[0], h


def start(states: int, seed: int, dtype: Any) -> Parameters:
    """Small random parameters; the intercepts of the readout are zero."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return jnp.asarray(INITIAL_SCALE * rng.standard_normal(shape), dtype)

    h = states
    return Parameters(
        A=normal(h, h), B=normal(h, PIXELS), c=normal(h), coef=normal(h, CLASSES), intercept=jnp.zeros(CLASSES, dtype)
    )


def project(A: Float[Array, "h h"]) -> Float[Array, "h h"]:
    """The nearest matrix with singular values of at most :data:`LARGEST_SINGULAR_VALUE`."""
    U, values, Vt = jnp.linalg.svd(A, full_matrices=False)
    return (U * jnp.minimum(values, LARGEST_SINGULAR_VALUE)[None]) @ Vt


optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)


def begin(lam: Tree) -> Training:
    """Training from these parameters, at rest."""
    return Training(lam, optimizer.init(lam))


@partial(jax.jit, static_argnames="projected")
def train_step(method: Any, state: Training, data: Samples, *, projected: bool) -> Training:
    """One step of the training along the hypergradient."""
    grad, _ = hypergradient_of(method, state.lam, data, error=False)
    updates, velocity = optimizer.update(grad, state.velocity)
    lam = tree.add(state.lam, updates)
    return Training({**lam, "A": project(lam["A"])} if projected else lam, velocity)


@partial(jax.jit, static_argnames="error")
def driven_hypergradient(method: Any, lam: Parameters, data: Samples, *, error: bool) -> Hypergradient:
    """The hypergradient by ``(A, D, readout)``."""
    return hypergradient_of(method, lam, data, error=error)[1]


@partial(jax.jit, static_argnums=0)
def quality(inner_steps: int, lam: Parameters, data: Samples) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy and accuracy of the model after T steps of the map."""
    driven = drive(lam, data.X)
    w, _ = Picard(steps=inner_steps)(problem().lower, driven, jnp.zeros_like(driven["drive"]), None)
    scores = w @ lam["coef"] + lam["intercept"][None]
    accuracy = jnp.mean((jnp.argmax(scores, axis=1) == data.y).astype(scores.dtype))
    return equilibrium.upper(w, lam, data), accuracy
