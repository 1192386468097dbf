"""Fuzzing of the way from a comment to its translation, with a model that does its worst.

    python tests/fuzz_text.py --count 1000000 --seed 1 --processes 2

Each comment is glued together from words, spans, punctuation and stray characters; it is normalised, masked,
cut, "translated" by a model that copies, drops, doubles, reorders, invents, truncates or says nothing, restored,
split where that failed, and joined. Every protected span has to be in the result, in order; nothing may raise.
The same seed gives the same comments, whatever the number of processes. Exit status 1 on the first loss, with
the comment that reproduces it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

from translator import guard, language
from translator.glossary import Term
from translator.spans import scan
from translator.text import PLACEHOLDERS, Sentence, has_linguistic_content, join, normalise, segment

CHUNK = 2000
DIRECTIONS = [("zh-Hans", "en"), ("zh-Hant", "en"), ("en", "zh-Hans"), ("en", "zh-Hant"), ("zh-Hans", "zh-Hant")]
TERMS = (Term("小红书", "RedNote"), Term("food", "食物"), Term("😂", "（笑）"), Term("C++", "C加加"))

SPANS = r"""
https://t.cn/A6x https://zh.wikipedia.org/wiki/中文 http://a.b/c?d=e&f=(g) www.x.com a.b@c.co @tom @小明 @小明_99
#穿搭[话题]# #foodie #周末# [doge] [笑哭R] :smile: :+1: 😂 ❤️ ❤ 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇳 🇺🇸🇬🇧 7️⃣ #️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🉑️ ™
(╯°□°）╯︵ ¯\_(ツ)_/¯ (๑•̀ㅂ•́)و✧ (T_T) T_T ^_^ QAQ :) XD <3 ಠ_ಠ `x=1` {{name}} ${X} snake_case main() a.jpg
BV1xx411c7mD example.com C:\a\b /etc/passwd </s> <pad> <unk> >>cmn_Hans<< <|end|> <br> &amp; ★ ♪ → ▁ ⁇ �
""".split()  # noqa: SIM905
SPANS += ["\ue000", "\ue001\ue00f", "\ue123"]
WORDS = """
今天 我觉得 好吃 小红书 哈哈哈哈哈 好好好好好 yyds u1s1 绝绝子 谁懂啊 真的很好看 颱風天 這個 の かわいい 안녕 Привет
1299 3.5万 12:30 $9.99 2024-01-02 the food is good OK so SO GOOD I CRIED ngl lol soooo vlog I'm don't he said
Mr. U.S. e.g. C++ é ß ñ Ａ １ ① ， 。 ！！！ ？ …… ... ～ ~ ； 、 ： “ ” 「 」 （ ） ( ) [ ] < > { } # @ ＃ ＠ : ; ` *
_ - – | / \\ & % $ ^ = + ! ? . ,
""".split()  # noqa: SIM905
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\u3000", "\r\n", "\u2028", "\u00a0", ""]
STRAY = (
    "\0\x1b\x85\u00ad\u0301\u200b\u200c\u200d\u200e\u202e\u2066\u20e3\ufe0f\ufeff\ud800\udfff"
    "\U0001f3fd\U0001f1e8\U000e0067\ue00f"
)


def comment(rng: random.Random) -> str:
    """A random comment of up to about 200 characters, now and then a long one."""
    parts = []
    for _ in range(rng.randint(0, 12) if rng.random() < 0.995 else rng.randint(100, 800)):
        kind = rng.random()
        if kind < 0.3:
            parts.append(rng.choice(SPANS))
        elif kind < 0.75:
            parts.append(rng.choice(WORDS))
        elif kind < 0.92:
            parts.append(rng.choice(SPACES))
        elif kind < 0.98:
            parts.append(rng.choice(STRAY))
        else:
            parts.append(chr(rng.randrange(0x110000)))
    return "".join(parts)


def _mangle(rng: random.Random) -> Callable[[str], str]:
    """A model: a random way to mistreat what it is given."""

    def drop(text: str) -> str:
        return "".join(c for c in text if c not in PLACEHOLDERS or rng.random() < 0.5)

    def double(text: str) -> str:
        return "".join(c + c if c in PLACEHOLDERS and rng.random() < 0.5 else c for c in text)

    def reorder(text: str) -> str:
        return "".join(rng.sample(text, len(text)))

    def invent(text: str) -> str:
        at = rng.randint(0, len(text))
        return text[:at] + rng.choice(PLACEHOLDERS) + text[at:]

    def truncate(text: str) -> str:
        return text[: rng.randint(0, len(text))]

    def babble(text: str) -> str:
        return rng.choice(["", " ", "the the the the the", "好好好好好好", "</s>", "1,299", text[:1] * 50])

    def copy(text: str) -> str:
        return text

    models = [copy, copy, drop, double, reorder, invent, truncate, babble]
    return rng.choice(models)


def check(text: str, rng: random.Random) -> str | None:
    """What is lost on the way of one comment; None if nothing is."""
    text = normalise(text)
    language.detect(text)
    has_linguistic_content(text)
    source, target = rng.choice(DIRECTIONS)
    placeholders = PLACEHOLDERS if rng.random() < 0.5 else ()
    terms = TERMS if rng.random() < 0.2 else ()
    model = _mangle(rng)
    out: list[str] = []
    for part in segment(text, source, target, placeholders=placeholders, terms=terms):
        out += _restore(part, model, source, target)
    result, at = join(out, source, target), 0
    for start, end, kind in scan(text):
        at = result.find(text[start:end], at)
        if at < 0:
            return f"{kind} {text[start:end]!r} is not in {result!r} ({source} to {target}, terms: {bool(terms)})"
        at += end - start
    return None


def _restore(part: Sentence | str, model: Callable[[str], str], source: str, target: str) -> Iterator[str]:
    """What the service does: restore; failing that, the pieces; failing that, the source."""
    if isinstance(part, str):
        yield part
        return
    restored = _translate(part, model, source, target)
    if restored is not None:
        yield restored
        return
    for piece in part.split() if part.spans else [part]:
        if isinstance(piece, str):
            yield piece
        else:
            yield _translate(piece, model, source, target) or piece.original


def _translate(sentence: Sentence, model: Callable[[str], str], source: str, target: str) -> str | None:
    translation = model(sentence.text)
    guard.check(sentence.text, translation, source, target)  # for crashes; nothing may depend on its verdict
    return sentence.restore(translation)


def chunk(seed: int, number: int, count: int) -> tuple[int, str | None]:
    """Check ``count`` comments; the number done, and the first failure."""
    rng = random.Random(f"{seed}/{number}")
    for i in range(count):
        text = comment(rng)
        try:
            failure = check(text, rng)
        except Exception as error:  # a crash is a finding too, and needs its comment
            failure = f"{type(error).__name__}: {error}"
        if failure:
            return i, f"comment {text!r}\n{failure}"
    return count, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    sizes = [min(CHUNK, arguments.count - at) for at in range(0, arguments.count, CHUNK)]
    started, done = time.monotonic(), 0
    with ProcessPoolExecutor(arguments.processes) as pool:
        for count, failure in pool.map(chunk, [arguments.seed] * len(sizes), range(len(sizes)), sizes):
            done += count
            if failure:
                print(f"\n{failure}", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                return 1
            rate = done / (time.monotonic() - started)
            end = "\n" if done == arguments.count or not sys.stdout.isatty() else "\r"
            if end == "\r" or done % (CHUNK * 50) == 0 or done == arguments.count:
                print(f"{done:,} of {arguments.count:,} comments, {rate:,.0f}/s, no loss", end=end, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
