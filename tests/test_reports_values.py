"""How every report behaves: a value without a truth value, that travels well."""

import dataclasses
import json
import pickle

import pytest

from jaxcheck.errors import CheckFailedError, GradientError, JaxcheckError
from jaxcheck.gradients.report import Coordinate, GradientReport, LeafReport
from jaxcheck.reports.values import (
    FINDING_KINDS,
    EquationSite,
    Finding,
    Report,
    Verdict,
    plain,
)

NAN = float("nan")
INF = float("inf")


def make_report(verdict=Verdict.WRONG, **values):
    """A report with something in each field, built anew at each call."""
    site = EquationSite(
        primitive="custom_vjp_call", rule="bwd", file="model.py", line=9, scope="MLP"
    )
    leaf = LeafReport(
        path="['w']",
        shape=(2, 3),
        dtype="complex64",
        size=6,
        checked=6,
        method="exhaustive",
        verdict=verdict,
        relative_error=0.5,
        error_bar=1e-10,
        worst=Coordinate(
            index=(1, 2), part="imag", autodiff=1.0, numerical=2.0, error_bar=1e-10
        ),
    )
    finding = Finding(kind="kink", message="At a kink.", leaf="['w']", site=site)
    fields = {
        "leaves": (leaf,),
        "findings": (finding,),
        "culprits": (site,),
        "loss": 1.5,
        "key_data": (0, 7),
        "versions": (("jax", "0.10.1"),),
    }
    return GradientReport(verdict=verdict, **(fields | values))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OtherReport(Report):
    """A report of some other check, with the defaults of the base class."""

    verdict: Verdict


@pytest.mark.parametrize("verdict", Verdict)
def test_passed_means_correct(verdict):
    assert make_report(verdict).passed is (verdict is Verdict.CORRECT)


@pytest.mark.parametrize("verdict", Verdict)
def test_report_has_no_truth_value(verdict):
    with pytest.raises(TypeError, match=r"use report\.passed"):
        bool(make_report(verdict))


def test_report_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_report().verdict = Verdict.CORRECT


def test_equality_is_by_value():
    assert make_report() == make_report()
    assert hash(make_report()) == hash(make_report())
    assert make_report() != make_report(loss=1.6)
    assert make_report() != make_report(Verdict.INCONCLUSIVE)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_report_survives_pickle(protocol):
    report = make_report()
    copy = pickle.loads(pickle.dumps(report, protocol))
    assert copy == report
    assert str(copy) == str(report)


def test_report_with_nan_survives_pickle():
    report = make_report(loss=NAN, relative_difference=INF)
    copy = pickle.loads(pickle.dumps(report))
    assert copy.to_dict() == report.to_dict()


def test_to_dict_has_every_field():
    report = make_report()
    names = {field.name for field in dataclasses.fields(report)}
    assert set(report.to_dict()) == names | {"passed"}
    assert report.to_dict()["passed"] is False
    assert report.to_dict()["verdict"] == "wrong"
    assert report.to_dict()["leaves"][0]["worst"] == {
        "index": [1, 2],
        "part": "imag",
        "autodiff": 1.0,
        "numerical": 2.0,
        "error_bar": 1e-10,
    }
    assert report.to_dict()["findings"][0]["site"]["line"] == 9


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_json_is_strict_where_numbers_are_not_finite():
    report = make_report(loss=NAN, relative_difference=INF, seconds=-INF)
    data = json.loads(report.to_json(), parse_constant=refuse)
    assert data == report.to_dict()
    assert (data["loss"], data["relative_difference"]) == ("nan", "inf")
    assert data["seconds"] == "-inf"


def test_json_of_finite_numbers_is_exact():
    report = make_report(loss=0.1 + 0.2, relative_difference=5e-324)
    data = json.loads(report.to_json(indent=None))
    assert (data["loss"], data["relative_difference"]) == (0.1 + 0.2, 5e-324)
    assert "\n" not in report.to_json(indent=None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Verdict.NOT_CHECKED, "not checked"),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ([True, "text"], [True, "text"]),
        (NAN, "nan"),
        (-INF, "-inf"),
    ],
)
def test_plain(value, expected):
    assert plain(value) == expected


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.CORRECT])
def test_raise_if_failed_raises_the_report(verdict):
    report = make_report(verdict)
    with pytest.raises(GradientError) as caught:
        report.raise_if_failed()
    assert caught.value.report is report
    assert str(caught.value) == str(report)


def test_raise_if_failed_lets_a_correct_report_pass():
    assert make_report(Verdict.CORRECT).raise_if_failed() is None


def test_error_is_what_test_suites_and_users_catch():
    error = GradientError(make_report())
    assert isinstance(error, AssertionError)
    assert isinstance(error, CheckFailedError)
    assert isinstance(error, JaxcheckError)


def test_error_survives_pickle():
    error = GradientError(make_report())
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is GradientError
    assert copy.report == error.report
    assert str(copy) == str(error)


def test_other_reports_raise_the_error_of_the_base_class():
    with pytest.raises(CheckFailedError) as caught:
        OtherReport(verdict=Verdict.WRONG).raise_if_failed()
    assert not isinstance(caught.value, GradientError)


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (EquationSite(primitive="tanh"), "tanh"),
        (EquationSite(primitive="tanh", scope="MLP"), "tanh in MLP"),
        (
            EquationSite(
                primitive="custom_jvp_call", rule="f_jvp", file="a.py", line=3
            ),
            "f_jvp at a.py:3",
        ),
    ],
)
def test_place_in_one_line(site, text):
    assert str(site) == text


def test_finding_kinds_are_unique_names():
    assert len(set(FINDING_KINDS)) == len(FINDING_KINDS)
    assert all(kind.isidentifier() for kind in FINDING_KINDS)
