"""What the handling of comments is worth: the same comments through the bare model and through the service.

    python bench/robustness.py comments.zh.txt [--source zh --target en] [--output translations.tsv]

One comment a line. "Bare" is what a plain wrapper does: the whole text to the model, its output to the user.
"Service" is translator.Translator (COMMENT_TRANSLATE_MODEL=... for another model). Counted are outputs that are
empty, that loop, that lack a protected span of the comment (in order, byte for byte), that are in the wrong
script, or that show a control token; those that the service holds back itself ("degraded": status set, what failed
stays as it was in the source) are counted apart. Last, the processor time of the text handling alone.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from pathlib import Path

from translator import Translator, guard, language, text
from translator.config import load_settings
from translator.guard import Problem
from translator.model import DecodingOptions, Model
from translator.service import Translation
from translator.spans import scan, without_spans

NAMES = {
    Problem.EMPTY: "empty",
    Problem.REPETITION: "loop",
    Problem.WRONG_SCRIPT: "wrong script or copied",
    Problem.COPIED: "wrong script or copied",
    Problem.CONTROL_TOKEN: "control token",
    Problem.LENGTH_RATIO: "absurd length",
}
ROWS = ("empty", "loop", "lost a span", "wrong script or copied", "control token", "absurd length")


def judge(comment: str, output: str, source: str, target: str) -> set[str]:
    """What is wrong with an output as a user sees it."""
    comment = text.normalise(comment)
    if not text.has_linguistic_content(comment):
        return set() if output.strip() == comment.strip() else {"lost a span"}
    faults, at = set(), 0
    for start, end, _ in scan(comment):
        at = output.find(comment[start:end], at)
        if at < 0:
            faults.add("lost a span")
            break
        at += end - start
    # Spans are judged above; what is left is judged as language.
    problem = guard.check(without_spans(comment).strip(), without_spans(output).strip(), source, target)
    if problem in NAMES:
        faults.add(NAMES[problem])
    return faults


def bare(model: Model, comments: list[str], options: DecodingOptions) -> list[str]:
    outputs: list[str] = []
    for start in range(0, len(comments), 64):
        ids = [tokens[: model.max_tokens] for tokens in model.encode(comments[start : start + 64])]
        outputs += model.decode(model.generate(ids, options))
    return outputs


async def run(comments: list[str], source: str, target: str) -> tuple[list[str], list[Translation]]:
    settings = load_settings()
    translator = Translator(settings)
    await translator.start()
    pair = f"{source[:2]}-{target[:2]}"
    model = translator.models[translator.default_model, pair]
    options = DecodingOptions(beam_size=settings.beam_size, length_penalty=settings.length_penalty)
    before = bare(model, comments, options)
    after: list[Translation] = []
    for start in range(0, len(comments), 256):
        result = await translator.translate(comments[start : start + 256], source=source, target=target)
        after += result.translations
    await translator.close()
    return before, after


def cost(comments: list[str], source: str, target: str) -> None:
    """Processor time of each step in microseconds a comment, the model left out."""
    normalised = [text.normalise(comment) for comment in comments]
    scan.cache_clear()
    parts = [text.segment(comment, source, target, placeholders=text.PLACEHOLDERS) for comment in normalised]
    sentences = [part for found in parts for part in found if isinstance(part, text.Sentence)]

    def restore() -> None:
        for found in parts:
            text.join([p if isinstance(p, str) else p.restore(p.text) or "" for p in found], source, target)

    steps = {
        "normalise": lambda: [text.normalise(comment) for comment in comments],
        "detect": lambda: [language.detect(comment) for comment in normalised],
        "content?": lambda: [text.has_linguistic_content(comment) for comment in normalised],
        "segment": lambda: [text.segment(comment, source, target) for comment in normalised],
        "guard": lambda: [guard.check(s.text, s.text[::-1], source, target) for s in sentences],
        "restore, join": restore,
    }
    total = 0.0
    for name, step in steps.items():
        scan.cache_clear()
        started = time.process_time()
        step()
        micros = (time.process_time() - started) / len(comments) * 1e6
        total += micros
        print(f"  {name:14} {micros:7.1f} µs a comment")
    length = sum(map(len, comments)) / len(comments)
    print(f"  {'all':14} {total:7.1f} µs a comment ({length:.1f} characters on average)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path)
    parser.add_argument("--source", default="zh")
    parser.add_argument("--target", default="en")
    parser.add_argument("--output", type=Path, help="write comment, bare output, service output, what became of it")
    arguments = parser.parse_args()
    source, target = (language.canonical(code) for code in (arguments.source, arguments.target))
    comments = arguments.file.read_text("utf-8").splitlines()
    before, after = asyncio.run(run(comments, source, target))

    counts: dict[str, Counter[str]] = {"bare": Counter(), "service": Counter()}
    rows = []
    for comment, output, translation in zip(comments, before, after, strict=True):
        counts["bare"].update(judge(comment, output, source, target))
        fate = translation.skip or ("degraded" if translation.error else "translated")
        counts["service"][fate] += 1
        if fate == "translated":
            counts["service"].update(judge(comment, translation.text, source, target))
        rows.append("\t".join(cell.replace("\n", "⏎") for cell in (comment, output, translation.text, fate)))
    print(f"{len(comments)} comments, {source} to {target}\n{'':24}{'bare':>8}{'service':>10}")
    for row in ROWS:
        print(f"  {row:22}{counts['bare'][row]:8}{counts['service'][row]:10}")
    fates = {name: n for name, n in counts["service"].items() if name not in ROWS}
    print("  service: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in fates.items()))
    cost(comments, source, target)
    if arguments.output:
        arguments.output.write_text("\n".join(rows) + "\n", "utf-8")


if __name__ == "__main__":
    main()
