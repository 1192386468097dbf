"""Parallel text for training: reading, cleaning, leak checking and augmentation.

A data folder looks like this; only ``train/comments.tsv`` and ``dev/comments.tsv`` are needed::

    train/NAME.tsv or NAME.tsv.xz    origin, zh, en   (a header line is not expected)
    dev/NAME.tsv                     origin, zh, en   (held out: never trained on, on either side)

A source whose name ends in ``_mt_zh`` (``_mt_en``) has a machine-translated Chinese (English) side,
which may be read by the model but must not be imitated: it is used in one direction only.
"""

from __future__ import annotations

import lzma
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PLACEHOLDERS = tuple(chr(0xE000 + i) for i in range(16))
"""Symbols that stand for a masked span; U+E000 is the first span of a sentence, and so on."""

PAIRS = ("zh-en", "en-zh")

_EMOJI = (
    "(?:[\U0001f000-\U0001faff\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff]"
    "[\ufe0f\u200d\U0001f3fb-\U0001f3ff]*)+"
)
_SPAN = re.compile(
    r"https?://[^\s\u3000-\u9fff\uff00-\uffef]+"
    r"|@[\w.-]+"
    r"|#[^#\s]+#?"
    r"|\[[^\[\]\s]{1,12}\]"
    rf"|{_EMOJI}"
    r"|[0-9]+(?:[.,:][0-9]+)*%?"
    r"|[A-Za-z][A-Za-z0-9'-]+"
)
_HAN = re.compile(r"[\u3400-\u9fff]")
_HAN_BYTES = {f"<0xE{digit}>" for digit in "456789"}
_LATIN = re.compile(r"[A-Za-z]")
_FINAL = re.compile(r"[。．.!！?？~～…]+$")
_STRETCH_ZH = re.compile(r"[啊哈呜嘻呵哇嗯哦噢喔耶嘿呀吧呢了](?=[，。！？~～…\s]|$)|哈哈+")
_STRETCH_EN = re.compile(r"\b(?:s(o)|n(o)|pl(e)ase|l(o)ve|y(e)s|w(o)w|h(e)y|r(e)ally|lo(l)|cut(e)|om(g))\b", re.I)

Pair = tuple[str, str]


def writes_han(piece: str) -> bool:
    """Whether a SentencePiece piece holds Chinese characters, or is the first byte of one (U+4000 to U+9FFF)."""
    return bool(_HAN.search(piece)) or piece in _HAN_BYTES


@dataclass(frozen=True)
class Line:
    """One aligned pair of a corpus file; ``where`` is ``file:line`` for messages."""

    zh: str
    en: str
    where: str

    def sides(self, pair: str) -> Pair:
        """``(source, target)`` for ``zh-en`` or ``en-zh``."""
        return (self.zh, self.en) if pair == "zh-en" else (self.en, self.zh)


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the pairs of a three-column ``.tsv`` or ``.tsv.xz`` file.

    Raises:
        ValueError: a line does not have three columns; the message names file and line.
    """
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as file:
        for number, text in enumerate(file, 1):
            columns = text.rstrip("\r\n").split("\t")
            if len(columns) != 3:
                raise ValueError(f"{path}:{number}: expected origin, zh, en; got {len(columns)}")
            yield Line(columns[1], columns[2], f"{path.name}:{number}")


def read_pairs(path: Path) -> list[Line]:
    """Read a user's pairs: two tab-separated columns, zh then en, or as a header line names them.

    Blank lines are skipped.

    Raises:
        ValueError: a line is not UTF-8, has too few or too many columns or an empty side, or its
            Chinese side has no Han character (as when the columns are swapped); the message names
            the file and the line.
    """
    lines: list[Line] = []
    columns = {"zh": 0, "en": 1}
    width = 2
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path}:{number}"
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 ({error.reason})") from error
        if not text.strip():
            continue
        cells = [cell.strip() for cell in text.split("\t")]
        names = [cell.lower() for cell in cells]
        if number == 1 and {"zh", "en"} <= set(names):
            columns, width = {name: names.index(name) for name in ("zh", "en")}, len(cells)
            continue
        if len(cells) != width:
            raise ValueError(f"{where}: expected {width} tab-separated columns, got {len(cells)}")
        zh, en = cells[columns["zh"]], cells[columns["en"]]
        if not zh or not en:
            raise ValueError(f"{where}: the {'en' if zh else 'zh'} side is empty")
        if not _HAN.search(zh) and _HAN.search(en):
            raise ValueError(f"{where}: the zh column is not Chinese; are the columns swapped?")
        lines.append(Line(zh, en, where))
    return lines


def source_name(path: Path) -> str:
    """``chat_mt_zh`` for ``train/chat_mt_zh.tsv.xz``."""
    return path.name.split(".")[0]


def directions(name: str) -> tuple[str, ...]:
    """The pairs that a source may train: a machine-translated side is only ever read."""
    if name.endswith("_mt_zh"):
        return ("zh-en",)
    if name.endswith("_mt_en"):
        return ("en-zh",)
    return PAIRS


def key(text: str) -> str:
    """What two texts share when they differ only in case, width, spacing or punctuation."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def held_out(folder: Path) -> frozenset[str]:
    """Keys of both sides of every line in ``folder/dev``."""
    return frozenset(
        key(side)
        for path in sorted((folder / "dev").glob("*.tsv"))
        for line in read_lines(path)
        for side in (line.zh, line.en)
    )


def clean(lines: Iterable[Line], forbidden: frozenset[str]) -> Iterator[Line]:
    """Drop what would teach nothing or would spoil the development sets.

    Dropped: pairs with a side in ``forbidden`` (see ``held_out``), exact repetitions, pairs without
    a Han character on the Chinese or a Latin letter on the English side, English with Han left in
    it, and pairs whose lengths cannot belong together (one Han character is about 1.5 to 7 English
    ones; short lines are given slack).
    """
    seen: set[Pair] = set()
    for line in lines:
        zh = " ".join(line.zh.split())
        en = " ".join(line.en.split())
        keys = (key(zh), key(en))
        if not all(keys) or keys in seen or keys[0] in forbidden or keys[1] in forbidden:
            continue
        if not _HAN.search(zh) or not _LATIN.search(en) or len(_HAN.findall(en)) > 2:
            continue
        if len(en) > 8 * len(zh) + 30 or len(zh) > 1.2 * len(en) + 15:
            continue
        seen.add(keys)
        yield Line(zh, en, line.where)


def mask_shared(source: str, target: str, rng: random.Random, share: float = 0.7) -> Pair | None:
    """Replace spans that stand on both sides by placeholders, numbered in the source's order.

    Spans are links, @names, #tags#, [codes], emoji runs, numbers and Latin words. Each is taken
    with probability ``share``. Returns None if nothing was replaced.
    """
    taken = set(PLACEHOLDERS) & set(source + target)
    if taken:
        return None
    spans = [m.group() for m in _SPAN.finditer(source)]
    other = [m.group() for m in _SPAN.finditer(target)]
    symbols = iter(PLACEHOLDERS)
    chosen: list[tuple[str, str]] = []
    for span in spans:
        if spans.count(span) == other.count(span) == 1 and rng.random() < share:
            symbol = next(symbols, None)
            if symbol is None:
                break
            chosen.append((span, symbol))
    if not chosen:
        return None
    table = dict(chosen)

    def swap(text: str) -> str:
        return _SPAN.sub(lambda m: table.get(m.group(), m.group()), text)

    return swap(source), swap(target)


def insert_symbols(source: str, target: str, rng: random.Random) -> Pair:
    """Put placeholders where their place is certain: before or after the whole sentence."""
    glue = rng.choice(("", " "))
    if rng.random() < 0.25:
        head = PLACEHOLDERS[0] + glue
        return head + source, head + target
    tail = glue + "".join(PLACEHOLDERS[: rng.choice((1, 1, 1, 2))])
    return source + tail, target + tail


def add_emoji(source: str, target: str, rng: random.Random) -> Pair:
    """Append the same emoji to both sides."""
    tail = rng.choice((" ", "")) + rng.choice("😂🤣😭😍🥰😊🙏👍🔥💀❤😅🎉👏😢😎🤔✨💕🥺😱🙄") * rng.choice(
        (1, 1, 1, 2, 3)
    )
    return source + tail, target + tail


def drop_end(source: str, target: str) -> Pair:
    """Remove the final punctuation on both sides."""
    return _FINAL.sub("", source) or source, _FINAL.sub("", target) or target


def recase(source: str, rng: random.Random) -> str:
    """Lower, upper or first-letter case, as people type."""
    how = rng.random()
    if how < 0.6:
        return source.lower()
    if how < 0.85:
        return source.upper()
    return source[:1].swapcase() + source[1:]


def stretch(source: str, rng: random.Random) -> str:
    """Elongate one word or final punctuation: ``soooo``, ``啊啊啊啊``, ``!!!``."""
    count = rng.randint(2, 6)
    english = list(_STRETCH_EN.finditer(source))
    chinese = list(_STRETCH_ZH.finditer(source))
    if english:
        match = rng.choice(english)
        at = next(match.end(i) for i in range(1, len(match.groups()) + 1) if match.group(i))
        return source[:at] + source[at - 1] * count + source[at:]
    if chinese:
        match = rng.choice(chinese)
        return source[: match.end()] + source[match.end() - 1] * count + source[match.end() :]
    if source[-1:] in "!！?？~～":
        return source + source[-1] * count
    return source


def misspell(source: str, rng: random.Random) -> str:
    """One slip of the fingers in a Latin word of four letters or more, or a dropped apostrophe."""
    if "'" in source and rng.random() < 0.5:
        return source.replace("'", "")
    words = list(re.finditer(r"[A-Za-z]{4,}", source))
    if not words:
        return source
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    how = rng.randrange(3)
    if how == 0:
        return source[:at] + source[at + 1] + source[at] + source[at + 2 :]
    if how == 1:
        return source[:at] + source[at + 1 :]
    return source[:at] + source[at] + source[at:]


def join(pairs: list[Pair], target_is_english: bool, rng: random.Random) -> Pair:
    """Join short comments into one text, sometimes with placeholders between them."""
    source, target = pairs[0]
    symbols = iter(PLACEHOLDERS if rng.random() < 0.25 else ())
    for more_source, more_target in pairs[1:]:
        symbol = next(symbols, "")
        gaps = []
        for text, english in ((source, not target_is_english), (target, target_is_english)):
            closed = bool(_FINAL.search(text)) or text[-1:] > "\u2fff"
            gap = (f" {symbol} " if symbol else " ") if english else (symbol or " ")
            if not closed:
                gap = (". " if english else "，") + (f"{symbol} " if symbol and english else symbol)
            elif not english and _FINAL.search(text):
                gap = symbol
            gaps.append(gap)
        source += gaps[0] + more_source
        target += gaps[1] + more_target
    return source, target


def augment(pair: str, source: str, target: str, rng: random.Random, to_hant: Callable[[str], str] | None) -> Pair:
    """One altered copy of a pair for the given direction.

    ``to_hant`` converts Simplified to Traditional Chinese; without it that alteration is left out.
    Case, elongation, script and typing slips are put on the source only, so that the model learns
    to read them and not to write them.
    """
    masked = mask_shared(source, target, rng) if rng.random() < 0.6 else None
    if masked:
        source, target = masked
    elif rng.random() < 0.15:
        source, target = insert_symbols(source, target, rng)
    elif rng.random() < 0.15:
        source, target = add_emoji(source, target, rng)
    if rng.random() < 0.25:
        source, target = drop_end(source, target)
    if pair == "zh-en":
        if to_hant is not None and rng.random() < 0.35:
            source = to_hant(source)
        if rng.random() < 0.25:
            source = stretch(source, rng)
        return source, target
    if rng.random() < 0.45:
        source = recase(source, rng)
    if rng.random() < 0.25:
        source = stretch(source, rng)
    if rng.random() < 0.25:
        source = misspell(source, rng)
    return source, target
