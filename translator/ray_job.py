"""Batch translation past one machine, on Ray Data.

Readers, translating actors and writers run side by side on the nodes of a Ray cluster. Each actor loads the
models once and translates batches of rows with the same memo, cache and ``Translator`` as ``comment-translate file``.
CSV and JSON lines pass through as raw rows, so that they too are written back byte for byte; a Parquet
file passes as Arrow tables. The output is a folder of parts, each a complete file of the input's format; rows that
failed are listed in its folder ``_errors``, and ``_SUCCESS`` is written last.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink, FileBasedDatasource

from translator.allocator import keep_freed_memory
from translator.config import Settings
from translator.exports.backends import LocalBackend
from translator.exports.csv_table import CsvTable
from translator.exports.files import TextInput, name_parts
from translator.exports.jsonl_table import JsonlTable
from translator.exports.memo import Memo
from translator.exports.parquet_table import check_schema, strings
from translator.exports.rows import Columns, Counts, ExportError, Failure, Format, Outcome, Position, Row
from translator.glossary import Term
from translator.service import Translator

ROW, REPORT = "__row__", "__report__"
"""Columns that exist only between the stages: a pickled row with its file; what became of a row, as JSON."""
READ_ROWS = 2048


@dataclass(frozen=True, slots=True)
class RayOptions:
    """What a job translates, and on what.

    Args:
        columns: text columns and the names of the new ones.
        target, source: language codes; an empty source is detected for each comment.
        terms: glossary terms.
        num_workers: translating actors.
        num_cpus, num_gpus: of each actor; a share of a GPU is allowed.
        batch_rows: rows that an actor takes at a time, sorted by length together.
        format, delimiter, encoding, header: as for files.
        keep_order: parts in the order of their names hold the rows in the order of the input; costs memory.
        overwrite: replace what is in the output folder.
    """

    columns: Columns
    target: str
    source: str = ""
    terms: tuple[Term, ...] = ()
    num_workers: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    batch_rows: int = 2048
    format: Format | None = None
    delimiter: str = ""
    encoding: str = ""
    header: bool = True
    keep_order: bool = False
    overwrite: bool = False


@dataclass(slots=True)
class RaySummary:
    """Totals of a job, its time in seconds and its rate."""

    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 all fine, 1 rows failed."""
        return 1 if self.counts.failed else 0

    def __str__(self) -> str:
        counts = self.counts
        lines = [f"{counts.rows:,} rows, {counts.translated:,} comments translated"]
        lines += [f"{count:,} skipped: {reason.replace('_', ' ')}" for reason, count in sorted(counts.skipped.items())]
        if counts.failed:
            lines.append(f"{counts.failed:,} rows failed")
        lines.append(f"{self.seconds:,.1f} s, {counts.rows / max(self.seconds, 1e-9):,.0f} rows/s")
        return "\n".join(lines)


def run(inputs: str, output: str, options: RayOptions, settings: Settings) -> RaySummary:
    """Translate all files under a path or URI into a folder.

    Args:
        inputs: file or folder; local, or a URI that pyarrow knows (``s3://``, ``gs://``, ``hdfs://``).
        output: folder; on a cluster one that all nodes see.
        options, settings: see there. Ray is started on this machine unless it has been, or ``RAY_ADDRESS`` is set.

    Raises:
        ExportError: the files do not fit the options, or the output is there already.
    """
    filesystem, root = open_filesystem(inputs)
    paths = list_files(filesystem, root, inputs)
    kind = options.format or name_parts(Path(paths[0]))[0]
    if kind is None:
        raise ExportError(f"{paths[0]}: the name does not tell the format; say --format")
    _prepare_output(output, options.overwrite)
    started = monotonic()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send statistics to its makers
        # One core stays for reading and writing, which would otherwise wait for the actors for ever.
        cores = max(os.cpu_count() or 1, int(options.num_workers * options.num_cpus) + 1)
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, num_cpus=None if address else cores, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = options.keep_order
    if kind == "parquet":
        check_schema(paths[0], pq.read_schema(paths[0], filesystem=filesystem), options.columns)
        dataset = ray.data.read_parquet(paths, filesystem=filesystem, file_extensions=None)
        head = None
    else:
        head = read_head(filesystem, paths[0], kind, options)
        dataset = ray.data.read_datasource(_Rows(paths, filesystem, head))
    translated = dataset.map_batches(
        _Translate,
        fn_constructor_kwargs={"options": options, "settings": _worker_settings(settings, options), "head": head},
        batch_format="pyarrow",
        batch_size=options.batch_rows,
        compute=ray.data.ActorPoolStrategy(size=options.num_workers),
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
    )
    counts = Counts()
    translated.write_datasink(_Parts(output, kind, head, counts))
    summary = RaySummary(counts, monotonic() - started)
    _write_success(output, summary)
    return summary


def open_filesystem(where: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem and path of a URI or a local path."""
    # A drive letter is no scheme.
    if len(urlparse(where).scheme) > 1:
        filesystem, path = pafs.FileSystem.from_uri(where)
        return filesystem, path
    return pafs.LocalFileSystem(), os.path.abspath(where)


def list_files(filesystem: pafs.FileSystem, root: str, shown: str) -> list[str]:
    """Files at or under a path that are not empty, sorted; those with _ or . first are somebody's bookkeeping.

    Raises:
        ExportError: there is none.
    """
    info = filesystem.get_file_info(root)
    if info.type is pafs.FileType.File:
        return [root]
    if info.type is pafs.FileType.NotFound:
        raise ExportError(f"{shown}: there is no such file or folder")
    found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    names = [item.path for item in found if item.type is pafs.FileType.File and item.size]
    files = [n for n in names if not any(p[0] in "_." for p in PurePosixPath(n).relative_to(root).parts)]
    if not files:
        raise ExportError(f"{shown}: has no files")
    return sorted(files)


def _prepare_output(output: str, overwrite: bool) -> None:
    filesystem, path = open_filesystem(output)
    if filesystem.get_file_info(path).type is pafs.FileType.NotFound:
        return
    if filesystem.get_file_info(pafs.FileSelector(path)):
        if not overwrite:
            raise ExportError(f"{output}: is not empty; --overwrite deletes what is in it")
        filesystem.delete_dir_contents(path)


def _write_success(output: str, summary: RaySummary) -> None:
    """The sign that all parts are there, for whoever reads them next."""
    filesystem, path = open_filesystem(output)
    filesystem.create_dir(path, recursive=True)
    with filesystem.open_output_stream(f"{path}/_SUCCESS") as file:
        file.write(json.dumps({**asdict(summary.counts), "seconds": round(summary.seconds, 1)}).encode() + b"\n")


def _worker_settings(settings: Settings, options: RayOptions) -> Settings:
    """An actor may use the cores that Ray gave it, not all that the machine has."""
    chosen: dict[str, Any] = {"device": "cuda" if options.num_gpus else "cpu"} if settings.device == "auto" else {}
    if not settings.workers and not options.num_gpus:
        chosen |= {"workers": max(1, int(options.num_cpus)), "intra_threads": settings.intra_threads or 1}
    return settings.model_copy(update=chosen)


@dataclass(frozen=True, slots=True)
class Head:
    """How the text files of a job are read: found out from the first one, and the same for all.

    Args:
        kind: csv or jsonl.
        sample: beginning of the first file, decompressed; its header decides what the parts' header is.
        encoding: of all files.
        delimiter: empty in JSON lines.
    """

    kind: Format
    sample: bytes
    encoding: str
    delimiter: str
    header: bool
    columns: Columns

    def table(self, stream: Any, name: str) -> CsvTable | JsonlTable:
        """Reader of one file.

        Raises:
            ExportError: it has not the columns.
        """
        source = TextInput(stream, self.encoding, name)
        if self.kind == "jsonl":
            return JsonlTable(source, self.columns)
        return CsvTable(source, self.columns, self.delimiter, self.header)

    def first(self) -> CsvTable | JsonlTable:
        """Reader of the sample, for writing."""
        return self.table(pa.BufferReader(self.sample), "the first file")


def read_head(filesystem: pafs.FileSystem, path: str, kind: Format, options: RayOptions) -> Head:
    """What the first file tells.

    Raises:
        ExportError: it has not the columns, or its encoding is unknown.
    """
    with filesystem.open_input_stream(path, compression=None) as stream:
        source = TextInput(stream, options.encoding, path)
        table: CsvTable | JsonlTable
        if kind == "jsonl":
            table = JsonlTable(source, options.columns)
            delimiter = ""
        else:
            table = CsvTable(source, options.columns, options.delimiter, options.header)
            delimiter = table.delimiter
    return Head(kind, source.sample, source.encoding, delimiter, options.header, options.columns)


class _Rows(FileBasedDatasource):  # type: ignore[misc]
    """Reads text files as raw rows. A file is read by one task, from its start to its end."""

    def __init__(self, paths: Sequence[str], filesystem: pafs.FileSystem, head: Head) -> None:
        # Compression is told by the content, as everywhere here, and not by the name.
        super().__init__(list(paths), filesystem=filesystem, open_stream_args={"compression": None})
        self._head = head

    def _read_stream(self, f: Any, path: str) -> Iterator[Block]:
        table = self._head.table(f, path)
        if (own := table.head()) and own != self._head.first().head():
            raise ExportError(f"{path}: has another header than the first file")
        rows = table.rows(Position())
        while batch := [pickle.dumps((path, row)) for row in itertools.islice(rows, READ_ROWS)]:
            yield pa.table({ROW: pa.array(batch, pa.large_binary())})


class _Translate:
    """An actor: models, cache and memo, loaded once. Used by one thread."""

    def __init__(self, options: RayOptions, settings: Settings, head: Head | None) -> None:
        self._options = options
        self._table = head.first() if head else None
        keep_freed_memory()
        self._loop = asyncio.new_event_loop()
        backend = LocalBackend(Translator(settings), options.target, options.source, options.terms)
        self._loop.run_until_complete(backend.start())
        self._memo = Memo(backend, 32 * 2**20)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Add the new columns (Parquet), or turn raw rows into finished ones."""
        if self._table is None:
            return self._translate_columns(batch)
        pairs: list[tuple[str, Row]] = [pickle.loads(data) for data in batch[ROW].to_pylist()]
        outcomes = self._outcomes([row.cells for _, row in pairs])
        data, reports = [], []
        for (path, row), cells in zip(pairs, outcomes, strict=True):
            data.append(self._table.render(row, cells))
            place = {"file": path, "row": row.number, "line": row.line}
            reports.append(_report(place, cells, row.failure, self._options.columns) if row.number else None)
        return pa.table({ROW: pa.array(data, pa.large_binary()), REPORT: pa.array(reports, pa.string())})

    def _translate_columns(self, batch: pa.Table) -> pa.Table:
        columns = self._options.columns
        texts = [strings(batch[name].combine_chunks()) for name in columns.inputs]
        outcomes = self._outcomes(list(zip(*texts, strict=True)))
        values = [columns.values(cells) for cells in outcomes]
        for i, name in enumerate(columns.added):
            batch = batch.append_column(name, pa.array([row[i] for row in values], pa.string()))
        reports = [_report({}, cells, None, columns) for cells in outcomes]
        return batch.append_column(REPORT, pa.array(reports, pa.string()))

    def _outcomes(self, window: Sequence[Sequence[Any]]) -> list[list[Outcome]]:
        return self._loop.run_until_complete(self._memo.translate(window))


def _report(place: dict[str, Any], cells: Sequence[Outcome], failure: Failure | None, columns: Columns) -> str:
    failures = [(None, failure)] if failure else []
    named = [(name, cell.failure) for name, cell in zip(columns.inputs, cells, strict=bool(cells)) if cell.failure]
    return json.dumps(
        {
            "status": [cell.skip or ("repeated" if cell.cache_hit else "") for cell in cells if not cell.failure],
            "errors": [
                {**place, "column": column, "reason": problem.reason, "message": problem.message}
                for column, problem in (*failures, *named)
            ],
        }
    )


class _Parts(BlockBasedFileDatasink):  # type: ignore[misc]
    """Writes each block as a part, its failures beside it, and adds up what became of the rows.

    Args:
        counts: filled on the driver when all is written; failed and repeated attempts are not in it.
    """

    def __init__(self, output: str, kind: Format, head: Head | None, counts: Counts) -> None:
        filesystem, path = open_filesystem(output)
        super().__init__(path, filesystem=filesystem, file_format=kind, min_rows_per_file=100_000)
        self._head = head
        self._counts = counts

    def write(self, blocks: Iterable[Block], ctx: Any) -> Counts:
        table = pa.concat_tables([BlockAccessor.for_block(block).to_arrow() for block in blocks])
        counts = Counts()
        if not table.num_rows:
            return counts
        errors = []
        for report in table[REPORT].to_pylist():
            if report is None:  # a blank line
                continue
            found = json.loads(report)
            counts.rows += 1
            counts.failed += bool(found["errors"])
            errors += [{"part_row": counts.rows, **error} for error in found["errors"]]
            for status in found["status"]:
                if status in ("", "repeated"):
                    counts.translated += 1
                    counts.repeated += status == "repeated"
                else:
                    counts.skipped[status] = counts.skipped.get(status, 0) + 1
        super().write([table.drop_columns([REPORT])], ctx)
        if errors:
            self._write_errors(errors, ctx)
        return counts

    def _write_errors(self, errors: Sequence[dict[str, Any]], ctx: Any) -> None:
        part = self.filename_provider.get_filename_for_task(ctx.kwargs["write_uuid"], ctx.task_idx)
        self.filesystem.create_dir(f"{self.path}/_errors", recursive=True)
        with self.open_output_stream(f"{self.path}/_errors/{part}.errors.jsonl") as file:
            for error in errors:
                file.write(json.dumps({"part": part, **error}, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def write_block_to_file(self, block: BlockAccessor, file: pa.NativeFile) -> None:
        table = block.to_arrow()
        if self._head is None:
            pq.write_table(table, file, compression="zstd")
            return
        first = self._head.first()
        file.write(first.head())
        for data in table[ROW].to_pylist():
            file.write(first.source.closed(data))

    def on_write_complete(self, write_result: Any) -> None:
        for counts in write_result.write_returns:
            self._counts.add(counts)
        super().on_write_complete(write_result)
