"""How often detection is right, by length of the text, and what it costs.

    python bench/detection.py [--lingua] [dev/comments.tsv ...]

Texts: the hand-written cases beside this file, and both sides of each parallel file (tab-separated: origin, zh,
en), as they are and clipped to their first 1 to 10 characters (English to whole words). A hand-written case
counts only if the very code is right; of the others only zh and en are told apart. With --lingua the same texts go
through lingua-language-detector (if installed), restricted to the languages of the cases.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from translator.language import detect
from translator.spans import without_spans
from translator.text import normalise

CASES = Path(__file__).with_name("detection_cases.tsv")
BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 20, 50, 10_000)
LINGUA = {
    "CHINESE": "zh", "ENGLISH": "en", "JAPANESE": "ja", "KOREAN": "ko", "RUSSIAN": "ru", "ARABIC": "ar",
    "THAI": "th", "HINDI": "hi",
    "GREEK": "el", "HEBREW": "he", "SPANISH": "es", "PORTUGUESE": "pt", "FRENCH": "fr", "GERMAN": "de",
    "ITALIAN": "it", "DUTCH": "nl",
    "INDONESIAN": "id", "TAGALOG": "tl", "VIETNAMESE": "vi", "TURKISH": "tr", "POLISH": "pl", "SWEDISH": "sv",
}  # fmt: skip


def cases() -> list[tuple[str, str]]:
    """The hand-written (language, text) pairs."""
    lines = CASES.read_text("utf-8").splitlines()[2:]
    return [(language, text) for language, text in (line.split("\t") for line in lines)]


def parallel(path: Path) -> list[tuple[str, str]]:
    """Both sides of a file, whole and clipped."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        _, zh, en = line.split("\t")[:3]
        found += [("zh", zh), ("en", en)]
        found += [("zh", zh[:n]) for n in range(1, min(11, len(zh)))]
        words = en.split()
        found += [("en", " ".join(words[:n])) for n in range(1, len(words)) if len(" ".join(words[:n])) <= 10]
    # Clipping leaves texts that say nothing ("“", "3") or are names in the other script: not the detector's fault.
    return [(language, text) for language, text in found if _belongs(language, without_spans(normalise(text)))]


def _belongs(language: str, text: str) -> bool:
    han = sum("\u4e00" <= c <= "\u9fff" for c in text)
    latin = sum(c.isascii() and c.isalpha() for c in text)
    return han > latin / 3 if language == "zh" else latin > 2 * han and latin > 0


def rules(text: str) -> str:
    return detect(normalise(text)).language


def lingua() -> Callable[[str], str]:
    import lingua as library  # type: ignore[import-not-found]  # not a dependency, only measured

    languages = [getattr(library.Language, name) for name in LINGUA]
    detector = library.LanguageDetectorBuilder.from_languages(*languages).with_preloaded_language_models().build()

    def run(text: str) -> str:
        found = detector.detect_language_of(text)
        return LINGUA[found.name] if found else "und"

    return run


def measure(name: str, build: Callable[[], Callable[[str], str]], sets: dict[str, list[tuple[str, str]]]) -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    run = build()
    run("你好 hello")
    loading = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"\n{name}: ready in {loading:.2f} s, {grown / 1024:.0f} MB")
    for title, texts in sets.items():
        right: dict[int, int] = defaultdict(int)
        count: dict[int, int] = defaultdict(int)
        wrong = []
        started = time.perf_counter()
        answers = [run(text) for _, text in texts]
        cost = (time.perf_counter() - started) / len(texts) * 1e6
        for (language, text), answer in zip(texts, answers, strict=True):
            exact = title == "cases" and name == "rules"
            same = answer == language if exact else _coarse(answer) == _coarse(language)
            bucket = next(limit for limit in BUCKETS if len(text) <= limit)
            count[bucket] += 1
            right[bucket] += same
            if not same:
                wrong.append(f"{text}={answer}")
        total = 100 * sum(right.values()) / len(texts)
        print(f"  {title}: {len(texts)} texts, {total:.2f} % right, {cost:.0f} µs a text")
        by_length = (
            f"≤{limit}: {100 * right[limit] / count[limit]:.1f} ({count[limit]})" for limit in BUCKETS if count[limit]
        )
        print("    by characters: " + "  ".join(by_length))
        print("    wrong, e.g.: " + "  ".join(wrong[:: max(1, len(wrong) // 12)][:12]))


def _coarse(language: str) -> str:
    return language if language in ("en", "und", "zh-Latn") else "zh" if language.startswith("zh") else "other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", type=Path, help="parallel files")
    parser.add_argument("--lingua", action="store_true", help="measure lingua-language-detector too")
    arguments = parser.parse_args()
    sets = {"cases": cases()} | {path.stem: parallel(path) for path in arguments.files}
    measure("rules", lambda: rules, sets)
    if arguments.lingua:
        # It knows no pinyin, and nothing of texts without language.
        known = {
            name: [(lang, t) for lang, t in texts if lang not in ("und", "zh-Latn")] for name, texts in sets.items()
        }
        measure("rules, on the same texts", lambda: rules, known)
        measure("lingua", lingua, known)


if __name__ == "__main__":
    main()
