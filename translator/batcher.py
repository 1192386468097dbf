"""Dynamic batching: many callers, few model workers.

Sentences wait as token ids in a queue bounded in tokens. A worker that becomes free takes a batch at once: no timer,
so a lone sentence never waits for company, and while the model is busy the queue fills by itself. A batch

* holds one model and one set of decoding options,
* costs at most ``max_batch_tokens`` padded tokens (longest x count); a longer sentence goes alone,
* is made of the sentence whose turn it is and its neighbours in length, so that little is padding,
* serves the interactive lane first; a batch-lane sentence that has waited ``batch_lane_max_wait`` seconds goes first,
* leaves out what was cancelled or has expired.

All state belongs to one event loop and needs no lock; only ``generate`` and ``decode`` run on threads. Every
waiter is resolved on every path: result, engine error, worker death, expiry, shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from time import monotonic

from translator.errors import DeadlineExceeded, InferenceError, Overloaded, Unavailable
from translator.model import DecodingOptions, Model
from translator.observer import Observer

log = logging.getLogger(__name__)

# The batch lane may fill this share of the queue, so that an export never locks out interactive calls.
BATCH_LANE_SHARE = 0.75
# Failed batches in a row, whatever their size, after which the batcher calls itself unhealthy.
UNHEALTHY_AFTER = 5
# A batch is not split among idle workers below this many padded tokens: small batches waste the arithmetic.
MIN_SPLIT_TOKENS = 256


class Lane(IntEnum):
    """Queue of a request: a person waits, or an export runs."""

    INTERACTIVE = 0
    BATCH = 1


@dataclass(frozen=True, slots=True)
class Output:
    """What became of one sentence. Times in seconds."""

    text: str
    source_tokens: int
    target_tokens: int
    queue_seconds: float
    inference_seconds: float


@dataclass(slots=True, eq=False)
class Request:
    """One sentence on its way through the queue; made by ``Batcher.submit``."""

    model: Model
    options: DecodingOptions
    tokens: Sequence[int]
    lane: Lane
    deadline: float | None
    future: asyncio.Future[Output]
    enqueued: float

    @property
    def cost(self) -> int:
        return len(self.tokens)


_Key = tuple[int, DecodingOptions]


class Batcher:
    """Bounded queue and worker pool. Use from one event loop only.

    Args:
        workers: batches in the model at a time.
        max_batch_tokens: padded source tokens of one batch.
        max_queue_tokens: source tokens that may wait.
        batch_lane_max_wait: seconds after which a batch-lane sentence goes before interactive ones.
        observer: told of batches, for metrics.
        on_health: called with False when the workers keep failing, with True when they recover.
    """

    def __init__(
        self,
        workers: int,
        max_batch_tokens: int,
        max_queue_tokens: int,
        batch_lane_max_wait: float = 2.0,
        observer: Observer | None = None,
        on_health: Callable[[bool], None] | None = None,
    ) -> None:
        self._workers = workers
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._batch_lane_max_wait = batch_lane_max_wait
        self._observer = observer or Observer()
        self._on_health = on_health
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="translate")
        # Insertion order is arrival order; a dict used as an ordered set drops any member in O(1).
        self._lanes: dict[_Key, tuple[dict[Request, None], dict[Request, None]]] = {}
        self._queued_tokens = {Lane.INTERACTIVE: 0, Lane.BATCH: 0}
        self._queued = 0
        self._in_model = 0
        self._busy = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._room: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokens_per_second = 0.0
        self._failed_in_a_row = 0
        self._closing = False
        self._stopped = False

    # Called by the service

    def start(self) -> None:
        """Start the workers on the running event loop."""
        for _ in range(self._workers):
            self._spawn()

    def submit(
        self,
        model: Model,
        options: DecodingOptions,
        batch: Iterable[Sequence[int]],
        lane: Lane = Lane.INTERACTIVE,
        deadline: float | None = None,
    ) -> list[Request]:
        """Queue sentences, all or none.

        Args:
            batch: source token ids of each sentence.
            deadline: ``time.monotonic()`` after which an answer is worthless.

        Returns:
            One request each; ``request.future`` resolves to an ``Output`` or raises DeadlineExceeded,
            InferenceError or Unavailable. Cancelling the future takes the sentence out of the queue.

        Raises:
            Overloaded: the queue has no room for all of them.
            Unavailable: the batcher is shutting down.
        """
        if self._closing:
            raise Unavailable("the server is shutting down")
        sentences = list(batch)
        cost = sum(map(len, sentences))
        if not self._fits(cost, lane):
            raise Overloaded(
                f"the queue is full: {self.queued_tokens} of {self._max_queue_tokens} tokens are waiting",
                retry_after=self.estimated_wait(),
            )
        loop = asyncio.get_running_loop()
        now = monotonic()
        requests = []
        for tokens in sentences:
            request = Request(model, options, tokens, lane, deadline, loop.create_future(), now)
            request.future.add_done_callback(partial(self._on_done, request))
            self._enqueue(request)
            requests.append(request)
        self._wake(len(requests))
        return requests

    async def wait_for_room(self, cost: int, lane: Lane) -> None:
        """Return when ``cost`` tokens would fit. For exports, which wait where a feed would be turned away."""
        while not self._closing and not self._fits(cost, lane):
            waiter = asyncio.get_running_loop().create_future()
            self._room.append(waiter)
            await waiter

    def promote(self, request: Request) -> None:
        """Move a waiting batch-lane sentence to the interactive lane: somebody now waits for it."""
        if request.lane is Lane.BATCH and self._remove(request):
            request.lane = Lane.INTERACTIVE
            self._enqueue(request)

    @property
    def queued(self) -> int:
        """Sentences that wait."""
        return self._queued

    @property
    def queued_tokens(self) -> int:
        """Source tokens that wait."""
        return sum(self._queued_tokens.values())

    @property
    def in_model(self) -> int:
        """Sentences being translated now."""
        return self._in_model

    @property
    def healthy(self) -> bool:
        """False after several failed batches in a row."""
        return self._failed_in_a_row < UNHEALTHY_AFTER

    def estimated_wait(self) -> float:
        """Seconds until what waits now would be done, from the recent rate; between 0.1 and 30."""
        if not self._tokens_per_second:
            return 1.0
        return min(30.0, max(0.1, self.queued_tokens / self._tokens_per_second))

    async def close(self, drain: bool = True) -> None:
        """Stop. With ``drain`` what waits is translated first, else it fails with Unavailable. Idempotent."""
        self._closing = True
        if not drain:
            self._fail_queue(Unavailable("the server is shutting down"))
        self._release(self._room)
        while self._queued or self._in_model:
            if not self._tasks:
                self._fail_queue(Unavailable("the server is shutting down"))
                break
            await asyncio.sleep(0.005)
        self._stopped = True
        self._release(self._idle)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=True)

    # Queue

    def _fits(self, cost: int, lane: Lane) -> bool:
        queued = self.queued_tokens
        if not queued:
            return True  # a request larger than the queue would otherwise never get through
        if lane is Lane.BATCH:
            share = BATCH_LANE_SHARE * self._max_queue_tokens
            if self._queued_tokens[Lane.BATCH] and self._queued_tokens[Lane.BATCH] + cost > share:
                return False
        return queued + cost <= self._max_queue_tokens

    def _key(self, request: Request) -> _Key:
        return id(request.model), request.options

    def _enqueue(self, request: Request) -> None:
        lanes = self._lanes.setdefault(self._key(request), ({}, {}))
        lanes[request.lane][request] = None
        self._queued += 1
        self._queued_tokens[request.lane] += request.cost

    def _remove(self, request: Request) -> bool:
        key = self._key(request)
        lanes = self._lanes.get(key)
        if lanes is None or request not in lanes[request.lane]:
            return False
        del lanes[request.lane][request]
        if not lanes[0] and not lanes[1]:
            del self._lanes[key]
        self._queued -= 1
        self._queued_tokens[request.lane] -= request.cost
        return True

    def _on_done(self, request: Request, _: asyncio.Future[Output]) -> None:
        """Give a cancelled request's place in the queue to others at once."""
        self._discard(request)

    def _discard(self, request: Request) -> None:
        if self._remove(request):
            self._release(self._room)

    def _fail_queue(self, error: Exception) -> None:
        for lanes in list(self._lanes.values()):
            for request in [*lanes[0], *lanes[1]]:
                self._remove(request)
                _fail(request, error)
        self._release(self._room)

    @staticmethod
    def _release(waiters: deque[asyncio.Future[None]], count: int | None = None) -> None:
        while waiters and (count is None or count > 0):
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count = count - 1 if count is not None else None

    def _wake(self, count: int) -> None:
        self._release(self._idle, count)

    # Batches

    def _take(self) -> list[Request]:
        """Form the next batch and take it out of the queue; empty when nothing waits."""
        now = monotonic()
        anchor = self._next_in_turn(now)
        if anchor is None:
            return []
        interactive, batch_lane = self._lanes[self._key(anchor)]
        # The anchor's own lane has the first claim; the other one fills what is left.
        lanes = (interactive, batch_lane) if anchor.lane is Lane.INTERACTIVE else (batch_lane, interactive)
        budget = self._budget()
        chosen: list[Request] = [anchor]
        longest = anchor.cost
        for lane in lanes:
            # Nearest in length first: each addition costs the least padding. Ties keep arrival order.
            for request in sorted(lane, key=lambda r: abs(r.cost - anchor.cost)):
                if request is anchor or self._expired(request, now):
                    continue
                if max(longest, request.cost) * (len(chosen) + 1) > budget:
                    break
                longest = max(longest, request.cost)
                chosen.append(request)
        for request in chosen:
            self._remove(request)
        self._release(self._room)
        return chosen

    def _budget(self) -> int:
        """Padded tokens for this batch: less than the maximum when other workers are idle and could share."""
        free = self._workers - self._busy
        if free <= 1:
            return self._max_batch_tokens
        share = math.ceil(self.queued_tokens / free)
        return min(self._max_batch_tokens, max(share, MIN_SPLIT_TOKENS))

    def _next_in_turn(self, now: float) -> Request | None:
        """Oldest interactive sentence, or the oldest of the batch lane when that has waited too long."""
        oldest: list[Request | None] = [None, None]
        for lanes in list(self._lanes.values()):
            for lane in Lane:
                head = next(iter(lanes[lane]), None)
                while head is not None and self._expired(head, now):
                    head = next(iter(lanes[lane]), None)
                best = oldest[lane]
                if head is not None and (best is None or head.enqueued < best.enqueued):
                    oldest[lane] = head
        interactive, batch_lane = oldest
        if batch_lane is not None and (interactive is None or now - batch_lane.enqueued > self._batch_lane_max_wait):
            return batch_lane
        return interactive

    def _expired(self, request: Request, now: float) -> bool:
        """Take a request that nobody can use any more out of the queue."""
        if request.future.done():
            self._discard(request)
            return True
        if request.deadline is not None and now > request.deadline:
            self._discard(request)
            _fail(request, DeadlineExceeded("the deadline passed while the comment waited in the queue"))
            return True
        return False

    # Workers

    def _spawn(self) -> None:
        task = asyncio.get_running_loop().create_task(self._work(), name="batch-worker")
        self._tasks.add(task)
        task.add_done_callback(self._worker_ended)

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._stopped or task.get_loop().is_closed():
            return
        # Only a bug or a cancelled task ends here; its batch is already resolved, the queue needs a successor.
        log.error("a batch worker died and is replaced", exc_info=None if task.cancelled() else task.exception())
        self._spawn()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopped:
            batch = self._take()
            if not batch:
                waiter = loop.create_future()
                self._idle.append(waiter)
                try:
                    await waiter
                finally:
                    if waiter in self._idle:
                        self._idle.remove(waiter)
                continue
            self._busy += 1
            self._in_model += len(batch)
            try:
                await self._run(loop, batch)
            finally:
                self._busy -= 1
                self._in_model -= len(batch)
                # No path may leave a waiter behind, not even a bug above or this task's cancellation.
                for request in batch:
                    _fail(request, InferenceError("the translation worker stopped"))

    async def _run(self, loop: asyncio.AbstractEventLoop, batch: list[Request]) -> None:
        model, options = batch[0].model, batch[0].options
        started = monotonic()
        try:
            outputs = await loop.run_in_executor(self._pool, _infer, model, options, [r.tokens for r in batch])
        except asyncio.CancelledError:
            raise
        # BaseException: an engine may raise SystemExit or a memory error of its own; no waiter may hang.
        except BaseException as error:
            await self._failed(loop, batch, error)
            return
        seconds = monotonic() - started
        self._set_failed(0)
        source_tokens = sum(r.cost for r in batch)
        rate = source_tokens / max(seconds, 1e-6) * self._workers
        self._tokens_per_second += (rate - self._tokens_per_second) * (0.1 if self._tokens_per_second else 1)
        waits = [started - r.enqueued for r in batch]
        self._observer.on_batch(
            model.description.pair,
            waits,
            source_tokens,
            len(batch) * max(r.cost for r in batch),
            sum(count for _, count in outputs),
            seconds,
        )
        for request, (text, target_tokens), wait in zip(batch, outputs, waits, strict=True):
            if not request.future.done():
                request.future.set_result(Output(text, request.cost, target_tokens, wait, seconds))

    async def _failed(self, loop: asyncio.AbstractEventLoop, batch: list[Request], error: BaseException) -> None:
        """Resolve a failed batch: try its halves apart, so that one bad sentence does not take its neighbours."""
        self._set_failed(self._failed_in_a_row + 1)
        pair = batch[0].model.description.pair
        log.error("a batch of %d sentences (%s) failed", len(batch), pair, exc_info=error)
        self._observer.on_batch_failure(pair, len(batch))
        if len(batch) > 1 and self.healthy:
            middle = len(batch) // 2
            await self._run(loop, batch[:middle])
            await self._run(loop, batch[middle:])
            return
        for request in batch:
            failure = InferenceError("the model failed on this comment")
            failure.__cause__ = error
            _fail(request, failure)

    def _set_failed(self, count: int) -> None:
        was = self.healthy
        self._failed_in_a_row = count
        if self._on_health and self.healthy != was:
            self._on_health(self.healthy)


def _infer(model: Model, options: DecodingOptions, batch: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    """Runs on a worker thread. Text and number of target tokens of each sentence."""
    ids = model.generate(batch, options)
    texts = model.decode(ids)
    if len(ids) != len(batch) or len(texts) != len(batch):
        raise RuntimeError(f"the model answered {len(texts)} of {len(batch)} sentences")
    return [(text, len(tokens)) for text, tokens in zip(texts, ids, strict=True)]


def _fail(request: Request, error: Exception) -> None:
    if not request.future.done():
        request.future.set_exception(error)
        # A waiter that was cancelled in the same moment must not make asyncio complain of a lost exception.
        request.future.exception()
