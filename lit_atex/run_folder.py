"""The one folder that a run writes to: what is in it, and the callbacks that write it.

config.yaml         everything that was set            (written by the command line)
manifest.json       versions, git commit, seeds, command, when it began and ended, data report
prompts.txt         the rendered prompts of the first batch: student, teacher, evaluation
metrics.csv         all logged numbers, a row a step    (written by `MetricsCsv`)
samples.jsonl       rollouts to read                   (written by `SampleLog`)
decisions.jsonl     what exposures earned, for strategies that learn (written by `ExposureControl`)
results.json        avg@n and pass@k of each evaluation, with intervals
contamination.json  overlap of held-out with training problems (written by `ContaminationCheck`)
outcomes/           per evaluation and set: every problem with its completions, answers and verdicts
evaluation.md       an evaluation by itself, to read (with .json and .png; evaluation-validate.md for validation sets)
predictions/        what `predict` wrote
tensorboard/        events
checkpoints/        to resume from
student/            the trained student in Hugging Face format (an adapter: as PEFT writes it)
"""

from __future__ import annotations

import datetime
import json
import logging
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from lit_atex import whole
from lit_atex.collapse import CollapseMonitor
from lit_atex.metrics_csv import MetricsCsv
from lit_atex.module import SelfDistillation
from lit_atex.outcomes import Outcomes, clear
from lit_atex.plots import save_pass_at_k
from lit_atex.protocol import KINDS, describe, protocol, weights_digest
from lit_atex.resume import go_on, hold, is_later, read_manifest, release
from lit_atex.selection import origin
from lit_atex.text_tables import evaluation_text, prompts_text, results_table
from lit_atex.types import Problem
from lit_atex.versions import git, versions

log = logging.getLogger("lit_atex")


class RunFolder(pl.Callback):
    """Writes manifest, prompts, outcomes, results, predictions and the trained student."""

    def __init__(self, command: list[str]) -> None:
        """Remember the command line, for the manifest."""
        self.command = command
        self.loggers: list[Logger] = []
        """Those that write into the folder: of training alone, even where Python evaluates before it."""
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._stage = ""
        self._outcomes: Outcomes | None = None
        self.protocol: dict[str, Any] = {}
        """Of the evaluation by `validate` or `test`."""
        self.first_prompt = ""
        """What the model is given first, as it sees it."""
        self.results: dict[str, list[dict[str, Any]]] = {}
        """Results by evaluation ("step-0", "test"), as in results.json."""
        self.trained = False
        """Whether this process has done a training step."""
        self._before: dict[Path, str] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the manifest before anything can fail."""
        if self._stage == "fit":  # the evaluation after training
            return
        again, stage = bool(self._stage), str(getattr(stage, "value", stage))
        self.run = Path(trainer.default_root_dir)
        if stage == "fit" and trainer.is_global_zero:
            self.run.mkdir(parents=True, exist_ok=True)
            hold(self.run)  # before anything is written
        self._stage, self._outcomes = stage, None
        others = [logger for logger in trainer.loggers if logger not in self.loggers]
        trainer.loggers = [*self.loggers, *others] if stage == "fit" else others
        getattr(trainer.datamodule, "answered", {}).clear()  # type: ignore[attr-defined]
        if stage in KINDS:
            if again:
                clear(self.run, stage, resume=False, overwrite=True, clears=trainer.is_global_zero)
            self._outcomes = Outcomes(self.run / "outcomes", stage, _rank(trainer))
            self._outcomes.find(trainer.datamodule, KINDS[stage])  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            self.results = whole.read_json(self.run / "results.json")
        self.results = trainer.strategy.broadcast(self.results)  # they decide what is evaluated, by all ranks
        if not trainer.is_global_zero:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        if stage == "fit":
            whole.sweep(self.run)
        known = [path for path in (self.run / "manifest.json", self.run / "config.yaml") if path.is_file()]
        self._before = {path: path.read_text(encoding="utf-8") for path in known if stage == "fit"}
        code = {"git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain"))}
        manifest = read_manifest(self.run)
        manifest.setdefault("commands", []).append({"command": self.command, "began": _now(), **code})
        if stage == "fit" or "versions" not in manifest:  # an evaluation leaves what is said of the training
            manifest |= {"versions": versions(), **code}
            manifest |= {"seed": getattr(pl_module, "seed", None), "world_size": trainer.world_size}
        if stage == "fit":
            last = ("error", "stopped", "ended", "optimizer_steps", "skipped_steps", "weights", "selection", "data")
            manifest = {key: value for key, value in manifest.items() if key not in last}
            manifest["finished"] = False
        whole.write_json(self.run / "manifest.json", manifest)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """By itself: check what is gone on with, count it, and show what is done."""
        if self._outcomes is None:
            return
        self.protocol = protocol(trainer, pl_module, self._stage)
        self.first_prompt = describe(trainer, pl_module, self._stage)
        rows = self._outcomes.begin(self.protocol)
        for index, name in enumerate(pl_module.evaluation.names):
            pl_module.evaluation.add(index, rows[name])
        if any(rows.values()):
            log.info("%d problems are answered already; their answers are kept", sum(map(len, rows.values())))

    on_test_start = on_validation_start

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """On resuming, drop what a killed run wrote after the checkpoint. Here, since nothing may be left to train."""
        if self._stage != "fit":
            return
        step = checkpoint["global_step"]
        if json.loads(self._before.get(self.run / "manifest.json", "{}")).get("optimizer_steps", step) != step:
            self._before = {}  # later steps are dropped now: it is no longer what it was
        self.results = {name: result for name, result in self.results.items() if not is_later(name, step)}
        if trainer.is_global_zero:
            go_on(self.run, step)
            for logger in trainer.loggers:
                if isinstance(logger, MetricsCsv):
                    logger.go_on_from(step)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, batch: list[Problem], batch_idx: int
    ) -> None:
        """Write the first batch's prompts, and show the first of them, before anything is made of them."""
        self.trained = True
        path = self.run / "prompts.txt"
        if not batch or not trainer.is_global_zero or path.exists():
            return
        ratios = pl_module.ratios(batch)
        teachers = pl_module.prompts.teachers(batch, ratios, pl_module.tokenizer, pl_module.train_room)
        hinted = pl_module.completions == "hinted_reference"
        given = (pl_module.prompts, pl_module.tokenizer, hinted)
        prompts = [prompts_text(*given, *of_one) for of_one in zip(batch, ratios, teachers)]
        whole.write(path, "\n".join(prompts) + "\n")
        log.info("%s\nall prompts of the first batch: %s", prompts[0], path)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the rows: by themselves they are on disk at once, in a training run when all are there."""
        name = pl_module.evaluation.names[dataloader_idx]
        if self._outcomes is None:
            self._rows.setdefault(name, []).extend(outputs or [])
        elif outputs:
            self._outcomes.append(name, outputs)

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
                logger.log_metrics(pl_module.evaluation.scalars("validation"), step=0)

    def _close(self, trainer: pl.Trainer, pl_module: Any, name: str) -> None:
        rows, self._rows = self._rows, {}
        if trainer.sanity_checking and trainer.num_sanity_val_steps != float("inf"):
            return
        folder = self.run / "outcomes"
        folder.mkdir(parents=True, exist_ok=True)
        for set_name, of_set in rows.items():
            whole.write(folder / f"{name}.{set_name}{_rank(trainer)}.jsonl", "".join(map(whole.json_line, of_set)))
        self.results[name] = [r.to_json() for r in pl_module.evaluation.results]
        if trainer.is_global_zero and self.results[name]:
            path = self.run / "results.json"  # read again: an evaluation by itself may have come in between
            whole.write_json(path, whole.read_json(path) | {name: self.results[name]})
            _say(trainer, results_table(name, pl_module.evaluation.results))
            if self._outcomes is not None:
                self._report(trainer, name, pl_module)

    def _report(self, trainer: pl.Trainer, name: str, module: Any) -> None:
        """What an evaluation by itself leaves to read: Markdown, JSON, the pass@k curves."""
        results = module.evaluation.results
        last = read_manifest(self.run)["commands"][-1]
        about = {"command": shlex.join(last["command"]), "began": last["began"], "commit": last["git_commit"]}
        about |= {"uncommitted changes": last["git_dirty"]}
        about |= origin(module.source.name, trainer.ckpt_path)  # type: ignore[arg-type]
        stem = self.run / ("evaluation" if name == "test" else f"evaluation-{name}")
        data = {"evaluation": name, **about, "protocol": self.protocol, "first_prompt": self.first_prompt}
        data["results"] = [r.to_json() for r in results]
        whole.write_json(stem.with_suffix(".json"), data)
        save_pass_at_k(results, stem.with_suffix(".png"), self.run / "tensorboard", f"{name}/pass@k")
        text = evaluation_text(name, results, self.protocol, about, self.first_prompt, f"{stem.name}.png")
        whole.write(stem.with_suffix(".md"), text)
        _say(trainer, f"report: {stem}.md")

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
            file.writelines(map(whole.json_line, outputs or []))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the table and where the completions are."""
        pl_module.evaluation.close()
        if trainer.is_global_zero and pl_module.evaluation.results:
            _say(trainer, results_table("predict", pl_module.evaluation.results))
            _say(trainer, f"completions: {self.run / 'predictions'}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say in the manifest why a training run stopped; on Ctrl-C, say how to go on."""
        if self._stage in KINDS and trainer.is_global_zero and isinstance(exception, KeyboardInterrupt):
            log.warning("stopped; the answers so far are kept: go on with --run %s --resume", self.run)
        if self._stage == "fit" and trainer.is_global_zero:
            with suppress(OSError):  # the disk may be full: that error is the one to see, not another from here
                if self._before and not self.trained:  # it did not come to go on: what is there stays what it was
                    for path, text in self._before.items():
                        whole.write(path, text)
                else:
                    self._note(error=f"{type(exception).__name__}: {exception}")
            if isinstance(exception, KeyboardInterrupt):
                step = trainer.global_step
                last = getattr(trainer.checkpoint_callback, "_last_global_step_saved", 0) if self.trained else step
                text = "stopped at step %d; --run %s --resume goes on from step %d (checkpoint.every_n_train_steps)"
                log.warning(text, step, self.run, last)
            release(self.run)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: SelfDistillation) -> None:  # type: ignore[override]
        """Write the student in Hugging Face format."""
        if not trainer.is_global_zero:
            return
        with whole.folder(self.run / "student") as folder:
            pl_module.student.save_pretrained(folder)
            pl_module.tokenizer.save_pretrained(folder)
        data: Any = getattr(trainer, "datamodule", None)
        own: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        notes: dict[str, Any] = {"optimizer_steps": trainer.global_step, "skipped_steps": pl_module.skipped.total}
        notes["data"] = data.report() if data is not None else None
        notes["weights"] = weights_digest(pl_module.student)  # so that an evaluation can be told to be of them
        for reason in [c.stopped for c in own if isinstance(c, CollapseMonitor) and c.stopped]:
            notes["stopped"] = reason
        self._note(**notes)

    def finish(self, selection: dict[str, Any] | None) -> None:
        """Mark the run as finished: trained, and its last step evaluated; and which evaluation was the best."""
        self._note(finished=True, selection=selection, ended=_now())

    def _note(self, **entries: Any) -> None:
        whole.write_json(self.run / "manifest.json", read_manifest(self.run) | entries)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _rank(trainer: pl.Trainer) -> str:
    return f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""


def _say(trainer: pl.Trainer, text: str) -> None:
    bar = trainer.progress_bar_callback
    (print if bar is None else bar.print)(text)
