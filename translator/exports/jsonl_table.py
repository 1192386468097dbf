"""JSON lines, with keys added to each line and nothing else touched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from translator.exports.files import TextInput
from translator.exports.rows import SURROGATE, Cell, Columns, ExportError, Failure, Outcome, Position, Row

_FIRST_KEY = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:(\s?)')


class JsonlTable:
    """See ``Table``. A blank line is no row; a line that is no JSON object is kept and reported.

    Args:
        source: the file.
        columns: keys of the texts; new keys stand last in their line, null where there is no translation.

    Raises:
        ExportError: none of the first lines has one of the keys.
    """

    def __init__(self, source: TextInput, columns: Columns) -> None:
        self.source = source
        self._columns = columns
        self.note = source.note
        seen: dict[str, None] = {}
        for line in source.sample_lines:
            value, _ = _parse(line)
            seen |= dict.fromkeys(value or ())
        if source.sample.lstrip()[:1] == b"[":
            raise ExportError(f"{source.name}: is one JSON array, not a line for each row; convert it: jq -c '.[]'")
        for column in columns.inputs if seen else ():
            if column not in seen:
                raise ExportError(f"{source.name}: has no key {column!r}; it has: {', '.join(seen)}")
        for name in columns.added:
            if name in seen:
                raise ExportError(
                    f"{source.name}: key {name!r} is there already; choose another name with --output-column"
                )

    def head(self) -> bytes:
        """The byte order mark, if any."""
        return self.source.bom

    def rows(self, start: Position) -> Iterator[Row]:
        """See ``Table``."""
        offset, number, line = start.offset or len(self.source.bom), start.row, start.line
        for raw in self.source.lines(offset):
            offset += len(self.source.encode(raw))
            line += 1
            blank = not raw.strip()
            number += not blank
            value, failure = ({}, None) if blank else _parse(raw)
            cells: list[Cell] = []
            if value and not failure:
                taken = next((name for name in self._columns.added if name in value), None)
                if taken is not None:
                    failure = Failure("OUTPUT_COLUMN_EXISTS", f"key {taken!r} is there already")
                else:
                    cells = [self._text(value, column) for column in self._columns.inputs]
            elif not blank and not failure:
                failure = Failure("MISSING_COLUMN", "the object is empty")
            yield Row(0 if blank else number, line, raw, cells, Position(offset, number, line), failure)

    def _text(self, value: dict[str, Any], column: str) -> Cell:
        if column not in value:
            return Failure("MISSING_COLUMN", f"has no key {column!r}")
        text = value[column]
        if text is None:
            return None
        if not isinstance(text, str):
            return Failure("NOT_A_STRING", f"the value of {column!r} is {type(text).__name__}, not a string")
        if SURROGATE.search(text):
            return Failure("INVALID_ENCODING", f"the text is not valid {self.source.encoding}")
        return text

    def render(self, row: Row, outcomes: Sequence[Outcome]) -> bytes:
        """The line with the new keys before its closing brace, spaced and escaped as the line is."""
        raw = row.raw
        if not outcomes:
            return self.source.encode(raw)
        values = dict(zip(self._columns.added, self._columns.values(outcomes), strict=True))
        first = _FIRST_KEY.match(raw)
        compact = first is not None and not first.group(1)
        escaped = raw.isascii() and "\\u" in raw
        added = json.dumps(values, ensure_ascii=escaped, separators=(",", ":") if compact else (", ", ": "))
        brace = raw.rindex("}")
        place = len(raw[:brace].rstrip())
        comma = "," if compact else ", "
        return self.source.encode(raw[:place] + comma + added[1:-1] + raw[place:])

    def finish(self, part: Path) -> None:
        """Nothing: the part file is the output."""

    def fraction(self) -> float | None:
        """See ``Table``."""
        return self.source.fraction()


def _parse(line: str) -> tuple[dict[str, Any] | None, Failure | None]:
    if not line.strip():
        return None, None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, Failure("INVALID_JSON", f"not valid JSON: {error}")
    if not isinstance(value, dict):
        return None, Failure("NOT_AN_OBJECT", f"a JSON {type(value).__name__}, not an object")
    return value, None
