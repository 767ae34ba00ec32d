"""How much of the reference solution the teacher sees: the interface, and the rules that do not learn.

A strategy maps the state of training to a ratio per problem and is told what came of it. It never sees a model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

from lit_atex.competence import Competence
from lit_atex.types import StepFeedback, seeded


class TrainingState(NamedTuple):
    """What a strategy may decide by.

    Attributes:
        step: Optimizer steps done as the window opened: all of its steps are decided by the same state.
        max_steps: Optimizer steps in all; 0 if not known.
        epoch: Epochs of the trainer done: passes over the source, or `trainer.limit_train_batches` batches each.
        problem_ids: The problems of the coming batch.
        levels: Their level labels.
        competence: The estimate of the student's success as the window opened, read only; None without a
            `CompetenceEstimator`.
    """

    step: int
    max_steps: int
    epoch: int
    problem_ids: list[str]
    levels: list[str]
    competence: Competence | None = None

    @property
    def progress(self) -> float:
        """Share of the run as the window opened: 0 at the first optimizer step, 1 at the last.

        Raises:
            ValueError: If the length of the run is not known.
        """
        if self.max_steps <= 0:
            raise ValueError(
                "this exposure strategy needs the length of the run: set trainer.max_steps, and leave out "
                "trainer.max_epochs."
            )
        return min(self.step / max(self.max_steps - 1, 1), 1.0)


class Credit(NamedTuple):
    """A decision and what it earned.

    Attributes:
        decision: Its number in the run, from 0.
        step: Optimizer step at which it was taken.
        ratio: The exposure that was chosen.
        reward: Its discounted learning progress; None if progress was not known at two points at least.
        complete: Whether its whole horizon was seen; False only at the end of a run.
        details: Further numbers for the record, by name.
    """

    decision: int
    step: int
    ratio: float
    reward: float | None
    complete: bool
    details: dict[str, Any]


class Exposure(ABC):
    """A rule for the exposure (reveal ratio), in [0, 1]: 0 shows the teacher nothing, 1 the whole solution.

    A run is cut into windows of optimizer steps (`exposure.hold`). The calls are: `begin_window` once as a window
    opens, `ratios` once per micro-batch, `update` once per optimizer step that was not skipped; `finish` at the end.
    """

    needs_progress: bool = False
    """Whether `begin_window` and `finish` want the progress measure read (`exposure.progress`), which may cost time."""

    def begin_window(self, state: TrainingState, progress: float | None) -> list[Credit]:
        """Decide anew.

        Args:
            state: The state of training as the window opens.
            progress: The progress measure now, higher is better; None if not needed or not known yet.

        Returns:
            The decisions whose reward has become known, in the order in which they were taken; each once.
        """
        return []

    @abstractmethod
    def ratios(self, state: TrainingState) -> list[float]:
        """One ratio per problem of the batch. Must depend on the state and on earlier feedback alone."""

    def update(self, feedback: StepFeedback) -> None:
        """Learn what came of an optimizer step; reduced over ranks, so every rank hears the same."""

    def finish(self, progress: float | None) -> list[Credit]:
        """What the decisions still pending have earned so far. Changes nothing: a longer run may go on from here."""
        return []

    def scalars(self) -> dict[str, float]:
        """What to log under `exposure/`, besides the ratio."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: numbers, strings, lists, dictionaries and tensors, nothing of other classes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def in_unit(name: str, value: float) -> float:
    """The value of an argument, if it is a ratio.

    Raises:
        ValueError: If it is not.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"exposure.strategy.init_args.{name} must lie in [0, 1], got {value}.")
    return value


def in_order(low: str, least: float, high: str, greatest: float) -> tuple[float, float]:
    """The values of two arguments, if they are ratios and the first is not above the second.

    Raises:
        ValueError: If they are not.
    """
    found = in_unit(low, least), in_unit(high, greatest)
    if least > greatest:
        raise ValueError(f"exposure.strategy.init_args: {low} ({least}) must not be above {high} ({greatest}).")
    return found


class Fixed(Exposure):
    """The same exposure throughout. At 1 this is OPSD; at 0 the teacher knows nothing more: the null control."""

    def __init__(self, ratio: float = 1.0) -> None:
        """Set the ratio.

        Args:
            ratio: Exposure in [0, 1].

        Raises:
            ValueError: If it is out of range.
        """
        self.ratio = in_unit("ratio", ratio)

    def ratios(self, state: TrainingState) -> list[float]:
        """The ratio, for each problem."""
        return [self.ratio] * len(state.problem_ids)


class Scheduled(Exposure):
    """Exposure as a function of time: use it when you know which way it should go, and as the learned rules' rival.

    A window (`exposure.hold`) has the curve's value where it opens: with many steps to a window the last is short of
    `end`, and if one window lasts for the whole run nothing moves.
    """

    def __init__(
        self,
        shape: Literal["linear", "cosine", "step"] = "linear",
        start: float = 1.0,
        end: float = 0.0,
        stages: int = 4,
    ) -> None:
        """Set the curve.

        Args:
            shape: "linear"; "cosine" (slow at both ends); "step" (equal stages, each at its own level).
            start: Exposure at the first step, in [0, 1].
            end: Exposure at the last step, in [0, 1].
            stages: Number of levels of "step", >= 2; the others do not use it.

        Raises:
            ValueError: If an argument is out of range.
        """
        if stages < 2:
            raise ValueError(f"exposure.strategy.init_args.stages must be at least 2, got {stages}.")
        self.shape, self.stages = shape, stages
        self.start, self.end = in_unit("start", start), in_unit("end", end)

    def ratios(self, state: TrainingState) -> list[float]:
        """The curve's value now, for each problem."""
        time = state.progress
        if self.shape == "cosine":
            time = (1 - math.cos(math.pi * time)) / 2
        elif self.shape == "step":
            time = min(int(time * self.stages), self.stages - 1) / (self.stages - 1)
        value = self.start + (self.end - self.start) * time
        return [min(max(value, 0.0), 1.0)] * len(state.problem_ids)


class Random(Exposure):
    """Uniform exposure: the control that a learned rule must beat."""

    def __init__(
        self,
        low: float = 0.0,
        high: float = 1.0,
        per: Literal["step", "problem"] = "step",
        seed: int | None = None,
        nothing: float = 0.0,
    ) -> None:
        """Set the range.

        Args:
            low: Least exposure, in [0, 1].
            high: Greatest exposure, in [low, 1].
            per: One draw for all problems of a window (`exposure.hold`), or one for each problem.
            seed: Of the draws. None: that of the run (`seed_everything`), 0 in Python.
            nothing: Share of the draws, in [0, 1], that are 0 whatever the range is.

        Raises:
            ValueError: If the range is out of order, or the share no share.
        """
        self.low, self.high = in_order("low", low, "high", high)
        self.per, self.nothing, self.seed = per, in_unit("nothing", nothing), seed or 0

    def ratios(self, state: TrainingState) -> list[float]:
        """Fresh draws, set by seed, the step at which the window opened, and, for `per: problem`, the problem's id."""
        if self.per == "step":
            return [self.draw(state.step)] * len(state.problem_ids)
        return [self.draw(state.step, name) for name in state.problem_ids]

    def draw(self, *counters: int | str) -> float:
        """One exposure."""
        random = seeded(self.seed, "exposure", *counters)
        ratio = self.low + (self.high - self.low) * float(random.random())
        return 0.0 if random.random() < self.nothing else ratio
