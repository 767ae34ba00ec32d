"""The one folder that a run writes to: what is in it, and the callbacks that write it.

config.yaml         everything that was set            (written by the command line)
manifest.json       versions, git commit, seeds, command, when it began and ended, data report
prompts.txt         the rendered prompts of the first batch: student, teacher, evaluation
metrics.csv         all logged numbers, a row a step    (written by `MetricsCsv`)
samples.jsonl       rollouts to read                   (written by `SampleLog`)
results.json        avg@n and pass@k of each evaluation, with intervals
outcomes/           per evaluation and set: every problem with its completions and verdicts
predictions/        what `predict` wrote
tensorboard/        events
checkpoints/        to resume from
student/            the trained student in Hugging Face format (an adapter: as PEFT writes it)
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_atex.metrics_csv import MetricsCsv
from lit_atex.module import SelfDistillation
from lit_atex.report import results_table
from lit_atex.types import Problem

log = logging.getLogger("lit_atex")

WRITTEN = (
    *("config*.yaml", "manifest.json", "prompts.txt", "metrics.csv", "samples.jsonl", "results.json"),
    *("outcomes", "predictions", "tensorboard", "checkpoints", "student"),
)
"""What `prepare` deletes; anything else in the folder is not ours."""

PACKAGES = ("lit-atex", "lightning", "torch", "transformers", "torchmetrics", "datasets", "jsonargparse", "peft")


def write_json(path: Path, data: Any) -> None:
    """Write aside, then rename: the file is whole or not there."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty if there is none."""
    path = run / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *args], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def prepare(run: Path, checkpoint: str | None, asks_for_last: bool, overwrite: bool) -> None:
    """Refuse to write over another training run, or clear it away.

    Args:
        run: The run folder.
        checkpoint: What training goes on from, if anything.
        asks_for_last: Whether --ckpt_path is "last": with no checkpoint yet, an unfinished run begins anew.
        overwrite: Whether to delete what is there.

    Raises:
        ValueError: If the folder holds a run and neither --ckpt_path nor --overwrite says what to do with it.
    """
    manifest = read_manifest(run)
    own = checkpoint is not None and run.resolve() in Path(checkpoint).resolve().parents
    if overwrite and own:
        raise ValueError(f"--overwrite true would delete the checkpoint of --ckpt_path {checkpoint}: give one of them.")
    if not manifest or own or ("finished" not in manifest and not overwrite):  # nothing here, or only evaluations
        return
    failed_early = "error" in manifest and not (run / "checkpoints" / "last.ckpt").is_file()
    if not overwrite and manifest.get("finished"):
        raise ValueError(
            f"--run {run} holds a finished run: name another folder, extend it with --ckpt_path last and a larger "
            "--trainer.max_steps, or set --overwrite true to delete it."
        )
    if not overwrite and not asks_for_last and not failed_early:
        raise ValueError(
            f"--run {run} holds a run that did not finish: go on with --ckpt_path last, or set --overwrite true to "
            "delete it."
        )
    if "commands" not in manifest:
        raise ValueError(
            f"{run / 'manifest.json'} is not lit_atex's, so --overwrite true deletes nothing: name another folder."
        )
    for path in [path for pattern in WRITTEN for path in run.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class RunFolder(pl.Callback):
    """Writes manifest, prompts, outcomes, results, predictions and the trained student."""

    def __init__(self, command: list[str]) -> None:
        """Remember the command line, for the manifest."""
        self.command = command
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._stage = ""
        self.results: dict[str, list[dict[str, Any]]] = {}
        """Results by evaluation ("step-0", "test"), as in results.json."""
        self.trained = False
        """Whether this process has done a training step."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the manifest before anything can fail."""
        if self._stage:  # the evaluation after training
            return
        self._stage, self.run = stage, Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        if (path := self.run / "results.json").is_file():
            self.results = json.loads(path.read_text(encoding="utf-8"))
        git = {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": bool(_git("status", "--porcelain"))}
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest = read_manifest(self.run)
        manifest.setdefault("commands", []).append({"command": self.command, "began": began, **git})
        if stage == "fit" or "versions" not in manifest:  # an evaluation leaves what is said of the training
            manifest |= {"versions": _versions(), **git}
            manifest |= {"seed": getattr(pl_module, "seed", None), "world_size": trainer.world_size}
        if stage == "fit":
            manifest.pop("error", None)
            manifest["finished"] = False
        write_json(self.run / "manifest.json", manifest)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """On resuming, drop what a killed run logged after the checkpoint."""
        step = trainer.global_step
        if not step or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.go_on_from(step)
        if (path := self.run / "samples.jsonl").is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(x for x in lines if json.loads(x)["step"] < step), encoding="utf-8")

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, batch: list[Problem], batch_idx: int
    ) -> None:
        """Write the first batch's prompts, and show the first of them, before anything is made of them."""
        self.trained = True
        path = self.run / "prompts.txt"
        if not batch or not trainer.is_global_zero or path.exists():
            return
        ratios = pl_module.exposure if isinstance(pl_module.exposure, list) else [pl_module.exposure] * len(batch)
        prompts = [render_prompts(pl_module, problem, ratio) for problem, ratio in zip(batch, ratios)]
        path.write_text("\n".join(prompts) + "\n", encoding="utf-8")
        log.info("%s\nall prompts of the first batch: %s", prompts[0], path)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the rows."""
        self._rows.setdefault(pl_module.evaluation.names[dataloader_idx], []).extend(outputs or [])

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write outcomes and results; print the table."""
        self._close(trainer, pl_module, f"step-{trainer.global_step}" if self._stage == "fit" else "validate")

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write outcomes and results; print the table."""
        self._close(trainer, pl_module, "test")

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A whole validation before the first step is the "before" of the run; one cut short is not kept."""
        if trainer.num_sanity_val_steps == float("inf"):
            for logger in trainer.loggers:
                for result in pl_module.evaluation.results:
                    values = {f"validation/{result.name}/{k}": v for k, v in result.scalars().items()}
                    logger.log_metrics(values, step=0)

    def _close(self, trainer: pl.Trainer, pl_module: Any, name: str) -> None:
        rows, self._rows = self._rows, {}
        if trainer.sanity_checking and trainer.num_sanity_val_steps != float("inf"):
            return
        folder = self.run / "outcomes"
        folder.mkdir(parents=True, exist_ok=True)
        for set_name, of_set in rows.items():
            (folder / f"{name}.{set_name}{_rank(trainer)}.jsonl").write_text(_lines(of_set), encoding="utf-8")
        self.results[name] = [r.to_json() for r in pl_module.evaluation.results]
        if trainer.is_global_zero and self.results[name]:
            write_json(self.run / "results.json", self.results)
            _say(trainer, results_table(name, pl_module.evaluation.results))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A new prediction replaces an old one of the same folder."""
        folder = self.run / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        for name in pl_module.evaluation.names:
            (folder / f"{name}{_rank(trainer)}.jsonl").write_text("", encoding="utf-8")

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Append the completions as JSON Lines, and count them."""
        index = dataloader_idx
        pl_module.evaluation.add(index, outputs or [])
        path = self.run / "predictions" / f"{pl_module.evaluation.names[index]}{_rank(trainer)}.jsonl"
        with open(path, "a", encoding="utf-8") as file:
            file.write(_lines(outputs or []))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the table and where the completions are."""
        pl_module.evaluation.close()
        if trainer.is_global_zero and pl_module.evaluation.results:
            _say(trainer, results_table("predict", pl_module.evaluation.results))
            _say(trainer, f"completions: {self.run / 'predictions'}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say in the manifest why a training run stopped."""
        if self._stage == "fit" and trainer.is_global_zero:
            self._note(error=f"{type(exception).__name__}: {exception}")
            if isinstance(exception, KeyboardInterrupt):
                log.warning("stopped at step %d; go on with --run %s --ckpt_path last", trainer.global_step, self.run)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: SelfDistillation) -> None:  # type: ignore[override]
        """Write the student in Hugging Face format."""
        if not trainer.is_global_zero:
            return
        pl_module.student.save_pretrained(self.run / "student")
        pl_module.tokenizer.save_pretrained(self.run / "student")
        data: Any = getattr(trainer, "datamodule", None)
        report = data.report() if data is not None else None
        self._note(optimizer_steps=trainer.global_step, skipped_steps=pl_module.skipped_steps, data=report)

    def finish(self) -> None:
        """Mark the run as finished: trained, and its last step evaluated."""
        self._note(finished=True, ended=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    def _note(self, **entries: Any) -> None:
        write_json(self.run / "manifest.json", read_manifest(self.run) | entries)


def _rank(trainer: pl.Trainer) -> str:
    return f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _say(trainer: pl.Trainer, text: str) -> None:
    bar = trainer.progress_bar_callback
    (print if bar is None else bar.print)(text)


def render_prompts(module: SelfDistillation, problem: Problem, ratio: float) -> str:
    """The prompts of a problem as the models see them, each with the thinking flag that made it."""
    style, tokenizer = module.prompts, module.tokenizer
    teacher = style.teacher(problem, ratio, tokenizer, module.train_room)
    prompts = {
        f"student, thinking {style.student_thinking}": style.student(problem, tokenizer),
        f"teacher, thinking {style.teacher_thinking}, exposure {ratio:.3f}": teacher.ids,
        f"evaluation, thinking {style.eval_thinking}": style.evaluation(problem, tokenizer),
    }
    return "\n".join(
        f"===== {problem.id} · {role} · {len(ids)} tokens\n{tokenizer.decode(ids)}" for role, ids in prompts.items()
    )
