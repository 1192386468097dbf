"""The slang lexicon and glossary matching."""

from __future__ import annotations

import pytest

from translator import glossary
from translator.glossary import Term, find_terms, lexicon, render, rewrite


@pytest.mark.parametrize("direction", ["zh-en", "en-zh"])
def test_lexicon_is_well_formed(direction: str) -> None:
    entries = lexicon(direction)
    for entry in entries.values():
        assert entry.term == entry.term.strip() != ""
        assert entry.rendering or entry.plain
        # Rendering in the target's script, plain words in the source's, and never the term itself.
        assert entry.plain.lower() != entry.term.lower()
        has_han = any("\u4e00" <= c <= "\u9fff" for c in entry.rendering)
        assert not entry.rendering or has_han == (direction == "en-zh")
        if direction == "en-zh":
            assert not any("\u4e00" <= c <= "\u9fff" for c in entry.plain)


def test_every_row_is_its_own_entry() -> None:
    rows = [line for line in glossary._TABLE.splitlines()[2:] if line]
    assert len(rows) == len(lexicon("zh-en")) + len(lexicon("en-zh"))


def test_render_and_rewrite() -> None:
    assert render("YYDS", "zh-en") == "the GOAT"
    assert render("yyds", "en-zh") is None
    assert render("今天", "zh-en") is None
    assert rewrite("这首歌yyds，真的YYDS", "zh-en") == "这首歌永远的神，真的永远的神"
    assert rewrite("myyds yyds2", "zh-en") == "myyds yyds2"
    assert rewrite("NGL it's good", "en-zh") == "not gonna lie it's good"
    assert rewrite("Ngl it’s good, Y’all", "en-zh") == "Not gonna lie it’s good, You all"


def test_terms_longest_first_and_whole_words() -> None:
    terms = [Term("cat", "猫"), Term("cat food", "猫粮"), Term("猫", "cat"), Term("C++", "C++语言")]
    found = [(hit.start, hit.term.target) for hit in find_terms("Cat food, cats, CAT 猫咪 C++", tuple(terms))]
    assert found == [(0, "猫粮"), (16, "猫"), (20, "cat"), (23, "C++语言")]
    assert find_terms("anything", ()) == []


def test_first_of_two_terms_with_one_source_wins() -> None:
    assert find_terms("a cat", (Term("cat", "猫"), Term("CAT", "喵")))[0].term.target == "猫"


@pytest.mark.parametrize(
    "text",
    [
        "晚上头发湿着睡", "吃土豆", "吃瓜子", "突破防线", "拒绝了", "电脑补丁", "游戏精灵", "工作精神",
        "菠菜鸡蛋", "早八点", "旅行社恐怕不行",
        "爱豆腐", "劳斯莱斯", "闭眼入睡", "避雷针", "倒塌房屋", "剩下头像", "凉凉的", "酱紫色", "积木有点贵",
        "羡慕了", "不造成", "饼干很好吃",
        "VIP的", "1080p的视频", "2TB", "GG邦",
    ],
)  # fmt: skip
def test_rewrite_leaves_ordinary_chinese_alone(text: str) -> None:
    assert rewrite(text, "zh-en") == text


@pytest.mark.parametrize(
    "text",
    [
        "He ate the pie",
        "BC 500",
        "vitamin B4",
        "red flag on the beach",
        "a capital idea",
        "first of all",
        "it lets go",
        "U-9s",
        "same day",
    ],
)
def test_rewrite_leaves_ordinary_english_alone(text: str) -> None:
    assert rewrite(text, "en-zh") == text


def test_laughter_keeps_its_length_in_bounds() -> None:
    assert render("哈哈", "zh-en") == "haha"
    assert render("哈" * 50, "zh-en") == "ha" * 6
    assert render("hhhh", "zh-en") == "haha"
    assert render("Hahahaha", "en-zh") == "哈哈哈哈"
    assert render("ha", "en-zh") is None
