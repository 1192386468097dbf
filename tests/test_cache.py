"""The cache: its bound in bytes, what it shares, and what it must never mix up."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from dataclasses import replace

import pytest
from conftest import PATIENCE, FakeModel, chinese_sentences, make_settings
from hypothesis import given
from hypothesis import strategies as st

from translator.batcher import Lane, Request
from translator.cache import CommentKey, Entry, Key, TranslationCache, entry_size
from translator.errors import DeadlineExceeded, InferenceError, Overloaded, TranslateError
from translator.guard import Problem
from translator.model import DecodingOptions
from translator.service import CachePolicy, Result, Translation, Translator

OPTIONS = DecodingOptions()
MODEL = "fake/zh-en/r1/fake/cpu/exact"


def key(sentence: str, model: str = MODEL, options: DecodingOptions = OPTIONS) -> Key:
    return Key(model, options, sentence)


# The store


def test_memory_stays_within_the_bound() -> None:
    cache = TranslationCache(100_000)
    for i in range(2000):
        cache.put(key(f"句子{i}"), Entry(f"sentence {i}"))
        assert cache.bytes <= 100_000
    assert 0 < len(cache) < 2000
    assert cache.stats.evictions == 2000 - len(cache)
    assert cache.get(key("句子1999")) == Entry("sentence 1999")
    assert cache.get(key("句子0")) is None


@pytest.mark.parametrize("ttl", [0, 3600])
def test_the_counted_bytes_are_the_real_ones(ttl: float) -> None:
    """Within a third, or an operator who gives 1 GB gets killed for using 2."""
    cache = TranslationCache(2**40, ttl)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(10_000):
        cache.put(key(f"第{i}句：今天天气真好，我们去公园吧"), Entry(f"Sentence {i}: the weather is lovely, let's go."))
    real = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert cache.bytes == pytest.approx(real, rel=1 / 3)


def test_the_counted_bytes_of_whole_comments_are_the_real_ones() -> None:
    cache: TranslationCache[Translation] = TranslationCache(2**40)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(10_000):
        made = Translation(f"Sentence {i}: the weather is lovely.", "zh-Hans", i / 7, f"fake/{'zh-en'}", cache_hit=True)
        cache.put_comment(CommentKey(f"第{i}句：今天天气真好", "", "en", "fake"), made)
    real = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert cache.bytes == pytest.approx(real, rel=1 / 3)


def test_the_least_recently_used_goes_first() -> None:
    size = entry_size(key("句子0"), Entry("one"))
    cache = TranslationCache(size * 14 // 3)  # a quarter is kept for whole comments; three and a half fit
    for i in range(3):
        cache.put(key(f"句子{i}"), Entry("one"))
    cache.get(key("句子0"))
    cache.put(key("句子3"), Entry("one"))
    assert [cache.get(key(f"句子{i}")) is not None for i in range(4)] == [True, False, True, True]


def test_an_entry_larger_than_the_cache_is_left_out_and_leaves_no_older_one_behind() -> None:
    cache = TranslationCache(2000)
    cache.put(key("句子"), Entry("old"))
    cache.put(key("句子"), Entry("x" * 5000))
    assert cache.get(key("句子")) is None
    assert cache.bytes == 0


def test_zero_bytes_turn_it_off() -> None:
    cache = TranslationCache(0)
    cache.put(key("句子"), Entry("sentence"))
    assert len(cache) == 0


def test_entries_expire() -> None:
    now = [0.0]
    cache = TranslationCache(100_000, ttl=10, timer=lambda: now[0])
    cache.put(key("句子"), Entry("sentence"))
    now[0] = 9.9
    assert cache.get(key("句子")) == Entry("sentence")
    now[0] = 10.1
    assert cache.get(key("句子")) is None
    cache.put(key("别的"), Entry("other"))
    assert len(cache) == 1
    assert cache.bytes == entry_size(key("别的"), Entry("other"))


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=30))
def test_keys_never_collide(pairs: list[tuple[str, str]]) -> None:
    cache = TranslationCache(10**7)
    for model, sentence in pairs:
        cache.put(key(sentence, model), Entry(repr((model, sentence))))
    for model, sentence in pairs:
        assert cache.get(key(sentence, model)) == Entry(repr((model, sentence)))


def test_everything_that_changes_an_answer_is_in_the_key() -> None:
    described = FakeModel().description
    others = [
        replace(described, **{name: "else"})
        for name in ("name", "pair", "revision", "engine", "device", "compute_type")
    ]
    assert len({one.id for one in (described, *others)}) == 1 + len(others)
    options = [OPTIONS, DecodingOptions(beam_size=2), DecodingOptions(length_penalty=0.5), DecodingOptions(1, 1.0, 3)]
    assert len({key("句子", options=one) for one in options}) == len(options)


# Sharing


async def test_thousand_callers_share_one_computation(translator: Translator) -> None:
    model: FakeModel = translator.models["fake", "zh-en"]  # type: ignore[assignment]
    model.batches.clear()
    results = await asyncio.gather(*(translator.translate(["我喜欢你家的书。"], target="en") for _ in range(1000)))
    assert len({result.translations[0].text for result in results}) == 1
    assert model.sentences == ["我喜欢你家的书。"]
    stats = translator.cache.stats
    assert (stats.misses, stats.hits + stats.joined) == (1, 999)


async def held(translator: Translator) -> FakeModel:
    model: FakeModel = translator.models["fake", "zh-en"]  # type: ignore[assignment]
    model.batches.clear()
    model.hold()
    return model


def start(translator: Translator, sentence: str = "我喜欢你家的书", **options: object) -> asyncio.Task[Result]:
    return asyncio.create_task(translator.translate([sentence], target="en", **options))  # type: ignore[arg-type]


async def turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def done(*tasks: asyncio.Task[Result]) -> list[Result | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)


async def test_a_callers_cancellation_does_not_reach_the_others(translator: Translator) -> None:
    model = await held(translator)
    first, second, third = (start(translator) for _ in range(3))
    await model.started()
    first.cancel()
    third.cancel()
    await turn()
    model.release()
    outcomes = await done(first, second, third)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, Result, asyncio.CancelledError]
    assert len(model.batches) == 1


async def test_the_last_callers_cancellation_drops_the_work(translator: Translator) -> None:
    model = await held(translator)
    blocker = start(translator, "占着模型的句子")
    await model.started()
    waiting = [start(translator, "没人等的句子") for _ in range(2)]
    await turn()
    assert translator.batcher.queued == 1
    for task in waiting:
        task.cancel()
    await turn()
    assert translator.batcher.queued == 0
    model.release()
    await done(blocker, *waiting)
    assert model.batches == [["占着模型的句子"]]


async def test_work_that_was_cancelled_before_it_began_is_dropped_too(translator: Translator) -> None:
    """The computation is a task; cancelled before its first step it never sees its cancellation."""
    model = await held(translator)
    blocker = start(translator, "占着模型的句子")
    await model.started()
    abandoned = start(translator, "没人等的句子")
    await asyncio.sleep(0)  # the call has queued its sentence; the computation has not run yet
    assert translator.batcher.queued == 1
    abandoned.cancel()
    await turn()
    assert translator.batcher.queued == 0
    model.release()
    await done(blocker, abandoned)


async def test_cancelling_an_over_long_sentence_drops_all_its_pieces() -> None:
    models = {("fake", "zh-en"): FakeModel(max_tokens=16)}
    translator = Translator(make_settings(), dict(models))
    await translator.start()
    model = models["fake", "zh-en"]
    model.batches.clear()
    model.hold()
    blocker = start(translator, "占着模型的句子")
    await model.started()
    long = start(translator, "".join(chinese_sentences(8)))
    await turn()
    assert translator.batcher.queued > 2
    long.cancel()
    await turn()
    assert translator.batcher.queued == 0
    model.release()
    await done(blocker, long)
    await translator.close()


async def test_a_new_caller_after_everyone_left_starts_anew(translator: Translator) -> None:
    model = await held(translator)
    first = start(translator)
    await model.started()
    first.cancel()
    await asyncio.sleep(0)
    second = start(translator)
    model.release()
    outcomes = await done(first, second)
    assert isinstance(outcomes[1], Result)


async def test_a_later_deadline_keeps_the_work_alive(translator: Translator) -> None:
    model = await held(translator)
    blocker = start(translator, "占着模型的句子")
    await model.started()
    impatient = start(translator, timeout=0.05)
    await turn()
    patient = start(translator)
    assert isinstance((await done(impatient))[0], DeadlineExceeded)
    model.release()
    outcomes = await done(blocker, patient)
    assert isinstance(outcomes[1], Result)
    assert outcomes[1].translations[0].error is None


async def test_an_earlier_deadline_does_not_shorten_the_work(translator: Translator) -> None:
    model = await held(translator)
    blocker = start(translator, "占着模型的句子")
    await model.started()
    patient = start(translator, timeout=PATIENCE)
    await turn()
    impatient = start(translator, timeout=0.01)
    assert isinstance((await done(impatient))[0], DeadlineExceeded)
    model.release()
    assert all(isinstance(outcome, Result) for outcome in await done(blocker, patient))


async def test_a_caller_does_not_inherit_a_deadline_that_has_just_passed(translator: Translator) -> None:
    """A flight whose request failed, but whose task has not yet said so, is not to be joined."""
    loop = asyncio.get_running_loop()
    model: FakeModel = translator.models["fake", "zh-en"]  # type: ignore[assignment]
    failed = Request(model, OPTIONS, [0], Lane.INTERACTIVE, 1.0, loop.create_future(), 0.0, 0.0)
    failed.future.set_exception(DeadlineExceeded("too late"))

    async def compute() -> Entry:
        return Entry((await failed.future).text)

    flight = translator.cache.launch(key("句子"), compute(), [failed])
    assert translator.cache.join(key("句子")) is None
    with pytest.raises(DeadlineExceeded):
        await flight.wait()
    flight.leave()


async def test_an_interactive_joiner_promotes_an_export(translator: Translator) -> None:
    model = await held(translator)
    translator.batcher._max_batch_tokens = 16
    blocker = start(translator, "占着模型的句子")
    await model.started()
    export = [start(translator, s, lane=Lane.BATCH) for s in chinese_sentences(5)]
    await turn()
    wanted = chinese_sentences(5)[4]
    person = start(translator, wanted)
    await turn()
    model.release()
    await done(blocker, *export, person)
    assert wanted in model.batches[1]
    assert sum(batch.count(wanted) for batch in model.batches) == 1


async def test_an_error_reaches_all_and_is_not_cached(translator: Translator) -> None:
    model = await held(translator)
    model.failure = lambda _: RuntimeError("broken")
    tasks = [start(translator) for _ in range(5)]
    await model.started()
    model.release()
    outcomes = await done(*tasks)
    for outcome in outcomes:
        assert isinstance(outcome, Result)
        assert isinstance(outcome.translations[0].error, InferenceError)
    model.failure = lambda _: None
    (outcome,) = await done(start(translator))
    assert isinstance(outcome, Result)
    assert outcome.translations[0].error is None
    assert not outcome.translations[0].cache_hit


async def test_overload_is_not_remembered() -> None:
    translator = Translator(make_settings(max_queue_tokens=16), {("fake", "zh-en"): FakeModel()})
    await translator.start()
    model = await held(translator)
    blocker = start(translator, "占着模型的句子")
    await model.started()
    waiting = start(translator, "在队里等着的一个句子")
    await turn()
    (outcome,) = await done(start(translator, "没有位置的句子"))
    assert isinstance(outcome, Overloaded)
    model.release()
    outcomes = [*await done(blocker, waiting), *await done(start(translator, "没有位置的句子"))]
    assert all(isinstance(outcome, Result) for outcome in outcomes)
    await translator.close()


async def test_unfit_outputs_are_remembered(translator: Translator) -> None:
    model: FakeModel = translator.models["fake", "zh-en"]  # type: ignore[assignment]
    model.answers["我喜欢你家的书"] = ""
    (first,) = await done(start(translator))
    calls = len(model.batches)
    (second,) = await done(start(translator))
    assert len(model.batches) == calls, "a sentence on which the model fails twice is not tried for every caller"
    assert isinstance(first, Result)
    assert isinstance(second, Result)
    assert second.translations[0].cache_hit
    assert isinstance(second.translations[0].error, TranslateError)
    entry = translator.cache.get(Key(model.description.id, translator._options, "我喜欢你家的书"))
    assert entry == Entry("", Problem.EMPTY)


async def test_bypass_neither_reads_nor_writes(translator: Translator) -> None:
    model: FakeModel = translator.models["fake", "zh-en"]  # type: ignore[assignment]
    model.batches.clear()
    for _ in range(2):
        result = await translator.translate(["我喜欢你家的书"], target="en", cache=CachePolicy.BYPASS)
        assert not result.translations[0].cache_hit
        assert result.source_tokens > 0
    assert len(model.batches) == 2
    assert len(translator.cache) == 0
    together = [start(translator, cache=CachePolicy.BYPASS) for _ in range(3)]
    await done(*together)
    assert len(model.sentences) == 5, "calls that bypass the cache do not share their work either"
    assert translator.cache.stats.hits == translator.cache.stats.misses == translator.cache.stats.joined == 0


async def test_refresh_translates_anew_and_stores(translator: Translator) -> None:
    model: FakeModel = translator.models["fake", "zh-en"]  # type: ignore[assignment]
    sentence = "我喜欢你家的书"
    await translator.translate([sentence], target="en")
    model.answers[sentence] = "I like your books."
    assert (await translator.translate([sentence], target="en")).translations[0].text != "I like your books."
    refreshed = (await translator.translate([sentence], target="en", cache=CachePolicy.REFRESH)).translations[0]
    assert (refreshed.text, refreshed.cache_hit) == ("I like your books.", False)
    again = (await translator.translate([sentence], target="en")).translations[0]
    assert (again.text, again.cache_hit) == ("I like your books.", True)


async def test_exports_share_work_that_began_while_they_waited_for_room() -> None:
    """A popular comment is translated once, even when all who ask for it are waiting for room in the queue."""
    translator = Translator(make_settings(max_queue_tokens=16), {("fake", "zh-en"): FakeModel()})
    await translator.start()
    model = await held(translator)
    blocker = start(translator, "占着模型的句子", lane=Lane.BATCH)
    await model.started()
    filler = start(translator, "在队里等的句子", lane=Lane.BATCH)
    await turn()
    popular = [start(translator, "我喜欢你家的书", lane=Lane.BATCH) for _ in range(20)]
    await turn()
    model.release()
    await done(blocker, filler, *popular)
    assert model.sentences.count("我喜欢你家的书") == 1
    await translator.close()
