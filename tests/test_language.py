"""Codes, detection of short and mixed comments, change of script."""

from __future__ import annotations

import pytest

from translator.errors import UnsupportedLanguage
from translator.language import EN, UND, ZH_HANS, ZH_HANT, canonical, convert_script, detect, is_hant
from translator.text import normalise


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("zh", ZH_HANS), ("ZH_cn", ZH_HANS), ("zh-SG", ZH_HANS), ("zh-hans", ZH_HANS), ("cmn", ZH_HANS), ("zho", ZH_HANS),
        ("zh-Hans-CN", ZH_HANS), ("zh-TW", ZH_HANT), ("zh_HK", ZH_HANT), ("zh-mo", ZH_HANT), ("zh-Hant", ZH_HANT),
        ("zh-Hant-HK", ZH_HANT), ("en", EN), ("EN-us", EN), ("en_GB", EN), ("eng", EN), (" en ", EN), ("", ""), ("Auto", ""),
    ],
)  # fmt: skip
def test_canonical(code: str, expected: str) -> None:
    assert canonical(code) == expected


@pytest.mark.parametrize("code", ["ja", "fr-FR", "english", "zh-", "en-", "zh-Latn", "und", "x", "en--us", "中文"])
def test_canonical_rejects_everything_else(code: str) -> None:
    with pytest.raises(UnsupportedLanguage) as caught:
        canonical(code, "source_language_code")
    assert caught.value.code == code
    assert caught.value.field == "source_language_code"


CASES = {
    ZH_HANS: [
        "好", "6啊", "绝了", "在吗", "笑死", "啊啊啊啊啊啊", "哈哈哈", "蹲蹲蹲", "emo了", "p图吗", "iOS v区", "yyds", "xswl", "u1s1",
        "今天的mood：榴莲千层", "会说banana就饿不死", "iPhone 15 Pro Max 真香", "这个is so good吗", "OK的", "@tom 好看", "[doge]不错",
        "的の日常", "ありがとう是谢谢的意思吗", "好吃😋😋😋", "1.1w紫薯", "Q：在哪里买的", "N年前了", "https://t.cn/a 看看",
    ],
    ZH_HANT: ["颱風天", "這個好吃", "謝謝", "我覺得還不錯", "開心", "鬆弛感", "很讚欸，請問哪裡買"],
    EN: [
        "ok", "lol", "LMAO", "no", "yes", "I", "soooo good", "YOU ARE SO BEAUTIFUL", "nice!!!", "ngl", "wait what", "vlog",
        "learn 中文 with me", "My mom says 加油 every day", "W", "thx", "omggggg", "@小明 thanks", "you're", "It's 3am", "queen 👑",
        "banana", "panda", "Tokyo is fun", "i can do this", "she can", "man", "the man", "RIP", "no way", "so cute 😍 #猫",
    ],
    UND: ["", " ", "😂😂", "666", "12:30", "???", "。。。", "https://x.com/abc", "@tom", "#穿搭[话题]#", "[doge]", "(╯°□°)╯", "T_T", "👍🏽"],
    "ja": ["かわいい", "ありがとう", "すごい！", "東京タワーに行きたい", "おいしい牛肉", "カワイイ"],
    "ko": ["안녕하세요", "ㅋㅋㅋ", "대박", "진짜 예쁘다 love"],
    "ru": ["Привет", "очень красиво"],
    "ar": ["جميل جدا"],
    "th": ["สวยมาก"],
    "es": ["hola amigo", "qué linda", "muy bonito"],
    "fr": ["c'est la vie", "trop beau"],
    "de": ["Ich liebe dich", "sehr schön"],
    "pt": ["muito obrigado", "você é linda"],
    "vi": ["đẹp quá", "cảm ơn bạn"],
    "id": ["terima kasih", "bagus banget"],
    "zh-Latn": ["ni hao ma", "wo ai ni", "nǐ hǎo", "xiexie", "zai jian", "jia you"],
}  # fmt: skip


@pytest.mark.parametrize(("language", "text"), [(code, text) for code, texts in CASES.items() for text in texts])
def test_detect(language: str, text: str) -> None:
    found = detect(normalise(text))
    assert found.language == language
    assert 0 <= found.confidence <= 1


def test_confidence_grows_with_evidence_and_purity() -> None:
    assert detect("好").confidence < detect("好吃").confidence < detect("今天的饭好吃").confidence
    assert detect("今天 so much fun 好开心").confidence < detect("今天好开心").confidence
    assert detect("blorp").confidence < detect("the food is good").confidence


def test_mojibake_is_nobodys_chinese_or_english() -> None:
    assert detect(normalise("ä½\xa0å¥½")).language not in (ZH_HANS, ZH_HANT, EN)


def test_script() -> None:
    assert convert_script("颱風天不要去海邊", ZH_HANS) == "台风天不要去海边"
    assert convert_script("头发发现", ZH_HANT) == "頭髮發現"
    assert not is_hant("皇后里面台上")  # all of them in both scripts
    assert is_hant("后面這裡")
    with pytest.raises(UnsupportedLanguage):
        convert_script("好", EN)
