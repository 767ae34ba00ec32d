"""Watches a run for collapse: logs symptoms against its start or best, warns beyond limits, and can stop the run.

What is measured: `symptoms`. The limits are ours, not the paper's.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lit_atex.module import SelfDistillation
from lit_atex.ranks import of_all_ranks
from lit_atex.symptoms import Sums, against, count, measures, total

log = logging.getLogger("lit_atex")
warn = rank_zero_only(log.warning)

ADVICE = {
    "entropy": "The student is sure of every token: lower the learning rate, or show less of the solution (exposure).",
    "length_finished": "Look at samples.jsonl: does it still reason? A lower exposure keeps completions of its own.",
    "length_cut": "See model.sampling.max_new_tokens.",
    "share_cut": "It no longer ends: raise model.sampling.max_new_tokens, or lower the learning rate.",
    "repetition": "It goes round in circles: lower the learning rate, or set trainer.gradient_clip_val.",
    "answer_rate": "It gives no final answer that can be read: look at samples.jsonl, lower the learning rate.",
    "accuracy": "What was learned is being lost: go on from an earlier checkpoint with less exposure, or stop there.",
    "deliberation": "It no longer thinks again: show less of the solution (exposure).",
    "distinct_answers": "All samples agree, and pass@k will fall: show less of the solution (exposure).",
}
"""What to do when a measure is beyond its limit."""

ELSEWHERE = {"entropy": "entropy/student", "share_cut": "length/share_cut", "answer_rate": "competence/unparsed"}
ELSEWHERE |= {"accuracy": "competence/correct"}
"""Measures that the module logs itself; here they are logged compared only."""


class CollapseMonitor(pl.Callback):
    """Logs what a collapse shows in, against the run's start or best; warns, and can stop the run, beyond limits."""

    def __init__(
        self,
        min_entropy_ratio: float | None = 0.02,
        min_length_finished_ratio: float | None = 0.5,
        max_length_finished_ratio: float | None = 2.0,
        max_share_cut_change: float | None = 0.3,
        max_repetition_change: float | None = 0.2,
        min_answer_rate_change: float | None = -0.3,
        max_accuracy_fall: float | None = 0.3,
        min_deliberation_ratio: float | None = None,
        min_distinct_answers_ratio: float | None = None,
        window: int = 5,
        stop_after: int | None = None,
    ) -> None:
        """Set the limits. Each bounds the number logged as `collapse/` and the rest of its name; None: no limit.

        Args:
            min_entropy_ratio: Least student entropy, as a share of that at the start. Low by intent: where a problem
                has one short solution, a student that learns it well may end at a twentieth.
            min_length_finished_ratio: Least length of the rollouts that ended by themselves, as a share.
            max_length_finished_ratio: Greatest length of them, as a multiple.
            max_share_cut_change: Greatest rise of the share of rollouts cut at the limit.
            max_repetition_change: Greatest rise of the share of repeated 4-grams of tokens.
            min_answer_rate_change: Deepest fall of the share of rollouts with a final answer, negative.
            max_accuracy_fall: Furthest that the share of right rollouts may fall below its best. For problems that get
                no harder as the run goes on.
            min_deliberation_ratio: Least deliberation words in 100 tokens, as a share.
            min_distinct_answers_ratio: Least distinct answers per problem, as a share.
            window: Optimizer steps, >= 1. The start is the mean over the first so many, the best over any so many, and
                what is compared with it the mean over the last so many: one noisy step does no harm.
            stop_after: Stop the run after so many optimizer steps in a row beyond one limit, >= 1; None: only warn.

        Raises:
            ValueError: If a number is below 1 that must not be.
        """
        self.limits: dict[str, float | None] = {
            "min_entropy_ratio": min_entropy_ratio,
            "min_length_finished_ratio": min_length_finished_ratio,
            "max_length_finished_ratio": max_length_finished_ratio,
            "max_share_cut_change": max_share_cut_change,
            "max_repetition_change": max_repetition_change,
            "min_answer_rate_change": min_answer_rate_change,
            "max_accuracy_fall": max_accuracy_fall,
            "min_deliberation_ratio": min_deliberation_ratio,
            "min_distinct_answers_ratio": min_distinct_answers_ratio,
        }
        if window < 1 or (stop_after is not None and stop_after < 1):
            raise ValueError(f"collapse.window and collapse.stop_after must be at least 1, got {window}, {stop_after}.")
        self.window, self.stop_after = window, stop_after
        self.start: dict[str, float] | None = None
        """The measures at the start, once there are `window` steps; the accuracy is the best since."""
        self.stopped: str | None = None
        """Why the run was stopped."""
        self._recent: deque[Sums] = deque(maxlen=window)
        self._beyond: dict[str, int] = {}  # steps in a row, by limit
        self._parts: list[Sums] = []
        self._step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that was stopped stays stopped when it is resumed, unless the limits have changed."""
        self._stop(trainer, trainer.global_step - 1)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, batch: Any, batch_idx: int
    ) -> None:
        """With a new optimizer step, forget the micro-batches of the last: a skipped one left them here."""
        if trainer.global_step != self._step:
            self._step, self._parts = trainer.global_step, []

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the micro-batch; after the last of an optimizer step, log and judge."""
        if pl_module.seen is not None:
            self._parts.append(count(pl_module.seen, pl_module.samples, pl_module.verifier.extract))
        if pl_module.feedback is None:
            return
        sums = total(of_all_ranks(total(self._parts)))
        sums["entropy"] = pl_module.feedback.student_entropy * sums.get("tokens", 0.0)  # a mean over all ranks already
        values = self.add(pl_module.feedback.step, sums)
        pl_module.step_log.add(trainer, {f"collapse/{name}": value for name, value in values.items()})
        self._stop(trainer, pl_module.feedback.step)

    def add(self, step: int, sums: Sums) -> dict[str, float]:
        """Take in an optimizer step.

        Args:
            step: Which, from 0.
            sums: Of the whole step; the same on every rank, so that every rank decides the same.

        Returns:
            What is logged: the measures of the step, and those of the window against the start.
        """
        self._recent.append(sums)
        if self.start is None and len(self._recent) == self.window:
            self.start = measures(total(self._recent))
        if self.start is not None and "accuracy" in self.start:
            self.start["accuracy"] = max(self.start["accuracy"], measures(total(self._recent)).get("accuracy", 0.0))
        compared, passed = self._judge()
        self._beyond = {limit: self._beyond.get(limit, 0) + 1 for limit in passed}
        for limit in [limit for limit, steps in self._beyond.items() if steps == 1]:
            warn("step %d: %s", step, passed[limit])
        return {name: value for name, value in measures(sums).items() if name not in ELSEWHERE} | compared

    def _judge(self) -> tuple[dict[str, float], dict[str, str]]:
        """The window against the start; and for each limit that it is beyond, what there is to say."""
        now = measures(total(self._recent))
        compared = against(self.start or {}, now)
        passed = {}
        for limit, bound in self.limits.items():
            side, _, name = limit.partition("_")
            value = compared.get(name)
            if bound is not None and value is not None and (value < bound if side == "min" else value > bound):
                passed[limit] = self._say(limit, now, compared)
        return compared, passed

    def _stop(self, trainer: pl.Trainer, step: int) -> None:
        """Stop the run if it has been beyond a limit for long enough."""
        for limit, told in self._judge()[1].items() if self.stop_after else ():
            if self.stopped is None and self.stop_after and self._beyond.get(limit, 0) >= self.stop_after:
                self.stopped = f"stopped by collapse.stop_after at step {step}: {told}"
                trainer.should_stop = True
                warn("%s", self.stopped)

    def _say(self, limit: str, now: dict[str, float], compared: dict[str, float]) -> str:
        assert self.start is not None
        side, _, name = limit.partition("_")
        measure, _, kind = name.rpartition("_")
        form = {"ratio": "{:.3g} times its value at the start", "change": "{:+.3g} against its value at the start"}
        form["fall"] = "{:.3g} below its best"
        return (
            f"{measure.replace('_', ' ')} {now[measure]:.3g} is {form[kind].format(compared[name])}, "
            f"{self.start[measure]:.3g}: {'below' if side == 'min' else 'above'} collapse.{limit} "
            f"{self.limits[limit]:g}. {ADVICE[measure]}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The start, the last steps, and how long each limit has been passed."""
        return copy.deepcopy({"start": self.start, "recent": list(self._recent), "beyond": self._beyond})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back."""
        self.start, self._beyond = state_dict["start"], dict(state_dict["beyond"])
        self._recent = deque(state_dict["recent"], maxlen=self.window)
