"""Lexical shortlist: which target pieces a source piece can lead to, as a CTranslate2 vmap file.

The output layer is most of a small decoder's work. With a shortlist it is computed only for the
pieces that the batch's source pieces vote for, and the most frequent ones (Jean et al. 2015,
arXiv:1412.2007, section 3.2; the file format is CTranslate2's vocabulary mapping).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

import corpus
import packed


def build(
    data: Iterable[packed.Packed], vocab_size: int, *, votes: int = 60, frequent: int = 600
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Candidates from co-occurrence in sentence pairs.

    A target piece is ranked by ``count(s, t)**2 / (count(s) * count(t))``, the square of the cosine
    of their occurrence vectors, which prefers translations to pieces that occur everywhere.

    Returns:
        per source piece its ``votes`` candidates, shape ``(vocab_size, votes)``, -1 where there are
        fewer; and the ``frequent`` pieces that are always candidates.
    """
    sources, targets = [], []
    source_count = np.zeros(vocab_size)
    target_count = np.zeros(vocab_size)
    occurrences = np.zeros(vocab_size)
    for part in data:
        occurrences += np.bincount(part.target, minlength=vocab_size)
        for i in range(len(part)):
            here = np.unique(part.source_ids(i)).astype(np.int64)
            there = np.unique(part.target_ids(i)).astype(np.int64)
            source_count[here] += 1
            target_count[there] += 1
            sources.append(np.repeat(here, len(there)))
            targets.append(np.tile(there, len(here)))
    cell, count = np.unique(np.concatenate(sources) * vocab_size + np.concatenate(targets), return_counts=True)
    source, target = cell // vocab_size, cell % vocab_size
    score = count.astype(np.float64) ** 2 / (source_count[source] * target_count[target])
    order = np.lexsort((-score, source))
    source, target = source[order], target[order]
    rank = np.arange(len(source)) - np.searchsorted(source, source)
    kept = rank < votes
    table = np.full((vocab_size, votes), -1, dtype=np.int64)
    table[source[kept], rank[kept]] = target[kept]
    return table, np.argsort(-occurrences, kind="stable")[:frequent]


def write(
    path: Path,
    table: npt.NDArray[np.int64],
    frequent: npt.NDArray[np.int64],
    pieces: list[str],
    never: Collection[str] = (),
) -> None:
    """Write a vmap file: one source piece a line, a tab, its candidates; no piece first = always.

    Each piece is a candidate of itself, so that names and emoji can be copied. Control tokens,
    single bytes and placeholders are always candidates.

    Args:
        never: pieces that are no candidates.
    """
    always = [pieces[i] for i in frequent]
    always += [p for p in pieces if p.startswith("<0x") or p in ("</s>", "<unk>")]
    always += list(corpus.PLACEHOLDERS)

    def line(source: str, candidates: list[str]) -> str:
        return source + "\t" + " ".join(p for p in dict.fromkeys(candidates) if p not in never) + "\n"

    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(line("", always))
        for piece, row in zip(pieces, table, strict=True):
            file.write(line(piece, [piece, *(pieces[i] for i in row if i >= 0)]))
