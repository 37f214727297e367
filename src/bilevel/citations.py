"""The papers behind the methods, as BibTeX."""

from collections.abc import Iterable

GRAZZI_2020 = "grazzi2020iteration"
PEDREGOSA_2016 = "pedregosa2016hyperparameter"
EHRHARDT_ROBERTS = "ehrhardt2023inexact"
HESTENES_STIEFEL = "hestenes1952methods"
SAAD_SCHULTZ = "saad1986gmres"
EISENSTAT_WALKER = "eisenstat1996choosing"
CHRISTIANSON = "christianson1994reverse"
GRIEWANK_WALTHER = "griewank2008evaluating"
KNOLL_KEYES = "knoll2004jacobian"

BIBTEX = {
    GRAZZI_2020: """@inproceedings{grazzi2020iteration,
  title = {On the Iteration Complexity of Hypergradient Computation},
  author = {Grazzi, Riccardo and Franceschi, Luca and Pontil, Massimiliano and Salzo, Saverio},
  booktitle = {International Conference on Machine Learning},
  year = {2020},
  eprint = {2006.16218},
  archivePrefix = {arXiv},
}""",
    PEDREGOSA_2016: """@inproceedings{pedregosa2016hyperparameter,
  title = {Hyperparameter Optimization with Approximate Gradient},
  author = {Pedregosa, Fabian},
  booktitle = {International Conference on Machine Learning},
  year = {2016},
}""",
    EHRHARDT_ROBERTS: """@misc{ehrhardt2023inexact,
  title = {Analyzing Inexact Hypergradients for Bilevel Learning},
  author = {Ehrhardt, Matthias J. and Roberts, Lindon},
  year = {2023},
  eprint = {2301.04764},
  archivePrefix = {arXiv},
}""",
    HESTENES_STIEFEL: """@article{hestenes1952methods,
  title = {Methods of Conjugate Gradients for Solving Linear Systems},
  author = {Hestenes, Magnus R. and Stiefel, Eduard},
  journal = {Journal of Research of the National Bureau of Standards},
  volume = {49},
  pages = {409--436},
  year = {1952},
}""",
    SAAD_SCHULTZ: """@article{saad1986gmres,
  title = {{GMRES}: A Generalized Minimal Residual Algorithm for Solving Nonsymmetric Linear Systems},
  author = {Saad, Youcef and Schultz, Martin H.},
  journal = {SIAM Journal on Scientific and Statistical Computing},
  volume = {7},
  pages = {856--869},
  year = {1986},
}""",
    EISENSTAT_WALKER: """@article{eisenstat1996choosing,
  title = {Choosing the Forcing Terms in an Inexact {Newton} Method},
  author = {Eisenstat, Stanley C. and Walker, Homer F.},
  journal = {SIAM Journal on Scientific Computing},
  volume = {17},
  pages = {16--32},
  year = {1996},
}""",
    CHRISTIANSON: """@article{christianson1994reverse,
  title = {Reverse Accumulation and Attractive Fixed Points},
  author = {Christianson, Bruce},
  journal = {Optimization Methods and Software},
  volume = {3},
  pages = {311--326},
  year = {1994},
}""",
    GRIEWANK_WALTHER: """@book{griewank2008evaluating,
  title = {Evaluating Derivatives: Principles and Techniques of Algorithmic Differentiation},
  author = {Griewank, Andreas and Walther, Andrea},
  publisher = {SIAM},
  edition = {2nd},
  year = {2008},
}""",
    KNOLL_KEYES: """@article{knoll2004jacobian,
  title = {Jacobian-free {Newton--Krylov} Methods: A Survey of Approaches and Applications},
  author = {Knoll, D. A. and Keyes, D. E.},
  journal = {Journal of Computational Physics},
  volume = {193},
  pages = {357--397},
  year = {2004},
}""",
}


def bibtex(keys: Iterable[str]) -> str:
    """The entries of these keys, one after the other.

    Examples
    --------
    >>> print(bibtex([PEDREGOSA_2016]).splitlines()[1])
      title = {Hyperparameter Optimization with Approximate Gradient},
    """
    return "\n\n".join(BIBTEX[key] for key in keys)
