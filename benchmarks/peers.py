"""Time gradient checkers on the same function, side by side in one process.

The function is the tanh network 64-64-64-10 with softmax cross-entropy in float64, on a
batch of 32. Every checker runs once per round, in the same order, so that a slow spell
of the machine hits all of them; medians and ratios are taken over the rounds.

Each checker is also shown the same gradient with one coordinate set to zero. A fast
answer that misses it is not the same answer.

``first call`` is the checker's first run in this process. ``compile included`` rows
repeat it with JAX's caches cleared before every round.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.test_util
import numpy as np

import jaxcheck
from benchmarks import models, results

REFERENCE = "torch gradcheck, slow"

# The rtol of torch's gradcheck; scipy returns a norm, and its user says what is small.
SCIPY_RTOL = 1e-3


@dataclasses.dataclass(frozen=True)
class Checker:
    """One way to check a gradient.

    Attributes:
        name: what the table calls it.
        covers: what it compares.
        verdict: run the check; ``"correct"``, ``"wrong"`` or ``"inconclusive"``.
        warm_up: run untimed before every round.
        cold: whether JAX's caches are cleared instead.
    """

    name: str
    covers: str
    verdict: Callable[[], str]
    warm_up: Callable[[], object]
    cold: bool = False


@dataclasses.dataclass(frozen=True)
class Fault:
    """One coordinate whose gradient is set to zero: where it is in the first kernel."""

    index: tuple[int, ...]

    def mask(self, shape: tuple[int, ...]) -> np.ndarray:
        mask = np.ones(shape)
        mask[self.index] = 0.0
        return mask


def typical_coordinate(problem: models.Problem) -> Fault:
    """The coordinate of the first kernel whose gradient is nearest to the RMS."""
    grads = jax.grad(problem.loss_fn)(problem.params, problem.inputs, problem.labels)
    size = np.abs(np.asarray(grads[0][0]))
    nearest = np.argmin(np.abs(size - np.sqrt(np.mean(size**2))))
    return Fault(tuple(int(i) for i in np.unravel_index(nearest, size.shape)))


# --- JAX, jaxcheck and scipy: one loss ------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def masked_backward(x: jax.Array, fault: Fault) -> jax.Array:
    """The identity, whose backward pass zeroes the coordinate of ``fault``."""
    return x


masked_backward.defvjp(
    lambda x, fault: (x, None),
    lambda fault, _, cotangent: (cotangent * fault.mask(cotangent.shape),),
)


def with_fault(problem: models.Problem, fault: Fault) -> models.Problem:
    def loss_fn(params, inputs, labels):
        (kernel, bias), *rest = params
        params = [(masked_backward(kernel, fault), bias), *rest]
        return problem.loss_fn(params, inputs, labels)

    return problem._replace(loss_fn=loss_fn)


def jaxcheck_checkers(problem: models.Problem) -> Iterator[Checker]:
    for mode, covers in (("exhaustive", "coordinates"), ("directional", "directions")):
        verdict = functools.partial(verdict_of_jaxcheck, problem, mode)
        yield Checker(f"jaxcheck, {mode}", covers, verdict, warm_up=verdict)
        name = f"jaxcheck, {mode}, compile included"
        yield Checker(name, covers, verdict, warm_up=verdict, cold=True)


def verdict_of_jaxcheck(problem: models.Problem, mode: str) -> str:
    return jaxcheck.check(*problem, mode=mode).verdict.value


def verdict_of(passed: bool) -> str:
    """The verdict of a checker that knows two."""
    return "correct" if passed else "wrong"


def jax_checkers(problem: models.Problem) -> Iterator[Checker]:
    loss_fn = jax.jit(lambda params: problem.loss_fn(params, *problem[2:]))

    def verdict() -> str:
        try:
            jax.test_util.check_grads(
                loss_fn, (problem.params,), order=1, modes=("rev",)
            )
        except AssertionError:
            return verdict_of(False)
        return verdict_of(True)

    yield Checker("jax check_grads, rev", "one direction", verdict, warm_up=verdict)


def scipy_checkers(problem: models.Problem) -> Iterator[Checker]:
    from scipy.optimize import check_grad

    theta, unravel = jax.flatten_util.ravel_pytree(problem.params)
    loss_fn = jax.jit(lambda theta: problem.loss_fn(unravel(theta), *problem[2:]))
    grad_fn = jax.jit(jax.grad(loss_fn))
    theta = np.asarray(theta)

    def verdict() -> str:
        difference = check_grad(loss_fn, grad_fn, theta)
        return verdict_of(difference <= SCIPY_RTOL * np.linalg.norm(grad_fn(theta)))

    def compile_both() -> None:
        jax.block_until_ready((loss_fn(theta), grad_fn(theta)))

    yield Checker("scipy check_grad", "coordinates", verdict, warm_up=compile_both)


# --- torch: the same function as its users write it -----------------------------------


def torch_checkers(problem: models.Problem, fault: Fault | None) -> Iterator[Checker]:
    import torch
    from torch.nn import functional as F

    class MaskedBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * torch.from_numpy(fault.mask(cotangent.shape))

    def broken(kernel):
        return kernel if fault is None else MaskedBackward.apply(kernel)

    inputs = torch.from_numpy(problem.inputs)
    labels = torch.from_numpy(problem.labels).long()

    def plain(*values):
        kernels, biases = [broken(values[0]), *values[2::2]], values[1::2]
        hidden = inputs
        for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
            hidden = torch.tanh(hidden @ kernel + bias)
        return F.cross_entropy(hidden @ kernels[-1] + biases[-1], labels)

    layers: list[torch.nn.Module] = []
    for kernel, _ in problem.params:
        layers += [torch.nn.Linear(*kernel.shape, dtype=torch.float64), torch.nn.Tanh()]
    network = torch.nn.Sequential(*layers[:-1])
    names = [name for name, _ in network.named_parameters()]

    def module(*values):
        values = (broken(values[0].T).T, *values[1:])
        parameters = dict(zip(names, values, strict=True))
        logits = torch.func.functional_call(network, parameters, (inputs,))
        return F.cross_entropy(logits, labels)

    leaves = [leaf for pair in problem.params for leaf in pair]
    plain_values = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    # torch's Linear keeps its kernel transposed.
    module_values = [torch.tensor(leaf.T, requires_grad=True) for leaf in leaves]

    def checker(name, covers, function, values, fast_mode):
        def verdict() -> str:
            passed = torch.autograd.gradcheck(
                function, values, fast_mode=fast_mode, raise_exception=False
            )
            return verdict_of(passed)

        return Checker(name, covers, verdict, warm_up=lambda: function(*values))

    yield checker(REFERENCE, "coordinates", plain, plain_values, False)
    yield checker(
        f"{REFERENCE}, functional_call", "coordinates", module, module_values, False
    )
    yield checker("torch gradcheck, fast", "one direction", plain, plain_values, True)


# --- The race -------------------------------------------------------------------------


def checkers(
    problem: models.Problem, fault: Fault | None
) -> tuple[list[Checker], list]:
    """All installed checkers of ``problem``'s gradient, and what is not installed."""
    in_jax = problem if fault is None else with_fault(problem, fault)
    found: list[Checker] = []
    missing: list[str] = []
    for package, make in (
        ("jaxcheck", lambda: jaxcheck_checkers(in_jax)),
        ("torch", lambda: torch_checkers(problem, fault)),
        ("scipy", lambda: scipy_checkers(in_jax)),
        ("jax", lambda: jax_checkers(in_jax)),
    ):
        try:
            found.extend(make())
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            missing.append(package)
    return found, missing


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def race(problem: models.Problem, repetitions: int) -> tuple[list[dict], list[str]]:
    """Run every checker ``repetitions`` times, interleaved; one row a checker."""
    found, missing = checkers(problem, None)
    faulty, _ = checkers(problem, typical_coordinate(problem))
    rows: list[dict[str, Any]] = []
    for checker, on_faulty in zip(found, faulty, strict=True):
        elapsed, verdict = seconds(checker.verdict)
        rows.append(
            {
                "checker": checker.name,
                "covers": checker.covers,
                "verdict": verdict,
                "verdict_with_fault": on_faulty.verdict(),
                "first_call_seconds": None if checker.cold else elapsed,
                "seconds": [],
            }
        )
    for _ in range(repetitions):
        for checker, row in zip(found, rows, strict=True):
            (jax.clear_caches if checker.cold else checker.warm_up)()
            row["seconds"].append(seconds(checker.verdict)[0])
    add_ratios(rows)
    return rows, missing


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """How many times faster than the reference, round by round."""
    reference = next((r["seconds"] for r in rows if r["checker"] == REFERENCE), None)
    for row in rows:
        row["median_seconds"] = statistics.median(row["seconds"])
        if reference is not None:
            pairs = zip(reference, row["seconds"], strict=True)
            row["times_faster"] = [theirs / ours for theirs, ours in pairs]


def table(
    rows: Sequence[dict[str, Any]], missing: Sequence[str]
) -> Iterator[list[str]]:
    for row in rows:
        first = row["first_call_seconds"]
        yield [
            row["checker"],
            row["covers"],
            "–" if first is None else f"{first:.3g}",
            results.spread(row["seconds"]),
            results.spread(row["times_faster"], "×") if "times_faster" in row else "–",
            row["verdict"],
            row["verdict_with_fault"],
        ]
    for package in missing:
        yield [package, "not installed", *("–" * 5)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = results.parser(__doc__, repetitions=5)
    parser.add_argument("--sizes", default="64,64,64,10", help="layers of the network")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args(arguments)
    with jax.enable_x64(True):
        sizes = [int(size) for size in options.sizes.split(",")]
        problem = models.mlp(sizes, options.batch)
        rows, missing = race(problem, options.repetitions)
    header = (
        "checker|compares|first call, s|seconds|faster than torch slow|right gradient"
    )
    print(f"{problem.size} parameters, float64, batch {options.batch}\n")
    results.print_table(
        [*header.split("|"), "one wrong coordinate"], table(rows, missing)
    )
    settings = {
        "sizes": sizes,
        "batch": options.batch,
        "parameters": problem.size,
        "repetitions": options.repetitions,
        "not_installed": missing,
    }
    results.write(options.output, "peers", results.environment(), settings, rows)


if __name__ == "__main__":
    main()
