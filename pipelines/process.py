"""Settings of the whole process that make training on a CPU fast; they change no result that matters."""

from __future__ import annotations

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP = 1 << 30


def prepare() -> None:
    """Flush denormal numbers to zero, and keep freed memory. Call before the first tensor operation.

    Adam's running means of rare words halve every few steps and soon are denormal, which the processor handles in
    microcode: an epoch then takes several times as long. And a padded batch allocates tens of megabytes a step; by
    default glibc gives them back to the kernel each time and pays for fresh zeroed pages.
    """
    # Threads inherit this flag from the one that starts them, hence before the first operation.
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEEP)
        libc.mallopt(M_TRIM_THRESHOLD, KEEP)
