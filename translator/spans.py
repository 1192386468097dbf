"""What in a comment is not language: links, names, tags, emoji, faces, code.

``scan`` finds these spans; ``translator.text`` keeps them away from the model. Every quantifier is bounded or
possessive and starts behind a boundary, so the time is linear in the text whatever it holds.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import regex

PLACEHOLDERS: tuple[str, ...] = tuple(chr(0xE000 + i) for i in range(16))
"""Symbols of the embedded models that stand for one span each and are copied into the translation."""


class Kind(StrEnum):
    """What a protected span is."""

    URL = "url"
    EMAIL = "email"
    MENTION = "mention"
    HASHTAG = "hashtag"
    STICKER = "sticker"  # a platform's own picture: [doge], :smile:
    EMOJI = "emoji"
    KAOMOJI = "kaomoji"
    SNIPPET = "snippet"  # code, file names, ids, templates
    MARKUP = "markup"  # tags and whatever a model could take for a control token
    SYMBOL = "symbol"
    CLAUSE = "clause"  # already in the target language
    TERM = "term"  # glossary
    NUMBER = "number"  # a figure that the model does not see
    FIGURE = "figure"  # one that it sees; what it makes of it is checked


class Found(NamedTuple):
    """A span's place in the text, in code points."""

    start: int
    end: int
    kind: Kind


# A piece of a link; a run of punctuation only if more follows. Han belongs to a link only where it starts a
# step of the path or a value (/wiki/中文), because Chinese comments put no space behind a link.
_LINK = (
    r"(?:[.,;:!?'*@]{0,4}+"
    r"(?:\([A-Za-z0-9_,%.-]{0,60}+\)|[A-Za-z0-9\-_~/#\[&=+$%]|(?<=[/=_\-])\p{Han}++|(?!\p{Han})[\p{L}\p{M}]))"
)
_TLD = "com|cn|net|org|io|tv|cc|ly|gg|xyz|app|dev|ai|info|link|top|site|shop|edu|gov|uk|jp|kr|de|fr|hk|tw|gl"
_WORD_TLD = "me|so|to|be|in|co|it|is|us|fm|im"  # also English words: only with a path
_DOMAIN = (
    r"(?:[A-Za-z0-9-]{1,63}+\.){1,4}"
    rf"(?:(?:{_TLD})(?![A-Za-z0-9])(?:[:/?]{_LINK}{{1,2048}}+|/)?+|(?:{_WORD_TLD})/{_LINK}{{1,2048}}+)"
)
_EMAIL = r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}+@[A-Za-z0-9-]{1,63}+(?:\.[A-Za-z0-9-]{1,63}+){1,4}+"
_FILE = (
    r"[A-Za-z0-9_\-]{1,60}\.(?:py|js|ts|go|rs|java|cpp|sh|jpe?g|png|gif|webp|pdf|zip|rar|7z|exe|apk|mp[34]|mov"
    r"|txt|csv|json|docx?|xlsx?|pptx?|toml|ya?ml|html?)(?![A-Za-z0-9])"
)

_PICTOGRAPH = (
    r"(?:(?:\p{Emoji_Presentation}|\p{Extended_Pictographic})"
    r"[\uFE0E\uFE0F]?+\p{Emoji_Modifier}?+[\U000E0020-\U000E007F]{0,8}+)"
)
_EMOJI = (
    r"(?:\p{Regional_Indicator}{1,2}+|[0-9#*]\uFE0F?\u20E3\uFE0F?+"
    rf"|{_PICTOGRAPH}(?:\u200D{_PICTOGRAPH}){{0,8}}+[\u200D\uFE0F]?+)++"
)

# Faces. Drawn ones have brackets with something in them that no sentence has in brackets; the arms are optional.
_FACE_STRONG = (
    r"[\p{So}\p{Lm}\p{Mn}\u2190-\u22FF\u00B4\u02C6-\u02DF\u00A8\u00AF\u00B0\u2022\u25E1\u203F"
    r"ωдДзεΘσ∀∇▽□﹏︿￣ツッﾟ゜ㅂㅠㅅㅁ눈ಠಥᴗᴥ益皿`^"
    r"\p{Malayalam}\p{Kannada}\p{Canadian_Aboriginal}\p{Yi}\p{Tai_Le}\p{Buhid}\p{Limbu}\p{Lisu}\p{Vai}]"
)
_FACE_BODY = r"[^()（）ʔ꒱\[\]\p{Han}A-Za-z0-9\n，。！？、,$%&#@]|[TQOoUuVvwWxX03A口皿益一з灬]"
_ARM_LEFT = r"[Σヽヾ┏┗ლ૮٩✧ψ୧ᕦᕙᕕ凸╰╮╭⊂づっㄟo\\〜～~乁щ¯_*]{0,5}+"
_ARM_RIGHT = r"(?:[ノﾉ/\\〜～~و✧づっ╯︵┻━┳┛┓╭╮☆♪♡❤ゝシง凸ψ୨ᕤᕗ彡⌒*゜ﾟo^;_=3ㄏ┌┘¯ᐝᐠᐟ]|\x20(?=[┻━┬︵]))*+"
_ASCII_FACES = (
    r"TT?_TT?|T[.^]T|TAT|QAQ|QWQ|QwQ|qwq|quq|OwO|owo|UwU|uwu|ovo|OvO|[oO]rz|ORZ|OTZ|\^[_.o-]?\^|=[_w3]=|-[_.]-(?:\|\||;)?"
    r"|>[_.wo]<|[oO][_.][oO]|0[_.]0|@_@|\+_\+|\$_\$|\*_\*|\._\.|;[_w];|u_u|n_n|[xX]_[xX]|[xX]D|xd|=[)D(P]|ಠ_ಠ|ಥ_ಥ"
    r"|</?3|D:|>:[()]|:3"
)
_SMILEY = r"[:;：；]['’]?[-^o]?(?:[)(\]\[}{|/\\$]|\*(?!\*)|[DPpOo3](?![A-Za-z0-9]))(?!/)|[（(]{1,3}[:：][зз」∠)_]{2,6}+"

_PATTERN = regex.compile(
    rf"""
    (?![\p{{Han}}\s]|(?<=[A-Za-z])[A-Za-z])           # most positions: out at once
    (?:
    (?P<snippet>
        ```[^`]{{1,2000}}+``` | `[^`\n]{{1,200}}+`
      | \{{\{{[^{{}}\n]{{1,80}}+\}}\}} | \$\{{[^{{}}\n]{{1,80}}+\}} )
  | (?P<url>
        (?:https?|ftp)://{_LINK}{{1,2048}}+
      | (?<![A-Za-z0-9_.@-])www\.{_LINK}{{1,2048}}+ )
  | (?P<email>
        (?<![A-Za-z0-9._%+-]){_EMAIL} )
  | (?P<emoji>{_EMOJI})
  | (?P<kaomoji>
        {_ARM_LEFT}[(（ʕ꒰](?=[^)）ʔ꒱\n]{{0,20}}{_FACE_STRONG})(?:{_FACE_BODY}){{1,22}}+[)）ʔ꒱]{_ARM_RIGHT}
      | [（(]?(?:(?<![A-Za-z0-9])|(?=[\^>*;]))[*;]?(?:{_ASCII_FACES})[*;]?(?:(?![A-Za-z0-9])|(?<=[\^<*;]))[)）]?
      | (?<![A-Za-z0-9])(?:{_SMILEY})
      | [(（][·•°・˙ˊˋ＾][^()（）\n]{{1,3}}[·•°・˙ˊˋ＾][)）] | ՞[^\n\p{{Han}}A-Za-z]{{1,12}}՞
      | ദ്ദി(?:\s?[^\s\p{{Han}}A-Za-z0-9]){{0,16}}+ )
  | (?P<markup>
        </?[A-Za-z][^<>\n\p{{Han}}]{{0,60}}+> | <\|[^|<>\n]{{1,40}}+\|> | >>[A-Za-z_]{{2,12}}+<<
      | &(?:\#\d{{1,6}}|[A-Za-z]{{2,8}}); | \u2047 )
  | (?P<hashtag>
        (?<![A-Za-z0-9&])[#＃](?:
            [^\s#＃]{{1,40}}+[#＃](?![A-Za-z0-9_])
          | \p{{Han}}[^#＃\n]{{0,22}}[^\s#＃][#＃](?!\w)
          | [\p{{L}}\p{{M}}\p{{N}}_·]{{1,50}}+ ) )
  | (?P<mention>
        (?<![A-Za-z0-9])[@＠](?:
            \w(?:[\w.\-·]{{0,28}}\w)?(?=\s)             # platforms put a space behind a name; people do not
          | \w{{1,3}}+(?![\w·\-]|\.\w) | \w{{2,8}}?(?=[你我他她它这那有是在的了吗就都快来看去给和说])
          | \w(?:[\w.\-·]{{0,28}}\w)?(?!\w) | [A-Za-z0-9_]{{1,30}}+ )
      | (?<![\w/])[ru]/[A-Za-z0-9_]{{2,21}}+(?![/\w]) )
  | (?P<sticker>
        \[[^\[\]\s\p{{P}}]{{1,10}}+(?:\]|$)
      | (?<![A-Za-z0-9:]):(?:[a-z][a-z0-9_+\-]{{1,30}}+|[+\-]1|100): )
  | (?P<snippet2>
        (?<![A-Za-z0-9_.-])(?:
            {_DOMAIN}
          | {_FILE}
          | [A-Za-z]:\\[^\s\p{{Han}}<>"|?*]{{1,200}}+
          | [A-Za-z][A-Za-z0-9]{{0,40}}+(?:_[A-Za-z0-9]{{1,40}}+){{1,8}}+
          | [A-Za-z_][A-Za-z0-9_.]{{1,40}}+\(\)
          | (?=[A-Za-z]{{0,40}}[0-9])(?=[0-9]{{0,40}}[A-Za-z])[A-Za-z0-9]{{12,80}}+ )
      | (?<!\S)~?/[A-Za-z0-9_.\-]{{1,80}}+(?:/[A-Za-z0-9_.\-]{{1,80}}+){{1,20}}+ )
  | (?P<symbol>
        (?:(?![\u00B0\u2100-\u214F\u3200-\u33FF])
           [\p{{So}}\p{{Co}}\uFFE3\u2190-\u21FF\u27F0-\u27FF\uFE00-\uFE0F\u20E3])++ )
    )
    """,
    regex.VERBOSE,
)

# Most comments hold none of the characters that spans are made of; what is left to look at then are faces and
# long ids in letters.
_PLAIN = regex.compile(r"(?:[A-Za-z0-9\s，。！？、…～,!?'’“”\-]|\.(?![A-Za-z0-9])|[\u4E00-\u9FFF])*+")
_SUSPECT = regex.compile(rf"(?<![A-Za-z0-9])(?:{_ASCII_FACES}|[A-Za-z0-9]{{12}})|\.[._]|-[.-]")

_KIND = {name: Kind(name.rstrip("2")) for name in _PATTERN.groupindex}


@lru_cache(maxsize=256)
def scan(text: str) -> tuple[Found, ...]:
    """Finds the spans that must survive translation byte for byte.

    Detection, the check for linguistic content and segmentation of one comment all need them, hence the small cache.

    Args:
        text: normalised text.

    Returns:
        The spans in order, not overlapping.
    """
    if _PLAIN.fullmatch(text) and not _SUSPECT.search(text):
        return ()
    found = []
    for match in _PATTERN.finditer(text):
        assert match.lastgroup is not None
        found.append(Found(match.start(), match.end(), _KIND[match.lastgroup]))
    return tuple(found)


def without_spans(text: str, filler: str = " ") -> str:
    """The text with every protected span replaced by ``filler``."""
    out: list[str] = []
    at = 0
    for start, end, _ in scan(text):
        out += (text[at:start], filler)
        at = end
    out.append(text[at:])
    return "".join(out)
