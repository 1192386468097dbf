"""CSV files, read so that whatever is not translated can be written back byte for byte."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from translator.exports.files import TextInput
from translator.exports.rows import SURROGATE, Cell, Columns, ExportError, Failure, Outcome, Position, Row

DELIMITERS = (",", "\t", ";", "|")
MAX_RECORD = 2**20
"""Characters of a row of several lines, past which its quote counts as never closed."""

_QUOTED = re.compile(r'"((?:[^"]++|"")*+)"')


class _Record:
    """Lines of one row, its text without the line end, and its raw fields (None: a quote is never closed)."""

    __slots__ = ("end", "fields", "lines", "text")

    def __init__(self, lines: list[str], text: str, end: str, fields: list[str] | None) -> None:
        self.lines = lines
        self.text = text
        self.end = end
        self.fields = fields


class _Splitter:
    """Cuts lines into rows, and rows into raw fields with their quotes."""

    def __init__(self, lines: Iterator[str], delimiter: str) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self._delimiter = delimiter
        rest = f"[^{re.escape(delimiter)}]*+"
        # Group 1 takes part only where the text ends inside quotes.
        self._field = re.compile(rf'"(?:[^"]++|"")*+(?:"{rest}|(\Z))|{rest}')

    def put_back(self, lines: Sequence[str]) -> None:
        """Have lines read again."""
        self._again.extendleft(reversed(lines))

    def next(self) -> _Record | None:
        """The next row; None at the end."""
        line = self._next_line()
        if line is None:
            return None
        text, end = _cut_end(line)
        if '"' not in text:
            return _Record([line], text, end, text.split(self._delimiter))
        lines = [line]
        size = len(line)
        fields = self._split(text)
        while fields is None:
            more = self._next_line()
            if more is not None:
                lines.append(more)
                size += len(more)
            if more is None or size > MAX_RECORD:
                self.put_back(lines[1:])
                text, end = _cut_end(line)
                return _Record([line], text, end, None)
            if '"' in more:  # only a quote can close the field
                text, end = _cut_end("".join(lines))
                fields = self._split(text)
        if len(lines) > 1 and not all(map(_well_quoted, fields)):
            # Text after a closing quote: it was the opening one of another row, and the first quote a stray one.
            self.put_back(lines[1:])
            text, end = _cut_end(line)
            return _Record([line], text, end, None)
        return _Record(lines, text, end, fields)

    def _next_line(self) -> str | None:
        return self._again.popleft() if self._again else next(self._lines, None)

    def _split(self, text: str) -> list[str] | None:
        fields = []
        position = 0
        while True:
            match = self._field.match(text, position)
            assert match is not None  # the last alternative matches anything
            if match.group(1) is not None:
                return None
            fields.append(match.group())
            if match.end() == len(text):
                return fields
            position = match.end() + 1


class CsvTable:
    """See ``Table``. Quote is ``"``, doubled inside quotes; the delimiter is found out.

    Args:
        source: the file.
        columns: what to translate.
        delimiter: empty to find out.
        header: the first row names the columns; without it columns are given as ``#1``, ``#2`` ...

    Raises:
        ExportError: a column is missing, is there twice, or a new one is there already.
    """

    def __init__(self, source: TextInput, columns: Columns, delimiter: str = "", header: bool = True) -> None:
        self.source = source
        self._columns = columns
        self._header = header
        self.note = source.note
        self.delimiter = delimiter or self._find_delimiter()
        self._width = 0
        self._indices: list[int] = []
        first = _Splitter(iter(source.sample_lines), self.delimiter).next()
        self._first = first if first is None or header else _Record([], "", "", first.fields)
        if first is None:
            return
        if not first.fields or not first.text.strip():
            raise ExportError(f"{source.name}: the first row is empty or its quotes are never closed")
        names = [_value(field) for field in first.fields]
        self._width = len(names)
        self._indices = [self._index(column, names) for column in columns.inputs]
        if header and (taken := [name for name in columns.added if name in names]):
            raise ExportError(
                f"{source.name}: column {taken[0]!r} is there already; choose another name with --output-column"
            )

    def _find_delimiter(self) -> str:
        """The one under which the first row has the columns asked for, and the other rows as many fields."""

        def score(delimiter: str) -> tuple[int, float, int]:
            splitter = _Splitter(iter(self.source.sample_lines), delimiter)
            records = list(islice(iter(splitter.next, None), 50))
            if not records or not records[0].fields:
                return 0, 0.0, 0
            names = [_value(field) for field in records[0].fields]
            known = {*names, *(f"#{i + 1}" for i in range(len(names)))}
            found = sum(column in known for column in self._columns.inputs)
            alike = sum(len(record.fields or ()) == len(names) for record in records)
            return found, alike / len(records) if len(names) > 1 else 0.0, len(names)

        # max keeps the first of equals, and a .tsv file is most likely what it says.
        named = "\t" if self.source.path and ".tsv" in self.source.path.suffixes else ","
        return max(sorted(DELIMITERS, key=lambda d: d != named), key=score)

    def _index(self, column: str, names: Sequence[str]) -> int:
        if self._header and (places := [i for i, name in enumerate(names) if name == column]):
            if len(places) > 1:
                numbers = ", ".join(f"#{i + 1}" for i in places)
                raise ExportError(
                    f"{self.source.name}: {len(places)} columns are named {column!r}; say which by number: {numbers}"
                )
            return places[0]
        if re.fullmatch(r"#[1-9]\d*", column) and int(column[1:]) <= len(names):
            return int(column[1:]) - 1
        if not self._header:
            raise ExportError(
                f"{self.source.name}: has {len(names)} columns and no header: name them #1 to #{len(names)}, "
                f"not {column!r}"
            )
        raise ExportError(f"{self.source.name}: has no column {column!r}; it has: {', '.join(names)}")

    def head(self) -> bytes:
        """Byte order mark and header, with the new names."""
        if self._first is None or not self._header:
            return self.source.bom
        quoted = all(field.startswith('"') for field in self._first.fields or ())
        added = "".join(self.delimiter + self._cell(name, quoted) for name in self._columns.added)
        # A file that ends after its header, without a line end, stays so.
        return self.source.bom + self.source.encode(self._first.text + added + self._first.end)

    def rows(self, start: Position) -> Iterator[Row]:
        """See ``Table``. A ragged row of several lines gives up only its first line: a stray quote costs one row."""
        source = self.source
        offset, number, line = start.offset, start.row, start.line
        if self._first is None:
            return
        if offset == 0:
            offset = len(source.bom)
            if self._header:
                offset += len(source.encode("".join(self._first.lines)))
                line = len(self._first.lines)
        splitter = _Splitter(source.lines(offset), self.delimiter)
        while record := splitter.next():
            fields, failure = record.fields, None
            if fields is None:
                failure = Failure("UNCLOSED_QUOTE", "a quote opens in this row and is never closed")
            elif record.text and len(fields) != self._width:
                failure = Failure("RAGGED_ROW", f"has {len(fields)} fields instead of {self._width}")
                if len(record.lines) > 1:
                    splitter.put_back(record.lines[1:])
                    del record.lines[1:]
            raw = "".join(record.lines)
            offset += len(source.encode(raw))
            blank = not record.text
            number += not blank
            cells: list[Cell] = []
            quoted: list[bool] = []
            if not failure and not blank and fields:
                cells = [self._text(fields[i]) for i in self._indices]
                quoted = [fields[i].startswith('"') for i in self._indices]
            end = Position(offset, number, line + len(record.lines))
            yield Row(0 if blank else number, line + 1, raw, cells, end, failure, quoted)
            line = end.line

    def _text(self, field: str) -> str | Failure:
        value = _value(field)
        if SURROGATE.search(value):
            return Failure("INVALID_ENCODING", f"the text is not valid {self.source.encoding}")
        return value

    def render(self, row: Row, outcomes: Sequence[Outcome]) -> bytes:
        """The row with the new fields at its end, quoted where the text was or where they need it."""
        if not outcomes:
            return self.source.encode(row.raw)
        text, end = _cut_end(row.raw)
        assert isinstance(row.hint, list)
        values = self._columns.values(outcomes)
        each = len(values) // len(outcomes)
        # Only the translation follows the text's quoting; language and status are plain words.
        added = (self._cell(value, row.hint[i // each] and i % each == 0) for i, value in enumerate(values))
        return self.source.encode(text + "".join(self.delimiter + cell for cell in added) + end)

    def _cell(self, value: str | None, quoted: bool) -> str:
        if value is None:
            return ""
        if quoted or any(c in value for c in (self.delimiter, '"', "\n", "\r")):
            return '"' + value.replace('"', '""') + '"'
        return value

    def finish(self, part: Path) -> None:
        """Nothing: the part file is the output."""

    def fraction(self) -> float | None:
        """See ``Table``."""
        return self.source.fraction()


def _cut_end(text: str) -> tuple[str, str]:
    """Text and line end."""
    body = text.removesuffix("\n")
    body = body.removesuffix("\r")
    return body, text[len(body) :]


def _well_quoted(field: str) -> bool:
    return not field.startswith('"') or _QUOTED.fullmatch(field) is not None


def _value(field: str) -> str:
    """What a raw field says. Text after the closing quote is kept, as other readers do."""
    if match := _QUOTED.match(field):
        return match.group(1).replace('""', '"') + field[match.end() :]
    return field
