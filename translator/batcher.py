"""Dynamic batching: many callers, few model workers.

Sentences wait as token ids in a queue bounded in tokens. A worker that becomes free takes a batch at once: no timer,
so a lone sentence never waits for company, and while the model is busy the queue fills by itself. A batch

* holds one model and one set of decoding options,
* costs at most ``max_batch_tokens`` padded tokens (longest x count); a longer sentence goes alone,
* is made of the sentence whose turn it is and its neighbours in length, so that little is padding,
* serves the interactive lane first, except that every fourth batch may start with a batch-lane sentence that has waited
  for ``batch_lane_max_wait`` seconds: an export is never starved, and never makes people wait behind its backlog,
* leaves out what was cancelled or has expired.

All state belongs to one event loop and needs no lock; only ``generate`` and ``decode`` run on threads. Every
waiter is resolved on every path: result, engine error, worker death, expiry, shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
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
# While interactive sentences wait, at most one batch of so many starts with an aged one of the batch lane.
AGED_TURN = 4
# Batches in a row of which not one sentence succeeded, after which the batcher calls itself unhealthy.
UNHEALTHY_AFTER = 5
# A batch is not split among idle workers below this many padded tokens: small batches waste the arithmetic.
MIN_SPLIT_TOKENS = 256
# From so many sentences on, a batch takes no more whose lengths differ by more than this factor: they would add
# padding, and larger batches gain little.
FULL_BATCH = 16
MAX_SPREAD = 1.5


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
    turn: float
    """When its caller was admitted: the earliest goes first."""

    @property
    def cost(self) -> int:
        return len(self.tokens)


_Key = tuple[int, DecodingOptions]
_Line = OrderedDict[Request, None]


class Batcher:
    """Bounded queue and worker pool. Use from one event loop only.

    Args:
        workers: batches in the model at a time.
        max_batch_tokens: padded source tokens of one batch.
        max_queue_tokens: source tokens that may wait.
        max_queue_seconds: an interactive sentence that would wait longer is turned away.
        batch_lane_max_wait: seconds after which a batch-lane sentence may go before interactive ones.
        observer: told of batches, for metrics.
    """

    def __init__(
        self,
        workers: int,
        max_batch_tokens: int,
        max_queue_tokens: int,
        batch_lane_max_wait: float = 2.0,
        observer: Observer | None = None,
        max_queue_seconds: float = math.inf,
    ) -> None:
        self._workers = workers
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._batch_lane_max_wait = batch_lane_max_wait
        self._observer = observer or Observer()
        self._max_queue_seconds = max_queue_seconds
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="translate")
        # Ordered sets: any member is dropped in O(1).
        self._lanes: dict[_Key, tuple[_Line, _Line]] = {}
        self._queued_tokens = {Lane.INTERACTIVE: 0, Lane.BATCH: 0}
        self._queued = 0
        self._in_model = 0
        self._busy = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._room: deque[tuple[asyncio.Future[None], int, Lane]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._recent_tokens = self._recent_seconds = 0.0  # of batches, each counting a tenth less than the next
        self._failed_in_a_row = 0
        self._since_aged = 0
        self._closing = False

    # Called by the service

    def start(self) -> None:
        """Start the workers on the running event loop."""
        for _ in range(self._workers):
            self._spawn()

    def admit(self, lane: Lane) -> None:
        """Turn an interactive caller away who would wait too long. Costs nothing: ask before any other work.

        Raises:
            Overloaded: what waits already takes longer than ``max_queue_seconds``.
        """
        if lane is Lane.INTERACTIVE and (wait := self._interactive_wait()) > self._max_queue_seconds:
            raise Overloaded(
                f"a new comment would wait {wait:.1f} s; the limit is {self._max_queue_seconds:g} s",
                retry_after=self.estimated_wait(),
            )

    def submit(
        self,
        model: Model,
        options: DecodingOptions,
        batch: Iterable[Sequence[int]],
        lane: Lane = Lane.INTERACTIVE,
        deadline: float | None = None,
        *,
        admitted: float | None = None,
    ) -> list[Request]:
        """Queue sentences, all or none.

        Args:
            batch: source token ids of each sentence.
            deadline: ``time.monotonic()`` after which an answer is worthless.
            admitted: ``time.monotonic()`` when their caller was admitted, for work that an earlier answer made
                necessary. Such sentences go to the front of their lane, and the bound on the wait is not for them.

        Returns:
            One request each; ``request.future`` resolves to an ``Output`` or raises DeadlineExceeded,
            InferenceError or Unavailable. Cancelling the future takes the sentence out of the queue.

        Raises:
            Overloaded: the queue has no room for all of them, or see ``admit``.
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
        if admitted is None:
            self.admit(lane)
        loop = asyncio.get_running_loop()
        now = monotonic()
        turn = now if admitted is None else admitted
        requests = []
        for tokens in sentences:
            request = Request(model, options, tokens, lane, deadline, loop.create_future(), now, turn)
            request.future.add_done_callback(partial(self._on_done, request))
            self._enqueue(request, first=admitted is not None)
            requests.append(request)
        self._wake(len(requests))
        return requests

    async def wait_for_room(self, cost: int, lane: Lane) -> None:
        """Return when ``cost`` tokens fit. For exports, which wait where a feed would be turned away.

        First come, first served. The room is the caller's until it awaits again: ``submit`` at once.
        """
        waits = bool(self._room)
        while not self._closing and (waits or not self._fits(cost, lane)):
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()
            # Whoever was first in line and found the room taken stays first.
            (self._room.append if waits or not self._room else self._room.appendleft)((waiter, cost, lane))
            try:
                await waiter
            except asyncio.CancelledError:
                self._release_room()
                raise
            # The next in line, once this one has taken its room (or has changed its mind).
            loop.call_soon(self._release_room)
            waits = False

    def promote(self, request: Request) -> None:
        """Move a waiting batch-lane sentence to the interactive lane: somebody now waits for it."""
        if request.lane is Lane.BATCH and self._remove(request):
            request.lane = Lane.INTERACTIVE
            self._enqueue(request)
            self._release_room()

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
        wait = self._wait(self.queued_tokens)
        return 1.0 if wait is None else min(30.0, max(0.1, wait))

    async def close(self, drain: bool = True) -> None:
        """Stop. With ``drain`` what waits is translated first, else it fails with Unavailable. Idempotent."""
        self._closing = True
        if not drain:
            self._fail_queue(Unavailable("the server is shutting down"))
        self._release_room()
        while self._tasks:
            self._wake(self._workers)
            await asyncio.wait(list(self._tasks))
        self._fail_queue(Unavailable("the server is shutting down"))  # never started: nobody translates it
        # On a thread: one that a cancelled worker left behind must not hold up the event loop.
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    def _interactive_wait(self) -> float:
        """Seconds until an interactive sentence that comes now would be taken, from the recent rate; 0 if unknown."""
        return self._wait(self._queued_tokens[Lane.INTERACTIVE]) or 0.0

    def _wait(self, tokens: int) -> float | None:
        """Seconds that the workers need for so many source tokens, from the recent rate; None if unknown."""
        if not self._recent_tokens:
            return None
        return tokens * self._recent_seconds / self._recent_tokens / self._workers

    # Queue

    def _fits(self, cost: int, lane: Lane) -> bool:
        queued, of_batch_lane = self.queued_tokens, self._queued_tokens[Lane.BATCH]
        if not queued:
            return True  # a request larger than the queue would otherwise never get through
        if lane is Lane.BATCH:
            if not of_batch_lane:
                return True  # under interactive overload an export would otherwise never get through
            if of_batch_lane + cost > BATCH_LANE_SHARE * self._max_queue_tokens:
                return False
        return queued + cost <= self._max_queue_tokens

    def _key(self, request: Request) -> _Key:
        return id(request.model), request.options

    def _enqueue(self, request: Request, *, first: bool = False) -> None:
        lanes = self._lanes.setdefault(self._key(request), (OrderedDict(), OrderedDict()))
        lanes[request.lane][request] = None
        if first:
            lanes[request.lane].move_to_end(request, last=False)
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
            self._release_room()

    def _fail_queue(self, error: Exception) -> None:
        for lanes in list(self._lanes.values()):
            for request in [*lanes[0], *lanes[1]]:
                self._remove(request)
                _fail(request, error)
        self._release_room()

    def _release_room(self) -> None:
        """Wake the first in line if it fits now, or everybody when there is nothing left to wait for."""
        while self._room:
            waiter, cost, lane = self._room[0]
            if not waiter.done():
                if not self._closing and not self._fits(cost, lane):
                    return
                waiter.set_result(None)
                if not self._closing:
                    self._room.popleft()
                    return
            self._room.popleft()

    def _wake(self, count: int) -> None:
        """Wake idle workers."""
        while self._idle and count > 0:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

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
        longest = shortest = anchor.cost
        for lane in lanes:
            # Nearest in length first: each addition costs the least padding. Ties keep arrival order.
            for request in sorted(lane, key=lambda r: abs(r.cost - anchor.cost)):
                if longest * (len(chosen) + 1) > budget:
                    break
                if request is anchor or self._expired(request, now):
                    continue
                if request.cost * (len(chosen) + 1) > budget:
                    continue  # too long, but a shorter one may still fit
                most, least = max(longest, request.cost), min(shortest, request.cost)
                if len(chosen) >= FULL_BATCH and most > MAX_SPREAD * least:
                    break  # the next batch suits it better
                longest, shortest = most, least
                chosen.append(request)
        for request in chosen:
            self._remove(request)
        self._release_room()
        return chosen

    def _budget(self) -> int:
        """Padded tokens for this batch: less than the maximum when other workers are idle and could share."""
        free = self._workers - self._busy
        if free <= 1:
            return self._max_batch_tokens
        share = math.ceil(self.queued_tokens / free)
        return min(self._max_batch_tokens, max(share, MIN_SPLIT_TOKENS))

    def _next_in_turn(self, now: float) -> Request | None:
        """Oldest interactive sentence; oldest of the batch lane when there is none or when its turn has come."""
        oldest: list[Request | None] = [None, None]
        for lanes in list(self._lanes.values()):
            for lane in Lane:
                head = next(iter(lanes[lane]), None)
                while head is not None and self._expired(head, now):
                    head = next(iter(lanes[lane]), None)
                best = oldest[lane]
                if head is not None and (best is None or head.turn < best.turn):
                    oldest[lane] = head
        interactive, batch_lane = oldest
        if batch_lane is None or interactive is None:
            return interactive or batch_lane
        self._since_aged += 1
        if self._since_aged >= AGED_TURN and now - batch_lane.turn >= self._batch_lane_max_wait:
            self._since_aged = 0
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
        if task.get_loop().is_closed() or (not task.cancelled() and task.exception() is None):
            return
        # Only a bug or a cancelled task ends here; its batch is already resolved, the queue needs a successor.
        log.error("a batch worker died and is replaced", exc_info=None if task.cancelled() else task.exception())
        self._spawn()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                batch = self._take()
            except Exception as error:
                # A bug; left in the queue, the same sentences would meet it again and again.
                log.exception("no batch could be formed")
                self._fail_queue(_inference_error("the translation worker failed", error))
                continue
            if not batch:
                if self._closing:
                    return
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
                succeeded = await self._run(loop, batch, _Patience(len(batch)))
                self._failed_in_a_row = 0 if succeeded else self._failed_in_a_row + 1
            finally:
                self._busy -= 1
                self._in_model -= len(batch)
                # No path may leave a waiter behind, not even a bug above or this task's cancellation.
                for request in batch:
                    _fail(request, InferenceError("the translation worker stopped"))

    async def _run(self, loop: asyncio.AbstractEventLoop, batch: list[Request], patience: _Patience) -> bool:
        """Translate a batch and resolve its requests; tells whether any of them succeeded."""
        model, options = batch[0].model, batch[0].options
        started = monotonic()
        try:
            outputs = await loop.run_in_executor(self._pool, _infer, model, options, [r.tokens for r in batch])
        except Exception as error:  # no thread to be had
            outputs = error
        if isinstance(outputs, BaseException):
            return await self._failed(loop, batch, outputs, patience)
        patience.restore()
        seconds = monotonic() - started
        waits = [started - r.enqueued for r in batch]
        for request, (text, count), wait in zip(batch, outputs, waits, strict=True):
            if not request.future.done():
                request.future.set_result(Output(text, request.cost, count, wait, seconds))
        source_tokens = sum(r.cost for r in batch)
        # Sums, not a mean of rates: the batches of one that a quiet hour brings say little about full ones.
        self._recent_tokens = 0.9 * self._recent_tokens + source_tokens
        self._recent_seconds = 0.9 * self._recent_seconds + seconds
        padded_tokens = len(batch) * max(r.cost for r in batch)
        target_tokens = sum(count for _, count in outputs)
        try:
            self._observer.on_batch(model.description.pair, waits, source_tokens, padded_tokens, target_tokens, seconds)
        except Exception:  # metrics that fail must not fail the comments
            log.exception("the observer failed")
        return True

    async def _failed(
        self, loop: asyncio.AbstractEventLoop, batch: list[Request], error: BaseException, patience: _Patience
    ) -> bool:
        """Resolve a failed batch: try its halves apart, so that one bad sentence does not take its neighbours."""
        pair = batch[0].model.description.pair
        log.error("a batch of %d sentences (%s) failed", len(batch), pair, exc_info=error)
        try:
            self._observer.on_batch_failure(pair, len(batch))
        except Exception:
            log.exception("the observer failed")
        if len(batch) > 1 and self.healthy and patience.left():
            middle = len(batch) // 2
            first = await self._run(loop, batch[:middle], patience)
            return await self._run(loop, batch[middle:], patience) or first
        for request in batch:
            _fail(request, _inference_error("the model failed on this comment", error))
        return False


class _Patience:
    """How many failures in a row the halving of one batch of ``size`` sentences may meet.

    One bad sentence costs one failure for each halving; a model that fails on everything would cost two for each
    sentence.
    """

    __slots__ = ("_failures", "_most")

    def __init__(self, size: int) -> None:
        self._most = size.bit_length() + UNHEALTHY_AFTER
        self._failures = 0

    def left(self) -> bool:
        """Count a failure; tells whether it is worth going on."""
        self._failures += 1
        return self._failures <= self._most

    def restore(self) -> None:
        self._failures = 0


def _infer(
    model: Model, options: DecodingOptions, batch: Sequence[Sequence[int]]
) -> list[tuple[str, int]] | BaseException:
    """Runs on a worker thread. Text and number of target tokens of each sentence, or what the engine raised.

    Returned and not raised: asyncio cannot carry every exception from a thread (StopIteration would hang the caller,
    CancelledError would look like the caller's own).
    """
    try:
        ids = model.generate(batch, options)
        texts = model.decode(ids)
        if len(ids) != len(batch) or len(texts) != len(batch):
            raise RuntimeError(f"the model answered {len(texts)} of {len(batch)} sentences")
        return [(text, len(tokens)) for text, tokens in zip(texts, ids, strict=True)]
    except BaseException as error:
        return error


def _inference_error(message: str, cause: BaseException) -> InferenceError:
    error = InferenceError(message)
    error.__cause__ = cause
    return error


def _fail(request: Request, error: Exception) -> None:
    if not request.future.done():
        request.future.set_exception(error)
        # A waiter that was cancelled in the same moment must not make asyncio complain of a lost exception.
        request.future.exception()
