"""Parquet files, with string columns added and schema, row groups, codecs and metadata kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from translator.exports.rows import Cell, Columns, ExportError, Failure, Outcome, Position, Row

BATCH_ROWS = 2048


class ParquetTable:
    """See ``Table``. A Parquet file cannot be appended to after a crash, so the part file holds only the new values,
    one JSON array a line; ``finish`` writes the output from them and the input, one row group in memory at a time.

    Args:
        path: the file.
        columns: names of top-level string columns.

    Raises:
        ExportError: not Parquet, a column is missing or not a string, or a new one is there already.
    """

    note = ""

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        self._columns = columns
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise ExportError(f"{path}: cannot be read as Parquet: {error}") from error
        check_schema(str(path), self._file.schema_arrow, columns)
        self._read = 0

    def head(self) -> bytes:
        """Nothing."""
        return b""

    def rows(self, start: Position) -> Iterator[Row]:
        """See ``Table``."""
        metadata = self._file.metadata
        before = 0
        for group in range(metadata.num_row_groups):
            size = metadata.row_group(group).num_rows
            if before + size > start.row:
                yield from self._group_rows(group, before, start.row)
            before += size

    def _group_rows(self, group: int, before: int, done: int) -> Iterator[Row]:
        number = before
        names = list(self._columns.inputs)
        try:
            for batch in self._file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names):
                if number + batch.num_rows <= done:
                    number += batch.num_rows
                    continue
                # A null, and a value whose bytes are not UTF-8, are both possible in any string column.
                values = [strings(batch.column(name)) for name in names]
                for cells in zip(*values, strict=True):
                    number += 1
                    self._read = number
                    if number > done:
                        yield Row(number, 0, "", cells, Position(0, number, 0))
        except (pa.ArrowException, OSError) as error:
            raise ExportError(f"{self._path}: cannot be read on after row {number}: {error}") from error

    def render(self, row: Row, outcomes: Sequence[Outcome]) -> bytes:
        """The new values of a row as one line of JSON."""
        assert row.failure is None
        return json.dumps(self._columns.values(outcomes), ensure_ascii=False).encode() + b"\n"

    def finish(self, part: Path) -> None:
        """Write the output beside the part file, then put it in its place."""
        if _is_parquet(part):
            return  # a crash came after the last step
        whole = part.with_name("whole")
        names = self._columns.added
        schema = self._file.schema_arrow
        for name in names:
            schema = schema.append(pa.field(name, pa.string()))
        with part.open("rb") as lines, pq.ParquetWriter(whole, schema, **self._writer_options()) as writer:
            for group in range(self._file.num_row_groups):
                table = self._file.read_row_group(group)
                values = [json.loads(next(lines)) for _ in range(table.num_rows)]
                for i, name in enumerate(names):
                    column = pa.array([row[i] for row in values], pa.string())
                    table = table.append_column(pa.field(name, pa.string()), column)
                writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
        with whole.open("rb") as file:
            os.fsync(file.fileno())
        whole.replace(part)

    def _writer_options(self) -> dict[str, object]:
        """Options under which the writer makes the columns as they were."""
        metadata = self._file.metadata
        codecs: dict[str, str] = {}
        encodings: list[str] = []
        int96 = False
        if metadata.num_row_groups:
            group = metadata.row_group(0)
            for i in range(group.num_columns):
                column = group.column(i)
                codec = column.compression
                codecs[column.path_in_schema] = "NONE" if codec == "UNCOMPRESSED" else codec
                int96 |= column.physical_type == "INT96"
                if any("DICTIONARY" in encoding for encoding in column.encodings):
                    encodings.append(column.path_in_schema)
            first = next(iter(codecs.values()))
            for i, name in enumerate(self._columns.added):
                text = self._columns.inputs[i // (len(self._columns.added) // len(self._columns.inputs))]
                codecs[name] = codecs.get(text, first)
                encodings.append(name)
        return {
            "compression": codecs or "snappy",
            "use_dictionary": encodings or True,
            "version": metadata.format_version,
            "use_deprecated_int96_timestamps": int96,
            "store_schema": b"ARROW:schema" in (metadata.metadata or {}),
        }

    def fraction(self) -> float | None:
        """Share of the rows that has been read."""
        total = self._file.metadata.num_rows
        return self._read / total if total else None


def check_schema(name: str, schema: pa.Schema, columns: Columns) -> None:
    """Whether the columns are there, hold strings, and leave room for the new ones.

    Raises:
        ExportError: they do not.
    """
    for column in columns.inputs:
        if column not in schema.names:
            raise ExportError(f"{name}: has no column {column!r}; it has: {', '.join(schema.names)}")
        if schema.names.count(column) > 1:
            raise ExportError(f"{name}: {schema.names.count(column)} columns are named {column!r}; rename one")
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise ExportError(f"{name}: column {column!r} holds {kind}, not strings")
    if taken := [new for new in columns.added if new in schema.names]:
        raise ExportError(f"{name}: column {taken[0]!r} is there already; choose another name with --output-column")


def strings(column: pa.Array) -> list[Cell]:
    """Values of a column of any string type; those that are not UTF-8 as failures."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values: list[Cell] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]
    return values


def _decoded(value: bytes | None) -> Cell:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return Failure("INVALID_ENCODING", "the text is not valid utf-8")


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"
