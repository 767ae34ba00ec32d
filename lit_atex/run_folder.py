"""The one folder that a run writes to: what is in it, and the callback and the logger that write it.

    config.yaml         everything that was set            (written by the command line)
    manifest.json       versions, git commit, seeds, command, when it began and ended, data report
    prompts.txt         the rendered prompts of the first batch: student, teacher, evaluation
    metrics.csv         all logged numbers, a row a step
    samples.jsonl       rollouts to read                   (written by `SampleLog`)
    results.json        avg@n and pass@k of each evaluation, with intervals
    outcomes/           per evaluation and set: every problem with its completions and verdicts
    predictions/        what `predict` wrote
    tensorboard/        events
    checkpoints/        to resume from
    student/            the trained student in Hugging Face format (an adapter: as PEFT writes it)
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from lit_atex.module import Seen, SelfDistillation
from lit_atex.report import results_table

log = logging.getLogger("lit_atex")

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


class MetricsCsv(Logger):
    """`metrics.csv`, appended to: a resumed run goes on where it was. New columns rewrite the head."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._path = Path(run) / "metrics.csv"
        self._fields: list[str] = []

    @property
    def name(self) -> str:
        """Unused by Lightning for files of ours."""
        return ""

    @property
    def version(self) -> str:
        """Unused by Lightning for files of ours."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """There is no writer object."""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {"step": step, **metrics}
        old: list[dict[str, str]] = []
        if not self._fields and self._path.is_file():
            with open(self._path, newline="", encoding="utf-8") as file:
                self._fields = list(csv.DictReader(file).fieldnames or [])
        if new := [k for k in row if k not in self._fields]:
            if self._path.is_file():
                with open(self._path, newline="", encoding="utf-8") as file:
                    old = list(csv.DictReader(file))
            self._fields += new
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self._fields)
                writer.writeheader()
                writer.writerows(old)
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._fields).writerow(row)


class RunFolder(pl.Callback):
    """Writes manifest, prompts, outcomes, results, predictions and the trained student."""

    def __init__(self, command: list[str]) -> None:
        """Remember the command line, for the manifest."""
        self.command = command
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self.results: dict[str, list[dict[str, Any]]] = {}
        """Results by evaluation ("step-0", "test"), as in results.json."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the manifest before anything can fail."""
        self.run = Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        if (path := self.run / "results.json").is_file():
            self.results = json.loads(path.read_text(encoding="utf-8"))
        manifest = read_manifest(self.run)
        manifest.setdefault("commands", []).append(
            {"command": self.command, "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        )
        manifest |= {
            "finished": False if stage == "fit" else manifest.get("finished", False),
            "versions": _versions(),
            "git_commit": _git("rev-parse", "HEAD"),
            "git_dirty": bool(_git("status", "--porcelain")),
            "seed": getattr(pl_module, "seed", None),
            "world_size": trainer.world_size,
        }
        write_json(self.run / "manifest.json", manifest)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: SelfDistillation, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the first batch's prompts once."""
        path = self.run / "prompts.txt"
        if pl_module.seen is None or not pl_module.seen.problems or not trainer.is_global_zero or path.exists():
            return
        path.write_text(render_prompts(pl_module, pl_module.seen), encoding="utf-8")
        log.info("rendered prompts of the first batch: %s", path)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        """Keep the rows."""
        index = args[2] if len(args) > 2 else 0
        self._rows.setdefault(pl_module.evaluation.names[index], []).extend(outputs or [])

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write outcomes and results; print the table."""
        name = f"step-{trainer.global_step}" if trainer.state.fn == "fit" else "validate"
        self._close(trainer, pl_module, name)

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
        else:
            self._rows, self.results = {}, {k: v for k, v in self.results.items() if k != "step-0"}

    def _close(self, trainer: pl.Trainer, pl_module: Any, name: str) -> None:
        if trainer.sanity_checking and trainer.num_sanity_val_steps != float("inf"):
            self._rows = {}
            return
        folder = self.run / "outcomes"
        folder.mkdir(parents=True, exist_ok=True)
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        for set_name, rows in self._rows.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.{set_name}{rank}.jsonl").write_text(text, encoding="utf-8")
        self._rows = {}
        self.results[name] = [r.to_json() for r in pl_module.evaluation.results]
        if trainer.is_global_zero and self.results[name]:
            write_json(self.run / "results.json", self.results)
            trainer.print(results_table(name, pl_module.evaluation.results))

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        """Append the completions as JSON Lines."""
        index = args[2] if len(args) > 2 else 0
        folder = self.run / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        with open(folder / f"{pl_module.evaluation.names[index]}{rank}.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in outputs or [])

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A new prediction replaces an old one of the same folder."""
        if trainer.is_global_zero:
            for old in (self.run / "predictions").glob("*.jsonl"):
                old.unlink()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: SelfDistillation) -> None:
        """Write the student in Hugging Face format, and mark the run as finished."""
        if not trainer.is_global_zero:
            return
        pl_module.student.save_pretrained(self.run / "student")
        pl_module.tokenizer.save_pretrained(self.run / "student")
        data: Any = getattr(trainer, "datamodule", None)
        manifest = read_manifest(self.run)
        manifest |= {
            "finished": True,
            "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "optimizer_steps": trainer.global_step,
            "skipped_steps": pl_module.skipped_steps,
            "data": data.report() if data is not None else None,
        }
        write_json(self.run / "manifest.json", manifest)


def render_prompts(module: SelfDistillation, seen: Seen) -> str:
    """The prompts of a batch as the models see them, and the thinking flags that made them."""
    style, tokenizer = module.prompts, module.tokenizer
    flags = {"student": style.student_thinking, "teacher": style.teacher_thinking, "evaluation": style.eval_thinking}
    parts = ["thinking flags (None: the chat template's default): " + json.dumps(flags)]
    for i, problem in enumerate(seen.problems):
        evaluation = style.evaluation(problem, tokenizer)
        for role, ids in (
            ("student", seen.student_prompts[i]),
            (f"teacher, exposure {seen.exposures[i]:.3f}", seen.teacher_prompts[i].ids),
            ("evaluation", evaluation),
        ):
            parts.append(f"===== {problem.id} · {role} · {len(ids)} tokens\n{tokenizer.decode(ids)}")
    return "\n".join(parts) + "\n"
