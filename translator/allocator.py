"""Settings of the C library's allocator.

A batch needs large short-lived buffers. By default glibc takes each from the kernel with mmap and gives it back at
once, so every batch pays for thousands of page faults; on virtual machines that can cost more than the arithmetic.
"""

from __future__ import annotations

import ctypes
import platform

# Numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory(arenas: int = 0) -> bool:
    """Make glibc keep and reuse freed buffers instead of returning them to the kernel.

    Call it before threads start. Does nothing without glibc (musl, macOS, Windows).

    Args:
        arenas: most arenas; each worker thread may otherwise hold one of its own. 0 leaves glibc's default.

    Returns:
        Whether the settings were taken.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    taken = mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, 16 * 2**20)
    if arenas:
        taken = mallopt(_M_ARENA_MAX, arenas) and taken
    return bool(taken)
