"""The commands ``file`` and ``ray``; ``translator.cli`` registers them."""

from __future__ import annotations

import asyncio
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from translator.config import Settings
from translator.exports.rows import ExportError, Format, ProgressMode

if TYPE_CHECKING:
    from translator.glossary import Term

Columns = Annotated[
    list[str],
    typer.Option("--column", "-c", help="Column to translate; may be given several times. #3: the third one of a CSV."),
]
Target = Annotated[str, typer.Option("--to", "-t", help="Target language: zh, zh-Hant or en.")]
Source = Annotated[str, typer.Option("--from", "-f", help="Source language; by default detected for each comment.")]
OutputColumns = Annotated[
    list[str],
    typer.Option("--output-column", help="Name of the new column: one for all with {column}, or one each."),
]
Glossary = Annotated[
    Path | None,
    typer.Option("--glossary", help="Terms to translate as you say: source, tab, target, one a line.", exists=True),
]
Details = Annotated[bool, typer.Option("--details", help="Also write the columns NAME_language and NAME_status.")]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="By default what the file's name or start tells.")
]
Delimiter = Annotated[str, typer.Option("--delimiter", help="CSV: default is what fits the columns; \\t is a tab.")]
NoHeader = Annotated[bool, typer.Option("--no-header", help="CSV: the first row is data; columns are #1, #2 ...")]
Encoding = Annotated[
    str, typer.Option("--encoding", help="Of text files; by default UTF-8, UTF-16 with mark or gb18030, found out.")
]


def translate_file(
    inputs: Annotated[
        list[str], typer.Argument(help="CSV, JSONL or Parquet; patterns such as 'in/*.csv'; - is stdin.")
    ],
    column: Columns,
    to: Target,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="File, folder, or - for stdout. Default: NAME.LANGUAGE.csv beside the input."
        ),
    ] = "",
    source: Source = "",
    output_column: OutputColumns = ["{column}_{target}"],  # noqa: B006
    details: Details = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run; skip finished files.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew, and replace the output at the end.")
    ] = False,
    format: FormatOption = None,
    delimiter: Delimiter = "",
    no_header: NoHeader = False,
    encoding: Encoding = "",
    glossary: Glossary = None,
    server: Annotated[
        str, typer.Option("--server", help="HOST:PORT of a server that translates instead of this process.")
    ] = "",
    tls: Annotated[
        bool, typer.Option("--tls", help="With --server: encrypt, trusting the system's authorities.")
    ] = False,
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", help="With --server: encrypt, trusting this PEM file.", exists=True)
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", help="With --server: client certificate (PEM).", exists=True)
    ] = None,
    tls_private_key: Annotated[
        Path | None, typer.Option("--tls-private-key", help="With --server: its private key (PEM).", exists=True)
    ] = None,
    auth_token: Annotated[
        str,
        typer.Option(
            "--auth-token", envvar="COMMENT_TRANSLATE_AUTH_TOKEN", help="With --server: its token.", show_default=False
        ),
    ] = "",
    patience: Annotated[
        float,
        typer.Option("--patience", help="With --server: seconds without answer after which the run stops.", min=0),
    ] = 600.0,
    in_flight: Annotated[
        int,
        typer.Option("--in-flight", help="Comments in translation at a time; a GPU likes more.", min=1),
    ] = 1024,
    progress: Annotated[
        ProgressMode, typer.Option("--progress", help="auto: bar on a terminal, lines elsewhere.")
    ] = "auto",
    *,
    settings: Settings,
) -> None:
    """Translate exported comments: CSV, JSON lines or Parquet, also .gz and .zst.

    All other columns stay as they are, byte for byte. Rows that fail are kept and listed in OUTPUT.errors.jsonl.

    Exit status: 0 all fine, 1 some rows failed, 2 usage, 3 stopped half way (--resume goes on), 130 Ctrl-C.

    Examples:

        comment-translate file comments.csv -o out.csv --column text --to en

        comment-translate file 'exports/*.parquet' -o translated/ -c title -c body -t zh --details

        zcat comments.jsonl.gz | comment-translate file - -c text -t en > out.jsonl

        comment-translate file comments.csv -c text -t en --server translate.internal:50051 --tls
    """
    from translator.exports.backends import Backend, LocalBackend
    from translator.exports.jobs import ExportOptions, plan
    from translator.exports.pipeline import Pipeline
    from translator.exports.progress import Reporter
    from translator.exports.work import errors_path

    options = ExportOptions(
        columns=tuple(column),
        target=to,
        output_columns=tuple(output_column),
        details=details,
        format=format,
        delimiter=delimiter.replace("\\t", "\t"),
        encoding=encoding,
        header=not no_header,
        resume=resume,
        overwrite=overwrite,
        translation={
            "--to": to,
            "--from": source,
            "--model": settings.model,
            "--glossary": glossary.read_text("utf-8") if glossary else "",
        },
    )
    # The model of a server is the server's choice, unless one is asked for.
    model = settings.model if "model" in settings.model_fields_set else ""
    try:
        if len(options.delimiter) > 1:
            raise ExportError(f"--delimiter: {delimiter!r} is not one character")
        terms = read_glossary(glossary) if glossary else []
        jobs, notes = plan(inputs, output, options)
        backend: Backend
        if server:
            from translator.exports.remote import Connection, RemoteBackend

            connection = Connection(server, tls, tls_ca, tls_certificate, tls_private_key, auth_token, patience)
            backend = RemoteBackend(connection, to, source, terms, model)
        else:
            from translator.allocator import keep_freed_memory
            from translator.service import Translator

            keep_freed_memory()
            backend = LocalBackend(Translator(settings), to, source, terms)
        with Reporter(progress) as reporter:
            for note in notes:
                reporter.say(note)
            if not jobs:
                return
            summary = asyncio.run(Pipeline(backend, reporter, in_flight).run(jobs))
    except ExportError as error:
        print(f"comment-translate: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if progress != "none" or summary.exit_code:
        print(summary, file=sys.stderr)
    if summary.stopped:
        print(f"comment-translate: {summary.stopped}", file=sys.stderr)
    if listed := [str(path) for job in jobs if job.output and (path := errors_path(job.output)).exists()]:
        print("failed rows: " + ", ".join(listed), file=sys.stderr)
    if summary.exit_code > 1 and all(job.source and job.output for job in jobs):
        again = [word for word in sys.argv if word not in ("--resume", "--overwrite")]
        print(f"continue with: {shlex.join(['comment-translate', *again[1:], '--resume'])}", file=sys.stderr)
    raise typer.Exit(summary.exit_code)


def read_glossary(path: Path) -> list[Term]:
    """Terms of a file with one ``source TAB target`` a line; blank lines and lines with # first are left out.

    Raises:
        ExportError: a line is not like that; names it.
    """
    from translator.glossary import Term

    terms = []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--glossary {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 2 or not all(field.strip() for field in fields):
            raise ExportError(f"--glossary {path}, line {number}: is not a term, a tab and its translation")
        terms.append(Term(fields[0].strip(), fields[1].strip()))
    return terms


def translate_ray(
    inputs: Annotated[str, typer.Argument(help="File or folder; local, or a URI such as s3://bucket/folder.")],
    output: Annotated[str, typer.Argument(help="Folder for the parts; on a cluster one that all nodes see.")],
    column: Columns,
    to: Target,
    source: Source = "",
    output_column: OutputColumns = ["{column}_{target}"],  # noqa: B006
    details: Details = False,
    num_workers: Annotated[int, typer.Option("--num-workers", help="Translating processes.", min=1)] = 1,
    num_gpus: Annotated[float, typer.Option("--num-gpus", help="GPUs of each; a share is allowed.", min=0)] = 0.0,
    num_cpus: Annotated[float, typer.Option("--num-cpus", help="Cores of each.", min=0)] = 1.0,
    batch_rows: Annotated[int, typer.Option("--batch-rows", help="Rows a process takes at a time.", min=1)] = 2048,
    format: FormatOption = None,
    delimiter: Delimiter = "",
    no_header: NoHeader = False,
    encoding: Encoding = "",
    glossary: Glossary = None,
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Rows of the parts, sorted by name, in the order of the input.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what is in the output folder first.")] = False,
    *,
    settings: Settings,
) -> None:
    """Translate exports of any size on a Ray cluster (needs the extra `ray`).

    Without RAY_ADDRESS a cluster of this machine alone is started. The output folder gets parts in the format of the
    input, the rows that failed under _errors, and _SUCCESS at the end.

    Exit status: 0 all fine, 1 some rows failed, 2 usage.

    Examples:

        comment-translate ray comments/ translated/ -c text -t en --num-workers 4

        RAY_ADDRESS=auto comment-translate ray s3://data/in s3://data/out -c text -t en --num-workers 64 --num-gpus 1
    """
    from translator.exports.jobs import ExportOptions

    try:
        try:
            from translator import ray_job
        except ModuleNotFoundError as error:
            raise ExportError(f"{error.name} is not installed: pip install 'comment-translate[ray]'") from None
        terms = read_glossary(glossary) if glossary else []
        columns = ExportOptions(tuple(column), to, tuple(output_column), details).resolve()
        options = ray_job.RayOptions(
            columns,
            to,
            source,
            tuple(terms),
            num_workers,
            num_cpus,
            num_gpus,
            batch_rows,
            format,
            delimiter.replace("\\t", "\t"),
            encoding,
            not no_header,
            keep_order,
            overwrite,
        )
        summary = ray_job.run(inputs, output, options, settings)
    except ExportError as error:
        print(f"comment-translate: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(summary, file=sys.stderr)
    raise typer.Exit(summary.exit_code)
