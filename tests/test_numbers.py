"""Numbers in reports: never a digit too many, never a smaller uncertainty."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcheck.reports.numbers import (
    byte_size,
    count,
    counted,
    duration,
    percent,
    rounded_up,
    significant,
    telling_digits,
    upper_bound,
    with_error_bar,
)

NAN = float("nan")
INF = float("inf")
FINITE = st.floats(min_value=-1e300, max_value=1e300)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.49123, 4, "4.912e-01"),
        (-0.49123, 4, "-4.912e-01"),
        (0.49123, 1, "5e-01"),
        (12345.0, 2, "1.2e+04"),
        (9.9999, 2, "1.0e+01"),
        (1e-300, 2, "1.0e-300"),
        (0.0, 4, "0"),
        (-0.0, 4, "0"),
        (NAN, 4, "NaN"),
        (INF, 4, "inf"),
        (-INF, 4, "-inf"),
    ],
)
def test_significant(value, digits, text):
    assert significant(value, digits) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (3.0000000000000004e-11, 1, "3e-11"),
        (3.04e-11, 1, "3e-11"),
        (3.06e-11, 1, "4e-11"),
        (9.2e-11, 1, "1e-10"),
        (3.02e-9, 2, "3.1e-09"),
        (3.10e-9, 2, "3.1e-09"),
        (9.91e-9, 2, "1.0e-08"),
        (5e-324, 1, "5e-324"),
        (0.0, 1, "0"),
        (NAN, 1, "NaN"),
        (INF, 1, "inf"),
    ],
)
def test_rounded_up(value, digits, text):
    assert rounded_up(value, digits) == text


@given(value=POSITIVE, digits=st.integers(1, 4))
def test_rounding_up_makes_nothing_smaller(value, digits):
    # Half a unit of the digit after the last one is given away.
    shown = float(rounded_up(value, digits))
    assert shown >= value * (1 - 0.51 * 10.0**-digits)
    assert shown <= value * (1 + 1.01 * 10.0 ** (1 - digits))


@pytest.mark.parametrize(
    ("value", "bar", "digits", "text"),
    [
        (0.49123, 2.6e-11, 4, "4.912e-01 ± 3e-11"),
        (0.49123, 1.6e-3, 4, "4.91e-01 ± 2e-03"),
        (0.49123, 0.16, 4, "5e-01 ± 2e-01"),
        (0.49123, 7.1, 4, "5e-01 ± 8e+00"),
        (2.1e-10, 4e-11, 2, "2.1e-10 ± 4e-11"),
        (0.09996, 2e-4, 4, "1.000e-01 ± 2e-04"),
        (0.999, 0.3, 4, "1.0e+00 ± 3e-01"),
        (-2.5, 0.0, 4, "-2.500e+00 ± 0"),
        (0.0, 2e-11, 4, "0 ± 2e-11"),
        (0.0, 0.0, 4, "0 ± 0"),
        (0.49123, None, 4, "4.912e-01"),
        (0.49123, NAN, 4, "4.912e-01 ± unknown"),
        (0.49123, INF, 4, "4.912e-01 ± inf"),
        (NAN, 1e-3, 4, "NaN"),
        (-INF, 1e-3, 4, "-inf ± 1e-03"),
    ],
)
def test_with_error_bar(value, bar, digits, text):
    assert with_error_bar(value, bar, digits) == text


@given(value=FINITE, bar=st.floats(min_value=0, max_value=1e300))
def test_printed_value_is_the_value_within_its_last_digit(value, bar):
    shown, _, shown_bar = with_error_bar(value, bar).partition(" ± ")
    assert abs(float(shown) - value) <= max(float(shown_bar), 1e-3 * abs(value)) * 1.01


@pytest.mark.parametrize(
    ("first", "second", "digits"),
    [
        (0.2147, 0.4912, 4),
        (1.250001, 1.25, 9),
        (1.0, 1.0, 4),
        (0.0, 0.0, 4),
        (0.0, 1e-300, 4),
        (1.0, 1.0 + 2**-52, 15),
        (NAN, 1.0, 4),
        (INF, 1.0, 4),
        (1e308, -1e308, 4),
    ],
)
def test_telling_digits(first, second, digits):
    assert telling_digits(first, second) == digits


@given(value=POSITIVE, change=st.floats(min_value=1e-11, max_value=1.0))
def test_telling_digits_tell(value, change):
    other = value * (1 + change)
    digits = telling_digits(value, other)
    assert significant(value, digits) != significant(other, digits)


@pytest.mark.parametrize(
    ("bound", "confidence", "text"),
    [
        (3.02e-9, 0.999, "≤ 3.1e-09 (99.9 %)"),
        (3.02e-9, 1.0, "≤ 3.1e-09 (100 %)"),
        (3.02e-9, None, "≤ 3.1e-09"),
        (0.0, 0.99, "≤ 0 (99 %)"),
        (INF, 0.999, "no bound"),
        (NAN, 0.999, "no bound"),
    ],
)
def test_upper_bound(bound, confidence, text):
    assert upper_bound(bound, confidence) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.0, "0 %"),
        (0.29, "29 %"),
        (0.41, "41 %"),
        (0.999, "99.9 %"),
        (0.9999, "99.99 %"),
        (0.99999999, "99.9999 %"),
        (1.0, "100 %"),
        (NAN, "NaN"),
    ],
)
def test_percent(fraction, text):
    assert percent(fraction) == text


@given(st.floats(min_value=0, max_value=1 - 1e-8))
def test_less_than_all_is_never_100_percent(fraction):
    assert percent(fraction) != "100 %"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (4096, "4,096"), (10**9, "1,000,000,000")],
)
def test_count(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("leaf", "leaves"), "0 leaves"),
        (1, ("leaf", "leaves"), "1 leaf"),
        (1500, ("leaf", "leaves"), "1,500 leaves"),
        (1, ("evaluation",), "1 evaluation"),
        (2, ("evaluation",), "2 evaluations"),
    ],
)
def test_counted(number, words, text):
    assert counted(number, *words) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (3 * 2**20 + 2**18, "3.2 MiB"),
        (4 * 2**30, "4.0 GiB"),
        (2**60, "1,048,576.0 TiB"),
    ],
)
def test_byte_size(number, text):
    assert byte_size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "less than 1 ms"),
        (0.0004, "less than 1 ms"),
        (0.0006, "1 ms"),
        (0.0124, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (200.0, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500.0, "2 h 05 min"),
        (NAN, "NaN"),
        (INF, "inf"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e6))
def test_duration_never_counts_sixty(seconds):
    assert not re.search(r"\b(1000 ms|60(\.0)? s|60 min)$", duration(seconds))
