"""Normalising, masking, cutting, restoring and joining comments."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from translator import spans as spans_module
from translator.glossary import Term
from translator.spans import Kind, scan
from translator.text import (
    PLACEHOLDERS,
    Sentence,
    applied_terms,
    has_linguistic_content,
    join,
    normalise,
    segment,
)

SPANS = {
    Kind.URL: [
        "https://t.cn/A6abc", "http://example.com/a?b=c&d=%20#x", "https://en.wikipedia.org/wiki/Foo_(film)",
        "https://zh.wikipedia.org/wiki/中文", "www.example.com",
    ],
    Kind.EMAIL: ["a.b+c@mail.example.com"],
    Kind.MENTION: ["@tom_99", "@小明", "@Tom-小明", "r/AskReddit", "u/some_body"],
    Kind.HASHTAG: ["#穿搭[话题]#", "#周末去哪儿#", "#foodie", "#1", "#日常_2024", "#王者 世冠#"],
    Kind.STICKER: ["[doge]", "[笑哭R]", "[OK]", ":smile:", ":+1:", ":woman_dancing:"],
    Kind.EMOJI: [
        "😂", "❤️", "❤", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇨🇳", "🇺🇸🇨🇳", "7️⃣", "4⃣️", "#️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🉑️", "™",
        "👩🏽‍🚀", "😂😂😂", "🫨",
    ],
    Kind.KAOMOJI: [
        "(╯°□°）╯︵ ┻━┻", "¯\\_(ツ)_/¯", "(๑•̀ㅂ•́)و✧", "ヽ(´▽`)/", "(T_T)", "T_T", "^_^", "QAQ", "orz", ":)",
        ":-D", "XD", "<3", ";)",
        ":'(", "ಠ_ಠ", "ʕ•ᴥ•ʔ", "(·八·)", "(ᥐᜐᥐ)♡", "ദ്ദി ˉ͈̀꒳ˉ͈́ )✧", "(ง •̀_•́)ง", "（づ￣3￣）づ", "_(:з」∠)_",
        "(=^･ω･^=)", "╮(╯▽╰)╭", "o(╥﹏╥)o",
        "(눈_눈)", ">_<", "(>_<)", "=w=",
    ],
    Kind.SNIPPET: [
        "`rm -rf /`", "```py\nx = 1\n```", "{{name}}", "${HOME}", "snake_case_name", "main()", "photo.jpg",
        "BV1xx411c7mD", "x.com/abc",
        "example.com", "C:\\Users\\me", "/etc/passwd",
    ],
    Kind.MARKUP: ["</s>", "<pad>", "<unk>", ">>cmn_Hans<<", "<|endoftext|>", "<br>", "&amp;", "<a href='x'>"],
    Kind.SYMBOL: ["★", "♪", "→", "\ue000", "\ue00f\ue123", "�"],
}  # fmt: skip
ALL_SPANS = [span for spans in SPANS.values() for span in spans]

DIRECTIONS = [
    ("zh-Hans", "en"),
    ("en", "zh-Hans"),
    ("zh-Hant", "en"),
    ("en", "zh-Hant"),
    ("zh-Hans", "zh-Hant"),
]
WORDS = [
    "今天", "好吃", "我觉得不行", "真的吗？", "哈哈哈哈哈哈", "yyds", "，", "。", "！！！", "……",
    "the food is good", "OK", "so", " ", "  ", "\n", "\t",
    "1. ", "- ", "3.5", "12:30", "$9.99", "（", "）", "“", "”", "Mr.", "U.S.", ".", ", ", "?", "かわいい",
    "안녕", "\u200b", "\u202e", "\u3000", "iPhone",
]  # fmt: skip


def comments() -> st.SearchStrategy[str]:
    """Comments glued together from words, spans and arbitrary characters."""
    piece = st.one_of(st.sampled_from(WORDS), st.sampled_from(ALL_SPANS), st.text(max_size=3))
    return st.lists(piece, max_size=14).map("".join)


def translate(
    comment: str,
    source: str,
    target: str,
    model: Callable[[str], str],
    placeholders: tuple[str, ...] = PLACEHOLDERS,
    terms: tuple[Term, ...] = (),
) -> str:
    """The service's route with a fake model: fall back to the pieces, then to the source."""
    out: list[str] = []
    for part in segment(comment, source, target, placeholders=placeholders, terms=terms):
        for piece in [part] if isinstance(part, str) or part.restore(model(part.text)) is not None else part.split():
            restored = piece if isinstance(piece, str) else piece.restore(model(piece.text))
            out.append(piece.original if restored is None and isinstance(piece, Sentence) else restored or "")
    return join(out, source, target)


def occurs_in_order(spans: list[str], text: str) -> bool:
    at = 0
    for span in spans:
        at = text.find(span, at)
        if at < 0:
            return False
        at += len(span)
    return True


MODELS: dict[str, Callable[[str], str]] = {
    "copies": lambda text: text,
    "says nothing": lambda text: "",
    "says the same": lambda text: "Hello 你好.",
    "drops": lambda text: text.replace(PLACEHOLDERS[0], ""),
    "doubles": lambda text: text + text,
    "reorders": lambda text: text[::-1],
    "leaks": lambda text: text + PLACEHOLDERS[7],
}


@pytest.mark.parametrize("model", MODELS)
@given(comment=comments(), direction=st.sampled_from(DIRECTIONS), masked=st.booleans())
def test_no_span_is_ever_lost(model: str, comment: str, direction: tuple[str, str], masked: bool) -> None:
    comment = normalise(comment)
    spans = [comment[start:end] for start, end, _ in scan(comment)]
    output = translate(comment, *direction, MODELS[model], PLACEHOLDERS if masked else ())
    assert occurs_in_order(spans, output)


@given(comment=comments(), direction=st.sampled_from(DIRECTIONS), masked=st.booleans())
def test_originals_and_literals_make_up_the_comment(comment: str, direction: tuple[str, str], masked: bool) -> None:
    comment = normalise(comment)
    parts = segment(comment, *direction, placeholders=PLACEHOLDERS if masked else (), slang=False)
    whole = "".join(part if isinstance(part, str) else part.original for part in parts)

    # Punctuation between spans takes the target's form, and single spaces between sentences are ``join``'s.
    def plain(text: str) -> str:
        return re.sub(r"[\s\W_]+", "", unicodedata.normalize("NFKC", text))

    assert plain(whole) == plain(comment)


@given(comment=comments(), direction=st.sampled_from(DIRECTIONS))
def test_script_change_with_a_copying_model_changes_nothing(comment: str, direction: tuple[str, str]) -> None:
    comment = normalise(comment)
    assert translate(comment, "zh-Hans", "zh-Hant", lambda text: text) == comment


@given(comment=st.text())
def test_normalise_is_idempotent_and_clean(comment: str) -> None:
    once = normalise(comment)
    assert normalise(once) == once
    assert not set(once) & set("\r\0\x1b")
    once.encode("utf-8")


@given(comment=comments())
def test_placeholders_are_numbered_from_the_first_in_each_sentence(comment: str) -> None:
    for part in segment(normalise(comment), "zh-Hans", "en", placeholders=PLACEHOLDERS):
        if isinstance(part, Sentence):
            masked = [span for span in part.spans if span.kind is not Kind.FIGURE]
            assert [c for c in part.text if c in PLACEHOLDERS] == list(PLACEHOLDERS[: len(masked)])


@pytest.mark.parametrize(("kind", "span"), [(kind, span) for kind, spans in SPANS.items() for span in spans])
@pytest.mark.parametrize("around", ["{}", "{} 好吃", "好吃 {}", "我说 {} 好吃", "it is {} really"])
def test_scan(kind: Kind, span: str, around: str) -> None:
    text = normalise(around.format(span))
    assert (span, kind) in [(text[start:end], found) for start, end, found in scan(text)]


@pytest.mark.parametrize(
    "text",
    [
        "(10%)", "($5)", "(hello)", "（笑）", "great.so happy", "e.g. this", "C# is fun", "a < b > c", "37°C",
        "5㎡", "3:2", "12:30:45",
        "note: this", "and/or", "A & B", "[not a sticker]", "100%", "U.S.A.", "ok...", "你好：好", "AI", "1.5",
        "2024-01-02",
    ],
)  # fmt: skip
def test_scan_leaves_language_alone(text: str) -> None:
    assert scan(text) == ()


def test_normalise() -> None:
    assert normalise("a\r\nb\rc\u2028d\x0be") == "a\nb\nc\nd\ne"
    assert normalise("a\0b\x1bc\x9fd\te") == "abcd\te"
    assert normalise("e\u0301 \ud800 a\u00a0b\u2003c\u3000d") == "é � a b c\u3000d"
    assert normalise("👩\u200d🚀 a\u200bb \u202eä½") == "👩\u200d🚀 a\u200bb \u202eä½"


@pytest.mark.parametrize(
    "text", ["", " \n", "😂", "666", "https://x.com/a @tom #tag", "。。。!", "(T_T)", "[doge]", "①②", "</s>"]
)
def test_nothing_to_translate(text: str) -> None:
    assert not has_linguistic_content(normalise(text))


@pytest.mark.parametrize("text", ["好", "a", "666 好", "哈", "@tom hi", "é", "か"])
def test_something_to_translate(text: str) -> None:
    assert has_linguistic_content(text)


def texts(comment: str, source: str = "zh-Hans", target: str = "en", masked: bool = False) -> list[str]:
    """Parts for reading: sentences in angle quotes."""
    parts = segment(normalise(comment), source, target, placeholders=PLACEHOLDERS if masked else ())
    return [part if isinstance(part, str) else f"«{part.text}»" for part in parts]


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("今天好开心😂明天继续", ["«今天好开心»", "😂", "«明天继续»"]),
        ("第一。第二！第三？", ["«第一。»", "«第二！»", "«第三？»"]),
        ("他说：“走吧。”然后走了", ["«他说：“走吧。”»", "«然后走了»"]),
        ("1. 盐\n2. 糖\n\n好吃", ["1. ", "«盐»", "\n2. ", "«糖»", "\n\n", "«好吃»"]),
        ("・", ["・"]),
        ("盐  糖", ["«盐»", "  ", "«糖»"]),
        ("@小明：你好", ["@小明:", "«你好»"]),
        ("好吃！！！[doge]", ["«好吃！！！»", "[doge]"]),
        ("等等……我想想", ["«等等……我想想»"]),
        ("我想了很久很久……还是算了", ["«我想了很久很久……»", "«还是算了»"]),
        ("房价3.5万", ["«房价3.5万»"]),
        ("好好好好好好好吃", ["«好好好吃»"]),
        ("她说 I will always love you 然后走了", ["«她说»", " I will always love you ", "«然后走了»"]),
        ("今天的vlog很好看", ["«今天的vlog很好看»"]),
        ("yyds！！", ["the GOAT!!"]),
        ("这首歌yyds", ["«这首歌永远的神»"]),
        ("I love it.", ["I love it."]),
        ("马！老！师！我！想！你！了！", ["«马老师我想你了！»"]),
        ("滴滴，纯聊天", ["DM me,", "«纯聊天»"]),
        ("今天，纯聊天", ["«今天，纯聊天»"]),
        ("他说 사랑해 요 给我听", ["«他说»", " 사랑해 요 ", "«给我听»"]),
        ("小熊の店", ["«小熊の店»"]),
        ("谢谢！好！", ["«谢谢！»", "«好！»"]),
    ],
)
def test_chinese(comment: str, expected: list[str]) -> None:
    assert texts(comment) == expected


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("I love it. So good!! 😂 See you", ["«I love it. So good!!»", " 😂 ", "«See you»"]),
        (
            "Mr. Smith paid $3.50 for a coffee in the U.S. and it was not even warm. Then Mr. Smith left. Wow",
            [
                "«Mr. Smith paid $3.50 for a coffee in the U.S. and it was not even warm.»",
                "«Then Mr. Smith left. Wow»",
            ],
        ),
        ("THIS IS SO GOOD I CRIED", ["«This is so good I cried»"]),
        ("NASA in the USA", ["«NASA in the USA»"]),
        ("soooo goooood yessss", ["«so good yes»"]),
        ("ngl", ["说实话"]),
        ("真的太好看了", ["真的太好看了"]),
        ("he said 我真的会谢 and left", ["«he said»", " 我真的会谢 ", "«and left»"]),
    ],
)
def test_english(comment: str, expected: list[str]) -> None:
    assert texts(comment, "en", "zh-Hans") == expected


def test_placeholders_keep_the_sentence_whole() -> None:
    parts = segment("看https://t.cn/a和@tom 吧", "zh-Hans", "en", placeholders=PLACEHOLDERS)
    assert len(parts) == 1
    sentence = parts[0]
    assert isinstance(sentence, Sentence)
    assert sentence.text == "看\ue000和\ue001 吧"
    assert [span.source for span in sentence.spans] == ["https://t.cn/a", "@tom"]
    assert sentence.restore("Look at\ue000and \ue001") == "Look at https://t.cn/a and @tom"
    for wrong in ("Look at \ue000", "\ue001 \ue000", "\ue000 \ue001 \ue001", "\ue000 \ue001 \ue002", ""):
        assert sentence.restore(wrong) is None
    pieces = [piece if isinstance(piece, str) else f"«{piece.text}»" for piece in sentence.split()]
    assert pieces == ["«看»", "https://t.cn/a", "«和»", "@tom ", "«吧»"]


def test_more_spans_than_placeholders() -> None:
    comment = "、".join(f"看@u{i} 吧" for i in range(40))
    parts = segment(comment, "zh-Hans", "en", placeholders=PLACEHOLDERS)
    assert all(len(part.spans) <= len(PLACEHOLDERS) for part in parts if isinstance(part, Sentence))
    assert occurs_in_order([f"@u{i}" for i in range(40)], translate(comment, "zh-Hans", "en", lambda text: text))


def test_figures_are_checked() -> None:
    (sentence,) = segment("一共花了1299块", "zh-Hans", "en")
    assert isinstance(sentence, Sentence)
    assert sentence.restore("It cost 1,299 in all") == "It cost 1,299 in all"
    assert sentence.restore("It cost 1,200 in all") is None
    assert sentence.restore("It cost 12990 in all") is None
    assert sentence.restore("It cost a lot") is None
    assert [p if isinstance(p, str) else p.text for p in sentence.split()] == ["一共花了", "1299", "块"]


def test_words_of_a_sentence_are_masked_where_they_stand() -> None:
    """Terms, and figures that a translation must repeat, belong to the sentence even at its edge."""
    terms = (Term("小红书", "RedNote"),)
    (sentence,) = segment("小红书花了1299", "zh-Hans", "en", placeholders=PLACEHOLDERS, terms=terms)
    assert isinstance(sentence, Sentence)
    assert sentence.text == "\ue000花了\ue001"
    assert sentence.restore("\ue000 cost \ue001.") == "RedNote cost 1299."
    assert segment("1299", "zh-Hans", "en", placeholders=PLACEHOLDERS) == ["1299"]
    comment = "，".join(f"花了{n}块" for n in range(1000, 1040))
    parts = segment(comment, "zh-Hans", "en", placeholders=PLACEHOLDERS)
    numbers = [str(n) for n in range(1000, 1040)]
    assert [span.target for part in parts if isinstance(part, Sentence) for span in part.spans] == numbers
    assert occurs_in_order(numbers, translate(comment, "zh-Hans", "en", lambda text: text.replace("\ue003", "")))


def test_glossary_terms_are_forced() -> None:
    terms = (Term("小红书", "RedNote"), Term("红书", "wrong"), Term("iPhone", "苹果"))
    comment = "小红书上看到的，小红书真好"
    output = translate(comment, "zh-Hans", "en", lambda text: "bla", terms=terms)
    assert output.count("RedNote") == 2
    assert applied_terms(comment, terms) == (terms[0], terms[0])
    assert applied_terms("my IPHONE and iphones https://iphone.com", terms) == (terms[2],)


def test_long_comments_are_cut_and_nothing_is_lost() -> None:
    for comment in ("好" * 5000, "hello " * 800, "a" * 5000, "今天，" * 1600, "好😂" * 2500):
        parts = segment(comment, "zh-Hans" if comment[0] != "a" else "en", "en" if comment[0] != "a" else "zh-Hans")
        assert "".join(part if isinstance(part, str) else part.original for part in parts).replace(" ", "") == (
            comment.replace(" ", "").replace("，", "，")
        )
        assert all(len(part.original) <= 400 for part in parts if isinstance(part, Sentence))


@pytest.mark.parametrize(
    ("parts", "target", "expected"),
    [
        (["I did it.", "Finally."], "en", "I did it. Finally."),
        (["我做到了。", "终于。"], "zh-Hans", "我做到了。终于。"),
        (["So good", "😂", "see you"], "en", "So good 😂 see you"),
        (["Look at", "@tom", ", please"], "en", "Look at @tom, please"),
        (["看", "https://x.com/a", "吧"], "zh-Hans", "看https://x.com/a 吧"),
        (["谢谢", "@tom", "你好"], "zh-Hans", "谢谢@tom 你好"),
        (["a", "\n", "b"], "en", "a\nb"),
        (["(", "yes", ")"], "en", "(yes)"),
        (["好", "", "吧"], "zh-Hans", "好吧"),
    ],
)
def test_join(parts: list[str], target: str, expected: str) -> None:
    assert join(parts, "en" if target != "en" else "zh-Hans", target) == expected


def test_output_punctuation_follows_the_target() -> None:
    assert Sentence("好", (), "好", "zh-Hans", "en").restore("Good，really！ yes") == "Good, really! yes"
    assert Sentence("a", (), "a", "en", "zh-Hans").restore("好的, 真的 吗?") == "好的，真的吗？"


@given(comment=st.one_of(comments(), st.lists(st.sampled_from([*WORDS, "XD", "orz", "-", ".", "o.o"])).map("".join)))
def test_the_short_cut_of_scan_misses_nothing(comment: str) -> None:
    comment = normalise(comment)
    slow = tuple((match.start(), match.end()) for match in spans_module._PATTERN.finditer(comment))
    assert tuple((start, end) for start, end, _ in scan(comment)) == slow


@pytest.mark.parametrize(
    ("source", "translation", "direction", "kept"),
    [
        ("还有41天", "41 days left", "zh-en", True),
        ("还有41天", "45 days left", "zh-en", False),
        ("11月18日", "Nov 18", "zh-en", True),
        ("16年的车", "a car from 2016", "zh-en", True),
        ("至少2w", "at least 20k", "zh-en", True),
        ("95斤", "47.5 kg", "zh-en", True),
        ("3个", "three", "zh-en", True),
        ("at 11:40", "十一点四十", "en-zh", True),
        ("1:08 left", "还剩1分08秒", "en-zh", True),
        ("number 81234", "八万多号", "en-zh", False),
        ("17 of 20", "20个里的18个", "en-zh", False),
    ],
)
def test_figures_may_be_rewritten_but_not_changed(source: str, translation: str, direction: str, kept: bool) -> None:
    language, target = direction.split("-")
    (sentence,) = segment(source, language, target)
    assert isinstance(sentence, Sentence)
    assert (sentence.restore(translation) is not None) == kept


def test_split_without_spans_is_by_clause() -> None:
    sentence = Sentence("万人迷，国民偶像，国民男神", (), "万人迷，国民偶像，国民男神", "zh-Hans", "en")
    assert [part.text for part in sentence.split() if isinstance(part, Sentence)] == [
        "万人迷，",
        "国民偶像，",
        "国民男神",
    ]
    assert Sentence("好吃", (), "好吃", "zh-Hans", "en").split() == [Sentence("好吃", (), "好吃", "zh-Hans", "en")]


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("@小明 你好", "@小明"),
        ("@我爱吃的小明 你好", "@我爱吃的小明"),
        ("@小明，你好", "@小明"),
        ("@XXX小威有这个东西吗？", "@XXX小威"),
        ("@小明你快来看", "@小明"),
        ("@tom你好", "@tom"),
        ("@tom.", "@tom"),
        ("@the_real.tom-99 hi", "@the_real.tom-99"),
    ],
)
def test_a_mention_ends_where_a_name_does(text: str, mention: str) -> None:
    assert [text[start:end] for start, end, _ in scan(text)] == [mention]
