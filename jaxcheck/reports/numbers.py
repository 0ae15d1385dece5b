"""Numbers as text, with the digits they deserve.

A digit is shown only where the error bar supports it, and an uncertainty is rounded
upward. Pure functions of Python numbers; layout and color are in
``jaxcheck.reports.tables``.
"""

from __future__ import annotations

import math

BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def significant(value: float, digits: int) -> str:
    """Write ``value`` with ``digits`` significant digits, NaN and zero in words.

    Example:
        >>> significant(0.49123, 4), significant(0.0, 4), significant(float("nan"), 4)
        ('4.912e-01', '0', 'NaN')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return "0" if value == 0 else f"{value:.{digits - 1}e}"


def rounded_up(value: float, digits: int = 1) -> str:
    """Write a non-negative ``value`` with ``digits`` digits, rounded away from zero.

    What is less than a twentieth of the last digit does not count, so that the binary
    3.0000000000000004 stays 3.

    Example:
        >>> rounded_up(3.4e-11), rounded_up(9.2e-11), rounded_up(3.02e-9, digits=2)
        ('4e-11', '1e-10', '3.1e-09')
    """
    if value == 0 or not math.isfinite(value):
        return significant(value, digits)
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    units = 10 ** (digits - 1)
    raised = math.ceil(round(float(mantissa) * units, 1)) / units
    return f"{float(f'{raised}e{exponent}'):.{digits - 1}e}"


def with_error_bar(value: float, bar: float | None, digits: int = 4) -> str:
    """Write ``value ± bar``; ``value`` ends where ``bar`` begins, or after ``digits``.

    An unknown error bar is None (nothing is said) or NaN (it is said to be unknown).

    Example:
        >>> with_error_bar(0.49123, 3e-11), with_error_bar(0.49123, 2e-3)
        ('4.912e-01 ± 3e-11', '4.91e-01 ± 2e-03')
    """
    if bar is None or math.isnan(value):
        return significant(value, digits)
    if math.isnan(bar):
        return f"{significant(value, digits)} ± unknown"
    shown = rounded_up(bar)
    if 0 < bar < math.inf and math.isfinite(value):
        place = decimal_exponent(float(shown))  # of the last digit that counts
        value = round(value, -place) or value
        digits = max(1, min(digits, decimal_exponent(value) - place + 1))
    return f"{significant(value, digits)} ± {shown}"


def decimal_exponent(value: float) -> int:
    """The power of ten of the first digit of a finite ``value``; 0 for zero."""
    return int(f"{value:.15e}".split("e")[1])


def telling_digits(first: float, second: float, least: int = 4, most: int = 15) -> int:
    """How many digits it takes to see that two numbers differ (two of difference).

    Example:
        >>> telling_digits(0.25, 0.5), telling_digits(1.0, 1.00002)
        (4, 7)
    """
    difference = abs(first - second)
    if difference == 0 or not math.isfinite(difference):
        return least
    larger = math.log10(max(abs(first), abs(second)))
    leading = math.ceil(larger - math.log10(difference))  # digits that are the same
    return max(least, min(most, leading + 2))


def upper_bound(bound: float, confidence: float | None) -> str:
    """Write a bound that holds with a probability.

    Example:
        >>> upper_bound(3.02e-9, 0.999)
        '≤ 3.1e-09 (99.9 %)'
    """
    if not math.isfinite(bound):
        return "no bound"
    text = f"≤ {rounded_up(bound, digits=2)}"
    return text if confidence is None else f"{text} ({percent(confidence)})"


def percent(fraction: float) -> str:
    """Write a fraction in percent, cut off and not rounded: 100 % means all of it.

    Example:
        >>> percent(0.999), percent(1.0), percent(0.9999999), percent(0.41)
        ('99.9 %', '100 %', '99.9999 %', '41 %')
    """
    if not math.isfinite(fraction):
        return significant(fraction, 2)
    # The inner rounding undoes 100 * 0.29 = 28.999999999999996.
    cut = math.floor(round(fraction * 1e6, 3)) / 1e4
    return f"{cut:.4f}".rstrip("0").rstrip(".") + " %"


def count(number: int) -> str:
    """Write a count with thousands separators.

    Example:
        >>> count(1234567)
        '1,234,567'
    """
    return f"{number:,}"


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Write a count with its noun.

    Example:
        >>> counted(1, "leaf", "leaves"), counted(2048, "evaluation")
        ('1 leaf', '2,048 evaluations')
    """
    noun = singular if number == 1 else plural or f"{singular}s"
    return f"{count(number)} {noun}"


def byte_size(number: int) -> str:
    """Write a number of bytes in binary units.

    Example:
        >>> byte_size(512), byte_size(3 * 2**20 + 2**18)
        ('512 B', '3.2 MiB')
    """
    power = 0
    scaled = float(number)
    # 1023.95 would be printed as 1024.0.
    while scaled >= (1023.95 if power else 1024) and power < len(BYTE_UNITS) - 1:
        scaled /= 1024
        power += 1
    return f"{number:,} B" if power == 0 else f"{scaled:,.1f} {BYTE_UNITS[power]}"


def duration(seconds: float) -> str:
    """Write a time span.

    Example:
        >>> duration(0.0124), duration(2.345), duration(200.0), duration(7500.0)
        ('12 ms', '2.3 s', '3 min 20 s', '2 h 05 min')
    """
    if not math.isfinite(seconds):
        return significant(seconds, 2)
    if seconds < 0.9995:
        milliseconds = round(seconds * 1e3)
        return f"{milliseconds} ms" if milliseconds else "less than 1 ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"
