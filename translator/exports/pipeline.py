"""Translates export files: windows of rows, read ahead, translated side by side, written in order.

A window's comments go to the back end once each, sorted by length, so that batches hold comments of like length. A
bounded memo keeps what was translated lately, so that a comment that comes again costs nothing. Memory is
bounded by the windows under way, the memo and the back end's cache, whatever the size of the file.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Protocol

from translator.exports.backends import Backend
from translator.exports.memo import Memo
from translator.exports.progress import Reporter
from translator.exports.rows import (
    Columns,
    Counts,
    ExportError,
    ExportStopped,
    Failure,
    Outcome,
    Position,
    Row,
    Table,
)
from translator.exports.work import Sink

MAX_WINDOW_CHARS = 4 * 2**20
"""A window ends early when its rows are this long together, so that rows with large other columns stay bounded."""
WINDOW = 512
MAX_WINDOWS = 16
"""Windows under way at a time. Where most comments are repeats it takes several to fill a batch."""
CHECKPOINT_SECONDS = 1.0


class Job(Protocol):
    """One file of a run."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def columns(self) -> Columns:
        """What to translate."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the input, for the share that is done; 0 when unknown."""
        ...

    def open(self) -> tuple[Table, Sink]:
        """Open input and output, at the checkpoint where there is one.

        Raises:
            ExportError: the input has changed since, or another run is at work.
        """
        ...


@dataclass(slots=True)
class Summary:
    """What a run did.

    Args:
        counts: totals of the files, what was done before a resumption included.
        here: rows of this run alone.
        seconds: of this run alone, loading of the models not included.
        interrupted: the signal that ended it, 0 for none.
        stopped: why it could not go on; empty when it could.
    """

    counts: Counts = field(default_factory=Counts)
    here: int = 0
    seconds: float = 0.0
    interrupted: int = 0
    stopped: str = ""

    @property
    def exit_code(self) -> int:
        """0 all fine, 1 rows failed, 3 stopped half way, 128 + signal (130 for Ctrl-C) interrupted."""
        if self.interrupted:
            return 128 + self.interrupted
        return 3 if self.stopped else 1 if self.counts.failed else 0

    def __str__(self) -> str:
        counts = self.counts
        lines = [
            f"{counts.rows:,} rows, {counts.translated:,} comments translated, "
            f"{counts.repeated:,} of them without the model (repeats)"
        ]
        for reason, count in sorted(counts.skipped.items()):
            lines.append(f"{count:,} skipped: {reason.replace('_', ' ')}")
        if counts.failed:
            lines.append(f"{counts.failed:,} rows failed")
        rate = self.here / self.seconds if self.seconds else 0.0
        resumed = f" for {self.here:,} of them" if self.here != counts.rows else ""
        lines.append(f"{self.seconds:,.1f} s{resumed}, {rate:,.0f} rows/s")
        return "\n".join(lines)


class _Interrupt:
    """Ctrl-C or SIGTERM once: finish the window. Twice: stop at once."""

    def __init__(self, reporter: Reporter) -> None:
        self.signal = 0
        self._reporter = reporter
        self._task = asyncio.current_task()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Only the main thread gets signals, and not every platform has handlers on its loop.
            with suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, self._on_signal, number)

    def remove(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError, ValueError, RuntimeError):
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if self.signal and self._task:
            self._task.cancel()
            return
        self.signal = int(number)
        self._reporter.say("finishing the rows under way; once more to stop at once")


_Window = tuple[list[Row], asyncio.Task[list[list[Outcome]]]]


class Pipeline:
    """Runs jobs one after the other on one back end.

    Args:
        backend: not yet started; the pipeline starts and closes it.
        reporter: shows progress.
        in_flight: comments at the back end at a time. More give fuller batches and, after a crash, more to do again.
        window: rows that are read, sorted by length and written together; 0: ``WINDOW``, or less for a small
            ``in_flight``.
        memo_bytes: memory for comments translated lately.
    """

    def __init__(
        self,
        backend: Backend,
        reporter: Reporter,
        in_flight: int = 1024,
        window: int = 0,
        memo_bytes: int = 32 * 2**20,
    ) -> None:
        self._backend = backend
        self._reporter = reporter
        self._window = window or min(WINDOW, in_flight)
        self._in_flight = in_flight
        self._memo = Memo(backend, memo_bytes)

    async def run(self, jobs: Sequence[Job]) -> Summary:
        """Translate all files.

        Raises:
            ExportError: the back end or a file cannot be used.
        """
        summary = Summary()
        interrupt = _Interrupt(self._reporter)
        interrupt.install()
        started = monotonic()
        try:
            await self._backend.start()
            started = monotonic()
            done, total = 0, sum(job.size for job in jobs)
            for job in jobs:
                if interrupt.signal:
                    break
                await self._job(job, summary, interrupt, (done, total))
                done += job.size
        except ExportStopped as error:
            summary.stopped = str(error)
        except OSError as error:  # the disk is full, or gone
            summary.stopped = f"the output cannot be written: {error}"
        except asyncio.CancelledError:
            if not interrupt.signal:
                raise
        finally:
            summary.seconds = monotonic() - started
            summary.interrupted = interrupt.signal
            interrupt.remove()
            await self._backend.close()
        return summary

    async def _job(self, job: Job, summary: Summary, interrupt: _Interrupt, share: tuple[int, int]) -> None:
        table, sink = job.open()
        counts = _copy(sink.counts)
        try:
            if not sink.complete:
                await self._translate_job(job, table, sink, counts, summary, interrupt, share)
            if not interrupt.signal or sink.complete:
                await asyncio.to_thread(sink.finish, table.finish)
        finally:
            summary.counts.add(counts)
            sink.close()

    async def _translate_job(
        self,
        job: Job,
        table: Table,
        sink: Sink,
        counts: Counts,
        summary: Summary,
        interrupt: _Interrupt,
        share: tuple[int, int],
    ) -> None:
        """Translate what is left of a file; at the end ``sink.complete`` says whether that was all."""
        position = sink.position
        if position == Position():
            sink.write(table.head())
        rows = table.rows(position)
        under_way: deque[_Window] = deque()
        saved = monotonic()
        problem = ""
        more = True
        try:
            while True:
                while (
                    more
                    and not interrupt.signal
                    and len(under_way) < MAX_WINDOWS
                    and self._memo.asked < self._in_flight
                ):
                    try:
                        window = await asyncio.to_thread(_take, rows, self._window)
                    except ExportError as error:
                        # What was read before the damage is still good.
                        problem, more = str(error), False
                        break
                    more = len(window) > 0
                    if more:
                        translation = self._memo.translate([row.cells for row in window])
                        under_way.append((window, asyncio.create_task(translation)))
                        await asyncio.sleep(0)  # lets it ask the back end, so that the limit above knows
                if not under_way:
                    break
                window, task = under_way[0]
                try:
                    outcomes = await task
                except (ExportError, ExportStopped) as error:
                    problem = str(error)
                    break
                under_way.popleft()
                await asyncio.to_thread(_write, job.columns, table, sink, window, outcomes, counts)
                position = window[-1].end
                summary.here += sum(row.number > 0 for row in window)
                if monotonic() - saved >= CHECKPOINT_SECONDS:
                    await asyncio.to_thread(sink.checkpoint, position, _copy(counts))
                    saved = monotonic()
                self._show(job, table, summary, counts, share)
                if interrupt.signal:
                    break
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        complete = not (problem or more or under_way)
        if complete or position != sink.position:
            await asyncio.to_thread(sink.checkpoint, position, _copy(counts), complete)
        if problem:
            raise ExportStopped(problem)

    def _show(self, job: Job, table: Table, summary: Summary, counts: Counts, share: tuple[int, int]) -> None:
        shown = _copy(summary.counts)
        shown.add(counts)
        done, total = share
        fraction = table.fraction()
        whole = (done + fraction * job.size) / total if total and fraction is not None else None
        self._reporter.update(job.name, shown, self._backend.tokens, whole)


def _copy(counts: Counts) -> Counts:
    return replace(counts, skipped=dict(counts.skipped))


def _take(rows: Iterator[Row], count: int) -> list[Row]:
    """The next window; empty at the end. Runs on a thread."""
    window: list[Row] = []
    size = 0
    for row in rows:
        window.append(row)
        size += len(row.raw) + sum(len(cell) for cell in row.cells if isinstance(cell, str))
        if len(window) >= count or size >= MAX_WINDOW_CHARS:
            break
    return window


def _write(
    columns: Columns,
    table: Table,
    sink: Sink,
    window: Sequence[Row],
    outcomes: Sequence[Sequence[Outcome]],
    counts: Counts,
) -> None:
    """Write a window and count it. Runs on a thread."""
    for row, cells in zip(window, outcomes, strict=True):
        try:
            data = table.render(row, cells)
        except UnicodeEncodeError as error:
            failure = Failure("UNENCODABLE", f"the translation has characters that {error.encoding} does not have")
            cells = [replace(outcome, text=None, failure=failure) for outcome in cells]
            data = table.render(row, cells)
        sink.write(data)
        if row.number:
            _count(columns, sink, row, cells, counts)


def _count(columns: Columns, sink: Sink, row: Row, cells: Sequence[Outcome], counts: Counts) -> None:
    failures: list[tuple[str | None, Failure]] = [(None, row.failure)] if row.failure else []
    for column, outcome in zip(columns.inputs, cells, strict=bool(cells)):
        if outcome.failure:
            failures.append((column, outcome.failure))
        elif outcome.skip:
            counts.skipped[outcome.skip] = counts.skipped.get(outcome.skip, 0) + 1
        else:
            counts.translated += 1
            counts.repeated += outcome.cache_hit
    for name, failure in failures:
        place = {"row": row.number, "line": row.line} if row.line else {"row": row.number}
        sink.report({**place, "column": name, "reason": failure.reason, "message": failure.message})
    counts.rows += 1
    counts.failed += bool(failures)
