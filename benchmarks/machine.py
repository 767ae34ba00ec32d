"""What a benchmark asks of the machine that it runs on: the device, its clock, its memory. A GPU if there is one.

A GPU works on while the host has gone ahead: whoever reads a clock waits for it first.
"""

import resource
import time
from pathlib import Path

import torch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def wait() -> None:
    """Until the device has done what it was given."""
    if ON_GPU:
        torch.cuda.synchronize()


def clock() -> float:
    """Seconds, once the device is done."""
    wait()
    return time.perf_counter()


def own_clock() -> float:
    """Seconds that other work on the machine does not touch: this process's on a CPU; on a GPU those of the clock."""
    return clock() if ON_GPU else time.process_time()


def used() -> int:
    """Bytes in use now: tensors on the GPU, or the resident set of this process."""
    if ON_GPU:
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most bytes that were in use."""
    if ON_GPU:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
