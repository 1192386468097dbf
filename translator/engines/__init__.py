"""Engines: the same MarianMT weights run by CTranslate2 or by transformers.

``load`` imports only the engine that it needs: torch alone costs seconds and hundreds of megabytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from translator.errors import ConfigError

if TYPE_CHECKING:
    from threading import Event

    from translator.config import Settings
    from translator.model import Model
    from translator.registry import ModelFolder


def available_cores() -> int:
    """Cores that this process may run on: its affinity, and its cgroup's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores


def resolve(settings: Settings) -> tuple[Literal["ct2", "torch"], Literal["cpu", "cuda"], int, int]:
    """Settle every ``auto``.

    Returns:
        engine, device, number of workers (batches in the model at a time), threads of one batch.

    Raises:
        ConfigError: cuda was asked for and the engine cannot use it here.
    """
    engine: Literal["ct2", "torch"] = "torch" if settings.engine == "torch" else "ct2"
    if engine == "ct2":
        import ctranslate2

        usable = ctranslate2.get_cuda_device_count() > 0
    else:
        import torch

        usable = torch.cuda.is_available()
    if settings.device == "cuda" and not usable:
        raise ConfigError(f"device: cuda was asked for, but engine {engine} sees no usable GPU here")
    device: Literal["cpu", "cuda"] = "cuda" if usable and settings.device != "cpu" else "cpu"
    cores = available_cores()
    # CTranslate2 scales better over batches than within one; a GPU or torch takes one batch at a time.
    workers = settings.workers or (cores if engine == "ct2" and device == "cpu" else 1)
    return engine, device, workers, settings.intra_threads or max(1, cores // workers)


def load(folder: ModelFolder, settings: Settings, cancelled: Event | None = None) -> Model:
    """Load one direction with the engine that ``settings`` ask for. Blocks for up to some seconds.

    Args:
        cancelled: set on another thread, ends a conversion.

    Raises:
        ModelError: the files cannot be read, converted or loaded.
        ConfigError: a setting does not fit this machine.
    """
    engine, device, workers, intra_threads = resolve(settings)
    if engine == "torch":
        from translator.engines.marian_torch import TorchModel

        return TorchModel(folder, device, settings.compute_type, intra_threads)
    from translator.engines.marian_ct2 import Ct2Model

    return Ct2Model(folder, device, settings.compute_type, workers, intra_threads, settings.cache_dir, cancelled)
