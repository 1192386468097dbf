"""From a comment to what the model should see, and back. Pure functions.

A comment becomes a list of parts. A literal part goes to the output as it is; a ``Sentence`` goes
through the model. Protected spans (``translator.spans``) are literal parts where they stand at an
edge or between clauses. Inside a clause they are replaced by placeholders if the model knows such
symbols, otherwise the sentence is split around them. ``Sentence.restore`` checks what came back, and
``Sentence.split`` is the way out that cannot lose anything. So every protected span of the
comment is in the output, in order, byte for byte, whatever the model does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

from translator import segmenting, sentence
from translator.glossary import Term
from translator.sentence import Part, Sentence, Span
from translator.spans import PLACEHOLDERS, without_spans

__all__ = [
    "PLACEHOLDERS",
    "Part",
    "Sentence",
    "Span",
    "applied_terms",
    "has_linguistic_content",
    "join",
    "normalise",
    "segment",
]

_LINE_BREAK = regex.compile("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
_CONTROL = regex.compile(r"[\x00-\x08\x0e-\x1f\x7f\x80-\x84\x86-\x9f]")
_SURROGATE = regex.compile("[\ud800-\udfff]")
_SPACE = regex.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")


def normalise(text: str) -> str:
    """The text in the form that every other function expects.

    NFC, line feeds as the only line breaks, no other control characters but the tab, ordinary
    spaces, U+FFFD for lone surrogates. Zero-width and directional characters, ideographic spaces and
    mojibake stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text)
    text = _SURROGATE.sub("\ufffd", _LINE_BREAK.sub("\n", text))
    return _SPACE.sub(" ", _CONTROL.sub("", text))


def has_linguistic_content(text: str) -> bool:
    """False for a normalised text with nothing to translate: blank, or only emoji, digits, links, tags."""
    return any(map(str.isalpha, without_spans(text)))


def segment(
    text: str,
    source: str,
    target: str,
    *,
    placeholders: Sequence[str] = (),
    terms: Sequence[Term] = (),
    slang: bool = True,
    max_sentence_chars: int = 400,
) -> list[Part]:
    """Cut a comment into literal parts and sentences for the model.

    Args:
        text: normalised text.
        source, target: canonical codes.
        placeholders: those of ``PLACEHOLDERS`` that the model copies; without any, sentences are
            split around spans.
        terms: the caller's glossary; each occurrence becomes a span.
        slang: apply the slang lexicon.
        max_sentence_chars: longest sentence, in Latin letters; a Han character counts as three.

    Returns:
        Parts whose translations ``join`` puts together. They can all be literal although the
        comment changes (slang, glossary terms).
    """
    skeleton, spans = segmenting.mask(text, source, target, bool(placeholders), tuple(terms))
    cutter = segmenting.Cutter(source, target, len(placeholders), slang, max_sentence_chars, spans)
    for number, line in enumerate(skeleton.split("\n")):
        if number:
            cutter.literal("\n")
        cutter.line(line)
    cutter.literal("")
    return cutter.parts


def applied_terms(text: str, terms: Sequence[Term]) -> tuple[Term, ...]:
    """The glossary terms that ``segment`` applies to a normalised text, in order of occurrence."""
    return tuple(hit.term for hit in segmenting.term_hits(text, tuple(terms)))


def join(parts: Sequence[str], source: str, target: str) -> str:
    """Put the translated parts of a comment together.

    Literal parts stay as they are; between parts that would run into each other a space is put
    where the target language has one.
    """
    return sentence.join([part for part in parts if part], source, target)
