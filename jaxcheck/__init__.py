"""Know, instead of hope, that gradients of JAX programs are right."""

from jaxcheck.checks import (
    AlongReport,
    Stage,
    check,
    check_along,
    check_derivatives,
    gradient_flow,
    locate,
    self_test,
)
from jaxcheck.derivatives.report import DerivativeCheck, DerivativeReport
from jaxcheck.errors import (
    GradientError,
    HealthError,
    InvalidInputError,
    JaxcheckError,
    UpdateError,
)
from jaxcheck.gradients.planting import PlantedFault, SelfTestReport
from jaxcheck.gradients.report import Coordinate, GradientReport, LeafReport
from jaxcheck.places.flow.report import FlowLeaf, FlowReport, FlowUse, SourceLine
from jaxcheck.reports.values import EquationSite, Finding, Verdict
from jaxcheck.testing.asserts import (
    assert_derivatives_correct,
    assert_gradients_correct,
    assert_train_step_correct,
    assert_training_healthy,
    assert_update_correct,
)
from jaxcheck.training import plots
from jaxcheck.training.audit import Audit, AuditState, audit
from jaxcheck.training.diagnosis import diagnose
from jaxcheck.training.health import HealthFinding, HealthReport
from jaxcheck.training.histogram import histogram_edges
from jaxcheck.training.history import History
from jaxcheck.training.leaves import leaf_names, stack_names
from jaxcheck.training.monitor import monitor
from jaxcheck.training.probe import (
    ProbeStatistics,
    backward_probe,
    probe_slot,
    probe_statistics,
)
from jaxcheck.training.replay import ReplayReport
from jaxcheck.training.state import MonitorState
from jaxcheck.training.statistics import GradientStatistics, gradient_statistics
from jaxcheck.training.symptoms import HEALTH_RULES
from jaxcheck.updates import rules
from jaxcheck.updates.report import UpdateReport
from jaxcheck.updates.step_report import Inferred, TrainStepReport
from jaxcheck.updates.train_step import check_train_step
from jaxcheck.updates.update import check_update

__version__ = "0.1.0"

# Is my gradient right, where is it wrong, did the optimizer do what it says, and is
# training healthy?
__all__ = [
    "HEALTH_RULES",
    "AlongReport",
    "Audit",
    "AuditState",
    "Coordinate",
    "DerivativeCheck",
    "DerivativeReport",
    "EquationSite",
    "Finding",
    "FlowLeaf",
    "FlowReport",
    "FlowUse",
    "GradientError",
    "GradientReport",
    "GradientStatistics",
    "HealthError",
    "HealthFinding",
    "HealthReport",
    "History",
    "Inferred",
    "InvalidInputError",
    "JaxcheckError",
    "LeafReport",
    "MonitorState",
    "PlantedFault",
    "ProbeStatistics",
    "ReplayReport",
    "SelfTestReport",
    "SourceLine",
    "Stage",
    "TrainStepReport",
    "UpdateError",
    "UpdateReport",
    "Verdict",
    "__version__",
    "assert_derivatives_correct",
    "assert_gradients_correct",
    "assert_train_step_correct",
    "assert_training_healthy",
    "assert_update_correct",
    "audit",
    "backward_probe",
    "check",
    "check_along",
    "check_derivatives",
    "check_train_step",
    "check_update",
    "diagnose",
    "gradient_flow",
    "gradient_statistics",
    "histogram_edges",
    "leaf_names",
    "locate",
    "monitor",
    "plots",
    "probe_slot",
    "probe_statistics",
    "rules",
    "self_test",
    "stack_names",
]
