"""What a run goes on from: the checkpoint that is meant, and a run folder that says no more than it.

It knows the files of a run folder, and no Lightning.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_atex import outcomes, whole
from lit_atex.protocol import KINDS
from lit_atex.settings import changed

log = logging.getLogger("lit_atex")

BY_FIT = (
    *("checkpoints", "config.yaml", "prompts.txt", "metrics.csv", "samples.jsonl", "decisions.jsonl"),
    *("contamination.json", "outcomes/step-*", "tensorboard", "student"),
)
BY_EVALUATIONS = (
    *("config-*.yaml", "results.json", "evaluation.*", "evaluation-validate.*", "comparison-*"),
    *("outcomes", "predictions"),
)
"""What `prepare` deletes: both with --overwrite, BY_FIT alone of a run that begins anew. Other files are not ours."""

FORMAT = 7
"""Version of what a checkpoint holds of ours; raised with every key that changes (see tests/golden/checkpoint.txt)."""

BY_STEP = ("samples.jsonl", "decisions.jsonl")
"""One JSON object a line, with the optimizer step that it belongs to."""


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty if there is none."""
    return whole.read_json(run / "manifest.json")


def claim(run: Path, command: str, given: Any, settings: Callable[[Any], dict[str, Any]], first: bool) -> str | None:
    """Bring a run folder into the state that a command needs, or refuse.

    Args:
        run: The folder; of `fit`, one that is held.
        command: "fit", "validate", "test" or "predict".
        given: Its configuration: `ckpt_path`, `resume`, `overwrite` are read.
        settings: Gives a configuration as plain data.
        first: Whether this process is the one that deletes; see `prepare`.

    Returns:
        The checkpoint to go on from; None: there is none.

    Raises:
        ValueError: If the command would not do what it seems to.
    """
    there = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not (there.is_dir() and (os.access(there, os.W_OK) or command != "fit")):
        raise ValueError(f"--run {run}: {there} is no folder that can be written to.")
    checkpoint, trains = find_checkpoint(run, given.ckpt_path), command == "fit"
    if given.resume and trains and checkpoint is None:
        log.warning("--resume: no checkpoint in %s: the run begins at step 0", run / "checkpoints")
    check_format(checkpoint, trains)
    if trains:
        if checkpoint is not None:
            own = Path(checkpoint).resolve().is_relative_to(run.resolve())
            check_settings(run if own else Path(checkpoint).resolve().parents[1], settings(given), own)
        prepare(run, checkpoint, given.ckpt_path == "last", given.overwrite, first)
    elif given.ckpt_path and checkpoint is None:
        raise ValueError(f"--ckpt_path last: there is no checkpoint in {run / 'checkpoints'}.")
    elif command in KINDS:
        outcomes.clear(run, command, given.resume, given.overwrite, first)
    return checkpoint


def find_checkpoint(run: Path, given: str | None) -> str | None:
    """The file that --ckpt_path means; None if it is not set, or "last" and there is none yet.

    Raises:
        ValueError: If a file is named that does not exist.
    """
    if given == "last":
        last = run / "checkpoints" / "last.ckpt"
        others = [path for path in (run / "checkpoints").glob("*.ckpt") if path.name != "best.ckpt"]  # weights alone
        if last.is_file():
            return str(last)
        newest = max(others, key=lambda path: path.stat().st_mtime, default=None)
        return None if newest is None else str(newest)  # None: it was killed before the first
    if given and given.endswith(".ckpt") and not Path(given).is_file():
        raise ValueError(f"--ckpt_path {given}: there is no such file; `last` means {run}/checkpoints/last.ckpt.")
    return given


def prepare(run: Path, checkpoint: str | None, asks_for_last: bool, overwrite: bool, clears: bool = True) -> None:
    """Refuse to write over another training run, or clear it away.

    Args:
        run: The run folder.
        checkpoint: What training goes on from, if anything.
        asks_for_last: Whether --resume is given: with no checkpoint yet, an unfinished run begins anew.
        overwrite: Whether to delete what is there.
        clears: Whether this process is the one that deletes: the others of a run on several devices check alone.

    Raises:
        ValueError: If the folder holds a run and neither --resume nor --overwrite says what to do with it.
    """
    manifest = read_manifest(run)
    own = checkpoint is not None and run.resolve() in Path(checkpoint).resolve().parents
    if overwrite and own:
        raise ValueError(f"--overwrite true would delete {checkpoint}, which the run goes on from: give one of them.")
    if not manifest or own or ("finished" not in manifest and not overwrite):  # nothing here, or only evaluations
        return
    failed_early = "error" in manifest and not any((run / "checkpoints").glob("*.ckpt"))
    if not overwrite and manifest.get("finished"):
        raise ValueError(
            f"--run {run} holds a finished run: name another folder, extend it with --resume and a larger "
            "--trainer.max_steps, or set --overwrite true to delete it."
        )
    if not overwrite and not asks_for_last and not failed_early:
        raise ValueError(
            f"--run {run} holds a run that did not finish: go on with --resume, or set --overwrite true to delete it."
        )
    if "commands" not in manifest:
        raise ValueError(
            f"{run / 'manifest.json'} is not lit_atex's, so --overwrite true deletes nothing: name another folder."
        )
    if not clears:
        return
    if not overwrite:
        go_on(run, -1)
    for path in [path for pattern in BY_FIT + (BY_EVALUATIONS if overwrite else ()) for path in run.glob(pattern)]:
        whole.remove(path)
    whole.remove(run / "manifest.json")  # last: the folder counts as a run's until then


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What is in a checkpoint; tensors stay in the file until they are read."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def check_format(checkpoint: str | None, fits: bool) -> None:
    """Whether this version of the code can read a checkpoint; of weights alone, it can evaluate them.

    Raises:
        ValueError: If it cannot.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return
    read = read_checkpoint(checkpoint)
    if "callbacks" not in read and fits:
        raise ValueError(f"{checkpoint} holds weights alone: a run goes on from last.ckpt (--resume).")
    if "callbacks" in read and (found := read.get("lit_atex_format")) != FORMAT:
        raise ValueError(
            f"{checkpoint} is of another version of lit_atex (its format is {found}, this one's {FORMAT}): use the "
            "version that wrote it (git_commit in manifest.json), go on from the run's student/, if it has one "
            "(--model.student.init_args.name), or begin anew (--overwrite true)."
        )


def purge_step(checkpoint: str | None, run: Path) -> int | None:
    """First step whose TensorBoard events were written after the checkpoint; None for a new run."""
    if checkpoint is None or not Path(checkpoint).is_file():
        return None
    step: int = read_checkpoint(checkpoint)["global_step"]
    evaluated = (run / "outcomes").glob(f"step-{step}.*")  # under the same number as the step that comes next
    return step + any(evaluated)


def open_next_pass(checkpoint: dict[str, Any]) -> None:
    """After the last batch of a pass, go on at batch 0 of the next one.

    Lightning does so only where the loader has a length; else its count goes on, and windows of accumulation shift.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if progress["is_last_batch"]:
        done = progress["current"]["ready"]
        progress["current"] = {name: count - done for name, count in progress["current"].items()}


MAY_CHANGE = (
    *("model.student.init_args.name", "model.student.init_args.gradient_checkpointing", "model.eval_"),
    *("model.student.init_args.attn_implementation", "model.chunk_tokens", "model.part_tokens"),
    *("model.prompts.init_args.eval_thinking", "model.verifier.init_args.timeout"),
)
"""Beginnings of keys of the model that may change in a run that goes on: no step depends on them."""
OF_THE_METHOD = (
    *("model.", "exposure.", "competence.", "seed_everything"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_", "trainer.precision"),
)
"""Beginnings of keys that may not change: part of the run would contradict its config.yaml."""


RESTORED = ("model.optimizer", "model.lr_scheduler")
"""Beginnings of those that a new run takes from the checkpoint that it begins with: what its config says is lost."""


def check_settings(run: Path, now: dict[str, Any], own: bool = True) -> None:
    """Whether a run goes on with the method that it began with; the data module checks what it is trained on.

    Args:
        run: The folder of the run that wrote the checkpoint; without a `config.yaml` there is nothing to hold it to.
        now: The settings of now.
        own: Whether this run is the one that goes on, and no new one with its checkpoint.

    Raises:
        ValueError: If not; names the keys.
    """
    path = run / "config.yaml"
    then = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    held = OF_THE_METHOD if own else RESTORED
    kept = [k for k in changed(then, now) if k.startswith(held) and not k.startswith(MAY_CHANGE)]
    if kept:
        raise ValueError(
            f"{'--resume' if own else '--ckpt_path'}: {'; '.join(kept)}. Set it back; or begin another run, of its "
            f"trained weights alone: --model.student.init_args.name {run}/student; or, if optimizer, schedule, loss, "
            f"teacher and all classes stay, where this one is: --run NEW --ckpt_path {run}/checkpoints/last.ckpt."
        )


_HELD: dict[Path, int] = {}
HOLDER = "LIT_ATEX_HOLDS"
"""Environment variable that lists the folders held, for the processes that this one starts as further ranks."""
ORPHANS = 5.0
"""Seconds to wait for a lock: the workers of a process that was killed end a moment after it."""


def hold(run: Path) -> None:
    """Keep other processes from training in a folder, until `release` or the end of this one, however it ends.

    Raises:
        ValueError: If another process trains there.
    """
    run = run.resolve()
    if run in _HELD or str(run) in os.environ.get(HOLDER, "").split(os.pathsep) or not run.is_dir():
        return
    descriptor, until = os.open(run, os.O_RDONLY), time.monotonic() + ORPHANS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.2)
                continue
            os.close(descriptor)
            raise ValueError(f"--run {run}: another process is training there; wait for its end, or end it.") from None
        except OSError:  # a file system that has no locks
            pass
        break
    _HELD[run] = descriptor
    os.environ[HOLDER] = os.pathsep.join(map(str, _HELD))


def release(run: Path) -> None:
    """Let others train there."""
    if (descriptor := _HELD.pop(run.resolve(), None)) is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by closing alone: a fork may have it too
        os.close(descriptor)
        os.environ[HOLDER] = os.pathsep.join(map(str, _HELD))


def go_on(run: Path, step: int) -> None:
    """Drop what a killed run wrote after the checkpoint of `step`, the number of optimizer steps that were done."""
    for path in [run / name for name in BY_STEP if (run / name).is_file()]:
        whole.write(path, "".join(whole.json_line(row) for row in whole.json_lines(path) if row["step"] < step))
    if results := whole.read_json(run / "results.json"):
        kept = {name: result for name, result in results.items() if not is_later(name, step)}
        whole.write_json(run / "results.json", kept)
    for path in (run / "outcomes").glob("step-*.jsonl"):
        if is_later(path.name.split(".")[0], step):
            path.unlink()


def is_later(evaluation: str, step: int) -> bool:
    """Whether an evaluation ("step-20", "test") was made after so many optimizer steps."""
    return evaluation.startswith("step-") and int(evaluation.removeprefix("step-")) > step
