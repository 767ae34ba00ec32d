"""The commands of a Trainer: `lit-atex fit | validate | test | predict` (LightningCLI), and `evaluate`, which is one.

It wires objects together and knows nothing of what they do.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_atex import adaptive, bandit, beta_policy, compiled, reweighted, vllm_engine  # noqa: F401 for short names
from lit_atex.callbacks import ExposureControl
from lit_atex.checkpoint import Checkpoint
from lit_atex.collapse import CollapseMonitor
from lit_atex.commands import main as main
from lit_atex.contamination import ContaminationCheck
from lit_atex.custom_scalars import CustomScalars
from lit_atex.data import ProblemDataModule
from lit_atex.estimator import CompetenceEstimator
from lit_atex.evaluate import dated_run, find_config, translate
from lit_atex.inspection import decided
from lit_atex.metrics_csv import MetricsCsv
from lit_atex.module import SelfDistillation
from lit_atex.parser import Parser
from lit_atex.progress import StepProgress
from lit_atex.resume import claim, hold, purge_step, release
from lit_atex.run_folder import RunFolder
from lit_atex.sample_log import SampleLog
from lit_atex.text_tables import outcome_of_run

log = logging.getLogger("lit_atex")


class SaveConfig(SaveConfigCallback):
    """`config.yaml` for a training run, `config-test.yaml` and so on for the others."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Once; and for a training run after an evaluation, which Python may begin with."""
        self.already_saved &= stage != "fit"
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write into the run folder what makes the same run again: nothing that resumes or deletes."""
        (run := Path(trainer.default_root_dir)).mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.checkpoint.dirpath, config.ckpt_path, config.resume, config.overwrite = None, None, False, False
        name = "config.yaml" if stage == "fit" else f"config-{getattr(stage, 'value', stage)}.yaml"
        self.parser.save(config, run / name, skip_unset=False, overwrite=True, multifile=False)


class Cli(LightningCLI):
    """LightningCLI with one run folder, and the project's callbacks as top-level keys."""

    def __init__(self, args: list[str] | None, command: list[str] | None = None) -> None:
        """Parse and run; None: the arguments of the process. The manifest has `command`, if it was another."""
        words = sys.argv[1:] if args is None else args
        self.command, self._first = ["lit-atex", *(command or words)], words[:1]
        super().__init__(
            SelfDistillation,
            ProblemDataModule,
            args=args,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_class=Parser,
            # what Lightning says of these breaks off in the midst of a sentence
            parser_kwargs={"prog": "lit-atex"}
            | {name: {"description": getattr(Cli, name).__doc__} for name in self.subcommands() if name != "fit"},
            auto_configure_optimizers=False,  # else a second --optimizer would override model.optimizer
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # no staticmethod: of this command line
        """The first word's alone, as parsers take long to make; without Lightning's tables: ours are in the folder."""
        known = {k: v | {"verbose", "return_predictions"} for k, v in LightningCLI.subcommands().items()}
        return {k: v for k, v in known.items() if [k] == self._first} or known

    def validate(self, **given: Any) -> None:
        """Evaluate on the validation sets."""
        self._look("validation")
        self.trainer.validate(verbose=False, **given)

    def test(self, **given: Any) -> None:
        """Evaluate on the test sets."""
        self._look("test")
        self.trainer.test(verbose=False, **given)

    def predict(self, **given: Any) -> None:
        """Write completions of the test sets."""
        self._look("test")
        self.trainer.predict(return_predictions=False, **given)

    def _look(self, kind: str) -> None:
        """Whether there is a set of this kind, the model, and a hint that is shown, before anything is read.

        Raises:
            ValueError: If not.
        """
        if not getattr(self.datamodule, kind):
            raise ValueError(
                f"data.{kind} is empty, so there is nothing to evaluate: name at least one set; with `lit-atex "
                "evaluate`, --sets NAME or FILE, or --validation for the validation sets."
            )
        self.model.source.check()
        if self.model.eval_exposure > 0:
            self.model.prompts.check()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add --run, --resume, --overwrite, and one key per callback of ours."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="The one folder this run writes to. Default: runs/<date>-<names of the config files>.",
        )
        parser.add_argument(
            "--resume",
            nargs="?",
            const=True,
            type=bool,
            default=False,
            help="Go on where the run in --run was stopped or killed, as if it had not been (fit, validate, test).",
        )
        parser.add_argument(
            "--overwrite",
            nargs="?",
            const=True,
            type=bool,
            default=False,
            help="Delete what an earlier run (of fit, validate, test) wrote into --run, and start anew.",
        )
        parser.add_lightning_class_args(ExposureControl, "exposure")
        parser.add_lightning_class_args(CompetenceEstimator, "competence")
        parser.add_lightning_class_args(SampleLog, "sample_log")
        parser.add_lightning_class_args(CollapseMonitor, "collapse")
        parser.add_lightning_class_args(ContaminationCheck, "contamination")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.enable_version_counter": False})
        parser.link_arguments("seed_everything", "model.seed", compute_fn=as_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=as_seed)

    def _set_seed(self) -> None:
        if as_seed(seed := self._get(self.config, "seed_everything")) < 0:
            raise ValueError(f"seed_everything must be at least 0, got {seed}.")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Decide on the run folder, and refuse one that holds another run."""
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of every file of weights
        config = self.config[self.subcommand]
        draws = config.exposure.strategy.get("init_args") or {}
        if draws.get("seed", 0) is None:  # strategies that draw; others, and a user's, have no such argument
            draws["seed"] = as_seed(config.seed_everything)
        for key in ("trainer.default_root_dir", "checkpoint.dirpath"):
            if config[key] is not None:
                raise ValueError(f"{key} is set by --run, the one folder that a run writes to; leave it out.")
        if config.resume:
            self._resume(config)
        self.run_folder = Path(config.run) if config.run else default_run(config)
        first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # of processes that a launcher started
        if self.subcommand == "fit" and first:
            hold(self.run_folder)
        try:  # what is there is looked at once nobody else writes to it
            config.ckpt_path = claim(self.run_folder, str(self.subcommand), config, self._as_plain_data, first)
        except ValueError:
            if self.subcommand == "fit":
                release(self.run_folder)
            raise
        config.run = str(self.run_folder)
        config.checkpoint.dirpath = str(self.run_folder / "checkpoints")
        if config.weights_only is None:
            config.weights_only = True  # a checkpoint of ours holds tensors and plain data, no code

    def _resume(self, config: Any) -> None:
        """Have `fit` go on from its last checkpoint; evaluations go on from their outcomes.

        Raises:
            ValueError: If there is nothing that could be gone on with, or another checkpoint is named.
        """
        if self.subcommand == "predict":
            raise ValueError("--resume does not go on with predict; `test` keeps completions too, and goes on.")
        if self.subcommand == "fit":
            if config.ckpt_path not in (None, "last"):
                raise ValueError(f"--resume means --ckpt_path last: leave out --ckpt_path {config.ckpt_path}.")
            if not config.run:
                raise ValueError("--resume needs --run, the folder of the run that was stopped or killed.")
            config.ckpt_path = "last"

    def _as_plain_data(self, config: Any) -> dict[str, Any]:
        """The settings as plain data."""
        told: dict[str, Any] = yaml.safe_load(self._parser("fit").dump(config, skip_unset=False))
        return told

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer whose loggers and callbacks write into the run folder, beside those of `trainer.*`."""
        config, run = self.config_init[self.subcommand].trainer, str(self.run_folder)
        callbacks = [config.callbacks] if isinstance(config.callbacks, Callback) else list(config.callbacks or [])
        self.folder = RunFolder(self.command)
        callbacks += [self.folder] + [StepProgress()] * (config.enable_progress_bar is not False)
        given = config.logger if isinstance(config.logger, list) else [config.logger]
        loggers = [logger for logger in given if isinstance(logger, Logger)]
        if self.subcommand == "fit":  # the others write results.json: their numbers belong to no training step
            callbacks.append(CustomScalars())
            purge = purge_step(self.config_init[self.subcommand].ckpt_path, self.run_folder)
            events = TensorBoardLogger(run, "tensorboard", "", purge_step=purge, flush_secs=10)
            self.folder.loggers = [events, MetricsCsv(run)]
            loggers = [*self.folder.loggers, *loggers]
        trainer = super().instantiate_trainer(default_root_dir=run, logger=loggers, callbacks=callbacks, **kwargs)
        if (started := int(os.environ.get("WORLD_SIZE", 1))) not in (1, trainer.world_size):
            raise ValueError(
                f"a launcher started {started} processes, and the trainer has {trainer.world_size}: set "
                "--trainer.devices (and --trainer.num_nodes) to what was started, and --trainer.strategy ddp."
            )
        if type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher":
            raise ValueError("trainer.strategy: processes that are forked or spawned lose the run's state: take ddp.")
        own: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        own.remove(self.folder)  # the prompts that it shows hold the exposure that is decided in the same hook
        own.insert(1 + next(i for i, c in enumerate(own) if isinstance(c, ExposureControl)), self.folder)
        return trainer

    def before_fit(self) -> None:
        """Look for hint and model; leave out validations of nothing: Lightning would warn of an empty list."""
        self.model.prompts.check()
        self.model.source.check()
        if not self.datamodule.validation_names:
            self.trainer.limit_val_batches = 0

    def after_fit(self) -> None:
        """Evaluate the last step if that was not done, and say what came of the run; then others may train here."""
        try:
            self._conclude()
        finally:
            release(self.run_folder)

    def _conclude(self) -> None:
        folder = self.folder
        if not folder.trained:
            steps, most = self.trainer.global_step, self.trainer.max_steps
            log.warning("nothing left to train: the run is at step %d, and trainer.max_steps is %d.", steps, most)
        name = f"step-{self.trainer.global_step}"
        if self.datamodule.validation_names and name not in folder.results:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        if not self.trainer.is_global_zero:
            return
        own: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        keeper = next(c for c in own if isinstance(c, Checkpoint))
        chosen = keeper.selection(self.datamodule, folder.results)
        folder.finish(chosen)
        print(outcome_of_run(folder.results, name, chosen), end="")
        if trace := decided(self.run_folder):
            print(trace)
        print(f"run folder: {self.run_folder}\nTensorBoard: tensorboard --logdir {self.run_folder}", flush=True)


def as_seed(value: bool | int) -> int:
    """`seed_everything` as a number; True and False count as 0."""
    return 0 if isinstance(value, bool) else value


def default_run(config: Any) -> Path:
    """runs/<date>-<names of the config files>."""
    names = [Path(str(c)).stem for c in config.config or [] if str(c) != "None"]  # that is of keys without a file
    return dated_run(*(n for n in names if n != "base"))


def start(args: list[str] | None) -> None:
    """Run a command of a Trainer, or `evaluate`.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    words = sys.argv[1:] if args is None else args
    Cli(translate(words[1:]) if words[0] == "evaluate" else _with_shipped(words), words)


def _with_shipped(words: list[str]) -> list[str]:
    """The words, with a path for the name of each `--config` that ships with the package; JSON is left alone."""
    found = [*words]
    for i, word in enumerate(words):
        key, joined, value = word.partition("=")
        if key in ("--config", "-c") and joined and value.lstrip()[:1] != "{":
            found[i] = f"{key}={find_config(value)}"
        elif word in ("--config", "-c") and i + 1 < len(words) and words[i + 1].lstrip()[:1] not in ("{", "-"):
            found[i + 1] = str(find_config(words[i + 1]))
    return found
