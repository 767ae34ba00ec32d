"""`lit-atex ablate GRID.yaml`: the runs of a grid, one folder each; what is finished is skipped, what broke goes on.

It spells out command lines, has an `Executor` start them, and looks into run folders; it knows nothing of training.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_atex.executor import LOG, Executor, Handle, Local
from lit_atex.grid import Grid, Run, read_grid, try_out
from lit_atex.resume import find_checkpoint, read_manifest
from lit_atex.settings import changed
from lit_atex.summary import report

ROWS = 20
"""Runs of which the table shows all."""
TAIL = 15
"""Lines of the log that are shown of a run that failed."""
POLL = 0.5
"""Seconds between two looks at the runs."""
GRACE = 30.0
"""Seconds that runs have to end by themselves when `ablate` is stopped."""


@dataclass
class Job:
    """A run and how far it is.

    Attributes:
        run: What is to be done.
        folder: Where.
        state: "finished" (before we came), "waiting", "running", "done", "failed" or "stopped".
        note: "anew", "goes on", or why it failed.
        began: When it was started, by `time.monotonic`.
        took: Seconds that it ran, this time.
    """

    run: Run
    folder: Path
    state: str = "waiting"
    note: str = ""
    began: float = 0.0
    took: float = 0.0

    def command(self) -> list[str]:
        """Of `lit-atex`. With --resume, which begins anew where there is nothing to go on from."""
        return [*self.run.words, "--run", str(self.folder), "--resume"]

    def steps(self) -> int:
        """Optimizer steps done, as its metrics.csv says; 0 if it does not."""
        with contextlib.suppress(OSError, ValueError), open(self.folder / "metrics.csv", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            whole = file.read().split(b"\n")[1:-1]  # the first may be cut by us, the last by its writer
            return int(whole[-1].split(b",")[0]) + 1 if whole else 0
        return 0

    def tail(self) -> str:
        """The end of its log."""
        path = self.folder / LOG
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        return "\n".join(text.rstrip().splitlines()[-TAIL:])


def is_finished(folder: Path) -> bool:
    """Whether a run has done its steps and the last one's evaluation is there."""
    manifest, path = read_manifest(folder), folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return bool(manifest.get("finished")) and f"step-{manifest.get('optimizer_steps')}" in results


def jobs_of(runs: list[Run], out: Path) -> list[Job]:
    """The runs with what is there of each.

    Raises:
        ValueError: If a folder holds a run with other settings, which must not be taken for one of this grid.
    """
    jobs = [Job(run, out / run.name) for run in runs]
    for job in jobs:
        path = job.folder / "config.yaml"
        # Without a checkpoint an unfinished run begins anew, whatever its settings were.
        if path.is_file() and (is_finished(job.folder) or find_checkpoint(job.folder, "last")):
            then: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
            if differing := changed(then, job.run.config):
                raise ValueError(
                    f"{job.folder} holds a run with other settings: {'; '.join(differing)}. Delete it, set them back, "
                    "or name another folder with --out."
                )
        if is_finished(job.folder):
            job.state = "finished"
        else:
            job.note = "goes on" if find_checkpoint(job.folder, "last") else "anew"
    return jobs


def carry_out(jobs: list[Job], executor: Executor, at_once: int, threads: int, console: Console) -> None:
    """Do what is not finished, so many at a time; a run that fails stops no other.

    Raises:
        KeyboardInterrupt: If it is interrupted, after the runs have ended, which go on the next time.
    """
    waiting = deque(job for job in jobs if job.state == "waiting")
    running: list[tuple[Job, Handle]] = []
    with _display(jobs, console) as show:
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
                    code = handle.poll()
                    job.took = time.monotonic() - job.began
                    if code is not None:
                        running.remove((job, handle))
                        job.state = "done" if is_finished(job.folder) else "failed"
                        job.note = "" if job.state == "done" else f"exit code {code}"
                        show(job)
                show(None)
        except KeyboardInterrupt:
            _stop(running)
            for job, handle in running:
                ended = handle.poll() is not None
                job.state = "done" if ended and is_finished(job.folder) else "stopped"
                job.note = "" if job.state == "done" else "goes on the next time" if ended else "does not end"
                show(job)
            raise


def _stop(running: list[tuple[Job, Handle]]) -> None:
    for _, handle in running:
        with contextlib.suppress(OSError):  # it has just ended
            handle.terminate()
    last = time.monotonic() + GRACE
    while time.monotonic() < last and any(handle.poll() is None for _, handle in running):
        time.sleep(0.1)


def counted(jobs: list[Job]) -> str:
    """How many runs there are, by state."""
    counts = Counter(job.state for job in jobs)
    return f"{len(jobs)} runs: {', '.join(f'{n} {state}' for state, n in counts.items())}"


def table(jobs: list[Job]) -> Group:
    """The runs and how far they are; of many those alone that run or do not, so that a screen holds them."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("run", "", "step", "minutes", "note"):
        shown.add_column(heading, justify="right" if heading in ("step", "minutes") else "left")
    shown_states = ("running", "failed", "stopped")
    for job in [job for job in jobs if len(jobs) <= ROWS or job.state in shown_states]:
        most = job.run.config["trainer"]["max_steps"]
        done = f"{min(job.steps(), most)}/{most}" if job.state in shown_states else ""
        took = f"{job.took / 60:.1f}" if job.took else ""
        shown.add_row(job.run.name, job.state, done, took, Text(job.note))
    return Group(Text(counted(jobs)), shown)


@contextlib.contextmanager
def _display(jobs: list[Job], console: Console) -> Iterator[Any]:
    """A function that is told of a job with news, or None: a live table in a terminal, else a line for each."""
    if console.is_terminal:
        with Live(table(jobs), console=console, refresh_per_second=2) as live:
            yield lambda job: live.update(table(jobs))
        return
    places = {job.run.name: i for i, job in enumerate(jobs, 1)}

    def line(job: Job | None) -> None:
        if job is not None:
            took = f", {job.took / 60:.1f} minutes" if job.took else ""
            note = f" ({job.note})" if job.note else ""
            text = f"[{places[job.run.name]}/{len(jobs)}] {job.run.name}: {job.state}{took}{note}"
            console.print(Text(text), soft_wrap=True)

    yield line


def ablate(
    grid: str, out: str | None = None, jobs: int = 1, threads: int | None = None, dry_run: bool = False,
    executor: Executor | None = None,
) -> None:  # fmt: skip
    """Run a grid, and report on it.

    Args:
        grid: The YAML file; see `lit_atex/grid.py`.
        out: The folder of the runs; None: runs/<name of the grid>.
        jobs: Runs at a time, >= 1.
        threads: Threads of each; None: the cores, shared out.
        dry_run: Only check the grid and say what would be done.
        executor: What starts the runs; None: processes of this machine.

    Raises:
        ValueError: If the grid, a number or a run folder is not as it must be. Nothing has been started then.
        SystemExit: If a run failed (1) or `ablate` was interrupted (130).
    """
    if jobs < 1 or (threads is not None and threads < 1):
        raise ValueError(f"--jobs and --threads must be at least 1, got {jobs} and {threads}.")
    read: Grid = read_grid(grid)
    folder = Path(out) if out else Path("runs") / read.path.stem
    todo = jobs_of(read.runs(), folder)
    console = Console(highlight=False)
    if dry_run:
        for job in todo:
            console.print(Text(f"# {job.run.name}: {job.state}{f', {job.note}' if job.note else ''}"), soft_wrap=True)
            if job.state != "finished":
                console.print(Text(shlex.join(["lit-atex", *job.command()])), soft_wrap=True)
        console.print(f"# {counted(todo)}")
    try:
        try_out([job.run for job in todo if job.state != "finished"])
    except ValueError as error:
        if not dry_run:
            raise
        console.print(Text(f"# would not start: {error}"), soft_wrap=True)
    if dry_run:
        return
    share = threads or max(1, _cores() // jobs)
    try:
        with _terminated_is_interrupted():
            carry_out(todo, executor or Local(), jobs, share, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        raise SystemExit(130) from None
    if any(job.state in ("finished", "done") for job in todo):
        baseline = ",".join(f"{axis}={value}" for axis, value in read.baseline.items())
        for against in [baseline, None] if baseline else [None]:  # without one, if it has failed, say
            try:
                report([str(folder)], metrics=read.metrics, baseline=against)
                break
            except ValueError as error:
                what = "no comparison" if against else "no report"
                console.print(Text(f"{what}: {error}"), soft_wrap=True)
    failed = [job for job in todo if job.state == "failed"]
    for job in failed:
        heading = f"\n{job.run.name} failed: {job.note}. The end of {job.folder / LOG}:"
        console.print(Text(heading, "bold"), soft_wrap=True)
        console.print(Text(job.tail()), soft_wrap=True)
    if failed:
        console.print(f"\n{len(failed)} of {len(todo)} runs failed; the same command tries them again")
        raise SystemExit(1)


def _cores() -> int:
    """Those that this process may use, where the system tells (macOS does not), else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    one = argparse.ArgumentParser(
        "lit-atex ablate", description="Run a grid of training runs, and report on them.", allow_abbrev=False
    )
    one.add_argument(
        "grid", metavar="GRID.yaml", help="a file, or one that ships, such as `exposure`: see configs/ablations/"
    )
    one.add_argument("--out", metavar="DIR", help="folder of the runs (default: runs/<name of the grid>)")
    one.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    one.add_argument("--threads", type=int, metavar="N", help="threads of each run (default: the cores, shared out)")
    one.add_argument("--dry-run", action="store_true", help="check the grid, and say what would be run")
    return one
