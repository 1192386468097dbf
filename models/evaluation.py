"""Score a Marian folder on development sets: BLEU, chrF, empty outputs and loops."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import MarianMTModel

import corpus
import network
import packed

_LOOP = re.compile(r"(.{2,60}?)\1{3,}", re.DOTALL)
# What people repeat: their laughter is one character in Chinese ("哈哈哈哈") and two in English ("hahahaha").
_REPEATED = re.compile(r"(.{1,60}?)\1{3,}", re.DOTALL)


@dataclass(frozen=True)
class Score:
    """Quality and speed of one set of translations."""

    name: str
    lines: int
    bleu: float
    chrf: float
    empty: int
    loops: int
    sentences_per_second: float


def output_cap(source_pieces: int) -> int:
    """Most target pieces for a source of that length; ample for true translations."""
    return 2 * source_pieces + 20


class Engine:
    """Translates lists of texts with CTranslate2 or transformers.

    Args:
        folder: Marian folder (``config.json``, weights, ``source.spm``, ``target.spm``,
            ``vocab.json``).
        engine: ``ctranslate2`` or ``transformers``.
        compute_type: CTranslate2's, for instance ``int8`` or ``float32``.
        vmap: lexical shortlist, see ``shortlist``; CTranslate2 only.
        threads: CPU threads.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engine: str = "ctranslate2",
        compute_type: str = "int8",
        vmap: Path | None = None,
        threads: int = 1,
    ) -> None:
        self._tokenizer = packed.Tokenizer(folder)
        self._vmap = vmap is not None
        self._torch: MarianMTModel | None = None
        if engine == "transformers":
            self._torch = network.load(folder)
            self._torch.train(False)
            return
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        with tempfile.TemporaryDirectory() as scratch:
            converted = Path(scratch) / "model"
            TransformersConverter(str(folder)).convert(str(converted), vmap=str(vmap) if vmap else None)
            self._ct2 = ctranslate2.Translator(
                str(converted), device="cpu", compute_type=compute_type, intra_threads=threads
            )

    def translate(self, texts: Sequence[str], *, beam_size: int = 1, max_batch_tokens: int = 2048) -> list[str]:
        """Translate texts; the answer has the length and order of ``texts``."""
        pieces = [self._tokenizer.source_pieces(text) for text in texts]
        out = [""] * len(texts)
        for rows in _batches(pieces, max_batch_tokens):
            cap = output_cap(max(len(pieces[i]) for i in rows))
            results = self._generate([pieces[i] for i in rows], beam_size, cap)
            for i, result in zip(rows, results, strict=True):
                out[i] = result
        return out

    def _generate(self, batch: list[list[str]], beam_size: int, cap: int) -> list[str]:
        if self._torch is None:
            results = self._ct2.translate_batch(
                batch,
                beam_size=beam_size,
                max_decoding_length=cap,
                max_batch_size=0,
                use_vmap=self._vmap,
            )
            return [self._tokenizer.text(r.hypotheses[0]) for r in results]
        pad = network.pad_id(self._torch)
        ids = [self._tokenizer.ids(pieces) for pieces in batch]
        longest = max(map(len, ids))
        source = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
        with torch.inference_mode():
            output = self._torch.generate(
                input_ids=source,
                attention_mask=source.ne(pad).long(),
                num_beams=beam_size,
                max_new_tokens=cap,
                do_sample=False,
            )
        return [self._tokenizer.text_from_ids(row) for row in output.tolist()]


def _batches(pieces: list[list[str]], max_tokens: int) -> Iterator[list[int]]:
    """Row numbers of neighbours in length, at most ``max_tokens`` padded pieces each."""
    rows: list[int] = []
    for i in sorted(range(len(pieces)), key=lambda i: len(pieces[i])):
        if rows and len(pieces[i]) * (len(rows) + 1) > max_tokens:
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


def is_loop(output: str, source: str, reference: str) -> bool:
    """Whether the output repeats something four times running and no human text did."""
    return bool(_LOOP.search(output)) and not (_REPEATED.search(source) or _REPEATED.search(reference))


def score(
    engine: Engine, pair: str, path: Path, *, beam_size: int = 1, limit: int | None = None
) -> tuple[Score, list[tuple[str, str, str]]]:
    """Score one development file.

    Returns:
        the score, and per line (source, reference, output).
    """
    import sacrebleu

    lines = list(corpus.read_lines(path))[:limit]
    sources, references = map(list, zip(*(line.sides(pair) for line in lines), strict=True))
    start = time.perf_counter()
    outputs = engine.translate(sources, beam_size=beam_size)
    seconds = time.perf_counter() - start
    tokenize = "zh" if pair == "en-zh" else "13a"
    rows = list(zip(sources, references, outputs, strict=True))
    result = Score(
        name=path.stem,
        lines=len(rows),
        bleu=round(sacrebleu.corpus_bleu(outputs, [references], tokenize=tokenize).score, 2),
        chrf=round(sacrebleu.corpus_chrf(outputs, [references]).score, 2),
        empty=sum(not output.strip() for output in outputs),
        loops=sum(is_loop(o, s, r) for s, r, o in rows),
        sentences_per_second=round(len(rows) / seconds, 1),
    )
    return result, rows
