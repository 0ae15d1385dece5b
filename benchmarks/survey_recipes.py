"""How the survey calls each function: a generic point inside its domain.

A function that is not in these tables is called with as many arrays as it requires, at
the first of ``DEFAULT_POINTS`` where its outputs are finite. A string in place of a
case says why a function has no derivative to check.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Apply = Callable[[Any], Any]


class Case(NamedTuple):
    """One way to call one function.

    Attributes:
        build: ``build(function, rng)`` returns ``(params, apply)``; ``apply(params)``
            are the function's outputs.
        label: tells the cases of one function apart.
    """

    build: Callable[[Any, np.random.Generator], tuple[Any, Apply]]
    label: str = ""


class Draw(NamedTuple):
    """An argument that is drawn; floating ones are differentiated."""

    sample: Callable[[np.random.Generator], np.ndarray]


# --- Points ---------------------------------------------------------------------------


def uniform(low: float, high: float, *shape: int) -> Draw:
    return Draw(lambda rng: rng.uniform(low, high, shape).astype(np.float32))


def real(*shape: int) -> Draw:
    return uniform(-2, 2, *shape)


def unit(*shape: int) -> Draw:
    return uniform(-0.9, 0.9, *shape)


def probability(*shape: int) -> Draw:
    return uniform(0.1, 0.9, *shape)


def positive(*shape: int) -> Draw:
    return uniform(0.3, 2.5, *shape)


def above_one(*shape: int) -> Draw:
    return uniform(1.2, 3, *shape)


def complex_(*shape: int) -> Draw:
    def sample(rng: np.random.Generator) -> np.ndarray:
        parts = rng.uniform(-0.9, 0.9, (2, *shape))
        return (parts[0] + 1j * parts[1]).astype(np.complex64)

    return Draw(sample)


def integers(high: int, *shape: int, low: int = 0) -> Draw:
    return Draw(lambda rng: rng.integers(low, high, shape).astype(np.int32))


def distribution(*shape: int) -> Draw:
    """Positive numbers that sum to one over the last axis."""

    def sample(rng: np.random.Generator) -> np.ndarray:
        weights = rng.uniform(0.3, 1.0, shape)
        return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)

    return Draw(sample)


def symmetric(n: int, draw: Callable[..., Draw] = real, shift: float = 0.0) -> Draw:
    """A Hermitian matrix, positive definite for a large ``shift``."""

    def sample(rng: np.random.Generator) -> np.ndarray:
        matrix = draw(n, n).sample(rng)
        hermitian = (matrix + matrix.conj().T) / 2 + shift * np.eye(n)
        return hermitian.astype(matrix.dtype)

    return Draw(sample)


definite = functools.partial(symmetric, shift=8.0)
CHOLESKY = Draw(
    lambda rng: np.tril(rng.uniform(0.3, 1, (4, 4)) + np.eye(4)).astype(np.float32)
)


# --- Cases ----------------------------------------------------------------------------


def is_differentiable(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def of(
    *arguments: Any,
    label: str = "",
    call: Callable[..., Any] | None = None,
    then: Callable[[Any], Any] = lambda outputs: outputs,
    **keywords: Any,
) -> Case:
    """``function(*arguments, **keywords)``, differentiated in the floating draws.

    Args:
        *arguments: draws, or values that go in as they are.
        label: tells the cases of one function apart.
        call: ``call(function, *arguments, **keywords)``, where that is not enough.
        then: applied to the outputs.
        **keywords: values that go in as they are.
    """

    def build(function: Any, rng: np.random.Generator) -> tuple[Any, Apply]:
        values = [a.sample(rng) if isinstance(a, Draw) else a for a in arguments]
        moved = [
            k
            for k, argument in enumerate(arguments)
            if isinstance(argument, Draw) and is_differentiable(values[k])
        ]

        def apply(params: tuple[Any, ...]) -> Any:
            given = list(values)
            for k, value in zip(moved, params, strict=True):
                given[k] = value
            if call is not None:
                return then(call(function, *given, **keywords))
            return then(function(*given, **keywords))

        return tuple(values[k] for k in moved), apply

    return Case(build, label)


DEFAULT_POINTS: tuple[Callable[[], Draw], ...] = (
    lambda: real(5),
    lambda: probability(5),
    lambda: above_one(5),
    lambda: real(4, 4),
)


def default(function: Any) -> Case:
    """As many arrays as ``function`` requires, where all its outputs are finite."""

    def build(function: Any, rng: np.random.Generator) -> tuple[Any, Apply]:
        failure: Exception | None = None
        first = None
        for point in DEFAULT_POINTS:
            built = of(*(point() for _ in range(count))).build(function, rng)
            try:
                outputs = built[1](built[0])
                if all(np.all(np.isfinite(x)) for x in jax.tree.leaves(outputs)):
                    return built
                first = first or built
            except Exception as error:  # the next point may be in the domain
                failure = failure or error
        if first is None and failure is not None:
            raise failure
        return first or built

    count = required_arguments(function)
    return Case(build)


def required_arguments(function: Any) -> int:
    """How many positional arguments must be given."""
    if hasattr(function, "nin"):
        return function.nin
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    return len(required) or 1


Recipes = Mapping[str, Case | tuple[Case, ...] | str]


def reasons(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


def alike(
    case: Case | tuple[Case, ...], names: str
) -> dict[str, Case | tuple[Case, ...]]:
    return dict.fromkeys(names.split(), case)


CREATES = "creates an array of constants"
INTEGERS = "takes integers"
HOST = "asks about dtypes or shapes, or acts on the host"
WRAPS = "wraps a function"


# --- jax.nn ---------------------------------------------------------------------------

_attention = (real(2, 5, 2, 4), real(2, 6, 2, 4), real(2, 6, 2, 4))

NN: Recipes = {
    "dot_product_attention": (
        of(*_attention),
        of(*_attention, real(2, 2, 5, 6), label="bias"),
        of(*_attention, is_causal=True, label="causal"),
        of(*_attention, local_window_size=2, label="local window"),
        of(
            *_attention,
            query_seq_lengths=np.array([4, 5]),
            key_value_seq_lengths=np.array([6, 3]),
            label="lengths",
        ),
    ),
    "gelu": (of(real(5)), of(real(5), approximate=False, label="exact")),
    "get_scaled_dot_general_config": HOST,
    "glu": of(real(6)),
    "logsumexp": (
        of(real(5)),
        of(real(5), b=np.array([1.0, 2.0, -0.5, 0.7, 0.1]), label="b"),
        of(real(5), where=np.arange(5) < 3, label="where"),
        of(complex_(5), label="complex"),
    ),
    "one_hot": INTEGERS,
    "scaled_dot_general": of(
        real(1, 4, 32),
        real(1, 5, 32),
        call=lambda f, a, b: f(a, b, (((2,), (2,)), ((0,), (0,)))),
    ),
    "scaled_matmul": of(
        real(1, 4, 32), real(1, 5, 32), positive(1, 4, 2), positive(1, 5, 2)
    ),
    "softmax": (of(real(5)), of(real(5), where=np.arange(5) < 3, label="where")),
    "standardize": (
        of(real(3, 5)),
        of(real(3, 5), where=np.arange(5) < 3, label="where"),
    ),
}


# --- jax.numpy ------------------------------------------------------------------------

_axis = np.array([0, 2, 1])
_mask = np.array([True, False, True, True, False])
_nans = Draw(lambda rng: np.array([[0.3, np.nan, 1.7], [-0.4, 0.9, 2.2]], np.float32))
# nan-functions must not be moved at their NaN: it is put in behind the parameters.
_with_nan = of(
    real(2, 4), call=lambda f, x: f(x.at[0, 1].set(jnp.nan), axis=1), label="axis"
)
_quantile = of(real(2, 5), 0.3, axis=1)

NUMPY: Recipes = {
    **reasons(
        CREATES,
        "arange bartlett blackman diag_indices empty eye hamming hanning identity"
        " indices mask_indices ones tri tril_indices triu_indices zeros from_dlpack"
        " frombuffer fromfile fromfunction fromiter fromstring",
    ),
    **reasons(
        INTEGERS,
        "bitwise_and bitwise_count bitwise_invert bitwise_left_shift bitwise_not"
        " bitwise_or bitwise_right_shift bitwise_xor gcd invert lcm left_shift packbits"
        " ravel_multi_index right_shift unpackbits unravel_index",
    ),
    **reasons(
        HOST,
        "array_repr array_str broadcast_shapes can_cast einsum_path get_printoptions"
        " isdtype issubdtype iterable load printoptions promote_types result_type save"
        " savez set_printoptions",
    ),
    **reasons(WRAPS, "frompyfunc vectorize"),
    **alike(of(positive(5), positive(5)), "float_power"),
    **alike(of(real(5), positive(5)), "divmod floor_divide fmod mod remainder"),
    **alike(
        of(real(4, 4), call=lambda f, x: f(x, 2)),
        "array_split hsplit split vsplit",
    ),
    **alike(of(real(3, 4)), "corrcoef cov matrix_transpose fliplr rot90 trace"),
    **alike(of(real(3, 4)), "triu tril triu_indices_from tril_indices_from"),
    **alike(
        of(real(3), real(3), call=lambda f, a, b: f((a, b))),
        "column_stack concat concatenate dstack hstack stack vstack",
    ),
    **alike(of(real(5), real(3)), "convolve correlate kron outer polyadd polymul"),
    **alike(of(real(3, 4), real(4, 5)), "matmul dot"),
    **alike(
        _with_nan,
        "nanmax nanmean nanmedian nanmin nanprod nanstd nansum nanvar nancumsum"
        " nancumprod",
    ),
    **alike(
        of(
            real(2, 5),
            call=lambda f, x: f(x.at[0, 1].set(jnp.nan), 0.3, axis=1),
        ),
        "nanquantile",
    ),
    **alike(
        of(real(2, 5), call=lambda f, x: f(x.at[0, 1].set(jnp.nan), 30.0, axis=1)),
        "nanpercentile",
    ),
    **alike(of(real(3, 4), 1), "repeat tile"),
    "append": of(real(5), real(3)),
    "apply_along_axis": of(
        real(3, 4), call=lambda f, x: f(lambda row: row[0] * row, 1, x)
    ),
    "apply_over_axes": of(real(3, 4), call=lambda f, x: f(jnp.sum, x, [0, 1])),
    "arccosh": (of(above_one(5)), of(complex_(5), label="complex")),
    "argpartition": of(real(5), 2),
    "argwhere": of(real(5), size=5),
    "astype": (of(real(5), jnp.float32), of(real(5), jnp.complex64, label="complex")),
    "average": (
        of(real(3, 4)),
        of(
            real(3, 4),
            positive(4),
            call=lambda f, x, w: f(x, axis=1, weights=w),
            label="weights",
        ),
    ),
    "bincount": of(
        integers(4, 6), real(6), call=lambda f, x, w: f(x, weights=w, length=4)
    ),
    "block": of(real(3), real(3), call=lambda f, a, b: f([a, b])),
    "broadcast_arrays": of(real(3, 1), real(1, 4)),
    "broadcast_to": of(real(3, 1), (3, 4)),
    "choose": of(integers(3, 5), real(3, 5), call=lambda f, k, c: f(k, c, mode="clip")),
    "clip": (
        of(real(9), -0.5, 0.5),
        of(real(9), uniform(-1, -0.5, 9), uniform(0.5, 1, 9), label="bounds"),
    ),
    "compress": of(_mask, real(5), size=4),
    "cross": (of(real(4, 3), real(4, 3)), of(real(4, 2), real(4, 2), label="2-d")),
    "delete": of(real(5), 2),
    "diag": (of(real(4)), of(real(4, 4), label="matrix")),
    "diag_indices_from": of(real(4, 4)),
    "diagonal": of(real(3, 4)),
    "digitize": of(real(5), np.array([-1.0, 0.0, 1.0], np.float32)),
    "dsplit": of(real(2, 3, 4), 2),
    "einsum": (
        of(real(3, 4), real(4, 5), call=lambda f, a, b: f("ij,jk->ik", a, b)),
        of(real(4, 4), call=lambda f, a: f("ii", a), label="trace"),
        of(
            *(complex_(3, 4), complex_(4, 5)),
            call=lambda f, a, b: f("ij,jk->k", a, b),
            label="complex",
        ),
    ),
    "expand_dims": of(real(5), 1),
    "extract": of(_mask, real(5), size=4),
    "fill_diagonal": of(
        real(3, 3), real(3), call=lambda f, a, v: f(a, v, inplace=False)
    ),
    "flip": of(real(3, 4)),
    "full": of(real(5), call=lambda f, x: f((2, 5), x)),
    "full_like": of(real(2, 5), real(5)),
    "geomspace": of(positive(3), positive(3), 5),
    "gradient": (
        of(real(6)),
        of(real(3, 4), label="2-d"),
        of(real(6), 0.3, label="spacing"),
    ),
    "histogram": of(real(9), positive(9), call=lambda f, x, w: f(x, bins=4, weights=w)),
    "histogram2d": of(
        real(9),
        real(9),
        positive(9),
        call=lambda f, x, y, w: f(x, y, bins=3, weights=w),
    ),
    "histogramdd": of(
        real(9, 2), positive(9), call=lambda f, x, w: f(x, bins=3, weights=w)
    ),
    "insert": of(real(5), 2, real()),
    "intersect1d": of(real(5), real(5), size=3),
    "interp": (
        of(real(7), np.arange(-2.0, 3.0, dtype=np.float32), real(5)),
        of(
            real(7),
            Draw(lambda rng: np.arange(-2, 3, dtype=np.float32) + rng.uniform(0, 0.3)),
            real(5),
            label="xp",
        ),
        of(
            uniform(-9, 9, 7),
            np.arange(-2.0, 3.0, dtype=np.float32),
            real(5),
            period=4.7,
            label="period",
        ),
    ),
    "ix_": INTEGERS,
    "kaiser": of(positive(), call=lambda f, beta: f(6, beta)),
    "ldexp": of(real(5), integers(3, 5)),
    "lexsort": of(real(2, 5)),
    "linspace": of(real(3), real(3), 5),
    "log": (of(positive(5)), of(complex_(5), label="complex")),
    "logspace": of(unit(3), unit(3), 5),
    "matvec": of(real(3, 4), real(4)),
    "meshgrid": of(real(3), real(4)),
    "modf": of(real(5)),
    "moveaxis": of(real(2, 3, 4), 0, 2),
    "nan_to_num": of(real(5)),
    "nanargmax": of(real(5)),
    "nonzero": of(real(5), size=5),
    "flatnonzero": of(real(5), size=5),
    "pad": tuple(
        of(real(5), (2, 3), mode=mode, label=mode)
        for mode in (
            *("constant", "edge", "linear_ramp", "maximum", "mean", "median"),
            *("minimum", "reflect", "symmetric", "wrap"),
        )
    ),
    "partition": of(real(5), 2),
    "percentile": of(real(2, 5), 30.0, axis=1),
    "permute_dims": of(real(2, 3, 4), (2, 0, 1)),
    "piecewise": of(
        real(7),
        call=lambda f, x: f(x, [x < -0.5, x > 0.6], [jnp.sin, jnp.cos, lambda y: y**3]),
    ),
    "place": of(real(5), real(3), call=lambda f, a, v: f(a, _mask, v, inplace=False)),
    "poly": (of(real(4)), of(real(4, 4), label="matrix")),
    "polyder": of(real(5)),
    "polydiv": of(real(5), positive(3)),
    "polyfit": (
        of(real(8), real(8), 2),
        of(
            *(real(8), real(8), positive(8)),
            call=lambda f, x, y, w: f(x, y, 2, w=w),
            label="weights",
        ),
    ),
    "polyint": of(real(5)),
    "polysub": of(real(5), real(3)),
    "polyval": of(real(4), real(5)),
    "pow": of(positive(5), real(5)),
    "power": (
        of(positive(5), real(5)),
        of(real(5), 3, label="integer"),
        of(complex_(5), complex_(5), label="complex"),
    ),
    "ptp": of(real(5)),
    "put": of(
        real(5), real(2), call=lambda f, a, v: f(a, np.array([1, 3]), v, inplace=False)
    ),
    "put_along_axis": of(
        real(2, 3),
        real(2, 1),
        call=lambda f, a, v: f(a, np.array([[1], [2]]), v, 1, inplace=False),
    ),
    "quantile": tuple(
        of(real(2, 5), probability(), axis=1, method=method, label=method)
        for method in ("linear", "lower", "midpoint", "nearest")
    ),
    "reshape": of(real(2, 6), (3, 4)),
    "resize": of(real(5), (3, 4)),
    "roll": of(real(5), 2),
    "rollaxis": of(real(2, 3, 4), 2),
    "roots": of(real(5), strip_zeros=False),
    "searchsorted": of(np.arange(5.0), real(5)),
    "select": of(
        real(5),
        real(5),
        call=lambda f, a, b: f([np.asarray(_mask), np.arange(5) < 2], [a, b**2]),
    ),
    "setdiff1d": of(real(5), real(5), size=5),
    "setxor1d": of(real(5), real(5), size=5),
    "sinc": (of(real(5)), of(complex_(5), label="complex")),
    "sort": (of(real(5)), of(complex_(5), label="complex")),
    "sort_complex": of(complex_(5)),
    "squeeze": of(real(3, 1)),
    "swapaxes": of(real(2, 3, 4), 0, 2),
    "take": of(real(5), np.array([4, 0, 0])),
    "take_along_axis": of(real(2, 3), np.array([[1], [2]]), 1),
    "tensordot": of(real(2, 3, 4), real(3, 4, 2)),
    "transpose": of(real(3, 4)),
    "trapezoid": (of(real(5)), of(real(5), real(5), label="x")),
    "trim_zeros": of(real(5)),
    "union1d": of(real(3), real(3), size=6),
    **alike(
        of(real(5), size=5),
        "unique unique_all unique_counts unique_inverse unique_values",
    ),
    "unwrap": of(uniform(-9, 9, 7)),
    "vander": of(real(4)),
    "vdot": (of(real(5), real(5)), of(complex_(5), complex_(5), label="complex")),
    "vecdot": (
        of(real(3, 4), real(3, 4)),
        of(complex_(3, 4), complex_(3, 4), label="complex"),
    ),
    "vecmat": of(real(3), real(3, 4)),
    "where": of(_mask, real(5), real(5)),
}
if hasattr(jnp, "top_k"):  # since jax 0.12
    NUMPY |= {
        "top_k": (of(real(5), 2), of(real(5), 2, label="smallest", mode="smallest"))
    }
NUMPY_COMPLEX = (
    "abs angle arccos arcsin arcsinh arctan arctanh conj cos cosh cumprod cumsum divide"
    " exp exp2 expm1 imag log10 log1p log2 logaddexp logaddexp2 mean multiply prod real"
    " reciprocal round sign sin sinh sqrt square std subtract sum tan tanh true_divide"
    " var isfinite max"
)

_fft = (of(real(2, 8)), of(complex_(2, 8), label="complex"))

FFT: Recipes = {
    **reasons(CREATES, "fftfreq rfftfreq"),
    **dict.fromkeys(
        ["fft", "fft2", "fftn", "ifft", "ifft2", "ifftn", "irfft", "irfft2", "hfft"],
        _fft,
    ),
    **dict.fromkeys(["irfftn", "fftshift", "ifftshift"], _fft),
    **alike(of(real(2, 7)), "rfft rfft2 rfftn ihfft"),
}


# --- jax.scipy.special ----------------------------------------------------------------

SPECIAL: Recipes = {
    "bernoulli": INTEGERS,
    "bessel_jn": (
        of(positive(5), v=3),
        of(positive(5), v=3, n_iter=20, label="n_iter=20"),
        of(uniform(5, 15, 5), v=3, label="large z"),
    ),
    "betainc": (
        of(positive(5), positive(5), probability(5)),
        of(np.full(5, 1.3, np.float32), np.float32(0.7), probability(5), label="x"),
    ),
    "betaln": of(positive(5), positive(5)),
    "beta": of(positive(5), positive(5)),
    "erfinv": of(unit(5)),
    "erfc": (of(real(5)), of(uniform(3, 8, 5), label="tail")),
    "exp1": of(positive(5)),
    "expi": of(real(5)),
    "expn": of(3, positive(5)),
    "factorial": of(positive(5)),
    "gammainc": of(positive(5), positive(5)),
    "gammaincc": of(positive(5), positive(5)),
    "hyp1f1": (
        of(positive(5), positive(5), unit(5)),
        of(positive(5), positive(5), uniform(20, 30, 5), label="large x"),
    ),
    "hyp2f1": (
        of(positive(5), positive(5), above_one(5), probability(5)),
        of(1.3, 0.7, 2.1, unit(5), label="x"),
    ),
    "kl_div": of(positive(5), positive(5)),
    "log_ndtr": (
        of(real(5)),
        of(uniform(-30, 30, 9), label="tails"),
    ),
    "multigammaln": of(above_one(5), 2),
    "poch": (of(positive(5), positive(5)), of(positive(5), 2.0, label="z")),
    "polygamma": of(2, positive(5)),
    "rel_entr": of(positive(5), positive(5)),
    "sici": (of(real(5)), of(uniform(5, 20, 5), label="large x")),
    "expit": of(real(5)),
    "fresnel": (of(real(5)), of(uniform(3, 8, 5), label="large x")),
    "spence": of(positive(5)),
    "sph_harm_y": of(
        positive(2),
        positive(2),
        call=lambda f, theta, phi: f(
            np.array([3, 2]), np.array([2, 1]), theta, phi, n_max=3
        ),
    ),
    "xlog1py": of(real(5), positive(5)),
    "xlogy": of(real(5), positive(5)),
    "zeta": (
        of(np.linspace(2.1, 3.3, 5, dtype=np.float32), positive(5)),
        of(above_one(5), positive(5), label="x"),
    ),
}
SPECIAL_WIDE = "gammaln loggamma digamma gamma erfcx i0 i0e i1 i1e entr owens_t"


# --- jax.scipy.stats ------------------------------------------------------------------

_places: dict[str, Draw] = {"loc": uniform(-0.1, 0, 5), "scale": uniform(1.1, 1.5, 5)}
_random = {"x": real(5), **dict.fromkeys("qp", uniform(0.15, 0.85, 5))}
_counts = {"k": integers(5, 5, low=1), "n": np.full(5, 6.0, np.float32)}

# The domain of each parameter of each distribution, by the parameter's name; what is
# not listed is x: real, q and p: probabilities, k: counts up to n = 6, loc and scale.
DISTRIBUTIONS: Mapping[str, Mapping[str, Any]] = {
    "bernoulli": {"k": integers(2, 5), "p": probability(5), "loc": 0},
    "beta": {"x": uniform(0.1, 0.85, 5), "a": positive(5), "b": positive(5)},
    "betabinom": {"a": positive(5), "b": positive(5), "loc": 0},
    "binom": {"p": probability(5), "loc": 0},
    "cauchy": {},
    "chi2": {"x": positive(5), "df": positive(5)},
    "dirichlet": {
        # not differentiated: off the simplex there is no density
        "x": np.array([0.1, 0.15, 0.2, 0.25, 0.3], np.float32),
        "alpha": positive(5),
    },
    "expon": {"x": positive(5)},
    "gamma": {"x": positive(5), "a": positive(5)},
    "gennorm": {"beta": above_one(5)},
    "geom": {"p": probability(5), "loc": 0},
    "gumbel_l": {},
    "gumbel_r": {},
    "laplace": {},
    "logistic": {},
    "multinomial": {
        "x": np.array([1, 2, 3], np.int32),
        "n": np.int32(6),
        "p": distribution(3),
    },
    "multivariate_normal": {
        "x": real(2, 3),
        "mean": real(3),
        "cov": definite(3),
        "allow_singular": None,
    },
    "nbinom": {"n": positive(5), "p": probability(5), "loc": 0},
    "norm": {},
    "pareto": {"x": uniform(3, 5, 5), "b": positive(5)},
    "poisson": {"mu": positive(5), "loc": 0},
    "t": {"df": positive(5)},
    "truncnorm": {"x": unit(5), "a": uniform(-3, -2, 5), "b": uniform(2, 3, 5)},
    "uniform": {"x": uniform(0.1, 0.9, 5)},
    "vonmises": {"kappa": positive(5)},
    "wrapcauchy": {"x": uniform(0.3, 6, 5), "c": probability(5)},
}


def of_distribution(function: Any, name: str) -> Case:
    """All parameters of a distribution's function inside its domain."""
    domains = {**_random, **_counts, **_places, **DISTRIBUTIONS[name]}
    if function.__name__ in ("ppf", "isf"):
        domains["x"] = domains["q"]  # some call their probability x
    return of(*(domains[p] for p in inspect.signature(function).parameters))


def _kde(method: str, *points: Draw) -> Case:
    return of(
        real(9),
        *points,
        call=lambda f, data, *points: getattr(f(data), method)(*points),
        label=method,
    )


STATS: Recipes = {
    "gaussian_kde": (
        _kde("evaluate", real(3)),
        _kde("logpdf", real(3)),
        _kde("integrate_gaussian", real(1), definite(1)),
        _kde("integrate_box_1d", uniform(-2, -1), uniform(1, 2)),
    ),
    "sem": of(real(7)),
}
STATS_EXTRA: Recipes = {
    # on the simplex, as a user would parameterize it
    name: of(
        real(5),
        positive(5),
        call=lambda f, z, alpha: f(jax.nn.softmax(z), alpha),
        label="x = softmax(z)",
    )
    for name in ("dirichlet.logpdf", "dirichlet.pdf")
} | {
    # JAX has no derivative of the incomplete beta function in a and b
    f"beta.{name}": of(probability(5), 1.3, 0.7, label="x")
    for name in ("cdf", "logcdf", "logsf", "sf")
}


# --- linear algebra -------------------------------------------------------------------


def _eigen_invariant(outputs: Any) -> Any:
    """What does not depend on how eigenvectors are normalized."""
    values, vectors = outputs
    projectors = vectors.T[:, :, None] * jnp.linalg.inv(vectors)[:, None, :]
    return values, projectors


def _unitary_invariant(outputs: Any) -> Any:
    """What does not depend on the phase of orthonormal eigenvectors."""
    values, vectors = outputs
    return values, vectors.T[:, :, None] * vectors.conj().T[:, None, :]


def _svd_invariant(outputs: Any) -> Any:
    """What does not depend on the common phase of a pair of singular vectors."""
    u, s, vh = outputs
    return s, u.T[:, :, None] * vh[:, None, :]


def _norms(*options: dict[str, Any]) -> tuple[Case, ...]:
    return tuple(
        of(real(3, 4), label=" ".join(str(v) for v in o.values()), **o) for o in options
    )


_square = of(real(4, 4))
_eigh = (
    of(symmetric(4)),
    of(symmetric(4), label="invariant", then=_unitary_invariant),
    of(symmetric(4, complex_), label="complex, invariant", then=_unitary_invariant),
)


def _symmetrized(draw: Draw, *more: Draw, label: str = "", **keywords: Any) -> Case:
    """A function of a Hermitian matrix that may read one triangle only."""

    def call(function: Any, a: jax.Array, *more: jax.Array, **keywords: Any) -> Any:
        return function((a + a.conj().T) / 2, *more, **keywords)

    return of(draw, *more, label=label, call=call, **keywords)


_one_triangle = "one triangle read"
_cholesky = (
    _symmetrized(definite(4)),
    _symmetrized(definite(4, complex_), label="complex"),
)
_svd = (
    of(real(4, 3), full_matrices=False),
    of(real(3, 4), full_matrices=False, label="wide"),
    of(
        complex_(4, 3),
        full_matrices=False,
        then=_svd_invariant,
        label="complex, invariant",
    ),
    of(real(4, 4), label="square"),
    of(real(4, 3), label="full_matrices"),
    of(real(4, 3), label="values", compute_uv=False),
)
_det = (_square, of(complex_(4, 4), label="complex"))
_solve = (
    of(real(4, 4), real(4, 2)),
    of(complex_(4, 4), complex_(4, 2), label="complex"),
)

NUMPY_LINALG: Recipes = {
    **alike(_square, "cond eigvals trace"),
    "cholesky": _cholesky,
    "cross": of(real(4, 3), real(4, 3)),
    "det": (*_det, of(real(3, 3), label="3 by 3"), of(real(2, 2), label="2 by 2")),
    "diagonal": of(real(3, 4)),
    "eig": (_square, of(real(4, 4), label="invariant", then=_eigen_invariant)),
    "eigh": _eigh,
    "eigvalsh": of(symmetric(4)),
    "inv": _det,
    "lstsq": (
        of(real(5, 3), real(5, 2), then=lambda outputs: outputs[0]),
        of(real(3, 5), real(3, 2), then=lambda outputs: outputs[0], label="wide"),
        of(real(5, 3), real(5, 2), label="with residuals"),
    ),
    "matmul": (
        of(real(3, 4), real(4, 5)),
        of(complex_(3, 4), complex_(4, 5), label="complex"),
    ),
    "matrix_norm": _norms(*({"ord": o} for o in ("fro", "nuc", 2, -2, 1, np.inf))),
    "matrix_power": tuple(of(real(4, 4), n, label=str(n)) for n in (3, 0, -2)),
    "matrix_rank": of(real(3, 4)),
    "matrix_transpose": of(real(3, 4)),
    "multi_dot": of(
        *(real(3, 4), real(4, 5), real(5, 2)), call=lambda f, *arrays: f(arrays)
    ),
    "norm": (
        *_norms(*({"ord": o} for o in (None, "nuc", 2, -2, 1, np.inf))),
        *_norms(
            *({"ord": o, "axis": 1} for o in (1, 2, 3, 0.5, -1.5, np.inf, -np.inf))
        ),
        of(complex_(5), label="complex"),
    ),
    "outer": of(real(3), real(4)),
    "pinv": (
        of(real(5, 3)),
        of(real(3, 5), label="wide"),
        of(complex_(5, 3), label="complex"),
    ),
    "qr": (
        of(real(4, 3)),
        _square._replace(label="square"),
        of(complex_(4, 3), label="complex"),
        of(real(3, 4), label="wide"),
        of(real(4, 3), mode="r", label="r"),
        of(real(4, 3), mode="complete", label="complete"),
    ),
    "slogdet": _det,
    "solve": _solve,
    "svd": _svd,
    "svdvals": of(real(4, 3)),
    "tensordot": of(real(2, 3, 4), real(3, 4, 2)),
    "tensorinv": of(real(4, 2, 2), ind=1),
    "tensorsolve": of(real(2, 2, 4), real(2, 2)),
    "vecdot": (
        of(real(3, 4), real(3, 4)),
        of(complex_(3, 4), complex_(3, 4), label="complex"),
    ),
    "vector_norm": tuple(
        of(real(5), ord=o, label=str(o)) for o in (2, 1, 3, 0.5, np.inf, -np.inf)
    ),
}

SCIPY_LINALG: Recipes = {
    **reasons(CREATES, "dft hadamard helmert hilbert pascal"),
    "block_diag": of(real(2, 3), real(3, 2)),
    "cho_factor": _symmetrized(definite(4), then=lambda outputs: jnp.triu(outputs[0])),
    "cho_solve": of(CHOLESKY, real(4, 2), call=lambda f, c, b: f((c, True), b)),
    "cholesky": (*_cholesky, of(definite(4), label=_one_triangle)),
    "det": _det,
    "eigh": (
        *_eigh,
        of(symmetric(4), eigvals_only=True, label="values"),
        of(symmetric(4), lower=False, label="upper"),
    ),
    "eigh_tridiagonal": of(real(5), real(4), eigvals_only=True),
    "expm": (
        _square,
        of(uniform(-9, 9, 4, 4), label="large"),
        of(complex_(4, 4), label="complex"),
    ),
    "expm_frechet": of(real(4, 4), real(4, 4)),
    "funm": of(real(4, 4), call=lambda f, a: f(a, jnp.sin, disp=False)),
    "hessenberg": (
        of(real(4, 4)),
        of(real(4, 4), calc_q=True, label="q"),
    ),
    "inv": _det,
    "leslie": of(real(5), positive(4)),
    "lu": (
        _square,
        of(real(4, 3), label="tall"),
        of(real(3, 4), label="wide"),
        of(real(4, 4), permute_l=True, label="permute_l"),
        of(complex_(4, 4), label="complex"),
    ),
    "lu_factor": _square,
    "lu_solve": of(
        real(4, 4),
        real(4, 2),
        call=lambda f, a, b: f((a, np.array([1, 3, 2, 3], np.int32)), b),
    ),
    "polar": (
        of(real(4, 4)),
        of(real(4, 4), method="svd", label="svd"),
        of(real(5, 3), label="tall"),
    ),
    "qr": (
        _square,
        of(real(4, 3), mode="economic", label="economic"),
        of(real(4, 3), label="tall"),
        of(real(4, 4), pivoting=True, label="pivoting"),
    ),
    "qr_multiply": of(real(4, 4), real(4, 4)),
    "rsf2csf": of(real(4, 4), real(4, 4)),
    "schur": _square,
    "solve": (
        *_solve,
        _symmetrized(definite(4), real(4), assume_a="pos", label="pos"),
        of(definite(4), real(4), assume_a="pos", label=f"pos, {_one_triangle}"),
    ),
    "solve_sylvester": (
        of(real(3, 3), real(4, 4), real(3, 4)),
        of(definite(3), definite(4), real(3, 4), method="eigen", label="eigen"),
    ),
    "solve_triangular": (
        of(CHOLESKY, real(4, 2), lower=True),
        of(CHOLESKY, real(4), lower=True, trans=1, label="transposed"),
        of(CHOLESKY, real(4), lower=True, unit_diagonal=True, label="unit diagonal"),
    ),
    "sqrtm": of(definite(4)),
    "svd": _svd,
}


# --- optax.losses ---------------------------------------------------------------------

_labels = integers(5, 4)
_pair = of(real(4, 5), real(4, 5))
_logits_targets = of(real(4, 5), distribution(4, 5))
_signs = np.array([1.0, -1.0, -1.0, 1.0, 1.0], np.float32)
_binary = np.array([1.0, 0.0, 0.0, 1.0, 1.0], np.float32)
_log_softmax_first = of(
    real(4, 5),
    distribution(4, 5),
    call=lambda f, x, p: f(jax.nn.log_softmax(x), p),
)
_ctc = of(
    real(2, 6, 4),
    call=lambda f, x: f(
        x,
        np.array([[0.0] * 6, [0.0] * 5 + [1.0]], np.float32),
        np.array([[1, 2, 2], [3, 1, 0]]),
        np.array([[0.0] * 3, [0.0, 0.0, 1.0]], np.float32),
    ),
)

OPTAX: Recipes = {
    "binary_dice_loss": of(real(4, 5), probability(4, 5)),
    "convex_kl_divergence": _log_softmax_first,
    "cosine_distance": _pair,
    "cosine_similarity": _pair,
    "ctc_loss": _ctc,
    "ctc_loss_with_forward_probs": _ctc,
    "dice_loss": of(real(2, 4, 5), distribution(2, 4, 5)),
    "generalized_kl_divergence": _log_softmax_first,
    "hinge_loss": of(real(5), _signs),
    "huber_loss": (_pair, of(real(9), real(9), delta=0.5, label="delta")),
    "kl_divergence": _log_softmax_first,
    "kl_divergence_with_log_targets": _pair,
    "log_cosh": (_pair, of(uniform(-60, 60, 9), label="large")),
    "make_fenchel_young_loss": of(
        real(4, 5),
        distribution(4, 5),
        call=lambda f, x, p: f(jax.nn.logsumexp)(x, p),
    ),
    "multiclass_generalized_dice_loss": of(real(2, 4, 5), distribution(2, 4, 5)),
    **alike(
        of(real(4, 5), _labels),
        "multiclass_hinge_loss multiclass_perceptron_loss multiclass_sparsemax_loss"
        " softmax_cross_entropy_with_integer_labels",
    ),
    "ntxent": of(real(6, 4), np.array([0, 0, 1, 1, 2, 2])),
    "perceptron_loss": of(real(5), _signs),
    **alike(
        _logits_targets,
        "poly_loss_cross_entropy safe_softmax_cross_entropy softmax_cross_entropy",
    ),
    "ranking_softmax_loss": (
        of(real(4, 5), positive(4, 5)),
        of(
            real(4, 5),
            positive(4, 5),
            where=np.arange(20).reshape(4, 5) % 3 > 0,
            label="where",
        ),
    ),
    "sigmoid_binary_cross_entropy": (
        of(real(5), probability(5)),
        of(uniform(-60, 60, 9), probability(9), label="large"),
    ),
    "sigmoid_focal_loss": (
        of(real(5), _binary, alpha=0.3),
        of(real(5), probability(5), gamma=1.5, label="gamma"),
    ),
    "smooth_labels": of(distribution(4, 5), 0.1),
    "sparsemax_loss": of(real(5), _binary),
    "triplet_margin_loss": of(real(4, 5), real(4, 5), real(4, 5)),
}


def with_variants(
    recipes: Recipes, names: str, case: Callable[[Any], Case], module: Any
) -> Recipes:
    """``recipes`` with one more case for each of ``names`` that ``module`` has."""
    result = dict(recipes)
    for name in names.split():
        function = getattr(module, name, None)
        if function is None:
            continue
        known = result.get(name, default(function))
        known = (known,) if isinstance(known, Case) else known
        result[name] = (*known, case(function))
    return result


NUMPY = with_variants(
    NUMPY,
    NUMPY_COMPLEX,
    lambda f: of(*(complex_(5) for _ in range(required_arguments(f))), label="complex"),
    jnp,
)
SPECIAL = with_variants(
    SPECIAL,
    SPECIAL_WIDE,
    lambda f: of(
        *(uniform(4, 12, 5) for _ in range(required_arguments(f))), label="large x"
    ),
    jax.scipy.special,
)
