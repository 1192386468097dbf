"""The way of a comment from text to translation.

normalise -> detect -> skip? -> segment (mask, split) -> each sentence: ``translator.inference`` -> restore what was
masked, or once more in pieces where it did not survive -> join.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

from translator import language, text
from translator.batcher import Batcher
from translator.cache import CommentKey, Entry, Key, TranslationCache
from translator.call import CachePolicy, Call, Result, SkipReason, Translation, content_too_long, find_model
from translator.config import Settings
from translator.errors import InvalidRequest, Overloaded, TranslateError, UnfitOutput
from translator.inference import Inference, Outcomes, bug
from translator.language import EN, UND, ZH_HANS, ZH_HANT
from translator.model import DecodingOptions, Model
from translator.observer import Observer


@dataclass(slots=True)
class _Comment:
    """One comment under way.

    Args:
        hant: may hold Traditional characters, which the models do not read.
        keys: run beside ``parts``; literal parts have none.
        computed: the model was needed for a part that has since been cut up.
    """

    content: str
    normalised: str
    source: str
    confidence: float
    hant: bool
    model: Model | None
    parts: list[text.Part]
    keys: list[Key | None] = field(default_factory=list)
    computed: bool = False


class Route:
    """Takes comments all the way. Use from one event loop.

    Args:
        options: decoding options.
        models: by (family, pair).
        batcher: started.
        observer: told of comments and unfit outputs.
    """

    def __init__(
        self,
        settings: Settings,
        options: DecodingOptions,
        models: Mapping[tuple[str, str], Model],
        cache: TranslationCache[Translation],
        batcher: Batcher,
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._models = models
        self._cache = cache
        self._batcher = batcher
        self._observer = observer
        self._inference = Inference(settings, options, cache, batcher, observer)

    async def translate(self, contents: Sequence[str], call: Call) -> Result:
        """One translation per comment, in order. A comment that fails does not fail the others.

        Raises:
            Overloaded: the queue is full, or its wait too long (interactive lane).
            DeadlineExceeded: the call's deadline passed in the queue.
            Unavailable: shutting down.
        """
        result = Result()
        admitted = monotonic()
        prepared: list[_Comment | Translation] = []
        for i, content in enumerate(contents):
            if (known := self._known(content, call)) is not None:
                prepared.append(known)
                continue
            # Before the text work: under overload, refusing must cost little. So it also refuses what would have turned
            # out not to need the model.
            self._batcher.admit(call.lane)
            try:
                prepared.append(self._prepare(i, content, call))
            except Exception as error:
                prepared.append(Translation(content, call.source or UND, 0.0, error=bug("prepared", error)))
            if i % 32 == 31:  # a long list must not hold up everybody else's event loop
                await asyncio.sleep(0)
        comments = [item for item in prepared if isinstance(item, _Comment)]
        outcomes = Outcomes()
        if comments:
            await self._infer(comments, call, outcomes, result)
        # Where the model lost a placeholder, translate around the span instead: that cannot lose it.
        if again := [comment for comment in comments if self._resplit(comment, outcomes)]:
            try:
                await self._infer(again, call, outcomes, result, admitted)
            except Overloaded as error:  # only what is missing fails; the rest is there
                for key in filter(None, (key for comment in again for key in comment.keys)):
                    outcomes.entries.setdefault(key, error)
        for item in prepared:
            if isinstance(item, _Comment):
                translation = _finish(item, call, outcomes)
                self._keep(translation, item.content, call)
            else:
                translation = item
            result.translations.append(translation)
            self._observe(translation, call)
        return result

    # Whole comments

    def _known(self, content: str, call: Call) -> Translation | None:
        """The answer to a comment that was translated before, unless the caller's own terms bear on it."""
        if call.cache is not CachePolicy.USE or call.terms:
            return None
        return self._cache.get_comment(CommentKey(content, call.source, call.target, call.family))

    def _keep(self, translation: Translation, content: str, call: Call) -> None:
        if call.cache is CachePolicy.BYPASS or call.terms or translation.error or not translation.model:
            return
        # With a time to live only what was computed now may start one; else a comment could live twice as long.
        if self._settings.cache_ttl_seconds and translation.cache_hit:
            return
        key = CommentKey(content, call.source, call.target, call.family)
        self._cache.put_comment(key, replace(translation, cache_hit=True))

    def _observe(self, translation: Translation, call: Call) -> None:
        if translation.error:
            outcome = "failed"
        elif translation.skip:
            outcome = translation.skip.value
        else:
            outcome = "cached" if translation.cache_hit else "translated"
        source, target = translation.detected_language.partition("-")[0], call.target.partition("-")[0]
        self._observer.on_comment(f"{source}-{target}", outcome)

    # Before the model

    def _prepare(self, index: int, content: str, call: Call) -> _Comment | Translation:
        """Everything before the model. A comment that needs none comes back as its translation."""
        limit = self._settings.max_content_codepoints
        if len(content) > limit:
            return Translation(content, call.source or UND, 0.0, error=content_too_long(index, content, limit))
        normalised = text.normalise(content)
        if not text.has_linguistic_content(normalised):
            return Translation(content, call.source or UND, 0.0, skip=SkipReason.NO_LINGUISTIC_CONTENT)
        found = language.detect(normalised)
        source, confidence = (call.source, 1.0) if call.source else (found.language, found.confidence)
        if source == UND:
            return Translation(content, UND, confidence, skip=SkipReason.NO_LINGUISTIC_CONTENT)
        if source not in (ZH_HANS, ZH_HANT, EN):
            return Translation(content, source, confidence, skip=SkipReason.UNSUPPORTED_LANGUAGE)
        # A caller who names the source may still send a comment that is in the target language.
        in_target = found.language in (ZH_HANS, ZH_HANT, EN) and found.language[:2] == call.target[:2]
        if source == call.target or (call.source and call.source[:2] != call.target[:2] and in_target):
            return Translation(content, source, confidence, skip=SkipReason.ALREADY_TARGET_LANGUAGE)
        try:
            model = find_model(self._models, call.family, source, call.target)
        except InvalidRequest as error:
            return Translation(content, source, confidence, error=error)
        parts = text.segment(
            normalised,
            source,
            call.target,
            placeholders=model.description.placeholders if model else text.PLACEHOLDERS,
            terms=call.terms,
            slang=self._settings.slang and model is not None,
        )
        hant = ZH_HANT in (source, found.language)
        comment = _Comment(content, normalised, source, confidence, hant, model, parts)
        if not any(isinstance(part, text.Sentence) for part in parts):
            return _without_model(comment, found.language, call)
        self._set_keys(comment)
        return comment

    def _set_keys(self, comment: _Comment) -> None:
        model = comment.model
        if model is None:
            return
        comment.keys = [
            self._inference.key(model, _model_text(comment, part)) if isinstance(part, text.Sentence) else None
            for part in comment.parts
        ]

    # The model

    async def _infer(
        self,
        comments: Sequence[_Comment],
        call: Call,
        outcomes: Outcomes,
        result: Result,
        admitted: float | None = None,
    ) -> None:
        """Find the translation of every sentence; ``admitted``: see ``Batcher.submit``."""
        # One call has one direction, so one model; a comment without has no keys.
        model = next((comment.model for comment in comments if comment.model), None)
        keys = (key for comment in comments for key in comment.keys if key)
        await self._inference.translate(keys, model, call, outcomes, result, admitted)

    def _resplit(self, comment: _Comment, outcomes: Outcomes) -> bool:
        """Replace sentences whose placeholders or figures did not survive by their pieces.

        Returns:
            Whether there were any.
        """
        parts: list[text.Part] = []
        lost = False
        for part, key in zip(comment.parts, comment.keys, strict=False):
            entry = outcomes.entries.get(key) if key else None
            pieces: list[text.Sentence | str] = []
            if isinstance(part, text.Sentence) and isinstance(entry, Entry):
                try:
                    if entry.problem or part.restore(entry.text) is None:
                        pieces = part.split()
                except Exception as error:
                    assert key
                    outcomes.entries[key] = bug("restored", error)
            if len(pieces) > 1:
                parts += pieces
                lost = True
            else:
                parts.append(part)
        if not lost:
            return False
        comment.computed = not outcomes.computed.isdisjoint(filter(None, comment.keys))
        comment.parts = parts
        self._set_keys(comment)
        return True


def _without_model(comment: _Comment, found: str, call: Call) -> Translation:
    """A comment that has no sentence for the model: slang or terms alone, or nothing to translate at all.

    Args:
        found: the detected language, whatever the caller named.
    """
    source = comment.source
    joined = text.join([part for part in comment.parts if isinstance(part, str)], source, call.target)
    if joined != comment.normalised:
        terms = text.applied_terms(comment.normalised, call.terms) if call.terms else ()
        return Translation(joined, source, comment.confidence, applied_terms=terms)
    readable = found in (ZH_HANS, ZH_HANT, EN, UND)
    skip = SkipReason.ALREADY_TARGET_LANGUAGE if readable else SkipReason.UNSUPPORTED_LANGUAGE
    return Translation(comment.content, source, comment.confidence, skip=skip)


def _model_text(comment: _Comment, sentence: text.Sentence) -> str:
    """The models read Simplified script only."""
    return language.convert_script(sentence.text, ZH_HANS) if comment.hant else sentence.text


def _finish(comment: _Comment, call: Call, outcomes: Outcomes) -> Translation:
    """The comment's translation; a bug here is this comment's own error."""
    try:
        return _join(comment, call, outcomes)
    except Exception as error:
        failure = bug("put together", error)
        return Translation(comment.content, comment.source, comment.confidence, error=failure)


def _join(comment: _Comment, call: Call, outcomes: Outcomes) -> Translation:
    """Put the parts together; a sentence that failed stays as it was."""
    parts: list[str] = []
    failures: list[TranslateError] = []
    for i, part in enumerate(comment.parts):
        if isinstance(part, str):
            parts.append(part)
            continue
        key = comment.keys[i] if comment.keys else None
        entry = outcomes.entries[key] if key else Entry(language.convert_script(part.text, call.target))
        restored: str | None = None
        if isinstance(entry, TranslateError):
            failures.append(entry)
        elif entry.problem:
            failures.append(UnfitOutput(entry.problem))
        else:
            translated = entry.text
            if key and call.target == ZH_HANT:
                translated = language.convert_script(translated, ZH_HANT)
            restored = part.restore(translated)
            if restored is None:
                failures.append(UnfitOutput("placeholder"))
        parts.append(part.original if restored is None else restored)
    description = comment.model.description if comment.model else None
    untranslated = len(failures) == sum(isinstance(part, text.Sentence) for part in comment.parts)
    return Translation(
        comment.content if untranslated else text.join(parts, comment.source, call.target),
        comment.source,
        comment.confidence,
        model=f"{description.name}/{description.pair}" if description else "",
        cache_hit=bool(comment.keys)
        and not comment.computed
        and outcomes.computed.isdisjoint(filter(None, comment.keys)),
        error=failures[0] if failures else None,
        applied_terms=text.applied_terms(comment.normalised, call.terms) if call.terms else (),
    )
