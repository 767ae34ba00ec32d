"""Lightning's checkpoints, for a run that may be killed at any moment: each is whole, and resumes exactly."""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from lit_atex import whole
from lit_atex.evaluation import metric_names
from lit_atex.metrics_csv import MetricsCsv
from lit_atex.resume import FORMAT, read_checkpoint
from lit_atex.run_folder import RunFolder
from lit_atex.selection import MEAN, best, check, of_test_set, summary
from lit_atex.window import StepWindow


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint aside, has it on disk, and renames it: until then the one before stays."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Raises:
            OSError: If it could not be written; nothing is left of it.
            TypeError: If it could not be read back: the state of a callback or a strategy is no plain data.
        """
        check_plain(checkpoint)
        if "://" in str(path):  # not a local file
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        folder = Path(path).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            whole.write(Path(path), lambda file: torch.save(checkpoint, file))
        except OSError as error:
            kept = "Earlier checkpoints are intact" if any(folder.glob("*.ckpt")) else "There is none before it"
            raise OSError(
                f"the checkpoint {path} could not be written: {error.strerror}. {kept}: make room, and go on with "
                "--resume."
            ) from error


PLAIN = {type(None), bool, int, float, complex, str, bytes, torch.Tensor, nn.Parameter, torch.Size, torch.dtype}
HOLDERS = {dict, OrderedDict, Counter, list, tuple, set}


def check_plain(state: Any, where: str = "") -> None:
    """Check that what a checkpoint is to hold can be read back, which is done without running code from the file.

    Args:
        state: The checkpoint, or a part of it.
        where: The keys that lead to this part.

    Raises:
        TypeError: If it cannot; names the part.
    """
    if type(state) in PLAIN:
        return
    if type(state) in HOLDERS:
        for key in state if isinstance(state, dict) else ():
            check_plain(key, f"{where}, its key {key}")
        for key, part in state.items() if isinstance(state, dict) else enumerate(state):
            check_plain(part, f"{where}.{key}")
        return
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        raise TypeError(
            f"no checkpoint with {where.removeprefix('.')}, a {type(state).__name__}, could be read back: return "
            "numbers, strings, lists, dictionaries and tensors from state_dict(), as by float(x), x.tolist(), dict(x)."
        ) from error


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also keeps the last step of the run, whatever `every_n_train_steps` says.

    Files are written by `WholeCheckpointIO`, unless `trainer.plugins` has another. What Lightning does with a step only
    after the checkpoint of that step is not lost if the process is killed in between: its metrics are written before,
    and a validation that was due is made up for.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        monitor: str | None = MEAN,
        mode: str = "max",
        allow_test_selection: bool = False,
        **kwargs: Any,
    ) -> None:
        """Beside the newest checkpoints, keep the weights that did best on validation, as best.ckpt.

        Args:
            dirpath: Where they are kept.
            monitor: What is best: validation/mean (avg@n, averaged over the validation sets), validation/SET/METRIC, or
                null. It is looked at after each validation, not at each checkpoint, where it could be of an older step.
            mode: max or min.
            allow_test_selection: Let a test set choose; tables then say so.
            **kwargs: Those of Lightning's ModelCheckpoint.
        """
        if kwargs.get("save_top_k", 1) not in (-1, 0, 1):
            raise ValueError(
                f"checkpoint.save_top_k must be 1 (the newest), -1 (all) or 0 (none), got {kwargs['save_top_k']}; "
                "last.ckpt, and best.ckpt by checkpoint.monitor, are kept beside them."
            )
        super().__init__(dirpath, **kwargs)
        if mode not in ("max", "min"):
            raise ValueError(f"checkpoint.mode must be max or min, got {mode!r}.")
        self.best_by, self.best_mode, self.allow_test_selection = monitor, mode, allow_test_selection

    state_key = "Checkpoint"  # Lightning's own changes with the settings
    validation_due = False
    """Whether a validation follows the checkpoint that the run goes on from."""
    _lightnings_step, _stops = 0, False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Fit the trainer with our way of writing files; clear away what a killed process left.

        Raises:
            ValueError: If checkpoints are asked for from which a run does not go on exactly.
        """
        if self.save_on_exception:
            raise ValueError(
                "checkpoint.save_on_exception saves in the midst of a step, whose gradients would be lost: leave it "
                "out. A run that stopped goes on from its last checkpoint, see checkpoint.every_n_train_steps."
            )
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and self.best_by is not None and data is not None and data.validation_names:
            solver: Any = pl_module
            known = [*metric_names(solver.eval_samples), *solver.own.paths]
            check(self.best_by, data, known, self.allow_test_selection)
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        if stage == "fit" and trainer.is_global_zero:
            whole.sweep(Path(str(self.dirpath)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make up for the validation that followed the checkpoint, unless it was done before the kill."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved, self._stops = trainer.global_step, False
        epoch, loop = trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop.val_loop
        at_end = trainer.fit_loop.restarted_mid_epoch and trainer.current_epoch == epoch.current.ready  # of a pass
        due, self.validation_due = self.validation_due, False
        if due and f"step-{trainer.global_step}" not in _results(trainer):
            epoch.current.completed -= at_end  # it belongs to the pass before
            loop.restarting, trainer.validating = False, True  # as the loop around it does
            loop.run()
            loop.restarting, trainer.training = True, True
            loop._has_run = False  # else Lightning takes a pass that ends here for one that it went through
            epoch.current.completed += at_end
        if at_end:  # Lightning forgets to open the next pass
            epoch.increment_ready()
            epoch.increment_started()
        self._keep_best(trainer)  # unless the process was killed before it was kept

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Save the last step while its epoch is open: resumed from there, a longer run is as if never stopped."""
        if self._puts_off_stop(trainer):
            return
        trainer.should_stop |= self._stops
        _write_metrics(trainer)
        super().on_train_batch_end(trainer, *args, **kwargs)
        if trainer.global_step == trainer.max_steps or trainer.should_stop:
            self._save_end(trainer)

    def _puts_off_stop(self, trainer: pl.Trainer) -> bool:
        """Whether a window of accumulation is open: a wish to stop, such as EarlyStopping's, then waits for its end."""
        if open_ := in_the_midst(trainer):
            trainer.should_stop, self._stops = False, self._stops or trainer.should_stop
        return open_

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step of a run that ended otherwise."""
        self._save_end(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log an evaluation under the number of steps done; Lightning would take the number of the last step.

        One after training is logged under the last epoch, behind which a run that is resumed there would already be.
        One that makes up for a validation before a kill belongs to the pass that was open then.
        """
        loop = trainer.fit_loop.epoch_loop
        self._lightnings_step, loop._batches_that_stepped = loop._batches_that_stepped, trainer.global_step
        if trainer.state.fn == TrainerFn.VALIDATING and not self.validation_due:
            epoch = trainer.fit_loop.epoch_progress.current
            epoch.completed = epoch.ready

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        if trainer.state.fn == TrainerFn.FITTING:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._lightnings_step
        self._puts_off_stop(trainer)
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self._keep_best(trainer)

    def selection(self, data: Any, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """Which of a run's evaluations was the last and which the best; empty if nobody asked."""
        if self.best_by is None or not data.validation_names:
            return {}
        return summary(results, self.best_by, self.best_mode, of_test_set(self.best_by, data))

    def _keep_best(self, trainer: pl.Trainer) -> None:
        """Save best.ckpt if this step is the best; after the last one `student/` is, and no file is needed."""
        step = trainer.global_step
        if self.best_by is None or self.dirpath is None:
            return
        if best(_results(trainer), self.best_by, self.best_mode) != step:
            return
        path = Path(str(self.dirpath)) / "best.ckpt"
        if trainer.state.fn == TrainerFn.FITTING and step != trainer.max_steps:
            trainer.save_checkpoint(path, weights_only=True)
        elif trainer.is_global_zero:
            path.unlink(missing_ok=True)

    def _should_skip_saving_checkpoint(self, trainer: pl.Trainer) -> bool:
        return super()._should_skip_saving_checkpoint(trainer) or in_the_midst(trainer)

    def _save_end(self, trainer: pl.Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the format, and whether Lightning validates next: a run that it resumes leaves that out."""
        loop = trainer.fit_loop
        due = trainer.training and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
        checkpoint |= {"lit_atex_format": FORMAT, "validation_due": bool(due)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the note; drop weights of steps that are taken again."""
        path = Path(str(self.dirpath)) / "best.ckpt"
        resumed = trainer.state.fn == TrainerFn.FITTING and trainer.is_global_zero
        if resumed and path.is_file() and read_checkpoint(path)["global_step"] > checkpoint["global_step"]:
            path.unlink()
        self.validation_due = checkpoint["validation_due"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; a run folder may have moved, and what is not in this one is not ours to delete later."""
        here = {str(path.name): str(path) for path in Path(str(self.dirpath)).glob("*.ckpt")}
        state = state_dict | {"dirpath": self.dirpath}
        for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
            state[name] = here.get(Path(state[name]).name, "")
        kept = {Path(path).name: score for path, score in state["best_k_models"].items()}
        state["best_k_models"] = {here[name]: score for name, score in kept.items() if name in here}
        super().load_state_dict(state)


def _results(trainer: pl.Trainer) -> dict[str, list[dict[str, Any]]]:
    """The results of the run so far, by evaluation; empty without a run folder."""
    return next((c.results for c in trainer.callbacks if isinstance(c, RunFolder)), {})  # type: ignore[attr-defined]


def in_the_midst(trainer: pl.Trainer) -> bool:
    """Whether a window of accumulation is open: its gradients are in no file."""
    module: Any = trainer.lightning_module
    return isinstance(getattr(module, "window", None), StepWindow) and module.window.is_open


def _write_metrics(trainer: pl.Trainer) -> None:
    """Write the step's row of metrics.csv, as Lightning will when the checkpoint is there."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return
    row = convert_tensors_to_scalars(connector.metrics["log"]) | {"epoch": trainer.current_epoch}
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCsv):
            logger.log_metrics(row, trainer.fit_loop.epoch_loop._batches_that_stepped)
