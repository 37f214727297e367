"""Hypergradients by this library."""

import jax
import jax.numpy as jnp
from harness import run
from jax_losses import start

import bilevel as bl
from bilevel.models import logistic
from bilevel.models.samples import Samples


def aid_cg(inputs, steps, products, error):
    return call(inputs, method=bl.AID(bl.GradientDescent(steps=steps), bl.CG(steps=products)), error=error)


def aid_fp(inputs, steps, products, error):
    return call(inputs, method=bl.AID(bl.GradientDescent(steps=steps), bl.Richardson(steps=products)), error=error)


def itd(inputs, steps, error):
    return call(inputs, method=bl.ITD(bl.GradientDescent(steps=steps)), error=error)


def automatic(inputs, tol):
    return call(inputs, tol=tol)


def call(inputs, **options):
    problem = bl.Problem(bl.minimization(logistic.loss, step=jnp.asarray(inputs.step)), logistic.upper)
    lam, w0 = jnp.asarray(inputs.lam), jnp.asarray(inputs.w0)
    train, valid = (
        Samples(jnp.asarray(X), jnp.asarray(y)) for X, y in ((inputs.X, inputs.y), (inputs.X_valid, inputs.y_valid))
    )

    def hypergradient():
        h = jax.block_until_ready(bl.hypergradient(problem, lam, w0, lower_data=train, upper_data=valid, **options))
        return h.grad, [info.matvecs for info in (h.lower, h.adjoint, h.error_info)]

    return hypergradient


if __name__ == "__main__":
    start()
    run({"AID-CG": aid_cg, "AID-FP": aid_fp, "ITD": itd, "automatic": automatic})
