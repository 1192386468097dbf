"""Where models come from, and what is said when they do not come."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from translator import registry
from translator.errors import ConfigError, ModelError
from translator.registry import OPTIONAL, VOCABULARY, WEIGHTS, ModelSource

PAIRS = ("zh-en", "en-zh")


def embedded(pair: str = "zh-en") -> ModelSource:
    return registry.read_manifest()["embedded"][pair]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of an embedded model that a test may damage."""
    source = embedded().folder
    assert source
    return Path(shutil.copytree(source, tmp_path / "model"))


@pytest.fixture
def manifest(tmp_path: Path, folder: Path) -> Path:
    """A manifest of one family whose first direction is that copy."""
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "manifest.toml"
    path.write_text(
        '# A comment at the top.\n\n[mine.zh-en]\nfolder = "model"\nlicense = "CC0-1.0"\n\n'
        '[mine.en-zh]\nfolder = "other"\n\n# A comment between.\n[hub.zh-en]\nhub = "a/b"\nrevision = "123"\n'
    )
    return path


# The manifest


def test_the_manifest_is_complete() -> None:
    for family, pairs in registry.read_manifest().items():
        for pair, source in pairs.items():
            where = f"{family}/{pair}"
            assert pair in PAIRS, where
            assert source.license not in ("", "unknown"), where
            assert bool(source.folder) != bool(source.hub), where
            if source.hub:
                assert len(source.revision) == 40, f"{where}: a branch is not a pinned revision"


@pytest.mark.parametrize("pair", PAIRS)
def test_the_embedded_files_have_their_recorded_hashes(pair: str) -> None:
    """After new weights: comment-translate models hash (registry.write_hashes)."""
    source = embedded(pair)
    assert source.folder
    recorded = dict(source.sha256)
    present = {name for name in (*WEIGHTS, *VOCABULARY, *OPTIONAL) if (source.folder / name).exists()}
    assert set(recorded) == present
    assert {name: registry.sha256_of(source.folder / name) for name in recorded} == recorded


def test_opus_mt_en_zh_is_told_which_chinese_to_write() -> None:
    source = registry.read_manifest()["opus-mt"]["en-zh"]
    assert source.target_prefix == ">>cmn_Hans<<"


def test_hashes_are_written_into_the_manifest_and_nothing_else_changes(manifest: Path, folder: Path) -> None:
    before = manifest.read_text()
    registry.write_hashes("mine", manifest)
    first = manifest.read_text()
    families = registry.read_manifest(manifest)
    assert dict(families["mine"]["zh-en"].sha256)["config.json"] == registry.sha256_of(folder / "config.json")
    assert len(families["mine"]["en-zh"].sha256) == len(families["mine"]["zh-en"].sha256)
    assert [line for line in first.splitlines() if line in before.splitlines() and line] == [
        line for line in before.splitlines() if line
    ]
    registry.write_hashes("mine", manifest)
    assert manifest.read_text() == first
    (folder / "config.json").write_text(json.dumps({"model_type": "marian"}))
    with pytest.raises(ModelError, match="SHA-256"):
        registry.locate(families["mine"]["zh-en"], manifest.parent)
    registry.write_hashes("mine", manifest)
    assert registry.locate(registry.read_manifest(manifest)["mine"]["zh-en"], manifest.parent)
    (folder / "source.spm").unlink()
    with pytest.raises(ModelError, match=r"source\.spm"):
        registry.write_hashes("mine", manifest)
    for unfit in ("hub", "nobody"):
        with pytest.raises(ConfigError, match=unfit):
            registry.write_hashes(unfit, manifest)


# Settings.model


def test_families_and_pairs() -> None:
    assert [(source.name, source.pair) for source in registry.sources("embedded")] == [
        ("embedded", "zh-en"),
        ("embedded", "en-zh"),
    ]
    both = registry.sources(" embedded , opus-mt ")
    assert [source.name for source in both] == ["embedded", "embedded", "opus-mt", "opus-mt"]


def test_a_folder_and_a_hub_id(folder: Path) -> None:
    one, two = registry.sources(f"zh-en={folder},en-zh=Helsinki-NLP/opus-mt-en-zh")
    assert (one.name, one.folder, one.hub) == ("custom", folder.resolve(), "")
    known = registry.read_manifest()["opus-mt"]["en-zh"]
    assert (two.hub, two.revision, two.target_prefix) == (known.hub, known.revision, known.target_prefix)
    (three,) = registry.sources("zh-en=some/model@abc123")
    assert (three.hub, three.revision) == ("some/model", "abc123")


@pytest.mark.parametrize(
    "setting",
    ["", " , ", "nothing", "fr-en=some/model", "zh-en=", "zh-en=/no/such/folder", "zh-en=model", "embedded,embedded"],
)
def test_a_wrong_setting_is_named(setting: str) -> None:
    with pytest.raises(ConfigError, match="model"):
        registry.sources(setting)


# On disk


def test_a_good_folder(folder: Path, tmp_path: Path) -> None:
    (source,) = registry.sources(f"zh-en={folder}")
    found = registry.locate(source, tmp_path)
    assert found.path == folder.resolve()
    assert len(found.revision) == 64
    assert found.max_tokens > 0
    again = registry.locate(source, tmp_path)
    assert again.revision == found.revision
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert registry.locate(source, tmp_path).revision != found.revision, "other weights, other cache keys"


@pytest.mark.parametrize("name", ["model.safetensors", *VOCABULARY])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        registry.locate(ModelSource("custom", "zh-en", folder), tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "source.spm", "vocab.json"])
def test_a_damaged_file_is_noticed(folder: Path, tmp_path: Path, name: str) -> None:
    hashes = tuple((file, registry.sha256_of(folder / file)) for file in ("model.safetensors", *VOCABULARY))
    source = ModelSource("custom", "zh-en", folder, sha256=hashes)
    assert registry.locate(source, tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=rf"{name}.*SHA-256"):
        registry.locate(source, tmp_path)


@pytest.mark.parametrize(("config", "word"), [("{", "JSON"), ('{"model_type": "bert"}', "bert")])
def test_another_kind_of_model_is_refused(folder: Path, tmp_path: Path, config: str, word: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match=word):
        registry.locate(ModelSource("custom", "zh-en", folder), tmp_path)


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        registry.locate(ModelSource("custom", "zh-en", tmp_path / "gone"), tmp_path)
    assert registry.on_disk(ModelSource("custom", "zh-en", tmp_path / "gone")) is None


# The Hub, without a network


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and a network that fails every test that touches it."""
    import huggingface_hub.constants

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_without_a_network_the_error_says_what_to_do(hub: Path, tmp_path: Path) -> None:
    source = registry.read_manifest()["opus-mt"]["zh-en"]
    with pytest.raises(ModelError) as failed:
        registry.locate(source, tmp_path)
    for word in ("Helsinki-NLP/opus-mt-zh-en", "network", "--model zh-en=FOLDER"):
        assert word in str(failed.value)
    with pytest.raises(ModelError, match="models pull opus-mt"):
        registry.locate(source, tmp_path, download=False)
    assert not hub.exists() or not any(hub.rglob("*.safetensors"))


def snapshot(hub: Path, folder: Path, names: tuple[str, ...]) -> Path:
    """Lay files out as huggingface_hub does."""
    revision = "1" * 40
    path = hub / "models--some--model" / "snapshots" / revision
    path.mkdir(parents=True)
    (hub / "models--some--model" / "refs").mkdir()
    (hub / "models--some--model" / "refs" / "main").write_text(revision)
    for name in names:
        shutil.copy(folder / name, path / name)
    return path


def test_a_pulled_model_is_found_and_checked(hub: Path, folder: Path, tmp_path: Path) -> None:
    path = snapshot(hub, folder, ("model.safetensors", *VOCABULARY))
    source = ModelSource("custom", "zh-en", hub="some/model")
    found = registry.locate(source, tmp_path / "cache")
    assert (found.path, found.revision) == (path, "1" * 40)
    record = tmp_path / "cache" / "sha256" / f"some--model@{'1' * 40}.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"vocab.json": "0" * 64}))
    with pytest.raises(ModelError, match=r"vocab\.json.*SHA-256"):
        registry.locate(source, tmp_path / "cache")
    record.write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        registry.locate(source, tmp_path / "cache")


def test_an_interrupted_pull_is_not_taken_for_a_model(hub: Path, folder: Path, tmp_path: Path) -> None:
    snapshot(hub, folder, ("model.safetensors", "config.json"))
    source = ModelSource("custom", "zh-en", hub="some/model")
    assert registry.on_disk(source) is None
    with pytest.raises(ModelError, match="cannot fetch"):  # it tries again, and there is no network
        registry.locate(source, tmp_path)
