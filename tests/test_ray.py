"""Ray Data jobs on a local cluster of a few workers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import make_settings
from translator.exports.jobs import ExportOptions
from translator.exports.rows import ExportError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'comment-translate[ray]'")

from translator import ray_job  # noqa: E402
from translator.ray_job import RayOptions, RaySummary  # noqa: E402

WORDS = ["今天天气真好", "这家店的奶茶绝了", "我喜欢你", "谢谢", "see you tomorrow", "😀"]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        _system_config={"worker_niceness": 0},  # by default workers starve on a busy machine
    )
    yield
    ray.shutdown()


def run(source: Path, output: Path, cache_dir: Path, **options: Any) -> RaySummary:
    """Without the guard: how good the embedded model is does not matter here."""
    details = options.pop("details", False)
    columns = ExportOptions(("text",), "en", details=details).resolve()
    given: dict[str, Any] = {"num_workers": 2, "batch_rows": 50} | options
    return ray_job.run(
        str(source), str(output), RayOptions(columns, "en", **given), make_settings(cache_dir=cache_dir, guard=False)
    )


def parts(output: Path) -> list[Path]:
    return sorted(path for path in output.iterdir() if path.name[0] not in "_.")


def failures(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(output.glob("_errors/*")) for line in path.open(encoding="utf-8")]


def test_csv(tmp_path: Path, cache_dir: Path) -> None:
    """Two files, one of them compressed, with all that a CSV can have: each row comes out once, as it was."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    first = [f'{i},"{WORDS[i % 6]}",x\r\n' for i in range(300)]
    second = ['300,"谢\n谢",x\r\n', "301,ragged\r\n", "\r\n", "302,我喜欢你,x"]
    (source / "a.csv").write_bytes(("id,text,n\r\n" + "".join(first)).encode())
    (source / "b.csv.gz").write_bytes(gzip.compress(("id,text,n\r\n" + "".join(second)).encode()))
    summary = run(source, output, cache_dir, keep_order=True)
    assert summary.exit_code == 1
    counts = summary.counts
    assert (counts.rows, counts.failed) == (303, 1)
    assert counts.skipped == {"already_target_language": 50, "no_linguistic_content": 50}
    assert counts.translated == 202
    assert counts.repeated >= 202 - 2 * 6  # each worker translates a comment at most once
    lines = []
    for path in parts(output):
        head, *rows = path.read_bytes().decode().split("\r\n")
        assert head == "id,text,n,text_en"
        assert rows.pop() == ""
        lines += rows
    inputs = [row.removesuffix("\r\n") for row in first + second]
    for line, was in zip(lines, inputs, strict=True):
        added = line.removeprefix(was)
        assert len(added) == len(line) - len(was)
        assert (added == "") == (was in ("301,ragged", ""))
    assert {(e["reason"], e["row"], e["file"]) for e in failures(output)} == {
        ("RAGGED_ROW", 2, str(source / "b.csv.gz"))
    }
    assert json.loads((output / "_SUCCESS").read_text())["rows"] == 303


def test_jsonl(tmp_path: Path, cache_dir: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    lines = [json.dumps({"text": f"{WORDS[i % 6]}\u2028", "n": 1.50}, ensure_ascii=False) for i in range(100)]
    lines[7] = '{"text": '
    source.write_text("\n".join(lines), "utf-8")
    summary = run(source, output, cache_dir, keep_order=True, details=True, num_workers=1)
    assert (summary.counts.rows, summary.counts.failed) == (100, 1)
    found = [line for path in parts(output) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert found[7] == lines[7]
    for i, (line, was) in enumerate(zip(found, lines, strict=True)):
        if i != 7:
            assert line.startswith(was.removesuffix("}") + ', "text_en": "')
            assert json.loads(line)["text_en_status"] in (
                "translated",
                "already_target_language",
                "no_linguistic_content",
            )


def test_parquet(tmp_path: Path, cache_dir: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out"
    texts = [None if i % 7 == 0 else "字" * 6000 if i == 5 else WORDS[i % 6] for i in range(300)]
    table = pa.table(
        {"n": pa.array(range(300), pa.int16()), "text": texts, "at": pa.array(range(300), pa.timestamp("ms", "UTC"))}
    )
    pq.write_table(table, source, row_group_size=40)
    summary = run(source, output, cache_dir, details=True)
    assert (summary.counts.rows, summary.counts.failed) == (300, 1)
    result = pa.concat_tables([pq.read_table(path) for path in parts(output)]).sort_by("n")
    assert result.schema.names == ["n", "text", "at", "text_en", "text_en_language", "text_en_status"]
    assert result.select(["n", "text", "at"]).equals(table)
    for row in result.to_pylist():
        assert (row["text_en"] is None) == (row["text"] is None or row["n"] == 5)
    assert [e["reason"] for e in failures(output)] == ["CONTENT_TOO_LONG"]


def test_what_is_refused(tmp_path: Path, cache_dir: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    with pytest.raises(ExportError, match="there is no such file or folder"):
        run(source, output, cache_dir)
    source.mkdir()
    (source / "_SUCCESS").write_text("not data")
    with pytest.raises(ExportError, match="has no files"):
        run(source, output, cache_dir)
    (source / "a.csv").write_text("body\n好\n")
    with pytest.raises(ExportError, match="has no column 'text'; it has: body"):
        run(source, output, cache_dir)
    (source / "a.csv").write_text("text,n\n好,1\n")
    (source / "b.csv").write_text("n,text\n1,好\n")
    with pytest.raises(ExportError, match="has another header than the first file"):
        run(source, output, cache_dir)
    output.mkdir(exist_ok=True)
    (output / "old").write_text("kept")
    with pytest.raises(ExportError, match="is not empty"):
        run(source / "a.csv", output, cache_dir)
    assert run(source / "a.csv", output, cache_dir, overwrite=True, num_workers=1).exit_code == 0
    assert not (output / "old").exists()
