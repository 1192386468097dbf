"""What the readers, the pipeline and the back ends hand to each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Format = Literal["csv", "jsonl", "parquet"]
Compression = Literal["", "gz", "zst"]
ProgressMode = Literal["auto", "bar", "plain", "none"]

SURROGATE = re.compile("[\ud800-\udfff]")
"""Stands for a byte that is not valid in the file's encoding, or for half a character in a JSON escape."""


class ExportError(Exception):
    """The run cannot start as asked: exit code 2. The message is for the user."""


class ExportStopped(Exception):
    """The run had to stop half way and can be resumed: exit code 3. The message is for the user."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row or a comment has no translation.

    Args:
        reason: stable UPPER_SNAKE word, e.g. ``RAGGED_ROW`` or the reason of a ``TranslateError``.
        message: for people.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one comment.

    Args:
        text: the translation; the comment itself when it was skipped, None when it failed or was null.
        language: detected language, ``und`` when unknown, None when there was nothing to look at.
        skip: why there was nothing to translate, e.g. ``already_target_language`` or ``null``.
        failure: what went wrong.
        cache_hit: the model was not needed.
    """

    text: str | None
    language: str | None = None
    skip: str = ""
    failure: Failure | None = None
    cache_hit: bool = False

    @property
    def status(self) -> str:
        """``translated``, the skip reason, or ``failed:REASON``."""
        return f"failed:{self.failure.reason}" if self.failure else self.skip or "translated"


NULL = Outcome(None, skip="null")

Cell = str | None | Failure
"""A text to translate, a null, or why there is no text."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two rows of the input.

    Args:
        offset: bytes of the decompressed file before it; unused in Parquet.
        row: data rows before it.
        line: text lines before it.
    """

    offset: int = 0
    row: int = 0
    line: int = 0


@dataclass(slots=True)
class Row:
    """One row as read.

    Args:
        number: data row, from 1; 0 for a blank line, which is kept and not counted.
        line: line of the file on which it starts, from 1; 0 where there are no lines.
        raw: the row as it stands in the file, line end included; empty in Parquet.
        cells: for each column to translate its text, None for null, or why it has none.
        end: position after the row.
        failure: set when the row as a whole could not be read; it is then kept as it is.
        hint: the format's own notes for writing the row back.
    """

    number: int
    line: int
    raw: str
    cells: Sequence[Cell]
    end: Position
    failure: Failure | None = None
    hint: object = None


@dataclass(frozen=True, slots=True)
class Columns:
    """What to translate and where to put it.

    Args:
        inputs: names of the text columns; ``#3`` is the third column of a CSV file.
        outputs: name of the new column of each.
        details: also write ``NAME_language`` and ``NAME_status`` beside each new column ``NAME``.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    details: bool = False

    @property
    def added(self) -> list[str]:
        """Names of all new columns, in order."""
        suffixes = ("", "_language", "_status") if self.details else ("",)
        return [name + suffix for name in self.outputs for suffix in suffixes]

    def values(self, outcomes: Sequence[Outcome]) -> list[str | None]:
        """Values of the new columns of one row, in the order of ``added``."""
        if not self.details:
            return [outcome.text for outcome in outcomes]
        return [value for o in outcomes for value in (o.text, o.language, o.status)]


@dataclass(slots=True)
class Counts:
    """Totals of a run, kept in the checkpoint.

    Args:
        rows: data rows written.
        failed: rows with an entry in the errors file.
        translated: comments translated.
        repeated: comments that needed no model: seen before in this run, or found in the cache.
        skipped: comments skipped, by reason.
    """

    rows: int = 0
    failed: int = 0
    translated: int = 0
    repeated: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Add another run's totals to these."""
        self.rows += other.rows
        self.failed += other.failed
        self.translated += other.translated
        self.repeated += other.repeated
        for reason, count in other.skipped.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + count


class Table(Protocol):
    """One input file in one format: reads rows and writes them back with the new columns.

    Used by one thread at a time. The constructor has checked that the columns are there.
    """

    note: str
    """What the user should know about how the file is read; empty when nothing is unusual."""

    def head(self) -> bytes:
        """What comes before the first row in the part file."""
        ...

    def rows(self, start: Position) -> Iterator[Row]:
        """Rows from ``start`` on.

        Raises:
            ExportError: the file cannot be read on.
        """
        ...

    def render(self, row: Row, outcomes: Sequence[Outcome]) -> bytes:
        """The row for the part file; ``outcomes`` is empty for a row that is kept as it is."""
        ...

    def finish(self, part: Path) -> None:
        """Turn a complete part file into the output, in place. Called again after a crash in the middle."""
        ...

    def fraction(self) -> float | None:
        """How much of the input has been read, 0 to 1; None when unknown."""
        ...
