"""The cache over a restart: what comes back, and what must not."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import zstandard
from conftest import FakeModel, StartServer, chinese_sentences, fake_models, make_settings, to_english, translate
from hypothesis import given
from hypothesis import strategies as st

from server.serve import Server
from translator import snapshot
from translator.cache import Entry, Key, TranslationCache
from translator.errors import ConfigError
from translator.guard import Problem
from translator.model import DecodingOptions

OPTIONS = DecodingOptions(beam_size=2)
MODEL = "fake/zh-en/r1/fake/cpu/exact"


async def test_a_restarted_server_is_warm(start_server: StartServer, tmp_path: Path) -> None:
    path, sentences = tmp_path / "cache.zst", chinese_sentences(5)
    running = await start_server(cache_file=path)
    await translate(running, *sentences)
    await running.server.stop(0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # it holds what users wrote
    assert os.listdir(tmp_path) == ["cache.zst"]

    again = await start_server(cache_file=path)
    before = len(again.zh_en.batches)
    answers = await translate(again, *sentences)
    assert [answer.translated_text for answer in answers] == [to_english(sentence) for sentence in sentences]
    assert all(answer.cache_hit for answer in answers)
    assert len(again.zh_en.batches) == before


@pytest.mark.parametrize("changed", ["version", "model", "beam_size", "guard"])
async def test_what_may_translate_otherwise_starts_empty(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    path, (sentence,) = tmp_path / "cache.zst", chinese_sentences(1)
    running = await start_server(cache_file=path)
    await translate(running, sentence)
    await running.server.stop(0)

    settings: dict[str, Any] = {"beam_size": {"beam_size": 5}, "guard": {"guard": False}}.get(changed, {})
    models = fake_models()
    if changed == "version":
        monkeypatch.setattr(snapshot, "__version__", "0.0.0")
    if changed == "model":
        models["fake", "zh-en"] = FakeModel("zh-en", revision="r2")
    again = await start_server(models, cache_file=path, **settings)
    assert not (await translate(again, sentence))[0].cache_hit


@pytest.mark.parametrize(
    "damage", ["cut", "not zstandard", "not json", "no list", "not ours", "empty", "unknown problem"]
)
async def test_a_damaged_file_costs_the_cache_and_not_the_start(
    start_server: StartServer, tmp_path: Path, damage: str
) -> None:
    path, sentences = tmp_path / "cache.zst", chinese_sentences(50)
    running = await start_server(cache_file=path)
    await translate(running, *sentences)
    await running.server.stop(0)
    whole = path.read_bytes()
    header = zstandard.decompress(whole, 2**20).splitlines()[0]
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "not zstandard": b"[]",
            "not json": zstandard.compress(header + b"\n{]"),
            "no list": zstandard.compress(header + b"\n5\n"),
            "not ours": zstandard.compress(b'{"some": "thing"}\n["a", "b"]\n'),
            "empty": b"",
            "unknown problem": zstandard.compress(header + f'\n["{MODEL}", "a", "b", "c"]\n'.encode()),
        }[damage]
    )
    again = await start_server(cache_file=path)
    assert not any(answer.cache_hit for answer in await translate(again, *sentences))
    await again.server.stop(0)
    assert zstandard.decompress(path.read_bytes(), 2**20).count(b"\n") > 50


async def test_a_start_that_fails_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "cache.zst"
    path.write_bytes(b"as it was")
    models = fake_models()
    models["fake", "zh-en"].failure = lambda _: RuntimeError("broken")
    server = Server(make_settings(cache_file=path), dict(models))
    with pytest.raises(Exception, match="first translation failed"):
        await server.start()
    await server.stop(0)
    assert path.read_bytes() == b"as it was"


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"cache_file": Path("/nowhere/at/all/cache.zst")}, "cache_file: the folder /nowhere/at/all"),
        ({"cache_file": Path("cache.zst"), "cache_ttl_seconds": 60}, "cache_file and cache_ttl_seconds exclude"),
    ],
)
async def test_a_file_that_cannot_be_kept_is_refused_at_the_start(given_settings: dict[str, Any], message: str) -> None:
    server = Server(make_settings(**given_settings), dict(fake_models()))
    with pytest.raises(ConfigError, match=message):
        await server.start()
    await server.stop(0)


async def test_a_full_disk_does_not_stop_the_stop(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    running = await start_server(cache_file=tmp_path / "cache.zst")
    await translate(running, *chinese_sentences(1))
    monkeypatch.setattr(snapshot.os, "replace", full)
    await running.server.stop(0)
    assert os.listdir(tmp_path) == []


@given(
    st.lists(
        st.tuples(st.text(), st.text(), st.sampled_from([None, *Problem])), unique_by=lambda item: item[0], max_size=20
    )
)
def test_every_entry_comes_back_in_its_order(tmp_path_factory: pytest.TempPathFactory, items: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.zst"
    entries = [(Key(MODEL, OPTIONS, sentence), Entry(text, problem)) for sentence, text, problem in items]
    assert snapshot.save(path, entries, OPTIONS, True) == len(entries)
    assert snapshot.load(path, [MODEL], OPTIONS, True) == entries
    assert snapshot.load(path, [], OPTIONS, True) == []


def test_what_was_used_last_is_kept_longest() -> None:
    cache: TranslationCache[Any] = TranslationCache(1_000_000)
    keys = [Key(MODEL, OPTIONS, sentence) for sentence in ("甲", "乙", "丙")]
    for key in keys:
        cache.put(key, Entry("text"))
    cache.get(keys[0])
    assert [key.sentence for key, _ in cache.take_sentences()] == ["乙", "丙", "甲"]
    assert cache.bytes == 0
