"""Upper-level algorithms, one file each, behind two protocols.

Along hypergradients: ``init(lam0, w0) -> state`` and ``update(state, problem, lower_data, upper_data) -> state, info``,
where ``info`` holds the hypergradient and ``samples``. Those with ``stochastic = True`` take a random key,
``init(lam0, w0, key)``.

With cheap steps that need no hypergradient, marked ``compiled = True``: ``init(oracles, point, key) -> state`` and
``update(oracles, state) -> state`` (:mod:`bilevel.algorithms.oracles`), which run in compiled stretches.
"""

from bilevel.algorithms.adaptive_soba import AdaptiveSOBA
from bilevel.algorithms.alset import ALSET
from bilevel.algorithms.amigo import AmIGO
from bilevel.algorithms.bisls import BiSLS
from bilevel.algorithms.bisps import BiSPS
from bilevel.algorithms.bome import BOME
from bilevel.algorithms.bsa import BSA
from bilevel.algorithms.bsgm import BSGM, LinearCounts, SqrtCounts
from bilevel.algorithms.f2sa import F2SA
from bilevel.algorithms.fsla import FSLA
from bilevel.algorithms.hypergradient_descent import HypergradientDescent
from bilevel.algorithms.inexact_stochastic import ISGD
from bilevel.algorithms.mrbo import MRBO
from bilevel.algorithms.mstsa import MSTSA
from bilevel.algorithms.pzobo import PZOBO
from bilevel.algorithms.quasi_newton import QuasiNewton
from bilevel.algorithms.saba import SABA
from bilevel.algorithms.soba import SOBA
from bilevel.algorithms.srba import SRBA
from bilevel.algorithms.stocbio import StocBiO
from bilevel.algorithms.sustain import SUSTAIN
from bilevel.algorithms.ttsa import TTSA
from bilevel.algorithms.vrbo import VRBO

__all__ = [
    "ALSET",
    "BOME",
    "BSA",
    "BSGM",
    "F2SA",
    "FSLA",
    "ISGD",
    "MRBO",
    "MSTSA",
    "PZOBO",
    "SABA",
    "SOBA",
    "SRBA",
    "SUSTAIN",
    "TTSA",
    "VRBO",
    "AdaptiveSOBA",
    "AmIGO",
    "BiSLS",
    "BiSPS",
    "HypergradientDescent",
    "LinearCounts",
    "QuasiNewton",
    "SqrtCounts",
    "StocBiO",
]
