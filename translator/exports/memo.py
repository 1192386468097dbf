"""Each comment goes to the back end once, however often it occurs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from sys import getsizeof

from cachetools import LRUCache

from translator.exports.backends import Backend
from translator.exports.rows import NULL, Cell, Outcome

MEMO_OVERHEAD = 300
"""Bytes of a memo entry besides its two texts: outcome, tuple, dictionary slots, order link."""

LASTING = {"TRANSLATION_UNFIT", "CONTENT_TOO_LONG"}
"""Failures that the same comment would meet again; any other may be a passing one."""

Cells = Sequence[Cell]


class Memo:
    """Translates windows of rows: repeats come from what was translated lately, or wait for the call under way.

    New comments go to the back end sorted by length, so that its batches hold comments of like length.

    Args:
        backend: started.
        max_bytes: memory for comments translated lately.
    """

    def __init__(self, backend: Backend, max_bytes: int) -> None:
        self._backend = backend
        # cachetools asks for the size of a value alone, hence the key beside the outcome.
        self._memo: LRUCache[str, tuple[str, Outcome]] = LRUCache(max_bytes, getsizeof=_memo_size)
        self._pending: dict[str, asyncio.Future[Outcome]] = {}

    @property
    def bytes(self) -> int:
        """Memory of what is remembered."""
        return int(self._memo.currsize)

    @property
    def asked(self) -> int:
        """Comments that the back end has now."""
        return len(self._pending)

    def __len__(self) -> int:
        return len(self._memo)

    async def translate(self, window: Sequence[Cells]) -> list[list[Outcome]]:
        """Outcomes of each row's cells; none for a row that has none. Several calls may be under way."""
        texts = dict.fromkeys(cell for cells in window for cell in cells if isinstance(cell, str))
        known: dict[str, Outcome] = {}
        waited: dict[str, asyncio.Future[Outcome]] = {}
        fresh: list[str] = []
        for text in texts:
            if (remembered := self._memo.get(text)) is not None:
                known[text] = remembered[1]
            elif (future := self._pending.get(text)) is not None:
                waited[text] = future
            else:
                fresh.append(text)
        first = await self._ask(fresh) if fresh else {}
        for text, outcome in first.items():
            known[text] = replace(outcome, cache_hit=True)
        for text, future in waited.items():
            known[text] = replace(await future, cache_hit=True)

        def outcome_of(cell: Cell) -> Outcome:
            if not isinstance(cell, str):
                return Outcome(None, failure=cell) if cell else NULL
            return first.pop(cell, None) or known[cell]  # the second one of a window is a repeat too

        return [[outcome_of(cell) for cell in cells] for cells in window]

    async def _ask(self, fresh: list[str]) -> dict[str, Outcome]:
        """Have the back end translate texts, with other windows waiting for the same ones."""
        loop = asyncio.get_running_loop()
        fresh.sort(key=len)
        futures: dict[str, asyncio.Future[Outcome]] = {text: loop.create_future() for text in fresh}
        self._pending |= futures
        try:
            outcomes = await self._backend.translate(fresh)
        except BaseException as error:
            for future in futures.values():
                if isinstance(error, asyncio.CancelledError):
                    future.cancel()
                else:
                    future.set_exception(error)
                    future.exception()  # nobody may be waiting
            raise
        finally:
            for text in fresh:
                del self._pending[text]
        for text, outcome in zip(fresh, outcomes, strict=True):
            futures[text].set_result(outcome)
            if not outcome.failure or outcome.failure.reason in LASTING:
                with suppress(ValueError):  # larger than the whole memo
                    self._memo[text] = text, replace(outcome, cache_hit=True)
        return dict(zip(fresh, outcomes, strict=True))


def _memo_size(item: tuple[str, Outcome]) -> int:
    return getsizeof(item[0]) + getsizeof(item[1].text) + MEMO_OVERHEAD
