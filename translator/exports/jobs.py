"""From what the user asks for to the files of a run, with every check that can be made before it starts."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from translator.exports.csv_table import CsvTable
from translator.exports.files import TextInput, default_output, name_parts
from translator.exports.jsonl_table import JsonlTable
from translator.exports.rows import Columns, Compression, ExportError, Format, Table
from translator.exports.work import Sink, StandardOutput, WorkFolder, already_finished


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How the files are read and written.

    Args:
        columns: names of the text columns.
        output_columns: names of the new ones, as many; or one template with ``{column}`` and ``{target}``.
        target: for names: language code as the user wrote it.
        details: also write language and status columns.
        format, delimiter, encoding: empty to find out.
        header: CSV: the first row names the columns.
        resume, overwrite: what to do about an unfinished or finished output.
        translation: whatever else decides what is written; a resumed run must have the same.
    """

    columns: tuple[str, ...]
    target: str
    output_columns: tuple[str, ...] = ("{column}_{target}",)
    details: bool = False
    format: Format | None = None
    delimiter: str = ""
    encoding: str = ""
    header: bool = True
    resume: bool = False
    overwrite: bool = False
    translation: dict[str, Any] = field(default_factory=dict)

    def resolve(self) -> Columns:
        """Columns with the names of the new ones.

        Raises:
            ExportError: names do not match, or occur twice.
        """
        if not self.columns:
            raise ExportError("--column: name the column to translate")
        given = self.output_columns
        if len(given) == 1:
            given *= len(self.columns)
        if len(given) != len(self.columns):
            raise ExportError(f"--output-column: {len(given)} names for {len(self.columns)} columns")
        outputs = tuple(
            name.replace("{column}", column.removeprefix("#")).replace("{target}", self.target)
            for name, column in zip(given, self.columns, strict=True)
        )
        columns = Columns(self.columns, outputs, self.details)
        added = columns.added
        if twice := [name for name in added if added.count(name) > 1]:
            raise ExportError(f"--output-column: two new columns would be named {twice[0]!r}")
        return columns


@dataclass(frozen=True, slots=True)
class FileJob:
    """See ``pipeline.Job``. A None stands for standard input or output."""

    source: Path | None
    output: Path | None
    columns: Columns
    format: Format | None
    options: ExportOptions

    @property
    def name(self) -> str:
        """For messages."""
        return self.source.name if self.source else "standard input"

    @property
    def size(self) -> int:
        """Bytes of the input; 0 for standard input."""
        return self.source.stat().st_size if self.source else 0

    def table(self) -> Table:
        """The input alone, checked.

        Raises:
            ExportError: it cannot be read, or has not the columns.
        """
        options = self.options
        if self.format == "parquet":
            if self.source is None or self.output is None:
                raise ExportError("Parquet cannot be read from or written to a pipe; name files")
            from translator.exports.parquet_table import ParquetTable  # pyarrow is large

            return ParquetTable(self.source, self.columns)
        source = TextInput(self.source or sys.stdin.buffer, options.encoding, str(self.source or "standard input"))
        kind = self.format or ("jsonl" if source.sample.lstrip(source.bom)[:1] == b"{" else "csv")
        if kind == "jsonl":
            return JsonlTable(source, self.columns)
        return CsvTable(source, self.columns, options.delimiter, options.header)

    def open(self) -> tuple[Table, Sink]:
        """See ``pipeline.Job``."""
        table = self.table()
        compression: Compression = name_parts(self.output)[1] if self.output else ""
        if self.output is None:
            return table, StandardOutput()
        options = self.options
        run = {
            "--column": list(self.columns.inputs),
            "--output-column": list(self.columns.outputs),
            "--details": self.columns.details,
            "--format": options.format,
            "--delimiter": options.delimiter,
            "--encoding": options.encoding,
            "--no-header": not options.header,
            **options.translation,
        }
        return table, WorkFolder(self.output, self.source, run, compression, options.resume)


def plan(inputs: Sequence[str], output: str, options: ExportOptions) -> tuple[list[FileJob], list[str]]:
    """Files to translate.

    Args:
        inputs: paths, patterns such as ``exports/*.csv``, or ``-``.
        output: a path, a folder, ``-``, or empty for a name beside each input.

    Returns:
        What is left to do, and notes for the user.

    Raises:
        ExportError: anything that would make the run fail later: a missing file or column, an output that is there.
    """
    columns = options.resolve()
    sources = _sources(inputs)
    if options.resume and (output == "-" or None in sources):
        raise ExportError("--resume: standard input and output cannot be resumed; name files")
    folder = bool(output) and output != "-" and (len(sources) > 1 or output.endswith("/") or Path(output).is_dir())
    if output == "-" and len(sources) > 1:
        raise ExportError("-o -: several files cannot go to standard output; name a folder")
    if folder and Path(output).exists() and not Path(output).is_dir():
        raise ExportError(f"-o {output}: is not a folder, and there are several inputs")
    jobs: list[FileJob] = []
    notes: list[str] = []
    taken: dict[Path, str] = {}
    for source in sources:
        target = _output(source, output, folder, options.target)
        job = _job(source, target, columns, options)
        if target:
            place = target.resolve()
            if source and place == source.resolve():
                raise ExportError(f"-o {output}: is the input itself")
            if place in taken:
                raise ExportError(f"-o {output}: {taken[place]} and {source} would both be written to {target}")
            taken[place] = str(source)
            if already_finished(target, source, options.resume, options.overwrite):
                notes.append(f"{target}: is finished already")
                continue
        if source:  # standard input can be read only once, by the run itself
            table = job.table()
            notes += [table.note] if table.note else []
        jobs.append(job)
    return jobs, notes


def _job(source: Path | None, output: Path | None, columns: Columns, options: ExportOptions) -> FileJob:
    kind = options.format or (name_parts(source)[0] if source else None) or _parquet(source)
    if output:
        named = name_parts(output)[0]
        if named and kind and named != kind:
            raise ExportError(f"{output}: the output keeps the input's format, which is {kind}, not {named}")
        if kind == "parquet" and name_parts(output)[1]:
            raise ExportError(f"{output}: Parquet is compressed inside; leave out the last ending")
    return FileJob(source, output, columns, kind, options)


def _parquet(source: Path | None) -> Format | None:
    """Parquet in a file of any name; text formats are told apart when the file is opened."""
    if source:
        with source.open("rb") as file:
            if file.read(4) == b"PAR1":
                return "parquet"
    return None


def _sources(inputs: Sequence[str]) -> list[Path | None]:
    sources: dict[Path | None, None] = {}
    for name in inputs:
        if name == "-":
            sources[None] = None
        elif Path(name).is_file():
            sources[Path(name)] = None
        elif Path(name).is_dir():
            raise ExportError(f"{name}: is a folder; name its files, e.g. '{name.rstrip('/')}/*.csv'")
        elif found := [Path(path) for path in sorted(glob.glob(name, recursive=True)) if Path(path).is_file()]:
            sources |= dict.fromkeys(found)
        else:
            raise ExportError(f"{name}: there is no such file")
    if None in sources and len(sources) > 1:
        raise ExportError("-: standard input cannot be combined with files")
    return list(sources)


def _output(source: Path | None, output: str, folder: bool, target: str) -> Path | None:
    if output == "-" or (source is None and not output):
        return None
    if not output:
        assert source is not None
        return default_output(source, target)
    if not folder:
        return Path(output)
    if source is None:
        raise ExportError(f"-o {output}: is a folder; name a file for what comes from standard input")
    return Path(output) / source.name
