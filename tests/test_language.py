"""Codes, detection of short and mixed comments, change of script."""

from __future__ import annotations

from pathlib import Path

import pytest

from translator.errors import UnsupportedLanguage
from translator.language import EN, UND, ZH_HANS, ZH_HANT, canonical, convert_script, detect, is_hant
from translator.text import normalise


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("zh", ZH_HANS), ("ZH_cn", ZH_HANS), ("zh-SG", ZH_HANS), ("zh-hans", ZH_HANS), ("cmn", ZH_HANS),
        ("zho", ZH_HANS),
        ("zh-Hans-CN", ZH_HANS), ("zh-TW", ZH_HANT), ("zh_HK", ZH_HANT), ("zh-mo", ZH_HANT), ("zh-Hant", ZH_HANT),
        ("zh-Hant-HK", ZH_HANT), ("en", EN), ("EN-us", EN), ("en_GB", EN), ("eng", EN), (" en ", EN), ("", ""),
        ("Auto", ""),
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


def cases() -> list[tuple[str, str]]:
    lines = (Path(__file__).parents[1] / "bench" / "detection_cases.tsv").read_text("utf-8").splitlines()[2:]
    return [(language, text) for language, text in (line.split("\t") for line in lines)]


@pytest.mark.parametrize(("language", "text"), cases())
def test_detect(language: str, text: str) -> None:
    found = detect(normalise(text))
    assert found.language == language
    assert 0 <= found.confidence <= 1


def test_blank() -> None:
    assert detect("").language == detect(" \n").language == UND


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
