"""What stands between Lightning's hooks and the parts that know no Lightning: strategies, and measures of progress."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from lit_atex import whole
from lit_atex.checks import check_memory
from lit_atex.competence import Competence
from lit_atex.estimator import CompetenceEstimator
from lit_atex.exposure import Credit, Exposure, TrainingState
from lit_atex.measures import ProgressMeasure, RolloutAccuracy, digest_of, probe_of
from lit_atex.metrics_csv import tensorboard
from lit_atex.module import SelfDistillation
from lit_atex.types import Problem

log = logging.getLogger("lit_atex")


class ExposureControl(pl.Callback):
    """Sets `module.exposure` by a strategy, window by window, and tells the strategy what came of it.

    Decisions whose reward is known are appended to `decisions.jsonl` in the run folder.
    """

    def __init__(
        self, strategy: Exposure, hold: int | Literal["epoch"] = 1, progress: ProgressMeasure | None = None
    ) -> None:
        """Choose the rule.

        Args:
            strategy: The rule.
            hold: Optimizer steps for which a decision holds (the window), >= 1, or "epoch".
            progress: What strategies that learn are rewarded for; None: `RolloutAccuracy()`. Others never read it.

        Raises:
            ValueError: If hold is below 1.
        """
        if hold != "epoch" and hold < 1:
            raise ValueError(f"exposure.hold must be at least 1 or 'epoch', got {hold}.")
        self.strategy, self.hold = strategy, hold
        self.progress = RolloutAccuracy() if progress is None else progress
        self._probed: str | None = None  # which problems progress is measured on
        self._epoch_began = (0, 0)  # (epoch, its first optimizer step)
        self._window = -1  # first optimizer step of the open window
        self._competence: Competence | None = None  # as it opened
        self._resumed: dict[str, Any] | None = None  # its state, in the midst of a window that goes on
        self._step_seconds = self._probe_seconds = self._last_probe = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: SelfDistillation) -> None:  # type: ignore[override]
        """Refuse what cannot work, and warn of what would surprise.

        Raises:
            ValueError: If the progress measure needs a probe and there is none, or cannot follow this run; windows
                last an endless epoch; or a strategy or measure saves what it does not load.
        """
        source = getattr(getattr(trainer, "datamodule", None), "train", None)
        endless = source is not None and not source.finite and not isinstance(trainer.limit_train_batches, int)
        if self.hold == "epoch" and endless:
            raise ValueError(
                "exposure.hold: epoch holds a decision for a pass over data.train, which never ends: set "
                "data.train.init_args.size, trainer.limit_train_batches, or exposure.hold to a number of steps."
            )
        if trainer.max_steps > 0 and trainer.max_epochs not in (None, -1):
            log.warning(
                "trainer.max_steps (%d), by which exposure strategies measure time, and trainer.max_epochs (%d) are "
                "both set: the first to be reached ends the run. For epochs alone, --trainer.max_steps -1.",
                *(trainer.max_steps, trainer.max_epochs),
            )
        check_memory("exposure.strategy", type(self.strategy), Exposure, "update")
        check_memory("exposure.progress", type(self.progress), ProgressMeasure, "update", "window_opens")
        if not self.strategy.needs_progress:
            if type(self.progress) is not RolloutAccuracy:
                log.warning("exposure.progress is not read: %s learns nothing.", type(self.strategy).__name__)
            return
        self.progress.check(pl_module)
        if self.progress.needs_probe:
            self._check_probe(probe_of(trainer))

    def _check_probe(self, probe: list[Problem]) -> None:
        """Refuse to measure progress on nothing, or on other problems than before."""
        if not probe:
            raise ValueError(
                f"exposure.progress ({type(self.progress).__name__}) reads a probe: set data.probe to a small held-out "
                "source, or choose lit_atex.measures.RolloutAccuracy."
            )
        then, self._probed = self._probed, digest_of(probe)
        if then not in (None, self._probed):
            raise ValueError(
                "--resume: data.probe holds other problems than as this run began, and progress is not to be "
                "measured on one and then on another: set it back, or begin another run from its student/."
            )

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, batch: list[Problem], batch_idx: int
    ) -> None:
        """Decide. Micro-batches of one optimizer step, and steps of one window, are decided at the same state."""
        step = trainer.global_step
        if self._epoch_began[0] != trainer.current_epoch:
            self._epoch_began = (trainer.current_epoch, step)
        steps = trainer.estimated_stepping_batches if trainer.max_steps < 0 else trainer.max_steps
        window = self._epoch_began[1] if self.hold == "epoch" else step - step % self.hold
        now = next((c.competence for c in trainer.callbacks if isinstance(c, CompetenceEstimator)), None)  # type: ignore[attr-defined]
        if now is not None and (window != self._window or self._competence is None):
            # Within a step nothing is counted; over several a copy holds still.
            self._competence = now if self.hold == 1 else now.frozen()
            if window == self._window and self._resumed is not None:
                self._competence.load_state_dict(self._resumed)
        state = TrainingState(
            step=window,
            max_steps=int(steps) if math.isfinite(steps) else 0,
            epoch=trainer.current_epoch,
            problem_ids=[p.id for p in batch],
            levels=[p.level for p in batch],
            competence=self._competence,
        )
        if window != self._window:
            self._window = window
            credits = self.strategy.begin_window(state, self._read(trainer, pl_module, batch))
            self._record(trainer, credits)
        pl_module.exposure = self._checked(self.strategy.ratios(state), len(batch))

    def _checked(self, ratios: Any, count: int) -> list[float]:
        """The ratios of a strategy, which may be a user's.

        Raises:
            ValueError: If they are not one number in [0, 1] for each problem.
        """
        try:
            found = [float(ratio) for ratio in ratios]
        except (TypeError, ValueError):
            found = []
        if len(found) != count or not all(0 <= ratio <= 1 for ratio in found):
            raise ValueError(
                f"exposure.strategy: {type(self.strategy).__name__}.ratios must return a number in [0, 1] for each of "
                f"the {count} problems, a list as long as state.problem_ids; it returned {str(ratios)[:200]}."
            )
        return found

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the step was done with; pass on the feedback."""
        feedback = pl_module.feedback
        if feedback is None:
            return
        scalars = {f"exposure/{name}": value for name, value in self.strategy.scalars().items()}
        self._step_seconds += pl_module.step_seconds
        if self.strategy.needs_progress:
            scalars |= {f"exposure/{name}": value for name, value in self.progress.scalars().items()}
            scalars |= {"time/probe": self._last_probe, "time/probe_share": self._probe_seconds / self._step_seconds}
            self._last_probe = 0.0
        pl_module.step_log.add(trainer, scalars, f"exposure.strategy: {type(self.strategy).__name__}.scalars")
        if len(set(feedback.exposures)) > 1 and (writer := tensorboard(trainer)) is not None:
            writer.add_histogram("exposure/ratios", torch.tensor(feedback.exposures), trainer.global_step - 1)
        self.strategy.update(feedback)
        self.progress.update(feedback)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: SelfDistillation) -> None:  # type: ignore[override]
        """Record what the decisions still pending have earned. Here, since a run may resume with nothing left to do."""
        if self._window >= 0:
            self._record(trainer, self.strategy.finish(self._read(trainer, pl_module)))

    def _read(self, trainer: pl.Trainer, module: SelfDistillation, batch: list[Problem] | None = None) -> float | None:
        if not self.strategy.needs_progress:
            return None
        began, of_step = time.perf_counter(), sum(module.clock.seconds.values())
        if batch is not None:
            with trainer.precision_plugin.forward_context():  # rollouts may be drawn, as the step would
                self.progress.window_opens(module, batch)
        progress = self.progress.read(module, probe_of(trainer)[trainer.global_rank :: trainer.world_size])
        # Rollouts drawn ahead are the step's.
        self._last_probe = time.perf_counter() - began - (sum(module.clock.seconds.values()) - of_step)
        self._probe_seconds += self._last_probe
        return progress

    def _record(self, trainer: pl.Trainer, credits: list[Credit]) -> None:
        if not credits or not trainer.is_global_zero:
            return
        try:
            told = [c._asdict() | {"decided_at": c.step, "step": trainer.global_step} for c in credits]
            rows, complete = [whole.json_line(row) for row in told], credits[-1].complete
        except (AttributeError, TypeError) as error:
            what = f"exposure.strategy: {type(self.strategy).__name__}.begin_window and .finish must return a list of"
            raise ValueError(
                f"{what} Credit (exposure.py) with plain numbers, float(x); got {credits!r:.300}"
            ) from error
        (path := Path(trainer.default_root_dir) / "decisions.jsonl").parent.mkdir(parents=True, exist_ok=True)
        if not complete and path.is_file():  # the end of the run, perhaps for the second time
            whole.write(path, "".join(whole.json_line(x) for x in whole.json_lines(path) if x["complete"]))
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(rows)

    def state_dict(self) -> dict[str, Any]:
        """The strategy's state, the progress measure's and the window's."""
        return {
            "kinds": self._kinds(),
            "strategy": self.strategy.state_dict(),
            "progress": self.progress.state_dict(),
            "probe": self._probed,
            "epoch_began": self._epoch_began,
            "window": self._window,
            "competence": self._competence.state_dict() if self._competence is not None and self.hold != 1 else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back.

        Raises:
            ValueError: If the run was begun with another strategy or measure, whose state this is.
        """
        if state_dict["kinds"] != self._kinds():
            then, now = (", ".join(kinds) for kinds in (state_dict["kinds"], self._kinds()))
            raise ValueError(
                f"--resume: exposure.strategy and exposure.progress were {then} as this run began, and are {now}: set "
                "them back, or begin another run from its student/."
            )
        self.strategy.load_state_dict(state_dict["strategy"])
        self.progress.load_state_dict(state_dict["progress"])
        self._probed = state_dict["probe"]
        self._epoch_began = tuple(state_dict["epoch_began"])
        self._window = state_dict["window"]
        self._resumed = state_dict["competence"]

    def _kinds(self) -> list[str]:
        return [f"{type(x).__module__}.{type(x).__qualname__}" for x in (self.strategy, self.progress)]
