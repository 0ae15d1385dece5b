"""The command line: ``jaxcheck check FILE.py:problem`` and ``jaxcheck doctor``.

Exit status: 0 correct, 1 wrong, 2 inconclusive, 3 bad usage or input. A status of 0 or
1 is always an answer: whatever goes wrong on the way to it, in the user's file or in
jaxcheck, ends with 3. What is correct is decided in ``jaxcheck.checks`` alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from jaxcheck.errors import InvalidInputError
from jaxcheck.reports.values import Verdict

CORRECT, WRONG, INCONCLUSIVE, BAD_INPUT = range(4)

STATUS: dict[Verdict, int] = {
    Verdict.CORRECT: CORRECT,
    Verdict.WRONG: WRONG,
    Verdict.INCONCLUSIVE: INCONCLUSIVE,
    Verdict.NOT_CHECKED: INCONCLUSIVE,
}

EXIT_STATUS = (
    "exit status: 0 correct, 1 wrong, 2 inconclusive, 3 bad usage or input, "
    "an exception of the problem included"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the command's name; None takes those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: with status 3 on bad usage, with 0 after ``--help``.
    """
    options = vars(_parser().parse_args(argv))
    command: Callable[[dict[str, Any]], int] = options.pop("command")
    try:
        return command(options)
    except InvalidInputError as error:
        _complain(str(error))
    except (Exception, SystemExit) as error:
        # A problem that calls sys.exit() must not end in a status that is an answer.
        _show(error)
    return BAD_INPUT


def _complain(message: str) -> None:
    sys.stderr.write(f"jaxcheck: {message}\n")


def _show(error: BaseException) -> None:
    """Print a traceback that begins in the user's code, if it comes from there."""
    begin = error.__traceback__
    while begin is not None and _is_ours(begin.tb_frame):
        begin = begin.tb_next
    traceback.print_exception(type(error), error, begin or error.__traceback__)


def _is_ours(frame: FrameType) -> bool:
    package, _, _ = str(frame.f_globals.get("__name__")).partition(".")
    return package in ("jaxcheck", "importlib")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose own errors exit with ``BAD_INPUT`` (argparse uses 2)."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="jaxcheck", description="Verify the gradients of JAX programs."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_check(
        # An option that is not given is not passed on: the defaults are those of
        # `jaxcheck.check`, in one place.
        commands.add_parser(
            "check",
            help="is the gradient right?",
            description="Check a gradient at one point, as jaxcheck.check does.",
            epilog=EXIT_STATUS,
            argument_default=argparse.SUPPRESS,
        )
    )
    _add_doctor(
        commands.add_parser(
            "doctor",
            help="can this installation be trusted?",
            description="Show versions and devices; probe the backend for known traps.",
            epilog="exit status: 0, or 2 if a trap can make a verdict wrong",
        )
    )
    return parser


def _add_check(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``jaxcheck check``: its keyword arguments, and the output."""
    add = parser.add_argument
    add(
        "target",
        metavar="FILE.py:problem",
        help="a function without arguments that returns (loss_fn, params, *args), "
        "in a file or in a module (package.module:problem)",
    )
    add(
        "--mode",
        choices=["auto", "exhaustive", "sampled", "directional"],
        help="which scalars are compared",
    )
    add("--samples", type=int, metavar="N", help="coordinates per leaf, if sampled")
    add("--directions", type=int, metavar="N", help="probes per leaf, if directional")
    add(
        "--precision",
        choices=["float64", "native"],
        help="difference the program in float64, or in its own dtypes",
    )
    add(
        "--stop-gradient",
        choices=["frozen", "transparent"],
        help="take stop_gradient as part of the program, or look through it",
    )
    add("--rtol", type=float, metavar="X", help="relative tolerance")
    add("--atol", type=float, metavar="X", help="absolute tolerance")
    add("--budget", type=int, metavar="N", help="loss evaluations that may be spent")
    add(
        "--expect-zero",
        action="append",
        metavar="PLACE",
        help="a leaf path, FILE.py:LINE or FILE.py:FUNCTION where no gradient is "
        "expected; may be given again",
    )
    add("--seed", type=int, metavar="N", help="the key is jax.random.key(N)")
    add("--has-aux", action="store_true", help="loss_fn returns (loss, aux)")
    add(
        "--no-locate",
        action="store_false",
        dest="locate",
        help="do not look for the equation that is wrong",
    )
    add("--progress", action=argparse.BooleanOptionalAction, help="show progress")
    add("--quiet", action="store_true", default=False, help="print no report")
    _add_json(parser)
    parser.set_defaults(command=_check)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.set_defaults(command=_doctor)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        metavar="FILE",
        default=None,
        help="also write the result as JSON; - writes it to standard output, "
        "and what people read to standard error",
    )


def _check(options: dict[str, Any]) -> int:
    """``jaxcheck check``: load the problem, ask, print, and translate the verdict."""
    json_file: str | None = options.pop("json")
    quiet: bool = options.pop("quiet")
    with _people_read(json_file):
        loss_fn, params, *args = load_problem(options.pop("target"))
        # Imported late: the problem may set up JAX (platform, flags) when it is loaded.
        import jax

        from jaxcheck.checks import check
        from jaxcheck.gradients.text import print_report

        if "seed" in options:
            options["key"] = jax.random.key(options.pop("seed"))
        report = check(loss_fn, params, *args, **options)
        if not quiet:
            print_report(report)
    _write_json(report.to_dict(), json_file)
    return STATUS[report.verdict]


def _doctor(options: dict[str, Any]) -> int:
    """``jaxcheck doctor``: describe the installation, print, and judge it."""
    from jaxcheck.doctor import blocks, examine
    from jaxcheck.reports.tables import print_blocks

    json_file: str | None = options["json"]
    with _people_read(json_file):
        installation = examine()
        print_blocks(blocks(installation))
    _write_json(installation.to_dict(), json_file)
    return CORRECT if installation.trustworthy else INCONCLUSIVE


def _people_read(json_file: str | None) -> contextlib.AbstractContextManager[Any]:
    """Send what is printed to standard error if standard output is for JSON alone."""
    if json_file == "-":
        return contextlib.redirect_stdout(sys.stderr)
    return contextlib.nullcontext()


def _write_json(result: dict[str, Any], json_file: str | None) -> None:
    if json_file is None:
        return
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(json_file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(
            f"`--json {json_file}` cannot be written: {error.strerror}."
        ) from error


# ---- the user's problem --------------------------------------------------------------


def load_problem(target: str) -> tuple[Any, ...]:
    """Load ``FILE.py:problem`` or ``package.module:problem`` and call it.

    Args:
        target: where the problem is, as on the command line.

    Returns:
        What ``problem()`` returns: ``(loss_fn, params, *args)``.

    Raises:
        InvalidInputError: if there is no such function or it returns something else.
            What the user's own code raises goes through as it is.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise InvalidInputError(
            f"The target must be FILE.py:problem or package.module:problem; "
            f"got `{target}`. Name the function after a colon."
        )
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    problem = getattr(module, name, None)
    if not callable(problem):
        got = "nothing of that name" if problem is None else type(problem).__name__
        raise InvalidInputError(
            f"`{target}` must name a function in `{place}`; got {got}. "
            f"Define `def {name}(): return loss_fn, params, batch`."
        )
    result: Any = problem()
    if not isinstance(result, tuple) or len(result) < 2 or not callable(result[0]):
        raise InvalidInputError(
            f"`{target}` must return (loss_fn, params, *args), a function first; "
            f"it returned {_described(result)}."
        )
    return result


def _described(result: object) -> str:
    if not isinstance(result, tuple):
        return type(result).__name__
    return f"({', '.join(type(part).__name__ for part in result)})"


def _load_file(path: Path) -> ModuleType:
    """Import a file as ``python FILE.py`` would, its folder on the path."""
    if not path.is_file():
        raise InvalidInputError(f"`{path}` is not a file.")
    # A name of its own: a file called optax.py must not replace a module.
    name = f"_jaxcheck_problem_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by its name
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    """Import a module as ``python -m`` would, the working folder on the path."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Something else that is missing is the user's own exception.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise InvalidInputError(
            f"There is no module `{name}`; for a file write {name}.py:problem."
        ) from error
