"""Greedy and beam search for MarianMT: what transformers' ``generate`` says, sooner.

Where the time goes in ``generate`` and does not go here:

* a step is some twenty calls a layer, without modules, masks and cache objects in between
* the scores of the vocabulary are gone over once or twice, where each rule of ``generate`` makes a copy of them; the
  best of a row are sought among the best of its blocks
* the weights are packed for the CPU's matrix products once, and not anew at each step, which counts at 2 to 8 rows
* the beams of a sentence share its source's keys and values
* finished sentences leave the batch, where ``generate`` goes on with them until the last one ends

Shapes are those of ``translator.engines.network``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import MarianMTModel

from translator.engines.network import BLOCK, Cache, Network
from translator.model import DecodingOptions

# Fields of a GenerationConfig that are honoured here, that the caller overrides, or that change no output.
_KNOWN = {
    "_from_model_config", "bad_words_ids", "bos_token_id", "decoder_start_token_id", "do_sample", "eos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "no_repeat_ngram_size", "num_beams", "output_attentions",
    "output_hidden_states", "pad_token_id", "renormalize_logits", "temperature", "top_k", "top_p",
    "transformers_version", "use_cache",
}  # fmt: skip
# The batch is compacted when this share of its sentences is left; between 0.75 and 1 it makes no difference.
_COMPACT_AT = 0.9
# transformers' stand-in for minus infinity in beam scores; equal outputs need equal arithmetic.
_NEVER = -1.0e9


def unsupported(model: MarianMTModel) -> str:
    """Why ``Decoder`` would not say what ``model.generate`` says; empty if it would."""
    config = model.generation_config
    for name, value in config.to_diff_dict().items():
        if name not in _KNOWN:
            return f"generation_config.json sets {name} to {value!r}"
    if any(len(word) != 1 for word in config.bad_words_ids or []):
        return "bad_words_ids has words of several tokens"
    if not isinstance(config.eos_token_id, int) or not isinstance(config.forced_eos_token_id, int | None):
        return "there are several end-of-sentence tokens"
    if config.pad_token_id is None or config.decoder_start_token_id is None:
        return "pad_token_id or decoder_start_token_id is missing"
    return ""


class Decoder:
    """A MarianMT model with its search. One call at a time.

    Args:
        model: one for which ``unsupported`` is empty; not needed afterwards.
        static: see ``Network``.
    """

    def __init__(self, model: MarianMTModel, *, static: bool | None = None) -> None:
        config = model.generation_config
        self._network = Network(model, static=static)
        self._device = model.device
        self._positions: int = model.config.max_position_embeddings
        self._start: int = config.decoder_start_token_id
        self._eos: int = config.eos_token_id
        self._pad: int = config.pad_token_id
        self._forced_eos: int | None = config.forced_eos_token_id
        self._renormalize = bool(config.renormalize_logits)
        self._banned = torch.tensor([i for [i] in config.bad_words_ids or []], dtype=torch.long, device=self._device)

    def __call__(
        self, batch: Sequence[Sequence[int]], cap: int, options: DecodingOptions, never: Sequence[int] = ()
    ) -> list[list[int]]:
        """Translate.

        Args:
            batch: source ids, end-of-sentence included.
            cap: most tokens of an output, end-of-sentence included; less than the model's positions.
            options: beams, length penalty and n-gram rule; the rest is the caller's.
            never: target ids that are not to be written.

        Returns:
            Target ids of each source, without control tokens.
        """
        if not batch or cap < 1:
            return [[] for _ in batch]
        # Fillers are sentences of nothing but their end, and count as finished.
        size = self._network.rounded(len(batch))
        longest = min(self._network.rounded(max(map(len, batch))), self._positions)
        ids = torch.full((size, longest), self._pad, dtype=torch.long)
        ids[:, 0] = self._eos
        for row, source in zip(ids, batch, strict=False):
            row[: len(source)] = torch.tensor(source)
        banned = torch.cat((self._banned, torch.tensor(never, dtype=torch.long, device=self._device)))
        with torch.inference_mode():
            cache = self._network.start(ids.to(self._device), options.beam_size, self._start)
            done = torch.arange(size, device=self._device) >= len(batch)
            search = self._greedy if options.beam_size == 1 else self._beam_search
            outputs = search(cache, done, cap, options, banned)
        translations = []
        for row in outputs[: len(batch), 1:].tolist():
            end = row.index(self._eos) if self._eos in row else len(row)
            translations.append([i for i in row[:end] if i != self._pad])
        return translations

    def _compacted(self, done: Tensor, left: int) -> Tensor | None:
        """Sentences to go on with, where shapes are static finished ones among them; None: all, it would not pay.

        Args:
            left: how many are not ``done``.
        """
        size = len(done)
        if left > _COMPACT_AT * size or (smaller := self._network.rounded(left)) >= size:
            return None
        return done.byte().argsort(stable=True)[:smaller]

    @staticmethod
    def _forbid(scores: Tensor, written: Tensor, banned: Tensor, size: int) -> Tensor:
        """Ban, in place, ``banned`` pieces and those that would repeat an n-gram of ``size`` tokens.

        Args:
            scores: (rows, V).
            written: tokens of each row so far (rows, length), the decoder's start included.
        """
        scores.index_fill_(1, banned, -torch.inf)
        if 0 < size <= written.shape[1]:
            windows = written.unfold(1, size, 1)
            repeated = (windows[..., :-1] == written[:, None, written.shape[1] + 1 - size :]).all(-1)
            bans = torch.where(repeated, -torch.inf, torch.inf).to(scores.dtype)
            scores.scatter_reduce_(1, windows[..., -1], bans, "amin")
        return scores

    def _best(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Values and columns (rows, count) of the best of each row, best first.

        They lie in those blocks whose own best are the best: one fast pass over the row finds the blocks.
        """
        blocks = scores.view(len(scores), -1, BLOCK)
        count_of_blocks = min(count, blocks.shape[1])
        chosen = blocks.amax(2).topk(count_of_blocks).indices
        values, at = blocks.gather(1, chosen.unsqueeze(2).expand(-1, -1, BLOCK)).flatten(1).topk(count)
        return values, chosen.gather(1, at // BLOCK) * BLOCK + at % BLOCK

    def _greedy(self, cache: Cache, done: Tensor, cap: int, options: DecodingOptions, banned: Tensor) -> Tensor:
        """The likeliest token at each step (S, 1 + cap); behind its end a row holds anything."""
        outputs = torch.full((len(done), 1 + cap), self._pad, device=self._device)
        outputs[:, 0] = self._start
        index = torch.arange(len(done), device=self._device)
        # A forced end needs no computing.
        for step in range(cap - (self._forced_eos is not None)):
            logits = self._network.next_logits(cache, step)
            scores = self._forbid(logits, outputs[index, : step + 1], banned, options.no_repeat_ngram_size)
            blocks = scores.view(len(scores), -1, BLOCK)
            chosen = blocks.amax(2).argmax(1)
            within = blocks.gather(1, chosen[:, None, None].expand(-1, 1, BLOCK)).argmax(2)
            tokens = chosen * BLOCK + within[:, 0]
            outputs[index, step + 1] = tokens
            done = done | (tokens == self._eos)
            if not (left := len(done) - int(done.sum())):
                break
            if (kept := self._compacted(done, left)) is not None:
                index, done, tokens = index[kept], done[kept], tokens[kept]
            cache = self._network.moved(cache, step + 1, kept, kept)
            cache.tokens.copy_(tokens)
        return outputs

    def _beam_search(self, cache: Cache, done: Tensor, cap: int, options: DecodingOptions, banned: Tensor) -> Tensor:
        """The best hypothesis of each sentence (S, 1 + cap), padded.

        As in transformers' ``GenerationMixin._beam_search`` with ``early_stopping=False``, step for step: of twice as
        many candidates as beams, those that end compete for the finished hypotheses if they are among the best
        ``beams``; the others go on. A sentence is finished when its best running score, divided by its present
        length to the power of ``length_penalty``, does not pass its worst finished one.
        """
        beams, length_penalty, no_repeat = options.beam_size, options.length_penalty, options.no_repeat_ngram_size
        count, device = len(done), self._device
        result = torch.full((count, 1 + cap), self._pad, device=device)
        index = torch.arange(count, device=device)
        running = torch.full((count, beams, 1 + cap), self._pad, device=device)
        running[:, :, 0] = self._start
        scores = torch.full((count, beams), _NEVER, device=device)
        scores[:, 0] = 0
        finished = running.clone()
        finished_scores = torch.full((count, beams), _NEVER, device=device)
        is_finished = torch.zeros((count, beams), dtype=torch.bool, device=device)
        among_best = torch.arange(2 * beams, device=device) < beams

        def of_beams(values: Tensor, at: Tensor) -> Tensor:
            return values.gather(1, at.unsqueeze(2).expand(-1, -1, values.shape[2]) if values.dim() == 3 else at)

        for step in range(cap):
            last = step + 1 == cap
            if last and self._forced_eos is not None:
                values, columns = self._forced(len(done) * beams, 2 * beams)
            else:
                likely = self._network.next_logits(cache, step)
                written = running[:, :, : step + 1].flatten(0, 1)
                if self._renormalize:
                    likely = self._forbid(likely, written, banned, no_repeat).log_softmax(1)
                else:
                    likely = self._forbid(likely.log_softmax(1), written, banned, no_repeat)
                values, columns = self._best(likely, 2 * beams)
            # Of all candidates of a sentence, the best are among the best of each beam.
            values = (values.view(-1, beams, 2 * beams) + scores.unsqueeze(2)).flatten(1)
            values, at = values.topk(2 * beams)
            parents, tokens = at // (2 * beams), columns.view(len(done), -1).gather(1, at)
            candidates = of_beams(running, parents)
            candidates[:, :, step + 1] = tokens
            ends = (tokens == self._eos) | last

            scores, at = (values + ends * _NEVER).topk(beams)
            running, parents = of_beams(candidates, at), of_beams(parents, at)

            ended = ends & among_best
            values = values / (step + 1) ** length_penalty + ~ended * _NEVER + done.unsqueeze(1) * _NEVER
            finished_scores, at = torch.cat((finished_scores, values), 1).topk(beams)
            finished = of_beams(torch.cat((finished, candidates), 1), at)
            is_finished = of_beams(torch.cat((is_finished, ended), 1), at)
            worst = torch.where(is_finished, finished_scores.amin(1, keepdim=True), _NEVER)
            done = done | (scores[:, :1] / (step + 1) ** length_penalty <= worst).all(1)
            if last or not (left := len(done) - int(done.sum())):
                break

            kept = self._compacted(done, left)
            rows = parents + beams * torch.arange(len(done), device=device).unsqueeze(1)
            tokens = running[:, :, step + 1]
            if kept is not None:
                result[index] = finished[:, 0]
                index, done, running, scores, rows, tokens = (
                    t[kept] for t in (index, done, running, scores, rows, tokens)
                )
                finished, finished_scores, is_finished = finished[kept], finished_scores[kept], is_finished[kept]
            cache = self._network.moved(cache, step + 1, rows.flatten(), kept)
            cache.tokens.copy_(tokens.flatten())
        result[index] = finished[:, 0]
        return result

    def _forced(self, rows: int, count: int) -> tuple[Tensor, Tensor]:
        """What ``_best`` gives when nothing but the forced end may come."""
        values = torch.full((rows, count), -torch.inf, device=self._device)
        values[:, 0] = 0
        assert self._forced_eos is not None
        return values, torch.full((rows, count), self._forced_eos, device=self._device)
