"""The exceptions that jaxcheck raises.

An exception that reports a failed check carries the whole report; an exception that
reports bad input names the argument, what came and what is wanted. An exception raised
by the user's own function is never wrapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxcheck.reports.values import Report


class JaxcheckError(Exception):
    """Base class of every exception that jaxcheck itself raises."""


class InvalidInputError(JaxcheckError, ValueError):
    """An argument cannot be used; the message says which, got / wanted, and the fix."""


class CheckFailedError(JaxcheckError, AssertionError):
    """A check did not pass. ``str(error)`` is the report that a person reads.

    Attributes:
        report: the report of the failed check.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report

    def __reduce__(self) -> tuple[type[CheckFailedError], tuple[Report]]:
        return type(self), (self.report,)


class GradientError(CheckFailedError):
    """A gradient is wrong, or could not be confirmed."""


class UpdateError(CheckFailedError):
    """An optimizer does not do what it says, or could not be confirmed to."""


class HealthError(CheckFailedError):
    """Training is not healthy."""
