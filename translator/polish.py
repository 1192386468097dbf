"""Small repairs on both sides of the model: what it reads made plain, what it writes made neat."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import regex

from translator import glossary
from translator.language import is_english_word

# What the model reads

_LATIN = regex.compile(r"\p{Latin}")
_HAN = regex.compile(r"\p{Han}")
_INVISIBLE = regex.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufe00-\ufe0f]")
_DIGITS = regex.compile(r"\d+")
_BLANKS = regex.compile(r"[\s\u3000]+")
_TRIPLE = regex.compile(r"(\S)\1\1")
_LONG_LETTER = regex.compile(r"([A-Za-z])\1{2,}+")
_LONG_OTHER = regex.compile(r"([^\s\dA-Za-z\ue000-\ue00f])\1{3,}+")
_LONG_GROUP = regex.compile(r"([^\s\d\ue000-\ue00f]{2,6}?)\1{3,}+")
_LATIN_WORD = regex.compile(r"[A-Za-z'’]+")
_CAPITALS = regex.compile(r"\b[A-Z][A-Z'’]*\b")
_LONE_I = regex.compile(r"\bi(?=['’](?:m|ll|ve|d)\b)")


def simplify(text: str, direction: str, slang: bool) -> str:
    """A sentence as the model reads it best: nothing invisible, no elongations, slang in plain words.

    Args:
        text: the sentence, spans already masked.
        direction: "zh-en" or "en-zh".
        slang: apply the lexicon.
    """
    if not text.isprintable() or "\u3000" in text or "  " in text:
        text = _BLANKS.sub(" ", _INVISIBLE.sub("", text))
    text = squeeze(text)
    if direction == "en-zh":
        text = _lower_shouting(text)
    return glossary.rewrite(text, direction) if slang else text


def squeeze(text: str) -> str:
    """Elongations cut down: "sooooo" to "so", "好好好好好" to "好好好". Models loop on them."""
    if _TRIPLE.search(text):
        text = _LONG_LETTER.sub(_short_letter, text)
        text = _LONG_OTHER.sub(r"\1\1\1", text)
    # Text without a group said four times has mostly different pairs of characters.
    if len(text) > 7 and len(set(pairwise(text))) < 0.75 * len(text):
        text = _LONG_GROUP.sub(r"\1\1", text)
    return text


def _short_letter(match: regex.Match[str]) -> str:
    text, start, end = match.string, match.start(), match.end()
    while start and match.start() - start < 20 and text[start - 1].isascii() and text[start - 1].isalpha():
        start -= 1
    while end < len(text) and end - match.end() < 20 and text[end].isascii() and text[end].isalpha():
        end += 1
    letter = match[1]
    if (start, end) == match.span():  # "zzzz", "aaaa" is not a word with a letter too many
        return letter * (2 if letter in "Oo" else 3)
    double = text[start : match.start()] + letter * 2 + text[match.end() : end]
    return letter * 2 if is_english_word(double.lower()) else letter


def _lower_shouting(text: str) -> str:
    """ALL CAPS in lower case, three words or more ("USA" and "OK NASA" stay): models know few in capitals."""
    words = _LATIN_WORD.findall(text)
    shouted = sum(len(word) > 1 and word.isupper() for word in words)
    if shouted < 3 or shouted * 4 < len(words) * 3:
        return text
    lowered = _CAPITALS.sub(lambda m: m.group() if m.group() == "I" else m.group().lower(), text)
    lowered = _LONE_I.sub("I", lowered)
    return lowered[:1].upper() + lowered[1:]


def is_translatable(text: str, source: str, changes_language: bool) -> bool:
    """False if a piece has no letter of the source's script: numbers, and what needs no translation."""
    if not changes_language:
        return any(map(str.isalpha, text))
    return bool((_HAN if source.startswith("zh") else _LATIN).search(text))


# What the model writes

_LITERAL_TO_ASCII = str.maketrans("，。！？：；（）～、“”‘’【】", ",.!?:;()~,\"\"''[]")
_TO_ASCII = str.maketrans(
    {"，": ", ", "。": ". ", "！": "! ", "？": "? ", "：": ": ", "；": "; ", "、": ", ", "（": " (", "）": ") "}
    | {"～": "~", "“": '"', "”": '"', "‘": "'", "’": "'", "《": '"', "》": '"', "「": '"', "」": '"'}
)
_HALF = regex.compile(r"(?<=[\p{Han}”」』》）])\s*([,!?;:])(?=\s|\p{Han}|[“”！？]|$)")
_FULL = {",": "，", "!": "！", "?": "？", ";": "；", ":": "："}
_HAN_SPACE = regex.compile(r"(?<=[\p{Han}，。！？、；：”》）]) +(?=[\p{Han}，。！？、；：“《（])")
_BEFORE_MARK = regex.compile(r" +(?=[,.!?;:)\]…]+(?:\s|$|[\"'\ue000-\ue00f]))")


def punctuation(literal: str, target: str) -> str:
    """Punctuation between spans in the form of the target language; all else as it is."""
    return literal.translate(_LITERAL_TO_ASCII) if target == "en" else literal


def polish(translation: str, target: str) -> str:
    """A model's output with the punctuation and spacing of its language."""
    if target == "en":
        if not translation.isascii():
            translation = _BLANKS.sub(" ", translation.translate(_TO_ASCII))
        return _BEFORE_MARK.sub("", translation).strip()
    translation = _HALF.sub(lambda match: _FULL[match[1]], translation.strip())
    return _HAN_SPACE.sub("", translation)


_OPENS = frozenset("([{（【《「『“‘")
_CLOSES = frozenset(",.!?;:)]}，。！？；：、）】》」』”’…~～%")
_TAG_END = regex.compile(
    r"(?:[#＃@＠][\w.\-·]{1,50}|(?:https?://|www\.)[^\s\p{Han}]{1,300}|\.[a-z]{2,5}(?:/[^\s\p{Han}]{0,300})?)$"
)


def glue(parts: Sequence[str], target: str) -> str:
    """Put parts together, with a space where two would run into each other.

    English has one around everything but punctuation; Chinese only between two Latin words, and
    behind a link, mention or tag, which would swallow the text that follows.
    """
    out: list[str] = []
    last = ""
    for part in parts:
        if not part:
            continue
        if last and _needs_space(last, part, target):
            out.append(" ")
        out.append(part)
        last = part
    return "".join(out)


def _needs_space(left: str, right: str, target: str) -> bool:
    a, b = left[-1], right[0]
    if a.isspace() or b.isspace():
        return False
    if target == "en":
        return not (a in _OPENS or b in _CLOSES)
    if a.isascii() and a.isalnum() and b.isascii() and b.isalnum():
        return True
    return (b.isalnum() or b == "_") and bool(_TAG_END.search(left[-400:]))


# Figures. From Chinese to English the references of the training data repeat 97 % and more of the kinds in
# _KEPT; into Chinese fewer than half (十一点四十 for 11:40), so only long numbers are looked for there. A figure that
# changed is another matter: fewer than 3 % of the references with figures lack one of the source and have one
# that the source has not, most of them by conversion of units.
_NUMBER = regex.compile(r"\d++(?:[.,:]\d++)*+")
_KEPT = {
    "en": regex.compile(
        r"(?<![\dA-Za-z.,])(?:\d{1,2}:\d{2}(?!\d)|\d{1,3}(?:,\d{3})+(?!\d)|\d++\.\d+|\d{3,}+)(?![\d万亿千百wWkK.:/-])"
    ),
    "zh": regex.compile(r"(?<![\dA-Za-z.,])\d{5,}+(?![\dA-Za-z.,])"),
}
_SLANG_FIGURE = regex.compile(r"6{3,}|23{2,}|5{3,}|996|10086|520|1314|8{2,}|9{2,}")
_CONVERTED = regex.compile(r"\d\s?(?:[万亿千百wWkK斤折里尺寸]|lb|mile|ft|feet|inch|million|thousand)")


def kept_figures(text: str, target: str) -> list[regex.Match[str]]:
    """Where the figures stand that a translation must repeat as they are."""
    if not _DIGITS.search(text):
        return []
    found = _KEPT["en" if target == "en" else "zh"].finditer(text)
    return [match for match in found if not _SLANG_FIGURE.fullmatch(match.group())]


def figures(text: str) -> list[str]:
    """The figures of a sentence, in order; of one digit only if there are no longer ones."""
    found = [match.group() for match in _NUMBER.finditer(text)]
    return [figure for figure in found if len(figure) > 1] or found


def keeps_figures(text: str, translation: str, target: str) -> bool:
    """False if the translation lacks a figure that it must repeat, or has another one in its place.

    Thousands separators do not matter, nor whether 1:08 became 1分08秒 or '67 became 1967.
    """
    if not any(map(str.isdigit, text)):
        return True
    ours, theirs = _atoms(text), _atoms(translation)
    if any(not _atoms(match.group()) <= theirs for match in kept_figures(text, target)):
        return False
    missing, new = ours - theirs, theirs - ours
    if not missing or not new or _CONVERTED.search(text):
        return True
    return all(a[-2:] in {b[-2:] for b in missing} and len(a) != len(b) for a in new for b in missing)


def _atoms(text: str) -> set[str]:
    return set(_DIGITS.findall(text.replace(",", "")))
