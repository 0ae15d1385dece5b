"""What to do about NaN and infinity, by the primitive that bore them."""

from __future__ import annotations

from typing import Any

from jaxcheck.jaxprs import compat
from jaxcheck.places.births.ledger import Origin

# primitive: (a safe operand, the expression in x_safe)
_SAFE = {
    "acos": ("0.0", "jnp.arccos(x_safe)"),
    "acosh": ("2.0", "jnp.arccosh(x_safe)"),
    "asin": ("0.0", "jnp.arcsin(x_safe)"),
    "atan2": ("1.0", "jnp.arctan2(y, x_safe)"),
    "atanh": ("0.0", "jnp.arctanh(x_safe)"),
    "cbrt": ("1.0", "jnp.cbrt(x_safe)"),
    "div": ("1.0", "numerator / x_safe"),
    "erf_inv": ("0.0", "jax.lax.erf_inv(x_safe)"),
    "exp": ("0.0", "jnp.exp(x_safe)"),
    "exp2": ("0.0", "jnp.exp2(x_safe)"),
    "expm1": ("0.0", "jnp.expm1(x_safe)"),
    "integer_pow": ("1.0", "x_safe ** n"),
    "log": ("1.0", "jnp.log(x_safe)"),
    "log1p": ("0.0", "jnp.log1p(x_safe)"),
    "pow": ("1.0", "x_safe ** p"),
    "rsqrt": ("1.0", "jax.lax.rsqrt(x_safe)"),
    "sqrt": ("1.0", "jnp.sqrt(x_safe)"),
}
_OVERFLOW = (
    "The argument of an exponential is too large: subtract the maximum first, or use "
    "jax.nn.logsumexp, jax.nn.softmax, jax.nn.softplus or jax.nn.sigmoid, which do."
)
_EDGE = (
    "Keep the operand inside the domain, e.g. jnp.clip(x, -1 + eps, 1 - eps): at -1 "
    "and 1 the derivative is infinite. For the angle between two vectors use "
    "jnp.arctan2(norm of the cross product, dot product)."
)
_SINGULAR = (
    "The matrix is singular, or is not positive definite: add a small multiple of the "
    "identity, or use jnp.linalg.lstsq or pinv."
)
_DEGENERATE = (
    "Derivatives of eigenvectors (and singular vectors) do not exist where two "
    "eigenvalues (singular values) are equal: split them by adding different small "
    "numbers to the diagonal, or write the loss in eigenvalues or in the projector."
)
_DIFFERENCE = (
    "Infinity minus infinity. In a softmax this is a row that is -inf throughout: "
    "leave at least one entry of each row unmasked, mask with a large finite number "
    "such as jnp.finfo(x.dtype).min, or pass where= and replace empty rows afterwards."
)
_OUTSIDE = (
    "An index is out of bounds, and such elements are filled with NaN: correct the "
    'index, or say mode="clip".'
)
_FORWARD = {
    "acos": _EDGE,
    "add": _DIFFERENCE,
    "asin": _EDGE,
    "atanh": _EDGE,
    "cholesky": _SINGULAR,
    "cosh": _OVERFLOW,
    "div": "Division by zero: add eps to the denominator, or divide only where it is "
    "not zero: x_safe = jnp.where(x != 0, x, 1.0); y = jnp.where(x != 0, "
    "numerator / x_safe, 0.0).",
    "exp": _OVERFLOW,
    "exp2": _OVERFLOW,
    "expm1": _OVERFLOW,
    "gather": _OUTSIDE,
    "integer_pow": "A negative power of zero, or a power that overflows: keep the base "
    "away from zero, e.g. by adding eps, or scale it.",
    "log": "The logarithm needs a positive operand. Of a softmax, take "
    "jax.nn.log_softmax; of a sigmoid, jax.nn.log_sigmoid; else bound it from below: "
    "jnp.log(jnp.maximum(x, eps)).",
    "log1p": "log1p needs an operand above -1: bound it from below by -1 + eps.",
    "lu": _SINGULAR,
    "mul": "Zero times infinity: a product with a mask takes both sides, jnp.where "
    "takes one; and what it does not take must be finite before.",
    "pow": "A power of a negative base is NaN, a negative power of zero infinite: keep "
    "the base positive, e.g. jnp.maximum(x, eps) ** p.",
    "rsqrt": "rsqrt needs a positive operand: add eps inside, jax.lax.rsqrt(x + eps).",
    "sinh": _OVERFLOW,
    "sqrt": "The square root of a negative number is NaN: bound the operand from "
    "below, jnp.sqrt(jnp.maximum(x, eps)).",
    "sub": _DIFFERENCE,
    "triangular_solve": _SINGULAR,
}
_NORM = (
    "A norm has no derivative at zero: add eps inside the root, "
    "jnp.sqrt(jnp.sum(x**2) + eps), or use a double where: ok = jnp.sum(x**2) > 0; "
    "x_safe = jnp.where(ok, x, 1.0); y = jnp.where(ok, jnp.linalg.norm(x_safe), 0.0)."
)
_BACKWARD = {
    "acos": _EDGE,
    "asin": _EDGE,
    "atanh": _EDGE,
    "cholesky": _SINGULAR,
    "div": _FORWARD["div"],
    "eig": _DEGENERATE,
    "eigh": _DEGENERATE,
    "integer_pow": _FORWARD["integer_pow"],
    "log": _FORWARD["log"],
    "pow": "The derivative of x ** p has x ** (p - 1), infinite at x = 0 for p < 1, "
    "and that in p has log(x): bound the base from below, jnp.maximum(x, eps) ** p, or "
    "use a double where.",
    "rsqrt": _FORWARD["rsqrt"],
    "sqrt": "The square root has an infinite derivative at zero: add eps inside, "
    "jnp.sqrt(x + eps), or use a double where.",
    "svd": _DEGENERATE,
    "triangular_solve": _SINGULAR,
    "custom_linear_solve": _SINGULAR,
}
_RANGE = (
    "add",
    "add_any",
    "conv_general_dilated",
    "dot_general",
    "mul",
    "reduce_sum",
    "square",
    "sub",
)
_TOO_LARGE = (
    "The result is beyond the range of its dtype: scale the values down, or compute "
    "with their logarithms."
)
_LARGEST = {"float16": "65504", "float8_e4m3fn": "448", "float8_e5m2": "57344"}


def remedy_for(origin: Origin, *, trap: bool) -> str | None:
    """What to do about ``origin``; None where nothing general can be said."""
    name = origin.eqn.primitive.name
    if origin.given:
        return None
    if trap:
        return _double_where(name)
    if origin.phase == "forward":
        return _narrow(origin) or _forward(origin)
    if name == "sqrt" and _of_squares(origin):
        return _NORM
    return _BACKWARD.get(name) or _narrow(origin)


def _forward(origin: Origin) -> str | None:
    name = origin.eqn.primitive.name
    if origin.value == "inf" and name in _RANGE:
        return _TOO_LARGE
    return _FORWARD.get(name)


def _double_where(name: str) -> str:
    safe, call = _SAFE.get(name, ("1.0", "f(x_safe)"))
    return (
        "Use a double where: make the operand safe before it is used, not only the "
        f"result afterwards: x_safe = jnp.where(ok, x, {safe}); "
        f"y = jnp.where(ok, {call}, 0.0)."
    )


def _narrow(origin: Origin) -> str | None:
    """What to do about an overflow of a dtype with a short range."""
    if origin.value != "inf":
        return None
    atoms = origin.eqn.outvars if origin.phase == "forward" else origin.eqn.invars
    dtypes = [str(v.aval.dtype) for v in atoms if hasattr(v.aval, "dtype")]
    for dtype in dtypes:
        if dtype in _LARGEST:
            return (
                f"{dtype} ends at {_LARGEST[dtype]}: scale the loss or the values "
                "down, or compute this part in bfloat16 or float32."
            )
    return None


def _of_squares(origin: Origin) -> bool:
    """Whether the operand is a sum: the square root of a sum of squares is a norm."""
    operand: Any = origin.eqn.invars[0]
    for eqn in compat.opened(origin.frame.program)[0].eqns:
        if operand in eqn.outvars:
            return eqn.primitive.name in ("reduce_sum", "dot_general")
    return False
