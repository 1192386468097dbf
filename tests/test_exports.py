"""Batch translation of files: what is written, what is kept, and what survives a crash."""

from __future__ import annotations

import asyncio
import codecs
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trustme
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.conftest import PATIENCE, Running, StartServer, fake_models, make_settings
from translator.cli import app
from translator.exports import files
from translator.exports.backends import LocalBackend
from translator.exports.jobs import ExportOptions, plan
from translator.exports.pipeline import MAX_WINDOWS, Pipeline, Summary
from translator.exports.progress import Reporter
from translator.exports.remote import Connection, RemoteBackend
from translator.exports.rows import Counts, ExportError, ExportStopped, Failure, Outcome
from translator.exports.work import errors_path, work_path
from translator.service import Translator


class FakeBackend:
    """Translates by doubling; texts with "fail" in them fail, those with "skip" are skipped."""

    tokens: int | None = 0

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.stop_after: int | None = None
        """Texts after which the back end has had enough."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def translate(self, texts: Sequence[str]) -> list[Outcome]:
        self.calls.append(list(texts))
        # Later windows get ahead of earlier ones, so that order has to be restored.
        await asyncio.sleep(0.001 if len(self.calls) % 2 else 0)
        if self.stop_after is not None and len(self.texts) > self.stop_after:
            raise ExportStopped("had enough")
        return [self.outcome(text) for text in texts]

    @property
    def texts(self) -> list[str]:
        return [text for call in self.calls for text in call]

    @staticmethod
    def outcome(text: str) -> Outcome:
        if "fail for now" in text:
            return Outcome(None, "zh-Hans", failure=Failure("INFERENCE_FAILED", "no luck"))
        if "fail" in text:
            return Outcome(None, "zh-Hans", failure=Failure("TRANSLATION_UNFIT", "no good"))
        if "skip" in text:
            return Outcome(text, "en", skip="already_target_language")
        return Outcome(f"{text}{text}", "zh-Hans")


def run(
    source: Path | list[Path],
    output: Path | str = "",
    *,
    backend: FakeBackend | None = None,
    window: int = 512,
    columns: tuple[str, ...] = ("text",),
    **options: Any,
) -> Summary:
    """Translate files with the fake back end into ``text_en``."""
    sources = source if isinstance(source, list) else [source]
    jobs, _ = plan([str(s) for s in sources], str(output), ExportOptions(columns=columns, target="en", **options))
    pipeline = Pipeline(backend or FakeBackend(), Reporter("none"), 2 * window, window)
    return asyncio.run(pipeline.run(jobs))


def translated(tmp_path: Path, content: bytes, name: str = "in.csv", **options: Any) -> bytes:
    """The output for an input."""
    source, output = tmp_path / name, tmp_path / f"out-{name}"
    source.write_bytes(content)
    run(source, output, **options)
    return output.read_bytes()


def errors(output: Path) -> list[dict[str, Any]]:
    path = errors_path(output)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


# CSV


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"id,text\n1,a\n", b"id,text,text_en\n1,a,aa\n", id="plain"),
        pytest.param(b"text,id\r\na,1\r\nb,2\r\n", b"text,id,text_en\r\na,1,aa\r\nb,2,bb\r\n", id="crlf"),
        pytest.param(b"text,id\na,1\r\nb,2", b"text,id,text_en\na,1,aa\r\nb,2,bb", id="mixed ends, none at the end"),
        pytest.param(b"id,text\r1,a\r2,b\r", b"id,text,text_en\r1,a,aa\r2,b,bb\r", id="carriage returns alone"),
        pytest.param(
            codecs.BOM_UTF8 + "text,x\n好,1\n".encode(),
            codecs.BOM_UTF8 + "text,x,text_en\n好,1,好好\n".encode(),
            id="byte order mark",
        ),
        pytest.param(
            b'"id","text"\n"1","a ""b"" c"\n',
            b'"id","text","text_en"\n"1","a ""b"" c","a ""b"" ca ""b"" c"\n',
            id="quotes",
        ),
        pytest.param(b'id,text\n "1" ,a"b\n', b'id,text,text_en\n "1" ,a"b,"a""ba""b"\n', id="odd quotes stay"),
        pytest.param(b'id,text\n1,"a"b\n', b'id,text,text_en\n1,"a"b,"abab"\n', id="text after a quote"),
        pytest.param(
            b'text,n\n"a\nb",1\n"c\r\n,d",2\n',
            b'text,n,text_en\n"a\nb",1,"a\nba\nb"\n"c\r\n,d",2,"c\r\n,dc\r\n,d"\n',
            id="line ends in fields",
        ),
        pytest.param(b"id\ttext\n1\ta,b\n", b"id\ttext\ttext_en\n1\ta,b\ta,ba,b\n", id="tabs"),
        pytest.param(b"id;text\n1;a,b\n2;c\n", b"id;text;text_en\n1;a,b;a,ba,b\n2;c;cc\n", id="semicolons"),
        pytest.param(b"id|text\n1|a\n", b"id|text|text_en\n1|a|aa\n", id="bars"),
        pytest.param(b"text,x\na\0b,1\n", b"text,x,text_en\na\0b,1,a\0ba\0b\n", id="NUL"),
        pytest.param(b"text,x\n\na,1\n\n\n", b"text,x,text_en\n\na,1,aa\n\n\n", id="blank lines"),
        pytest.param(b"text,x\n,1\n", b"text,x,text_en\n,1,\n", id="empty field"),
        pytest.param(
            "text,x\na\u2028\x0cb,1\n".encode(),
            "text,x,text_en\na\u2028\x0cb,1,a\u2028\x0cba\u2028\x0cb\n".encode(),
            id="only real line ends count",
        ),
        pytest.param(b"text\n", b"text,text_en\n", id="header only"),
        pytest.param(b"id,text", b"id,text,text_en", id="header only, no line end"),
        pytest.param(b"", b"", id="empty file"),
    ],
)  # fmt: skip
def test_csv_bytes(tmp_path: Path, content: bytes, expected: bytes) -> None:
    assert translated(tmp_path, content) == expected
    assert errors(tmp_path / "out-in.csv") == []
    assert not work_path(tmp_path / "out-in.csv").exists()


DIALECTS = [(d, q, e) for d in ",\t;|" for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL) for e in ("\n", "\r\n")]
ROWS = st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6), st.text("a,;\"'\r\n\\ 好", max_size=8)), max_size=8)


@given(rows=ROWS, dialect=st.sampled_from(DIALECTS))
@settings(max_examples=60, deadline=None)
def test_csv_reads_as_before(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], dialect: tuple[str, Any, str]
) -> None:
    """Whatever Python's own writer makes reads, afterwards, as the same rows with one more field."""
    delimiter, quoting, end = dialect
    # Python's writer leaves a lone carriage return unquoted, and its reader takes that for the end of the row.
    lone = "" if quoting == csv.QUOTE_MINIMAL else "\r"
    cells = [[cell.replace("\r", lone) for cell in row] for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([["id", "other", "text"], *cells])
    folder = tmp_path_factory.mktemp("csv")
    content = text.getvalue().encode()
    output = translated(folder, content).decode()
    parsed = list(csv.reader(io.StringIO(output, newline=""), delimiter=delimiter))
    expected = [[*row, FakeBackend.outcome(row[2]).text] for row in cells]
    assert parsed == [["id", "other", "text", "text_en"], *expected]
    assert errors(folder / "out-in.csv") == []


def test_csv_ragged_rows_are_kept_and_reported(tmp_path: Path) -> None:
    content = b'id,text\n1,a\n2,b,c\n3\n4,"d\n5,e\n6,f\n7,g\n'
    output = translated(tmp_path, content)
    assert output == b'id,text,text_en\n1,a,aa\n2,b,c\n3\n4,"d\n5,e,ee\n6,f,ff\n7,g,gg\n'
    found = [(e["row"], e["line"], e["reason"], e["column"]) for e in errors(tmp_path / "out-in.csv")]
    assert found == [
        (2, 3, "RAGGED_ROW", None),
        (3, 4, "RAGGED_ROW", None),
        (4, 5, "UNCLOSED_QUOTE", None),
    ]


def test_csv_a_stray_quote_costs_one_row(tmp_path: Path) -> None:
    """The quote would swallow all rows up to the next quote, three rows further on."""
    output = translated(tmp_path, b'text,id\n"a,1\nb,2\nc,3\n"d",4\n')
    assert output == b'text,id,text_en\n"a,1\nb,2,bb\nc,3,cc\n"d",4,"dd"\n'
    assert [e["row"] for e in errors(tmp_path / "out-in.csv")] == [1]


def test_csv_a_quote_that_is_never_closed_is_given_up(tmp_path: Path) -> None:
    filler = b"x" * 1000
    rows = b"".join(b"%d,%s\n" % (i, filler) for i in range(2000))
    output = translated(tmp_path, b'id,text\n0,"open\n' + rows)
    assert output.count(filler + b"," + filler + filler) == 2000
    assert [e["reason"] for e in errors(tmp_path / "out-in.csv")] == ["UNCLOSED_QUOTE"]


def test_csv_several_columns_and_details(tmp_path: Path) -> None:
    output = translated(
        tmp_path, b"title,body\na,skip\nfail,b\n", columns=("title", "body"), details=True
    )  # fmt: skip
    assert output.decode().splitlines() == [
        "title,body,title_en,title_en_language,title_en_status,body_en,body_en_language,body_en_status",
        "a,skip,aa,zh-Hans,translated,skip,en,already_target_language",
        "fail,b,,zh-Hans,failed:TRANSLATION_UNFIT,bb,zh-Hans,translated",
    ]
    assert errors(tmp_path / "out-in.csv") == [
        {"row": 2, "line": 3, "column": "title", "reason": "TRANSLATION_UNFIT", "message": "no good"}
    ]


@pytest.mark.parametrize(
    ("content", "columns", "options", "message"),
    [
        (b"id,body\n1,a\n", ("text",), {}, "no column 'text'; it has: id, body"),
        (b"text,text\na,b\n", ("text",), {}, "2 columns are named 'text'; say which by number: #1, #2"),
        (b"text,text_en\na,b\n", ("text",), {}, "'text_en' is there already"),
        (b"text,text_en_status\na,b\n", ("text",), {"details": True}, "'text_en_status' is there already"),
        (b"a,b\n", ("text",), {"header": False}, "no header: name them #1 to #2"),
        (b"\n1,a\n", ("text",), {}, "first row is empty"),
        (b"a,b\n1,2\n", ("a", "b"), {"output_columns": ("x",)}, "both|two new columns would be named 'x'"),
        (b"a,b\n1,2\n", ("a",), {"output_columns": ("x", "y")}, "2 names for 1 columns"),
        (b"a,b\n1,2\n", (), {}, "name the column"),
    ],
)
def test_csv_usage_errors(
    tmp_path: Path, content: bytes, columns: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        translated(tmp_path, content, columns=columns, **options)
    assert not (tmp_path / "out-in.csv").exists()
    assert not work_path(tmp_path / "out-in.csv").exists()


def test_csv_columns_by_number(tmp_path: Path) -> None:
    assert translated(tmp_path, b"a,x\n", columns=("#2",), header=False) == b"a,x,xx\n"
    assert translated(tmp_path, b"t,t\na,b\n", "d.csv", columns=("#2",)) == b"t,t,2_en\na,b,bb\n"


# Encodings

CHINESE = "编号,text,备注\n" + "".join(f"{i},这家店的奶茶真的很好喝😂，我还会再来的，你也来吧,无\n" for i in range(20))


@pytest.mark.parametrize(
    ("bom", "encoding"),
    [(b"", "utf-8"), (b"", "gb18030"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")],
)
def test_encoding_is_found_and_kept(tmp_path: Path, bom: bytes, encoding: str) -> None:
    output = translated(tmp_path, bom + CHINESE.encode(encoding))
    assert output.startswith(bom)
    lines = output.removeprefix(bom).decode(encoding).splitlines()
    for line, was in zip(lines[1:], CHINESE.splitlines()[1:], strict=True):
        text = was.split(",")[1]
        assert line == f"{was},{text}{text}"


def test_gb18030_is_said(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(CHINESE.encode("gb18030"))
    _, notes = plan([str(source)], "", ExportOptions(columns=("text",), target="en"))
    assert notes == [f"{source}: is not UTF-8, read and written as gb18030; --encoding NAME overrides this"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("text\ncafé olé, garçon\n".encode("latin-1"), id="latin-1"),
        pytest.param("text\nSchöne Grüße aus München\n".encode("cp1252"), id="windows-1252"),
        pytest.param(("text\n" + "這家店的奶茶真的很好喝，我還會再來的\n" * 5).encode("big5"), id="big5"),
        pytest.param(("text\n" + "이 집 밀크티 정말 맛있어요 다시 올게요\n" * 9).encode("euc-kr"), id="euc-kr"),
        pytest.param("text\nお茶はおいしいです、また来ます\n".encode("shift-jis"), id="shift-jis"),
        pytest.param("text\nabc\n".encode("utf-16-le"), id="utf-16 without mark"),
    ],
)
def test_encoding_is_never_guessed(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ExportError, match="--encoding"):
        translated(tmp_path, content)


def test_encoding_can_be_given(tmp_path: Path) -> None:
    content = "text,x\ncafé,1\n".encode("latin-1")
    assert translated(tmp_path, content, encoding="latin-1") == "text,x,text_en\ncafé,1,cafécafé\n".encode("latin-1")
    with pytest.raises(ExportError, match="written back byte for byte; use one of utf-8"):
        translated(tmp_path, content, "b.csv", encoding="big5")


def test_broken_utf8_is_kept_and_reported(tmp_path: Path) -> None:
    good = "好的，没问题\n" * 30
    content = (
        b"id,text\n" + b"".join(f"{i},{t}\n".encode() for i, t in enumerate(good.split())) + b"x\xff,a\n7,\xc3\x28\n"
    )
    output = translated(tmp_path, content)
    # Broken bytes in another column are no reason not to translate.
    assert output.endswith(b"x\xff,a,aa\n7,\xc3\x28,\n")
    assert [(e["row"], e["column"], e["reason"]) for e in errors(tmp_path / "out-in.csv")] == [
        (32, "text", "INVALID_ENCODING")
    ]


def test_translation_that_the_encoding_lacks_is_reported(tmp_path: Path) -> None:
    class Chinese(FakeBackend):
        @staticmethod
        def outcome(text: str) -> Outcome:
            return Outcome("好" if text == "good" else text, "en")

    output = translated(tmp_path, b"text,x\ngood,1\nbad,\xe9\n", encoding="latin-1", backend=Chinese())
    assert output == b"text,x,text_en\ngood,1,\nbad,\xe9,bad\n"
    assert [e["reason"] for e in errors(tmp_path / "out-in.csv")] == ["UNENCODABLE"]


# JSON lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param('{"text": "a", "n": 1.50}\n', '{"text": "a", "n": 1.50, "text_en": "aa"}\n', id="spaced"),
        pytest.param('{"text":"a"}\n', '{"text":"a","text_en":"aa"}\n', id="compact"),
        pytest.param('{"text": "a"} \r\n', '{"text": "a", "text_en": "aa"} \r\n', id="after the brace"),
        pytest.param('{ "text" : "}" }', '{ "text" : "}", "text_en": "}}" }', id="braces, no line end"),
        pytest.param('{"text": "好"}\n', '{"text": "好", "text_en": "好好"}\n', id="as written"),
        pytest.param('{"text": "\\u597d"}\n', '{"text": "\\u597d", "text_en": "\\u597d\\u597d"}\n', id="escaped"),
        pytest.param('{"text": "a\\nb"}\n', '{"text": "a\\nb", "text_en": "a\\nba\\nb"}\n', id="line end"),
        pytest.param('{"text": null}\n', '{"text": null, "text_en": null}\n', id="null"),
        pytest.param('\n{"text": "a"}\n\n', '\n{"text": "a", "text_en": "aa"}\n\n', id="blank lines"),
        pytest.param("", "", id="empty"),
    ],
)
def test_jsonl_bytes(tmp_path: Path, content: str, expected: str) -> None:
    assert translated(tmp_path, content.encode(), "in.jsonl") == expected.encode()
    assert errors(tmp_path / "out-in.jsonl") == []


def test_jsonl_bad_lines_are_kept_and_reported(tmp_path: Path) -> None:
    lines = [
        '{"text": "a"}', '{"text": ', "[1]", '{"other": 1}', '{"text": 7}', '{"text": "\\ud83d"}', "{}",
        '{"text": "b", "text_en": "x"}', '{"text": "c"}',
    ]  # fmt: skip
    content = "\n".join(lines).encode() + b'\n{"text": "\xff"}\n'
    with pytest.raises(ExportError, match="key 'text_en' is there already"):
        translated(tmp_path, content, "in.jsonl", encoding="utf-8")
    # Past the sample a taken key is that row's own error.
    head = b'{"text": "h"}\n' * (files.SAMPLE_BYTES // 14 + 100)
    output = translated(tmp_path, head + content, "in.jsonl", overwrite=True).splitlines()[head.count(b"\n") :]
    assert output[1:4] == [line.encode() for line in lines[1:3]] + [b'{"other": 1, "text_en": null}']
    assert output[6:8] == [b"{}", lines[7].encode()]
    assert output[8] == b'{"text": "c", "text_en": "cc"}'
    assert output[9] == b'{"text": "\xff", "text_en": null}'
    first = head.count(b"\n")
    assert [(e["row"] - first, e["line"] - first, e["reason"]) for e in errors(tmp_path / "out-in.jsonl")] == [
        (2, 2, "INVALID_JSON"),
        (3, 3, "NOT_AN_OBJECT"),
        (4, 4, "MISSING_COLUMN"),
        (5, 5, "NOT_A_STRING"),
        (6, 6, "INVALID_ENCODING"),
        (7, 7, "MISSING_COLUMN"),
        (8, 8, "OUTPUT_COLUMN_EXISTS"),
        (10, 10, "INVALID_ENCODING"),
    ]


def test_jsonl_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no key 'text'; it has: body, n"):
        translated(tmp_path, b'{"body": "a", "n": 1}\n', "in.jsonl")
    with pytest.raises(ExportError, match="is one JSON array"):
        translated(tmp_path, b'[{"text": "a"}]\n', "b.jsonl")


# Parquet


def parquet_table() -> pa.Table:
    texts = ["a", None, "skip", "fail", "b"] * 20
    schema = pa.schema(
        [
            pa.field("id", pa.int32(), metadata={"unit": "none"}),
            pa.field("text", pa.string()),
            pa.field("tag", pa.dictionary(pa.int8(), pa.string())),
            pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("price", pa.decimal128(9, 2)),
            pa.field("nested", pa.struct([("x", pa.list_(pa.float32()))])),
        ],
        metadata={"origin": "test"},
    )
    columns: list[Any] = [
        list(range(100)),
        texts,
        ["t", None] * 50,
        list(range(100)),
        [Decimal(i) for i in range(100)],
        [{"x": [1.5]}] * 100,
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def test_parquet_keeps_everything_else(tmp_path: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table = parquet_table()
    codecs_ = {"text": "zstd"} | dict.fromkeys(["id", "tag", "at", "price", "nested.x.list.element"], "gzip")
    pq.write_table(table, source, row_group_size=33, compression=codecs_)
    summary = run(source, output, window=10, details=True)
    assert summary.exit_code == 1
    result, was = pq.ParquetFile(output), pq.ParquetFile(source)
    assert result.schema_arrow.names == [*table.schema.names, "text_en", "text_en_language", "text_en_status"]
    assert result.schema_arrow.metadata == table.schema.metadata
    for name in table.schema.names:
        assert result.schema_arrow.field(name).equals(was.schema_arrow.field(name), check_metadata=True)
    assert result.read().select(table.schema.names).equals(was.read())
    groups = [result.metadata.row_group(i) for i in range(result.num_row_groups)]
    assert [group.num_rows for group in groups] == [33, 33, 33, 1]
    assert [groups[0].column(i).compression for i in range(6)] == ["GZIP", "ZSTD", "GZIP", "GZIP", "GZIP", "GZIP"]
    values = result.read(["text_en", "text_en_language", "text_en_status"]).to_pylist()
    assert [tuple(value.values()) for value in values[:5]] == [
        ("aa", "zh-Hans", "translated"),
        (None, None, "null"),
        ("skip", "en", "already_target_language"),
        (None, "zh-Hans", "failed:TRANSLATION_UNFIT"),
        ("bb", "zh-Hans", "translated"),
    ]
    assert values[5:] == values[:5] * 19
    assert [(e["row"], e["column"]) for e in errors(output)] == [(i, "text") for i in range(4, 100, 5)]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_string_types(tmp_path: Path, kind: pa.DataType) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", "b", None]).cast(kind)}), source)
    run(source, output)
    assert pq.read_table(output)["text_en"].to_pylist() == ["aa", "bb", None]
    assert pq.read_schema(output).field("text").type == pq.read_schema(source).field("text").type


def test_parquet_old_timestamps_stay(tmp_path: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table = pa.table({"text": ["a"], "at": pa.array([10**18], pa.timestamp("ns"))})
    pq.write_table(table, source, use_deprecated_int96_timestamps=True, store_schema=False)
    run(source, output)
    assert pq.ParquetFile(output).metadata.row_group(0).column(1).physical_type == "INT96"


def test_parquet_usage_errors(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"n": [1], "x_en": ["a"], "x": ["b"]}), source)
    for column, message in (
        ("text", "no column 'text'; it has: n, x_en, x"),
        ("n", "holds int64, not strings"),
        ("x", "'x_en' is there already"),
    ):
        with pytest.raises(ExportError, match=message):
            run(source, columns=(column,))
    source.write_bytes(b"PAR1 but not really")
    with pytest.raises(ExportError, match="cannot be read as Parquet"):
        run(source, columns=("x",))


def test_parquet_without_rows(tmp_path: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), source)
    assert run(source, output).exit_code == 0
    assert pq.read_table(output).schema.names == ["text", "text_en"]


# Compression, several files


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compression(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member a checkpoint, in and out: readers see one file."""
    monkeypatch.setattr("translator.exports.pipeline.CHECKPOINT_SECONDS", 0.0)
    compress: Callable[[bytes], bytes] = gzip.compress if ending == "gz" else zstandard.compress
    content = [b"text,x\n", *(b"a%d,1\n" % i for i in range(50))]
    output = translated(tmp_path, b"".join(map(compress, content)), f"in.csv.{ending}", window=7)
    if ending == "gz":
        plain = gzip.decompress(output)
    else:
        plain = zstandard.ZstdDecompressor().stream_reader(output, read_across_frames=True).read()
    assert plain == b"text,x,text_en\n" + b"".join(b"a%d,1,a%da%d\n" % (i, i, i) for i in range(50))
    assert output.count(compress(b"x")[:4]) >= 8
    empty = translated(tmp_path, b"", f"empty.csv.{ending}")
    assert (gzip.decompress(empty) if ending == "gz" else zstandard.decompress(empty)) == b""


def test_damaged_gzip_keeps_what_was_read(tmp_path: Path) -> None:
    content = b"text,x\n" + b"".join(b"%d,1\n" % (i * i) for i in range(50_000))
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(content)[:-20_000])
    summary = run(tmp_path / "in.csv.gz", tmp_path / "out.csv")
    assert summary.exit_code == 3
    assert "cannot be read on" in summary.stopped
    part = (work_path(tmp_path / "out.csv") / "part").read_bytes().splitlines()
    assert len(part) - 1 == summary.counts.rows > 10_000


def test_several_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_bytes(b"text,n\n%s,1\nshared,2\n" % name.encode())
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "shared"}\n')
    backend = FakeBackend()
    jobs, _ = plan([str(tmp_path / "*.*")], str(tmp_path / "out"), ExportOptions(columns=("text",), target="en"))
    summary = asyncio.run(Pipeline(backend, Reporter("none")).run(jobs))
    assert summary.counts.rows == 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.csv", "b.csv", "c.jsonl"]
    assert (tmp_path / "out/c.jsonl").read_bytes() == b'{"text": "shared", "text_en": "sharedshared"}\n'
    assert sorted(backend.texts) == ["a", "b", "shared"]


def test_plan_refuses_what_would_be_lost(tmp_path: Path) -> None:
    options = ExportOptions(columns=("text",), target="en")
    (tmp_path / "x").mkdir()
    for name in ("a.csv", "x/a.csv"):
        (tmp_path / name).write_bytes(b"text\na\n")
    one = str(tmp_path / "a.csv")
    for inputs, output, message in (
        ([one], one, "is the input itself"),
        ([str(tmp_path / "**/*.csv")], str(tmp_path / "out"), "would both be written to"),
        ([one, str(tmp_path / "x/a.csv")], "-", "several files cannot go to standard output"),
        ([str(tmp_path / "no.csv")], "", "there is no such file"),
        ([str(tmp_path / "x")], "", "is a folder"),
        ([one, "-"], "", "cannot be combined"),
        ([one], str(tmp_path / "o.parquet"), "keeps the input's format, which is csv, not parquet"),
    ):
        with pytest.raises(ExportError, match=message):
            plan(inputs, output, options)
    run(tmp_path / "a.csv")
    assert (tmp_path / "a.en.csv").read_bytes() == b"text,text_en\na,aa\n"
    with pytest.raises(ExportError, match="is there already; --overwrite"):
        run(tmp_path / "a.csv")


# Windows, order, duplicates, memory


def test_order_and_duplicates(tmp_path: Path) -> None:
    """Rows come out as they went in; each text is translated once across windows; windows are sorted by length."""
    texts = [f"{'x' * (i * 7 % 23)}{i % 97}" for i in range(1000)]
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("n,text\n" + "".join(f"{i},{t}\n" for i, t in enumerate(texts)))
    backend = FakeBackend()
    summary = run(source, output, backend=backend, window=64)
    lines = output.read_text().splitlines()[1:]
    assert lines == [f"{i},{t},{t}{t}" for i, t in enumerate(texts)]
    assert sorted(backend.texts) == sorted(set(texts))
    assert all(call == sorted(call, key=len) for call in backend.calls)
    assert summary.counts == Counts(rows=1000, translated=1000, repeated=1000 - len(set(texts)))


class Slow(FakeBackend):
    """Answers only when nothing more comes; notes how much it had then."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._open = 0

    async def translate(self, texts: Sequence[str]) -> list[Outcome]:
        self._open += len(texts)
        before = -1
        while before != self._open:
            before = self._open
            await asyncio.sleep(0.05)
        self.most = max(self.most, self._open)
        self._open -= len(texts)
        return [self.outcome(text) for text in texts]


def test_read_ahead_is_bounded(tmp_path: Path) -> None:
    """The back end never has more than the limit and one window; repeats do not count, but windows do."""
    source = tmp_path / "in.csv"
    source.write_text("text,n\n" + "".join(f"t{i},0\n" for i in range(300)))
    backend = Slow()
    run(source, tmp_path / "out.csv", backend=backend, window=10)  # and 20 comments in flight
    assert 20 <= backend.most < 30
    source.write_text("text,n\n" + "".join(f"t{i // 10},0\n" for i in range(2000)))
    backend = Slow()
    run(source, tmp_path / "out.csv", backend=backend, window=10, overwrite=True)
    assert backend.most == MAX_WINDOWS


def test_lasting_failures_are_remembered(tmp_path: Path) -> None:
    """A comment that the model cannot translate is not tried again; one that met a passing failure is."""
    source = tmp_path / "in.csv"
    source.write_text("text,n\n" + "fail,1\nfail for now,1\n" * 20)
    backend = FakeBackend()
    summary = run(source, tmp_path / "out.csv", backend=backend, window=4)
    assert summary.counts.failed == 40
    assert backend.texts.count("fail") == 1
    assert backend.texts.count("fail for now") > 1


def test_memo_is_bounded(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text,n\n" + "".join(f"t{i},0\n" for i in range(2000)))
    pipeline = Pipeline(FakeBackend(), Reporter("none"), window=100, memo_bytes=50_000)
    jobs, _ = plan([str(source)], "", ExportOptions(columns=("text",), target="en"))
    asyncio.run(pipeline.run(jobs))
    assert 50 < len(pipeline._memo) < 150
    assert pipeline._memo.bytes <= 50_000


# Interruption and resumption


def big(path: Path, rows: int = 3000) -> Path:
    """Rows with repeats, failures, ragged rows and rows of several lines."""
    lines = []
    for i in range(rows):
        text = "fail" if i % 50 == 7 else f'"t{i % 400}\n,"' if i % 9 == 0 else f"t{i * 31 % 700}"
        lines.append(f"{i},{text},extra\n" if i % 83 == 5 and i % 9 else f"{i},{text}\n")
    path.write_text("id,text\n" + "".join(lines))
    return path


@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz", "in.csv.zst", "in.jsonl", "in.parquet"])
def test_resume_after_the_back_end_gave_up(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every format an interrupted run that is resumed gives the same files as one that is not."""
    monkeypatch.setattr("translator.exports.pipeline.CHECKPOINT_SECONDS", 0.0)
    source = tmp_path / name
    texts = [f"t{i * 31 % 700}" if i % 50 else "fail" for i in range(3000)]
    if "csv" in name:
        content = big(tmp_path / "plain").read_bytes()
        pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
        source.write_bytes(pack.get(source.suffix, bytes)(content))
    elif name == "in.jsonl":
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        pq.write_table(pa.table({"text": texts}), source, row_group_size=700)
    whole, pieces = tmp_path / f"whole-{name}", tmp_path / f"pieces-{name}"
    run(source, whole, window=50)
    rows = 0
    for stop in (0, 100, 100, 60, None):
        backend = FakeBackend()
        backend.stop_after = stop
        summary = run(source, pieces, backend=backend, window=50, resume=True)
        assert summary.exit_code == (1 if stop is None else 3)
        rows += summary.here
        assert summary.counts.rows == rows
    unpack = {".gz": gzip.decompress, ".zst": _unpack_zst}.get(source.suffix, bytes)
    assert unpack(pieces.read_bytes()) == unpack(whole.read_bytes())
    assert errors_path(pieces).read_bytes() == errors_path(whole).read_bytes()
    assert rows == summary.counts.rows == 3000


def _unpack_zst(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()


DRIVER = """
    import asyncio, os, signal, sys
    sys.path[:0] = {path!r}
    from tests.test_exports import FakeBackend, run
    from translator.exports import pipeline, work
    from pathlib import Path

    pipeline.CHECKPOINT_SECONDS = 0.0
    source, output, place, count, number = sys.argv[1:]
    left = int(count)

    def maybe_die():
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), int(number))

    def dying(owner, name):
        real = getattr(owner, name)
        def method(*arguments, **named):
            maybe_die()
            return real(*arguments, **named)
        setattr(owner, name, method)

    dying(*{{
        "translate": (FakeBackend, "translate"),
        "write": (work.WorkFolder, "write"),
        "sync": (work.os, "fsync"),
        "rename": (work.Path, "replace"),
        "clean": (work.shutil, "rmtree"),
        "nowhere": (work.Path, "hardlink_to"),
    }}[place])
    sys.exit(run(Path(source), Path(output), window=50, resume=True).exit_code)
"""


def drive(source: Path, output: Path, place: str, count: int, number: int = signal.SIGKILL) -> int:
    """Run in a process that sends itself a signal at the given call of the given function; returns its status."""
    script = textwrap.dedent(DRIVER).format(path=[str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", script, str(source), str(output), place, str(count), str(int(number))]
    return subprocess.run(command, timeout=PATIENCE, check=False, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_kill_9_loses_and_doubles_nothing(tmp_path: Path, kind: str) -> None:
    """Killed while translating, writing, between writing and checkpoint, and in each step of the end."""
    source, whole, output = (tmp_path / f"{name}.{kind}" for name in ("in", "whole", "out"))
    if kind == "csv":
        big(source, 1000)
    else:
        pq.write_table(pa.table({"text": [f"t{i % 300}" for i in range(1000)]}), source, row_group_size=300)
    expected = run(source, whole, window=50).exit_code
    places = [("translate", 3), ("write", 333), ("sync", 8), ("sync", 9), ("sync", 10), ("rename", 5)]
    for place, count in places:
        assert drive(source, output, place, count) == -signal.SIGKILL
        assert not output.exists()
    # From here on all rows are done, and it dies in the last steps.
    for place, count in (("rename", 10_000), ("clean", 1)) if kind == "csv" else (("clean", 1),):
        drive(source, output, place, count)
    assert output.exists()
    assert run(source, output, resume=True).exit_code in (0, expected)
    assert output.read_bytes() == whole.read_bytes()
    if kind == "csv":
        assert errors_path(output).read_bytes() == errors_path(whole).read_bytes()
    assert not work_path(output).exists()


@pytest.mark.parametrize("step", range(1, 5))
def test_killed_in_the_last_steps(tmp_path: Path, step: int) -> None:
    """Each rename of the end may be the last thing that happened."""
    source, whole, output = big(tmp_path / "in.csv", 40), tmp_path / "whole.csv", tmp_path / "out.csv"
    run(source, whole)
    # Renames: first state, last state (all rows done), errors, output.
    assert drive(source, output, "rename", step) == -signal.SIGKILL
    assert run(source, output, resume=True).exit_code == 1
    assert output.read_bytes() == whole.read_bytes()
    assert errors_path(output).read_bytes() == errors_path(whole).read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_finishes_the_window(tmp_path: Path, number: int, status: int) -> None:
    source, whole, output = big(tmp_path / "in.csv"), tmp_path / "whole.csv", tmp_path / "out.csv"
    run(source, whole, window=50)
    assert drive(source, output, "translate", 5, number) == status
    state = json.loads((work_path(output) / "state.json").read_text())
    assert 0 < state["counts"]["rows"] < 3000
    assert not output.exists()
    assert run(source, output, resume=True).counts.rows == 3000
    assert output.read_bytes() == whole.read_bytes()


def stopped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setattr("translator.exports.pipeline.CHECKPOINT_SECONDS", 0.0)
    source, output = big(tmp_path / "in.csv"), tmp_path / "out.csv"
    backend = FakeBackend()
    backend.stop_after = 200
    assert run(source, output, backend=backend, window=50).exit_code == 3
    return source, output


def test_resume_notices_a_changed_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = stopped_run(tmp_path, monkeypatch)
    content = source.read_bytes()
    source.write_bytes(content[:-2] + b"X\n")
    with pytest.raises(ExportError, match="has changed since"):
        run(source, output, resume=True)
    source.write_bytes(content)  # another time of change, the same bytes
    assert run(source, output, resume=True).counts.rows == 3000


def test_resume_notices_changed_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = stopped_run(tmp_path, monkeypatch)
    with pytest.raises(ExportError, match=r"--details = False, not True"):
        run(source, output, resume=True, details=True)
    with pytest.raises(ExportError, match=r"--to = None, not 'fr'"):
        run(source, output, resume=True, translation={"--to": "fr"})
    with pytest.raises(ExportError, match="an unfinished run is there"):
        run(source, output)
    assert run(source, output, overwrite=True).here == 3000


def test_resume_notices_a_short_part_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = stopped_run(tmp_path, monkeypatch)
    os.truncate(work_path(output) / "part", 3)
    with pytest.raises(ExportError, match="is shorter than its checkpoint says"):
        run(source, output, resume=True)


def test_resume_of_a_finished_output_does_nothing(tmp_path: Path) -> None:
    source, output = big(tmp_path / "in.csv", 10), tmp_path / "out.csv"
    run(source, output)
    before = output.stat()
    jobs, notes = plan([str(source)], str(output), ExportOptions(columns=("text",), target="en", resume=True))
    assert (jobs, notes) == ([], [f"{output}: is finished already"])
    os.utime(source, ns=(before.st_mtime_ns + 10, before.st_mtime_ns + 10))
    with pytest.raises(ExportError, match="changed after it"):
        run(source, output, resume=True)


def test_input_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    source, output = big(tmp_path / "in.csv"), tmp_path / "out.csv"

    class Meddling(FakeBackend):
        async def translate(self, texts: Sequence[str]) -> list[Outcome]:
            if not self.calls:
                with source.open("a") as file:
                    file.write("9,new\n")
            return await super().translate(texts)

    summary = run(source, output, backend=Meddling(), window=50)
    assert summary.exit_code == 3
    assert "changed while it was being translated" in summary.stopped
    assert not output.exists()


def test_two_runs_do_not_write_the_same_file(tmp_path: Path) -> None:
    source, output = big(tmp_path / "in.csv"), tmp_path / "out.csv"
    found: list[str] = []

    class Rival(FakeBackend):
        async def translate(self, texts: Sequence[str]) -> list[Outcome]:
            if not self.calls:
                jobs, _ = plan([str(source)], str(output), ExportOptions(("text",), "en", resume=True))
                with pytest.raises(ExportError) as caught:
                    jobs[0].open()
                found.append(str(caught.value))
            return await super().translate(texts)

    assert run(source, output, backend=Rival(), window=50).counts.rows == 3000
    assert found == [f"{output}: another run is writing it"]


def test_overwrite_replaces_output_and_errors(tmp_path: Path) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(b"text,n\nfail,1\n")
    assert run(source, output).exit_code == 1
    source.write_bytes(b"text,n\na,1\n")
    assert run(source, output, overwrite=True).exit_code == 0
    assert output.read_bytes() == b"text,n,text_en\na,1,aa\n"
    assert not errors_path(output).exists()


# Back ends


def test_local_backend() -> None:
    """The library translates, within its limits for one call, on its batch lane."""
    texts = [f"我喜欢{chr(0x4E00 + i)}" for i in range(40)] + ["hello there", "😀", "字" * 101]

    async def main() -> tuple[list[Outcome], int | None]:
        translator = Translator(
            make_settings(max_contents=16, max_request_codepoints=100, max_content_codepoints=100),
            dict(fake_models()),
        )
        backend = LocalBackend(translator, "en")
        await backend.start()
        try:
            return await backend.translate(texts), backend.tokens
        finally:
            await backend.close()

    outcomes, tokens = asyncio.run(main())
    assert [outcome.status for outcome in outcomes] == [
        *["translated"] * 40, "already_target_language", "no_linguistic_content", "failed:CONTENT_TOO_LONG"
    ]  # fmt: skip
    assert len({outcome.text for outcome in outcomes[:40]}) == 40
    assert outcomes[40].text == "hello there"
    assert outcomes[42].text is None
    assert tokens


def test_local_backend_refuses_an_unknown_language() -> None:
    async def main() -> None:
        backend = LocalBackend(Translator(make_settings(), dict(fake_models())), "fr")
        try:
            await backend.start()
        finally:
            await backend.close()

    with pytest.raises(ExportError, match="'fr' is not supported"):
        asyncio.run(main())


def test_local_backend_stops_when_the_model_keeps_failing(tmp_path: Path) -> None:
    """A broken model must not turn a billion rows into a billion errors."""
    models = fake_models()
    models["fake", "zh-en"].failure = lambda texts: RuntimeError("out of memory") if len(texts[0]) < 9 else None
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text,n\n" + "".join(f"我喜欢{chr(0x4E00 + i)},1\n" for i in range(1000)))
    jobs, _ = plan([str(source)], str(output), ExportOptions(("text",), "en"))
    backend = LocalBackend(Translator(make_settings(), dict(models)), "en")
    summary = asyncio.run(Pipeline(backend, Reporter("none"), 40, 20).run(jobs))
    assert summary.exit_code == 3
    assert "keeps failing" in summary.stopped


async def remote(
    source: Path, output: Path, server: Running, window: int = 512, to: str = "en", **connection: Any
) -> Summary:
    jobs, _ = plan([str(source)], str(output), ExportOptions(("text",), to))
    backend = RemoteBackend(Connection(connection.pop("address", server.address), **connection), to)
    return await Pipeline(backend, Reporter("none"), 2 * window, window).run(jobs)


def chinese_file(path: Path, rows: int) -> Path:
    path.write_text("text,n\n" + "".join(f"我喜欢{chr(0x4E00 + i)}和{chr(0x5E00 + i)},{i}\n" for i in range(rows)))
    return path


async def test_remote_gives_what_the_library_gives(tmp_path: Path, start_server: StartServer) -> None:
    source = chinese_file(tmp_path / "in.csv", 500)
    with source.open("a") as file:
        file.write("already English,1\n😀,1\n" + "字" * 5001 + ",1\n")
    server = await start_server(stream_in_flight=16)
    summary = await remote(source, tmp_path / "remote.csv", server, window=100)
    jobs, _ = plan([str(source)], str(tmp_path / "local.csv"), ExportOptions(("text",), "en"))
    local = LocalBackend(Translator(make_settings(), dict(fake_models())), "en")
    expected = await Pipeline(local, Reporter("none"), 200, 100).run(jobs)
    assert (tmp_path / "remote.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
    assert summary.counts == expected.counts
    assert summary.counts.skipped == {"already_target_language": 1, "no_linguistic_content": 1}
    assert [e["reason"] for e in errors(tmp_path / "remote.csv")] == ["CONTENT_TOO_LONG"]


@pytest.mark.parametrize("stream_in_flight", [8, 512])
async def test_remote_comes_back_after_a_restart(
    tmp_path: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, stream_in_flight: int
) -> None:
    """The server drains in the middle and another one takes its port: each row gets its translation once."""
    monkeypatch.setattr("translator.exports.remote.FIRST_DELAY", 0.05)
    source = chinese_file(tmp_path / "in.csv", 400)
    first = await start_server(stream_in_flight=stream_in_flight)
    first.zh_en.hold()
    warm_up = len(first.zh_en.batches)
    task = asyncio.create_task(remote(source, tmp_path / "out.csv", first, window=50))
    await first.zh_en.started(warm_up + 1)
    port = first.server.port
    stop = asyncio.create_task(first.server.stop(0))
    first.zh_en.release()
    await stop
    second = await start_server(port=port)
    summary = await asyncio.wait_for(task, PATIENCE)
    assert summary.exit_code == 0
    assert summary.counts.rows == 400
    assert second.zh_en.sentences
    lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in lines] == [str(i) for i in range(400)]
    assert all(line.split(",")[2] for line in lines)


async def test_remote_gives_up_in_the_end(
    tmp_path: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("translator.exports.remote.FIRST_DELAY", 0.02)
    source = chinese_file(tmp_path / "in.csv", 400)
    server = await start_server()
    server.zh_en.hold()
    warm_up = len(server.zh_en.batches)
    task = asyncio.create_task(remote(source, tmp_path / "out.csv", server, window=50, patience=0.2))
    await server.zh_en.started(warm_up + 1)
    stop = asyncio.create_task(server.server.stop(0))
    server.zh_en.release()
    await stop
    summary = await asyncio.wait_for(task, PATIENCE)
    assert summary.exit_code == 3
    assert "no answer for" in summary.stopped
    assert work_path(tmp_path / "out.csv").exists()


async def test_remote_stops_when_the_server_hangs(tmp_path: Path, start_server: StartServer) -> None:
    source = chinese_file(tmp_path / "in.csv", 100)
    server = await start_server()
    server.zh_en.hold()
    summary = await asyncio.wait_for(remote(source, tmp_path / "out.csv", server, patience=0.3), PATIENCE)
    assert summary.exit_code == 3
    assert "does not answer" in summary.stopped
    server.zh_en.release()
    jobs, _ = plan([str(source)], str(tmp_path / "out.csv"), ExportOptions(("text",), "en", resume=True))
    again = Pipeline(RemoteBackend(Connection(server.address), "en"), Reporter("none"))
    assert (await again.run(jobs)).counts.translated == 100


async def test_remote_usage_errors(tmp_path: Path, start_server: StartServer) -> None:
    source = chinese_file(tmp_path / "in.csv", 3)
    server = await start_server(auth_token="secret")
    with pytest.raises(ExportError, match="UNAUTHENTICATED"):
        await remote(source, tmp_path / "a.csv", server)
    with pytest.raises(ExportError, match="'fr' is not supported"):
        await remote(source, tmp_path / "b.csv", server, to="fr", token="secret")
    with pytest.raises(ExportError, match="belong together"):
        await remote(source, tmp_path / "c.csv", server, certificate=source)
    assert (await remote(source, tmp_path / "d.csv", server, token="secret")).exit_code == 0


async def test_remote_mutual_tls(tmp_path: Path, start_server: StartServer) -> None:
    authority = trustme.CA()
    own, client = authority.issue_cert("localhost"), authority.issue_cert("client@example.org")
    files_ = {
        "ca": authority.cert_pem,
        "cert": own.cert_chain_pems[0],
        "key": own.private_key_pem,
        "client_cert": client.cert_chain_pems[0],
        "client_key": client.private_key_pem,
    }
    paths = {name: tmp_path / f"{name}.pem" for name in files_}
    for name, blob in files_.items():
        blob.write_to_path(paths[name])
    server = await start_server(tls_certificate=paths["cert"], tls_private_key=paths["key"], tls_client_ca=paths["ca"])
    source, address = chinese_file(tmp_path / "in.csv", 20), f"localhost:{server.server.port}"
    connection: dict[str, Any] = {"address": address, "ca": paths["ca"], "patience": 0.5}
    with pytest.raises(ExportError, match="UNAVAILABLE"):
        await remote(source, tmp_path / "a.csv", server, **connection)
    summary = await remote(
        source,
        tmp_path / "b.csv",
        server,
        **connection,
        certificate=paths["client_cert"],
        key=paths["client_key"],
    )
    assert summary.counts.translated == 20


# Command line


# How good the embedded model is does not matter here.
ANY_OUTPUT = {"COMMENT_TRANSLATE_GUARD": "false"}


def invoke(*arguments: str | Path, cache_dir: Path) -> Any:
    words = ["file", *map(str, arguments), "--cache-dir", str(cache_dir), "--progress", "none"]
    return CliRunner().invoke(app, words, env=ANY_OUTPUT)


def test_command_translates_a_pipe(cache_dir: Path) -> None:
    # Converting the models for the first time takes its time on a busy machine.
    result = subprocess.run(
        [sys.executable, "-m", "translator.cli", "file", "-", "-c", "text", "-t", "en", "--cache-dir", str(cache_dir)],
        input=gzip.compress('{"text": "今天天气真好"}\nnot json\n'.encode()),
        capture_output=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | ANY_OUTPUT,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    first, second = result.stdout.decode().splitlines()
    assert first.startswith('{"text": "今天天气真好", "text_en": "')
    assert json.loads(first)["text_en"] not in ("", "今天天气真好")
    assert second == "not json"
    (report,) = [json.loads(line) for line in result.stderr.splitlines() if b"INVALID_JSON" in line]
    assert (report["row"], report["column"]) == (2, None)


def test_command_glossary_and_exit_status(tmp_path: Path, cache_dir: Path) -> None:
    source, glossary = tmp_path / "in.csv", tmp_path / "terms.tsv"
    source.write_text("text,n\n我喜欢奶茶,1\n" + "字" * 6000 + ",2\n")
    glossary.write_text("# terms\n奶茶\tBubble Tea\n")
    result = invoke(source, "-c", "text", "-t", "en", "--glossary", glossary, cache_dir=cache_dir)
    assert result.exit_code == 1, result.output
    assert "Bubble Tea" in (tmp_path / "in.en.csv").read_text()
    assert "1 rows failed" in result.stderr
    glossary.write_text("奶茶 without tab\n")
    result = invoke(source, "-c", "text", "-t", "en", "--glossary", glossary, "--overwrite", cache_dir=cache_dir)
    assert result.exit_code == 2
    assert "line 1: is not a term, a tab and its translation" in result.stderr


def test_command_usage_errors(tmp_path: Path, cache_dir: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("body,n\na,1\n")
    result = invoke(source, "-c", "text", "-t", "en", cache_dir=cache_dir)
    assert (result.exit_code, result.stderr) == (
        2,
        f"comment-translate: {source}: has no column 'text'; it has: body, n\n",
    )
    assert invoke(source, "-t", "en", cache_dir=cache_dir).exit_code == 2
    assert invoke(source, "-c", "body", "-t", "fr", cache_dir=cache_dir).exit_code == 2


# Progress


def test_reporter_bar() -> None:
    """On a terminal: messages stay, the bar does not, and all figures fit into a narrow one."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Reporter("auto", stream) as reporter:
        reporter.update("a.csv", Counts(), 0, 0.0)
        reporter.say("a note")
        reporter.update("a.csv", Counts(rows=123_456, translated=100_000, repeated=50_000, failed=7), 10**6, 0.5)
    shown = stream.getvalue()
    assert "a note" in shown
    assert "123,456 rows" in shown
    assert "50% repeats" in shown
    assert "left" in shown


def test_reporter_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("translator.exports.progress.monotonic", lambda: now)
    stream = io.StringIO()
    with Reporter("auto", stream) as reporter:
        for i in range(25):
            now = 100.0 + i
            reporter.update(
                "a.csv", Counts(rows=i * 50, translated=i * 40, repeated=i * 10, failed=1), i * 1000, i / 25
            )
    lines = stream.getvalue().splitlines()
    assert lines == [
        "a.csv: 500 rows, 50 rows/s, 1,000 tokens/s, 25% repeats, 1 failed, 40.0%, 15 s left",
        "a.csv: 1,000 rows, 50 rows/s, 1,000 tokens/s, 25% repeats, 1 failed, 80.0%, 5 s left",
    ]
