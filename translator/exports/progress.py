"""Shows how a run is going: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections import deque
from time import monotonic
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from translator.exports.rows import Counts, ProgressMode

LINE_SECONDS = 10.0
WINDOW_SECONDS = 30.0
"""Rates are means over this time: a mean over the whole run would hide that it has become slower."""


class Reporter:
    """Use as a context manager around a run.

    Args:
        mode: ``auto`` is a bar where standard error is a terminal, else plain lines.
        stream: where to write; by default standard error.
    """

    def __init__(self, mode: ProgressMode = "auto", stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        if mode == "auto":
            mode = "bar" if self._stream.isatty() else "plain"
        self._mode = mode
        self._bar: Progress | None = None
        # Time, rows, tokens and share at recent moments, for the rates.
        self._moments: deque[tuple[float, int, int, float | None]] = deque()
        self._last_line = monotonic()

    def __enter__(self) -> Self:
        if self._mode == "bar":
            console = Console(file=self._stream)
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(None), TaskProgressColumn(), console=console
            )
            self._task = self._bar.add_task("", total=1.0)
            # The figures have a line of their own: beside the bar they would leave it no room.
            self._live = Live(self._bar, console=console, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._live.stop()
            self._bar = None

    def say(self, message: str) -> None:
        """A line for the user, above the bar."""
        if self._bar:
            self._live.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=self._stream, flush=True)

    def update(self, name: str, counts: Counts, tokens: int | None, fraction: float | None) -> None:
        """Show the present state; cheap enough to be called after every window.

        Args:
            name: the file at work.
            counts: totals so far.
            tokens: tokens through the model so far; None when unknown.
            fraction: share of the whole run that is done; None when unknown.
        """
        if self._mode == "none":
            return
        now = monotonic()
        self._moments.append((now, counts.rows, tokens or 0, fraction))
        while len(self._moments) > 2 and now - self._moments[0][0] > WINDOW_SECONDS:
            self._moments.popleft()
        figures = self._figures(counts, tokens)
        if self._bar:
            if (seconds := self._seconds_left()) is not None:
                figures += f", {_duration(seconds)} left"
            known = fraction is not None
            self._bar.update(self._task, description=name, completed=fraction or 0.0, total=1.0 if known else None)
            self._live.update(Group(self._bar, Text(figures)))
        if self._mode == "plain" and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            share = f", {fraction:.1%}" if fraction is not None else ""
            left = f", {_duration(seconds)} left" if (seconds := self._seconds_left()) is not None else ""
            self.say(f"{name}: {figures}{share}{left}")

    def _figures(self, counts: Counts, tokens: int | None) -> str:
        parts = [f"{counts.rows:,} rows"]
        (start, rows, first_tokens, _), (now, *_) = self._moments[0], self._moments[-1]
        seconds = now - start
        if seconds > 0:
            parts.append(f"{(counts.rows - rows) / seconds:,.0f} rows/s")
            if tokens is not None:
                parts.append(f"{(tokens - first_tokens) / seconds:,.0f} tokens/s")
        if done := counts.translated:
            parts.append(f"{counts.repeated / done:.0%} repeats")
        if counts.failed:
            parts.append(f"{counts.failed:,} failed")
        return ", ".join(parts)

    def _seconds_left(self) -> float | None:
        """From the recent speed; None when nothing can be said."""
        (start, _, _, first), (now, _, _, last) = self._moments[0], self._moments[-1]
        if first is None or last is None or last <= first:
            return None
        return (1 - last) * (now - start) / (last - first)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
