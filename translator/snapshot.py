"""The cache's sentences in a file, so that a restarted server need not translate them again.

Zstandard-compressed JSON lines, readable with ``zstdcat``. The first line says for which version and settings the
entries hold; the others are ``[model id, sentence, translation, problem or null]``, least recently used first.
The file holds what users wrote: only its owner may read it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import zstandard

from translator import __version__
from translator.cache import Entry, Key
from translator.errors import ConfigError
from translator.guard import Problem
from translator.model import DecodingOptions


def check(path: Path) -> None:
    """Say at the start, not at the stop, that the file cannot be written.

    Raises:
        ConfigError: its folder is missing or not ours to write.
    """
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"cache_file: the folder {folder} does not exist or cannot be written")


def save(path: Path, entries: Iterable[tuple[Key, Entry]], options: DecodingOptions, guarded: bool) -> int:
    """Write the entries made with ``options``; the file that was there stays until the new one is whole.

    Returns:
        number of entries written.

    Raises:
        OSError: it cannot be written.
    """
    count = 0
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")  # mode 600
    try:
        with os.fdopen(handle, "wb") as raw, zstandard.ZstdCompressor(level=3).stream_writer(raw) as out:
            out.write(_line(_header(options, guarded)))
            for key, entry in entries:
                if key.options == options:
                    out.write(_line([key.model, key.sentence, entry.text, entry.problem]))
                    count += 1
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    return count


def load(path: Path, models: Collection[str], options: DecodingOptions, guarded: bool) -> list[tuple[Key, Entry]]:
    """Read what ``save`` wrote, in its order.

    Args:
        models: ids of the loaded models; other models' entries are left out.

    Returns:
        the entries; none when there is no file, or one of another version or other settings.

    Raises:
        OSError, ValueError: it cannot be read, or is no such file.
    """
    if not path.exists():
        return []
    ids = {model: model for model in models}  # one string for all keys of a model
    entries = []
    try:
        with zstandard.open(path, "rt", encoding="utf-8", errors="surrogatepass") as lines:
            if json.loads(next(lines, "null")) != _header(options, guarded):
                return []
            for line in lines:
                model, sentence, text, problem = json.loads(line)
                if model in ids:
                    key = Key(ids[model], options, str(sentence))
                    entries.append((key, Entry(str(text), Problem(problem) if problem else None)))
    except (zstandard.ZstdError, TypeError) as error:
        raise ValueError(f"not a cache file: {error}") from error
    return entries


def _header(options: DecodingOptions, guarded: bool) -> dict[str, object]:
    # Another version may mask, split or judge otherwise.
    return {"comment-translate": __version__, "guard": guarded, "options": asdict(options)}


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
