"""Terms with a prescribed translation: the caller's glossary and the built-in slang lexicon.

``data/slang.tsv`` has one row a term: direction ("zh-en" or "en-zh"), the term, its rendering in the target
language, the same thing in plain words of the source language, and a note. A sentence that consists of the term alone gets
the rendering and needs no model. Inside a longer sentence the term is replaced by the plain words before the model sees it, so
that grammar is left to the model; a term without plain words is left as it is there (it is ambiguous, or the models know it).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
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
            entries[term.casefold()] = Entry(term, rendering, plain)
    return entries


def find_terms(text: str, terms: Sequence[Term]) -> list[Hit]:
    """Where the terms occur in a text: leftmost first, the longest where several match, never overlapping."""
    if not terms:
        return []
    matches, by_source = _term_matcher(tuple(terms))
    return [Hit(m.start(), m.end(), by_source[m.group().casefold()]) for m in matches(text)]


@lru_cache(maxsize=64)
def _term_matcher(
    terms: tuple[Term, ...],
) -> tuple[Callable[[str], list[re.Match[str]]], dict[str, Term]]:
    by_source = {term.source.casefold(): term for term in reversed(terms)}
    pattern = _alternatives([term.source for term in terms])
    # Only Latin letters are folded: a pattern-wide flag would fold other scripts too, where a term is matched as written.
    return lambda text: [m for m in pattern.finditer(text) if m.group().casefold() in by_source], by_source


def _alternatives(terms: Sequence[str]) -> re.Pattern[str]:
    parts = []
    for term in sorted(set(terms), key=len, reverse=True):
        before = r"(?<![A-Za-z0-9])" if term[0].isascii() and term[0].isalnum() else ""
        after = r"(?![A-Za-z0-9])" if term[-1].isascii() and term[-1].isalnum() else ""
        parts.append(before + re.escape(term) + after)
    return re.compile("|".join(parts), re.IGNORECASE)


@cache
def _rewriter(direction: str) -> re.Pattern[str]:
    return _alternatives([entry.term for entry in lexicon(direction).values() if entry.plain])


def rewrite(text: str, direction: str) -> str:
    """The text with slang replaced by plain words of the same language, for the model to read.

    One or two letters count only in lower case: "bc" is "because", "BC" is not.
    """
    entries = lexicon(direction)

    def plain(match: re.Match[str]) -> str:
        word = match.group()
        return word if len(word) < 3 and word != word.lower() else entries[word.casefold()].plain

    return _rewriter(direction).sub(plain, text)


def render(text: str, direction: str) -> str | None:
    """The translation of a sentence that is one slang term and nothing else; None for any other."""
    entry = lexicon(direction).get(text.casefold())
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
    """True for Chinese slang in Latin letters that cannot be anything else, such as yyds (but not "gg" or "wok")."""
    word = word.casefold()
    if word not in lexicon("zh-en") or word in lexicon("en-zh"):
        return False
    return len(word) > 3 or (len(word) == 3 and not set(word) & set("aeiou"))


def is_english_slang(word: str) -> bool:
    """True for a word, in lower case, that is English slang."""
    return word in lexicon("en-zh")
