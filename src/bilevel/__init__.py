"""Hypergradients of bilevel problems, with their error."""

from bilevel import algorithms, prox
from bilevel.automatic.method import Automatic
from bilevel.certificates.constants import Constants, estimate_constants
from bilevel.check import check_hypergradient
from bilevel.checking.report import Check
from bilevel.diagnose import diagnose
from bilevel.diagnosis.report import Diagnosis
from bilevel.host.sources import HostArrays, HostBatches
from bilevel.hypergradient import hypergradient
from bilevel.implicit import implicit
from bilevel.linear.cg import CG
from bilevel.linear.dense import Dense
from bilevel.linear.factorized import Factorized, factorize
from bilevel.linear.gmres import GMRES
from bilevel.linear.neumann import Neumann
from bilevel.linear.normal_cg import NormalCG
from bilevel.linear.preconditioners import Jacobi, Nystrom
from bilevel.linear.richardson import Richardson
from bilevel.linear.stochastic import StochasticRichardson
from bilevel.methods.aid import AID
from bilevel.methods.base import Hypergradient
from bilevel.methods.exact import Exact
from bilevel.methods.itd import ITD
from bilevel.methods.monte_carlo import MonteCarlo, monte_carlo
from bilevel.methods.nsid import NSID
from bilevel.methods.sid import SID
from bilevel.optimize import optimize
from bilevel.plan import plan
from bilevel.problems import Lower, Problem, batched, composite, fixed_point, minimization, root
from bilevel.sampling import Sampler, Stream, shuffle
from bilevel.schedules import Constant, Decreasing, from_rates
from bilevel.solvers.anderson import Anderson
from bilevel.solvers.lbfgs import LBFGS
from bilevel.solvers.momentum import HeavyBall, Nesterov
from bilevel.solvers.newton_cg import NewtonCG
from bilevel.solvers.newton_krylov import NewtonKrylov
from bilevel.solvers.optax import Optax
from bilevel.solvers.picard import GradientDescent, Picard
from bilevel.solvers.sgd import SGD
from bilevel.status import BilevelError, ConvergenceError, ProblemError, SolveInfo, Status
from bilevel.tree import masked_mean

__all__ = [
    "AID",
    "CG",
    "GMRES",
    "ITD",
    "LBFGS",
    "NSID",
    "SGD",
    "SID",
    "Anderson",
    "Automatic",
    "BilevelError",
    "Check",
    "Constant",
    "Constants",
    "ConvergenceError",
    "Decreasing",
    "Dense",
    "Diagnosis",
    "Exact",
    "Factorized",
    "GradientDescent",
    "HeavyBall",
    "HostArrays",
    "HostBatches",
    "Hypergradient",
    "Jacobi",
    "Lower",
    "MonteCarlo",
    "Nesterov",
    "Neumann",
    "NewtonCG",
    "NewtonKrylov",
    "NormalCG",
    "Nystrom",
    "Optax",
    "Picard",
    "Problem",
    "ProblemError",
    "Richardson",
    "Sampler",
    "SolveInfo",
    "Status",
    "StochasticRichardson",
    "Stream",
    "algorithms",
    "batched",
    "check_hypergradient",
    "composite",
    "diagnose",
    "estimate_constants",
    "factorize",
    "fixed_point",
    "from_rates",
    "hypergradient",
    "implicit",
    "masked_mean",
    "minimization",
    "monte_carlo",
    "optimize",
    "plan",
    "prox",
    "root",
    "shuffle",
]
