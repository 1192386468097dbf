"""From a comment to what the model should see, and back: normalise, mask, split, restore, join. Pure functions.

A comment becomes a list of parts. A literal part goes to the output as it is; a ``Sentence`` goes through the model.
Protected spans (``translator.spans``) are literal parts where they stand at an edge or between clauses. Inside a clause they
are replaced by placeholders if the model knows such symbols, otherwise the sentence is split around them. ``Sentence.restore``
checks what came back, and ``Sentence.split`` is the way out that cannot lose anything. So every protected span
of the comment is in the output, in order, byte for byte, whatever the model does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import regex

from translator import glossary, polish
from translator.glossary import Term
from translator.language import is_english_word
from translator.spans import PLACEHOLDERS, Kind, scan, without_spans

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

_SLOT = PLACEHOLDERS[0]  # stands for any span while a comment is cut up; text that holds it is itself a span
_PLACEHOLDER = regex.compile(f"[{''.join(PLACEHOLDERS)}]")
_PLACEHOLDER_RUN = regex.compile(rf"(\s*[{''.join(PLACEHOLDERS)}]\s*)")
_CLAUSE_KINDS = frozenset({Kind.EMOJI, Kind.KAOMOJI, Kind.STICKER, Kind.SYMBOL})

_LINE_BREAK = regex.compile("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
_UNWANTED = regex.compile(r"[\x00-\x08\x0e-\x1f\x7f\x80-\x84\x86-\x9f]")
_SURROGATE = regex.compile("[\ud800-\udfff]")
_SPACE = regex.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")


def normalise(text: str) -> str:
    """The text in the form that every other function expects.

    NFC, line feeds as the only line breaks, no other control characters but the tab, ordinary spaces, U+FFFD for lone
    surrogates. Zero-width and directional characters, ideographic spaces and mojibake stay as they are.
    """
    text = unicodedata.normalize("NFC", text)
    text = _SURROGATE.sub("\ufffd", _LINE_BREAK.sub("\n", text))
    return _SPACE.sub(" ", _UNWANTED.sub("", text))


def has_linguistic_content(text: str) -> bool:
    """False for a normalised text without anything to translate: blank, or only emoji, digits, links, mentions, tags."""
    return any(c.isalpha() for c in without_spans(text)) if text else False


@dataclass(frozen=True, slots=True)
class Span:
    """A protected span and what stands for it in the output: itself, or the target of a glossary term."""

    source: str
    target: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Sentence:
    """A piece of a comment for the model.

    Args:
        text: what the model reads. Spans inside it are placeholders, the first span the first placeholder, and so on;
            slang and elongations are rewritten.
        spans: the spans behind the placeholders, in order.
        original: the piece as it stands in the comment.
        source, target: the languages.
    """

    text: str
    spans: tuple[Span, ...] = ()
    original: str = ""
    source: str = ""
    target: str = ""

    def restore(self, translation: str) -> str | None:
        """Put the spans back into a translation of ``text``.

        Returns:
            The translation with target-language punctuation and spacing, or None if a placeholder was lost, doubled, moved or
            invented, or if a figure that the translation must repeat is not in it.
        """
        expected = _PLACEHOLDER.findall(self.text)
        if _PLACEHOLDER.findall(translation) != expected:
            return None
        if self.source[:2] == self.target[:2]:
            return self._fill(translation)
        if not polish.keeps_figures(self.text, translation, self.target):
            return None
        return self._fill(polish.polish(translation, self.target))

    def _fill(self, translation: str) -> str:
        pieces = _PLACEHOLDER.split(translation)
        parts = [pieces[0]]
        for span, piece in zip(self.spans, pieces[1:], strict=True):
            parts += [span.target, piece]
        return join(parts, self.source, self.target)

    def split(self) -> list[Sentence | str]:
        """The sentence cut around its spans: literal parts and sentences without spans.

        Figures are cut out too. A sentence with neither comes back whole.
        """
        parts: list[Sentence | str] = []
        spans = iter(self.spans)
        for piece in _PLACEHOLDER_RUN.split(self.text):
            bare = piece.strip()
            if bare in PLACEHOLDERS:
                parts.append(piece.replace(bare, next(spans).target))
            else:
                parts += self._cut_figures(piece)
        return parts

    def _cut_figures(self, piece: str) -> Iterator[Sentence | str]:
        for part in polish.cut_figures(piece, self.source, self.target):
            text = part.strip()
            if any(c.isalpha() for c in text):
                yield Sentence(text, (), text, self.source, self.target)
            elif part:
                yield polish.punctuation(part, self.target)


Part = str | Sentence


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
        placeholders: the symbols of ``PLACEHOLDERS`` that the model copies; none: sentences are split around spans.
        terms: the caller's glossary; each occurrence becomes a span.
        slang: apply the slang lexicon.
        max_sentence_chars: longest sentence, in Latin letters; a Han character counts as three.

    Returns:
        Parts whose translations ``join`` puts together.
    """
    skeleton, spans = _mask(text, source, target, bool(placeholders), tuple(terms))
    cutter = _Cutter(source, target, len(placeholders), slang, max_sentence_chars, spans)
    for number, line in enumerate(skeleton.split("\n")):
        if number:
            cutter.literal("\n")
        cutter.line(line)
    cutter.literal("")
    return cutter.parts


def applied_terms(text: str, terms: Sequence[Term]) -> tuple[Term, ...]:
    """The glossary terms that ``segment`` applies to a normalised text, in order of occurrence."""
    return tuple(
        hit.term for start, end in _gaps(text) for hit in glossary.find_terms(text[start:end], terms)
    )


def join(parts: Sequence[str], source: str, target: str) -> str:
    """Put the translated parts of a comment together.

    Literal parts stay as they are; between parts that would run into each other a space is put where the target
    language has one.
    """
    if source[:2] == target[:2]:
        return "".join(parts)
    return polish.glue([part for part in parts if part], target)


# Masking


def _gaps(text: str) -> Iterator[tuple[int, int]]:
    """The stretches between the spans, empty ones included: one more than there are spans."""
    at = 0
    for start, end, _ in scan(text):
        yield at, start
        at = end
    yield at, len(text)


# Runs in the target language. English inside Chinese: three words or more (fewer are loan words and names, which
# the model handles), of which one is among the commonest, so that a row of brand names does not count.
_ENGLISH_RUN = regex.compile(
    r"(?<![A-Za-z0-9])[A-Za-z](?:[A-Za-z0-9'’]++|[ ,.!?;:\"-]{1,3}(?=[A-Za-z]))*+[.!?]*+"
)
_WORD = regex.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*+")
_HAN_CLAUSE = regex.compile(r"\p{Han}(?:[\p{Han}\d，。！？、…“”《》～]{2,}+)(?<=..\p{Han}.?)|\p{Han}{4,}+")
_HAN_RUN = regex.compile(r"\p{Han}[\p{Han}\d，。！？、…“”《》～]*+")


def _mask(
    text: str, source: str, target: str, placeholders: bool, terms: tuple[Term, ...]
) -> tuple[str, list[Span]]:
    """The text with one slot for each span, and the spans."""
    skeleton: list[str] = []
    spans: list[Span] = []
    found = scan(text)
    for i, (start, end) in enumerate(_gaps(text)):
        gap, at = text[start:end], 0
        for hit in glossary.find_terms(gap, terms):
            skeleton += (_mask_clauses(gap[at : hit.start], source, target, placeholders, spans), _SLOT)
            spans.append(Span(gap[hit.start : hit.end], hit.term.target, Kind.TERM))
            at = hit.end
        skeleton.append(_mask_clauses(gap[at:], source, target, placeholders, spans))
        if i < len(found):
            span, kind = text[end : found[i].end], found[i].kind
            if i and start == end and spans[-1].kind is not Kind.TERM:  # one symbol is enough for neighbours
                span = spans.pop().source + span
            else:
                skeleton.append(_SLOT)
            spans.append(Span(span, span, kind))
    return "".join(skeleton), spans


def _mask_clauses(gap: str, source: str, target: str, placeholders: bool, spans: list[Span]) -> str:
    """Mask what is already in the target language; adds to ``spans``."""
    if source[:2] == target[:2] or not gap:
        return gap
    if target == "en":
        pattern = _ENGLISH_RUN
    else:
        # English models read no Han: even one word is safer masked, if there is a symbol to mask it with.
        pattern = _HAN_RUN if placeholders else _HAN_CLAUSE

    def replace(match: regex.Match[str]) -> str:
        run = match.group()
        if target == "en":
            words = _WORD.findall(run)
            if len(words) < 3 or not any(is_english_word(word.lower()) for word in words):
                return run
        spans.append(Span(run, run, Kind.CLAUSE))
        return _SLOT

    return pattern.sub(replace, gap)


# Cutting

_MARKER = regex.compile(
    r"[ \t\u3000]*+(?:[-*•·●▪◦–—]+[ \t]+|[•·●▪◦]|\d{1,3}[.、)）](?!\d)[ \t]*|[(（]\d{1,2}[)）][ \t]*|[①-⑳][ \t]*|[>]+[ \t]+)|[ \t\u3000]+"
)
_CLOSERS = r"[\"'”’)）」』】》\]]*+"
# The end of a sentence. A full stop ends one only before a space, and not after an abbreviation or an initial.
_END = regex.compile(
    rf"""
      [。！？!?]++[。！？!?…~～.]*+{_CLOSERS}
    | [；;]++
    | (?:…++|\.{{3,}}+|。{{2,}}+)[。！？!?~～]*+{_CLOSERS}
    | [~～]++(?=\s*\w)
    | (?<!\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|Jr|Sr|Mt|ft|feat|approx|e\.g|i\.e|a\.m|p\.m|[A-Z]))\.{_CLOSERS}(?=\s|$)
    | (?<=\p{{Han}})\.(?=\p{{Han}})
    | [ \u3000]{{2,}}+ | [ \u3000]*\t[ \t\u3000]*
    """,
    regex.VERBOSE,
)
_WEAK_END = frozenset("…~～.")
_CLAUSE_END = regex.compile(r"[，,、：:)）]+|\s+")
_HEAD = regex.compile(rf"[\s{_SLOT}]*{_SLOT}[\s，,：:、；;。.！!？?~～]*|\s+")
_TAIL = regex.compile(rf"(?:\s*{_SLOT}[\s{_SLOT}，,：:、；;。.！!？?~～…]*+|\s++)$")
_INNER = regex.compile(rf"(\s*+{_SLOT}[\s{_SLOT}]*+(?:(?<={_SLOT})[，,：:、；;。！!？?~～]++\s*+)?)")


def _weight(piece: str) -> int:
    """Roughly how many words."""
    return sum("\u3400" <= c <= "\u9fff" for c in piece) or len(_WORD.findall(piece))


class _Cutter:
    """Cuts the lines of one skeleton into parts. Consumes ``spans`` in the order of the slots."""

    def __init__(
        self, source: str, target: str, placeholders: int, slang: bool, limit: int, spans: list[Span]
    ) -> None:
        self.parts: list[Part] = []
        self._source, self._target = source, target
        self._changes_language = source[:2] != target[:2]
        self._direction = f"{source[:2]}-{target[:2]}"
        self._placeholders = placeholders
        self._slang = slang and self._changes_language
        self._limit = max(8, limit // 3 if source.startswith("zh") else limit)
        self._spans, self._next = spans, 0
        self._blank = (
            ""  # space that is literal, unless sentences stand on both sides: that one is ``join``'s affair
        )

    def literal(self, piece: str) -> None:
        """Add text that needs no translation, joined to a literal part before it."""
        piece, self._blank = self._blank + piece, ""
        if not piece:
            return
        translated = polish.punctuation(piece, self._target) if self._changes_language else piece
        pieces = translated.split(_SLOT)
        for i in range(1, len(pieces)):
            pieces[i] = self._take().target + pieces[i]
        whole = "".join(pieces)
        if self.parts and isinstance(self.parts[-1], str):
            self.parts[-1] += whole
        else:
            self.parts.append(whole)

    def line(self, line: str) -> None:
        """Cut one line: list marker, then sentences."""
        if marker := _MARKER.match(line):
            self.literal(marker.group())
            line = line[marker.end() :]
        at = 0
        for match in _END.finditer(line):
            blank = match.group().isspace()
            # "等等……我想想" is one breath; an ellipsis or a tilde ends a sentence only after a clause.
            if (
                match.group()[0] in _WEAK_END
                and _weight(line[at : match.start()]) < 6
                and match.group() != "."
            ):
                continue
            self._sentence(line[at : match.start() if blank else match.end()])
            if blank:
                self.literal(match.group())
            at = match.end()
        self._sentence(line[at:])

    def _take(self) -> Span:
        self._next += 1
        return self._spans[self._next - 1]

    def _sentence(self, sentence: str) -> None:
        head = _HEAD.match(sentence)
        start = head.end() if head else 0
        tail = _TAIL.search(sentence, start)
        end = tail.start() if tail else len(sentence)
        self._edge(sentence[:start])
        self._body(sentence[start:end])
        self._edge(sentence[end:])

    def _edge(self, piece: str) -> None:
        if piece.isspace():
            self._blank += piece
        elif piece:
            self.literal(piece)

    def _body(self, body: str) -> None:
        """Cut a sentence at the slots that cannot stay inside, then at its length."""
        at, held = 0, 0
        for match in _INNER.finditer(body):
            before, after = body[at : match.start()], body[match.end() :]
            if held < self._placeholders and not self._is_boundary(match.group(), before, after, held):
                held += match.group().count(_SLOT)
                if held <= self._placeholders:
                    continue
            self._pieces(before)
            self.literal(match.group())
            at, held = match.end(), 0
        self._pieces(body[at:])

    def _is_boundary(self, run: str, before: str, after: str, held: int) -> bool:
        """An emoji between two clauses is as good as a full stop."""
        count = before.count(_SLOT)
        first = self._next + count
        kinds = {span.kind for span in self._spans[first : first + run.count(_SLOT)]}
        if not kinds <= _CLAUSE_KINDS:
            return False
        return run.strip(_SLOT + " ") != "" or (_weight(before) >= 4 and _weight(after.split(_SLOT)[0]) >= 2)

    def _pieces(self, piece: str) -> None:
        while len(piece) > self._limit:
            cut = self._cut(piece)
            self._piece(piece[:cut])
            piece = piece[cut:]
        self._piece(piece)

    def _cut(self, piece: str) -> int:
        """Where to cut a sentence that is too long: the last clause mark or space, else a place between words."""
        cut = 0
        for match in _CLAUSE_END.finditer(piece, 0, self._limit):
            if match.end() >= self._limit // 3:
                cut = match.end()
        if cut:
            return cut
        cut = self._limit
        while cut > self._limit // 2 and (
            piece[cut - 1 : cut + 1].isascii() or unicodedata.combining(piece[cut])
        ):
            cut -= 1
        return cut

    def _piece(self, piece: str) -> None:
        """One piece that the model gets, unless there is nothing in it that it could translate."""
        core = piece.strip()
        if not core:
            self._edge(piece)
            return
        lead = piece.index(core)
        self._edge(piece[:lead])
        trail = piece[lead + len(core) :]
        if (
            self._slang
            and _SLOT not in core
            and (rendered := _rendering(core, self._direction, self._target))
        ):
            self.literal(rendered)
            self._edge(trail)
            return
        text = polish.simplify(core, self._direction, self._slang) if self._changes_language else core
        if not polish.is_translatable(text, self._source, self._changes_language):
            self.literal(core)
            self._edge(trail)
            return
        spans = tuple(self._take() for _ in range(core.count(_SLOT)))
        original = _fill(core, [span.source for span in spans])
        text = _fill(text, PLACEHOLDERS)
        if not (self._changes_language and self.parts and isinstance(self.parts[-1], Sentence)):
            self.literal("")
        self._blank = trail
        self.parts.append(Sentence(text, spans, original, self._source, self._target))


def _fill(skeleton: str, values: Sequence[str]) -> str:
    pieces = skeleton.split(_SLOT)
    return pieces[0] + "".join(value + piece for value, piece in zip(values, pieces[1:], strict=False))


_EDGES = regex.compile(r"^([\s\"'“‘(（]*+)(.*?)([\s\"'”’)）。！!？?~～….，,、；;：:]*+)$", regex.DOTALL)


@lru_cache(maxsize=4096)
def _rendering(core: str, direction: str, target: str) -> str | None:
    """The translation of a sentence that is one slang word, with its punctuation."""
    if len(core) > 60:
        return None
    match = _EDGES.match(core)
    if not match or not match[2]:
        return None
    rendered = glossary.render(match[2], direction) or glossary.render(polish.squeeze(match[2]), direction)
    return (
        polish.punctuation(match[1], target) + rendered + polish.punctuation(match[3], target)
        if rendered
        else None
    )
