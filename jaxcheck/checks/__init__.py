"""The questions themselves: trace, examine, and hand the report over."""

from jaxcheck.checks.along import AlongReport, Stage, check_along
from jaxcheck.checks.derivatives import check_derivatives
from jaxcheck.checks.flow import gradient_flow
from jaxcheck.checks.gradient import check
from jaxcheck.checks.places import locate
from jaxcheck.checks.selftest import self_test

__all__ = [
    "AlongReport",
    "Stage",
    "check",
    "check_along",
    "check_derivatives",
    "gradient_flow",
    "locate",
    "self_test",
]
