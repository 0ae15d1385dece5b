"""Progress: silent where it would disturb, and gone when it ends."""

import io
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from jaxcheck.errors import InvalidInputError
from jaxcheck.reports import progress as progress_module
from jaxcheck.reports.progress import Bar, Lines, Progress, progress_for

SHOW_CURSOR = "\x1b[?25h"
HIDE_CURSOR = "\x1b[?25l"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Standard error is a terminal of which the text can be read."""
    stream = Terminal()
    monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for variable in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    return stream


@pytest.fixture
def file(monkeypatch):
    """Standard error is a file."""
    stream = io.StringIO()
    monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=stream))
    return stream


def wait_for(condition):
    """Wait for another thread; only a failure takes as long as the limit."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- who sees what -------------------------------------------------------------------


def test_unasked_it_stays_silent_on_a_file(file):
    with progress_for(None, 10, "checking") as advance:
        advance(10)
    assert file.getvalue() == ""


def test_unasked_it_stays_silent_while_a_run_is_short(terminal):
    with progress_for(None, 10, "checking") as advance:
        advance(10)
    assert terminal.getvalue() == ""


def test_unasked_it_shows_a_bar_when_a_run_is_long(terminal, monkeypatch):
    monkeypatch.setattr(progress_module, "DELAY", 0.01)
    with progress_for(None, 10, "checking") as advance:
        advance(3)
        wait_for(lambda: "3/10" in terminal.getvalue())
    assert "jaxcheck: checking" in terminal.getvalue()


def test_bar_appears_while_the_first_piece_of_work_runs(terminal):
    with progress_for(True, 10, "compiling"):
        wait_for(lambda: "0/10" in terminal.getvalue())


def test_bar_moves(terminal):
    with progress_for(True, 10, "checking") as advance:
        wait_for(lambda: "0/10" in terminal.getvalue())
        advance(4)
        wait_for(lambda: "4/10" in terminal.getvalue())
        advance()
        wait_for(lambda: "5/10" in terminal.getvalue())


@pytest.mark.parametrize("stream", ["terminal", "file"])
def test_false_never_shows_anything(stream, request, monkeypatch):
    stderr = request.getfixturevalue(stream)
    monkeypatch.setattr(progress_module, "DELAY", 0.0)
    with progress_for(False, 10, "checking") as advance:
        advance(10)
    assert stderr.getvalue() == ""


def test_dumb_terminal_gets_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_for(True, 1, "checking"), Lines)
    assert type(progress_for(None, 1, "checking")) is Progress


def test_process_without_standard_error_runs_on(monkeypatch):
    monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=None))
    for option in (None, True, False):
        with progress_for(option, 1, "checking") as advance:
            advance()


# ---- lines and calls -----------------------------------------------------------------


def test_file_gets_a_line_now_and_then(file, monkeypatch):
    times = iter((100.0, 100.5, 101.0, 110.4, 110.6, 111.0, 130.0))
    clock = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr(progress_module, "time", clock)
    with progress_for(True, 2000, "checking") as advance:
        for _ in range(6):
            advance(250)
    assert file.getvalue().splitlines() == [
        "jaxcheck: checking 250/2,000 (12 %), 500 ms",
        "jaxcheck: checking 1,000/2,000 (50 %), 10.6 s",
        "jaxcheck: checking 1,500/2,000 (75 %), 30.0 s",
    ]


def test_function_is_told_the_count_and_the_total():
    told = []
    with progress_for(
        lambda done, total: told.append((done, total)), 5, "x"
    ) as advance:
        advance()
        advance(4)
        advance(2)
    assert told == [(1, 5), (5, 5), (7, 7)]


def test_error_of_the_function_goes_through():
    def stop(done, total):
        raise KeyError(done)

    progress = progress_for(stop, 5, "checking")
    with pytest.raises(KeyError), progress as advance:
        advance()


@pytest.mark.parametrize("value", [1, 0, "yes", 2.5, (), [print]])
def test_other_values_are_named(value):
    with pytest.raises(InvalidInputError) as caught:
        progress_for(value, 5, "checking")
    assert "`progress` must be" in str(caught.value)
    assert repr(value) in str(caught.value)


# ---- how it ends ---------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_bar_leaves_the_terminal_clean(error, terminal):
    stdout, stderr = sys.stdout, sys.stderr

    def interrupted():
        with progress_for(True, 10, "checking") as advance:
            advance(3)
            wait_for(lambda: "3/10" in terminal.getvalue())
            raise error

    with pytest.raises(error):
        interrupted()
    text = terminal.getvalue()
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    # The last thing that is sent erases the line on which the bar was.
    assert text.endswith("\x1b[2K")
    assert (sys.stdout, sys.stderr) == (stdout, stderr)


def test_bar_that_never_appeared_leaves_nothing_behind(terminal):
    bar = progress_for(None, 10, "checking")
    assert isinstance(bar, Bar)
    with pytest.raises(KeyboardInterrupt), bar:
        raise KeyboardInterrupt
    bar.timer.join(timeout=30)
    assert not bar.timer.is_alive()
    assert terminal.getvalue() == ""


def test_bar_does_not_appear_after_the_end(terminal):
    bar = progress_for(None, 10, "checking")
    with bar:
        pass
    bar.draw()
    assert terminal.getvalue() == ""


# ---- what it costs -------------------------------------------------------------------

IMPORTS = """
import sys
import jaxcheck.gradients.text, jaxcheck.reports.numbers, jaxcheck.reports.progress
import jaxcheck.reports.tables
from jaxcheck.reports.progress import progress_for
for option in (None, False, True, print):
    with progress_for(option, 1, "checking") as advance:
        pass
print([name for name in sys.modules if name.split(".")[0] == "rich"])
"""


def test_rich_is_not_imported_before_it_draws():
    finished = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert finished.stdout == "[]\n"
