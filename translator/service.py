"""The way of a comment from text to translation. The only module that knows all of it.

normalise -> detect -> skip? -> segment (mask, split) -> per sentence: cache, or one computation shared by all who ask
(encode -> batcher -> guard, once more with safer decoding) -> restore what was masked -> join.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from threading import Event
from time import monotonic

from translator import engines, guard, language, registry, text
from translator.batcher import Batcher, Lane, Output, Request
from translator.cache import CommentKey, Entry, Flight, Key, TranslationCache
from translator.config import Settings
from translator.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    ModelError,
    Overloaded,
    TranslateError,
    Unavailable,
    UnfitOutput,
    UnsupportedLanguage,
)
from translator.glossary import Term
from translator.language import EN, UND, ZH_HANS, ZH_HANT
from translator.model import DecodingOptions, Model
from translator.observer import Observer

log = logging.getLogger(__name__)

# Second try after an unfit output: a wider search that may not repeat itself, on a shorter leash.
SAFER_BEAM = 2

MAX_TERM_CODEPOINTS = 100

WARM_UP = {"zh-en": "今天天气真好，我们去公园吧。", "en-zh": "The weather is lovely, let's go to the park."}


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


@dataclass(frozen=True, slots=True)
class Call:
    """One ``translate`` call, its arguments checked and canonical."""

    source: str
    target: str
    family: str
    terms: tuple[Term, ...]
    lane: Lane
    cache: CachePolicy
    deadline: float | None


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


@dataclass(slots=True)
class _Outcomes:
    """What is known of the sentences of one call, and which of them needed the model."""

    entries: dict[Key, Entry | TranslateError] = field(default_factory=dict)
    computed: set[Key] = field(default_factory=set)


class Translator:
    """The library's front. Use from one event loop; ``start`` before and ``close`` after.

    Args:
        settings: see ``translator.config``.
        models: loaded models by (family, pair), for tests; by default ``start`` loads what ``settings`` name.
        observer: told of the work, for metrics.
    """

    def __init__(
        self,
        settings: Settings,
        models: dict[tuple[str, str], Model] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.settings = settings
        self._observer = observer or Observer()
        self._models = models or {}
        self._injected = models is not None
        self._default_family = next(iter(self._models), ("", ""))[0]
        self._options = DecodingOptions(
            beam_size=settings.beam_size, length_penalty=settings.length_penalty, shortlist=settings.shortlist
        )
        self._safer = DecodingOptions(
            beam_size=max(SAFER_BEAM, settings.beam_size),
            length_penalty=settings.length_penalty,
            no_repeat_ngram_size=3,
            shortlist=False,
            max_length_factor=2.0,
            max_length_offset=8,
        )
        self.cache: TranslationCache[Translation] = TranslationCache(settings.cache_bytes, settings.cache_ttl_seconds)
        self._batcher: Batcher | None = None
        self._ready = False

    # Life

    async def start(self) -> None:
        """Load the models, start the workers, translate one sentence with each model.

        Raises:
            ModelError, ConfigError: a model cannot be loaded, or its first translation fails.
        """
        settings = self.settings
        loop = asyncio.get_running_loop()
        if self._injected:
            workers = settings.workers or 1
        else:
            wanted = registry.sources(settings.model)
            self._default_family = wanted[0].name
            _, _, workers, _ = engines.resolve(settings)
            started = monotonic()
            cancelled = Event()
            pool = ThreadPoolExecutor(len(wanted), thread_name_prefix="load")
            try:
                loaded = await asyncio.gather(
                    *(loop.run_in_executor(pool, self._load, source, cancelled) for source in wanted)
                )
            finally:
                cancelled.set()  # where one model failed or the start was given up: the process waits for its threads
                pool.shutdown(wait=False)
            for source, model in zip(wanted, loaded, strict=True):
                self._models[source.name, source.pair] = model
                self._observer.on_model_loaded(f"{source.name}/{source.pair}", monotonic() - started)
        self._batcher = Batcher(
            workers,
            settings.max_batch_tokens,
            settings.max_queue_tokens,
            settings.batch_lane_max_wait_seconds,
            self._observer,
            settings.max_queue_seconds,
        )
        self._batcher.start()
        try:
            for model in self._models.values():  # one by one: a small queue may not hold two sentences
                await self._warm_up(model)
        except BaseException:
            await self.close(drain=False)
            raise
        self._ready = True

    def _load(self, source: registry.ModelSource, cancelled: Event) -> Model:
        return engines.load(registry.locate(source, self.settings.cache_dir), self.settings, cancelled)

    async def _warm_up(self, model: Model) -> None:
        description = model.description
        assert self._batcher is not None
        try:
            requests = self._batcher.submit(model, self._options, model.encode([WARM_UP[description.pair]]))
            output = await requests[0].future
        except InferenceError as error:
            raise ModelError(f"{description.id}: the first translation failed: {error.__cause__}") from error
        if not output.text:
            raise ModelError(f"{description.id}: the first translation is empty; is it a model of this pair?")

    async def probe(self) -> None:
        """Translate a sentence with each model, so that failing workers can show that they have recovered.

        A load balancer sends an unhealthy server no calls; without this it would never become healthy again.
        """
        for model in self._models.values():
            try:
                await self._warm_up(model)
            except TranslateError as error:
                log.warning("%s does not answer yet: %s", model.description.id, error)

    async def close(self, drain: bool = True) -> None:
        """Stop; with ``drain`` work in the queue is finished first. Idempotent."""
        self._ready = False
        if self._batcher is not None:
            await self._batcher.close(drain)
        for model in self._models.values():
            model.close()

    @property
    def ready(self) -> bool:
        """Models are loaded and the workers do not keep failing."""
        return self._ready and self._batcher is not None and self._batcher.healthy

    @property
    def started(self) -> bool:
        """The models are loaded; ``batcher`` may be asked."""
        return self._batcher is not None

    @property
    def batcher(self) -> Batcher:
        """The batcher.

        Raises:
            Unavailable: not started.
        """
        if self._batcher is None:
            raise Unavailable("the models are loading")
        return self._batcher

    @property
    def models(self) -> dict[tuple[str, str], Model]:
        """Loaded models by (family, pair)."""
        return self._models

    @property
    def default_model(self) -> str:
        """Family used when a request names none."""
        return self._default_family

    # Calls

    def check(
        self,
        contents: Sequence[str],
        *,
        target: str,
        source: str = "",
        model: str = "",
        terms: Sequence[Term] = (),
        lane: Lane = Lane.INTERACTIVE,
        cache: CachePolicy = CachePolicy.USE,
        timeout: float | None = None,
    ) -> Call:
        """Check the arguments of ``translate`` (see there) against the limits.

        Raises:
            InvalidRequest: names the field, what is wrong and the limit.
        """
        limits = self.settings
        if not contents:
            raise InvalidRequest("contents", "is empty; give at least one text", "EMPTY_CONTENTS")
        self._check_size(contents)
        if not target.strip():
            raise InvalidRequest("target_language_code", "is required", "TARGET_LANGUAGE_MISSING")
        target_code = _canonical(target, "target_language_code")
        if not target_code:
            raise UnsupportedLanguage(target, "target_language_code")
        source_code = _canonical(source, "source_language_code")
        family = model or self._default_family
        if family not in {name for name, _ in self._models}:
            known = ", ".join(sorted({name for name, _ in self._models}))
            raise InvalidRequest(
                "model", f"{model[:80]!r} is not loaded here; this server has: {known}", "UNKNOWN_MODEL"
            )
        if source_code:
            self._model(family, source_code, target_code)
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
        if timeout is not None and timeout <= 0:
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        deadline = None if timeout is None else monotonic() + timeout
        return Call(source_code, target_code, family, tuple(terms), lane, cache, deadline)

    def _check_size(self, contents: Sequence[str]) -> None:
        limits = self.settings
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

    def _too_long(self, index: int, content: str) -> InvalidRequest:
        return InvalidRequest(
            f"contents[{index}]",
            f"has {len(content)} code points; the limit is {self.settings.max_content_codepoints}",
            "CONTENT_TOO_LONG",
        )

    async def translate(
        self,
        contents: Sequence[str],
        *,
        target: str,
        source: str = "",
        model: str = "",
        terms: Sequence[Term] = (),
        lane: Lane = Lane.INTERACTIVE,
        cache: CachePolicy = CachePolicy.USE,
        timeout: float | None = None,
    ) -> Result:
        """Translate comments.

        Args:
            contents: the comments.
            target, source: language codes (see ``language.canonical``); an empty source is detected per comment.
            model: family; empty for the default.
            terms: glossary terms that the caller prescribes.
            lane: the batch lane waits where the interactive one is turned away.
            timeout: seconds.

        Returns:
            One translation per comment, in order. A comment that fails does not fail the others.

        Raises:
            InvalidRequest: see ``check``.
            Overloaded: the queue is full (interactive lane).
            DeadlineExceeded: ``timeout`` passed.
            Unavailable: not started, or shutting down.
        """
        if not self.started:
            raise Unavailable("the models are loading")
        call = self.check(
            contents,
            target=target,
            source=source,
            model=model,
            terms=terms,
            lane=lane,
            cache=cache,
            timeout=timeout,
        )
        if timeout is None:
            return await self._translate(contents, call)
        try:
            async with asyncio.timeout(timeout):
                return await self._translate(contents, call)
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline of {timeout:.3g} s passed") from None

    def detect(self, contents: Sequence[str]) -> list[language.Detection]:
        """Language of each text.

        Raises:
            InvalidRequest: a limit is passed.
        """
        if not contents:
            raise InvalidRequest("contents", "is empty; give at least one text", "EMPTY_CONTENTS")
        self._check_size(contents)
        for i, content in enumerate(contents):
            if len(content) > self.settings.max_content_codepoints:
                raise self._too_long(i, content)
        return [language.detect(text.normalise(content)) for content in contents]

    # The route

    async def _translate(self, contents: Sequence[str], call: Call) -> Result:
        result = Result()
        prepared: list[_Comment | Translation] = []
        for i, content in enumerate(contents):
            if (known := self._known_comment(content, call)) is not None:
                prepared.append(known)
                continue
            try:
                prepared.append(self._prepare(i, content, call))
            except Exception as error:
                prepared.append(Translation(content, call.source or UND, 0.0, error=_bug("prepared", error)))
            if i % 32 == 31:  # a long list must not hold up everybody else's event loop
                await asyncio.sleep(0)
        comments = [item for item in prepared if isinstance(item, _Comment)]
        outcomes = _Outcomes()
        await self._solve(comments, call, outcomes, result)
        # Where the model lost a placeholder, translate around the span instead: that cannot lose it.
        if again := [comment for comment in comments if self._resplit(comment, outcomes)]:
            try:
                await self._solve(again, call, outcomes, result)
            except Overloaded as error:  # only what is missing fails; the rest is there
                for key in filter(None, (key for comment in again for key in comment.keys)):
                    outcomes.entries.setdefault(key, error)
        for item in prepared:
            if isinstance(item, _Comment):
                translation = self._finish(item, call, outcomes)
                self._keep_comment(translation, item.content, call)
            else:
                translation = item
            result.translations.append(translation)
            self._observe(translation, call)
        return result

    def _known_comment(self, content: str, call: Call) -> Translation | None:
        """The answer to a comment that was translated before, unless the caller's own terms bear on it."""
        if call.cache is not CachePolicy.USE or call.terms:
            return None
        return self.cache.get_comment(CommentKey(content, call.source, call.target, call.family))

    def _keep_comment(self, translation: Translation, content: str, call: Call) -> None:
        if call.cache is CachePolicy.BYPASS or call.terms or translation.error or not translation.model:
            return
        # With a time to live only what was computed now may start one; else a comment could live twice as long.
        if self.settings.cache_ttl_seconds and translation.cache_hit:
            return
        key = CommentKey(content, call.source, call.target, call.family)
        self.cache.put_comment(key, replace(translation, cache_hit=True))

    def _prepare(self, index: int, content: str, call: Call) -> _Comment | Translation:
        """Everything before the model. A comment that needs none comes back as its translation."""
        if len(content) > self.settings.max_content_codepoints:
            return Translation(content, call.source or UND, 0.0, error=self._too_long(index, content))
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
            model = self._model(call.family, source, call.target)
        except InvalidRequest as error:
            return Translation(content, source, confidence, error=error)
        parts = text.segment(
            normalised,
            source,
            call.target,
            placeholders=model.description.placeholders if model else text.PLACEHOLDERS,
            terms=call.terms,
            slang=self.settings.slang and model is not None,
        )
        if not any(isinstance(part, text.Sentence) for part in parts):
            return self._without_model(content, normalised, found, source, confidence, parts, call)
        hant = ZH_HANT in (source, found.language)
        comment = _Comment(content, normalised, source, confidence, hant, model, parts)
        self._set_keys(comment)
        return comment

    def _without_model(
        self,
        content: str,
        normalised: str,
        found: language.Detection,
        source: str,
        confidence: float,
        parts: Sequence[text.Part],
        call: Call,
    ) -> Translation:
        """A comment that has no sentence for the model: slang or terms alone, or nothing to translate at all."""
        joined = text.join([part for part in parts if isinstance(part, str)], source, call.target)
        if joined != normalised:
            terms = text.applied_terms(normalised, call.terms) if call.terms else ()
            return Translation(joined, source, confidence, applied_terms=terms)
        readable = found.language in (ZH_HANS, ZH_HANT, EN, UND)
        skip = SkipReason.ALREADY_TARGET_LANGUAGE if readable else SkipReason.UNSUPPORTED_LANGUAGE
        return Translation(content, source, confidence, skip=skip)

    def _set_keys(self, comment: _Comment) -> None:
        if comment.model is None:
            return
        model_id = comment.model.description.id
        comment.keys = [
            Key(model_id, self._options, self._model_text(comment, part)) if isinstance(part, text.Sentence) else None
            for part in comment.parts
        ]

    @staticmethod
    def _model_text(comment: _Comment, sentence: text.Sentence) -> str:
        """The models read Simplified script only."""
        return language.convert_script(sentence.text, ZH_HANS) if comment.hant else sentence.text

    async def _solve(self, comments: Sequence[_Comment], call: Call, outcomes: _Outcomes, result: Result) -> None:
        """Find the translation of every sentence: in the cache, in flight, or from the model."""
        flights: dict[Key, Flight] = {}
        missing: dict[Key, _Comment] = {}
        try:
            for comment in comments:
                for key in filter(None, comment.keys):
                    if key in outcomes.entries or key in flights or key in missing:
                        continue
                    if not self._known(key, call, outcomes, flights):
                        missing[key] = comment
            if missing:
                await self._launch(missing, call, outcomes, flights, result)
            for key, flight in flights.items():
                outcomes.computed.add(key)
                try:
                    outcomes.entries[key] = await flight.wait()
                except (DeadlineExceeded, Unavailable):
                    raise
                except TranslateError as error:
                    outcomes.entries[key] = error
                except Exception as error:
                    outcomes.entries[key] = _bug("translated", error)
        finally:
            for flight in flights.values():
                flight.leave()

    def _hurry(self, flight: Flight, call: Call) -> None:
        """Somebody else asked first: the work now has to suit this caller too."""
        flight.extend(call.deadline)
        if call.lane is Lane.INTERACTIVE:
            for request in flight.requests:
                self.batcher.promote(request)

    def _known(self, key: Key, call: Call, outcomes: _Outcomes, flights: dict[Key, Flight]) -> bool:
        """Take a sentence from the cache, or join the computation that is under way."""
        if call.cache is CachePolicy.USE and (entry := self.cache.get(key)):
            outcomes.entries[key] = entry
            return True
        if call.cache is not CachePolicy.BYPASS and (flight := self.cache.join(key)):
            self._hurry(flight, call)
            flights[key] = flight
            return True
        return False

    async def _launch(
        self,
        missing: dict[Key, _Comment],
        call: Call,
        outcomes: _Outcomes,
        flights: dict[Key, Flight],
        result: Result,
    ) -> None:
        """Encode and queue sentences; adds their flights to ``flights``. All are queued or, interactive, none."""
        model = next(iter(missing.values())).model
        assert model is not None  # keys exist only where a model does; one call has one direction, so one model
        encoded: dict[Key, list[list[int]]] = {}
        keys = list(missing)
        for start in range(0, len(keys), 64):
            if start:
                await asyncio.sleep(0)
            encoded |= self._encode(model, keys[start : start + 64], outcomes)
        # The batch lane goes in small steps, so that it can start before all of it fits.
        keys = list(encoded)
        step = len(keys) if call.lane is Lane.INTERACTIVE else 64
        for start in range(0, len(keys), step or 1):
            chunk = keys[start : start + step]
            if call.lane is Lane.BATCH:
                await self.batcher.wait_for_room(sum(len(ids) for key in chunk for ids in encoded[key]), call.lane)
            # While this call encoded or waited, others may have begun the same sentences.
            chunk = [key for key in chunk if not self._known(key, call, outcomes, flights)]
            flat = [ids for key in chunk for ids in encoded[key]]
            requests = self.batcher.submit(model, self._options, flat, call.lane, call.deadline)
            for key in chunk:
                count = len(encoded[key])
                own, requests = requests[:count], requests[count:]
                job = self._compute(key, model, own, call, result)
                flights[key] = self.cache.launch(key, job, own, shared=call.cache is not CachePolicy.BYPASS)

    @staticmethod
    def _encode(model: Model, keys: Sequence[Key], outcomes: _Outcomes) -> dict[Key, list[list[int]]]:
        """Token ids of each sentence, in pieces that fit the model; one that cannot be encoded fails alone."""
        try:
            batches = model.encode([key.sentence for key in keys])
            return {key: list(_chunks(ids, model.max_tokens)) for key, ids in zip(keys, batches, strict=True)}
        except Exception as error:
            if len(keys) == 1:
                outcomes.entries[keys[0]] = _bug("encoded", error)
                return {}
        return {key: ids for one in keys for key, ids in Translator._encode(model, [one], outcomes).items()}

    async def _compute(self, key: Key, model: Model, requests: list[Request], call: Call, result: Result) -> Entry:
        """Await the model, judge its output, try once more if it is unfit, store what came of it."""
        pair = model.description.pair
        source, target = pair.split("-")
        separator = "" if target == "zh" else " "
        outputs = [await request.future for request in requests]
        for output in outputs:
            result.add_cost(output)
        entry = Entry(separator.join(output.text for output in outputs))
        if self.settings.guard and (problem := guard.check(key.sentence, entry.text, source, target)):
            batch = [request.tokens for request in requests]
            if requests[0].lane is Lane.BATCH:
                await self.batcher.wait_for_room(sum(map(len, batch)), Lane.BATCH)
            lane, deadline = requests[0].lane, requests[0].deadline
            try:
                requests[:] = self.batcher.submit(model, self._safer, batch, lane, deadline, second_try=True)
            except (Overloaded, Unavailable):
                self._observer.on_unfit(pair, problem, False)
                return Entry(entry.text, problem)  # not stored: there was no second try
            outputs = [await request.future for request in requests]
            for output in outputs:
                result.add_cost(output)
            second = separator.join(output.text for output in outputs)
            entry = Entry(second, guard.check(key.sentence, second, source, target))
            self._observer.on_unfit(pair, problem, entry.problem is None)
        if call.cache is not CachePolicy.BYPASS:
            self.cache.put(key, entry)
        return entry

    def _resplit(self, comment: _Comment, outcomes: _Outcomes) -> bool:
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
                    outcomes.entries[key] = _bug("restored", error)
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

    def _finish(self, comment: _Comment, call: Call, outcomes: _Outcomes) -> Translation:
        """The comment's translation; a bug here is this comment's own error."""
        try:
            return self._join(comment, call, outcomes)
        except Exception as error:
            bug = _bug("put together", error)
            return Translation(comment.content, comment.source, comment.confidence, error=bug)

    def _join(self, comment: _Comment, call: Call, outcomes: _Outcomes) -> Translation:
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

    def _observe(self, translation: Translation, call: Call) -> None:
        if translation.error:
            outcome = "failed"
        elif translation.skip:
            outcome = translation.skip.value
        else:
            outcome = "cached" if translation.cache_hit else "translated"
        source, target = translation.detected_language.partition("-")[0], call.target.partition("-")[0]
        self._observer.on_comment(f"{source}-{target}", outcome)

    def _model(self, family: str, source: str, target: str) -> Model | None:
        """The model of a direction; None when a change of script is all there is to do."""
        base_source, base_target = source[:2], target[:2]
        if base_source == base_target:
            return None
        model = self._models.get((family, f"{base_source}-{base_target}"))
        if model is None:
            raise InvalidRequest(
                "target_language_code",
                f"model {family!r} does not translate from {source} to {target} here",
                "UNSUPPORTED_PAIR",
            )
        return model


def _bug(step: str, error: Exception) -> InferenceError:
    """What a caller learns of a bug in the work on one comment; the log learns the rest."""
    log.error("a bug while a comment was %s", step, exc_info=error)
    return InferenceError("this comment could not be translated")


def _canonical(code: str, field: str) -> str:
    try:
        return language.canonical(code)
    except UnsupportedLanguage as error:
        raise UnsupportedLanguage(error.code, field) from None


def _chunks(ids: Sequence[int], limit: int) -> Iterator[list[int]]:
    """A sentence's ids (end-of-sentence last) in pieces that fit the model; nearly always one."""
    if len(ids) <= limit:
        yield list(ids)
        return
    body, end = ids[:-1], ids[-1]
    for start in range(0, len(body), limit - 1):
        yield [*body[start : start + limit - 1], end]
