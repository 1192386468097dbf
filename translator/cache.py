"""Cache of translated sentences and whole comments, with identical work in flight done once.

Sentences are the main store: a comment may share some with others. In front of it lies a small store of whole
comments, so that the comment that everybody reads costs one look-up instead of normalising, detecting and segmenting
it again.

Keys hold the sentence itself, never only its hash, so that a hit can not be another sentence's translation.
All state belongs to one event loop and needs no lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from sys import getsizeof
from time import monotonic
from typing import Generic, NamedTuple, Protocol, TypeVar

from cachetools import Cache, LRUCache, TTLCache

from translator.batcher import Request
from translator.guard import Problem
from translator.model import DecodingOptions

K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A", bound="Answer")
_Store = Cache[K, tuple[K, V]]

# Bytes that an entry costs besides its strings: key tuple, value, three dictionary slots, ordered-dict link.
# Measured with tracemalloc over 100,000 entries (tests/test_cache.py holds it to within a third).
ENTRY_OVERHEAD = 460


class Key(NamedTuple):
    """Everything that the model's answer depends on."""

    model: str
    options: DecodingOptions
    sentence: str


class CommentKey(NamedTuple):
    """Everything that a comment's translation depends on, the server's settings apart."""

    content: str
    source: str
    target: str
    family: str


class Entry(NamedTuple):
    """A sentence's translation, or what was wrong with it: failures are remembered too."""

    text: str
    problem: Problem | None = None


@dataclass(slots=True)
class CacheStats:
    """Counts since the start.

    Whole comments found; sentences found, given to the model, joined to one in flight; entries dropped.
    """

    comment_hits: int = 0
    hits: int = 0
    misses: int = 0
    joined: int = 0
    evictions: int = 0


def entry_size(key: Key, entry: Entry) -> int:
    """Memory of a sentence's entry in bytes, strings by their real size."""
    return getsizeof(key.sentence) + getsizeof(entry.text) + ENTRY_OVERHEAD


def comment_size(key: CommentKey, answer: Answer) -> int:
    """Memory of a comment's entry in bytes."""
    return getsizeof(key.content) + getsizeof(answer.text) + ENTRY_OVERHEAD


class Answer(Protocol):
    """What is kept of a comment: ``translator.call.Translation``."""

    @property
    def text(self) -> str: ...


class TranslationCache(Generic[A]):
    """LRU bounded in bytes, optionally with a time to live.

    Args:
        max_bytes: memory for entries, a quarter of it for whole comments; 0 keeps nothing.
        ttl: seconds until an entry expires; 0 means never.
        timer: clock for ``ttl``.
    """

    def __init__(self, max_bytes: int, ttl: float = 0, timer: Callable[[], float] = monotonic) -> None:
        for_comments = max_bytes // 4
        self._sentences: _Store[Key, Entry] = _store(max_bytes - for_comments, ttl, timer, entry_size)
        self._comments: _Store[CommentKey, A] = _store(for_comments, ttl, timer, comment_size)
        self._flights: dict[Key, Flight] = {}
        self.stats = CacheStats()

    def get(self, key: Key) -> Entry | None:
        """A sentence's entry, counted as a hit if there is one."""
        found = self._sentences.get(key)
        if found is None:
            return None
        self.stats.hits += 1
        return found[1]

    def put(self, key: Key, entry: Entry) -> None:
        """Store a sentence; one larger than the whole cache is left out."""
        self._put(self._sentences, key, entry)

    def get_comment(self, key: CommentKey) -> A | None:
        """A whole comment's answer, counted as a hit if there is one."""
        found = self._comments.get(key)
        if found is None:
            return None
        self.stats.comment_hits += 1
        return found[1]

    def put_comment(self, key: CommentKey, answer: A) -> None:
        """Store a whole comment; one larger than its part of the cache is left out."""
        self._put(self._comments, key, answer)

    def _put(self, store: _Store[K, V], key: K, value: V) -> None:
        before = len(store) + (key not in store)
        try:
            store[key] = (key, value)
        except ValueError:  # cachetools: value too large; an older entry of this key must not outlive it
            store.pop(key, None)
            return
        self.stats.evictions += before - len(store)

    def join(self, key: Key) -> Flight | None:
        """The computation of ``key`` that is under way, if any, with the caller counted as one who waits."""
        flight = self._flights.get(key)
        if flight is None or not flight.waiters or flight.failed:  # without waiters it is being cancelled
            return None
        self.stats.joined += 1
        flight.waiters += 1
        return flight

    def launch(
        self, key: Key, compute: Coroutine[None, None, Entry], requests: list[Request], *, shared: bool = True
    ) -> Flight:
        """Start the computation of ``key``. The caller counts as one who waits.

        Args:
            compute: gives the entry; it stores by itself what is worth storing.
            requests: the batcher's requests behind it.
            shared: later callers may ``join``.
        """
        task = asyncio.get_running_loop().create_task(compute)
        flight = Flight(task, requests)
        if shared:
            self.stats.misses += 1
            self._flights[key] = flight
        task.add_done_callback(lambda _: self._landed(key, flight))
        return flight

    def _landed(self, key: Key, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.cancelled():
            flight.task.exception()  # nobody may be waiting any more

    @property
    def bytes(self) -> int:
        """Memory of all entries."""
        return int(self._sentences.currsize + self._comments.currsize)

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self._sentences)

    def take_sentences(self) -> list[tuple[Key, Entry]]:
        """Take all sentences out, least recently used first."""
        taken = []
        while self._sentences:
            _, item = self._sentences.popitem()
            taken.append(item)
        return taken

    def clear(self) -> None:
        """Drop all entries; what is in flight goes on."""
        self._sentences.clear()
        self._comments.clear()


def _store(max_bytes: int, ttl: float, timer: Callable[[], float], size: Callable[[K, V], int]) -> _Store[K, V]:
    # cachetools asks for the size of a value alone, hence the key beside the value.
    if ttl:
        return TTLCache(max_bytes, ttl, timer, getsizeof=lambda item: size(*item))
    return LRUCache(max_bytes, getsizeof=lambda item: size(*item))


class Flight:
    """A computation that several callers await. When the last of them leaves, it is cancelled."""

    __slots__ = ("requests", "task", "waiters")

    def __init__(self, task: asyncio.Task[Entry], requests: list[Request]) -> None:
        self.task = task
        self.requests = requests
        self.waiters = 1

    async def wait(self) -> Entry:
        """The entry, or the computation's error. A caller's cancellation does not reach the others."""
        return await asyncio.shield(self.task)

    def leave(self) -> None:
        """To be called once by everyone who joined or launched."""
        self.waiters -= 1
        if not self.waiters and not self.task.done():
            self.task.cancel()
            # Not left to the task: one that never ran would not see its cancellation.
            for request in self.requests:
                request.future.cancel()

    @property
    def failed(self) -> bool:
        """A part of the work has failed, e.g. its deadline has passed; the task is about to say so."""
        return any(
            request.future.done() and (request.future.cancelled() or request.future.exception())
            for request in self.requests
        )

    def extend(self, deadline: float | None) -> None:
        """Keep the work alive for a caller whose deadline is later."""
        for request in self.requests:
            if request.deadline is not None and (deadline is None or deadline > request.deadline):
                request.deadline = deadline
