"""What a run is resumed from: Lightning's checkpoint callback, fitted to a run folder; what --ckpt_path means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also keeps the last step of the run, whatever `every_n_train_steps` says."""

    state_key = "Checkpoint"  # Lightning's own changes with the settings

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Save the last step while its epoch is open: resumed from there, a longer run is as if never stopped."""
        super().on_train_batch_end(trainer, *args, **kwargs)
        if trainer.global_step == trainer.max_steps:
            self._save_end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step of a run that ended otherwise."""
        self._save_end(trainer)

    def _save_end(self, trainer: pl.Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; a run folder may have moved, and what is not in this one is not ours to delete later."""
        here = {str(path.name): str(path) for path in Path(str(self.dirpath)).glob("*.ckpt")}
        state = state_dict | {"dirpath": self.dirpath}
        for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
            state[name] = here.get(Path(state[name]).name, "")
        kept = {Path(path).name: score for path, score in state["best_k_models"].items()}
        state["best_k_models"] = {here[name]: score for name, score in kept.items() if name in here}
        super().load_state_dict(state)


def find_checkpoint(run: Path, given: str | None) -> str | None:
    """The file that --ckpt_path means; None if it is not set, or "last" and there is none yet.

    Raises:
        ValueError: If a file is named that does not exist.
    """
    if given == "last":
        last = run / "checkpoints" / "last.ckpt"
        return str(last) if last.is_file() else None
    if given and given.endswith(".ckpt") and not Path(given).is_file():
        raise ValueError(f"--ckpt_path {given}: there is no such file; `last` means {run}/checkpoints/last.ckpt.")
    return given
