"""Programs of every kind, with references, for tests of the float64 reading."""

from tests.programs import control_flow, libraries, operations, rules
from tests.programs.table import PROGRAMS, Program

__all__ = ["PROGRAMS", "Program", "control_flow", "libraries", "operations", "rules"]
