"""The route of a comment, on fake models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from conftest import PATIENCE, FakeModel, chinese_sentences, fake_models, make_settings, to_chinese, to_english

from translator import text as text_module
from translator.batcher import Lane
from translator.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    ModelError,
    Overloaded,
    TranslateError,
    Unavailable,
    UnfitOutput,
    UnsupportedLanguage,
)
from translator.glossary import Term
from translator.inference import SAFER_BEAM
from translator.model import DecodingOptions
from translator.observer import Observer
from translator.service import CachePolicy, Result, SkipReason, Translation, Translator
from translator.text import PLACEHOLDERS

SENTENCE = "我喜欢你家的书。"


class Recorder(Observer):
    """Keeps what the translator tells."""

    def __init__(self) -> None:
        self.comments: list[tuple[str, str]] = []
        self.unfit: list[tuple[str, str, bool]] = []

    def on_comment(self, direction: str, outcome: str) -> None:
        self.comments.append((direction, outcome))

    def on_unfit(self, pair: str, problem: str, recovered: bool) -> None:
        self.unfit.append((pair, problem, recovered))


class Bench:
    """A translator on fakes, with shortcuts."""

    def __init__(self, translator: Translator, models: dict[tuple[str, str], FakeModel], seen: Recorder) -> None:
        self.translator = translator
        self.zh_en = models["fake", "zh-en"]
        self.en_zh = models["fake", "en-zh"]
        self.seen = seen

    async def one(self, text: str, target: str = "en", **options: Any) -> Translation:
        (translation,) = await self.many([text], target, **options)
        return translation

    async def many(self, texts: Sequence[str], target: str = "en", **options: Any) -> list[Translation]:
        return (await self.result(texts, target, **options)).translations

    async def result(self, texts: Sequence[str], target: str = "en", **options: Any) -> Result:
        return await asyncio.wait_for(self.translator.translate(texts, target=target, **options), PATIENCE)


async def make_bench(models: dict[tuple[str, str], FakeModel] | None = None, **settings: Any) -> Bench:
    models = models or fake_models()
    seen = Recorder()
    translator = Translator(make_settings(**settings), dict(models), seen)
    await translator.start()
    for model in models.values():
        model.batches.clear()
        model.options.clear()
        model.encoded.clear()
    return Bench(translator, models, seen)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = await make_bench()
    yield made
    made.zh_en.release()
    made.en_zh.release()
    await made.translator.close(drain=False)


@pytest.fixture
async def masking() -> AsyncIterator[Bench]:
    """Models that know placeholders."""
    made = await make_bench(fake_models(placeholders=PLACEHOLDERS))
    yield made
    await made.translator.close(drain=False)


# The ordinary way


async def test_translates_both_ways(bench: Bench) -> None:
    english = await bench.one(SENTENCE)
    assert english.text.startswith(to_english("我喜欢你家的书"))
    assert (english.model, english.error, english.skip, english.cache_hit) == ("fake/zh-en", None, None, False)
    assert english.detected_language == "zh-Hans"
    chinese = await bench.one("I like your book very much", "zh")
    assert chinese.text == to_chinese("I like your book very much")
    assert (chinese.model, chinese.detected_language) == ("fake/en-zh", "en")


async def test_answers_in_order_with_the_length_of_the_request(bench: Bench) -> None:
    sentences = chinese_sentences(1024)
    translations = await bench.many(sentences)
    assert len(translations) == 1024
    assert [translation.text for translation in translations] == [to_english(sentence) for sentence in sentences]


async def test_identical_comments_of_a_call_are_translated_once(bench: Bench) -> None:
    translations = await bench.many([SENTENCE] * 10)
    assert len({translation.text for translation in translations}) == 1
    assert len(bench.zh_en.sentences) == 1


async def test_a_second_call_is_answered_from_the_cache(bench: Bench) -> None:
    first = await bench.result([SENTENCE])
    second = await bench.result([SENTENCE])
    assert not first.translations[0].cache_hit
    assert second.translations[0].cache_hit
    assert second.translations[0].text == first.translations[0].text
    assert first.source_tokens > 0
    assert first.target_tokens > 0
    assert first.inference_seconds > 0
    assert (second.source_tokens, second.target_tokens, second.queue_seconds, second.inference_seconds) == (0, 0, 0, 0)
    assert bench.seen.comments == [("zh-en", "translated"), ("zh-en", "cached")]


async def test_a_comment_of_known_sentences_is_a_cache_hit(bench: Bench) -> None:
    one, two = chinese_sentences(2)
    await bench.many([f"{one}。", f"{two}。"])
    calls = len(bench.zh_en.batches)
    joined = await bench.one(f"{one}。{two}。")
    assert joined.cache_hit
    assert len(bench.zh_en.batches) == calls


async def test_lines_are_kept(bench: Bench) -> None:
    one, two = chinese_sentences(2)
    translation = await bench.one(f"{one}\n\n{two}\n")
    assert translation.text == f"{to_english(one)}\n\n{to_english(two)}\n"


async def test_an_over_long_sentence_is_translated_in_pieces_that_fit_the_model() -> None:
    bench = await make_bench({**fake_models(max_tokens=24), ("fake", "zh-en"): FakeModel(max_tokens=24)})
    long = "".join(chinese_sentences(12))
    translation = await bench.one(long)
    assert translation.error is None
    assert max(len(sentence) for sentence in bench.zh_en.sentences) <= 23
    assert "".join(bench.zh_en.sentences) == long, "nothing is cut off"
    assert translation.text.split() == to_english(long).split()
    await bench.translator.close()


async def test_the_longest_comment_allowed(bench: Bench) -> None:
    long = "，".join(chinese_sentences(650))[:5000]
    assert len(long) == 5000
    translation = await bench.one(long)
    assert translation.error is None
    assert len(translation.text.split()) >= 4000


# Languages


@pytest.mark.parametrize(
    ("text", "target", "skip", "language"),
    [
        ("", "en", SkipReason.NO_LINGUISTIC_CONTENT, "und"),
        ("   \n\t", "en", SkipReason.NO_LINGUISTIC_CONTENT, "und"),
        ("😂😂😂", "en", SkipReason.NO_LINGUISTIC_CONTENT, "und"),
        ("2024 https://example.com @someone", "zh", SkipReason.NO_LINGUISTIC_CONTENT, "und"),
        ("\x00\x01", "zh", SkipReason.NO_LINGUISTIC_CONTENT, "und"),
        ("I like your book", "en", SkipReason.ALREADY_TARGET_LANGUAGE, "en"),
        (SENTENCE, "zh", SkipReason.ALREADY_TARGET_LANGUAGE, "zh-Hans"),
        ("我們家鄉的麵條", "zh-TW", SkipReason.ALREADY_TARGET_LANGUAGE, "zh-Hant"),
        ("Привет, как дела?", "en", SkipReason.UNSUPPORTED_LANGUAGE, "ru"),
        ("これはとてもおいしいです", "zh", SkipReason.UNSUPPORTED_LANGUAGE, "ja"),
    ],
)
async def test_what_needs_no_translation_comes_back_as_it_is(
    bench: Bench, text: str, target: str, skip: SkipReason, language: str
) -> None:
    translation = await bench.one(text, target)
    assert (translation.text, translation.skip, translation.detected_language) == (text, skip, language)
    assert (translation.error, translation.model, translation.cache_hit) == (None, "", False)
    assert bench.zh_en.batches == bench.en_zh.batches == []


async def test_traditional_text_is_read_as_simplified(bench: Bench) -> None:
    translation = await bench.one("我喜歡這間麵館")
    assert bench.zh_en.sentences == ["我喜欢这间面馆"]
    assert translation.detected_language == "zh-Hant"
    assert translation.error is None


async def test_traditional_text_named_simplified_is_still_read(bench: Bench) -> None:
    await bench.one("我喜歡這間麵館", source="zh")
    assert bench.zh_en.sentences == ["我喜欢这间面馆"]


@pytest.mark.parametrize("target", ["zh-Hant", "zh-TW", "ZH_hk"])
async def test_traditional_is_written_when_asked_for(bench: Bench, target: str) -> None:
    bench.en_zh.answers["I like this noodle shop"] = "我喜欢这间面馆"
    assert (await bench.one("I like this noodle shop", target)).text == "我喜歡這間麵館"
    assert (await bench.one("I like this noodle shop", "zh")).text == "我喜欢这间面馆"
    assert len(bench.en_zh.batches) == 1, "both scripts come from one cached translation"


async def test_a_change_of_script_needs_no_model(bench: Bench) -> None:
    hant = await bench.one("我喜欢这间面馆 @小明 😂", "zh-Hant")
    assert hant.text == "我喜歡這間麵館 @小明 😂"
    hans = await bench.one(hant.text, "zh-Hans")
    assert hans.text == "我喜欢这间面馆 @小明 😂"
    assert (hant.model, hant.error, hant.skip) == ("", None, None)
    assert bench.zh_en.batches == bench.en_zh.batches == []


async def test_a_named_source_is_not_second_guessed(bench: Bench) -> None:
    translation = await bench.one("我喜欢你家的书", source="zh-CN")
    assert (translation.detected_language, translation.confidence) == ("zh-Hans", 1.0)


async def test_a_wrongly_named_source_does_not_translate_english_into_english(bench: Bench) -> None:
    translation = await bench.one("I like your book very much", source="zh")
    assert translation.skip is SkipReason.ALREADY_TARGET_LANGUAGE
    assert translation.text == "I like your book very much"
    assert bench.zh_en.batches == []


async def test_another_language_under_a_named_source_is_called_unsupported(bench: Bench) -> None:
    translation = await bench.one("Привет, как дела?", source="zh")
    assert translation.skip is SkipReason.UNSUPPORTED_LANGUAGE
    assert bench.zh_en.batches == []


async def test_slang_alone_is_translated_without_the_model(bench: Bench) -> None:
    translation = await bench.one("yyds")
    assert translation.text != "yyds"
    assert (translation.skip, translation.error, translation.model) == (None, None, "")
    assert bench.zh_en.batches == []


# Arguments


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        ({"contents": []}, "contents", "EMPTY_CONTENTS"),
        ({"contents": ["a"] * 1025}, "contents", "TOO_MANY_CONTENTS"),
        ({"contents": ["字" * 5000] * 7}, "contents", "REQUEST_TOO_LONG"),
        ({"target": ""}, "target_language_code", "TARGET_LANGUAGE_MISSING"),
        ({"target": " "}, "target_language_code", "TARGET_LANGUAGE_MISSING"),
        ({"target": "auto"}, "target_language_code", "UNSUPPORTED_LANGUAGE"),
        ({"target": "fr"}, "target_language_code", "UNSUPPORTED_LANGUAGE"),
        ({"target": "zh-Latn"}, "target_language_code", "UNSUPPORTED_LANGUAGE"),
        ({"source": "ja"}, "source_language_code", "UNSUPPORTED_LANGUAGE"),
        ({"model": "gpt"}, "model", "UNKNOWN_MODEL"),
        ({"terms": [Term("a", "b")] * 101}, "glossary_terms", "TOO_MANY_GLOSSARY_TERMS"),
        ({"terms": [Term("a", "b"), Term("", "b")]}, "glossary_terms[1].source", "INVALID_GLOSSARY_TERM"),
        ({"terms": [Term("a", "b" * 101)]}, "glossary_terms[0].target", "INVALID_GLOSSARY_TERM"),
        ({"terms": [Term("a", " \t")]}, "glossary_terms[0].target", "INVALID_GLOSSARY_TERM"),
    ],
)
async def test_a_wrong_argument_is_named(bench: Bench, arguments: dict[str, Any], field: str, reason: str) -> None:
    contents = arguments.pop("contents", [SENTENCE])
    with pytest.raises(InvalidRequest) as refused:
        await bench.result(contents, arguments.pop("target", "en"), **arguments)
    assert (refused.value.field, refused.value.reason) == (field, reason)


async def test_limits_are_inclusive(bench: Bench) -> None:
    terms = [Term(f"x{i}", "y" * 100) for i in range(100)]
    assert len(await bench.many(["我"] * 1024, terms=terms)) == 1024


async def test_a_pair_that_is_not_loaded_is_refused() -> None:
    translator = Translator(make_settings(), {("fake", "zh-en"): FakeModel()})
    await translator.start()
    with pytest.raises(InvalidRequest) as refused:
        await translator.translate(["hello there"], target="zh", source="en")
    assert refused.value.reason == "UNSUPPORTED_PAIR"
    # With the source detected only the comment that needs the pair fails.
    result = await translator.translate(["I like your book", SENTENCE], target="zh")
    assert isinstance(result.translations[0].error, InvalidRequest)
    assert result.translations[0].text == "I like your book"
    assert result.translations[1].skip is SkipReason.ALREADY_TARGET_LANGUAGE
    await translator.close()


async def test_a_model_is_chosen_by_its_family() -> None:
    models = fake_models() | {("other", "zh-en"): FakeModel(name="other")}
    models["other", "zh-en"].answers["我喜欢你家的书"] = "The other model's answer."
    bench = await make_bench(models)
    assert (await bench.one("我喜欢你家的书")).model == "fake/zh-en"
    other = await bench.one("我喜欢你家的书", model="other")
    assert (other.model, other.text) == ("other/zh-en", "The other model's answer.")
    await bench.translator.close()


async def test_a_comment_over_the_limit_fails_alone(bench: Bench) -> None:
    long, fine = await bench.many(["字" * 5001, SENTENCE])
    assert isinstance(long.error, InvalidRequest)
    assert (long.error.field, long.error.reason) == ("contents[0]", "CONTENT_TOO_LONG")
    assert long.text == "字" * 5001
    assert fine.error is None


def test_detect_checks_the_same_limits() -> None:
    translator = Translator(make_settings(), dict(fake_models()))
    assert [found.language for found in translator.detect(["你好", "hello there", "😂", "我們"])] == [
        "zh-Hans", "en", "und", "zh-Hant"
    ]  # fmt: skip
    for contents, field in (([], "contents"), (["a"] * 1025, "contents"), (["a", "字" * 5001], "contents[1]")):
        with pytest.raises(InvalidRequest) as refused:
            translator.detect(contents)
        assert refused.value.field == field


# Protected spans


@pytest.mark.parametrize("kind", ["without placeholders", "with placeholders"])
async def test_protected_spans_survive(kind: str) -> None:
    placeholders = PLACEHOLDERS if kind == "with placeholders" else ()
    bench = await make_bench(fake_models(placeholders=placeholders))
    for spans in (["@小明"], ["https://t.co/aB3?x=1&y=%20"], ["😂", "#话题#"], ["</s>"], [">>cmn_Hans<<"], ["<pad>"]):
        comment = f"我喜欢{' '.join(spans)}你家的书"
        translation = await bench.one(comment)
        assert translation.error is None, comment
        at = 0
        for span in spans:
            at = translation.text.index(span, at) + len(span)
        assert all("<" not in sentence and "@" not in sentence for sentence in bench.zh_en.sentences)
    await bench.translator.close()


async def test_a_lost_placeholder_is_made_good_by_translating_around_it(masking: Bench) -> None:
    comment = "我喜欢 @tom 你家的书"
    masked = comment.replace("@tom", PLACEHOLDERS[0])
    masking.zh_en.answers[masked] = "I like your book."
    translation = await masking.one(comment)
    assert masked in masking.zh_en.sentences
    assert translation.error is None
    assert "@tom" in translation.text
    assert to_english("我喜欢") in translation.text
    assert to_english("你家的书") in translation.text
    assert not translation.cache_hit
    again = await masking.one(comment)
    assert again.cache_hit
    assert again.text == translation.text


@pytest.mark.parametrize("output", ["{0}{0} book", "book {1}", "{1} and {0}"])
async def test_doubled_lost_and_swapped_placeholders_are_noticed(masking: Bench, output: str) -> None:
    comment = "我喜欢 @tom 和 @ann 的书"
    masked = comment.replace("@tom", PLACEHOLDERS[0]).replace("@ann", PLACEHOLDERS[1])
    masking.zh_en.answers[masked] = output.format(*PLACEHOLDERS)
    translation = await masking.one(comment)
    assert masked in masking.zh_en.sentences
    assert translation.error is None
    assert translation.text.index("@tom") < translation.text.index("@ann")
    assert translation.text.count("@tom") == translation.text.count("@ann") == 1


async def test_a_lost_figure_is_made_good(bench: Bench) -> None:
    comment = "我买了12345本你家的书"
    bench.zh_en.answers[comment] = "I bought many of your books."
    translation = await bench.one(comment)
    assert translation.error is None
    assert "12345" in translation.text


async def test_glossary_terms_are_applied(masking: Bench) -> None:
    terms = [Term("小书店", "Little Bookshop"), Term("鱼", "Fish & Co")]
    translation = await masking.one("我喜欢小书店的鱼和书", terms=terms)
    assert "Little Bookshop" in translation.text
    assert "Fish & Co" in translation.text
    assert translation.applied_terms == tuple(terms)
    without = await masking.one("我喜欢小书店的鱼和书")
    assert "Bookshop" not in without.text, "a term of one caller must not reach another through the cache"
    assert without.applied_terms == ()
    other = await masking.one("我喜欢小书店的鱼和书", terms=[Term("小书店", "Corner Books")])
    assert "Corner Books" in other.text


async def test_a_comment_that_is_one_term_needs_no_model(bench: Bench) -> None:
    translation = await bench.one("小书店", terms=[Term("小书店", "Little Bookshop")])
    assert (translation.text, translation.skip, translation.error) == ("Little Bookshop", None, None)
    assert translation.applied_terms == (Term("小书店", "Little Bookshop"),)
    assert bench.zh_en.batches == []


# Outputs that are not fit to show


async def test_an_unfit_output_is_tried_again_with_safer_options(bench: Bench) -> None:
    bench.zh_en.answers["我喜欢你家的书"] = ["book book book book book book book book", "I like your books."]
    translation = await bench.one("我喜欢你家的书")
    assert (translation.text, translation.error) == ("I like your books.", None)
    first, second = bench.zh_en.options
    assert second.beam_size >= SAFER_BEAM > first.beam_size
    assert second.no_repeat_ngram_size > 0
    assert (first.han_in_english, second.han_in_english) == (True, False)
    assert bench.seen.unfit == [("zh-en", "repetition", True)]
    assert (await bench.one("我喜欢你家的书")).text == "I like your books."
    assert len(bench.zh_en.batches) == 2


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("", "empty"),
        ("我喜欢你家的书", "copied"),
        ("</s>", "control_token"),
        ("he " * 200, "length_ratio"),
        ("Я люблю твою книгу", "wrong_script"),
    ],
)
async def test_twice_unfit_gives_the_source_and_says_so(bench: Bench, output: str, problem: str) -> None:
    bench.zh_en.answers["我喜欢你家的书"] = output
    bad, good = await bench.many(["我喜欢你家的书", "你想念我家的山"])
    assert bad.text == "我喜欢你家的书"
    assert isinstance(bad.error, UnfitOutput)
    assert bench.seen.unfit[0][0] == "zh-en"
    assert bench.seen.unfit[0][2] is False
    assert good.error is None
    assert bench.seen.comments[-2:] == [("zh-en", "failed"), ("zh-en", "translated")]


async def test_one_unfit_sentence_of_several_is_shown_as_it_was(bench: Bench) -> None:
    bench.zh_en.answers["我喜欢你家的书。"] = ""
    translation = await bench.one("你想念我家的山。我喜欢你家的书。")
    assert isinstance(translation.error, UnfitOutput)
    assert to_english("你想念我家的山") in translation.text
    assert "我喜欢你家的书" in translation.text


async def test_without_the_guard_outputs_are_shown_as_they_are() -> None:
    bench = await make_bench(guard=False)
    bench.zh_en.answers["我喜欢你家的书"] = "book book book book book book book book"
    translation = await bench.one("我喜欢你家的书")
    assert translation.error is None
    assert len(bench.zh_en.batches) == 1
    await bench.translator.close()


async def test_a_second_try_waits_for_room_in_an_export() -> None:
    """An export keeps its share of the queue full; that must not cost its comments their second try."""
    bench = await make_bench(max_queue_tokens=16)
    sentences = chinese_sentences(12)
    for sentence in sentences:
        bench.zh_en.answers[sentence] = ["", f"The second try of {to_english(sentence)}"]
    translations = await asyncio.gather(*(bench.one(s, lane=Lane.BATCH) for s in sentences))
    assert [translation.error for translation in translations] == [None] * 12
    assert all(translation.text.startswith("The second try") for translation in translations)
    await bench.translator.close()


async def test_no_room_for_a_second_try_degrades_one_comment_and_is_not_remembered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.zh_en.answers["我喜欢你家的书"] = ["", "I like your books."]
    submit = bench.translator.batcher.submit

    def refuse_second_tries(model: Any, options: DecodingOptions, *more: Any, **named: Any) -> Any:
        if options.beam_size >= SAFER_BEAM:
            raise Overloaded("full", 1.0)
        return submit(model, options, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(bench.translator.batcher, "submit", refuse_second_tries)
        unlucky, lucky = await bench.many(["我喜欢你家的书", "你想念我家的山"])
    assert isinstance(unlucky.error, UnfitOutput)
    assert lucky.error is None
    assert (await bench.one("我喜欢你家的书")).text == "I like your books."


async def test_no_room_for_the_pieces_of_a_sentence_degrades_one_comment(
    masking: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    comment = "我喜欢 @tom 你家的书"
    masking.zh_en.answers[comment.replace("@tom", PLACEHOLDERS[0])] = "I like your book."
    submit = masking.translator.batcher.submit

    def refuse_pieces(model: Any, options: DecodingOptions, batch: Any, *more: Any, **named: Any) -> Any:
        if any("".join(map(chr, ids)).startswith("你家的书") for ids in batch):
            raise Overloaded("full", 1.0)
        return submit(model, options, batch, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(masking.translator.batcher, "submit", refuse_pieces)
        unlucky, lucky = await masking.many([comment, "你想念我家的山"])
    assert isinstance(unlucky.error, Overloaded)
    assert unlucky.text == comment
    assert lucky.error is None
    assert (await masking.one(comment)).error is None


# Failures


async def test_a_failing_engine_fails_the_comments_and_not_the_call(bench: Bench) -> None:
    bench.zh_en.failure = lambda _: RuntimeError("secret detail")
    translations = await bench.many([SENTENCE, "hello there friend", "😂"])
    assert isinstance(translations[0].error, InferenceError)
    assert translations[0].text == SENTENCE
    assert "secret" not in str(translations[0].error)
    assert [translation.error for translation in translations[1:]] == [None, None]


async def test_one_sentence_that_breaks_the_engine_fails_alone(bench: Bench) -> None:
    sentences = chinese_sentences(40)
    bench.zh_en.failure = lambda texts: RuntimeError() if sentences[7] in texts else None
    translations = await bench.many(sentences)
    assert [i for i, translation in enumerate(translations) if translation.error] == [7]


@pytest.mark.parametrize("step", ["normalise", "has_linguistic_content", "segment", "join", "restore", "encode"])
async def test_a_bug_in_one_comment_does_not_fail_its_neighbours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def broken(original: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            if "坏" in str(arguments):
                raise ZeroDivisionError("secret detail")
            return original(*arguments, **more)

        return call

    bench.zh_en.answers["“坏”的是你家的书"] = "坏 is your book"
    if step == "encode":
        monkeypatch.setattr(bench.zh_en, "encode", broken(bench.zh_en.encode))
    elif step == "restore":
        monkeypatch.setattr(text_module.Sentence, "restore", broken(text_module.Sentence.restore))
    else:
        monkeypatch.setattr(text_module, step, broken(getattr(text_module, step)))
    sentences = chinese_sentences(3)
    translations = await bench.many([sentences[0], "“坏”的是你家的书", *sentences[1:]])
    assert [type(translation.error) for translation in translations] == [
        type(None), InferenceError, type(None), type(None)
    ]  # fmt: skip
    assert translations[1].text == "“坏”的是你家的书"
    assert "secret" not in str(translations[1].error)


async def test_an_expired_deadline_is_refused_at_once(bench: Bench) -> None:
    for timeout in (0, -1):
        with pytest.raises(DeadlineExceeded):
            await bench.result([SENTENCE], timeout=timeout)
    assert bench.zh_en.batches == []


async def test_a_deadline_that_passes_frees_the_queue(bench: Bench) -> None:
    bench.zh_en.hold()
    blocker = asyncio.create_task(bench.one("占着模型的句子"))
    await bench.zh_en.started()
    with pytest.raises(DeadlineExceeded):
        await bench.result(chinese_sentences(5), timeout=0.01)
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.translator.batcher.queued == 0
    bench.zh_en.release()
    await asyncio.wait_for(blocker, PATIENCE)
    assert len(bench.zh_en.sentences) == 1


async def test_overload_is_all_or_nothing_for_people_and_patience_for_exports() -> None:
    bench = await make_bench(max_queue_tokens=24)
    bench.zh_en.hold()
    blocker = asyncio.create_task(bench.one("占着模型的句子"))
    await bench.zh_en.started()
    waiting = asyncio.create_task(bench.one("在队里等着的句子"))
    export = asyncio.create_task(bench.many(chinese_sentences(100, 200), lane=Lane.BATCH))
    for _ in range(50):
        await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await bench.many(chinese_sentences(3, 100))
    assert not export.done()
    bench.zh_en.release()
    await asyncio.wait_for(asyncio.gather(blocker, waiting), PATIENCE)
    translations = await asyncio.wait_for(export, PATIENCE)
    assert [translation.error for translation in translations] == [None] * 100
    await bench.translator.close()


async def test_when_the_wait_is_too_long_callers_are_refused_before_any_work(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.one(SENTENCE)

    def refuse_people(lane: Lane) -> None:
        if lane is Lane.INTERACTIVE:
            raise Overloaded("late", 1.0)

    def no_work(*_: Any) -> Any:
        raise AssertionError("text work for a call that is refused")

    monkeypatch.setattr(bench.translator.batcher, "admit", refuse_people)
    assert (await bench.one("你想念我家的山", lane=Lane.BATCH)).error is None
    monkeypatch.setattr(text_module, "normalise", no_work)
    assert (await bench.one(SENTENCE)).cache_hit, "what is known costs nothing and is not refused"
    with pytest.raises(Overloaded):
        await bench.many([SENTENCE, "我喜欢你家的书"])


# Life


async def test_not_started_is_unavailable() -> None:
    translator = Translator(make_settings(), dict(fake_models()))
    assert (translator.ready, translator.started) == (False, False)
    with pytest.raises(Unavailable):
        await translator.translate([SENTENCE], target="en")
    with pytest.raises(Unavailable):
        _ = translator.batcher


async def test_closed_is_unavailable_and_close_is_idempotent() -> None:
    bench = await make_bench()
    assert bench.translator.ready
    await bench.translator.close()
    await bench.translator.close()
    assert not bench.translator.ready
    assert bench.zh_en.closed >= 1
    with pytest.raises(Unavailable):
        await bench.one(SENTENCE)


@pytest.mark.parametrize("fault", ["raises", "is empty"])
async def test_a_model_that_fails_its_first_sentence_fails_the_start(fault: str) -> None:
    models = fake_models()
    model = models["fake", "zh-en"]
    if fault == "raises":
        model.failure = lambda _: RuntimeError("no such instruction")
    else:
        model.answers["今天天气真好，我们去公园吧。"] = ""
    translator = Translator(make_settings(), dict(models))
    with pytest.raises(ModelError) as failed:
        await asyncio.wait_for(translator.start(), PATIENCE)
    assert "fake/zh-en" in str(failed.value)
    assert not translator.ready
    assert model.closed


async def test_failing_workers_make_it_unready_and_a_probe_brings_it_back(bench: Bench) -> None:
    bench.zh_en.failure = lambda _: RuntimeError("gone")
    for sentence in chinese_sentences(5):
        await bench.one(sentence)
    assert not bench.translator.ready
    await bench.translator.probe()
    bench.zh_en.failure = lambda _: None
    await bench.translator.probe()
    assert bench.translator.ready


async def test_a_drain_answers_what_waits() -> None:
    bench = await make_bench()
    bench.zh_en.hold()
    task = asyncio.create_task(bench.many(chinese_sentences(50)))
    await bench.zh_en.started()
    closing = asyncio.create_task(bench.translator.close(drain=True))
    await asyncio.sleep(0)
    bench.zh_en.release()
    translations = await asyncio.wait_for(task, PATIENCE)
    assert [translation.error for translation in translations] == [None] * 50
    await asyncio.wait_for(closing, PATIENCE)


async def test_close_without_drain_fails_what_waits_with_unavailable() -> None:
    bench = await make_bench(max_batch_tokens=16)
    bench.zh_en.hold()
    task = asyncio.create_task(bench.many(chinese_sentences(50)))
    await bench.zh_en.started()
    closing = asyncio.create_task(bench.translator.close(drain=False))
    await asyncio.sleep(0)
    bench.zh_en.release()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(task, PATIENCE)
    await asyncio.wait_for(closing, PATIENCE)


def test_every_error_of_the_service_is_one_of_the_tree() -> None:
    assert issubclass(UnsupportedLanguage, InvalidRequest)
    assert issubclass(InvalidRequest, TranslateError)
    assert {policy.value for policy in CachePolicy} == {"use", "bypass", "refresh"}
