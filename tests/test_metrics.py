"""Metrics: each observation lands where an operator looks for it, and servers do not share them."""

from __future__ import annotations

from conftest import fake_models, make_settings
from prometheus_client import generate_latest

from server.metrics import Metrics
from translator.service import Translator


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_batch_is_counted_with_its_padding() -> None:
    metrics = Metrics()
    metrics.on_batch("zh-en", [0.1, 0.2, 3.0], tokens=25, padded_tokens=30, target_tokens=40, seconds=0.05)
    assert value(metrics, "translate_tokens_total", pair="zh-en", kind="source") == 25
    assert value(metrics, "translate_tokens_total", pair="zh-en", kind="padding") == 5
    assert value(metrics, "translate_tokens_total", pair="zh-en", kind="target") == 40
    assert value(metrics, "translate_batch_sentences_sum", pair="zh-en") == 3
    assert value(metrics, "translate_queue_seconds_count", pair="zh-en") == 3
    assert value(metrics, "translate_batch_seconds_count", pair="zh-en") == 1


def test_failures_outputs_and_models() -> None:
    metrics = Metrics()
    metrics.on_batch_failure("en-zh", 7)
    metrics.on_unfit("en-zh", "repetition", False)
    metrics.on_model_loaded("embedded/zh-en", 1.5)
    assert value(metrics, "translate_batch_failures_total", pair="en-zh") == 1
    unfit = {"pair": "en-zh", "problem": "repetition", "recovered": "false"}
    assert value(metrics, "translate_unfit_outputs_total", **unfit) == 1
    assert value(metrics, "translate_model_load_seconds", model="embedded/zh-en") == 1.5


async def test_the_state_is_read_when_scraped() -> None:
    metrics = Metrics()
    translator = Translator(make_settings(), dict(fake_models()), metrics)
    metrics.watch(translator)
    assert value(metrics, "translate_ready") == 0
    assert value(metrics, "translate_queue_tokens") is None, "nothing to tell before the start"
    await translator.start()
    await translator.translate(["我喜欢你家的书", "你想念我家的山"], target="en")
    await translator.translate(["我喜欢你家的书"], target="en")
    assert value(metrics, "translate_ready") == 1
    assert value(metrics, "translate_queue_tokens") == 0
    assert value(metrics, "translate_cache_sentences") == 2
    assert value(metrics, "translate_cache_lookups_total", result="miss") == 2
    assert value(metrics, "translate_cache_lookups_total", result="comment_hit") == 1
    await translator.close()
    assert value(metrics, "translate_ready") == 0


def test_two_servers_do_not_share_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.on_comment("zh-en", "translated")
    assert value(two, "translate_comments_total", direction="zh-en", outcome="translated") is None
    assert b"translate_comments_total" in generate_latest(one.registry)
