"""The running success of the student while Lightning trains: kept, logged, summed up. What is counted: `competence`."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from tqdm import tqdm

from lit_atex.competence import Competence
from lit_atex.metrics_csv import tensorboard
from lit_atex.module import SelfDistillation
from lit_atex.text_tables import competence_table

log = logging.getLogger("lit_atex")


class CompetenceEstimator(pl.Callback):
    """Keeps the running success rate: logged at each step, summed up at the end of each epoch and of training.

    `competence` is up to date from the end of an optimizer step on, so whoever decides at the start of the next batch
    may read it, in whatever order the callbacks stand.
    """

    def __init__(
        self, decay: float = 0.9, visit_decay: float = 0.7, prior_weight: float = 2.0, max_problems: int = 100_000
    ) -> None:
        """Set the memory.

        Args:
            decay: Share of the counts of a level, and of all, that is kept at each optimizer step, in (0, 1]; 0.9
                remembers about ten steps.
            visit_decay: Share of a problem's counts that is kept when it is seen again, in (0, 1]; 0.7 remembers about
                three visits.
            prior_weight: Rollouts that a level's mean is worth in the estimate of a problem, > 0.
            max_problems: Problems that are kept, >= 1; the least recently seen fold into their level's prior.
        """
        self.competence = Competence(decay, visit_decay, prior_weight, max_problems)
        self._summed_up = 0  # rollouts that the last summary knew

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the optimizer step that was just done, if one was."""
        if pl_module.feedback is None:
            return
        self.competence.update(pl_module.feedback)
        low, high = self.competence.interval()
        scalars = {"running": self.competence.mean(), "running_low": low, "running_high": high}
        levels = self.competence.levels()
        scalars |= {f"running_level_{x}": self.competence.mean(level=x) for x in levels if len(levels) > 1}
        pl_module.step_log.add(trainer, {f"competence/{name}": value for name, value in scalars.items()})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A table per level in the log, and a histogram of the problems' estimates in TensorBoard."""
        self._sum_up(trainer, f"epoch {trainer.current_epoch}, step {trainer.global_step}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, if training stopped within an epoch: a stream may be one that never ends."""
        self._sum_up(trainer, f"step {trainer.global_step}")

    def _sum_up(self, trainer: pl.Trainer, title: str) -> None:
        rollouts = self.competence.tally().rollouts
        if not trainer.is_global_zero or rollouts == self._summed_up:
            return
        self._summed_up = rollouts
        with tqdm.external_write_mode():  # bars step aside
            log.info("%s", competence_table(title, self.competence))
        if (writer := tensorboard(trainer)) is not None:
            means = torch.tensor(self.competence.means())
            writer.add_histogram("competence/problems", means, trainer.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return self.competence.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the counts back."""
        self.competence.load_state_dict(state_dict)
        self._summed_up = self.competence.tally().rollouts
