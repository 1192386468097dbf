"""Tokenizer and packed training data: text becomes flat arrays of 16-bit piece ids.

``prepare`` turns a data folder into one folder that holds all that training needs::

    source.spm  target.spm  vocab.json    one joint SentencePiece model and its Marian vocabulary
    both/NAME.npz                         zh and en ids of one data source, and their lengths
    PAIR/NAME.npz  PAIR/NAME+.npz         what serves one direction only: source and target ids
    dev/NAME.tsv                          the held-out sets, copied

so that it can be carried to another machine, and no text is cleaned or encoded twice.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as spm_proto

import corpus

EOS = 0
"""Id of ``</s>`` in every vocabulary made here (Marian's convention)."""

COPIES = {"comments": 3.0, "comments_real": 3.0, "chat": 1.0, "game": 0.5}
"""Altered copies of each pair that ``prepare`` makes, by data source."""

ALPHA = {"zh": 0.2, "en": 0.5}
"""How far the source segmentation of altered copies may stray from the best, by source language (see
``Tokenizer.source_pieces``). With these, copies are 5 to 7 % longer, and two of three are segmented anew."""

Ids = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Packed:
    """Pairs of one data source as flat ids.

    ``source`` and ``target`` are the concatenated ids without ``</s>``; pair ``i`` is
    ``source[source_at[i]:source_at[i + 1]]`` and likewise for the target.
    """

    source: Ids
    target: Ids
    source_at: npt.NDArray[np.int64]
    target_at: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source_at) - 1

    def source_ids(self, i: int) -> Ids:
        """Source of pair ``i``."""
        return self.source[self.source_at[i] : self.source_at[i + 1]]

    def target_ids(self, i: int) -> Ids:
        """Target of pair ``i``."""
        return self.target[self.target_at[i] : self.target_at[i + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Pieces with ``</s>``, shape ``(pairs, 2)``: source, target."""
        return np.stack([np.diff(self.source_at), np.diff(self.target_at)], axis=1) + 1

    def flipped(self) -> Packed:
        """The same pairs with source and target exchanged."""
        return Packed(self.target, self.source, self.target_at, self.source_at)

    def save(self, path: Path) -> None:
        """Write a compressed ``.npz``; lengths are stored, not offsets, because they are small."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            source=self.source,
            target=self.target,
            source_lengths=np.diff(self.source_at).astype(np.uint16),
            target_lengths=np.diff(self.target_at).astype(np.uint16),
        )

    @classmethod
    def load(cls, path: Path) -> Packed:
        with np.load(path) as file:
            return cls(
                file["source"],
                file["target"],
                _offsets(file["source_lengths"]),
                _offsets(file["target_lengths"]),
            )

    @classmethod
    def from_lists(cls, pairs: Iterable[tuple[list[int], list[int]]]) -> Packed:
        sources, targets = [], []
        for source, target in pairs:
            sources.append(np.asarray(source, dtype=np.uint16))
            targets.append(np.asarray(target, dtype=np.uint16))
        empty = [np.zeros(0, dtype=np.uint16)]
        return cls(
            np.concatenate(sources or empty),
            np.concatenate(targets or empty),
            _offsets([len(ids) for ids in sources]),
            _offsets([len(ids) for ids in targets]),
        )


def _offsets(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


def train_tokenizer(lines: Iterable[corpus.Line], vocab_size: int, path: Path) -> None:
    """Train a joint unigram model with byte fallback and the reserved placeholder symbols.

    ``vocab_size`` counts ``<pad>``, which lives only in ``vocab.json``. Text is not normalised: the
    caller does that, and what it leaves must survive a round trip.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(side for line in lines for side in (line.zh, line.en)),
        model_prefix=str(path.with_suffix("")),
        vocab_size=vocab_size - 1,
        model_type="unigram",
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        user_defined_symbols=list(corpus.PLACEHOLDERS),
        bos_id=-1,
        pad_id=-1,
        eos_id=EOS,
        unk_id=1,
        num_threads=4,
        input_sentence_size=600_000,
        hard_vocab_limit=False,
        minloglevel=1,
    )
    path.with_suffix(".model").rename(path)
    path.with_suffix(".vocab").unlink()


def reserve_placeholders(model: bytes, texts: Iterable[str]) -> bytes:
    """Turn the 16 pieces that ``texts`` use least into the placeholder symbols.

    The vocabulary keeps its size and every other piece its id, so a trained model only has 16 rows
    of its embedding to learn anew; the text of a removed piece is still spelt with others. A model
    that has the symbols is returned as it is.
    """
    proto: Any = spm_proto.ModelProto.FromString(model)  # type: ignore[attr-defined]
    if any(piece.piece == corpus.PLACEHOLDERS[0] for piece in proto.pieces):
        return model
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    counts = np.zeros(len(proto.pieces), dtype=np.int64)
    for text in texts:
        np.add.at(counts, processor.encode(text), 1)
    kind = type(proto).SentencePiece.Type
    normal = [i for i, piece in enumerate(proto.pieces) if piece.type == kind.NORMAL]
    rarest = sorted(normal, key=lambda i: (counts[i], -i))[: len(corpus.PLACEHOLDERS)]
    for index, symbol in zip(sorted(rarest), corpus.PLACEHOLDERS, strict=True):
        proto.pieces[index].piece = symbol
        proto.pieces[index].type = kind.USER_DEFINED
        proto.pieces[index].score = 0.0
    proto.trainer_spec.user_defined_symbols.extend(corpus.PLACEHOLDERS)
    changed: bytes = proto.SerializeToString()
    return changed


def write_vocabulary(spm: Path) -> None:
    """Write ``vocab.json`` beside a SentencePiece model: the same ids, and ``<pad>`` last."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<pad>"])}
    spm.with_name("vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")


class Tokenizer:
    """Text to ids and back for any Marian folder, also with two SentencePiece models.

    Piece strings go through ``vocab.json`` as Marian does it, so that text such as ``</s>`` or
    ``<pad>`` in a comment never becomes a control token. Multilingual opus-mt models want the
    target language in front; ``prefix`` is that token or None.

    Raises:
        FileNotFoundError: the folder lacks a SentencePiece model or the vocabulary.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("source.spm", "target.spm", "vocab.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is no Marian folder: it has no {name}")
        self._source = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
        self._target = sentencepiece.SentencePieceProcessor(model_file=str(folder / "target.spm"))
        self._vocabulary = _read_vocabulary(folder / "vocab.json")
        separate = folder / "target_vocab.json"
        self._target_vocabulary = _read_vocabulary(separate) if separate.is_file() else self._vocabulary
        self._target_pieces = {i: piece for piece, i in self._target_vocabulary.items()}
        self.prefix = next((p for p in (">>cmn_Hans<<",) if p in self._vocabulary), None)

    @property
    def pieces(self) -> list[str]:
        """All target pieces, by id."""
        return [self._target_pieces[i] for i in range(len(self._target_pieces))]

    def source_pieces(self, text: str, alpha: float = 0.0) -> list[str]:
        """Pieces with the language prefix, if the model wants one, and ``</s>``.

        Args:
            alpha: when > 0, a segmentation drawn from all possible ones instead of the best; the smaller, the more
                they vary (subword regularisation: Kudo 2018, arXiv:1804.10959).
        """
        sampling: dict[str, Any] = {"enable_sampling": True, "alpha": alpha, "nbest_size": -1} if alpha else {}
        pieces: list[str] = self._source.encode(text, out_type=str, **sampling)
        return [*([self.prefix] if self.prefix else []), *pieces, "</s>"]

    def ids(self, pieces: list[str]) -> list[int]:
        """Source ids of pieces."""
        unknown = self._vocabulary["<unk>"]
        return [self._vocabulary.get(piece, unknown) for piece in pieces]

    def source_ids(self, text: str, alpha: float = 0.0) -> list[int]:
        """Source ids without ``</s>``, as ``Packed`` holds them; ``alpha``: see ``source_pieces``."""
        return self.ids(self.source_pieces(text, alpha)[:-1])

    def target_ids(self, text: str) -> list[int]:
        """Target ids without ``</s>``, as ``Packed`` holds them."""
        unknown = self._target_vocabulary["<unk>"]
        pieces: list[str] = self._target.encode(text, out_type=str)
        return [self._target_vocabulary.get(piece, unknown) for piece in pieces]

    def text(self, pieces: list[str]) -> str:
        """Target text of pieces; control tokens are left out."""
        kept = [piece for piece in pieces if piece not in ("</s>", "<pad>", "<unk>")]
        decoded: str = self._target.decode_pieces(kept)
        return decoded.strip()

    def text_from_ids(self, ids: list[int]) -> str:
        """Target text of ids."""
        return self.text([self._target_pieces[i] for i in ids])


def _read_vocabulary(path: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    return vocabulary


def pack(
    tokenizer: Tokenizer, pairs: Iterable[corpus.Pair], max_pieces: int | None = None, alpha: float = 0.0
) -> Packed:
    """Encode ``(source, target)`` texts; pairs with an empty or a too long side are left out.

    ``alpha``: see ``Tokenizer.source_pieces``.
    """
    ids = ((tokenizer.source_ids(source, alpha), tokenizer.target_ids(target)) for source, target in pairs)
    return Packed.from_lists((s, t) for s, t in ids if s and t and (not max_pieces or max(len(s), len(t)) < max_pieces))


def load_sources(data: Path, pair: str) -> dict[str, Packed]:
    """The packed training data of one direction, by name.

    Raises:
        FileNotFoundError: ``prepare`` has not been run into that folder.
    """
    both = {path.stem: Packed.load(path) for path in sorted((data / "both").glob("*.npz"))}
    sources = {name: part if pair == "zh-en" else part.flipped() for name, part in both.items()}
    sources |= {path.stem: Packed.load(path) for path in sorted((data / pair).glob("*.npz"))}
    if not sources:
        raise FileNotFoundError(f"no packed data in {data / pair}; run `train.py prepare` first")
    return sources


def load_dev(data: Path, pair: str, limit: int) -> dict[str, Packed]:
    """The first ``limit`` pairs of each held-out set in a folder written by ``prepare``."""
    tokenizer = Tokenizer(data)
    return {
        path.stem: pack(tokenizer, (line.sides(pair) for line in list(corpus.read_lines(path))[:limit]), 256)
        for path in sorted((data / "dev").glob("*.tsv"))
    }


def _hant() -> Callable[[str], str] | None:
    """Simplified to Traditional, if the optional ``opencc`` package is there."""
    try:
        import opencc
    except ImportError:
        return None
    convert: Callable[[str], str] = opencc.OpenCC("s2t").convert
    return convert


def _altered(pair: str, pairs: list[corpus.Pair], copies: float, seed: int) -> Iterator[corpus.Pair]:
    """``copies`` altered versions of each pair on average, plus a joined text for every third."""
    rng = random.Random(f"{seed}/{pair}/{len(pairs)}")
    hant = _hant()
    short = [p for p in pairs if len(p[0]) + len(p[1]) < 160]
    for source, target in pairs:
        for _ in range(int(copies + rng.random())):
            altered = corpus.augment(pair, source, target, rng, hant)
            if altered != (source, target):
                yield altered
    if len(short) < 4:
        return
    for _ in range(int(len(pairs) * copies / 6)):
        some = rng.sample(short, rng.choice((2, 2, 2, 3, 3, 4)))
        yield corpus.join(some, pair == "zh-en", rng)


def prepare(
    data: Path,
    out: Path,
    *,
    tokenizer: Path | None,
    vocab_size: int,
    max_pieces: int,
    copies: dict[str, float],
    seed: int = 1,
    log: Callable[[str], None] = print,
) -> None:
    """Clean, encode and pack a data folder.

    Args:
        data: folder with ``train/`` and ``dev/`` (see ``corpus``).
        out: folder to write; created.
        tokenizer: SentencePiece model to keep, with placeholders reserved in it if it lacks them;
            None trains one of ``vocab_size`` pieces.
        max_pieces: pairs with a longer side (in pieces) are dropped.
        copies: altered versions per pair and data source, written as ``NAME+`` (a source of its
            own, so that it has its own weight).

    Raises:
        FileNotFoundError: there is no training file.
        ValueError: a line of a file is malformed.
    """
    files = sorted((data / "train").glob("*.tsv*"))
    if not files:
        raise FileNotFoundError(f"no *.tsv or *.tsv.xz in {data / 'train'}")
    (out / "dev").mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "dev").glob("*.tsv")):
        shutil.copyfile(path, out / "dev" / path.name)
    forbidden = corpus.held_out(data)
    sources = {corpus.source_name(path): list(corpus.clean(corpus.read_lines(path), forbidden)) for path in files}
    everything = [line for lines in sources.values() for line in lines]
    spm = out / "source.spm"
    if tokenizer is None:
        train_tokenizer(everything, vocab_size, spm)
    else:
        texts = (side for line in everything for side in (line.zh, line.en))
        spm.write_bytes(reserve_placeholders(tokenizer.read_bytes(), texts))
    shutil.copyfile(spm, out / "target.spm")
    write_vocabulary(spm)
    encoder = Tokenizer(out)
    for name, lines in sources.items():
        allowed = corpus.directions(name)
        one_way = allowed[0] if len(allowed) == 1 else None
        packed = pack(encoder, (line.sides(one_way or "zh-en") for line in lines), max_pieces)
        packed.save(out / (one_way or "both") / f"{name}.npz")
        log(f"{name}: {len(packed)} pairs")
        for pair in allowed:
            pairs = [line.sides(pair) for line in lines]
            if copies.get(name, 0.0) > 0:
                sentencepiece.set_random_generator_seed(seed)
                packed = pack(encoder, _altered(pair, pairs, copies[name], seed), max_pieces, ALPHA[pair[:2]])
                packed.save(out / pair / f"{name}+.npz")
                log(f"{pair} {name}+: {len(packed)} altered pairs")


@dataclass(frozen=True)
class Batch:
    """Padded ids: ``source (rows, s)``, ``target (rows, t)``; ``</s>`` ends each row."""

    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]


class Mixture:
    """An endless, repeatable stream of batches over weighted data sources.

    Rounds are numbered; round ``r`` holds each source ``weight`` times (its fraction drawn anew),
    is shuffled, cut into batches of neighbours in length and shuffled again. The stream is a
    function of the seed and of how many batches were taken, which is how training resumes.

    Args:
        sources: name -> pairs; weights: name -> copies a round, absent = 0.
        max_tokens: padded target pieces in one batch (the longer side counts).
        pad: id to pad with.
    """

    def __init__(
        self,
        sources: dict[str, Packed],
        weights: dict[str, float],
        *,
        max_tokens: int,
        pad: int,
        seed: int,
    ) -> None:
        self._sources = [(sources[n], w) for n, w in weights.items() if n in sources and w > 0]
        if not self._sources:
            raise ValueError(f"no data source of {sorted(sources)} has a weight in {weights}")
        self._max_tokens = max_tokens
        self._pad = pad
        self._seed = seed

    def batches(self, skip: int = 0) -> Iterator[Batch]:
        """All batches from number ``skip`` on."""
        number = 0
        while True:
            rng = np.random.default_rng((self._seed, number))
            plan = self._plan(rng)
            number += 1
            if skip >= len(plan):
                skip -= len(plan)
                continue
            for rows in plan[skip:]:
                yield self._build(rows)
            skip = 0

    def _plan(self, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
        rows, lengths = [], []
        for index, (packed, weight) in enumerate(self._sources):
            whole, rest = divmod(weight, 1.0)
            picked = np.concatenate(
                [np.arange(len(packed))] * int(whole) + [rng.permutation(len(packed))[: int(rest * len(packed))]]
            ).astype(np.int64)
            rows.append(np.stack([np.full_like(picked, index), picked], axis=1))
            lengths.append(packed.lengths[picked])
        table = np.concatenate(rows)
        size = np.concatenate(lengths)
        order = rng.permutation(len(table))
        # Sorting all rows would fix which sentences meet; the noise mixes near neighbours.
        rank = size[order].max(axis=1) + rng.random(len(order)) * 1.5
        order = order[np.argsort(rank, kind="stable")]
        longest = size[order].max(axis=1)
        plan, start = [], 0
        while start < len(order):
            end, most = start, 0
            while end < len(order):
                most = max(most, int(longest[end]))
                if end > start and most * (end + 1 - start) > self._max_tokens:
                    break
                end += 1
            plan.append(table[order[start:end]])
            start = end
        return [plan[i] for i in rng.permutation(len(plan))]

    def _build(self, rows: npt.NDArray[np.int64]) -> Batch:
        sources, targets = [], []
        for index, row in rows:
            packed = self._sources[index][0]
            sources.append(packed.source_ids(row))
            targets.append(packed.target_ids(row))
        return Batch(pad_rows(sources, self._pad), pad_rows(targets, self._pad))


def in_order(data: Packed, pad: int, rows: int = 64) -> list[Batch]:
    """All pairs once, by length, in batches of ``rows``: for validation."""
    order = np.argsort(data.lengths.sum(axis=1), kind="stable")
    return [
        Batch(
            pad_rows([data.source_ids(i) for i in order[start : start + rows]], pad),
            pad_rows([data.target_ids(i) for i in order[start : start + rows]], pad),
        )
        for start in range(0, len(order), rows)
    ]


def pad_rows(rows: list[Ids], pad: int) -> npt.NDArray[np.int64]:
    """Append ``</s>`` to each row and pad on the right: ``(rows, longest + 1)``."""
    out = np.full((len(rows), max(map(len, rows)) + 1), pad, dtype=np.int64)
    for i, ids in enumerate(rows):
        out[i, : len(ids)] = ids
        out[i, len(ids)] = EOS
    return out
