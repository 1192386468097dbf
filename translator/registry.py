"""Where models come from: the manifest, local folders and the Hugging Face Hub.

``Settings.model`` is a comma-separated list. An entry is a family of models/manifest.toml (``embedded``,
``opus-mt``), or ``PAIR=WHERE`` where WHERE is a MarianMT folder or a Hub id, optionally ``@REVISION``.
The first family is the default.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from translator.errors import ConfigError, ModelError
from translator.model import PAIRS, ModelDescription

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
VOCABULARY = ("config.json", "source.spm", "target.spm", "vocab.json")
# A lexical shortlist in CTranslate2's format, made by models/train.py; see translator.engines.marian_ct2.
SHORTLIST = "vmap.txt"
OPTIONAL = ("target_vocab.json", "generation_config.json", "tokenizer_config.json", SHORTLIST)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One direction as configured: a folder, or a Hub repository at a revision."""

    name: str
    pair: str
    folder: Path | None = None
    hub: str = ""
    revision: str = ""
    license: str = "unknown"
    target_prefix: str = ""
    sha256: tuple[tuple[str, str], ...] = ()

    @property
    def where(self) -> str:
        """For people: the folder, or ``hub@revision``."""
        return str(self.folder) if self.folder else f"{self.hub}@{self.revision or 'main'}"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One direction on disk, checked and ready for an engine."""

    name: str
    pair: str
    path: Path
    revision: str
    license: str
    target_prefix: str
    max_tokens: int

    def describe(self, engine: str, device: str, compute_type: str, placeholders: tuple[str, ...]) -> ModelDescription:
        """This direction as an engine has loaded it."""
        return ModelDescription(
            name=self.name,
            pair=self.pair,
            revision=self.revision,
            license=self.license,
            engine=engine,
            device=device,
            compute_type=compute_type,
            placeholders=placeholders,
        )


def models_dir() -> Path:
    """The models/ folder: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    for candidate in (package.parent / "models", package / "_models"):
        if (candidate / "manifest.toml").exists():
            return candidate
    raise ModelError("models/manifest.toml is missing: the installation is incomplete")


def read_manifest(manifest: Path | None = None) -> dict[str, dict[str, ModelSource]]:
    """family -> pair -> source.

    Args:
        manifest: by default models/manifest.toml of this installation.
    """
    manifest = manifest or models_dir() / "manifest.toml"
    root = manifest.parent
    try:
        data = tomllib.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{manifest}: {error}") from error
    families: dict[str, dict[str, ModelSource]] = {}
    for name, pairs in data.items():
        for pair, entry in pairs.items():
            families.setdefault(name, {})[pair] = ModelSource(
                name=name,
                pair=pair,
                folder=root / entry["folder"] if "folder" in entry else None,
                hub=entry.get("hub", ""),
                revision=entry.get("revision", ""),
                license=entry.get("license", "unknown"),
                target_prefix=entry.get("target_prefix", ""),
                sha256=tuple(sorted(entry.get("sha256", {}).items())),
            )
    return families


def sources(setting: str) -> list[ModelSource]:
    """The directions that ``Settings.model`` names, default family first.

    Raises:
        ConfigError: an entry is neither a family nor ``PAIR=WHERE``, or a pair stands twice.
    """
    manifest = read_manifest()
    found: list[ModelSource] = []
    for entry in filter(None, (part.strip() for part in setting.split(","))):
        if entry in manifest:
            found += manifest[entry].values()
            continue
        pair, equals, where = entry.partition("=")
        if not equals or pair not in PAIRS or not where:
            raise ConfigError(
                f"model: {entry!r} is neither a family ({', '.join(manifest)}) nor PAIR=WHERE with a pair of "
                f"{', '.join(PAIRS)} and a MarianMT folder or Hub id"
            )
        found.append(_custom(pair, where, manifest))
    if not found:
        raise ConfigError("model: names no model")
    keys = [(source.name, source.pair) for source in found]
    if twice := {f"{name}/{pair}" for name, pair in keys if keys.count((name, pair)) > 1}:
        raise ConfigError(f"model: given twice: {', '.join(sorted(twice))}")
    return found


def _custom(pair: str, where: str, manifest: dict[str, dict[str, ModelSource]]) -> ModelSource:
    folder = Path(where).expanduser()
    if folder.is_dir():
        return ModelSource(name="custom", pair=pair, folder=folder.resolve())
    hub, _, revision = where.partition("@")
    if hub.count("/") != 1 or hub.startswith((".", "/", "~")):
        raise ConfigError(f"model: {where!r} is neither a folder here nor a Hub id such as Helsinki-NLP/opus-mt-zh-en")
    for family in manifest.values():
        for known in family.values():
            if known.hub == hub and revision in ("", known.revision):
                return ModelSource(
                    name="custom",
                    pair=pair,
                    hub=hub,
                    revision=known.revision,
                    license=known.license,
                    target_prefix=known.target_prefix,
                )
    return ModelSource(name="custom", pair=pair, hub=hub, revision=revision)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_hashes(family: str = "embedded", manifest: Path | None = None) -> Path:
    """Record the SHA-256 of a family's files in the manifest; to be run when its weights have changed.

    Only the tables ``[FAMILY.PAIR.sha256]`` are rewritten; the rest of the file stays as it is.

    Args:
        manifest: by default models/manifest.toml of this checkout.

    Returns:
        The manifest.

    Raises:
        ConfigError: no such family, or one that lives on the Hub (``pull`` records those).
        ModelError: a folder is incomplete.
    """
    manifest = manifest or models_dir() / "manifest.toml"
    pairs = read_manifest(manifest).get(family, {})
    if not pairs or any(source.folder is None for source in pairs.values()):
        raise ConfigError(f"{family!r} is not a family of {manifest.name} whose weights lie in folders")
    text = manifest.read_text(encoding="utf-8")
    for pair, source in pairs.items():
        assert source.folder
        _require_files(source.folder, source)
        header = f"[{family}.{pair}.sha256]"
        lines = [header, *(f'"{file.name}" = "{sha256_of(file)}"' for file in _files(source.folder))]
        table = "\n".join(lines) + "\n"
        # A table runs to the next blank line, table or comment.
        old = re.compile(rf"^{re.escape(header)}\n(?:[^\[#\n].*\n?)*", re.MULTILINE)
        if old.search(text):
            text = old.sub(lambda _, new=table: new, text)  # type: ignore[misc]
        else:
            own = re.compile(rf"^\[{re.escape(family)}\.{re.escape(pair)}\]\n(?:[^\[#\n].*\n?)*", re.MULTILINE)
            text = own.sub(lambda match, new=table: f"{match[0].rstrip()}\n\n{new}", text)  # type: ignore[misc]
    tomllib.loads(text)  # never leave a manifest that cannot be read
    scratch = manifest.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(manifest)
    return manifest


def pull(source: ModelSource, cache_dir: Path) -> Path:
    """Fetch a Hub model at its revision, with a progress bar, and record the hashes of its files.

    Raises:
        ModelError: no network, no such repository, or a file that a MarianMT model needs is missing.
    """
    if source.folder:
        return source.folder
    from huggingface_hub import HfApi, snapshot_download

    revision = source.revision or None
    try:
        listed = set(HfApi().list_repo_files(source.hub, revision=revision))
        wanted = [next((w for w in WEIGHTS if w in listed), WEIGHTS[0]), *VOCABULARY, *OPTIONAL]
        path = Path(snapshot_download(source.hub, revision=revision, allow_patterns=wanted))
    # huggingface_hub raises errors of its HTTP library, which differ between its versions.
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"cannot fetch {source.where} from the Hugging Face Hub: {first_line}. Check the network, or fetch it "
            f"on another machine and give the folder: --model {source.pair}=FOLDER"
        ) from error
    _require_files(path, source)
    record = _hash_record(source, path, cache_dir)
    record.parent.mkdir(parents=True, exist_ok=True)
    scratch = record.with_suffix(".tmp")
    scratch.write_text(json.dumps({f.name: sha256_of(f) for f in _files(path)}, indent=1), encoding="utf-8")
    scratch.replace(record)
    return path


def locate(source: ModelSource, cache_dir: Path, *, download: bool = True) -> ModelFolder:
    """The checked folder of a source, fetched from the Hub if need be.

    Raises:
        ModelError: it is missing, incomplete, or a file does not have its recorded hash.
    """
    path = source.folder
    expected = dict(source.sha256)
    revision = source.revision
    if path is None:
        path = _in_hub_cache(source)
        if path is None:
            if not download:
                raise ModelError(
                    f"{source.where} is not on this machine; run: comment-translate models pull {source.name}"
                )
            path = pull(source, cache_dir)
        revision = path.name  # a snapshot's folder is named after its commit
        record = _hash_record(source, path, cache_dir)
        if record.exists():
            try:
                expected = json.loads(record.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ModelError(f"{record} is damaged; delete it, or pull the model again: {error}") from error
    elif not path.is_dir():
        raise ModelError(f"the model folder {path} does not exist")
    _require_files(path, source)
    if expected or not revision:
        hashes = {file.name: sha256_of(file) for file in _files(path)}
        for name, digest in expected.items():
            if hashes.get(name) != digest:
                raise ModelError(
                    f"{path / name} does not have its recorded SHA-256: the file is damaged or was changed "
                    f"(found {str(hashes.get(name))[:12]}, expected {digest[:12]})"
                )
        if not revision:
            revision = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path / 'config.json'} is not JSON: {error}") from error
    if config.get("model_type") != "marian":
        raise ModelError(f"{path} holds a {config.get('model_type')!r} model; only MarianMT is supported")
    return ModelFolder(
        name=source.name,
        pair=source.pair,
        path=path,
        revision=revision,
        license=source.license,
        target_prefix=source.target_prefix,
        max_tokens=int(config.get("max_position_embeddings", 512)),
    )


def on_disk(source: ModelSource) -> Path | None:
    """The folder of a source if it is on this machine, unchecked."""
    if source.folder:
        return source.folder if source.folder.is_dir() else None
    return _in_hub_cache(source)


def _in_hub_cache(source: ModelSource) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for weights in WEIGHTS:
        found = try_to_load_from_cache(source.hub, weights, revision=source.revision or "main")
        # A download that was cut off may have left the weights without the rest: then it is fetched again.
        if isinstance(found, str) and all((Path(found).parent / name).exists() for name in VOCABULARY):
            return Path(found).parent
    return None


def _files(path: Path) -> Iterable[Path]:
    weights = next((w for w in WEIGHTS if (path / w).exists()), None)
    for name in (weights, *VOCABULARY, *OPTIONAL):
        if name and (path / name).exists():
            yield path / name


def _require_files(path: Path, source: ModelSource) -> None:
    missing: Sequence[str] = [name for name in VOCABULARY if not (path / name).exists()]
    if not any((path / name).exists() for name in WEIGHTS):
        missing = [" or ".join(WEIGHTS), *missing]
    if missing:
        raise ModelError(f"{source.where} is not a MarianMT folder: it lacks {', '.join(missing)}")


def _hash_record(source: ModelSource, path: Path, cache_dir: Path) -> Path:
    return cache_dir / "sha256" / f"{source.hub.replace('/', '--')}@{path.name}.json"
