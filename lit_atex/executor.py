"""What starts a run of a grid: processes of this machine, or anything else with the same one method.

It knows nothing of grids. Another executor (`ray_executor.py` is one) is a class with `start`, handed to
`ablate(..., executor=...)`.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

LOG = "log.txt"
"""In the run folder: what the run printed, over all attempts."""


def cores() -> int:
    """Those that this process may use, where the system tells (macOS does not), else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Handle(Protocol):
    """A run that was started. `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs.

        Raises:
            OSError: If it turned out that it could not be started.
        """

    def terminate(self) -> None:
        """Ask it to end; it goes on the next time."""


class Executor(Protocol):
    """Where runs take place. It must put what the run prints into `log.txt` of the folder, which all machines see."""

    def start(self, command: list[str], folder: Path, threads: int) -> Handle:
        """Start a command of `lit-atex`, without waiting for it."""


class Local:
    """Runs as processes of this machine; or of a cluster, if the program waits for its job, as `srun` does."""

    def __init__(self, program: Sequence[str] = (sys.executable, "-m", "lit_atex")) -> None:
        """Say what stands before the words of a run."""
        self.program = list(program)

    def start(self, command: list[str], folder: Path, threads: int) -> subprocess.Popen[bytes]:
        """Start it.

        Raises:
            ValueError: If the run is still going on, left by an `ablate` that was killed, or started by another.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOG, "ab") as log:
            try:
                # The process inherits the open file and with it the lock, which so lasts exactly as long as the run.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{folder} is being written by a run that goes on already") from None
            own = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
            return subprocess.Popen(
                [*self.program, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **own},
            )
