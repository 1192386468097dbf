"""Names, compression and encoding of export files."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

import zstandard

from translator.exports.rows import SURROGATE, Compression, ExportError, Format

SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
SAMPLE_BYTES = 2**18
MAX_LINE = 16 * 2**20
"""Longest line in characters: more means that this is not a text file with one row a line."""

# Encodings whose every byte sequence survives decoding and encoding, so that what is not translated stays as it is.
# Big5 and Shift-JIS are not among them: both write some characters in two ways.
ENCODINGS = {
    "utf-8": "surrogateescape",
    "utf-16-le": "surrogatepass",
    "utf-16-be": "surrogatepass",
    "gb18030": "surrogateescape",
    "cp1252": "surrogateescape",
    "latin-1": "surrogateescape",
}
ALIASES = {
    "utf8": "utf-8",
    "utf-8-sig": "utf-8",
    "utf16": "utf-16",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
    "gbk": "gb18030",
    "gb2312": "gb18030",
    "cp936": "gb18030",
    "windows-1252": "cp1252",
    "iso-8859-1": "latin-1",
    "latin1": "latin-1",
}
BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))

_GB_CHARACTER = re.compile(rb"[\x81-\xfe][\x30-\x39][\x81-\xfe][\x30-\x39]|[\x81-\xfe][\x40-\x7e\x80-\xfe]|[\x80-\xff]")
_GB2312_CHARACTER = re.compile(rb"[\xa1-\xa9\xb0-\xf7][\xa1-\xfe]")
_FREQUENT_HAN = re.compile("[的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能子那好]")
_HAN = re.compile("[\u4e00-\u9fff]")


def name_parts(path: Path) -> tuple[Format | None, Compression]:
    """Format and compression that a file name tells: ``a.csv.gz`` is ("csv", "gz")."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression: Compression = ""
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        compression = "gz" if suffixes.pop() == ".gz" else "zst"
    return SUFFIXES.get(suffixes[-1]) if suffixes else None, compression


def default_output(path: Path, target: str) -> Path:
    """``comments.csv.gz`` becomes ``comments.en.csv.gz``."""
    stem, dot, suffixes = path.name.partition(".")
    return path.with_name(f"{stem}.{target}{dot}{suffixes}")


def _buffered(stream: IO[bytes]) -> io.BufferedReader:
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, stream))


def _open_plain(raw: io.BufferedReader) -> IO[bytes]:
    """Decompress what its first bytes say is compressed, whatever its name is."""
    magic = raw.peek(4)[:4]
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if magic == b"\x28\xb5\x2f\xfd":
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(cast(io.RawIOBase, reader))
    return raw


class _Rejoined(io.RawIOBase):
    """Bytes that were read already, then the rest of the stream they came from."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


class TextInput:
    """A text file or a stream, decompressed and decoded such that every byte can be written back.

    Args:
        source: a path, or a stream, which can be read only once.
        encoding: empty to find out; ``ENCODINGS`` and ``ALIASES`` are known.
        name: for messages.

    Raises:
        ExportError: the encoding is unknown or not supported, or the file cannot be read.
    """

    def __init__(self, source: Path | IO[bytes], encoding: str = "", name: str = "") -> None:
        self.path = source if isinstance(source, Path) else None
        self.name = name or str(source)
        self.size = source.stat().st_size if isinstance(source, Path) else 0
        try:
            self._raw = source.open("rb") if isinstance(source, Path) else _buffered(source)
            self._plain = _open_plain(self._raw)
            self.sample = self._plain.read(SAMPLE_BYTES)
        except (OSError, EOFError, zstandard.ZstdError) as error:
            raise ExportError(f"{self.name}: cannot be read: {error}") from error
        self.encoding, self.bom, self.note = _encoding(self.name, self.sample, encoding)
        start = self.sample[len(self.bom) :]
        text = codecs.getincrementaldecoder(self.encoding)(ENCODINGS[self.encoding]).decode(start)
        # Files of the old Mac OS end their lines with a carriage return alone.
        self.newline = "\r" if "\r" in text and "\n" not in text else "\n"
        self.sample_lines = list(io.StringIO(text, newline=self.newline))
        if len(self.sample) == SAMPLE_BYTES and len(self.sample_lines) > 1:
            del self.sample_lines[-1]  # it goes on after the sample

    def encode(self, text: str) -> bytes:
        """Bytes of a text that was read from this file.

        Raises:
            UnicodeEncodeError: a character that this encoding does not have.
        """
        return text.encode(self.encoding, ENCODINGS[self.encoding])

    def closed(self, row: bytes) -> bytes:
        """The row, with a line end if it has none: the last row of a file that is not the last one where it goes."""
        if row.endswith(self.encode(self.newline)):
            return row
        crlf = bool(self.sample_lines) and self.sample_lines[0].endswith("\r\n")
        return row + self.encode("\r\n" if crlf else self.newline)

    def lines(self, offset: int) -> Iterator[str]:
        """Lines with their ends, from a byte offset on that is the start of one.

        Raises:
            ExportError: the file ends in the middle, is damaged, or has no lines.
        """
        stream: IO[bytes]
        try:
            if self.path is None:
                stream = io.BufferedReader(_Rejoined(self.sample[offset:], self._plain))
            else:
                stream = self._reopen(self.path, offset)
            text = io.TextIOWrapper(
                cast(BinaryIO, stream), self.encoding, ENCODINGS[self.encoding], newline=self.newline
            )
            while line := text.readline(MAX_LINE):
                if len(line) == MAX_LINE:
                    raise ExportError(
                        f"{self.name}: a line is longer than {MAX_LINE} characters; is it a text file with lines?"
                    )
                yield line
        except (OSError, EOFError, zstandard.ZstdError, UnicodeDecodeError) as error:
            raise ExportError(f"{self.name}: cannot be read on: {error}") from error

    def _reopen(self, path: Path, offset: int) -> IO[bytes]:
        self._raw.close()
        self._raw = path.open("rb")
        self._plain = _open_plain(self._raw)
        if self._plain is self._raw:
            self._raw.seek(offset)
        while self._plain is not self._raw and offset:
            skipped = self._plain.read(min(offset, 2**20))
            if not skipped:
                raise EOFError("the file ends before the checkpoint")
            offset -= len(skipped)
        return self._plain

    def fraction(self) -> float | None:
        """Share of the file (compressed, where it is) that has been read."""
        if not self.size or self._raw.closed:
            return None
        return min(1.0, self._raw.tell() / self.size)


def _encoding(name: str, sample: bytes, asked: str) -> tuple[str, bytes, str]:
    """Encoding, byte order mark and a note for the user."""
    bom, marked = next(((bom, known) for bom, known in BOMS if sample.startswith(bom)), (b"", ""))
    if asked:
        wanted = ALIASES.get(asked.lower(), asked.lower())
        if wanted == "utf-16":
            if not marked.startswith("utf-16"):
                raise ExportError(f"{name}: has no byte order mark; say --encoding utf-16-le or utf-16-be")
            wanted = marked
        if wanted not in ENCODINGS:
            raise ExportError(
                f"--encoding {asked}: not supported, because not every file in it can be written back byte for byte; "
                f"use one of {', '.join(ENCODINGS)}, or convert the file to UTF-8 first (iconv)"
            )
        return wanted, bom if wanted == marked else b"", ""
    if marked:
        return marked, bom, ""
    if sample.count(b"\0") > len(sample) // 8:
        raise ExportError(f"{name}: looks like UTF-16 without byte order mark; say --encoding utf-16-le or utf-16-be")
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    broken = len(SURROGATE.findall(text))
    if not broken:
        return "utf-8", b"", ""
    if sum(not c.isascii() for c in text) - broken >= 20 * broken:
        return "utf-8", b"", f"{name}: has bytes that are not UTF-8; rows with such a text are reported as failed"
    if _looks_like_gb(sample):
        return "gb18030", b"", f"{name}: is not UTF-8, read and written as gb18030; --encoding NAME overrides this"
    raise ExportError(
        f"{name}: is neither UTF-8 nor clearly gb18030; say --encoding NAME (one of {', '.join(ENCODINGS)}), "
        "or convert it to UTF-8 first (iconv)"
    )


def _looks_like_gb(sample: bytes) -> bool:
    """True when nearly all characters are everyday Chinese ones in GB encodings, which other encodings' are not."""
    characters = [c for c in _GB_CHARACTER.findall(sample) if len(c) < 4]
    common = sum(_GB2312_CHARACTER.fullmatch(c) is not None for c in characters)
    if not common or common < 0.9 * len(characters):
        return False
    # Korean and Japanese encodings use the same range of bytes for other characters.
    text = sample.decode("gb18030", "replace")
    han = len(_HAN.findall(text))
    return han < 50 or len(_FREQUENT_HAN.findall(text)) >= 0.05 * han
