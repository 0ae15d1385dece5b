"""One line that says how training goes, brought up to date in place."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.options import require_count
from jaxcheck.reports.progress import INTERVAL, ProgressOption, is_terminal
from jaxcheck.reports.tables import encodable, shortened

_ERASED = "\r\x1b[2K"


class Live:
    """Shows nothing; the ways to show something derive from this class."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.ended = False

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def show(self, done: int, text: str) -> None:
        """Bring the line up to date.

        Args:
            done: steps of ``total``.
            text: what else there is to say.
        """

    def stop(self) -> None:
        """The loop has ended, or an exception ends it; nothing is shown from now on."""
        self.ended = True


class Calls(Live):
    """Tells a function of the user."""

    def __init__(self, total: int, tell: Callable[[int, int], object]) -> None:
        super().__init__(total)
        self.tell = tell

    def show(self, done: int, text: str) -> None:
        """Call the function; what it raises goes through."""
        self.tell(done, max(done, self.total))


class Written(Live):
    """Writes the line to a stream."""

    def __init__(self, total: int, stream: IO[str]) -> None:
        super().__init__(total)
        self.stream = stream
        self.in_place = is_terminal(stream)
        self.due = 0.0
        self.last = ""

    def show(self, done: int, text: str) -> None:
        """Draw over the last line, or on a file add one if that is long enough ago."""
        total = max(done, self.total)
        self.last = encodable(f"step {done:,}/{total:,} · {text}", self._encoding())
        if self.in_place:
            width = shutil.get_terminal_size().columns - 1
            self._write(_ERASED + shortened(self.last, width))
        elif time.monotonic() >= self.due:
            self.due = time.monotonic() + INTERVAL
            self._write(self.last + "\n")
            self.last = ""

    def stop(self) -> None:
        """Leave the last line where it is."""
        if self.last and not self.ended:
            self._write("\n" if self.in_place else self.last + "\n")
        super().stop()

    def _encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def live_for(progress: ProgressOption, total: int) -> Live:
    """Choose how the line is shown; see ``History.live``.

    Raises:
        InvalidInputError: if ``progress`` or ``total`` is nothing that can be used.
    """
    require_count("History.live", "total", total, " of steps")
    stream = sys.stderr
    if progress is True or (progress is None and is_terminal(stream)):
        return Written(total, stream)
    if progress is None or progress is False:
        return Live(total)
    if callable(progress):
        return Calls(total, progress)
    raise InvalidInputError(
        "`History.live(progress=...)` must be None, True, False or a function of "
        f"(done, total); it is {progress!r}."
    )
