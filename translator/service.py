"""The library's front: ``Translator`` loads the models, checks a call's arguments and sends comments on their route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import monotonic

from translator import engines, language, registry, snapshot, text
from translator.batcher import Batcher, Lane
from translator.cache import TranslationCache
from translator.call import (
    CachePolicy,
    Call,
    Result,
    SkipReason,
    Translation,
    check_contents,
    check_source,
    check_target,
    check_terms,
    content_too_long,
    find_model,
)
from translator.config import Settings
from translator.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    ModelError,
    TranslateError,
    Unavailable,
)
from translator.glossary import Term
from translator.model import DecodingOptions, Model
from translator.observer import Observer
from translator.route import Route

__all__ = ["CachePolicy", "Result", "SkipReason", "Translation", "Translator"]

log = logging.getLogger(__name__)

WARM_UP = {"zh-en": "今天天气真好，我们去公园吧。", "en-zh": "The weather is lovely, let's go to the park."}
# At the start one sentence says whether the model works, and a batch how fast: by that the first callers are let in.
WARM_UP_BATCHES = (1, 16)


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
        self.cache: TranslationCache[Translation] = TranslationCache(settings.cache_bytes, settings.cache_ttl_seconds)
        self._batcher: Batcher | None = None
        self._route: Route | None = None
        self._ready = False

    # Life

    async def start(self) -> None:
        """Load the models, start the workers, translate a sentence with each model.

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
        self._route = Route(settings, self._options, self._models, self.cache, self._batcher, self._observer)
        try:
            for model in self._models.values():  # one by one: a small queue may not hold two sentences
                for count in WARM_UP_BATCHES:
                    await self._warm_up(model, count)
        except BaseException:
            await self.close(drain=False)
            raise
        self._ready = True

    def _load(self, source: registry.ModelSource, cancelled: Event) -> Model:
        return engines.load(registry.locate(source, self.settings.cache_dir), self.settings, cancelled)

    async def _warm_up(self, model: Model, count: int = 1) -> None:
        description = model.description
        assert self._batcher is not None
        try:
            batch = model.encode([WARM_UP[description.pair]] * count)
            requests = self._batcher.submit(model, self._options, batch)
            outputs = await asyncio.gather(*(request.future for request in requests))
        except InferenceError as error:
            raise ModelError(f"{description.id}: the first translation failed: {error.__cause__}") from error
        if not outputs[0].text:
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

    async def load_cache(self, path: Path) -> int:
        """Fill the cache from a snapshot of the same version and settings. Call after ``start``.

        Returns:
            number of sentences; 0 when there is no such snapshot.

        Raises:
            OSError, ValueError: the file cannot be read, or is no snapshot.
        """
        models = [model.description.id for model in self._models.values()]
        entries = await asyncio.to_thread(snapshot.load, path, models, self._options, self.settings.guard)
        for key, entry in entries:
            self.cache.put(key, entry)
        return len(self.cache)

    async def save_cache(self, path: Path) -> int:
        """Move the cached sentences into a snapshot.

        Returns:
            number of sentences.

        Raises:
            OSError: the file cannot be written.
        """
        entries = self.cache.take_sentences()
        return await asyncio.to_thread(snapshot.save, path, entries, self._options, self.settings.guard)

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
            InvalidRequest: names the field, what is wrong and the limit.
            Overloaded: the queue is full (interactive lane).
            DeadlineExceeded: ``timeout`` passed.
            Unavailable: not started, or shutting down.
        """
        if self._route is None:
            raise Unavailable("the models are loading")
        check_contents(contents, self.settings)
        target, source = check_target(target), check_source(source)
        family = self._family(model)
        if source:
            find_model(self._models, family, source, target)
        checked_terms = check_terms(terms, self.settings)
        if timeout is not None and timeout <= 0:
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        deadline = None if timeout is None else monotonic() + timeout
        call = Call(source, target, family, checked_terms, lane, cache, deadline)
        if timeout is None:
            return await self._route.translate(contents, call)
        try:
            async with asyncio.timeout(timeout):
                return await self._route.translate(contents, call)
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline of {timeout:.3g} s passed") from None

    def _family(self, model: str) -> str:
        known = {name for name, _ in self._models}
        family = model or self._default_family
        if family not in known:
            raise InvalidRequest(
                "model",
                f"{model[:80]!r} is not loaded here; this server has: {', '.join(sorted(known))}",
                "UNKNOWN_MODEL",
            )
        return family

    def detect(self, contents: Sequence[str]) -> list[language.Detection]:
        """Language of each text.

        Raises:
            InvalidRequest: a limit is passed.
        """
        check_contents(contents, self.settings)
        limit = self.settings.max_content_codepoints
        for i, content in enumerate(contents):
            if len(content) > limit:
                raise content_too_long(i, content, limit)
        return [language.detect(text.normalise(content)) for content in contents]
