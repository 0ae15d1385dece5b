"""What the rows of the survey turned out to be that are not plainly CORRECT.

Defects were reproduced by hand; the rest was read from the report and the source of
the function. A remark begins with its kind: *defect* of the library that was
surveyed, *as intended* by it, or *limit* of what a verdict at one point can say.
"""

from __future__ import annotations

from collections.abc import Mapping

_APPROXIMATION = (
    "As intended. In float32 this is an approximation with coefficients and thresholds "
    "for float32, and its rule gives the derivative of the function that is meant. "
    "With float64 parameters rule and function agree."
)
_ONE_TRIANGLE = (
    "As intended, and a trap. The function reads one triangle of its argument, the "
    "gradient is spread over both: it is right for symmetric changes only. "
    "Differentiate `lambda a: f((a + a.T) / 2)`, as the case without this label does."
)
_SIGN_OF_VECTORS = (
    "As intended. Eigenvectors are defined up to a sign, which LAPACK chooses "
    "otherwise in float32 than in float64. The invariant case has no such finding."
)
_FP8 = "As intended. The product is rounded to 8 bits on the way."
_POWER_ITERATION = (
    "As intended. The singular vectors of the power iteration are constants of the "
    "gradient, as in the paper (Miyato et al. 2018); the share that is cut "
    "off is large here because one step from random vectors is far from converged."
)

_INTEGER_XLOGY = (
    "Defect (also in jax 0.12.0). `xlogy(-1, y)` with an integer, as this function "
    "calls it, cannot be differentiated: its rule multiplies by the integer's "
    "float0 tangent. `jax.grad(lambda y: jax.scipy.special.xlogy(-1, y))(0.3)` raises "
    "too; with `-1.0` it is right."
)
_GUMBEL = {
    f"jax.scipy.stats.gumbel_{side}.{name}": _INTEGER_XLOGY
    for side in "lr"
    for name in ("logpdf", "pdf", "ppf")
}
_BITS = "Limit. The exponent is read and written as bits, which is done in float32."
_NO_INCOMPLETE_BETA = dict.fromkeys(
    (
        "jax.scipy.special.betainc",
        *(f"jax.scipy.stats.beta.{name}" for name in ("cdf", "logcdf", "logsf", "sf")),
    ),
    "As intended: JAX has the derivative in x only, which the case `x` checks.",
)
_FORWARD_ONLY = "As intended: its loop has no reverse mode."

_POWER_LAW_RULE = (
    "Defect of numpyro 0.22.0. In the bounds, the rule that is written beside "
    "`log_prob` has the derivatives of the density instead of its logarithm, and for "
    "an exponent other than -1 the wrong sign in `high`. "
    "`jax.grad(lambda high: dist.DoublyTruncatedPowerLaw(-1.7, 0.4, high)"
    ".log_prob(jnp.float32(1.3)))(2.3)` is 0.0423; the derivative is -0.1267."
)
_VALIDATED = (
    "As intended. The value is tested to lie in the support, to a tolerance of about "
    "1e-6; beside it the log-probability is minus infinity."
)
_ON_A_SUPPORT = {
    f"numpyro.distributions.{name}": _VALIDATED
    for name in ("Dirichlet", "InverseWishart", "LKJ", "Wishart", "ZeroSumNormal")
}

# By function, or by function and case; the case comes first.
REMARKS: Mapping[str, str] = {
    "jax.numpy.arccosh [complex]": (
        "Defect of jax 0.10.1, gone in 0.12.0. The rule `rsqrt(z**2 - 1)` takes the "
        "wrong branch where Re z < 0; the derivative is 1 / (sqrt(z - 1) sqrt(z + 1)). "
        "`jax.grad(jnp.arccosh, holomorphic=True)(-0.5+0.5j)` has the wrong sign."
    ),
    "jax.numpy.cross [2-d]": (
        "As intended: since jax 0.12, as in NumPy, vectors have three components."
    ),
    "jax.numpy.sign [complex]": (
        "Defect of jax 0.10.1, gone in 0.12.0. sign(z) = z / |z| is not constant for "
        "complex z, but its derivative is zero: "
        "`jax.grad(lambda z: jnp.sign(z).real)(0.3+0.7j)` should be 1.109+0.475j."
    ),
    "jax.numpy.linalg.matrix_power [0]": "As intended: the identity of any matrix.",
    "jax.numpy.linalg.eigh": _SIGN_OF_VECTORS,
    "jax.scipy.linalg.eigh": _SIGN_OF_VECTORS,
    "jax.scipy.linalg.cholesky [one triangle read]": _ONE_TRIANGLE,
    "jax.scipy.linalg.solve [pos, one triangle read]": _ONE_TRIANGLE,
    "jax.scipy.special.spence": (
        "Defect (also in jax 0.12.0, and in float64). The gradient is NaN for "
        "1 < x < 2: `log(1 - x)` of a branch that `where` does not select is "
        "differentiated there. `jax.grad(jax.scipy.special.spence)(1.3)` is NaN; the "
        "derivative is log(x) / (1 - x) = -0.8745."
    ),
    "jax.scipy.special.bessel_jn": (
        "Defect of the value (also in jax 0.12.0). With the "
        "default `n_iter=50` the backward recurrence overflows float32 below z = 3, "
        "roughly: `bessel_jn(jnp.float32(2.0), v=3)` is NaN. "
        "`n_iter=20` is right."
    ),
    "jax.scipy.special.bessel_jn [large z]": (
        "Defect (also in jax 0.12.0). The value is right and the float32 gradient is "
        "not: the same overflow, less far gone. "
        "`jax.grad(lambda z: jax.scipy.special.bessel_jn(z, v=3)[3])(5.0)` is -3.876 "
        "instead of -0.1723; with `n_iter=30` it is right."
    ),
    "jax.scipy.special.erfcx [large x]": _APPROXIMATION,
    "jax.scipy.special.fresnel": _APPROXIMATION,
    "jax.scipy.special.hyp2f1": _APPROXIMATION,
    "jax.scipy.special.log_ndtr [tails]": _APPROXIMATION,
    "jax.scipy.special.owens_t [large x]": (
        "Limit. The function is zero to every digit at large h; its gradient "
        "underflows in float32."
    ),
    "optax.losses.ctc_loss_with_forward_probs": (
        "As intended. Impossible paths carry log-probabilities of -1e5 "
        "(`log_epsilon`), beside which float32 has few digits left."
    ),
    "flax.linen.Fp8DirectDotGeneralOp [Dense]": _FP8,
    "flax.linen.Fp8DotGeneralOp [Dense]": _FP8,
    "flax.linen.NANOOFp8DotGeneralOp [Dense]": _FP8,
    "flax.linen.Fp8Einsum": _FP8,
    "flax.linen.SpectralNorm": _POWER_ITERATION,
    "flax.nnx.SpectralNorm": _POWER_ITERATION,
    "jax.numpy.frexp": _BITS,
    "jax.numpy.ldexp": _BITS,
    "jax.numpy.trim_zeros": (
        "Limit. The shape of its output depends on values, so it cannot be traced."
    ),
    "jax.scipy.linalg.eigh_tridiagonal": _FORWARD_ONLY,
    "jax.scipy.linalg.polar": _FORWARD_ONLY,
    "numpyro.distributions.DoublyTruncatedPowerLaw": _POWER_LAW_RULE,
    **_ON_A_SUPPORT,
    **_GUMBEL,
    **_NO_INCOMPLETE_BETA,
}
