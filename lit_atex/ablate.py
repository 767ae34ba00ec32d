"""`lit-atex ablate GRID.yaml`: the runs of a grid, one folder each; what is finished is skipped, what broke goes on.

It spells out command lines, has an `Executor` start them, and looks into run folders; it knows nothing of training.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from lit_atex import grid as grids
from lit_atex import whole
from lit_atex.console import OneLine
from lit_atex.executor import LOG, Executor, Handle, Local, cores
from lit_atex.grid import read_grid, try_out
from lit_atex.jobs import Job, counted, display, is_finished, jobs_of
from lit_atex.report import GRID, report

POLL = 0.5
"""Seconds between two looks at the runs."""
GRACE = 30.0
"""Seconds that runs have to end by themselves when `ablate` is stopped."""


def carry_out(jobs: list[Job], executor: Executor, at_once: int, threads: int, console: Console) -> None:
    """Do what is not finished, so many at a time; a run that fails stops no other.

    Raises:
        BaseException: Whatever interrupts it, after the runs have ended, which go on the next time.
    """
    waiting = deque(job for job in jobs if job.state == "waiting")
    running: list[tuple[Job, Handle]] = []
    with display(jobs, console) as show:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.popleft()
                    job.state, job.began = "running", time.monotonic()
                    try:
                        running.append((job, executor.start(job.command(), job.folder, threads)))
                    except (OSError, ValueError) as error:
                        job.state, job.note = "failed", str(error)
                    show(job)
                time.sleep(POLL)
                for job, handle in list(running):
                    end = _end(handle)
                    job.took = time.monotonic() - job.began
                    if end is not None:
                        running.remove((job, handle))
                        job.state = "done" if is_finished(job.folder) else "failed"
                        job.note = "" if job.state == "done" else end
                        show(job)
                show(None)
        except BaseException:  # Ctrl-C; or what is written to is closed, as by `| head`: no run is left behind
            _stop(running)
            for job, handle in running:
                ended = _end(handle) is not None
                job.state = "done" if ended and is_finished(job.folder) else "stopped"
                job.note = "" if job.state == "done" else "goes on the next time" if ended else "does not end"
                show(job)
            raise


def _end(handle: Handle) -> str | None:
    """How a run ended; None: it has not."""
    try:
        code = handle.poll()
    except OSError as error:
        return str(error)
    return None if code is None else f"exit code {code}"


def _stop(running: list[tuple[Job, Handle]]) -> None:
    for _, handle in running:
        with contextlib.suppress(OSError):  # it has just ended
            handle.terminate()
    last = time.monotonic() + GRACE
    while time.monotonic() < last and any(_end(handle) is None for _, handle in running):
        time.sleep(0.1)


def ablate(
    grid: str, out: str | None = None, jobs: int | None = None, threads: int | None = None, dry_run: bool = False,
    ray: str | None = None, gpus: float | None = None, executor: Executor | None = None,
) -> None:  # fmt: skip
    """Run a grid, and report on it.

    Args:
        grid: The YAML file; see `lit_atex/grid.py`.
        out: The folder of the runs; None: runs/<name of the grid>.
        jobs: Runs at a time, >= 1; None: one, or with Ray as many as it has room for.
        threads: Threads of each; None: the cores, shared out, or with Ray one.
        dry_run: Only check the grid and say what would be done.
        ray: Have a cluster of Ray start the runs: its address, or "local" to make one of this machine.
        gpus: GPUs of each run, with Ray; None: one if it has any.
        executor: What starts the runs; None: processes of this machine, or Ray.

    Raises:
        ValueError: If the grid, a number or a run folder is not as it must be. Nothing has been started then.
        SystemExit: If a run failed, or would not start (1), or `ablate` was interrupted (130).
    """
    if any(number is not None and number < 1 for number in (jobs, threads)):
        raise ValueError(f"--jobs and --threads must be at least 1, got {jobs} and {threads}.")
    if gpus is not None and (ray is None or gpus < 0):
        raise ValueError(f"--gpus is for --ray, and at least 0; got --gpus {gpus:g} --ray {ray}.")
    read = read_grid(grid)
    folder = Path(out) if out else Path("runs") / read.path.stem
    todo = jobs_of(read.runs(), folder)
    console = Console(highlight=False)
    if dry_run:
        _preview(todo, console)
    try:
        try_out([job.run for job in todo if job.state != "finished"])
    except ValueError as error:
        if not dry_run:
            raise
        console.print(Text(f"# would not start: {error}"), soft_wrap=True)
        raise SystemExit(1) from None
    if dry_run:
        return
    folder.mkdir(parents=True, exist_ok=True)
    whole.write_json(folder / GRID, asdict(read) | {"path": str(read.path)})  # a later report asks what this one does
    if executor is None and ray is not None:
        from lit_atex.ray_executor import Ray

        cluster, threads = Ray(ray, gpus), threads or 1
        executor, jobs = cluster, jobs or cluster.room(threads)
    at_once = jobs or 1
    try:
        with _terminated_is_interrupted():
            carry_out(todo, executor or Local(), at_once, threads or max(1, cores() // at_once), console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        raise SystemExit(130) from None
    if any(job.state in ("finished", "done") for job in todo):
        _report(folder, console)
    if failed := [job for job in todo if job.state == "failed"]:
        for job in failed:
            heading = f"\n{job.run.name} failed: {job.note}. The end of {job.folder / LOG}:"
            console.print(Text(heading, "bold"), soft_wrap=True)
            console.print(Text(job.tail()), soft_wrap=True)
        console.print(f"\n{len(failed)} of {len(todo)} runs failed; the same command tries them again")
        raise SystemExit(1)


def _preview(jobs: list[Job], console: Console) -> None:
    """Say how far each run is, and with which command it would go on."""
    for job in jobs:
        console.print(Text(f"# {job.run.name}: {job.state}{f', {job.note}' if job.note else ''}"), soft_wrap=True)
        if job.state != "finished":
            console.print(Text(shlex.join(["lit-atex", *job.command()])), soft_wrap=True)
    console.print(f"# {counted(jobs)}")


def _report(folder: Path, console: Console) -> None:
    """Report on the runs, if there is something to say."""
    try:
        report([str(folder)])
    except ValueError as error:
        console.print(Text(f"no report: {error}"), soft_wrap=True)


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does, so that no run is left behind; elsewhere than in the main thread: nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    one = OneLine(
        "lit-atex ablate",
        description="Run a grid of training runs, and report on them.",
        epilog="GRID.yaml:\n\n" + (grids.__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument(
        "grid", metavar="GRID.yaml", help="a file, or one that ships, such as `exposure`: see configs/ablations/"
    )
    one.add_argument("--out", metavar="DIR", help="folder of the runs (default: runs/<name of the grid>)")
    one.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: 1; with --ray: all that fit)")
    one.add_argument(
        "--threads", type=int, metavar="N", help="threads of each run (default: the cores, shared out; with --ray: 1)"
    )
    one.add_argument(
        "--ray", metavar="ADDRESS", help="have Ray start the runs: local (this machine), auto (its cluster), HOST:PORT"
    )
    one.add_argument("--gpus", type=float, metavar="N", help="with --ray: GPUs of each run (default: 1, if any)")
    one.add_argument("--dry-run", action="store_true", help="check the grid, and say what would be run")
    return one
