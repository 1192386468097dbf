"""Terms with a prescribed translation: the caller's glossary and the built-in slang lexicon.

``data/slang.tsv`` has one row a term: direction ("zh-en" or "en-zh"), the term, its rendering in the target
language, the same thing in plain words of the source language, and a note. A sentence that is the term alone
gets the rendering and needs no model. Inside a longer sentence the term is replaced by the plain words before
the model sees it, so that grammar is left to the model; a term without plain words stays as it is there
(it is ambiguous, or models know it).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

MAX_TERM_CODEPOINTS = 100
"""Longest source or target of a caller's term."""


@dataclass(frozen=True, slots=True)
class Term:
    """A prescribed translation. Latin letters match in any case and only whole words; all else as written."""

    source: str
    target: str


class Hit(NamedTuple):
    """A term's place in a text, in code points."""

    start: int
    end: int
    term: Term


class Entry(NamedTuple):
    """A row of the lexicon; ``rendering`` and ``plain`` may be empty, not both."""

    term: str
    rendering: str
    plain: str


_TABLE = (files("translator") / "data" / "slang.tsv").read_text("utf-8")

VERSION = hashlib.sha256(_TABLE.encode()).hexdigest()[:12]
"""Changes with the lexicon; part of every cache key."""


@cache
def lexicon(direction: str) -> dict[str, Entry]:
    """The slang entries of "zh-en" or "en-zh", by term in lower case."""
    entries = {}
    for line in _TABLE.splitlines()[2:]:
        row_direction, term, rendering, plain, _note = line.split("\t")
        if row_direction == direction:
            entries[term.lower()] = Entry(term, rendering, plain)
    return entries


# Terms in lower case by their first two characters, the longest first; terms of one character by that one.
_Index = dict[str, list[str]]


def _index(terms: Iterable[str]) -> _Index:
    index: _Index = {}
    for term in sorted(terms, key=len, reverse=True):
        index.setdefault(term[:2], []).append(term)
    return index


def _find(text: str, index: _Index) -> list[tuple[int, int, str]]:
    """Start, end and term of each occurrence: leftmost, then longest first; Latin terms only as whole words.

    A look-up in a dictionary for each character beats a regular expression of hundreds of alternatives by far.
    """
    lower = text.lower().replace("’", "'")
    if len(lower) != len(text):  # a few letters of Unicode grow in lower case: match as written
        lower = text
    found: list[tuple[int, int, str]] = []
    skip = 0
    for at in range(len(lower)):
        pair = lower[at : at + 2]
        if pair in index:
            candidates = index[pair] + index.get(pair[0], [])
        elif pair[0] in index:
            candidates = index[pair[0]]
        else:
            continue
        if at < skip:
            continue
        for term in candidates:
            end = at + len(term)
            if lower.startswith(term, at) and _is_whole(lower, at, end):
                found.append((at, end, term))
                skip = end
                break
    return found


def _is_whole(text: str, start: int, end: int) -> bool:
    joined_before = start > 0 and _is_latin(text[start]) and _is_latin(text[start - 1])
    joined_after = end < len(text) and _is_latin(text[end - 1]) and _is_latin(text[end])
    return not joined_before and not joined_after


def _is_latin(char: str) -> bool:
    return char < "\u0250" and char.isalnum()


def find_terms(text: str, terms: tuple[Term, ...]) -> list[Hit]:
    """Where the terms occur in a text: leftmost first, the longest where several match, never overlapping."""
    if not terms:
        return []
    by_source, index = _term_index(terms)
    return [Hit(start, end, by_source[source]) for start, end, source in _find(text, index)]


@lru_cache(maxsize=64)
def _term_index(terms: tuple[Term, ...]) -> tuple[dict[str, Term], _Index]:
    by_source = {term.source.lower(): term for term in reversed(terms)}
    return by_source, _index(by_source)


@cache
def _plain_index(direction: str) -> _Index:
    return _index(term for term, entry in lexicon(direction).items() if entry.plain)


def rewrite(text: str, direction: str) -> str:
    """The text with slang replaced by plain words of the same language, for the model to read.

    One or two letters count only in lower case: "bc" is "because", "BC" is not.
    """
    hits = _find(text, _plain_index(direction))
    if not hits:
        return text
    entries = lexicon(direction)
    out, at = [], 0
    for start, end, term in hits:
        word, plain = text[start:end], entries[term].plain
        if len(word) < 3 and word[0].isalpha() and word != term:
            continue
        if word[0].isupper() and not word.isupper():
            plain = plain[0].upper() + plain[1:]
        out += [text[at:start], plain]
        at = end
    return "".join([*out, text[at:]])


def render(text: str, direction: str) -> str | None:
    """The translation of a sentence that is one slang term and nothing else; None for any other."""
    entry = lexicon(direction).get(text.lower().replace("’", "'"))
    return (entry.rendering if entry else _laugh(text, direction)) or None


_LAUGH = {
    "zh-en": re.compile(r"(?P<ha>[哈h]{2,})|(?P<he>[嘿嘻]{2,}|(?:xi){2,})|(?P<heh>呵{2,})", re.IGNORECASE),
    "en-zh": re.compile(r"(?P<哈>(?:ha){2,}h?|(?:ah){3,}a?|lo+l(?:ol)*)|(?P<嘿>(?:he){2,}h?)", re.IGNORECASE),
}


def _laugh(text: str, direction: str) -> str:
    """Laughter of about the same length, at most six syllables; empty if it is none."""
    match = _LAUGH[direction].fullmatch(text)
    if not match or not match.lastgroup:
        return ""
    # A Chinese syllable is one character, an English one two; "hhhh" is short for 哈哈.
    syllables = len(text) if direction == "zh-en" and not text.isascii() else len(text) // 2
    return match.lastgroup * min(6, max(2, syllables))


def is_chinese_slang(word: str) -> bool:
    """True for Chinese slang in Latin letters that is nothing else: yyds, but not "gg" or "wok"."""
    word = word.lower()
    if word not in lexicon("zh-en") or word in lexicon("en-zh"):
        return False
    return len(word) > 3 or (len(word) == 3 and not set(word) & set("aeiou"))


def is_english_slang(word: str) -> bool:
    """True for a word, in lower case, that is English slang."""
    return word in lexicon("en-zh")
