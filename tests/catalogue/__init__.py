"""Wrong derivatives with correct twins, correct ones that look wrong, and neither."""

from . import (
    controls_functions,
    controls_numbers,
    controls_programs,
    mutants_control_flow,
    mutants_elementwise,
    mutants_indexing,
    mutants_layers,
    mutants_linalg,
    mutants_nonfinite,
    mutants_scaling,
)
from .unknowable import UNKNOWABLE as _UNKNOWABLE

MUTANTS = (
    *mutants_scaling.MUTANTS,
    *mutants_elementwise.MUTANTS,
    *mutants_layers.MUTANTS,
    *mutants_linalg.MUTANTS,
    *mutants_indexing.MUTANTS,
    *mutants_control_flow.MUTANTS,
    *mutants_nonfinite.MUTANTS,
)
CONTROLS = (
    *controls_numbers.CONTROLS,
    *controls_functions.CONTROLS,
    *controls_programs.CONTROLS,
)
UNKNOWABLE = tuple(_UNKNOWABLE)
