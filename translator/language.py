"""Language codes, and which language a comment is written in.

Comments are short: half of them have fewer than ten characters. A statistical detector has nothing to
count there, but the script alone settles Chinese, and a handful of common words settles most of the rest. What scripts
cannot tell (English from Spanish from pinyin) is decided by the words in ``data/words.tsv``.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import regex
from opencc import OpenCC

from translator import glossary
from translator.errors import UnsupportedLanguage
from translator.spans import without_spans

ZH_HANS, ZH_HANT, EN, UND = "zh-Hans", "zh-Hant", "en", "und"
ZH_LATN = "zh-Latn"
"""Pinyin: Chinese, but not in a script that the models read."""

_CODES = {"": "", "auto": "", "en": EN, "eng": EN}
_CODES |= dict.fromkeys(("zh", "zh-cn", "zh-sg", "zh-my", "zh-hans", "cmn", "cmn-hans", "zho", "chi"), ZH_HANS)
_CODES |= dict.fromkeys(("zh-tw", "zh-hk", "zh-mo", "zh-hant", "cmn-hant"), ZH_HANT)
_CODES |= {f"zh-{script}-{region}": code for script, code in (("hans", ZH_HANS), ("hant", ZH_HANT))
           for region in ("cn", "sg", "my", "tw", "hk", "mo")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detection:
    """The language of a text.

    ``language`` is a canonical code, another language's code, or "und" for a text without linguistic content;
    ``confidence`` runs from 0 to 1.
    """

    language: str
    confidence: float


def canonical(code: str, field: str = "language_code") -> str:
    """The one spelling of a language code that the rest of the service uses.

    Args:
        code: BCP-47 in any case, with "-" or "_"; "" and "auto" ask for detection.
        field: the request's field, for the error.

    Returns:
        "zh-Hans", "zh-Hant", "en", or "" for detection.

    Raises:
        UnsupportedLanguage: for every other language.
    """
    key = code.strip().lower().replace("_", "-")
    if key in _CODES:
        return _CODES[key]
    if regex.fullmatch(r"en(-[a-z0-9]{2,8}){1,3}", key):
        return EN
    raise UnsupportedLanguage(code, field)


# One group for each script; the group's name is the language unless the code below knows better.
_RUNS = regex.compile(
    r"(?P<han>[\p{Han}〇々]++)|(?P<kana>[\p{Hiragana}\p{Katakana}ー]++)|(?P<ko>\p{Hangul}++)"
    r"|(?P<latin>[\p{Latin}\p{M}][\p{Latin}\p{M}\d]*+(?:['’]\p{Latin}++)*+)"
    r"|(?P<ru>\p{Cyrillic}++)|(?P<ar>\p{Arabic}++)|(?P<th>\p{Thai}++)|(?P<he>\p{Hebrew}++)|(?P<hi>\p{Devanagari}++)"
    r"|(?P<el>\p{Greek}++)|(?P<bn>\p{Bengali}++)|(?P<ta>\p{Tamil}++)|(?P<te>\p{Telugu}++)|(?P<my>\p{Myanmar}++)"
    r"|(?P<km>\p{Khmer}++)|(?P<lo>\p{Lao}++)|(?P<ka>\p{Georgian}++)|(?P<hy>\p{Armenian}++)|(?P<am>\p{Ethiopic}++)"
    r"|(?P<bo>\p{Tibetan}++)|(?P<mn>\p{Mongolian}++)|(?P<other>\p{L}++)"
)
_CHINESE = regex.compile(r"\s*+[\u4E00-\u9FFF][\u4E00-\u9FFF，。！？、…～\s!?~,.]*+")
# Words that Chinese needs and Japanese hardly writes; and kana that Chinese writers use for decoration.
_CHINESE_ONLY = frozenset("是的了吗嗎呢吧啊这這你们們他她它很就都也还還没沒说說谢謝吃哪怎么麼")
_DECORATIVE_KANA = frozenset("のノツシッーミ彡")

_SYLLABLE = (
    r"(?:[bpmf]?(?:a|o|ai|ei|ao|ou|an|en|ang|eng)|[bpm](?:i|ie|iao|ian|in|ing|u)|me|miu|fu"
    r"|[dtnlgkh](?:a|e|ai|ei|ao|ou|an|en|ang|eng|ong|u|uo|uan|ui|un)|[dtnl](?:i|ia|ie|iao|iu|ian|in|iang|ing)|[nl](?:v|ve|ue)"
    r"|[gkh]u(?:a|ai|ang)|[jqx](?:i|ia|ie|iao|iu|ian|in|iang|ing|iong|u|ue|uan|un)"
    r"|(?:[zcs]h?|r)(?:a|e|i|ai|ei|ao|ou|an|en|ang|eng|ong|u|uo|ua|uai|uan|uang|ui|un)"
    r"|y(?:i|a|e|ao|ou|an|in|ang|ing|ong|u|ue|uan|un|o)|w(?:u|a|o|ai|ei|an|en|ang|eng)|e|er|ei|en|ao|ou|ai|an|ang)"
)
_PINYIN = regex.compile(rf"{_SYLLABLE}{{1,8}}")
_TONES = regex.compile("[āǎēěīǐōǒūǔǖǘǚǜ]")
# Letters that one language of the table has and English has not.
_LETTERS = (
    ("vi", regex.compile("[đơưăạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ]")), ("tr", regex.compile("[ğışİ]")),
    ("pl", regex.compile("[łąężźćńś]")), ("es", regex.compile("[ñ¿¡]")), ("pt", regex.compile("[ãõ]")),
    ("de", regex.compile("[ßäöü]")), ("sv", regex.compile("[åø]")), ("fr", regex.compile("[çœèêëîïûà]")),
    ("es", regex.compile("[áíóú]")),
)  # fmt: skip


def detect(text: str) -> Detection:
    """Says in which language a text is written.

    Links, mentions, tags, emoji and the like do not count. Where languages mix, the one that carries the
    sentence wins.

    Args:
        text: normalised text.
    """
    bare = without_spans(text)
    if _CHINESE.fullmatch(bare):
        return Detection(ZH_HANT if is_hant(bare) else ZH_HANS, _confidence(1.0, len(bare)))
    runs: dict[str, list[str]] = {}
    for match in _RUNS.finditer(bare):
        assert match.lastgroup is not None
        runs.setdefault(match.lastgroup, []).append(match.group())
    if not runs:
        return Detection(UND, 0.0)
    han, kana, words = "".join(runs.pop("han", ())), "".join(runs.pop("kana", ())), runs.pop("latin", [])
    if not (han or kana or runs) and not any(map(glossary.is_chinese_slang, words)):
        return Detection(*_latin(words))
    # A Latin word weighs as much as the Han characters it would be written with; names and brands, which
    # both languages borrow, weigh less; and a particle shows whose grammar it is ("emo了").
    slang = sum(map(glossary.is_chinese_slang, words))
    scores = {"zh": len(han) + sum(c in _CHINESE_ONLY for c in han) + 2.0 * slang}
    scores["latin"] = sum(map(_weight, words)) if len(words) > slang else 0.0
    for language, found in runs.items():
        scores[language] = float(len("".join(found)))
    real_kana = sum(c not in _DECORATIVE_KANA for c in kana)
    if real_kana and sum(c in _CHINESE_ONLY for c in han) * 2 < real_kana:
        scores["ja"] = scores.pop("zh") + len(kana)
    elif kana and not han:
        scores["ja"] = float(len(kana))
    best = max(scores, key=lambda language: scores[language])
    share = scores[best] / sum(scores.values())
    if best == "latin":
        language, certainty = _latin(words)
        return Detection(language, round(certainty * share, 3))
    confidence = _confidence(share, scores[best])
    if best == "zh":
        return Detection(ZH_HANT if is_hant(han) else ZH_HANS, confidence)
    return Detection(UND if best == "other" else best, confidence)


def _confidence(share: float, evidence: float) -> float:
    """One character of a script is good evidence, ten are certainty."""
    return float(round(share * (1 - 0.3 * 0.7**evidence), 3))


def _weight(word: str) -> float:
    if EN in _languages_of(word.lower()):
        return 1.5
    if glossary.is_chinese_slang(word):
        return 0.0
    return 1.0 if word.islower() and len(word) > 1 else 0.5


@cache
def _words() -> dict[str, tuple[str, ...]]:
    """The languages that have a word in ``data/words.tsv``."""
    table: dict[str, tuple[str, ...]] = {}
    for line in (files("translator") / "data" / "words.tsv").read_text("utf-8").splitlines()[2:]:
        language, words = line.split("\t")
        for word in words.split():
            table[word] = (*table.get(word, ()), language)
    return table


def _languages_of(word: str) -> tuple[str, ...]:
    return _words().get(word, ())


def is_english_word(word: str) -> bool:
    """True for the few hundred commonest words of English comments, in lower case."""
    return EN in _languages_of(word)


def _latin(words: list[str]) -> tuple[str, float]:
    """The language of words in Latin letters, and its certainty."""
    words = [word.lower().replace("’", "'") for word in words]
    joined = " ".join(words)
    votes: Counter[str] = Counter()
    english = 0
    unique = set(words)
    for word in unique:
        languages = _languages_of(word)
        is_english = EN in languages or glossary.is_english_slang(word)
        english += is_english
        for language in languages:
            if language != EN:
                votes[language] += 1 if is_english else 2  # half as much for a word that English has too
    pinyin_votes = votes.pop(ZH_LATN, 0) + bool(_TONES.search(joined))
    if _is_pinyin(words, english, pinyin_votes):
        return ZH_LATN, 0.8
    if joined.isascii() and not votes:
        return EN, _english_certainty(english / len(unique), len(words))
    for language, letters in _LETTERS:
        if letters.search(joined):
            votes[language] += 1
            break
    other, best = max(votes.items(), key=lambda item: item[1], default=("", 0))
    # English needs no proof but the absence of others: most of its words are not in the table.
    if best > 2 * english and (best >= 2 or not joined.isascii()):
        return other, round(min(0.95, 0.5 + 0.5 * (best / 2 - english) / len(words)), 3)
    return EN, _english_certainty(english / len(unique), len(words))


def _english_certainty(known_share: float, words: int) -> float:
    return round(min(1.0, 0.5 + 0.6 * known_share) * (1 - 0.3 * 0.6**words), 3)


def _is_pinyin(words: list[str], english: int, votes: int) -> bool:
    """All words are Chinese syllables, one is common, and English explains fewer than half of them."""
    if not votes or english * 2 > len(words) or (len(words) == 1 and english):
        return False
    plain = ["".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c)) for word in words]
    return all(_PINYIN.fullmatch(word) for word in plain)


@cache
def _converter(config: str) -> OpenCC:
    return OpenCC(config)


def convert_script(text: str, target: str) -> str:
    """Chinese in the other script, by OpenCC's phrase tables (not a translation).

    Thread-safe: an OpenCC converter only reads. The tables are loaded at the first call.

    Args:
        target: "zh-Hans", or "zh-Hant" in the standard of Taiwan.

    Raises:
        UnsupportedLanguage: for another target.
    """
    if target not in (ZH_HANS, ZH_HANT):
        raise UnsupportedLanguage(target, "target_language_code")
    return str(_converter("t2s" if target == ZH_HANS else "s2tw").convert(text))


@cache
def _script_sets() -> tuple[frozenset[str], frozenset[str]]:
    """Characters that only simplified text has, and those that only traditional text has.

    A character counts when the national character set of one script has it, that of the other has not, and OpenCC
    would convert it: 后 and 里 are in both sets, 囧 is converted by nobody.
    """
    every = [chr(c) for c in range(0x4E00, 0xA000)]
    simplified = _converter("s2t").convert(" ".join(every)).split(" ")
    traditional = _converter("t2s").convert(" ".join(every)).split(" ")
    only_hans = {c for c, other in zip(every, simplified, strict=True) if c != other and not c.encode("big5", "ignore")}
    only_hant = {
        c for c, other in zip(every, traditional, strict=True) if c != other and not c.encode("gb2312", "ignore")
    }
    return frozenset(only_hans), frozenset(only_hant)


def is_hant(text: str) -> bool:
    """True when a Chinese text is written in traditional characters; text that could be either counts as simplified."""
    only_hans, only_hant = _script_sets()
    if only_hant.isdisjoint(text):
        return False
    return sum(c in only_hant for c in text) > sum(c in only_hans for c in text)
