"""A piece of a comment on its way through the model, and what was taken out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import regex

from translator import polish
from translator.spans import PLACEHOLDERS, Kind

_SYMBOLS = "".join(PLACEHOLDERS)
_PLACEHOLDER = regex.compile(f"[{_SYMBOLS}]")
_CLAUSE = regex.compile(r"(?<=[，、；;：]|[,:]\s)")
_PLACEHOLDER_WITH_SPACE = regex.compile(rf"(\s*[{_SYMBOLS}]\s*)")


@dataclass(frozen=True, slots=True)
class Span:
    """A protected span and what stands for it in the output: itself, or a glossary term's target."""

    source: str
    target: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Sentence:
    """A piece of a comment for the model.

    Args:
        text: what the model reads. Spans inside it are placeholders, the first span the first
            placeholder, and so on; slang and elongations are rewritten.
        spans: the spans behind the placeholders, in order; then, of kind FIGURE, the figures of the
            text, which the model sees and must not change.
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
            The translation, with the punctuation and spacing of its language; or None if a
            placeholder was lost, doubled, moved or invented, or a figure changed.
        """
        if _PLACEHOLDER.findall(translation) != _PLACEHOLDER.findall(self.text):
            return None
        if self.source[:2] != self.target[:2]:
            if not polish.keeps_figures(self.text, translation, self.target):
                return None
            translation = polish.polish(translation, self.target)
        pieces = _PLACEHOLDER.split(translation)
        if len(pieces) == 1:
            return translation
        parts = [pieces[0]]
        for span, piece in zip(self.spans, pieces[1:], strict=False):
            parts += [span.target, piece]
        return join(parts, self.source, self.target)

    def split(self) -> list[Sentence | str]:
        """The sentence cut around its spans, or without any into clauses: literal parts and plain sentences.

        The way out when ``restore`` fails or the output is unfit: whatever the model makes of the pieces, no
        span is lost. A clause without spans comes back whole.
        """
        if not self.spans:
            return self._clauses()
        parts: list[Sentence | str] = []
        masked = (span for span in self.spans if span.kind is not Kind.FIGURE)
        figures = [span.source for span in self.spans if span.kind is Kind.FIGURE]
        for piece in _PLACEHOLDER_WITH_SPACE.split(self.text):
            symbol = piece.strip()
            if symbol in PLACEHOLDERS:
                parts.append(piece.replace(symbol, next(masked).target))
            else:
                parts += self._cut(piece, figures)
        return parts

    def _clauses(self) -> list[Sentence | str]:
        clauses = [piece for piece in _CLAUSE.split(self.text) if piece]
        parts = [part for clause in clauses for part in self._part(clause)]
        return parts if sum(isinstance(part, Sentence) for part in parts) > 1 else [self]

    def _cut(self, piece: str, figures: list[str]) -> Iterator[Sentence | str]:
        """Cut a piece around the ``figures`` in it, which it consumes."""
        while figures and (start := piece.find(figures[0])) >= 0:
            figure = figures.pop(0)
            yield from self._part(piece[:start])
            yield figure
            piece = piece[start + len(figure) :]
        yield from self._part(piece)

    def _part(self, piece: str) -> Iterator[Sentence | str]:
        text = piece.strip()
        if any(map(str.isalpha, text)):
            yield Sentence(text, (), text, self.source, self.target)
        elif piece:
            yield polish.punctuation(piece, self.target)


Part = str | Sentence


def join(parts: list[str], source: str, target: str) -> str:
    """See ``translator.text.join``."""
    return "".join(parts) if source[:2] == target[:2] else polish.glue(parts, target)
