"""MarianMT on torch: CPU and CUDA, bfloat16 or float16 where the hardware has it.

transformers loads the weights; ``translator.engines.decoding`` runs them. A model whose generation_config.json asks for
something else than plain greedy or beam search runs on transformers' ``generate``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import MarianMTModel
from transformers.utils import logging as transformers_logging

from translator.engines.decoding import Decoder, unsupported
from translator.errors import ConfigError, ModelError
from translator.model import DecodingOptions, ModelDescription
from translator.registry import ModelFolder
from translator.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _best_compute_type(device: str) -> str:
    """bfloat16 where the chip multiplies it natively; emulated, it is many times slower than float32."""
    if device == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return "float32"
    return "bfloat16" if " amx_bf16" in flags or " avx512_bf16" in flags else "float32"


def load_weights(folder: Path, device: str, compute_type: str) -> MarianMTModel:
    """A Marian folder as transformers' model, for inference; not yet on ``device``.

    Args:
        compute_type: float32, bfloat16 or float16.

    Raises:
        OSError, ValueError, RuntimeError: the folder holds no loadable Marian model.
    """
    # Eager attention beats the fused kernels at comment lengths on CPU.
    return MarianMTModel.from_pretrained(
        str(folder),
        dtype=_DTYPES[compute_type],
        attn_implementation="eager" if device == "cpu" else "sdpa",
        local_files_only=True,
    )


class TorchModel:
    """One direction on torch. One batch at a time: ``generate`` holds a lock.

    Args:
        intra_threads: threads of one batch on CPU. torch keeps one such number for the process.
    """

    def __init__(self, folder: ModelFolder, device: str, compute_type: str, intra_threads: int) -> None:
        if compute_type == "auto":
            compute_type = _best_compute_type(device)
        if compute_type not in _DTYPES:
            raise ConfigError(f"compute_type: the torch engine has {', '.join(_DTYPES)}, not {compute_type!r}")
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if device == "cpu":
            torch.set_num_threads(intra_threads)
        try:
            loaded = load_weights(folder.path, device, compute_type)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"cannot load {folder.path}: {error}") from error
        model = loaded.to(device).eval()  # type: ignore[arg-type]
        if reason := unsupported(model):
            log.info("%s/%s decodes with transformers' generate, which is slower: %s", folder.name, folder.pair, reason)
        self._translate: Decoder | Generate | None = Generate(model) if reason else Decoder(model)
        self._lock = Lock()
        self._vocabulary = Vocabulary(folder.path, folder.target_prefix)
        self._foreign = self._vocabulary.foreign_ids(folder.pair)
        self._max_tokens = folder.max_tokens
        self._description = folder.describe("torch", device, compute_type, self._vocabulary.placeholders)
        self.encode = self._vocabulary.encode
        self.decode = self._vocabulary.decode

    @property
    def description(self) -> ModelDescription:
        return self._description

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def generate(self, batch: Sequence[Sequence[int]], options: DecodingOptions) -> list[list[int]]:
        if not batch:
            return []
        longest = max(len(ids) for ids in batch)
        with self._lock:
            if self._translate is None:
                raise ModelError("the model is closed")
            return self._translate(
                batch,
                options.max_target_tokens(longest, self._max_tokens - 1),
                options,
                never=[] if options.han_in_english else self._foreign,
            )

    def close(self) -> None:
        with self._lock:
            self._translate = None


class Generate:
    """``Decoder``'s call on transformers' ``generate``."""

    def __init__(self, model: MarianMTModel) -> None:
        self._model = model
        ends = model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        self._pad: Any = model.config.pad_token_id

    def __call__(
        self, batch: Sequence[Sequence[int]], cap: int, options: DecodingOptions, never: Sequence[int] = ()
    ) -> list[list[int]]:
        input_ids = torch.full((len(batch), max(map(len, batch))), self._pad, dtype=torch.long)
        for row, ids in zip(input_ids, batch, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        input_ids = input_ids.to(self._model.device)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=input_ids,
                attention_mask=input_ids.ne(self._pad).long(),
                num_beams=options.beam_size,
                do_sample=False,
                length_penalty=options.length_penalty,
                no_repeat_ngram_size=options.no_repeat_ngram_size,
                suppress_tokens=list(never) or None,
                max_length=None,
                max_new_tokens=cap,
            ).tolist()
        translations = []
        for row in output:
            row = row[1:]  # the decoder's start token
            end = next((at for at, i in enumerate(row) if i in self._ends), len(row))
            translations.append([i for i in row[:end] if i != self._pad])
        return translations
