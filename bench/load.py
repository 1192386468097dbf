"""Load test with ghz: `make load`. The table, plots and numbers go to bench/results/.

    python -m bench.load                                    # starts a server of its own; about five minutes
    python -m bench.load --quick                            # every kind of run, each for a moment
    python -m bench.load -- --max-queue-tokens 4096         # flags for the server that it starts
    python -m bench.load --target HOST:PORT --metrics http://HOST:9464/metrics

Only a server of your own should be loaded: one part sends ten times as much as it can take.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from bench import report
from bench.harness import (
    RESULTS,
    BenchError,
    JsonObject,
    Run,
    Server,
    as_stream,
    ghz,
    in_lists,
    machine,
    progress,
    read_requests,
    with_policy,
)
from translator.v1 import translation_pb2 as pb
from translator.v1 import translation_pb2_grpc as pb_grpc

REFRESH = "CACHE_POLICY_REFRESH"
CALLERS = (1, 8, 64, 256)
LIST_SIZES = (1, 8, 32)
# Comments under way at a time, at most, with a cold cache: beyond it a run measures only its own queue.
MAX_COLD_IN_FLIGHT = 256
# Offered load of the open loop, as shares of what 64 callers got through.
OPEN_LOOP_SHARES = (0.25, 0.5, 0.65, 0.8, 0.9, 1.0, 1.15)
# The knee is the highest rate at which p99 stays below this multiple of the p99 at the lowest rate.
KNEE_FACTOR = 4.0


@dataclass(frozen=True)
class Plan:
    """How long and how much."""

    seconds: float = 3.0
    open_loop_seconds: float = 4.0
    overload_seconds: float = 8.0
    stream_comments: int = 600
    warm_comments: int = 1000
    callers: Sequence[int] = CALLERS
    list_sizes: Sequence[int] = LIST_SIZES
    shares: Sequence[float] = OPEN_LOOP_SHARES


QUICK = Plan(1.0, 1.0, 2.0, 100, 128, (1, 64), (1, 8), (0.25, 0.8, 1.15))


class LoadTest:
    """All parts of the load test against one kind of server.

    Args:
        make_server: gives a fresh server, or the same running one each time.
        fresh: whether it is a fresh one, with an empty cache.
    """

    def __init__(self, make_server: Callable[[], Server], fresh: bool, plan: Plan) -> None:
        self._make_server = make_server
        self._fresh = fresh
        self._plan = plan
        self._distinct = read_requests("distinct")
        self._zipf = read_requests("zipf")

    def run(self) -> JsonObject:
        """Everything, as one JSON object."""
        rows: list[JsonObject] = []
        with self._make_server() as server:
            rows += self._schema_rows(server)
            rows += self._closed_loop(server)
            rows.append(self._stream(server))
            capacity = max(row["comments_per_second"] for row in rows if row["name"] == "distinct cold")
            points = self._open_loop(server, capacity)
            overload = self._overload(server, capacity, points[0]["p99"])
        return {
            "machine": machine(),
            "capacity": capacity,
            "rows": rows,
            "open_loop": points,
            "knee": knee(points),
            "overload": overload,
        }

    # Closed loop

    def _schema_rows(self, server: Server) -> list[JsonObject]:
        """The same run twice: ghz reads the schema from the server, and from proto/."""
        requests = with_policy(self._distinct, REFRESH)
        return [
            self._row(server, name, requests, callers=8, reflection=reflection)
            for name, reflection in (("schema by reflection", True), ("schema by --proto", False))
        ]

    def _closed_loop(self, server: Server) -> list[JsonObject]:
        rows = []
        for size in self._plan.list_sizes:
            cold = in_lists(with_policy(self._distinct, REFRESH), size)
            feed = in_lists(self._zipf, size)
            for callers in self._plan.callers:
                if callers * size > MAX_COLD_IN_FLIGHT:
                    continue
                rows.append(self._row(server, "distinct cold", cold, callers, size))
                rows.append(self._feed_row(server, feed, callers, size))
        warm_comments = self._plan.warm_comments
        for name, data in (("distinct warm", self._distinct), ("feed warm", self._zipf)):
            sample = data[:warm_comments]
            warm_up = in_lists(sample, 1)
            with progress(f"{name}: filling the cache"):
                ghz(server.address, warm_up, concurrency=64, calls=len(warm_up))
            for size in self._plan.list_sizes:
                requests = in_lists(sample, size)
                for callers in self._plan.callers:
                    if callers * size <= 8 * MAX_COLD_IN_FLIGHT:
                        rows.append(self._row(server, name, requests, callers, size))
        return rows

    def _feed_row(self, server: Server, feed: Sequence[JsonObject], callers: int, size: int) -> JsonObject:
        """The feed from an empty cache, which fills as it goes; a running server's cache is not ours to empty."""
        if not self._fresh:
            return self._row(server, "feed, cache as found", feed, callers, size)
        with self._make_server() as fresh:
            return self._row(fresh, "feed cold", feed, callers, size)

    def _stream(self, server: Server) -> JsonObject:
        """One bidirectional stream. ghz ends it when all messages are sent and all answers have come."""
        sample = random.Random(1).sample(with_policy(self._distinct, REFRESH), self._plan.stream_comments)
        messages = [{**message, "cache_policy": REFRESH} for message in as_stream(sample)]
        before = server.snapshot()
        with progress("stream"):
            run = ghz(server.address, messages, method="StreamTranslate", calls=1, timeout=120)
        return self._summary(server, "stream, cold", run, 1, len(messages), before)

    def _row(
        self,
        server: Server,
        name: str,
        requests: Sequence[JsonObject],
        callers: int,
        size: int = 1,
        reflection: bool = False,
    ) -> JsonObject:
        before = server.snapshot()
        # A different part of the data each time, so that no run repeats the one before.
        start = random.Random(f"{name} {callers} {size}").randrange(len(requests))
        requests = [*requests[start:], *requests[:start]]
        with progress(f"{name}, {callers} callers, lists of {size}"):
            run = ghz(
                server.address,
                requests,
                concurrency=callers,
                seconds=self._plan.seconds,
                reflection=reflection,
            )
        return self._summary(server, name, run, callers, size, before)

    @staticmethod
    def _summary(server: Server, name: str, run: Run, callers: int, size: int, before: Any) -> JsonObject:
        counted = server.snapshot().since(before)
        return {
            "name": name,
            "callers": callers,
            "list": size,
            "calls_per_second": run.rate,
            "comments_per_second": run.rate * size,
            "p50": run.latency(0.5),
            "p95": run.latency(0.95),
            "p99": run.latency(0.99),
            "calls": run.calls,
            "errors": {code: count for code, count in run.codes.items() if code != "OK"},
            "hit_rate": counted.hit_rate(),
            "mean_batch": counted.mean_batch(),
            "padding_share": counted.padding_share(),
        }

    # Open loop

    def _open_loop(self, server: Server, capacity: float) -> list[JsonObject]:
        """Calls on a schedule, cold cache, one comment a call."""
        points = []
        for share in self._plan.shares:
            rate = max(1, round(share * capacity))
            with progress(f"open loop, {rate} calls/s"):
                run = self._at_rate(server, rate, self._plan.open_loop_seconds)
            points.append(
                {
                    "share": share,
                    "offered": rate,
                    "answered": run.rate,
                    "p50": run.latency(0.5),
                    "p95": run.latency(0.95),
                    "p99": run.latency(0.99),
                    "refused": run.calls - len(run.latencies),
                }
            )
        return points

    def _at_rate(self, server: Server, rate: float, seconds: float) -> Run:
        requests = with_policy(self._distinct, REFRESH)
        start = random.Random(rate).randrange(len(requests))
        return ghz(
            server.address,
            [*requests[start:], *requests[:start]],
            concurrency=64,
            connections=8,
            calls=round(rate * seconds),
            rate=rate,
        )

    def _overload(self, server: Server, capacity: float, unloaded_p99: float) -> JsonObject:
        """Ten times the capacity: what is accepted, how fast, what the others are told, and the memory meanwhile."""
        rate = round(10 * capacity)
        started = time.monotonic()
        memory = [(0.0, server.resident_bytes())]
        refusals = Refusals(server.address)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.25):
                memory.append((time.monotonic() - started, server.resident_bytes()))

        def probe() -> None:
            while not done.wait(0.1):
                refusals.probe()

        watchers = [threading.Thread(target=watch), threading.Thread(target=probe)]
        for watcher in watchers:
            watcher.start()
        try:
            with progress(f"overload, {rate} calls/s"):
                run = self._at_rate(server, rate, self._plan.overload_seconds)
        finally:
            done.set()
            for watcher in watchers:
                watcher.join()
        return {
            "offered": rate,
            "offered_in_fact": run.calls / max(run.sending_seconds, 1e-3),
            "accepted": len(run.latencies),
            "accepted_per_second": run.rate,
            "codes": run.codes,
            "p50": run.latency(0.5),
            "p99": run.latency(0.99),
            "unloaded_p99": unloaded_p99,
            "p99_ratio": run.latency(0.99) / unloaded_p99,
            "refusals_seen": refusals.seen,
            "refusals_with_retry_info": refusals.with_retry_info,
            "memory_before": memory[0][1],
            "memory_peak": max(size for _, size in memory),
            "memory": memory,
        }


class Refusals:
    """A caller beside ghz that looks into the refusals: ghz shows their code, not their details."""

    def __init__(self, address: str) -> None:
        self._stub = pb_grpc.TranslationServiceStub(grpc.insecure_channel(address))
        self._number = 0
        self.seen = 0
        self.with_retry_info = 0

    def probe(self) -> None:
        """One call; counts it if it is refused."""
        self._number += 1
        request = pb.TranslateTextRequest(
            contents=[f"Number {self._number} at {time.time_ns()}"], target_language_code="zh"
        )
        try:
            self._stub.TranslateText(request, timeout=5)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.seen += 1
                self.with_retry_info += isinstance(error, grpc.Call) and has_retry_info(error)


def has_retry_info(error: grpc.Call) -> bool:
    """Whether a failed call says when to come back."""
    status = rpc_status.from_call(error)
    return status is not None and any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)


def knee(points: Sequence[JsonObject]) -> JsonObject | None:
    """The highest offered rate that was answered in full and in time; None when not even the lowest was."""
    if not points:
        return None
    limit = KNEE_FACTOR * points[0]["p99"]
    good = [
        point
        for point in points
        if point["p99"] <= limit and not point["refused"] and point["answered"] >= 0.85 * point["offered"]
    ]
    return max(good, key=lambda point: point["offered"]) if good else None


def main() -> int:
    """Run it; the exit status is 1 when a run failed, or a call failed otherwise than by being refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every kind of run, each for a moment")
    parser.add_argument("--target", metavar="HOST:PORT", help="a server that runs already")
    parser.add_argument("--metrics", metavar="URL", default="", help="its /metrics, with --target")
    parser.add_argument("--name", default="load", help="name of the files in bench/results/")
    parser.add_argument("server", nargs="*", help="flags for the server, after --")
    arguments = parser.parse_args()

    def make_server() -> Server:
        if arguments.target:
            return Server.running(arguments.target, arguments.metrics)
        return Server(arguments.server)

    try:
        result = LoadTest(make_server, not arguments.target, QUICK if arguments.quick else Plan()).run()
    except BenchError as error:
        print(f"bench.load: {error}", file=sys.stderr)
        return 1
    result["server_flags"] = arguments.server
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / arguments.name
    target.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report.write_load(result, target)
    print(report.load_markdown(result))
    print(f"written: {target}.md, .json, .png, .html", file=sys.stderr)
    failed = {code for row in result["rows"] for code in row["errors"]} - {"ResourceExhausted"}
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
