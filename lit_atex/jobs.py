"""The runs of a grid and how far each is: what its folder says, and what is shown of it.

It starts nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_atex import whole
from lit_atex.executor import LOG
from lit_atex.grid import Run
from lit_atex.resume import find_checkpoint, read_manifest
from lit_atex.settings import changed

ROWS = 20
"""Runs of which the table shows all."""
TAIL = 15
"""Lines of the log that are shown of a run that failed."""


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
            where = file.readline().rstrip().split(b",").index(b"loss/skipped_steps")  # which each step's row has
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            rows = file.read().split(b"\n")[1:-1]  # the first may be cut by us, the last by its writer
            steps = [row.split(b",") for row in rows]
            # A validation is under the number of steps that were done, a step under its own, from 0.
            return int(steps[-1][0]) + (steps[-1][where] != b"") if steps else 0
        return 0

    def tail(self) -> str:
        """The end of its log."""
        path = self.folder / LOG
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        return "\n".join(text.rstrip().splitlines()[-TAIL:])


def is_finished(folder: Path) -> bool:
    """Whether a run has done its steps and the last one's evaluation is there."""
    manifest, results = read_manifest(folder), whole.read_json(folder / "results.json")
    return bool(manifest.get("finished")) and f"step-{manifest.get('optimizer_steps')}" in results


def jobs_of(runs: list[Run], out: Path) -> list[Job]:
    """The runs with what is there of each.

    Raises:
        ValueError: If a folder holds a run with other settings, which must not be taken for one of this grid.
    """
    jobs = [Job(run, out / run.name) for run in runs]
    for job in jobs:
        path, finished = job.folder / "config.yaml", is_finished(job.folder)
        goes_on = not finished and find_checkpoint(job.folder, "last") is not None
        # Without a checkpoint an unfinished run begins anew, whatever its settings were.
        if path.is_file() and (finished or goes_on):
            then: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
            if differing := changed(then, job.run.config):
                raise ValueError(
                    f"{job.folder} holds a run with other settings: {'; '.join(differing)}. Delete it, set them back, "
                    "or name another folder with --out."
                )
        if finished:
            job.state = "finished"
        else:
            job.note = "goes on" if goes_on else "anew"
    return jobs


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
        steps = f"{min(job.steps(), most)}/{most}" if most > 0 else str(job.steps())  # -1: by max_epochs
        done = steps if job.state in shown_states else ""
        took = f"{job.took / 60:.1f}" if job.took else ""
        shown.add_row(job.run.name, job.state, done, took, Text(job.note))
    return Group(Text(counted(jobs)), shown)


@contextlib.contextmanager
def display(jobs: list[Job], console: Console) -> Iterator[Any]:
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
