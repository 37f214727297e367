"""What is compared: rows at a fixed budget, and grids of settings for a given accuracy."""

from dataclasses import dataclass, field
from itertools import product

STEPS, PRODUCTS = 100, 20
BUDGET = {"steps": STEPS, "products": PRODUCTS}
ACCURACY = 1e-6  # relative error of the second comparison


@dataclass(frozen=True)
class Row:
    """One line of a table.

    ``work`` names what is done: rows of the same work take the same steps and products. ``method`` and ``setting``
    are for the library's runner. ``matvecs`` are those of the lower level and of the adjoint, where the library
    does not count them.
    """

    library: str
    work: str
    label: str
    method: str
    setting: dict = field(hash=False)
    matvecs: tuple[int, int] | None = None
    note: str = ""


def ours(method, setting):
    """Without and with the error estimate."""
    return [
        Row("bilevel", method, "bilevel", method, {**setting, "error": False}),
        Row("bilevel", method, "bilevel, with its error", method, {**setting, "error": True}),
    ]


ZERO_START = "its CG takes one product for the residual at zero"
EVALUATION = "one more gradient, unused"

BUDGET_ROWS = [
    *ours("AID-CG", BUDGET),
    Row("jaxopt", "AID-CG", "jaxopt, implicit", "implicit", BUDGET, (STEPS, PRODUCTS + 1), ZERO_START),
    Row(
        "optimistix", "AID-CG", "optimistix, implicit", "implicit", BUDGET, (STEPS + 1, PRODUCTS + 1),
        f"{EVALUATION}; {ZERO_START}",
    ),
    Row(
        "torchopt", "AID-CG", "torchopt, custom_root", "custom_root CG", BUDGET, (STEPS, PRODUCTS + 1), ZERO_START
    ),
    Row("hypertorch", "AID-CG", "hypertorch, CG", "CG", BUDGET, (STEPS, PRODUCTS)),
    *ours("AID-FP", BUDGET),
    Row(
        "torchopt", "AID-FP", "torchopt, Neumann", "custom_root NS", BUDGET, (STEPS, PRODUCTS - 1),
        "19 products, as its series starts at the right-hand side",
    ),
    Row("hypertorch", "AID-FP", "hypertorch, fixed_point", "fixed_point", BUDGET, (STEPS, PRODUCTS)),
    *ours("ITD", {"steps": STEPS}),
    Row(
        "jaxopt", "ITD", "jaxopt, unrolled", "unrolled", {"steps": STEPS}, (STEPS, STEPS),
        "implicit_diff=False; its loop keeps a copy of the data for every step",
    ),
    Row(
        "jaxopt", "ITD", "jaxopt, scan of update", "scanned", {"steps": STEPS}, (STEPS, STEPS),
        "its update in a scan of the user's, without that copy",
    ),
    Row(
        "optimistix", "ITD", "optimistix, unrolled", "unrolled", {"steps": STEPS}, (STEPS + 1, STEPS + 1),
        f"{EVALUATION}; as many checkpoints as steps",
    ),
    Row(
        "optimistix", "ITD", "optimistix, checkpointed", "checkpointed", {"steps": STEPS}, None,
        f"{EVALUATION}; its default number of checkpoints, less memory",
    ),
    Row("torchopt", "ITD", "torchopt, MetaSGD", "MetaSGD", {"steps": STEPS}, (STEPS, STEPS)),
    Row(
        "hypertorch", "ITD", "hypertorch, reverse", "reverse", {"steps": STEPS}, (2 * STEPS, STEPS),
        "computes each step once more, for less memory",
    ),
    Row("hypertorch", "ITD", "hypertorch, unrolled", "reverse_unroll", {"steps": STEPS}, (STEPS, STEPS)),
]  # fmt: skip


def grid(library, method, **choices):
    """One row for every combination of choices."""
    settings = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    return [Row(library, "accuracy", library, method, setting) for setting in settings]


ACCURACY_GRIDS = {
    "bilevel": grid("bilevel", "automatic", tol=[ACCURACY]),
    "jaxopt": grid(
        "jaxopt", "L-BFGS", tolerance=[3e-7, 1e-7], adjoint_tolerance=[1e-6], linesearch=["backtracking", "zoom"]
    ),
    "optimistix": [
        *grid("optimistix", "quasi-Newton", solver=["L-BFGS"], tolerance=[5e-7, 1e-7], adjoint_tolerance=[1e-4]),
        *grid("optimistix", "quasi-Newton", solver=["BFGS"], tolerance=[5e-8], adjoint_tolerance=[1e-4]),
    ],
    "torchopt": grid("torchopt", "L-BFGS", tolerance=[3e-8, 1e-8], adjoint_tolerance=[1e-6]),
    "hypertorch": [
        *grid(
            "hypertorch", "heavy ball", steps=[40, 50], stretch=[2.0], momentum=[0.4], products=[20, 25],
            tolerance=[0.0],
        ),
        *grid("hypertorch", "L-BFGS", tolerance=[3e-8, 1e-8], products=[20, 25], adjoint_tolerance=[0.0]),
    ],
}  # fmt: skip
