"""Where the output grows: a working folder beside it that survives ``kill -9`` and power loss, or standard output."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zstandard
from filelock import FileLock, Timeout

from translator.exports.rows import Compression, Counts, ExportError, ExportStopped, Position

VERSION = 1


class Sink(Protocol):
    """Takes the output of one input file."""

    position: Position
    """Where to go on reading."""
    counts: Counts
    """Totals up to there."""
    complete: bool
    """All rows are written; only ``finish`` is left."""

    def write(self, data: bytes) -> None:
        """Add to the output."""
        ...

    def report(self, error: Mapping[str, Any]) -> None:
        """Add a line to the errors file."""
        ...

    def checkpoint(self, position: Position, counts: Counts, complete: bool = False) -> None:
        """Make sure that all so far survives, and that a resumed run starts at ``position``."""
        ...

    def finish(self, finish: Callable[[Path], None]) -> None:
        """Give the output its name. ``finish`` turns the complete part file into the output, in place."""
        ...

    def close(self) -> None:
        """Release files and the lock; without ``finish`` before it, what was checkpointed stays for later."""
        ...


def errors_path(output: Path) -> Path:
    """Where the rows that failed are listed."""
    return output.with_name(output.name + ".errors.jsonl")


def work_path(output: Path) -> Path:
    """The working folder of an unfinished output."""
    return output.with_name(output.name + ".work")


def already_finished(output: Path, source: Path | None, resume: bool, overwrite: bool) -> bool:
    """Whether a resumed run has nothing left to do for an output.

    Raises:
        ExportError: something is there that the flags do not allow to touch, or the input changed after the output
            was finished.
    """
    if overwrite:
        return False
    if (work_path(output) / "state.json").exists():
        if resume:
            return False
        raise ExportError(
            f"{output}: an unfinished run is there ({work_path(output).name}); --resume continues it, "
            "--overwrite starts anew"
        )
    if not output.exists():
        return False
    if not resume:
        raise ExportError(f"{output}: is there already; --overwrite replaces it")
    if source and source.stat().st_mtime_ns > output.stat().st_mtime_ns:
        raise ExportError(f"{output}: is finished, but {source} changed after it; --overwrite translates it anew")
    return True


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and hash of a whole file: the same for a copy, different for any change."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
        return {"size": file.tell(), "blake2b": digest}


class WorkFolder:
    """See ``Sink``. ``OUT.work/`` holds ``part`` (the output so far), ``errors``, ``state.json`` and ``lock``.

    A checkpoint first forces ``part`` and ``errors`` to disk, then replaces ``state.json``, which says how long they
    were: whatever is longer at the next start was written after it and is cut off. Compressed output gets one gzip
    member or zstd frame a checkpoint, so that it can be cut there too.

    Args:
        output: final name.
        run: whatever decides what the output is (options); a resumed run must have the same.
        source: the input.
        compression: of the part file.
        resume: continue from the checkpoint, if there is one; else start anew.

    Raises:
        ExportError: another run is at work, or the input or the options are not those of the checkpoint.
    """

    def __init__(
        self,
        output: Path,
        source: Path | None,
        run: Mapping[str, Any],
        compression: Compression = "",
        resume: bool = False,
    ) -> None:
        self.position = Position()
        self.counts = Counts()
        self.complete = False
        self._finished = False
        self._output = output
        self._folder = work_path(output)
        self._compression = compression
        self._pending = bytearray()
        self._source = source
        self._files: list[BinaryIO] = []
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._folder / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise ExportError(f"{output}: another run is writing it") from None
        try:
            self._start(source, run, resume)
        except BaseException:
            self._lock.release()
            raise

    def _start(self, source: Path | None, run: Mapping[str, Any], resume: bool) -> None:
        state_path = self._folder / "state.json"
        self._identity: dict[str, Any] = {
            "version": VERSION,
            "input": fingerprint(source) if source else None,
            "run": dict(run),
        }
        self._stat = source.stat() if source else None
        state = self._load(state_path) if resume and state_path.exists() else None
        self.complete = bool(state and state["complete"])
        self._part, self._errors = self._folder / "part", self._folder / "errors"
        if not self.complete:
            sizes = (state["part"], state["errors"]) if state else (0, 0)
            for path, size in zip((self._part, self._errors), sizes, strict=True):
                self._files.append(self._open_at(path, size))
        if state:
            self.position = Position(**state["position"])
            self.counts = Counts(**state["counts"])
        else:
            self._save(self.position, self.counts)

    def _load(self, path: Path) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        saved = state["identity"]
        if saved["version"] != self._identity["version"]:
            raise ExportError(f"{path}: was written by another version of this program; --overwrite starts anew")
        if saved["input"] != self._identity["input"]:
            raise ExportError(
                f"{self._source}: has changed since the run that is to be resumed; --overwrite starts anew"
            )
        was, now = saved["run"], self._identity["run"]
        if different := sorted(name for name in {*was, *now} if was.get(name) != now.get(name)):
            name = different[0]
            raise ExportError(
                f"{self._output}: the unfinished run had {name} = {was.get(name)!r}, not {now.get(name)!r}; "
                "resume it with the same options, or --overwrite"
            )
        return state

    def _open_at(self, path: Path, size: int) -> BinaryIO:
        file = path.open("r+b" if size else "wb")
        if path.stat().st_size < size:
            raise ExportError(f"{path}: is shorter than its checkpoint says; --overwrite starts anew")
        file.truncate(size)
        file.seek(size)
        return file

    def write(self, data: bytes) -> None:
        """See ``Sink``."""
        if self._compression:
            self._pending += data
        else:
            self._files[0].write(data)

    def report(self, error: Mapping[str, Any]) -> None:
        """See ``Sink``."""
        self._files[1].write(json.dumps(error, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def checkpoint(self, position: Position, counts: Counts, complete: bool = False) -> None:
        """See ``Sink``."""
        # An empty file is not a valid compressed one, so a complete output has at least one member.
        if self._pending or (complete and self._compression and not self._files[0].tell()):
            self._files[0].write(_compressed(bytes(self._pending), self._compression))
            self._pending.clear()
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        self._save(position, counts, complete)

    def _save(self, position: Position, counts: Counts, complete: bool = False) -> None:
        self.position, self.counts, self.complete = position, counts, complete
        part, errors = (file.tell() for file in self._files) if self._files else (0, 0)
        state = {
            "identity": self._identity,
            "complete": complete,
            "position": asdict(position),
            "counts": asdict(counts),
            "part": part,
            "errors": errors,
        }
        fresh = self._folder / "state.new"
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._folder / "state.json")
        _sync_folder(self._folder)

    def finish(self, finish: Callable[[Path], None]) -> None:
        """See ``Sink``. Every step may be repeated: a crash in the middle is resumed here."""
        if self._source and self._stat:
            now = self._source.stat()
            if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
                raise ExportStopped(
                    f"{self._source}: changed while it was being translated; the output is left in {self._folder}"
                )
        for file in self._files:
            file.close()
        if self._part.exists():
            finish(self._part)
            errors = errors_path(self._output)
            if self._errors.exists() and self._errors.stat().st_size:
                self._errors.replace(errors)
            elif not self.counts.failed:
                errors.unlink(missing_ok=True)  # of an earlier run that is being overwritten
            self._part.replace(self._output)
            _sync_folder(self._output.parent)
        self._lock.release()
        shutil.rmtree(self._folder)
        self._finished = True

    def close(self) -> None:
        """See ``Sink``."""
        if not self._finished:
            for file in self._files:
                file.close()
            self._lock.release()


class StandardOutput:
    """See ``Sink``. Nothing to resume; errors go to standard error."""

    def __init__(self, compression: Compression = "") -> None:
        self.position = Position()
        self.counts = Counts()
        self.complete = False
        self._compression = compression
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        """See ``Sink``."""
        self._pending += data

    def report(self, error: Mapping[str, Any]) -> None:
        """See ``Sink``."""
        print(json.dumps(error, ensure_ascii=False), file=sys.stderr, flush=True)

    def checkpoint(self, position: Position, counts: Counts, complete: bool = False) -> None:
        """See ``Sink``."""
        self.position, self.counts, self.complete = position, counts, complete
        data = bytes(self._pending)
        self._pending.clear()
        sys.stdout.buffer.write(_compressed(data, self._compression) if data else b"")
        sys.stdout.buffer.flush()

    def finish(self, finish: Callable[[Path], None]) -> None:
        """See ``Sink``."""

    def close(self) -> None:
        """See ``Sink``."""


def _compressed(data: bytes, compression: Compression) -> bytes:
    if compression == "gz":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zst":
        return zstandard.compress(data)
    return data


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power loss; Windows has no such call and does so by itself."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
