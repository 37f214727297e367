"""Problems of the families with their constants, at given ``lam`` and data."""

from dataclasses import replace

from bilevel.lagrangian import Instance
from bilevel.models.catalog import CATALOG
from families import FAMILIES


def with_constants(family, seed, dtype, condition=10.0, n=14):
    """A case of the family whose problem has the closed-form constants."""
    case = FAMILIES[family](seed, dtype, n=n, condition=condition)
    return case._replace(problem=replace(case.problem, constants=CATALOG[family].constants))


def instance(case):
    return Instance(case.problem, case.lam, case.lower_data, case.upper_data)
