"""What a caller of ``Translator.translate`` gives and gets, and the checks of what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from translator import language
from translator.batcher import Lane, Output
from translator.config import Settings
from translator.errors import InvalidRequest, TranslateError, UnsupportedLanguage
from translator.glossary import Term
from translator.model import Model

MAX_TERM_CODEPOINTS = 100


class SkipReason(StrEnum):
    """Why a comment came back as it was."""

    ALREADY_TARGET_LANGUAGE = "already_target_language"
    NO_LINGUISTIC_CONTENT = "no_linguistic_content"
    UNSUPPORTED_LANGUAGE = "unsupported_language"


class CachePolicy(StrEnum):
    """How a request uses the cache: read and write, neither, or write only."""

    USE = "use"
    BYPASS = "bypass"
    REFRESH = "refresh"


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call, checked and canonical.

    Args:
        source, target: canonical language codes; an empty source is detected per comment.
        family: of the models; one that is loaded.
        deadline: ``time.monotonic()`` after which an answer is worthless.
    """

    source: str
    target: str
    family: str
    terms: tuple[Term, ...]
    lane: Lane
    cache: CachePolicy
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Translation:
    """What became of one comment.

    Args:
        text: the translation; the source text itself when ``skip`` or ``error`` is set.
        detected_language: canonical code, ``und`` when nothing could be said.
        confidence: 0 to 1; 1 when the caller named the language.
        model: e.g. ``embedded/zh-en``; empty when none was used.
        cache_hit: nothing of it needed the model.
        skip: why there was nothing to translate.
        error: what failed for this comment alone.
        applied_terms: the caller's glossary terms found in it, in order.
    """

    text: str
    detected_language: str
    confidence: float
    model: str = ""
    cache_hit: bool = False
    skip: SkipReason | None = None
    error: TranslateError | None = None
    applied_terms: tuple[Term, ...] = ()


@dataclass(slots=True)
class Result:
    """Translations in the order of the texts, and what they cost."""

    translations: list[Translation] = field(default_factory=list)
    source_tokens: int = 0
    target_tokens: int = 0
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0

    def add_cost(self, output: Output) -> None:
        self.source_tokens += output.source_tokens
        self.target_tokens += output.target_tokens
        self.queue_seconds = max(self.queue_seconds, output.queue_seconds)
        self.inference_seconds = max(self.inference_seconds, output.inference_seconds)


def check_contents(contents: Sequence[str], limits: Settings) -> None:
    """Check number and total length. A single text that is too long fails alone: see ``content_too_long``.

    Raises:
        InvalidRequest: there are none, or they pass a limit.
    """
    if not contents:
        raise InvalidRequest("contents", "is empty; give at least one text", "EMPTY_CONTENTS")
    if len(contents) > limits.max_contents:
        raise InvalidRequest(
            "contents",
            f"has {len(contents)} texts; the limit is {limits.max_contents}",
            "TOO_MANY_CONTENTS",
        )
    total = sum(map(len, contents))
    if total > limits.max_request_codepoints:
        raise InvalidRequest(
            "contents",
            f"has {total} code points in all; the limit is {limits.max_request_codepoints}",
            "REQUEST_TOO_LONG",
        )


def content_too_long(index: int, content: str, limit: int) -> InvalidRequest:
    """The error of a text that has more than ``limit`` code points."""
    return InvalidRequest(
        f"contents[{index}]",
        f"has {len(content)} code points; the limit is {limit}",
        "CONTENT_TOO_LONG",
    )


def check_target(code: str) -> str:
    """The canonical code.

    Raises:
        InvalidRequest: there is none.
        UnsupportedLanguage: no such target.
    """
    if not code.strip():
        raise InvalidRequest("target_language_code", "is required", "TARGET_LANGUAGE_MISSING")
    canonical = _canonical(code, "target_language_code")
    if not canonical:  # "auto"
        raise UnsupportedLanguage(code, "target_language_code")
    return canonical


def check_source(code: str) -> str:
    """The canonical code; empty where the source is to be detected.

    Raises:
        UnsupportedLanguage: no such source.
    """
    return _canonical(code, "source_language_code")


def check_terms(terms: Sequence[Term], limits: Settings) -> tuple[Term, ...]:
    """The terms, none of which is blank or too long.

    Raises:
        InvalidRequest: a limit is passed.
    """
    if len(terms) > limits.max_glossary_terms:
        raise InvalidRequest(
            "glossary_terms",
            f"has {len(terms)} terms; the limit is {limits.max_glossary_terms}",
            "TOO_MANY_GLOSSARY_TERMS",
        )
    for i, term in enumerate(terms):
        for side, value in (("source", term.source), ("target", term.target)):
            if not value.strip() or len(value) > MAX_TERM_CODEPOINTS:
                raise InvalidRequest(
                    f"glossary_terms[{i}].{side}",
                    f"has {len(value)} code points; it must have 1 to {MAX_TERM_CODEPOINTS}, not all blank",
                    "INVALID_GLOSSARY_TERM",
                )
    return tuple(terms)


def find_model(models: Mapping[tuple[str, str], Model], family: str, source: str, target: str) -> Model | None:
    """The model of a direction; None when a change of script is all there is to do.

    Args:
        models: by (family, pair).
        source, target: canonical language codes.

    Raises:
        InvalidRequest: the family has no such direction.
    """
    base_source, base_target = source[:2], target[:2]
    if base_source == base_target:
        return None
    model = models.get((family, f"{base_source}-{base_target}"))
    if model is None:
        raise InvalidRequest(
            "target_language_code",
            f"model {family!r} does not translate from {source} to {target} here",
            "UNSUPPORTED_PAIR",
        )
    return model


def _canonical(code: str, field: str) -> str:
    try:
        return language.canonical(code)
    except UnsupportedLanguage as error:
        raise UnsupportedLanguage(error.code, field) from None
