"""Who translates the comments of an export: a ``Translator`` in this process. (A server: ``exports.remote``.)"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Protocol

from translator.batcher import Lane
from translator.errors import TranslateError
from translator.exports.rows import ExportError, ExportStopped, Failure, Outcome
from translator.glossary import Term
from translator.service import Result, Translation, Translator


class Backend(Protocol):
    """Translates comments. Use from one event loop."""

    async def start(self) -> None:
        """Get ready.

        Raises:
            ExportError: the models, the server or the options are not usable.
        """
        ...

    async def translate(self, texts: Sequence[str]) -> list[Outcome]:
        """One outcome a text, in order. Several calls may be under way.

        Raises:
            ExportStopped: no further translation is possible now.
        """
        ...

    async def close(self) -> None:
        """Stop at once. Idempotent."""
        ...

    @property
    def tokens(self) -> int | None:
        """Source and target tokens that the model handled so far; None when unknown."""
        ...


class LocalBackend:
    """See ``Backend``. A ``Translator`` of its own, on the batch lane.

    Args:
        translator: not yet started.
        target, source: language codes; an empty source is detected for each comment.
        terms: glossary terms.
    """

    def __init__(self, translator: Translator, target: str, source: str = "", terms: Sequence[Term] = ()) -> None:
        self._translator = translator
        self._target = target
        self._source = source
        self._terms = terms
        self._tokens = 0

    async def start(self) -> None:
        """See ``Backend``."""
        try:
            await self._translator.start()
            await self._translate(["?"])  # nothing for the model; wrong options are refused before a row is read
        except TranslateError as error:
            raise ExportError(str(error)) from error

    async def translate(self, texts: Sequence[str]) -> list[Outcome]:
        """See ``Backend``."""
        limit = self._translator.settings.max_content_codepoints
        outcomes: list[Outcome | None] = [_too_long(text, limit) for text in texts]
        places = [i for i, outcome in enumerate(outcomes) if outcome is None]
        calls = list(self._calls(places, texts))
        results = await asyncio.gather(*(self._call([texts[i] for i in call]) for call in calls))
        for call, result in zip(calls, results, strict=True):
            for i, translation in zip(call, result, strict=True):
                outcomes[i] = outcome_of(translation)
        return [outcome for outcome in outcomes if outcome is not None]

    async def _call(self, texts: Sequence[str]) -> list[Translation]:
        try:
            result = await self._translate(texts)
        except TranslateError as error:
            raise ExportStopped(str(error)) from error
        if not self._translator.ready:
            # Going on would mark each further row as failed.
            raise ExportStopped("the model keeps failing; the log says why")
        self._tokens += result.source_tokens + result.target_tokens
        return result.translations

    async def _translate(self, texts: Sequence[str]) -> Result:
        return await self._translator.translate(
            texts, target=self._target, source=self._source, terms=self._terms, lane=Lane.BATCH
        )

    def _calls(self, places: Sequence[int], texts: Sequence[str]) -> Iterator[list[int]]:
        """Indices cut into calls that are within the limits of one request."""
        settings = self._translator.settings
        call: list[int] = []
        size = 0
        for i in places:
            if call and (len(call) >= settings.max_contents or size + len(texts[i]) > settings.max_request_codepoints):
                yield call
                call, size = [], 0
            call.append(i)
            size += len(texts[i])
        if call:
            yield call

    async def close(self) -> None:
        """See ``Backend``."""
        await self._translator.close(drain=False)

    @property
    def tokens(self) -> int | None:
        """See ``Backend``."""
        return self._tokens


def _too_long(text: str, limit: int) -> Outcome | None:
    """Refused here, because a text over the limit for all texts together would fail its whole call."""
    if len(text) <= limit:
        return None
    message = f"has {len(text)} code points; the limit is {limit}"
    return Outcome(None, failure=Failure("CONTENT_TOO_LONG", message))


def failure_of(reason: str, message: str) -> Failure:
    """A translation error as a row's failure. A file has an empty field where a call gets the source text back."""
    return Failure(reason, message.removesuffix("; the source text is returned"))


def outcome_of(translation: Translation) -> Outcome:
    """The library's answer as an outcome."""
    error, skip = translation.error, translation.skip
    return Outcome(
        None if error else translation.text,
        translation.detected_language,
        skip.value if skip else "",
        failure_of(error.reason, str(error)) if error else None,
        translation.cache_hit,
    )
