"""Is a model's output fit to show? Cheap enough to run on every one."""

from __future__ import annotations

from enum import StrEnum

import regex


class Problem(StrEnum):
    """What is wrong with an output."""

    EMPTY = "empty"
    REPETITION = "repetition"
    COPIED = "copied"
    WRONG_SCRIPT = "wrong_script"
    LENGTH_RATIO = "length_ratio"
    CONTROL_TOKEN = "control_token"
    PLACEHOLDER = "placeholder"


_CONTROL = regex.compile(r"</?s>|<pad>|<unk>|>>[A-Za-z_]{2,12}<<|[\u2047\u2581]")
_PLACEHOLDER = regex.compile("[\ue000-\ue00f]")
_HAN = regex.compile(r"\p{Han}")
_LATIN_WORD = regex.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*+")
_QUOTES = regex.compile(r"[“”\"「」『』《》字]")
_OTHER_SCRIPT = regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Hangul}\p{Cyrillic}\p{Arabic}\p{Thai}\p{Greek}]")
# What models do and people do not, unless the source does it too: a stutter inside an English word ("ialialial",
# "utututer"; laughing and singing apart), the same English word or phrase three times, the same one to three
# Chinese characters four times. Of 49,000 references 12 in English have this ("go go go") and 1 in Chinese.
_STUTTER = regex.compile(
    r"(?!ha|he|hi|ho|ah|la|na|ja|ka|lo|ta|da|ba|bla|wa|wo|mua|ya)([a-z]{2,4})\1{2,}+", regex.IGNORECASE
)
_SAID_AGAIN = {
    True: regex.compile(r"\b(?!ha\b|la\b)(\w+(?: \w+){0,2}+)(?:[ ,.!-]+\1\b){2,}+", regex.IGNORECASE),
    False: regex.compile(r"(?![哈啊嘿呵嘻呜嘤哦咯汪喵])(\p{Han}{1,3}?)\1{3,}+"),
}
_THREE_TIMES = regex.compile(r"(\S{1,6}?)\1{2,}+")
_REPEATS = regex.compile(
    r"(\S{1,6}?)\1{2,}+|(\p{Han}{1,4})[，,！!？?。 、]*+\2|\b(\w+(?:['’ ]\w+)?)(?:[\s,.!?]+\3\b)+",
    regex.IGNORECASE,
)
# Something said four times in a row, however short, or a phrase three times, whatever the source says.
_LOOP = regex.compile(r"(\S.{7,39}?)(?:[\s,.!?，。！？、]*+\1){2,}+|(\S.{0,39}?)(?:[\s,，、]?\2){3,}+", regex.DOTALL)
_LAUGHING = frozenset("a ah ha he hi ho h lo ol 哈 嘿 啊 呵 嘻 呜".split())  # noqa: SIM905

# Longest and shortest output, as (factor, constant) of the source's length in characters, beyond which fewer than one
# in ten thousand references of the training data lie.
_LONGEST = {"en": (9.0, 40), "zh": (1.2, 12)}
_SHORTEST = {"en": (0.8, 12), "zh": (0.08, 3)}


def check(source: str, output: str, source_language: str, target_language: str) -> Problem | None:
    """What is wrong with ``output`` as a translation of ``source``; None if nothing is.

    Args:
        source: the sentence that the model read, placeholders included.
        output: what it wrote.
        source_language, target_language: codes; only the part before "-" counts.
    """
    text, to_english = output.strip(), target_language.startswith("en")
    if not text or not any(c.isalnum() or c in "…。.!?！？" for c in text):
        return Problem.EMPTY
    if _CONTROL.search(text) and not _CONTROL.search(source):
        return Problem.CONTROL_TOKEN
    if _PLACEHOLDER.findall(text) != _PLACEHOLDER.findall(source):
        return Problem.PLACEHOLDER
    if _loops(source, text, to_english):
        return Problem.REPETITION
    factor, constant = _LONGEST["en" if to_english else "zh"]
    if len(text) > factor * len(source) + constant:
        return Problem.LENGTH_RATIO
    factor, constant = _SHORTEST["en" if to_english else "zh"]
    if len(text) < factor * len(source) - constant:
        return Problem.LENGTH_RATIO
    return _script(source, text, to_english)


def _loops(source: str, text: str, to_english: bool) -> bool:
    if _STUTTER.search(text) and not _THREE_TIMES.search(source):
        return True
    if _SAID_AGAIN[to_english].search(text) and not _REPEATS.search(source):
        return True
    if len(text) < 8:
        return False
    # Text without a loop has mostly different trigrams; the regular expression is for the rest.
    trigrams = {text[i : i + 3] for i in range(len(text) - 2)}
    if len(trigrams) > 0.7 * (len(text) - 2):
        return False
    # Laughing may go on for a while, and so may whatever the source itself repeats.
    repeats = max((len(match.group()) for match in _REPEATS.finditer(source)), default=0)
    for match in _LOOP.finditer(text):
        unit = (match[1] or match[2]).lower()
        allowed = 20 + 6 * repeats if repeats or unit in _LAUGHING else 7
        if len(match.group()) > allowed:
            return True
    return False


def _script(source: str, text: str, to_english: bool) -> Problem | None:
    han = len(_HAN.findall(text))
    words = _LATIN_WORD.findall(text)
    if to_english:
        if han and text.casefold() == source.casefold():
            return Problem.COPIED
        # 3 of 10,000 English references hold Han, all of them about a word or a character.
        if han and (han > len(words) or not _QUOTES.search(source)):
            return Problem.WRONG_SCRIPT
    else:
        source_words = _LATIN_WORD.findall(source)
        lower = [word for word in source_words if word.islower() and len(word) > 1]
        if text.casefold() == source.casefold() and lower:
            return Problem.COPIED
        if (not han and len(lower) > 1) or (len(words) > 4 and len(words) > han):
            return Problem.WRONG_SCRIPT
    if len(_OTHER_SCRIPT.findall(text)) > len(_OTHER_SCRIPT.findall(source)):
        return Problem.WRONG_SCRIPT
    return None
