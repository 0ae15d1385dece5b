"""Say how far a long computation is, without disturbing a short one.

``rich`` is imported only when a bar appears. Nothing here decides what is computed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol

from jaxcheck.errors import InvalidInputError
from jaxcheck.reports.numbers import count, duration, percent

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

DELAY = 1.0  # seconds of silence before a bar appears unasked
INTERVAL = 10.0  # seconds between plain lines

ProgressOption = bool | Callable[[int, int], object] | None


class Advance(Protocol):
    """Says that ``number`` more units of work are done."""

    def __call__(self, number: int = 1, /) -> None:
        """Count ``number`` more units of work."""
        ...


def progress_for(progress: ProgressOption, total: int, what: str) -> Progress:
    """Choose how progress is shown.

    Args:
        progress: None shows a bar if standard error is a terminal and the work takes
            longer than a second; True always shows something, on a file a line every
            ten seconds at most; False shows nothing; a function is called with
            ``(done, total)`` after every piece of work.
        total: units of work that are expected; more of them do no harm.
        what: what is going on, e.g. ``"checking"``.

    Returns:
        A context manager that gives ``advance(number)``.

    Raises:
        InvalidInputError: if ``progress`` is none of these.

    Example:
        >>> with progress_for(print, 3, "checking") as advance:
        ...     advance(1)
        ...     advance(2)
        1 3
        3 3
    """
    stream = sys.stderr
    watched = is_terminal(stream)
    if progress is True and not watched:
        return Lines(total, what, stream)
    if progress is True or (progress is None and watched):
        return Bar(total, what, stream, delay=0.0 if progress else DELAY)
    if progress is None or progress is False:
        return Progress(total, what)
    if callable(progress):
        return Calls(total, what, progress)
    raise InvalidInputError(
        "`progress` must be None, True, False or a function of (done, total); "
        f"it is {progress!r}. Pass None to see a bar only where a run takes long."
    )


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a bar can be drawn and erased on ``stream``."""
    if stream is None or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return stream.isatty()


class Progress:
    """Counts in silence; the ways to show it derive from this class."""

    def __init__(self, total: int, what: str) -> None:
        self.total = total
        self.what = what
        self.done = 0

    def __enter__(self) -> Advance:
        self.start()
        return self.advance

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def advance(self, number: int = 1, /) -> None:
        """Count ``number`` more units of work."""
        self.done += number
        self.total = max(self.total, self.done)
        self.show()

    def start(self) -> None:
        """The work begins."""

    def show(self) -> None:
        """The count has changed."""

    def stop(self) -> None:
        """The work has ended, or an exception ends it."""


class Calls(Progress):
    """Tells a function of the user."""

    def __init__(
        self, total: int, what: str, tell: Callable[[int, int], object]
    ) -> None:
        super().__init__(total, what)
        self.tell = tell

    def show(self) -> None:
        """Call the function; what it raises goes through."""
        self.tell(self.done, self.total)


class Lines(Progress):
    """Writes a line now and then: for files and CI."""

    def __init__(self, total: int, what: str, stream: IO[str] | None) -> None:
        super().__init__(total, what)
        self.stream = stream
        self.began = self.due = time.monotonic()

    def show(self) -> None:
        """Write a line if the last one is long enough ago."""
        now = time.monotonic()
        if self.stream is None or now < self.due:
            return
        self.due = now + INTERVAL
        part = percent(100 * self.done // max(self.total, 1) / 100)
        self.stream.write(
            f"jaxcheck: {self.what} {count(self.done)}/{count(self.total)} ({part}), "
            f"{duration(now - self.began)}\n"
        )
        self.stream.flush()


class Bar(Progress):
    """Draws a bar on a terminal and erases it at the end.

    A timer draws it, because the first piece of work includes compilation and may
    take long before there is anything to count.
    """

    def __init__(self, total: int, what: str, stream: IO[str], delay: float) -> None:
        super().__init__(total, what)
        self.stream = stream
        self.bar: RichProgress | None = None
        self.ended = False
        self.lock = threading.Lock()
        self.timer = threading.Timer(delay, self.draw)
        self.timer.daemon = True

    def start(self) -> None:
        """Wait for the bar's time to come."""
        self.timer.start()

    def draw(self) -> None:
        """Make the bar visible, unless the work has ended."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        with self.lock:
            if self.ended:
                return
            self.bar = Progress(
                TextColumn("jaxcheck: {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(file=self.stream),
                transient=True,
            )
            self.bar.add_task(self.what, total=self.total, completed=self.done)
            self.bar.start()

    def show(self) -> None:
        """Move the bar, if there is one yet."""
        with self.lock:
            if self.bar is not None:
                task = self.bar.task_ids[0]
                self.bar.update(task, completed=self.done, total=self.total)

    def stop(self) -> None:
        """Erase the bar, or prevent it."""
        self.timer.cancel()
        with self.lock:
            self.ended = True
            if self.bar is not None:
                self.bar.stop()
