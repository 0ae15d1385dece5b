"""What this installation is, and which known traps its backend falls into.

Each probe runs one small computation whose answer is known without JAX, and says in
plain words what a wrong answer leads to. A probe looks for one known trap; that none is
found does not establish that a backend is right.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcheck.reports.tables import (
    Blank,
    Block,
    Headline,
    Row,
    Span,
    Table,
    Tone,
    plain_text,
)
from jaxcheck.reports.values import plain

PACKAGES = ("jaxcheck", "jax", "jaxlib", "flax", "optax", "chex", "numpy")


class Outcome(enum.Enum):
    """What a probe saw."""

    OK = "ok"
    TRAP = "trap"
    NOT_APPLICABLE = "not applicable"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One known trap and what was seen of it.

    Attributes:
        name: what is probed, in a few words.
        affects_verdicts: whether the trap can make a verdict of jaxcheck wrong, and not
            only the program that is checked.
        consequence: what happens to a program that meets the trap, and what to do.
        link: where the trap is discussed, or None.
        outcome: what was seen.
        observed: the numbers that were seen.
    """

    name: str
    affects_verdicts: bool
    consequence: str
    link: str | None
    outcome: Outcome
    observed: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The packages, the machine and the outcome of every probe.

    Attributes:
        python: version of the interpreter.
        platform: operating system and processor.
        versions: pairs (package, version).
        devices: the devices that JAX sees, the default one first.
        x64: whether float64 is switched on globally.
        probes: one result a known trap.
    """

    python: str
    platform: str
    versions: tuple[tuple[str, str], ...]
    devices: tuple[str, ...]
    x64: bool
    probes: tuple[Probe, ...]

    @property
    def trustworthy(self) -> bool:
        """False if a trap was found that can make a verdict of jaxcheck wrong."""
        return not any(
            probe.affects_verdicts and probe.outcome is Outcome.TRAP
            for probe in self.probes
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON-able data."""
        return {
            "trustworthy": self.trustworthy,
            **plain(self),
            "versions": dict(self.versions),
        }

    def __str__(self) -> str:
        return plain_text(blocks(self))


def blocks(installation: Installation) -> Iterator[Block]:
    """What a person reads: the conclusion, the facts, then every probe."""
    if installation.trustworthy:
        head = Span("jaxcheck doctor: no trap that can make a verdict wrong", "good")
    else:
        head = Span("jaxcheck doctor: verdicts cannot be trusted here", "bad")
    yield Headline(head, Span(installation.platform, "quiet"))
    yield Blank()
    x64 = "on" if installation.x64 else "off (jaxcheck switches it on for itself alone)"
    facts = (
        ("python", installation.python),
        *installation.versions,
        *(("device", device) for device in installation.devices),
        ("float64", x64),
    )
    yield Table(
        ("package", "version"),
        tuple(Row((Span(name), Span(value))) for name, value in facts),
    )
    yield Blank()
    rows = tuple(_row(probe) for probe in installation.probes)
    yield Table(("probe", "outcome", "seen"), rows)


def _row(probe: Probe) -> Row:
    """One probe, and below it what follows from a trap."""
    if probe.outcome is not Outcome.TRAP:
        tone: Tone = "good" if probe.outcome is Outcome.OK else "quiet"
        outcome = Span(probe.outcome.value, tone)
        return Row((Span(probe.name), outcome, Span(probe.observed)))
    outcome = Span("TRAP", "bad" if probe.affects_verdicts else "unsure")
    notes = [Span(f"{probe.observed}."), Span(probe.consequence)]
    if probe.link is not None:
        notes.append(Span(probe.link, "quiet"))
    return Row((Span(probe.name), outcome, Span("")), tuple(notes))


def examine() -> Installation:
    """Describe this installation and run every probe on the default device.

    Nothing global is changed: float64 is switched on inside a context only.

    Returns:
        The versions, the devices and one result for each known trap.

    Example:
        >>> examine().to_dict()["versions"]["jax"] == jax.__version__
        True
    """
    return Installation(
        python=platform.python_version(),
        platform=platform.platform(),
        versions=tuple((name, version_of(name)) for name in PACKAGES),
        devices=tuple(f"{d} ({d.device_kind})" for d in jax.devices()),
        x64=bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
        probes=tuple(probe() for probe in PROBES),
    )


def version_of(package: str) -> str:
    """The installed version of ``package``, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# A look returns what it saw, and whether that is the trap.
Look = Callable[[], tuple[Outcome, str]]


def _probe(
    *, name: str, affects_verdicts: bool, consequence: str, link: str | None
) -> Callable[[Look], Callable[[], Probe]]:
    """Turn a look at the backend into a probe; a look that raises is a trap as well."""

    def decorate(look: Look) -> Callable[[], Probe]:
        def probe() -> Probe:
            try:
                outcome, observed = look()
            except Exception as error:  # whatever a backend raises is its answer
                outcome = Outcome.TRAP
                observed = f"could not be run: {type(error).__name__}: {error}"
            return Probe(
                name=name,
                affects_verdicts=affects_verdicts,
                consequence=consequence,
                link=link,
                outcome=outcome,
                observed=observed,
            )

        probe.__doc__ = look.__doc__
        return probe

    return decorate


def _found(seen: list[str], otherwise: str) -> tuple[Outcome, str]:
    """TRAP if anything was seen, else OK and what was seen instead."""
    return (Outcome.TRAP, "; ".join(seen)) if seen else (Outcome.OK, otherwise)


# Measured on CPU: jaxlib 0.10.2 and 0.12.0.1 lose a NaN from 4,096 elements on, jaxlib
# 0.10.1 from 32,768; float32 in max and min, float16 and bfloat16 in min alone.
_NAN_SIZES = (4_096, 32_768)
_NAN_DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32)


def _one_nan(size: int, dtype: Any) -> jax.Array:
    values = np.ones(size)
    values[size // 2] = np.nan
    return jnp.asarray(values, dtype)


@_probe(
    name="NaN in max and min",
    affects_verdicts=False,
    consequence=(
        "A max or min over many elements hides a NaN: a loss, a gradient clip or a "
        "test that infers finiteness from max(|g|) passes on NaN. Use "
        "jnp.all(jnp.isfinite(x)). jaxcheck's own comparisons do not go through max."
    ),
    link="https://github.com/openxla/xla/issues/21461",
)
def nan_in_max() -> tuple[Outcome, str]:
    """Reduce arrays with one NaN by max and by min: the answer is NaN."""
    seen: list[str] = []
    for reduce in (jnp.max, jnp.min):
        for dtype in _NAN_DTYPES:
            lost = [n for n in _NAN_SIZES if not jnp.isnan(reduce(_one_nan(n, dtype)))]
            if lost:
                name = jnp.dtype(dtype).name
                seen.append(f"{reduce.__name__} of {min(lost)} {name} loses it")
    return _found(seen, f"kept at {_NAN_SIZES[0]} and {_NAN_SIZES[-1]} elements")


@_probe(
    name="NaN in comparisons and sums",
    affects_verdicts=True,
    consequence=(
        "jaxcheck decides with jnp.isfinite, <= and sums; if these lose a NaN, a "
        "gradient with NaN in it can be called correct."
    ),
    link=None,
)
def nan_in_comparisons() -> tuple[Outcome, str]:
    """Look for one NaN with isfinite, with ``<=`` and with a sum of squares."""
    seen: list[str] = []
    for size in _NAN_SIZES:
        for dtype in _NAN_DTYPES:
            x = _one_nan(size, dtype)
            seen += [
                f"{name} misses it in {size} {x.dtype}"
                for name, missed in _pass_on_nan(x).items()
                if missed
            ]
    return _found(seen, "always seen")


@jax.jit
def _pass_on_nan(x: jax.Array) -> dict[str, jax.Array]:
    """Three comparisons that must come out False if ``x`` holds a NaN."""
    return {
        "isfinite": jnp.all(jnp.isfinite(x)),
        "<=": jnp.all(jnp.abs(x) <= 1),
        "a sum of squares": jnp.sum(x.astype(jnp.float32) ** 2) >= 0,
    }


@_probe(
    name="vmapped matrix-vector product",
    affects_verdicts=True,
    consequence=(
        "The compiler returns wrong rows for a batched matrix-vector product that is "
        "reduced afterwards, so values and gradients of correct programs are wrong. "
        "Install another jaxlib: 0.10.2 has this on CPU, 0.10.1 and 0.12 do not."
    ),
    link="https://github.com/jax-ml/jax/issues/39103",
)
def vmapped_matvec() -> tuple[Outcome, str]:
    """Multiply rows by the identity, square and sum them: row i gives its first entry².

    The entries are integers below 1000, which every format from TF32 up holds exactly,
    as float32 does their squares; so the answer is exact on every device.
    """
    seen: list[str] = []
    for dtype, rows in ((np.float64, 16_385), (np.float32, 32_769)):
        first = np.arange(rows) % 1000
        with jax.enable_x64(True):
            x = jnp.asarray(np.stack([first, 0 * first, 0 * first], axis=1), dtype)
            matrix = jnp.eye(3, dtype=dtype)
            norms = jax.jit(jax.vmap(lambda row, m=matrix: jnp.sum((m @ row) ** 2)))
            wrong = int(np.sum(np.asarray(norms(x)) != first**2))
        if wrong:
            seen.append(f"{wrong} of {rows} {np.dtype(dtype).name} rows are wrong")
    return _found(seen, "every row is exact")


@_probe(
    name="float64",
    affects_verdicts=True,
    consequence=(
        "jaxcheck's numerical derivatives need float64. Run the check on the CPU: "
        "JAX_PLATFORMS=cpu."
    ),
    link="https://docs.jax.dev/en/latest/notebooks/Common_Gotchas_in_JAX.html",
)
def float64_is_double() -> tuple[Outcome, str]:
    """Add, multiply and take exp in float64: the last bits must be there."""
    seen: list[str] = []
    eps = 2.0**-52
    with jax.enable_x64(True):
        one = jnp.asarray(np.ones(()))
        if one.dtype != np.float64:
            return Outcome.TRAP, f"asked for float64, got {one.dtype}"
        total = float(jax.jit(lambda x: (x + eps) - 1.0)(one))
        # (1 + 2⁻²⁶)² = 1 + 2⁻²⁵ + 2⁻⁵², exact in double and in nothing shorter.
        row = jnp.full((8,), 1.0 + 2.0**-26, jnp.float64)
        dot = float(jax.jit(lambda x: x @ x)(row)) - 8 * (1.0 + 2.0**-25)
        exp = float(jax.jit(jnp.exp)(one)) / np.e - 1.0
    if total != eps:
        seen.append(f"(1 + 2^-52) - 1 gives {total:.3g}")
    if dot != 8 * eps:
        seen.append(f"a dot product is off by {abs(dot - 8 * eps):.1g}")
    if abs(exp) > 8 * eps:
        seen.append(f"exp(1) is off by a relative {abs(exp):.1g}")
    return _found(seen, "available, and truly double")


@_probe(
    name="norms of float16",
    affects_verdicts=False,
    consequence=(
        "A float16 norm sums squares in float16: norms above 255 give inf and entries "
        "below 1.7e-4 count as 0, so clipping by the global norm zeroes or keeps what "
        "it should not. Cast to float32 before taking a norm."
    ),
    link=None,
)
def float16_norms() -> tuple[Outcome, str]:
    """Take norms of four equal float16 entries: twice the entry, which fits."""
    seen: list[str] = []
    norms: dict[str, Callable[[jax.Array], Any]] = {
        "jnp.linalg.norm": jnp.linalg.norm,
        "optax.tree.norm": optax.tree.norm,
    }
    for name, norm in norms.items():
        for entry in (300.0, 1e-4):
            got = float(norm(jnp.full((4,), entry, jnp.float16)))
            if not abs(got - 2 * entry) <= 0.01 * entry:
                seen.append(f"{name} of four {entry:g} gives {got:g}")
    return _found(seen, "300 and 1e-4 survive")


@_probe(
    name="denormal numbers",
    affects_verdicts=False,
    consequence=(
        "Results below the smallest normal number are flushed to zero, so very small "
        "losses and gradients vanish earlier than the format promises. This is by "
        "design; scale the loss if it matters."
    ),
    link="https://github.com/jax-ml/jax/issues/26658",
)
def denormals() -> tuple[Outcome, str]:
    """Halve the smallest normal number: the answer is a denormal number, not zero.

    NumPy looks at the answer, because XLA compares denormal numbers as zero.
    """
    seen: list[str] = []
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            tiny = np.finfo(dtype).tiny
            half = jnp.asarray(tiny, dtype) * jnp.asarray(0.5, dtype)
            if not np.asarray(half) > 0:
                seen.append(f"{np.dtype(dtype).name} below {tiny:.3g} becomes 0")
    return _found(seen, "kept in float32 and float64")


@_probe(
    name="float32 matrix products",
    affects_verdicts=False,
    consequence=(
        "By default this device multiplies float32 matrices in a shorter format (TF32 "
        "or bfloat16): gradients carry only 3 digits. jaxcheck decides in float64 and "
        "reports the loss of digits; for full float32 set "
        "jax.default_matmul_precision('highest')."
    ),
    link="https://github.com/jax-ml/jax/issues/12008",
)
def matmul_precision() -> tuple[Outcome, str]:
    """Multiply matrices of 1 + 2⁻¹²: TF32 and bfloat16 drop the last bit of it."""
    device = jax.devices()[0].platform
    if device == "cpu":
        return Outcome.NOT_APPLICABLE, "a CPU multiplies float32 in float32"
    entry = 1.0 + 2.0**-12
    x = jnp.full((64, 64), entry, jnp.float32)
    error = float(jax.jit(lambda x: x @ x)(x)[0, 0]) / (64 * entry**2) - 1.0
    seen = [f"relative error {abs(error):.1g}"] if abs(error) > 1e-5 else []
    return _found(seen, f"relative error {abs(error):.1g}")


PROBES: tuple[Callable[[], Probe], ...] = (
    float64_is_double,
    vmapped_matvec,
    nan_in_comparisons,
    nan_in_max,
    float16_norms,
    denormals,
    matmul_precision,
)
