"""What the guard refuses, and what it must let pass."""

from __future__ import annotations

import pytest

from translator.guard import Problem, check


@pytest.mark.parametrize(
    ("source", "output", "direction", "problem"),
    [
        ("你好", "", "zh-en", Problem.EMPTY),
        ("你好", "  ", "zh-en", Problem.EMPTY),
        ("蹲", "dog dog dog dog dog dog", "zh-en", Problem.REPETITION),
        ("I got it", "我我我我我我我我我我", "en-zh", Problem.REPETITION),
        ("好的", "I'm not doing it, I'm not doing it, I'm not doing it", "zh-en", Problem.REPETITION),
        ("哈哈", "ha" * 40, "zh-en", Problem.REPETITION),
        ("my taxes", "我的税税税税", "en-zh", Problem.REPETITION),
        ("国民偶像", "the men, the men, the men", "zh-en", Problem.REPETITION),
        ("今天好开心", "今天好开心", "zh-en", Problem.COPIED),
        ("this is good", "This is good", "en-zh", Problem.COPIED),
        ("今天好开心", "今天 很 happy 呀 so", "zh-en", Problem.WRONG_SCRIPT),
        ("谢谢劳斯", "Thank you for劳", "zh-en", Problem.WRONG_SCRIPT),
        ("武术表演", "ialialial arts show", "zh-en", Problem.REPETITION),
        ("so good I cried", "it was so good that", "en-zh", Problem.WRONG_SCRIPT),
        ("今天好开心", "とても嬉しい day", "zh-en", Problem.WRONG_SCRIPT),
        ("好", "I would like to say that this is the single best thing which I have seen in all of my life", "zh-en",
         Problem.LENGTH_RATIO),
        ("我昨天在公园里遇到一位三十年没见的小学老师，他还记得我的名字", "I", "zh-en", Problem.LENGTH_RATIO),
        ("你好", "hello </s>", "zh-en", Problem.CONTROL_TOKEN),
        ("你好", "hello ⁇ you", "zh-en", Problem.CONTROL_TOKEN),
        ("看\ue000吧", "look at it", "zh-en", Problem.PLACEHOLDER),
        ("看\ue000和\ue001吧", "look at \ue001 and \ue000", "zh-en", Problem.PLACEHOLDER),
        ("看", "look at \ue003", "zh-en", Problem.PLACEHOLDER),
    ],
)  # fmt: skip
def test_refused(source: str, output: str, direction: str, problem: Problem) -> None:
    source_language, target_language = direction.split("-")
    assert check(source, output, source_language, target_language) is problem


@pytest.mark.parametrize(
    ("source", "output", "direction"),
    [
        ("你好", "Hello", "zh-en"),
        ("哈哈哈哈哈哈", "hahahahahaha", "zh-en"),
        ("啊啊啊啊啊啊啊啊啊啊啊啊", "Aaaaaaaaaaaaaaaaah", "zh-en"),
        ("wait wait wait", "等等等等", "en-zh"),
        ("不不不", "no no no", "zh-en"),
        ("so so good", "太太太好了", "en-zh"),
        ("笑疯", "hahahahahaha", "zh-en"),
        ("疼疼疼疼疼", "ow ow ow ow ow", "zh-en"),
        ("sooo hot so hot so hot so hot", "好热好热好热好热", "en-zh"),
        ("“福”字要倒着贴", "The character 福 is hung upside down", "zh-en"),
        ("看\ue000吧", "Look at \ue000", "zh-en"),
        ("NASA", "NASA", "en-zh"),
        ("Taylor Swift", "Taylor Swift", "en-zh"),
        ("thank you so much, this means the world to me", "太感谢了，这对我意义重大", "en-zh"),
        ("no no no no no no", "不不不不不不", "en-zh"),
        ("？？？", "???", "zh-en"),
        ("嗯", "Mm", "zh-en"),
        ("用</s>结束", "ends with </s>", "zh-en"),
    ],
)  # fmt: skip
def test_accepted(source: str, output: str, direction: str) -> None:
    source_language, target_language = direction.split("-")
    assert check(source, output, source_language, target_language) is None
