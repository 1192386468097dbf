"""The way of a sentence: cache, or one computation shared by all who ask (encode -> batcher -> guard, once more with
safer decoding).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from translator import guard
from translator.batcher import Batcher, Lane, Request
from translator.cache import Entry, Flight, Key, TranslationCache
from translator.call import CachePolicy, Call, Result, Translation
from translator.config import Settings
from translator.errors import DeadlineExceeded, InferenceError, Overloaded, TranslateError, Unavailable
from translator.model import DecodingOptions, Model
from translator.observer import Observer

log = logging.getLogger(__name__)

# Second try after an unfit output: a wider search that may not repeat itself or leave Chinese in English, on a shorter
# leash.
SAFER_BEAM = 4

# Sentences encoded at a time, and given to the queue at a time by an export.
CHUNK = 64


@dataclass(slots=True)
class Outcomes:
    """What is known of the sentences of one call, and which of them needed the model."""

    entries: dict[Key, Entry | TranslateError] = field(default_factory=dict)
    computed: set[Key] = field(default_factory=set)


class Inference:
    """Translates sentences for all calls. Use from one event loop.

    Args:
        options: decoding options of the first try.
        batcher: started.
        observer: told of unfit outputs.
    """

    def __init__(
        self,
        settings: Settings,
        options: DecodingOptions,
        cache: TranslationCache[Translation],
        batcher: Batcher,
        observer: Observer,
    ) -> None:
        self._guarded = settings.guard
        self._options = options
        self._safer = replace(
            options,
            beam_size=max(SAFER_BEAM, options.beam_size),
            no_repeat_ngram_size=3,
            shortlist=False,
            han_in_english=False,
            max_length_factor=2.0,
            max_length_offset=8,
        )
        self._cache = cache
        self._batcher = batcher
        self._observer = observer

    def key(self, model: Model, sentence: str) -> Key:
        """What ``translate`` is asked for.

        Args:
            sentence: as the model is to read it.
        """
        return Key(model.description.id, self._options, sentence)

    async def translate(
        self,
        keys: Iterable[Key],
        model: Model | None,
        call: Call,
        outcomes: Outcomes,
        result: Result,
        admitted: float | None = None,
    ) -> None:
        """Put an entry or an error for each of ``keys`` into ``outcomes``.

        Args:
            keys: all of one model; those that ``outcomes`` knows are left alone.
            model: needed where there are keys.
            result: told what the model's work cost.
            admitted: see ``Batcher.submit``.

        Raises:
            Overloaded: the queue is full (interactive lane).
            DeadlineExceeded: the call's deadline passed in the queue.
            Unavailable: shutting down.
        """
        flights: dict[Key, Flight] = {}
        missing: dict[Key, None] = {}  # an ordered set
        try:
            for key in keys:
                if key in outcomes.entries or key in flights or key in missing:
                    continue
                if not self._known(key, call, outcomes, flights):
                    missing[key] = None
            if missing:
                assert model is not None
                await self._launch(list(missing), model, call, outcomes, flights, result, admitted)
            for key, flight in flights.items():
                outcomes.computed.add(key)
                try:
                    outcomes.entries[key] = await flight.wait()
                except (DeadlineExceeded, Unavailable):
                    raise
                except TranslateError as error:
                    outcomes.entries[key] = error
                except Exception as error:
                    outcomes.entries[key] = bug("translated", error)
        finally:
            for flight in flights.values():
                flight.leave()

    def _known(self, key: Key, call: Call, outcomes: Outcomes, flights: dict[Key, Flight]) -> bool:
        """Take a sentence from the cache, or join the computation that is under way."""
        if call.cache is CachePolicy.USE and (entry := self._cache.get(key)):
            outcomes.entries[key] = entry
            return True
        if call.cache is not CachePolicy.BYPASS and (flight := self._cache.join(key)):
            self._hurry(flight, call)
            flights[key] = flight
            return True
        return False

    def _hurry(self, flight: Flight, call: Call) -> None:
        """Somebody else asked first: the work now has to suit this caller too."""
        flight.extend(call.deadline)
        if call.lane is Lane.INTERACTIVE:
            for request in flight.requests:
                self._batcher.promote(request)

    async def _launch(
        self,
        keys: Sequence[Key],
        model: Model,
        call: Call,
        outcomes: Outcomes,
        flights: dict[Key, Flight],
        result: Result,
        admitted: float | None,
    ) -> None:
        """Encode and queue sentences; adds their flights to ``flights``. All are queued or, interactive, none."""
        encoded: dict[Key, list[list[int]]] = {}
        for start in range(0, len(keys), CHUNK):
            if start:
                await asyncio.sleep(0)
            encoded |= _encode(model, keys[start : start + CHUNK], outcomes)
        # The batch lane goes in small steps, so that it can start before all of it fits.
        keys = list(encoded)
        step = len(keys) if call.lane is Lane.INTERACTIVE else CHUNK
        for start in range(0, len(keys), step or 1):
            chunk = keys[start : start + step]
            if call.lane is Lane.BATCH:
                await self._batcher.wait_for_room(sum(len(ids) for key in chunk for ids in encoded[key]), call.lane)
            # While this call encoded or waited, others may have begun the same sentences.
            chunk = [key for key in chunk if not self._known(key, call, outcomes, flights)]
            flat = [ids for key in chunk for ids in encoded[key]]
            requests = self._batcher.submit(model, self._options, flat, call.lane, call.deadline, admitted=admitted)
            for key in chunk:
                count = len(encoded[key])
                own, requests = requests[:count], requests[count:]
                job = self._compute(key, model, own, call, result)
                flights[key] = self._cache.launch(key, job, own, shared=call.cache is not CachePolicy.BYPASS)

    async def _compute(self, key: Key, model: Model, requests: list[Request], call: Call, result: Result) -> Entry:
        """Await the model, judge its output, try once more if it is unfit, store what came of it."""
        pair = model.description.pair
        source, target = pair.split("-")
        entry = Entry(await _translated(requests, target, result))
        if self._guarded and (problem := guard.check(key.sentence, entry.text, source, target)):
            batch = [request.tokens for request in requests]
            first = requests[0]
            if first.lane is Lane.BATCH:
                await self._batcher.wait_for_room(sum(map(len, batch)), Lane.BATCH)
            try:
                requests[:] = self._batcher.submit(
                    model, self._safer, batch, first.lane, first.deadline, admitted=first.turn
                )
            except (Overloaded, Unavailable):
                self._observer.on_unfit(pair, problem, False)
                return Entry(entry.text, problem)  # not stored: there was no second try
            second = await _translated(requests, target, result)
            entry = Entry(second, guard.check(key.sentence, second, source, target))
            self._observer.on_unfit(pair, problem, entry.problem is None)
        if call.cache is not CachePolicy.BYPASS:
            self._cache.put(key, entry)
        return entry


def bug(step: str, error: Exception) -> InferenceError:
    """What a caller learns of a bug in the work on one comment; the log learns the rest."""
    log.error("a bug while a comment was %s", step, exc_info=error)
    return InferenceError("this comment could not be translated")


async def _translated(requests: Sequence[Request], target: str, result: Result) -> str:
    """The text of a sentence from its pieces, whose cost ``result`` is told."""
    outputs = [await request.future for request in requests]
    for output in outputs:
        result.add_cost(output)
    return ("" if target == "zh" else " ").join(output.text for output in outputs)


def _encode(model: Model, keys: Sequence[Key], outcomes: Outcomes) -> dict[Key, list[list[int]]]:
    """Token ids of each sentence, in pieces that fit the model; one that cannot be encoded fails alone."""
    try:
        batches = model.encode([key.sentence for key in keys])
        return {key: list(_pieces(ids, model.max_tokens)) for key, ids in zip(keys, batches, strict=True)}
    except Exception as error:
        if len(keys) == 1:
            outcomes.entries[keys[0]] = bug("encoded", error)
            return {}
    return {key: ids for one in keys for key, ids in _encode(model, [one], outcomes).items()}


def _pieces(ids: Sequence[int], limit: int) -> Iterator[list[int]]:
    """A sentence's ids (end-of-sentence last) in pieces that fit the model; nearly always one."""
    if len(ids) <= limit:
        yield list(ids)
        return
    body, end = ids[:-1], ids[-1]
    for start in range(0, len(body), limit - 1):
        yield [*body[start : start + limit - 1], end]
