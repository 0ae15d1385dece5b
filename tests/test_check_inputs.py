"""What goes into ``check`` as it is, and how what cannot be used is refused."""

from __future__ import annotations

import collections
import dataclasses
import functools
import traceback
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxcheck
from jaxcheck import InvalidInputError, JaxcheckError, Verdict
from tests.catalogue.planting import edited

X64 = pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
X = np.float32([0.3, -0.7, 1.1])

wrong_twice = edited(lambda x, cotangent: 2 * cotangent)


def norm(tree):
    """A smooth loss that uses every leaf, each in its own way."""
    leaves = jax.tree_util.tree_leaves(tree)
    return sum(
        (k + 1) * jnp.sum(jnp.sin(leaf) + 0.3 * leaf**2)
        for k, leaf in enumerate(leaves)
    )


def by_path(report):
    return {leaf.path: leaf for leaf in report.leaves}


def array(*shape, start=0.2):
    size = int(np.prod(shape))
    values = np.linspace(start, start + 1, size) if size > 1 else [start]
    return jnp.asarray(np.reshape(values, shape), jnp.float32)


# ---- pytrees -------------------------------------------------------------------------


class Pair(NamedTuple):
    w: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dense:
    w: Any
    b: Any
    name: str = dataclasses.field(default="dense", metadata={"static": True})


class Unnamed:
    """A node that was registered without names for its children."""

    def __init__(self, first, second):
        self.children = (first, second)


jax.tree_util.register_pytree_node(
    Unnamed, lambda node: (node.children, None), lambda _, xs: Unnamed(*xs)
)

TREES = {
    "array": lambda: array(4),
    "dict": lambda: {"w": array(2, 3), "b": array(3)},
    "ordered dict": lambda: collections.OrderedDict(w=array(2), b=array(3)),
    "default dict": lambda: collections.defaultdict(list, w=array(2), b=array(3)),
    "nested": lambda: {"a": [array(2), {"b": (array(3), array(1))}], "c": array(1)},
    "named tuple": lambda: Pair(array(2, 2), array(2)),
    "dataclass": lambda: {"dense": Dense(array(2, 2), array(2))},
    "unnamed node": lambda: [Unnamed(array(2), {"x": array(2)})],
    "int keys": lambda: {3: array(2), 1: array(3)},
    "zero rank": lambda: {"scale": jnp.float32(0.4)},
    "high rank": lambda: array(2, 1, 3, 1, 2),
    "many leaves": lambda: [array(2, start=0.01 * k) for k in range(12)],
    "the same array twice": lambda: [array(3)] * 2,
}


@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_pytree_goes_in_as_it_is(make):
    params = make()
    report = jaxcheck.check(norm, params)
    assert report.verdict is Verdict.CORRECT, str(report)
    pairs = jax.tree_util.tree_leaves_with_path(params)
    assert [leaf.path for leaf in report.leaves] == [
        jax.tree_util.keystr(path) for path, _ in pairs
    ]
    assert [leaf.shape for leaf in report.leaves] == [x.shape for _, x in pairs]
    assert all(leaf.verdict is Verdict.CORRECT for leaf in report.leaves)
    assert all(leaf.checked == leaf.size for leaf in report.leaves)


@pytest.mark.parametrize("name", ["nested", "named tuple", "dataclass", "unnamed node"])
def test_the_wrong_leaf_of_a_pytree_is_named(name):
    params = TREES[name]()
    leaves, treedef = jax.tree_util.tree_flatten(params)

    def loss(tree):
        inside = jax.tree_util.tree_leaves(tree)
        inside[1] = wrong_twice(inside[1])
        return norm(jax.tree_util.tree_unflatten(treedef, inside))

    report = jaxcheck.check(loss, params)
    verdicts = [leaf.verdict for leaf in report.leaves]
    wanted = [Verdict.CORRECT] * len(leaves)
    wanted[1] = Verdict.WRONG
    assert verdicts == wanted, str(report)
    assert report.leaves[1].path in str(report)


def test_the_loss_gets_the_structure_that_came_in():
    seen = []

    def loss(tree):
        seen.append(jax.tree_util.tree_structure(tree))
        return norm(tree)

    params = {"dense": Dense(array(2), None, name="head"), "rest": [Pair(array(1), ())]}
    jaxcheck.check(loss, params)
    assert set(seen) == {jax.tree_util.tree_structure(params)}


def test_parameters_are_not_touched():
    params = {"w": X.copy(), "b": array(2)}
    before = {name: np.array(value) for name, value in params.items()}
    jaxcheck.check(norm, params)
    assert isinstance(params["w"], np.ndarray)
    assert all(np.array_equal(params[k], before[k]) for k in params)
    assert not params["b"].is_deleted()


# ---- dtypes --------------------------------------------------------------------------


def real_loss(p):
    return jnp.sum(jnp.sin(p) * 2 + p**2 / 3).astype(jnp.result_type(p))


def complex_loss(p):
    return jnp.sum(jnp.abs(p) ** 2 + jnp.real(jnp.sin(p) * (1 - 2j)))


@pytest.mark.parametrize(
    ("dtype", "mode", "x64"),
    [
        ("float16", "exhaustive", False),
        ("float16", "directional", True),
        ("bfloat16", "directional", False),
        ("bfloat16", "exhaustive", True),
        ("float32", "sampled", False),
        ("float32", "exhaustive", True),
        ("float64", "exhaustive", False),
        ("float64", "directional", True),
        ("complex64", "directional", False),
        ("complex64", "sampled", True),
        ("complex128", "sampled", False),
        ("complex128", "exhaustive", True),
    ],
)
def test_every_floating_dtype(dtype, mode, x64):
    with jax.enable_x64(x64):
        values = np.array([0.3, -0.7, 1.1, 0.2])
        is_complex = dtype.startswith("complex")
        if is_complex:
            values = values + 1j * values[::-1]
        leaf = values.astype(jnp.dtype(dtype))  # 64 bits reach JAX as NumPy arrays
        loss = complex_loss if is_complex else real_loss
        report = jaxcheck.check(loss, leaf, mode=mode)
        wrong = jaxcheck.check(lambda p: loss(wrong_twice(p)), leaf, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert wrong.verdict is Verdict.WRONG, str(wrong)
    narrowed = {"float64": "float32", "complex128": "complex64"}
    wanted = dtype if x64 else narrowed.get(dtype, dtype)
    assert report.leaves[0].dtype == wanted
    assert report.dtypes == (wanted,)
    assert report.leaves[0].size == 4
    assert report.leaves[0].checked == 4


@X64
def test_mixed_dtypes(x64):
    with jax.enable_x64(x64):
        params = {
            "half": np.float16([0.5, 1.5]),
            "brain": jnp.asarray([0.5, 1.5], jnp.bfloat16),
            "single": X,
            "double": np.float64([0.1, 0.2]),
            "complex": np.complex64([1 + 2j, 0.5]),
        }

        def loss(p):
            reals = [v for k, v in p.items() if k != "complex"]
            return sum(
                (jnp.sum(jnp.cos(v)).astype(jnp.float32) for v in reals), 0.0
            ) + complex_loss(p["complex"])

        report = jaxcheck.check(loss, params)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert len(report.dtypes) == (5 if x64 else 4)


def test_complex_coordinates_follow_jax():
    """``jax.grad`` gives df/dx - i df/dy; the report speaks of df/dx and df/dy."""
    z = jnp.asarray([1.0 + 2.0j, -0.5 + 0.25j], jnp.complex64)

    def conjugated(p):  # a forgotten conjugate: only the imaginary part turns wrong
        return jnp.sum(jnp.abs(edited(lambda _, ct: jnp.conj(ct))(p)) ** 2)

    assert jaxcheck.check(lambda p: jnp.sum(jnp.abs(p) ** 2), z).passed
    report = jaxcheck.check(conjugated, z, mode="exhaustive")
    assert report.verdict is Verdict.WRONG, str(report)
    worst = report.leaves[0].worst
    assert worst.index == (0,)
    assert worst.part == "imag"
    assert worst.numerical == pytest.approx(4.0)
    assert worst.autodiff == pytest.approx(-4.0)
    assert report.leaves[0].failing == 2


# ---- leaves that have no gradient ----------------------------------------------------


@X64
def test_leaves_without_gradient_are_carried_along(x64):
    with jax.enable_x64(x64):
        params = {
            "bool": jnp.asarray([True, False, True]),
            "empty": jnp.zeros((0, 4)),
            "function": jnp.tanh,
            "int": jnp.arange(3, dtype=jnp.int32),
            "key": jax.random.key(1),
            "none": None,
            "numpy_int": np.arange(3),
            "old_key": jax.random.PRNGKey(2),
            "python_bool": True,
            "python_int": 3,
            "text": "relu",
            "uint8": jnp.ones(2, jnp.uint8),
            "w": X,
        }

        def loss(p):
            assert p["none"] is None
            assert p["text"] == "relu"
            assert p["python_bool"] is True
            noise = jax.random.normal(p["key"], (3,))
            mask = jax.random.bernoulli(p["old_key"], 0.5, (3,))
            h = p["function"](p["w"] * p["int"] + noise) * p["bool"]
            for _ in range(p["python_int"]):
                h = h + jnp.where(mask, p["w"], 0) * p["uint8"][0]
            return jnp.sum(h**2) + jnp.sum(p["empty"]) + jnp.sum(p["numpy_int"])

        report = jaxcheck.check(loss, params)
    leaves = by_path(report)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert leaves.pop("['w']").verdict is Verdict.CORRECT
    assert len(leaves) == len(params) - 1
    for leaf in leaves.values():
        assert leaf.verdict is Verdict.NOT_CHECKED
        assert leaf.checked == 0
        assert leaf.method == "none"
        assert leaf.relative_error is None
        assert leaf.worst is None
        assert leaf.reason
        assert leaf.path in str(report)
    assert leaves["['int']"].dtype == "int32"
    assert leaves["['bool']"].dtype == "bool"
    assert leaves["['empty']"].shape == (0, 4)
    assert leaves["['empty']"].size == 0


@pytest.mark.parametrize("value", [0.7, np.float32(0.7), np.float64(0.7), 0.7 + 0.1j])
def test_scalars_of_python_and_numpy_are_parameters(value):
    report = jaxcheck.check(lambda p: jnp.abs(p["x"]) ** 3, {"x": value})
    assert report.verdict is Verdict.CORRECT, str(report)
    assert report.leaves[0].shape == ()
    assert report.leaves[0].checked == 1


@X64
def test_a_python_float_alone(x64):
    with jax.enable_x64(x64):
        report = jaxcheck.check(lambda x: x**2, 3.0)
    assert report.verdict is Verdict.CORRECT
    assert report.leaves[0].path == ""
    assert report.loss == 9.0


def test_a_weakly_typed_parameter_keeps_its_type():
    """A Python float times bfloat16 is bfloat16: the trace must see the same."""
    half = jnp.asarray([1.0, 2.0, 3.0], jnp.bfloat16)
    seen = []

    def loss(p):
        h = p * half
        seen.append(str(h.dtype))
        return jnp.sum(h.astype(jnp.float32) ** 2)

    assert jaxcheck.check(loss, 0.5).verdict is Verdict.CORRECT
    assert set(seen) == {"bfloat16"}


# ---- losses --------------------------------------------------------------------------


def plain(p, x):
    return jnp.mean((p["w"] @ x) ** 2)


class Model:
    def __init__(self, scale):
        self.scale = scale

    def loss(self, p, x):
        return self.scale * plain(p, x)

    def __call__(self, p, x):
        return self.loss(p, x)

    @classmethod
    def of_class(cls, p, x):
        return plain(p, x)

    @staticmethod
    def of_nobody(p, x):
        return plain(p, x)


LOSSES = {
    "function": plain,
    "jitted": jax.jit(plain),
    "donating": jax.jit(plain, donate_argnums=0),
    "partial": functools.partial(lambda scale, p, x: scale * plain(p, x), 2.0),
    "partial with a keyword": functools.partial(
        lambda p, x, *, power: plain(p, x) ** power, power=2
    ),
    "jitted partial": jax.jit(functools.partial(lambda s, p, x: s * plain(p, x), 2.0)),
    "partial of a jitted": functools.partial(
        jax.jit(lambda s, p, x: s * plain(p, x)), 2.0
    ),
    "jax partial": jax.tree_util.Partial(plain),
    "method": Model(3.0).loss,
    "class method": Model.of_class,
    "static method": Model.of_nobody,
    "object": Model(2.0),
    "checkpointed": jax.checkpoint(plain),
    "named call": jax.named_call(plain, name="loss"),
    "numpy result": lambda p, x: plain(p, x)[...],
    "vmapped": lambda p, x: jnp.mean(jax.vmap(lambda row: plain(p, row), in_axes=1)(x)),
}


@pytest.mark.filterwarnings("ignore:Some donated buffers")  # of our own call below
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_any_callable_is_a_loss(loss):
    params, x = {"w": array(2, 3)}, array(3, 4)
    report = jaxcheck.check(loss, params, x)
    assert report.verdict is Verdict.CORRECT, str(report)
    value = loss({"w": array(2, 3)}, x)
    assert report.loss == pytest.approx(float(value), rel=1e-6)
    assert str(report)
    assert "Reproduce" in str(report)


def test_static_arguments_of_a_jitted_loss():
    @functools.partial(jax.jit, static_argnums=(1, 2))
    def loss(p, power, kind):
        h = jnp.sin(p) if kind == "sin" else p
        for _ in range(power):
            h = h * p
        return jnp.sum(h)

    assert jaxcheck.check(loss, X, 3, "sin").passed


def test_static_like_arguments_of_a_plain_loss():
    def loss(p, power, kind, nothing, flag, widths):
        assert nothing is None
        h = {"sin": jnp.sin}[kind](p)
        for _ in range(power):
            h = h * p if flag else h
        return jnp.sum(h.reshape(widths))

    report = jaxcheck.check(loss, array(6), 2, "sin", None, True, (2, 3))
    assert report.verdict is Verdict.CORRECT, str(report)


@X64
def test_arguments_are_pytrees_of_anything(x64):
    with jax.enable_x64(x64):

        def loss(p, batch, key, config, scale):
            h = batch["x"] @ p["w"] + batch["double"]
            h = h + jax.random.normal(key, h.shape) * config["noise"]
            h = config["activation"](h)[batch["rows"]]
            return scale * jnp.mean((h - batch["y"][0]) ** 2)

        batch = {
            "x": np.ones((4, 2), np.float32),
            "double": np.linspace(0, 1, 3),  # float64 of NumPy
            "rows": np.array([0, 3]),
            "y": (jnp.zeros(3), None, "label"),
        }
        config = {"noise": 0.1, "activation": jnp.tanh, "depth": 3}
        arguments = (batch, jax.random.key(0), config, 2.0)
        report = jaxcheck.check(loss, {"w": array(2, 3)}, *arguments)
    assert report.verdict is Verdict.CORRECT, str(report)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_rule_that_closes_over_an_argument(kind):
    """Legal under ``jax.grad`` and jitted: the argument is not differentiated."""

    def loss(p, mask):
        @jax.custom_vjp
        def masked(x):
            return x * mask

        masked.defvjp(lambda x: (x * mask, None), lambda _, ct: (ct * mask,))
        return jnp.sum(jnp.sin(masked(p)))

    mask = kind(np.float32([1, 0, 2]))
    jax.jit(jax.grad(loss))(X, mask)
    assert jaxcheck.check(loss, X, mask).passed


def test_old_and_typed_keys_as_arguments():
    def loss(p, key):
        keep = jax.random.bernoulli(key, 0.5, p.shape)
        return jnp.sum(jnp.where(keep, jnp.sin(p) * 2, 0.0))

    for key in (
        jax.random.key(3),
        jax.random.PRNGKey(3),
        jax.random.key(3, impl="rbg"),
    ):
        assert jaxcheck.check(loss, array(40), key).passed


def test_the_mask_of_the_check_is_the_mask_of_the_run():
    def loss(p, key):
        return jnp.sum(jax.random.normal(key, p.shape) * jnp.sin(p))

    key = jax.random.key(11)
    report = jaxcheck.check(loss, array(40), key)
    assert report.loss == pytest.approx(float(loss(array(40), key)), rel=1e-6)


@pytest.mark.parametrize("aux", [{"n": jnp.ones(3)}, None, "text", (), [jnp.arange(2)]])
def test_has_aux(aux):
    report = jaxcheck.check(lambda p: (norm(p), aux), X, has_aux=True)
    assert report.verdict is Verdict.CORRECT
    wrong = jaxcheck.check(lambda p: (norm(wrong_twice(p)), aux), X, has_aux=True)
    assert wrong.verdict is Verdict.WRONG


def test_a_wrong_rule_in_the_aux_is_no_wrong_gradient():
    report = jaxcheck.check(lambda p: (norm(p), wrong_twice(p)), X, has_aux=True)
    assert report.verdict is Verdict.CORRECT, str(report)


def test_aux_that_is_nan_is_no_business_of_the_loss():
    report = jaxcheck.check(lambda p: (norm(p), jnp.log(-(p**2))), X, has_aux=True)
    assert report.verdict is Verdict.CORRECT, str(report)


# ---- coordinates ---------------------------------------------------------------------


def test_worst_coordinate_is_numbered_as_ravel_pytree_numbers_it():
    params = {"b": array(3), "w": array(2, 3, 4)}
    flat, unravel = ravel_pytree(params)
    wrong_at = 3 + 17  # the third leaf row of w: ravel_pytree puts b first
    factor = jnp.ones(flat.size).at[wrong_at].set(1.5)
    hurt = edited(lambda x, cotangent: cotangent * factor)

    def loss(p):
        return norm(unravel(hurt(ravel_pytree(p)[0])))

    for mode in ("exhaustive", "directional"):
        report = jaxcheck.check(loss, params, mode=mode)
        leaves = by_path(report)
        assert leaves["['b']"].verdict is Verdict.CORRECT, str(report)
        leaf = leaves["['w']"]
        assert leaf.verdict is Verdict.WRONG, str(report)
        assert leaf.worst.index == np.unravel_index(17, (2, 3, 4))
        assert leaf.worst.autodiff == pytest.approx(
            1.5 * leaf.worst.numerical, rel=1e-5
        )
        assert abs(leaf.worst.error_bar) < 1e-6 * abs(leaf.worst.numerical)
        assert str(list(map(int, leaf.worst.index))) in str(report)


# ---- bad input -----------------------------------------------------------------------

BAD_LOSSES = {
    "vector": (lambda p: p, "float32[3]", "scalar"),
    "matrix of one": (lambda p: jnp.sum(p).reshape(1, 1), "float32[1,1]", "scalar"),
    "integer": (lambda p: jnp.sum(p).astype(jnp.int32), "int32[]", "floating"),
    "bool": (lambda p: jnp.all(p > 0), "bool[]", "floating"),
    "complex": (lambda p: jnp.sum(p) * 1j, "complex64[]", "real"),
    "tuple": (lambda p: (jnp.sum(p), {}), "(float32[], dict)", "has_aux=True"),
    "list": (lambda p: [jnp.sum(p)], "(float32[])", "scalar"),
    "dict": (lambda p: {"loss": jnp.sum(p)}, "dict", "scalar"),
    "none": (lambda p: None, "None", "scalar"),
    "text": (lambda p: "0.3", "str", "scalar"),
    "python int": (lambda p: 3, "3", "floating"),
}


@pytest.mark.parametrize("name", BAD_LOSSES)
def test_a_loss_that_is_no_loss(name):
    loss, got, wanted = BAD_LOSSES[name]
    with pytest.raises(InvalidInputError) as caught:
        jaxcheck.check(loss, X)
    assert "loss_fn" in str(caught.value)
    assert got in str(caught.value)
    assert wanted in str(caught.value)


BAD_AUX = {
    "scalar": jnp.sum,
    "triple": lambda p: (jnp.sum(p), 1, 2),
    "vector first": lambda p: (p, {}),
    "integer first": lambda p: (3, jnp.sum(p)),
    "none": lambda p: None,
}


@pytest.mark.parametrize("loss", BAD_AUX.values(), ids=BAD_AUX)
def test_a_loss_without_its_aux(loss):
    with pytest.raises(InvalidInputError, match="loss_fn"):
        jaxcheck.check(loss, X, has_aux=True)


BAD_PARAMS = {
    "none": None,
    "empty dict": {},
    "empty list": [],
    "empty nested": {"a": [], "b": ()},
    "integers": {"n": jnp.arange(3), "flag": True},
    "numpy integers": np.arange(3),
    "key": jax.random.key(0),
    "only none": {"a": None},
    "only empty": jnp.zeros((0, 3)),
    "text": "params",
}


@pytest.mark.parametrize("params", BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_nothing_to_differentiate(params):
    with pytest.raises(InvalidInputError) as caught:
        jaxcheck.check(lambda p: jnp.float32(1.0), params)
    assert "params" in str(caught.value)
    assert "float" in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "size"), [(np.nan, 1), (np.inf, 3), (-np.inf, 3), (np.nan, 5_000)]
)
def test_parameters_that_are_not_finite(bad, size):
    w = np.linspace(0.1, 1, size, dtype=np.float32)
    w[size // 2] = bad
    with pytest.raises(InvalidInputError) as caught:
        jaxcheck.check(norm, {"ok": X, "dense": {"w": w}})
    assert "params" in str(caught.value)
    assert "['dense']['w']" in str(caught.value)
    assert f"1 of {size}" in str(caught.value)
    assert "['ok']" not in str(caught.value)


BAD_OPTIONS = {
    "unknown mode": ({"mode": "thorough"}, ["mode", "'thorough'", "'exhaustive'"]),
    "mode is no text": ({"mode": None}, ["mode", "None", "'auto'"]),
    "unhashable mode": ({"mode": ["auto"]}, ["mode", "'auto'"]),
    "mode in capitals": ({"mode": "Auto"}, ["mode", "'Auto'", "'auto'"]),
    "negative samples": ({"samples": -1}, ["samples", "-1", "positive"]),
    "no samples": ({"samples": 0}, ["samples", "0", "positive"]),
    "half a sample": ({"samples": 2.5}, ["samples", "2.5", "integer"]),
    "samples in words": ({"samples": "all"}, ["samples", "'all'", "integer"]),
    "negative directions": ({"directions": -3}, ["directions", "-3", "positive"]),
    "no directions": ({"directions": 0}, ["directions", "0"]),
    "negative budget": ({"budget": -10}, ["budget", "-10", "positive"]),
    "no budget": ({"budget": 0}, ["budget", "0"]),
    "true budget": ({"budget": True}, ["budget", "True"]),
    "budget too small": ({"budget": 1}, ["budget=1", "at least"]),
    "budget too small for the mode": (
        {"budget": 10, "mode": "exhaustive"},
        ["budget=10", "exhaustive", "12", "directional"],
    ),
    "unknown precision": (
        {"precision": "float32"},
        ["precision", "'float32'", "'native'"],
    ),
    "unknown stop_gradient": (
        {"stop_gradient": "ignored"},
        ["stop_gradient", "'ignored'", "'transparent'"],
    ),
    "negative rtol": ({"rtol": -1e-3}, ["rtol", "-0.001"]),
    "nan rtol": ({"rtol": float("nan")}, ["rtol", "nan"]),
    "infinite atol": ({"atol": float("inf")}, ["atol", "inf"]),
    "rtol in words": ({"rtol": "1e-3"}, ["rtol", "'1e-3'"]),
    "key is a number": ({"key": 7}, ["key", "int", "jax.random.key"]),
    "many keys": (
        {"key": jax.random.split(jax.random.key(0), 3)},
        ["key", "jax.random.key"],
    ),
    "key of floats": ({"key": jnp.ones(2)}, ["key", "float32"]),
    "progress in words": ({"progress": "yes"}, ["progress", "'yes'"]),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name):
    options, told = BAD_OPTIONS[name]
    with pytest.raises(InvalidInputError) as caught:
        jaxcheck.check(norm, X, **options)
    for words in told:
        assert words in str(caught.value)


def test_bad_options_are_refused_before_the_loss_is_run():
    called = []
    for options in (opts for opts, _ in BAD_OPTIONS.values() if "progress" not in opts):
        with pytest.raises(InvalidInputError):
            jaxcheck.check(lambda p: called.append(1) or norm(p), X, **options)
    assert not called


@pytest.mark.parametrize("loss", [None, 3.0, "loss", X])
def test_a_loss_that_is_no_function(loss):
    with pytest.raises(InvalidInputError, match="loss_fn"):
        jaxcheck.check(loss, X)


def test_options_are_keyword_only_and_spelled_right():
    with pytest.raises(TypeError):
        jaxcheck.check(norm, X, modes="auto")
    with pytest.raises(TypeError):
        jaxcheck.check(norm)


def test_invalid_input_is_a_value_error_of_ours():
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(InvalidInputError, JaxcheckError)
    assert not issubclass(InvalidInputError, AssertionError)


def test_numbers_of_numpy_are_numbers():
    """Sizes and tolerances often come out of NumPy."""
    report = jaxcheck.check(
        norm,
        X,
        mode="sampled",
        samples=np.int64(2),
        budget=np.int32(1000),
        rtol=np.float32(1e-5),
        atol=np.float64(0),
    )
    assert report.leaves[0].checked == 2


# ---- the loss's own exceptions -------------------------------------------------------


class OwnError(RuntimeError):
    def __init__(self, code, hint):
        super().__init__(f"{hint} ({code})")
        self.code = code


def user_frames(error):
    return [f.name for f in traceback.extract_tb(error.__traceback__)]


def failing_loss_of_mine(p, *args):
    raise OwnError(17, "no such layer")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_what_the_loss_raises_comes_through_untouched(wrap):
    with pytest.raises(OwnError) as caught:
        jaxcheck.check(wrap(failing_loss_of_mine), X)
    assert type(caught.value) is OwnError
    assert str(caught.value) == "no such layer (17)"
    assert caught.value.code == 17
    assert "failing_loss_of_mine" in user_frames(caught.value)
    assert caught.value.__cause__ is None or not isinstance(
        caught.value.__cause__, JaxcheckError
    )


def mismatched_loss_of_mine(p, x):
    return jnp.sum(p["w"] @ x)


def same_as_without_us(loss, *args):
    """What ``jax.grad`` itself raises, to compare with."""
    with pytest.raises(Exception) as alone:  # noqa: PT011
        jax.grad(loss)(*args)
    with pytest.raises(type(alone.value)) as caught:
        jaxcheck.check(loss, *args)
    assert type(caught.value) is type(alone.value)
    return str(alone.value), caught.value


def test_mismatched_shapes_inside_the_loss():
    args = ({"w": array(2, 3)}, array(4))
    alone, error = same_as_without_us(mismatched_loss_of_mine, *args)
    assert str(error) == alone
    assert not isinstance(error, JaxcheckError)
    assert "mismatched_loss_of_mine" in user_frames(error)


def concretizing_loss_of_mine(p):
    if p[0] > 0:
        return jnp.sum(p)
    return -jnp.sum(p)


def test_a_loss_that_cannot_be_traced():
    _, error = same_as_without_us(jax.jit(concretizing_loss_of_mine), X)
    assert isinstance(error, jax.errors.TracerBoolConversionError)
    assert "concretizing_loss_of_mine" in user_frames(error)


def missing_key_loss_of_mine(p):
    return jnp.sum(p["v"])


def test_a_missing_parameter():
    alone, error = same_as_without_us(missing_key_loss_of_mine, {"w": X})
    assert isinstance(error, KeyError)
    assert str(error) == alone
    assert "missing_key_loss_of_mine" in user_frames(error)


def test_a_missing_argument():
    with pytest.raises(TypeError, match="batch"):
        jaxcheck.check(lambda params, batch: jnp.sum(params), X)


def test_what_a_custom_rule_raises_comes_through_untouched():
    def rule_of_mine(x, cotangent):
        raise OwnError(3, "no backward pass")

    with pytest.raises(OwnError, match="no backward pass") as caught:
        jaxcheck.check(lambda p: jnp.sum(edited(rule_of_mine)(p)), X)
    assert "rule_of_mine" in user_frames(caught.value)


def test_a_loss_without_a_reverse_rule():
    """Reverse-mode through while_loop: JAX's own words, not an internal failure."""

    def loss(p):
        return jax.lax.while_loop(lambda s: jnp.sum(s) < 5, lambda s: s * 1.5, p)[0]

    with pytest.raises(ValueError, match="while_loop"):
        jax.grad(loss)(X)
    with pytest.raises(ValueError, match="while_loop"):
        jaxcheck.check(loss, X)


def test_inside_jit_it_says_that_it_cannot_be_there():
    @jax.jit
    def step(p):
        jaxcheck.check(norm, p)
        return p

    with pytest.raises(InvalidInputError, match="jit"):
        step(X)
