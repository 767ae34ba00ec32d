"""Freed memory of large models goes back to the system at once; it knows no models but their size."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

from torch import Tensor

LARGE = 2**28
"""Bytes of weights from which on it is worth it: pages that come anew must be cleared (docs/speed.md)."""
BLOCK = 2**20
"""Bytes from which on a block is given back: the gradient of a matrix, a layer's activations."""
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def give_back(weights: Iterable[Tensor]) -> bool:
    """Have glibc keep no freed block of `BLOCK` bytes or more, if the weights are many and on the CPU.

    By itself it comes to keep blocks of up to 32 MiB. Gradients and packed weights, which take turns, leave holes among
    them that the other does not fill.

    Returns:
        Whether it was told to, for the rest of the process; not elsewhere than on Linux. Another allocator in glibc's
        place does not hear of it.
    """
    size = sum(weight.nbytes for weight in weights if weight.device.type == "cpu")
    if size < LARGE or sys.platform != "linux":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and bool(set_option(_M_MMAP_THRESHOLD, BLOCK))
