"""What the rest of the library knows of a model: three methods and a description.

An engine under ``translator/engines/`` implements ``Model``; tests inject a fake one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

PAIRS = ("zh-en", "en-zh")


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How a batch is decoded. Part of the cache key, hence hashable.

    Args:
        beam_size: hypotheses kept at each step; 1 is greedy.
        length_penalty: exponent on the length that divides a hypothesis' score (beam search only).
        no_repeat_ngram_size: n-grams of this many tokens may not occur twice; 0 allows all.
        shortlist: compute only the target pieces that the source makes likely, where the model brings such a table.
        han_in_english: English outputs may hold Chinese characters, as a rare few must ("the character 好 means").
        max_length_factor: cap of the output in tokens, per source token ...
        max_length_offset: ... plus this many, never more than the model's positions. Short inputs that loop
            would otherwise run on to the last position.
    """

    beam_size: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    shortlist: bool = True
    han_in_english: bool = True
    max_length_factor: float = 3.0
    max_length_offset: int = 16

    def max_target_tokens(self, source_tokens: int, limit: int) -> int:
        """Cap of the output for a source of ``source_tokens`` tokens."""
        return min(limit, int(source_tokens * self.max_length_factor) + self.max_length_offset)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Identity of a loaded model, as shown to users and used in cache keys.

    Args:
        name: family, e.g. ``embedded``.
        pair: ``zh-en`` or ``en-zh``.
        revision: commit of the Hub repository, or a hash of a local folder's files.
        license: SPDX name of the licence of the weights, or ``unknown``.
        placeholders: symbols that the model copies unchanged, in the order in which masking uses them.
    """

    name: str
    pair: str
    revision: str
    license: str
    engine: str
    device: str
    compute_type: str
    placeholders: tuple[str, ...] = field(default=())
    id: str = field(init=False, repr=False, compare=False)
    """Everything that may change an output, in one string. Made once: every key of the cache refers to it."""

    def __post_init__(self) -> None:
        parts = (self.name, self.pair, self.revision, self.engine, self.device, self.compute_type)
        object.__setattr__(self, "id", "/".join(parts))


class Model(Protocol):
    """One translation direction.

    ``encode`` runs on the event loop's thread, ``generate`` and ``decode`` on worker threads, several at a
    time; an engine must allow that.
    """

    @property
    def description(self) -> ModelDescription: ...

    @property
    def max_tokens(self) -> int:
        """Positions of the model: most tokens of a source or a target, end-of-sentence included."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, end-of-sentence included, not truncated.

        Text never becomes a control token, whatever it spells.
        """
        ...

    def generate(self, batch: Sequence[Sequence[int]], options: DecodingOptions) -> list[list[int]]:
        """Translate token ids; the answer has the length and order of ``batch``, without control tokens."""
        ...

    def decode(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Text of each sequence of target token ids."""
        ...

    def close(self) -> None:
        """Free the model's memory. Idempotent."""
        ...
