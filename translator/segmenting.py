"""How a comment is cut up: what is masked, where sentences end, what the model need not see."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import regex

from translator import glossary, polish
from translator.glossary import Hit, Term
from translator.language import EN, ZH_HANS, ZH_HANT, convert_script, is_english_word
from translator.sentence import Part, Sentence, Span
from translator.spans import PLACEHOLDERS, Kind, scan

# Stands for any span while a comment is cut up; text that holds it is itself a span.
_SLOT = PLACEHOLDERS[0]
# Stands for a span that is a word of its sentence (a term, a figure): never cut off at the edge.
_WORD_SLOT = PLACEHOLDERS[1]
_SLOTS = regex.compile(f"[{_SLOT}{_WORD_SLOT}]")
_CLAUSE_KINDS = frozenset({Kind.EMOJI, Kind.KAOMOJI, Kind.STICKER, Kind.SYMBOL})

# Runs in the target language. English inside Chinese: three words or more (fewer are loan words
# and names, which models copy), one of them common, so that a row of brand names does not count.
_ENGLISH_RUN = regex.compile(r"(?<![A-Za-z0-9])[A-Za-z](?:[A-Za-z0-9'’]++|[ ,.!?;:\"-]{1,3}(?=[A-Za-z]))*+[.!?]*+")
_WORD = regex.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*+")
# Chinese inside English: a clause; or, if there is a symbol to mask it with, any word, because
# English models read no Han.
_HAN_RUN = regex.compile(r"\p{Han}[\p{Han}\d，。！？、…“”《》～]*+")
_HAN_CLAUSE = regex.compile(r"\p{Han}[\p{Han}\d，。！？、…“”《》～]{3,}+")

# A third language: no model of this service reads it. One letter may be decoration (小熊の店).
_OTHER = r"[\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Cyrillic}\p{Arabic}\p{Thai}\p{Hebrew}\p{Devanagari}\p{Greek}]"
_OTHER_SCRIPT = regex.compile(rf"{_OTHER}{{2,}}+(?:[ ,.!?、。！？]++{_OTHER}++)*+")


def mask(text: str, source: str, target: str, placeholders: bool, terms: tuple[Term, ...]) -> tuple[str, list[Span]]:
    """The text with one slot for each span, and the spans.

    Neighbours share a slot, unless a glossary term is among them.
    """
    skeleton: list[str] = []
    spans: list[Span] = []
    found = scan(text)
    for i, (start, end, hits) in enumerate(_gaps(text, terms)):
        at = start
        for hit in hits:
            slot = _WORD_SLOT if placeholders else _SLOT
            skeleton += (_mask_target(text[at : hit.start], source, target, placeholders, spans), slot)
            spans.append(Span(text[hit.start : hit.end], hit.term.target, Kind.TERM))
            at = hit.end
        skeleton.append(_mask_target(text[at:end], source, target, placeholders, spans))
        if i == len(found):
            break
        span, kind = text[end : found[i].end], found[i].kind
        if i and start == end and spans[-1].kind is not Kind.TERM:
            span = spans.pop().source + span
        else:
            skeleton.append(_SLOT)
        spans.append(Span(span, span, kind))
    return "".join(skeleton), spans


def term_hits(text: str, terms: tuple[Term, ...]) -> Iterator[Hit]:
    """Where glossary terms apply: outside of protected spans."""
    for _, _, hits in _gaps(text, terms):
        yield from hits


def _gaps(text: str, terms: tuple[Term, ...]) -> Iterator[tuple[int, int, list[Hit]]]:
    """The stretches between the spans (one more than there are spans) and the terms in them."""
    at = 0
    for start, end in [*((span.start, span.end) for span in scan(text)), (len(text), len(text))]:
        hits = glossary.find_terms(text[at:start], terms)
        yield at, start, [Hit(at + hit.start, at + hit.end, hit.term) for hit in hits]
        at = end


def _mask_target(gap: str, source: str, target: str, placeholders: bool, spans: list[Span]) -> str:
    """Mask what is in the target language already or in a third one; adds to ``spans``."""
    if source[:2] == target[:2] or not gap:
        return gap

    def replace(match: regex.Match[str]) -> str:
        run = match.group()
        if target == "en":
            words = _WORD.findall(run)
            if len(words) < 3 or not any(is_english_word(word.lower()) for word in words):
                return run
        spans.append(Span(run, run, Kind.CLAUSE))
        return _SLOT

    han = _HAN_RUN if placeholders else _HAN_CLAUSE
    if _OTHER_SCRIPT.search(gap):
        pieces = _OTHER_SCRIPT.split(gap)
        out = [_mask_target(pieces[0], source, target, placeholders, spans)]
        for run, piece in zip(_OTHER_SCRIPT.findall(gap), pieces[1:], strict=True):
            spans.append(Span(run, run, Kind.CLAUSE))
            out += (_SLOT, _mask_target(piece, source, target, placeholders, spans))
        return "".join(out)
    pattern = _ENGLISH_RUN if target == "en" else han
    if not placeholders:
        return pattern.sub(replace, gap)
    # Models that know placeholders have learnt them for figures too, and copy them more surely than digits.
    out, at = [], 0
    for figure in polish.kept_figures(gap, target):
        out += (pattern.sub(replace, gap[at : figure.start()]), _WORD_SLOT)
        spans.append(Span(figure.group(), figure.group(), Kind.NUMBER))
        at = figure.end()
    return "".join([*out, pattern.sub(replace, gap[at:])])


_MARKER = regex.compile(
    r"[ \t\u3000]*+(?:[-*•·●▪◦–—]+[ \t]+|[•·●▪◦]|\d{1,3}[.、)）](?!\d)[ \t]*"
    r"|[(（]\d{1,2}[)）][ \t]*|[①-⑳][ \t]*|[>]+[ \t]+)|[ \t\u3000]+"
)
_CLOSERS = r"[\"'”’)）」』】》\]]*+"
# The end of a sentence. A full stop ends one only before a space, and not after an abbreviation.
_END = regex.compile(
    rf"""
      [。！？!?]++[。！？!?…~～.]*+{_CLOSERS}
    | [；;]++
    | (?:…++|\.{{3,}}+|。{{2,}}+)[。！？!?~～]*+{_CLOSERS}
    | (?<![~～])[~～]++(?=\s*\w)
    | (?<!\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|Jr|Sr|Mt|ft|feat|approx|e\.g|i\.e|a\.m|p\.m|[A-Z]))
      \.{_CLOSERS}(?=\s|$)
    | (?<=\p{{Han}})\.(?=\p{{Han}})
    | [ \u3000]{{2,}}+ | [ \u3000]*\t[ \t\u3000]*
    """,
    regex.VERBOSE,
)
# "我！想！你！" is one sentence, shouted.
_SPELLED = regex.compile(r"(?<!\p{Han})(?:\p{Han}[！!～~。.、 ]){3,}+\p{Han}?(?!\p{Han})")
_SPELLING = regex.compile(r"(?<=\p{Han})[！!～~。.、 ](?=\p{Han})")
_WEAK_END = frozenset("…~～")
# English sentences with fewer letters go to the model together with the next one: cutting at every full stop costs
# 0.5 BLEU into Chinese on the comments of the development set; longer pieces gain little. From Chinese it is free.
_SHORT_ENGLISH = 60
_CLAUSE_END = regex.compile(r"[，,、：:)）]+|\s+")
_FIRST_CLAUSE = regex.compile(r"[^，,、！!。？?\s]{1,12}[，,]\s*+(?=\S)")
_MARKS = r"，,：:、；;。.！!？?~～"
_HEAD = regex.compile(rf"[\s{_SLOT}]*{_SLOT}[\s{_MARKS}]*|\s+")
_TAIL = regex.compile(rf"(?:\s*{_SLOT}[\s{_SLOT}{_MARKS}…]*+|\s++)$")
_INNER = regex.compile(rf"{_WORD_SLOT}|\s*+{_SLOT}[\s{_SLOT}]*+(?:(?<={_SLOT})[{_MARKS}]++\s*+)?")


def _weight(piece: str) -> int:
    """Roughly how many words."""
    return sum("\u3400" <= c <= "\u9fff" for c in piece) or len(_WORD.findall(piece))


def _ends_clause(body: str, start: int, emoji: regex.Match[str]) -> bool:
    """An emoji between two clauses is as good as a full stop; beside a mark it always is."""
    if emoji.group().strip(_SLOT + " "):
        return True
    before = body[max(start, emoji.start() - 30) : emoji.start()]
    after = body[emoji.end() : emoji.end() + 30].partition(_SLOT)[0]
    return _weight(before) >= 4 and _weight(after) >= 2


class Cutter:
    """Cuts the lines of one masked comment into parts.

    Args:
        source, target: canonical codes.
        placeholders: how many symbols a sentence may hold.
        slang: apply the lexicon.
        limit: longest sentence, in Latin letters; a Han character counts as three.
        spans: what ``mask`` found, consumed in the order of the slots.
    """

    def __init__(self, source: str, target: str, placeholders: int, slang: bool, limit: int, spans: list[Span]) -> None:
        self.parts: list[Part] = []
        self._source, self._target = source, target
        self._changes_language = source[:2] != target[:2]
        self._direction = f"{source[:2]}-{target[:2]}"
        self._placeholders = placeholders
        self._slang = slang and self._changes_language
        self._limit = max(8, limit // 3 if source.startswith("zh") else limit)
        self._spans, self._next = spans, 0
        self._open = False  # the last part is a literal that may grow
        # Space that is literal, unless it has a sentence on both sides: that is the join's affair.
        self._blank = ""

    def literal(self, piece: str) -> None:
        """Add text that needs no translation."""
        piece, self._blank = self._blank + piece, ""
        if not piece:
            return
        if self._changes_language:
            piece = polish.punctuation(piece, self._target)
        head, *tails = _SLOTS.split(piece)
        whole = head + "".join([self._take().target + tail for tail in tails])
        if self._open:
            self.parts[-1] = str(self.parts[-1]) + whole
        else:
            self.parts.append(whole)
        self._open = True

    def line(self, line: str) -> None:
        """Cut one line: list marker, then sentences."""
        if marker := _MARKER.match(line):
            self.literal(marker.group())
            line = line[marker.end() :]
        if self._changes_language:
            line = _SPELLED.sub(lambda match: _SPELLING.sub("", match.group()), line)
        at = 0
        for match in _END.finditer(line):
            blank = match.group().isspace()
            if not blank and self._goes_on(line[at : match.start()], match.group()):
                continue
            self._sentence(line[at : match.start() if blank else match.end()])
            if blank:
                self.literal(match.group())
            at = match.end()
        self._sentence(line[at:])

    def _goes_on(self, sentence: str, mark: str) -> bool:
        """Whether a sentence stays together with what follows its end mark."""
        # "等等……我想想" is one breath: an ellipsis or a tilde ends only a clause.
        if mark[0] in _WEAK_END and _weight(sentence) < 6:
            return True
        return self._changes_language and self._source == EN and len(sentence) < _SHORT_ENGLISH

    def _take(self) -> Span:
        self._next += 1
        return self._spans[self._next - 1]

    def _translated(self, part: Part, trail: str) -> None:
        """Add a sentence, or what has become of one already; ``trail`` is the space behind it."""
        between_sentences = self._changes_language and self.parts and not self._open
        if not between_sentences:
            self.literal("")
        self.parts.append(part)
        self._open, self._blank = False, trail

    def _edge(self, piece: str) -> None:
        if not piece or piece.isspace():
            self._blank += piece
        else:
            self.literal(piece)

    def _sentence(self, sentence: str) -> None:
        head = _HEAD.match(sentence)
        start = head.end() if head else 0
        tail = _TAIL.search(sentence, start)
        end = tail.start() if tail else len(sentence)
        self._edge(sentence[:start])
        self._body(sentence[start:end])
        self._edge(sentence[end:])

    def _body(self, body: str) -> None:
        """Cut a sentence at the slots that cannot stay inside, then at its length."""
        at, held = 0, 0
        for match in _INNER.finditer(body):
            if match.group() == _WORD_SLOT:
                if held == self._placeholders:  # the sentence is full
                    self._pieces(body[at : match.start()])
                    at, held = match.start(), 0
                held += 1
                continue
            count = match.group().count(_SLOT)
            kinds = {span.kind for span in self._spans[self._next + held : self._next + held + count]}
            if held + count <= self._placeholders and not (kinds <= _CLAUSE_KINDS and _ends_clause(body, at, match)):
                held += count
                continue
            self._pieces(body[at : match.start()])
            self.literal(match.group())
            at, held = match.end(), 0
        self._pieces(body[at:])

    def _pieces(self, piece: str) -> None:
        while len(piece) > self._limit:
            cut = self._cut(piece)
            self._piece(piece[:cut])
            piece = piece[cut:]
        self._piece(piece)

    def _cut(self, piece: str) -> int:
        """Where to cut a sentence that is too long: after a clause, else between words."""
        cut = 0
        for match in _CLAUSE_END.finditer(piece, 0, self._limit):
            if match.end() >= self._limit // 3:
                cut = match.end()
        if cut:
            return cut
        cut = self._limit
        while cut > self._limit // 2 and (piece[cut - 1 : cut + 1].isascii() or unicodedata.combining(piece[cut])):
            cut -= 1
        return cut

    def _piece(self, piece: str) -> None:
        """Add a piece for the model, unless there is nothing in it that it could translate."""
        core = piece.strip()
        lead, _, trail = piece.partition(core) if core else (piece, "", "")
        self._edge(lead)
        if not core:
            return
        text = core
        if self._changes_language:
            if self._source == ZH_HANT:
                text = convert_script(text, ZH_HANS)  # what the models and the lexicon read
            if self._slang and not _SLOTS.search(text) and (found := _rendering(text, self._direction)):
                self._translated(found, trail)
                return
            # "滴滴，纯聊天": slang for a first clause. English has too many words that are slang only alone.
            first = _FIRST_CLAUSE.match(core) if self._slang and self._source != EN else None
            if first and (found := _rendering(first.group().strip(), self._direction)):
                self._translated(found, "")
                self._piece(core[first.end() :] + trail)
                return
            text = polish.simplify(text, self._direction, self._slang)
        if not polish.is_translatable(text, self._source, self._changes_language):
            self.literal(core)
            self._edge(trail)
            return
        spans = [self._take() for _ in _SLOTS.findall(core)]
        original = _fill(core, [span.source for span in spans])
        text = _fill(text, PLACEHOLDERS)
        if self._changes_language:
            spans += [Span(figure, figure, Kind.FIGURE) for figure in polish.figures(text)]
        self._translated(Sentence(text, tuple(spans), original, self._source, self._target), trail)


def _fill(skeleton: str, values: Sequence[str]) -> str:
    head, *tails = _SLOTS.split(skeleton)
    return head + "".join(value + tail for value, tail in zip(values, tails, strict=False))


_EDGES = regex.compile(r"^([\s\"'“‘(（]*+)(.*?)([\s\"'”’)）。！!？?~～….，,、；;：:]*+)$", regex.DOTALL)


@lru_cache(maxsize=4096)
def _rendering(text: str, direction: str) -> str | None:
    """The translation of a sentence that is one slang term, with its punctuation."""
    if len(text) > 60:
        return None
    match = _EDGES.match(text)
    if not match or not match[2]:
        return None
    term, target = match[2], direction[3:]
    rendered = glossary.render(term, direction) or glossary.render(polish.squeeze(term), direction)
    if not rendered:
        return None
    return polish.punctuation(match[1], target) + rendered + polish.punctuation(match[3], target)
