"""The numbers of an optimizer step: gathered from whoever has some, and written once. It knows names, not meanings.

`LightningModule.log` takes 0.8 ms a name and step, all in all, since it can average over epochs and ranks. For some 45
names that need nothing of the kind it was 3.5 % of a step of the embedded reasoner. It works beside this as always.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import lightning.pytorch as pl
import torch

from lit_atex.metrics_csv import write

SHOWN = {
    "loss": "loss/divergence",
    "exposure": "exposure/ratio",
    "mismatch": "mismatch/forward_kl",
    "accuracy": "competence/correct",
    "tok/s": "throughput/completion_tokens_per_s",
}
"""The few numbers of the progress bar."""


class StepLog(pl.Callback):
    """Hands the step's numbers to the loggers, under the step and as often as Lightning would.

    The module brings it along (`configure_callbacks`), so that it comes after all callbacks but those that write
    checkpoints: these find the step's row on disk. A number that is not added in a step is not in its row.
    """

    def __init__(self) -> None:
        self._scalars: dict[str, float] = {}
        self._written = 0
        self._added = set[str]()  # in this batch

    def add(self, trainer: pl.Trainer, scalars: Mapping[str, Any], by: str = "step_log.add") -> None:
        """Take numbers, the same on every rank; at once in `trainer.callback_metrics`, for whatever monitors one.

        Args:
            trainer: The trainer. Numbers added between batches are in the next step's row; after the last, in none.
            scalars: By name; numbers of NumPy and torch, and truths, which count as 0 and 1, among them.
            by: Whose they are, for errors.

        Raises:
            ValueError: If a value is no number, a name comes a second time in a batch (one of them would be lost), or
                this is no `fit`, which has no steps.
        """
        if trainer.state.fn != "fit":
            raise ValueError(
                f"step_log.add: {', '.join(scalars)} outside of `fit`, where no step's row takes them: what an "
                "evaluation measures is a function in model.eval_metrics, or self.log of Lightning."
            )
        numbers = {}
        for name, value in scalars.items():
            if name in ("epoch", "step") or name in self._added:
                raise ValueError(f"{by}: {name!r} is a number of this batch already: choose another name.")
            numbers[name] = _number(name, value, by)
        self._added |= numbers.keys()
        self._scalars |= numbers
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in numbers.items()})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget a step that was interrupted."""
        self._scalars, self._added = {}, set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin behind the step that a run goes on from."""
        self._written = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write them, if the batch closed an optimizer step; else they wait for the one that does."""
        self._added = set()
        every, steps = trainer.log_every_n_steps, trainer.global_step  # type: ignore[attr-defined]
        if steps == self._written:
            return
        scalars, self._scalars, self._written = self._scalars, {}, steps
        if scalars and every and (steps % every == 0 or trainer.should_stop):
            for logger in trainer.loggers:
                write(logger, scalars | {"epoch": trainer.current_epoch}, steps - 1)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        """Have it all on disk: a run that goes on from the checkpoint logs none of it again."""
        for logger in trainer.loggers:
            logger.save()


def _number(name: str, value: Any, by: str) -> float:
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if not isinstance(value, Real):
        raise ValueError(f"{by}: {name!r} is {value!r:.200}, which is no number: give float(...) of it.")
    return float(value) if isinstance(value, bool) else value  # type: ignore[return-value]
