"""The command line: `lit-atex fit | validate | test | predict` (LightningCLI), and `lit-atex pretrain`.

It wires objects together and knows nothing of what they do.
"""

from __future__ import annotations

import datetime
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lit_atex.callbacks import CompetenceEstimator, ExposureControl, SampleLog
from lit_atex.data import ProblemDataModule
from lit_atex.evaluation import Result
from lit_atex.module import SelfDistillation
from lit_atex.progress import StepProgress
from lit_atex.report import before_after_table
from lit_atex.run_folder import MetricsCsv, RunFolder, read_manifest

WRITTEN = ("config.yaml manifest.json prompts.txt metrics.csv samples.jsonl results.json outcomes predictions "
           "tensorboard checkpoints student").split()  # fmt: skip


class SaveConfig(SaveConfigCallback):
    """`config.yaml` for a training run, `config-test.yaml` and so on for the others."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write into the run folder."""
        run = Path(trainer.default_root_dir)
        run.mkdir(parents=True, exist_ok=True)
        name = "config.yaml" if stage == "fit" else f"config-{stage}.yaml"
        self.parser.save(self.config, run / name, skip_none=False, overwrite=True, multifile=False)


class Cli(LightningCLI):
    """LightningCLI with one run folder, and the project's callbacks as top-level keys."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add --run, --overwrite, and one key per callback of ours."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="The one folder this run writes to. Default: runs/<date>-<names of the config files>.",
        )
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Delete what an earlier run wrote into --run, and start anew.",
        )
        parser.add_lightning_class_args(ExposureControl, "exposure")
        parser.add_lightning_class_args(CompetenceEstimator, "competence")
        parser.add_lightning_class_args(SampleLog, "sample_log")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True})
        parser.link_arguments("seed_everything", "model.seed", compute_fn=as_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=as_seed)

    def before_instantiate_classes(self) -> None:
        """Decide on the run folder, and refuse one that holds another run."""
        config = self.config[self.subcommand]
        self.run_folder = Path(config.run) if config.run else default_run(config)
        config.run = str(self.run_folder)
        config.checkpoint.dirpath = str(self.run_folder / "checkpoints")
        if self.subcommand == "fit":
            prepare(self.run_folder, resumes=config.ckpt_path is not None, overwrite=config.overwrite)
            if config.weights_only is None:
                config.weights_only = True  # a checkpoint of ours holds tensors and plain data, no code

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer whose loggers and callbacks write into the run folder."""
        from lightning.pytorch.loggers import TensorBoardLogger

        run = str(self.run_folder)
        callbacks = [*(self._get(self.config_init, "trainer.callbacks") or []), StepProgress(), RunFolder(sys.argv)]
        loggers = [TensorBoardLogger(run, name="tensorboard", version=""), MetricsCsv(run)]
        return super().instantiate_trainer(default_root_dir=run, logger=loggers, callbacks=callbacks, **kwargs)

    def after_fit(self) -> None:
        """Evaluate the last step if that was not done, and say what came of the run."""
        folder = next(c for c in self.trainer.callbacks if isinstance(c, RunFolder))
        name = f"step-{self.trainer.global_step}"
        if self.datamodule.validation_names and name not in folder.results:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        if not self.trainer.is_global_zero:
            return
        if "step-0" in folder.results and name in folder.results and name != "step-0":
            before, after = ([Result(**r) for r in folder.results[key]] for key in ("step-0", name))
            print(before_after_table(before, after))
        print(f"run folder: {self.run_folder}\nTensorBoard: tensorboard --logdir {self.run_folder}", flush=True)


def as_seed(value: bool | int) -> int:
    """`seed_everything` as a number; True and False count as 0."""
    return 0 if isinstance(value, bool) else value


def default_run(config: Any) -> Path:
    """runs/<date>-<names of the config files>."""
    names = [Path(str(c)).stem for c in config.config or []]
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / "-".join([stamp, *(n for n in names if n != "base")])


def prepare(run: Path, resumes: bool, overwrite: bool) -> None:
    """Refuse to write over another run.

    Raises:
        ValueError: If the folder holds a run and neither --ckpt_path nor --overwrite says what to do with it.
    """
    if not (run / "manifest.json").is_file():
        return
    finished = read_manifest(run).get("finished", False)
    if overwrite:
        for name in WRITTEN:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif finished:
        raise ValueError(f"--run {run} holds a finished run: name another folder, or set --overwrite true.")
    elif not resumes:
        raise ValueError(
            f"--run {run} holds a run that did not finish: go on with --ckpt_path last, or set --overwrite true."
        )


def quiet() -> None:
    """Keep notes of the libraries that a user can do nothing about off the screen."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ignored = (".*isinstance.treespec, LeafSpec.*", ".*does not have many workers.*", ".*exists and is not empty.*")
    for message in ignored:
        warnings.filterwarnings("ignore", message=message)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    quiet()
    words = sys.argv[1:] if args is None else args
    try:
        if words[:1] == ["pretrain"]:
            from jsonargparse import auto_cli

            from lit_atex.embedded.pretrain import pretrain

            auto_cli(pretrain, args=words[1:], prog="lit-atex pretrain", as_positional=False)
            return
        Cli(
            SelfDistillation,
            ProblemDataModule,
            args=args,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_kwargs={"prog": "lit-atex"},
        )
    except ValueError as error:  # the user's mistake: the message says what to mend, a traceback does not help
        raise SystemExit(f"lit-atex: error: {error}") from error
