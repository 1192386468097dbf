"""MarianMT on CTranslate2: int8 on CPU, float16 or int8_float16 on CUDA.

A model that brings a lexical shortlist decodes about twice as fast on CPU: the output layer, most of a small decoder's
work, is computed only for the pieces that the batch's source pieces make likely.

The weights are converted once into the user's cache folder. Conversion needs torch, so it runs in a process
of its own: the server keeps neither torch's memory nor its import time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from threading import Event

import ctranslate2
from filelock import FileLock

from translator.errors import ConfigError, ModelError
from translator.model import DecodingOptions, ModelDescription
from translator.registry import SHORTLIST, ModelFolder
from translator.vocabulary import EOS, PAD, Vocabulary

log = logging.getLogger(__name__)

# Niceness of the threads that compute, above the process' own: so much that the event loop, which sleeps between
# events, gets a core at once when it wakes. With 3 it waited its turn, and of 1,000 calls/s gRPC shed 140 unseen.
MODEL_NICENESS = 8

# Marian's decoder starts from a zero vector, and the converter takes that for granted: it drops <pad>, whose row
# transformers starts from. A model trained with transformers may have put something there; without it the first word,
# and all that hang on it, come out worse. Such a model keeps its row.
_CONVERT = """
import sys, warnings
warnings.filterwarnings("ignore")
from transformers.utils import logging
logging.set_verbosity_error()
logging.disable_progress_bar()
from ctranslate2.converters import TransformersConverter
from ctranslate2.converters.transformers import BartLoader, MarianMTLoader

ordinary = {name: getattr(MarianMTLoader, name) for name in ("get_model_spec", "get_vocabulary", "set_config")}

def get_model_spec(self, model):
    row = model.get_input_embeddings().weight[model.config.decoder_start_token_id]
    self.keeps_start = bool((row != 0).any())
    if not self.keeps_start:
        return ordinary["get_model_spec"](self, model)
    model.config.normalize_before = model.config.normalize_embedding = False
    spec = BartLoader.get_model_spec(self, model)
    spec.decoder.start_from_zero_embedding = False
    return spec

def get_vocabulary(self, model, tokenizer):
    method = BartLoader.get_vocabulary if self.keeps_start else ordinary["get_vocabulary"]
    return method(self, model, tokenizer)

def set_config(self, config, model, tokenizer):
    ordinary["set_config"](self, config, model, tokenizer)
    if self.keeps_start:
        config.decoder_start_token = tokenizer.convert_ids_to_tokens(model.config.decoder_start_token_id)

for method in (get_model_spec, get_vocabulary, set_config):
    setattr(MarianMTLoader, method.__name__, method)
TransformersConverter(sys.argv[1]).convert(sys.argv[2], quantization=sys.argv[3], force=True)
"""
# Changes with the above, so that forms made by an older one are not used.
_FORM = 2


def convert(folder: ModelFolder, quantization: str, cache_dir: Path, cancelled: Event | None = None) -> Path:
    """CTranslate2 form of a MarianMT folder, converted if it is not yet in the cache.

    Processes that start together wait for one of them (file lock); the result appears whole or not at all
    (rename). The name holds the revision and CTranslate2's version, so a new one never reads an old form.

    Args:
        quantization: type of the stored weights: int8, float16, float32 ...
        cancelled: set on another thread, ends the conversion with an error.

    Raises:
        ModelError: the conversion failed; the message ends with the converter's own last line.
    """
    name = f"{folder.pair}-{folder.revision[:16]}-{quantization}-{version('ctranslate2')}.{_FORM}"
    target = cache_dir / "ct2" / folder.name.replace("/", "--") / name
    if (target / "model.bin").exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target) + ".lock"):
            if (target / "model.bin").exists():
                return target
            log.info("converting %s/%s for CTranslate2; this happens once", folder.name, folder.pair)
            work = Path(tempfile.mkdtemp(prefix=name + ".", dir=target.parent))
            try:
                command = [sys.executable, "-c", _CONVERT, str(folder.path), str(work / "model"), quantization]
                with subprocess.Popen(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
                ) as process:
                    messages = _wait(process, cancelled)
                if process.returncode:
                    last = (messages.strip().splitlines() or ["no message"])[-1]
                    raise ModelError(f"cannot convert {folder.path} for CTranslate2: {last}")
                if (folder.path / SHORTLIST).exists():
                    shutil.copyfile(folder.path / SHORTLIST, work / "model" / "vmap.txt")
                shutil.rmtree(target, ignore_errors=True)  # what somebody's clean-up left of an older form
                os.replace(work / "model", target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"cannot write the converted model to {target}: {error}; see cache_dir") from error
    return target


def _wait(process: subprocess.Popen[str], cancelled: Event | None) -> str:
    """What the process wrote to standard error; it is killed when ``cancelled`` is set."""
    while True:
        try:
            return process.communicate(timeout=0.1)[1]
        except subprocess.TimeoutExpired:
            if cancelled is not None and cancelled.is_set():
                process.kill()


def choose_compute_type(compute_type: str, device: str) -> str:
    """Settle ``auto`` and check that the device has the type.

    Raises:
        ConfigError: it has not; the message lists those that it has.
    """
    supported = ctranslate2.get_supported_compute_types(device)
    if compute_type == "auto":
        preferred = ("int8",) if device == "cpu" else ("float16", "int8_float16")
        return next((t for t in preferred if t in supported), "float32")
    if compute_type not in supported:
        raise ConfigError(
            f"compute_type: {compute_type!r} does not run on this {device}; "
            f"choose one of {', '.join(sorted(supported))}"
        )
    return compute_type


def stored_type(compute_type: str) -> str:
    """Type in which the converted weights are stored: all int8 variants compute from the same file."""
    return "int8" if compute_type.startswith("int8") else compute_type


def _yield_to_others() -> None:
    """Lower the priority of this thread and, since threads inherit it, of those that CTranslate2 is about to start.

    Under overload the event loop must still get to answer; with processor time to spare nothing changes.
    """
    if platform.system() == "Linux":  # elsewhere this would be the priority of the whole process
        with contextlib.suppress(OSError):
            os.nice(MODEL_NICENESS)


class Ct2Model:
    """One direction on CTranslate2. ``generate`` may run on ``workers`` threads at a time.

    Args:
        workers: batches translated in parallel; they share one copy of the weights.
        intra_threads: threads of one batch.
        cancelled: set on another thread, ends a conversion.
    """

    def __init__(
        self,
        folder: ModelFolder,
        device: str,
        compute_type: str,
        workers: int,
        intra_threads: int,
        cache_dir: Path,
        cancelled: Event | None = None,
    ) -> None:
        compute_type = choose_compute_type(compute_type, device)
        converted = convert(folder, stored_type(compute_type), cache_dir, cancelled)
        self._vocabulary = Vocabulary(folder.path, folder.target_prefix)
        try:
            # On a thread of its own, which ends: a thread without privileges cannot raise its priority again.
            with ThreadPoolExecutor(1, initializer=_yield_to_others) as thread:
                self._translator = thread.submit(
                    ctranslate2.Translator,
                    str(converted),
                    device=device,
                    compute_type=compute_type,
                    inter_threads=workers,
                    intra_threads=intra_threads,
                ).result()
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"cannot load {converted}: {error}; delete that folder to convert it anew") from error
        self._has_shortlist = (converted / "vmap.txt").exists()
        # The row that starts the decoder, where it was kept, is nothing to write.
        kept = [path for path in converted.glob("*vocabulary.json") if f'"{PAD}"' in path.read_text(encoding="utf-8")]
        self._never = [[PAD]] if kept else []
        pieces = self._vocabulary.target_pieces
        self._foreign = [[pieces[i]] for i in self._vocabulary.foreign_ids(folder.pair)]
        self._target_ids = {piece: i for i, piece in enumerate(pieces)}
        self._description = folder.describe("ct2", device, self._translator.compute_type, self._vocabulary.placeholders)
        self._max_tokens = folder.max_tokens
        self.encode = self._vocabulary.encode
        self.decode = self._vocabulary.decode

    @property
    def description(self) -> ModelDescription:
        return self._description

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def generate(self, batch: Sequence[Sequence[int]], options: DecodingOptions) -> list[list[int]]:
        pieces = self._vocabulary.source_pieces
        longest = max(len(ids) for ids in batch)
        never = self._never if options.han_in_english else self._never + self._foreign
        # Not both: given a shortlist and pieces to suppress, CTranslate2 4.8.5 bans the wrong ones and writes outside
        # its memory.
        shortlist = options.shortlist and self._has_shortlist and not never
        results = self._translator.translate_batch(
            [[pieces[i] for i in ids] for ids in batch],
            beam_size=options.beam_size,
            length_penalty=options.length_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            max_input_length=0,
            max_decoding_length=options.max_target_tokens(longest, self._max_tokens - 1),
            disable_unk=True,
            suppress_sequences=never or None,
            use_vmap=shortlist,
        )
        ids_of = self._target_ids
        return [[ids_of[t] for t in result.hypotheses[0] if t != EOS] for result in results]

    def close(self) -> None:
        self._translator.unload_model()
