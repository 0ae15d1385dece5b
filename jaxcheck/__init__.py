"""Know, instead of hope, that gradients of JAX programs are right."""

from jaxcheck.checks import check
from jaxcheck.errors import GradientError, InvalidInputError, JaxcheckError
from jaxcheck.gradients.report import Coordinate, GradientReport, LeafReport
from jaxcheck.reports.values import EquationSite, Finding, Verdict
from jaxcheck.testing.asserts import assert_gradients_correct

__version__ = "0.1.0"

# Is my gradient right?
__all__ = [
    "Coordinate",
    "EquationSite",
    "Finding",
    "GradientError",
    "GradientReport",
    "InvalidInputError",
    "JaxcheckError",
    "LeafReport",
    "Verdict",
    "__version__",
    "assert_gradients_correct",
    "check",
]
