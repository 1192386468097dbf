"""MarianMT's tokenizer on sentencepiece alone, without importing transformers.

A MarianMT folder holds two SentencePiece models and a vocabulary that numbers their pieces (its ids are not
SentencePiece's own). transformers' ``MarianTokenizer`` reads the same files; a test compares both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import regex
import sentencepiece

from translator.errors import ModelError
from translator.spans import PLACEHOLDERS

EOS, UNK, PAD = "</s>", "<unk>", "<pad>"
# Bytes that begin U+4000 to U+9FFF are pieces with which a model spells Chinese characters that it has no piece for.
_HAN = regex.compile(r"\p{Han}|^<0xE[4-9]>$")


class Vocabulary:
    """Pieces and ids of one MarianMT folder. Safe to share between threads.

    Args:
        folder: holds source.spm, target.spm and vocab.json (and target_vocab.json where the sides differ).
        target_prefix: control token put before every source, e.g. ``>>cmn_Hans<<``; empty for none.

    Raises:
        ModelError: a file is missing or malformed, or the prefix is not in the vocabulary.
    """

    def __init__(self, folder: Path, target_prefix: str = "") -> None:
        try:
            self._source = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
            self._target = sentencepiece.SentencePieceProcessor(model_file=str(folder / "target.spm"))
            source_ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            separate = folder / "target_vocab.json"
            target_ids: dict[str, int] = (
                json.loads(separate.read_text(encoding="utf-8")) if separate.exists() else source_ids
            )
            self.source_pieces = _by_id(source_ids)
            self.target_pieces = _by_id(target_ids)
            unknown = source_ids[UNK]
            self.eos_id = target_ids[EOS]
            self._suffix = [source_ids[EOS]]
            self._prefix = [source_ids[target_prefix]] if target_prefix else []
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"cannot read the vocabulary of {folder}: {error}") from error
        except KeyError as error:
            raise ModelError(f"the vocabulary of {folder} lacks {error}") from error
        spm = self._source
        self._to_id = [source_ids.get(spm.id_to_piece(i), unknown) for i in range(spm.get_piece_size())]
        # Control tokens must not come from text: opus-mt has `>>xxx<<` entries that spell like text.
        self._special = {target_ids[t] for t in (EOS, PAD) if t in target_ids} | {
            i for piece, i in target_ids.items() if piece.startswith(">>") and piece.endswith("<<")
        }
        self._known_target = [piece if piece != UNK else "" for piece in self.target_pieces]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Source ids of each text: prefix, pieces, end of sentence."""
        to_id = self._to_id
        encoded = self._source.encode(list(texts), out_type=int, num_threads=1)
        return [self._prefix + [to_id[i] for i in ids] + self._suffix for ids in encoded]

    def decode(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Text of target ids; control tokens and unknowns are left out."""
        pieces = self._known_target
        special = self._special
        return [
            self._target.decode_pieces([pieces[i] for i in ids if i not in special and pieces[i]]).strip()
            for ids in batch
        ]

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The masking symbols that this vocabulary has, as any model does that was fine-tuned from an embedded one."""
        known = tuple(symbol for symbol in PLACEHOLDERS if self.has_piece(symbol))
        return known if len(known) == len(PLACEHOLDERS) else ()

    def foreign_ids(self, pair: str) -> list[int]:
        """Target ids of pieces with Chinese characters if ``pair`` is into English; none if it is into Chinese."""
        if not pair.endswith("-en"):
            return []
        return [i for i, piece in enumerate(self.target_pieces) if _HAN.search(piece)]

    def has_piece(self, piece: str) -> bool:
        """Whether the source side reads ``piece`` as one known symbol and the target side can write it."""
        spm_id = self._source.piece_to_id(piece)
        return spm_id != self._source.unk_id() and piece in self.target_pieces


def _by_id(ids: dict[str, int]) -> list[str]:
    pieces = [UNK] * (max(ids.values()) + 1)
    for piece, index in ids.items():
        pieces[index] = piece
    return pieces
