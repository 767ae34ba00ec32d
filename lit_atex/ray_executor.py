"""Runs of a grid as tasks of a Ray cluster: of several machines, or of one whose GPUs are to be shared out.

All machines have lit_atex installed, and see the folder that `ablate` is called in and those of the runs under the same
paths. On another machine a run has the environment of its `ray start`: HF_HOME and tokens are to be set there. It knows
nothing of grids.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_atex.executor import Local, cores

POLL = 0.2
"""Seconds between two looks at a run, on the machine where it takes place."""
PATIENCE = 10.0
"""Seconds to wait for a cluster to answer."""
STORE = 100 * 2**20
"""Bytes for what tasks hand to each other, which is an exit code."""


def _carry_out(program: Sequence[str] | None, command: list[str], folder: str, threads: int, where: str) -> int:
    """On the machine that Ray chose: the run as a process, which ends with the task."""
    os.chdir(where)
    # Ray cancels by SIGINT, which is ignored in all that a shell has started in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = (Local(program) if program else Local()).start(command, Path(folder), threads)
    try:
        while process.poll() is None:
            time.sleep(POLL)  # a task is cancelled between two instructions of Python's, not within a wait
        return process.returncode
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


class _Task:
    """A run that Ray was given, and that may still wait for a place."""

    def __init__(self, ray: Any, task: Any) -> None:
        self.ray, self.task = ray, task

    def poll(self) -> int | None:
        try:
            if not self.ray.wait([self.task], timeout=0)[0]:
                return None
            code: int = self.ray.get(self.task)
        except self.ray.exceptions.TaskCancelledError:
            return -signal.SIGTERM
        except self.ray.exceptions.RayTaskError as error:
            raise OSError(str(error.cause)) from None
        except self.ray.exceptions.RayError as error:
            raise OSError(f"Ray: {error}") from None
        return code

    def terminate(self) -> None:
        self.ray.cancel(self.task)


class Ray:
    """Runs as tasks of Ray, each with its cores and GPUs to itself; more than fit wait for their turn."""

    def __init__(self, address: str = "local", gpus: float | None = None, program: Sequence[str] | None = None) -> None:
        """Join a cluster, or make one of this machine's cores; or stay with the one that this process has joined.

        Args:
            address: "local": this machine alone; "auto": the cluster that it belongs to; or host:port.
            gpus: GPUs of each run, or a share of one. None: one if the cluster has any.
            program: What stands before the words of a run; None: this Python's `lit-atex`.

        Raises:
            ValueError: If Ray is not installed, or there is no such cluster.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise ValueError("--ray needs Ray: pip install 'lit-atex[ray]'") from None
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            quiet |= {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE}
        try:
            if address not in ("local", "auto"):  # where nobody answers, Ray goes on asking
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), PATIENCE).close()
            if not ray.is_initialized():
                ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: another version of Ray or Python there
            raise ValueError(f"--ray {address}: no cluster of Ray to join there ({error})") from None
        self.ray, self.program = ray, program
        self.gpus = gpus if gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)

    def room(self, threads: int) -> int:
        """How many runs with so many threads there is room for at a time, over all machines.

        Raises:
            ValueError: If no machine is large enough for one, so that it would wait for ever.
        """
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        places = [has.get("CPU", 0) // threads for has in machines]
        if self.gpus:
            places = [min(place, has.get("GPU", 0) // self.gpus) for place, has in zip(places, machines)]
        if not (room := int(sum(places))):
            raise ValueError(f"no machine of Ray's has {threads} cores and {self.gpus:g} GPUs (--threads, --gpus)")
        return room

    def start(self, command: list[str], folder: Path, threads: int) -> _Task:
        """Hand it to Ray.

        Raises:
            ValueError: If no machine is large enough for it.
        """
        self.room(threads)
        task = self.ray.remote(_carry_out).options(num_cpus=threads, num_gpus=self.gpus, max_retries=0)
        return _Task(self.ray, task.remote(self.program, command, str(folder), threads, os.getcwd()))
