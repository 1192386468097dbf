"""Prometheus metrics: what an operator alarms on and what a load test reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from translator.observer import Observer

if TYPE_CHECKING:
    from translator.service import Translator

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics(Observer):
    """All metrics of one server. Each has its own registry, so that tests can run several servers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("translate_requests", "Finished gRPC calls.", ["method", "code"], registry=registry)
        self.latency = Histogram(
            "translate_request_seconds",
            "Duration of gRPC calls.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("translate_requests_in_flight", "gRPC calls in work.", registry=registry)
        self.comments = Counter("translate_comments", "Answered comments.", ["direction", "outcome"], registry=registry)
        self.unfit = Counter(
            "translate_unfit_outputs",
            "Outputs that the guard refused, and whether the second try was fit.",
            ["pair", "problem", "recovered"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "translate_batch_sentences", "Sentences of a batch.", ["pair"], buckets=_COUNTS, registry=registry
        )
        self.batch_seconds = Histogram(
            "translate_batch_seconds",
            "Time of a batch in the model.",
            ["pair"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "translate_queue_seconds",
            "Wait of a sentence in the queue.",
            ["pair"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "translate_tokens",
            "Tokens by kind: source, padding, target.",
            ["pair", "kind"],
            registry=registry,
        )
        self.batch_failures = Counter(
            "translate_batch_failures", "Batches on which the engine failed.", ["pair"], registry=registry
        )
        self.model_load = Gauge(
            "translate_model_load_seconds", "Time until the model was loaded.", ["model"], registry=registry
        )

    def watch(self, translator: Translator) -> None:
        """Read queue and cache from ``translator`` at every scrape."""
        self.registry.register(_State(translator))

    def serve(self, host: str, port: int) -> tuple[WSGIServer, Thread]:
        """Answer /metrics over HTTP from a thread of its own."""
        return start_http_server(port, host, self.registry)

    def on_model_loaded(self, name: str, seconds: float) -> None:
        self.model_load.labels(name).set(seconds)

    def on_batch(
        self,
        pair: str,
        waits: Sequence[float],
        tokens: int,
        padded_tokens: int,
        target_tokens: int,
        seconds: float,
    ) -> None:
        self.batch_size.labels(pair).observe(len(waits))
        self.batch_seconds.labels(pair).observe(seconds)
        queue_seconds = self.queue_seconds.labels(pair)
        for wait in waits:
            queue_seconds.observe(wait)
        self.tokens.labels(pair, "source").inc(tokens)
        self.tokens.labels(pair, "padding").inc(padded_tokens - tokens)
        self.tokens.labels(pair, "target").inc(target_tokens)

    def on_batch_failure(self, pair: str, size: int) -> None:
        self.batch_failures.labels(pair).inc()

    def on_comment(self, direction: str, outcome: str) -> None:
        self.comments.labels(direction, outcome).inc()

    def on_unfit(self, pair: str, problem: str, recovered: bool) -> None:
        self.unfit.labels(pair, problem, str(recovered).lower()).inc()


class _State(Collector):
    """Values that the translator already keeps; read when scraped instead of being kept twice."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator

    def collect(self) -> Iterator[Metric]:
        translator, cache = self._translator, self._translator.cache
        gauges = {
            "translate_ready": ("1 when models are loaded and workers healthy.", int(translator.ready)),
            "translate_cache_bytes": ("Memory of cached sentences.", cache.bytes),
            "translate_cache_sentences": ("Cached sentences.", len(cache)),
        }
        if translator.started:
            batcher = translator.batcher
            gauges |= {
                "translate_queue_sentences": ("Sentences that wait.", batcher.queued),
                "translate_queue_tokens": ("Source tokens that wait.", batcher.queued_tokens),
                "translate_sentences_in_model": ("Sentences being translated.", batcher.in_model),
            }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        lookups = CounterMetricFamily(
            "translate_cache_lookups",
            "Whole comments found; sentences looked up: hit, miss, or joined to the same sentence in flight.",
            labels=["result"],
        )
        lookups.add_metric(["comment_hit"], cache.stats.comment_hits)
        lookups.add_metric(["hit"], cache.stats.hits)
        lookups.add_metric(["miss"], cache.stats.misses)
        lookups.add_metric(["joined"], cache.stats.joined)
        yield lookups
        yield CounterMetricFamily(
            "translate_cache_evictions", "Sentences dropped for room or age.", value=cache.stats.evictions
        )
