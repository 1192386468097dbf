"""The training loop: options, learning rate, weight average, validation, checkpoints and log."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import evaluation
import network
import packed

WEIGHTS = {
    "comments": 1.0, "comments+": 0.35, "comments_real": 1.5, "comments_real+": 0.5,
    "chat": 0.8, "chat+": 0.15, "chat_mt_zh": 0.15, "chat_mt_en": 0.3, "game": 0.12,
    "game+": 0.04, "dictionary": 0.25, "docs": 0.008, "ui": 0.02, "bible": 0.01,
}  # fmt: skip
"""Copies of each data source in one round of training; absent sources are skipped."""

LAST_WEIGHTS = {
    "comments": 2.0, "comments+": 0.5, "comments_real": 2.0, "comments_real+": 0.5,
    "chat": 0.5, "chat+": 0.1, "dictionary": 0.08, "game": 0.06, "game+": 0.03, "docs": 0.005,
    "ui": 0.01,
}  # fmt: skip
"""The same for the cool-down, which ends on comments."""


@dataclass
class Options:
    """What a run was asked to do.

    Attributes:
        steps: updates in all; cooldown: how many of them at the end fall to a rate of zero and
            draw from ``last_weights``.
        warmup: updates until the full ``learning_rate``.
        max_tokens: padded pieces (longer side) in one update.
        negatives: pieces drawn for the sampled softmax; 0 = whole vocabulary (see
            ``network.Loss``).
        smoothing: label smoothing.
        average: decay of the exponential weight average, per update.
        every: updates between validations; score_every: between translations of the held-out
            sets for BLEU and chrF (0 = never); score_lines: how many lines of each.
        save_every: updates between checkpoints.
        patience: validations without a better loss before the run stops; 0 = never.
        curriculum: updates until the longest pairs are let in; 0 = from the start.
    """

    pair: str
    steps: int
    cooldown: int = 0
    warmup: int = 300
    learning_rate: float = 6e-4
    max_tokens: int = 1500
    negatives: int = 1500
    smoothing: float = 0.1
    average: float = 0.999
    seed: int = 1
    every: int = 200
    score_every: int = 0
    score_lines: int = 200
    save_every: int = 200
    patience: int = 0
    curriculum: int = 0
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    last_weights: dict[str, float] = field(default_factory=lambda: dict(LAST_WEIGHTS))


def learning_rate(options: Options, step: int) -> float:
    """Linear warm-up, constant, then linear to zero in the last ``cooldown`` updates.

    A constant rate with a short cool-down lets a run be lengthened after the fact (Hägele et al.
    2024, arXiv:2405.18392).
    """
    up = min(1.0, (step + 1) / max(options.warmup, 1))
    down = min(1.0, (options.steps - step) / max(options.cooldown, 1)) if options.cooldown else 1.0
    return options.learning_rate * min(up, max(down, 0.0))


def pick_device(name: str) -> torch.device:
    """``auto`` is the first GPU, or else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Run:
    """One training run in a folder.

    The folder holds ``start/`` (the model begun from), ``checkpoint.pt`` (all that resuming
    needs), ``best.pt`` (averaged weights of the best validation) and ``log.jsonl``. Checkpoints
    are replaced atomically, so that a kill at any moment loses only the updates since the last
    one; a resumed run then goes on as the uninterrupted one would have. Not thread-safe.

    Args:
        start: Marian folder to begin from.
        sources: training data by name, see ``Options.weights``.
        dev: held-out data by name, for the validation loss.
        dev_files: held-out TSV files to translate for BLEU and chrF.
        dropout: overrides that of ``start``.

    Raises:
        ValueError: no source has a weight.
    """

    def __init__(
        self,
        folder: Path,
        start: Path,
        sources: dict[str, packed.Packed],
        dev: dict[str, packed.Packed],
        options: Options,
        *,
        device: torch.device,
        dev_files: list[Path] | None = None,
        dropout: float | None = None,
    ) -> None:
        self.folder = folder
        self.options = options
        self.device = device
        self.start = folder / "start"
        if not self.start.exists():
            shutil.copytree(start, self.start)
        self.model = network.load(self.start, dropout)
        self.model.to(device)  # type: ignore[arg-type]
        # <pad> starts the decoder. Marian, and CTranslate2 with it, starts from a zero vector, so
        # its row must be zero and stay so; the softmax would push it away.
        self.pad = network.pad_id(self.model)
        self.embeddings = network.embeddings(self.model)
        for embedding in self.embeddings:
            embedding.data[self.pad] = 0.0
        self.names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=0.0, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=True
        )
        self.step = 0
        self.taken = {"main": 0, "last": 0}
        self.best = math.inf
        self.since_best = 0
        self.loss = network.Loss(
            frequency(sources, options.weights, self.model.config.vocab_size),
            options.negatives,
            options.smoothing,
        )
        self.mixtures = {
            phase: packed.Mixture(sources, weights, max_tokens=options.max_tokens, pad=self.pad, seed=options.seed)
            for phase, weights in (("main", options.weights), ("last", options.last_weights))
            if phase == "main" or options.cooldown
        }
        self.dev = {name: packed.in_order(data, self.pad) for name, data in dev.items()}
        self.dev_files = dev_files or []

    def train(self) -> None:
        """Run to the last update, or until the validation loss has stopped falling."""
        options = self.options
        self._log("start", step=self.step, device=str(self.device), options=asdict(options))
        batches = self._batches()
        tokens, total, clock = 0, torch.zeros((), device=self.device), time.monotonic()
        self.model.train()
        while self.step < options.steps:
            loss, count = self._update(next(batches))
            tokens += count
            total += loss * count
            self.step += 1
            last = self.step == options.steps
            if self.step % options.every == 0 or last:
                record = {
                    "loss": round(float(total) / tokens, 4),
                    "learning_rate": learning_rate(options, self.step),
                    "tokens_per_second": round(tokens / (time.monotonic() - clock)),
                }
                scored = options.score_every and (self.step % options.score_every == 0 or last)
                record |= self.validate(score=bool(scored))
                self._log("step", step=self.step, **record)
                tokens, total, clock = 0, torch.zeros_like(total), time.monotonic()
                if 0 < options.patience <= self.since_best:
                    self._log("stopped early", step=self.step)
                    break
            if self.step % options.save_every == 0:
                self.save()
        self.save()

    def _batches(self) -> Iterator[packed.Batch]:
        options = self.options
        streams: dict[str, Iterator[packed.Batch]] = {}
        while True:
            cooling = options.cooldown and self.step >= options.steps - options.cooldown
            phase = "last" if cooling else "main"
            if phase not in streams:
                streams[phase] = self.mixtures[phase].batches(self.taken[phase])
            batch = next(streams[phase])
            self.taken[phase] += 1
            longest = max(batch.source.shape[1], batch.target.shape[1])
            # Short pairs first: word order is learnt after what the words mean.
            if self.step >= options.curriculum or longest <= 6 + 60 * self.step // (options.curriculum):
                yield batch

    def _update(self, batch: packed.Batch) -> tuple[Tensor, int]:
        # Negatives and dropout depend on the step only, so that a resumed run repeats them.
        torch.manual_seed(self.options.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, self.step)
        source = torch.from_numpy(batch.source).to(self.device)
        target = torch.from_numpy(batch.target).to(self.device)
        with _autocast(self.device):
            loss, count = self.loss(self.model, source, target)
        torch.autograd.backward(loss)
        for embedding in self.embeddings:
            assert embedding.grad is not None
            embedding.grad[self.pad] = 0.0
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # A short memory at first, or the starting weights would linger in the average.
        decay = min(self.options.average, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        return loss.detach(), count

    @torch.no_grad()
    def validate(self, *, score: bool = False) -> dict[str, float]:
        """Check the averaged weights on the held-out data, and keep them if they are the best.

        Returns:
            by held-out set, nats per piece with the right sources (``NAME_loss``) and with
            shuffled ones (``NAME_shuffled``): the gap says how much the model translates rather
            than guesses; with ``score`` also ``NAME_bleu`` and ``NAME_chrf`` (greedy).
        """
        scores: dict[str, float] = {}
        with self._averaged():
            for name, batches in self.dev.items():
                scores[f"{name}_loss"] = self._dev_loss(batches, shift=0)
                scores[f"{name}_shuffled"] = self._dev_loss(batches, shift=1)
        mean = sum(v for k, v in scores.items() if k.endswith("_loss"))
        self.since_best += 1
        if mean < self.best:
            self.best, self.since_best = mean, 0
            self._write("best.pt", {"step": self.step, "average": self._named(self.average)})
        if score:
            with tempfile.TemporaryDirectory() as scratch:
                self._export(Path(scratch), self._named(self.average))
                engine = evaluation.Engine(Path(scratch), compute_type="float32")
                for path in self.dev_files:
                    result, _ = evaluation.score(engine, self.options.pair, path, limit=self.options.score_lines)
                    scores |= {f"{path.stem}_bleu": result.bleu, f"{path.stem}_chrf": result.chrf}
        return scores

    def _dev_loss(self, batches: list[packed.Batch], shift: int) -> float:
        total = pieces = 0.0
        for batch in batches:
            source = torch.from_numpy(batch.source).roll(shift, dims=0).to(self.device)
            target = torch.from_numpy(batch.target).to(self.device)
            with _autocast(self.device):
                loss, count = self.loss(self.model, source, target, full=True)
            total += float(loss) * count
            pieces += count
        return round(total / max(pieces, 1), 4)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        self._swap()
        self.model.train(False)
        yield
        self.model.train()
        self._swap()

    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data, average.data = average.data, parameter.data

    def _named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        return {n: v.detach().cpu() for n, v in zip(self.names, values, strict=True)}

    def _write(self, name: str, state: dict[str, Any]) -> None:
        scratch = self.folder / f"{name}.tmp"
        torch.save(state, scratch)
        scratch.replace(self.folder / name)

    def save(self) -> None:
        """Write ``checkpoint.pt``."""
        self._write(
            "checkpoint.pt",
            {
                "step": self.step,
                "taken": self.taken,
                "best": self.best,
                "since_best": self.since_best,
                "weights": self._named(self.parameters),
                "average": self._named(self.average),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def resume(self) -> bool:
        """Continue from ``checkpoint.pt``; False if there is none."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.step, self.taken = state["step"], state["taken"]
        self.best, self.since_best = state["best"], state["since_best"]
        for mine, saved in ((self.parameters, "weights"), (self.average, "average")):
            for name, parameter in zip(self.names, mine, strict=True):
                parameter.data.copy_(state[saved][name])
        self.optimizer.load_state_dict(state["optimizer"])
        return True

    def _export(self, out: Path, weights: dict[str, Tensor]) -> None:
        network.export(self.start, weights, out, self.options.pair)

    def _log(self, event: str, **values: Any) -> None:
        record = {"event": event, "time": round(time.time(), 1), **values}
        line = json.dumps(record, ensure_ascii=False)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def export_run(folder: Path, out: Path, pair: str, which: str = "last") -> int:
    """Write the averaged weights of a run's ``last`` checkpoint or ``best`` validation.

    Returns:
        the number of updates behind them.

    Raises:
        FileNotFoundError: the run has no such checkpoint yet.
    """
    name = "best.pt" if which == "best" else "checkpoint.pt"
    state = torch.load(folder / name, map_location="cpu", weights_only=True)
    network.export(folder / "start", state["average"], out, pair)
    step: int = state["step"]
    return step


def frequency(
    sources: dict[str, packed.Packed], weights: dict[str, float], vocab_size: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How often each piece is a target in one round."""
    counts = np.zeros(vocab_size)
    for name, weight in weights.items():
        if name in sources:
            counts += weight * np.bincount(sources[name].target, minlength=vocab_size)
            counts[packed.EOS] += weight * len(sources[name])
    return counts.astype(np.int64)


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware computes in it; on other CPUs it is many times slower."""
    usable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=usable)
