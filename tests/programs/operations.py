"""Programs of single operations: every family of primitives, dtypes, randomness."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.experimental import pallas as pl

from tests.programs.table import PROGRAMS, Program, normal, positive, program, weighted

# Agreement within the rounding of the native run, where it is the only reference.
NATIVE = 2e-6


def _entry(name, fun, numbers, **options):
    """Enter the sum of ``fun`` over the arrays that ``numbers(rng)`` returns."""

    def make(rng):
        return (lambda *inputs: weighted(fun(*inputs))), numbers(rng)

    PROGRAMS.append(Program(name=name, make=make, **options))


def _any(rng):
    return (normal(rng, 5),)


def _above(rng):
    return (positive(rng, 5),)


def _inside(rng):
    return (np.asarray(rng.uniform(-0.9, 0.9, size=5), np.float32),)


_UNARY = {
    "sin": (jnp.sin, _any),
    "tan": (jnp.tan, _inside),
    "arcsin": (jnp.arcsin, _inside),
    "arccos": (jnp.arccos, _inside),
    "arctan": (jnp.arctan, _any),
    "sinh": (jnp.sinh, _any),
    "arcsinh": (jnp.arcsinh, _any),
    "arctanh": (jnp.arctanh, _inside),
    "arccosh": (lambda x: jnp.arccosh(1 + x), _above),
    "exp2": (jnp.exp2, _any),
    "expm1": (jnp.expm1, _any),
    "log": (jnp.log, _above),
    "log1p": (jnp.log1p, _above),
    "sqrt": (jnp.sqrt, _above),
    "rsqrt": (jax.lax.rsqrt, _above),
    "cbrt": (jnp.cbrt, _above),
    "logistic": (jax.lax.logistic, _any),
    "erf": (jax.lax.erf, _any),
    "erfc": (jax.lax.erfc, _any),
    "erf_inv": (jax.lax.erf_inv, _inside),
    "lgamma": (jax.lax.lgamma, _above),
    "digamma": (jax.lax.digamma, _above),
    "bessel_i0e": (jax.lax.bessel_i0e, _any),
    "bessel_i1e": (jax.lax.bessel_i1e, _above),
    "integer_pow": (lambda x: x**5 + x**-3, _above),
    "abs_sign": (lambda x: jnp.abs(x) * jnp.sign(x) + jnp.abs(x), _any),
    "floor_round": (lambda x: x * jnp.floor(3 * x) + x * jnp.round(x), _any),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.5), _any),
    "cumsum": (jnp.cumsum, _any),
    "cumprod": (jnp.cumprod, _above),
    "cummax": (jax.lax.cummax, _any),
    "cumlogsumexp": (jax.lax.cumlogsumexp, _any),
    "sort": (jnp.sort, _any),
    "argsort": (lambda x: x[jnp.argsort(x)] * jnp.arange(5), _any),
    "argmax": (lambda x: x[jnp.argmax(x)] ** 2, _any),
    "top_k": (lambda x: jax.lax.top_k(x, 3)[0], _any),
    "reduce_prod": (jnp.prod, _above),
    "reduce_max": (jnp.max, _any),
    "var": (jnp.var, _any),
    "rev_pad_concatenate": (
        lambda x: jnp.concatenate([x[::-1], jnp.pad(x, (1, 2))]) ** 2,
        _any,
    ),
    "roll_tile_repeat": (
        lambda x: jnp.tile(jnp.roll(x, 2), 2) * jnp.repeat(x, 2),
        _any,
    ),
    "where": (lambda x: jnp.where(x > 0, x**2, jnp.sin(x)), _any),
    "dynamic_slice": (
        lambda x: jax.lax.dynamic_slice(x, (jnp.argmin(x) % 2,), (3,)) ** 2,
        _any,
    ),
    "dynamic_update_slice": (
        lambda x: jax.lax.dynamic_update_slice(x, x[:2] ** 2, (1,)),
        _any,
    ),
    "gather": (lambda x: x[jnp.array([4, 0, 0, 2])] ** 2, _any),
    "scatter_add": (lambda x: x.at[jnp.array([1, 1, 3])].add(x[:3] ** 2) ** 2, _any),
    "scatter_set": (lambda x: x.at[jnp.array([1, 3])].set(x[:2] ** 2), _any),
    "scatter_multiply": (
        lambda x: x.at[jnp.array([1, 3])].multiply(x[:2], unique_indices=True),
        _any,
    ),
    "scatter_max": (lambda x: x.at[jnp.array([1, 3])].max(x[:2] + 1), _any),
    "segment_sum": (
        lambda x: jax.ops.segment_sum(x**2, jnp.array([0, 2, 2, 0, 1]), 3) ** 2,
        _any,
    ),
    "fft": (lambda x: jnp.abs(jnp.fft.fft(x)) ** 2, _any),
    "rfft_irfft": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x) ** 2), _any),
    "optimization_barrier": (
        lambda x: jax.lax.optimization_barrier(jnp.sin(x)) ** 2,
        _any,
    ),
    "reduce_precision": (
        lambda x: (
            (jax.lax.reduce_precision(x, 8, 7) if x.dtype == jnp.float32 else x) ** 2
        ),
        _any,
    ),
    "interpolation": (
        lambda x: jnp.interp(
            x, jnp.array([-4, -1, 1, 4], x.dtype), jnp.array([0, 3, 1, 2], x.dtype)
        ),
        _any,
    ),
}
for _name, (_fun, _numbers) in _UNARY.items():
    _entry(_name, _fun, _numbers)


def _two(rng):
    return positive(rng, 4), positive(rng, 4)


_entry("atan2", jnp.arctan2, _two)
_entry("power", jnp.power, _two)
_entry("igamma", jax.lax.igamma, _two)
_entry("betainc", lambda x: jax.lax.betainc(2 * x**0, 3 * x**0, x / 2), _above)
_entry("polygamma", lambda a, b: jax.lax.polygamma(jnp.round(a), b), _two)
_entry("zeta", lambda a, b: jax.lax.zeta(a + 1, b), _two, gradient="none")
_entry("hypot_logaddexp", lambda a, b: jnp.hypot(a, b) + jnp.logaddexp(a, b), _two)
_entry("remainder", lambda a, b: jnp.remainder(a, b / 4), _two)
_entry("convolve", jnp.convolve, _two)


# -- linear algebra


def _square(rng):
    return (normal(rng, 4, 4),)


def _spd(a):
    return a @ a.T + jnp.eye(4, dtype=a.dtype)


_LINALG = {
    "lu": lambda a: jax.scipy.linalg.lu_factor(a)[0],
    "det_slogdet": lambda a: jnp.linalg.det(a) + jnp.linalg.slogdet(a)[1],
    "inverse": lambda a: jnp.linalg.inv(_spd(a)),
    "cholesky": lambda a: jnp.linalg.cholesky(_spd(a)),
    "eigh": lambda a: jnp.linalg.eigh(_spd(a))[0] + jnp.linalg.eigh(_spd(a))[1] ** 2,
    "qr": lambda a: jnp.linalg.qr(a)[0] ** 2 + jnp.linalg.qr(a)[1] ** 2,
    "svd": lambda a: jnp.linalg.svd(a, compute_uv=False),
    "svd_vectors": lambda a: jnp.linalg.svd(a)[0] ** 2,
    "triangular_solve": lambda a: jax.scipy.linalg.solve_triangular(_spd(a), a),
    "einsum": lambda a: jnp.einsum("ij,jk,ki->i", a, a, a),
    "matmul_highest": lambda a: jnp.matmul(a, a, precision="highest"),
    "matmul_preset": lambda a: (
        jax.lax.dot(a, a, precision=jax.lax.DotAlgorithmPreset.F32_F32_F32)
        if a.dtype == jnp.float32
        else a @ a
    ),
    "einsum_preferred": lambda a: jnp.einsum(
        "ij,jk->ik",
        a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a,
        a,
        preferred_element_type=a.dtype,
    ),
    "expm": jax.scipy.linalg.expm,
}
for _name, _fun in _LINALG.items():
    # expm chooses its order by the dtype it is traced in
    _entry(
        _name,
        _fun,
        _square,
        rtol={"expm": NATIVE, "svd_vectors": 1e-8, "qr": 1e-9}.get(_name, 1e-9),
        reference="native" if _name == "expm" else "float64",
    )


# -- convolutions and pooling


def _images(rng):
    return normal(rng, 2, 6, 6, 3), normal(rng, 3, 3, 3, 4)


def _conv(x, w, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return jax.lax.conv_general_dilated(
        x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def _pool(x, start, combine):
    return jax.lax.reduce_window(x, start, combine, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


_entry("convolution", _conv, _images)
_entry(
    "convolution_strided_dilated",
    lambda x, w: _conv(x, w, window_strides=(2, 1), rhs_dilation=(1, 2)),
    _images,
)
_entry(
    "convolution_preferred",
    lambda x, w: _conv(x, w, preferred_element_type=x.dtype) ** 2,
    _images,
)
_entry(
    "average_pool",
    lambda x, w: _pool(x, 0.0, jax.lax.add) ** 2 * w[0, 0, 0, 0],
    _images,
)
_entry(
    "max_pool", lambda x, w: _pool(x, -jnp.inf, jax.lax.max) * w[0, 0, 0, 0], _images
)


# -- complex numbers


def _complex(rng):
    return ((normal(rng, 4) + 1j * normal(rng, 4)).astype(np.complex64),)


_COMPLEX = {
    "complex_abs": lambda z: jnp.abs(z) ** 3,
    "complex_product": lambda z: (z * jnp.conj(z[::-1]) * z).real,
    "complex_exp_log": lambda z: (jnp.exp(z) + jnp.log(z)).imag,
    "complex_fft": lambda z: jnp.abs(jnp.fft.fft(z)),
    "complex_holomorphic": lambda z: (jnp.sin(z) * jnp.sqrt(z)).real,
    "complex_in_scan": lambda z: jax.lax.scan(lambda c, x: (c * x, c), z[0], z)[1].real,
    "complex_matmul": lambda z: (jnp.outer(z, z) @ z).imag,
}
for _name, _fun in _COMPLEX.items():
    _entry(_name, _fun, _complex)
_entry("complex_angle", jnp.angle, _complex)


# -- hard-coded dtypes: the reference is the same function without them


def _hard_coded(dtype):
    def make(rng):
        def loss(x):
            if x.dtype == jnp.float64:
                return weighted(jnp.sin(x) * x) + jnp.sum(jnp.zeros(3) + 0.5 * x[0])
            low = x.astype(dtype)
            product = (jnp.sin(low) * low).astype(jnp.float32)
            return weighted(product) + jnp.sum(
                jnp.zeros(3, dtype) + 0.5 * low[0]
            ).astype(jnp.float32)

        return loss, (normal(rng, 5),)

    return make


for _dtype in ("float16", "bfloat16", "float32"):
    PROGRAMS.append(Program(name=f"astype_{_dtype}", make=_hard_coded(_dtype)))


@program()
def _sum_accumulated_in_float32(rng):
    return lambda x: jnp.sum(
        x**2, dtype=jnp.float32 if x.dtype == jnp.float32 else None
    ), (normal(rng, 5),)


@program()
def _one_hot_and_iota(rng):
    def loss(x):
        hot = jax.nn.one_hot(jnp.array([0, 2]), 5, dtype=jnp.float32)
        ramp = jax.lax.broadcasted_iota(jnp.float32, (5,), 0)
        return (
            weighted((hot @ x) ** 2)
            + weighted(jnp.sin(x * ramp))
            + jnp.sum(x * jnp.linspace(0, 4, 5, dtype=jnp.float32))
        )

    return loss, (normal(rng, 5),)


@program()
def _cross_entropy_of_integers(rng):
    def loss(logits, labels):
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), labels[:, None], axis=1
        )
        return -jnp.mean(picked) + jnp.mean(jnp.argmax(logits, axis=1) == labels)

    return loss, (normal(rng, 4, 3), np.array([0, 2, 1, 2], np.int32))


# -- randomness: bits are drawn natively, so the further outputs (masks) must be equal


def _random(name, draw, typed, rtol=NATIVE, as_traced=()):
    def make(rng):
        key = jax.random.key(7) if typed else jax.random.PRNGKey(7)

        def loss(x, key):
            out, mask = draw(key, x)
            return weighted(out), mask

        return loss, (normal(rng, 16), key)

    PROGRAMS.append(
        Program(
            name=f"{name}_{'typed' if typed else 'old'}_key",
            make=make,
            reference="native",
            rtol=rtol,
            as_traced=("random_bits", "bitcast_convert_type", *as_traced),
        )
    )


def _dropout(key, x):
    mask = jax.random.bernoulli(key, 0.7, x.shape)
    return jnp.where(mask, x / 0.7, 0) ** 2, mask


def _gaussian(key, x):
    noise = jax.random.normal(key, x.shape, dtype=jnp.float32)
    return x * noise, noise > 0


def _categorical(key, x):
    drawn = jax.random.categorical(key, x.reshape(4, 4))
    return x[drawn] ** 2, drawn


def _several(key, x):
    first, second = jax.random.split(key)
    kept = jax.random.permutation(first, 16)
    where = jax.random.randint(jax.random.fold_in(second, 3), (16,), 0, 16, jnp.int32)
    return x[kept] * x[where] + jax.random.uniform(second, (16,), jnp.float32), (
        kept,
        where,
    )


def _keys_in_scan(key, x):
    def body(key, x):
        key, sub = jax.random.split(key)
        mask = jax.random.bernoulli(sub, 0.5)
        return key, (jnp.where(mask, x**2, 0), mask)

    return jax.lax.scan(body, key, x)[1]


for _draw in (_dropout, _gaussian, _categorical, _several, _keys_in_scan):
    for _typed in (False, True):
        _random(f"random{_draw.__name__}", _draw, _typed)


@program(reference="native", rtol=NATIVE, as_traced=("random_gamma",), gradient="none")
def _random_gamma(rng):
    return lambda a, key: weighted(jax.random.gamma(key, a, dtype=jnp.float32)), (
        positive(rng, 4),
        jax.random.key(3),
    )


# -- what has no meaning in float64 and runs as it was traced


@program(reference="native", rtol=NATIVE, as_traced=("bitcast_convert_type",))
def _bitcast_exponent(rng):
    def loss(x):
        bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), jnp.int32)
        return weighted(x**2 * (bits >> 23)), bits

    return loss, (normal(rng, 5),)


@program(reference="native", rtol=NATIVE, as_traced=("nextafter",))
def _nextafter(rng):
    return lambda x: weighted(jnp.nextafter(jax.lax.stop_gradient(x), jnp.inf) * x), (
        normal(rng, 5),
    )


@program(reference="native", rtol=NATIVE, as_traced=("pure_callback",))
def _pure_callback(rng):
    def loss(x):
        y = jax.pure_callback(
            lambda x: np.sin(np.asarray(x)),
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.lax.stop_gradient(x),
            vmap_method="sequential",
        )
        return weighted(x * y)

    return loss, (normal(rng, 5),)


@program(reference="native", rtol=NATIVE, as_traced=("pure_callback",))
def _pure_callback_with_its_own_rule(rng):
    def call(fun, x):
        struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(
            lambda x: fun(np.asarray(x)), struct, x, vmap_method="sequential"
        )

    @jax.custom_vjp
    def sine(x):
        return call(np.sin, x)

    sine.defvjp(lambda x: (call(np.sin, x), x), lambda x, ct: (call(np.cos, x) * ct,))
    return lambda x: weighted(sine(x)), (normal(rng, 5),)


@program(reference="native", rtol=NATIVE, as_traced=("io_callback",))
def _io_callback(rng):
    def loss(x):
        y = io_callback(
            lambda x: np.cos(np.asarray(x)),
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.lax.stop_gradient(x),
        )
        return weighted(x * y)

    return loss, (normal(rng, 5),)


@program()
def _debug_print(rng):
    def loss(x):
        jax.debug.print("x = {x}", x=x)
        jax.debug.callback(lambda x: None, x)
        return weighted(x**2)

    return loss, (normal(rng, 5),)


@program(reference="native", rtol=NATIVE, as_traced=("pallas_call",))
def _pallas_with_its_own_rule(rng):
    def kernel(x, out):
        out[...] = jnp.sin(x[...]) * 2

    def call(x):
        struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=struct, interpret=True)(x)

    @jax.custom_vjp
    def sine(x):
        return call(x)

    sine.defvjp(lambda x: (call(x), x), lambda x, ct: (jnp.cos(x) * 2 * ct,))
    return lambda x: weighted(sine(x)), (normal(rng, 8),)
