"""Exposure rules that follow what was measured: competence, mismatch. They do not learn: each is a line of arithmetic.

Like all strategies they never see a model. The paper has neither; they are rivals of its learned controller.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from lit_atex.exposure import Credit, Exposure, TrainingState, in_order
from lit_atex.types import StepFeedback


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"exposure.strategy.init_args.{name} must be positive and finite, got {value}.")
    return value


class CompetenceBased(Exposure):
    """The better the student, the less is shown: floor + (ceiling - floor) * (1 - competence) ** shape.

    Use it when levels of difficulty are mixed or the student improves by much: what is failed is taught with the whole
    solution, what is solved is left to the student. The map is ours: smooth, decreasing, with one number to bend it.
    """

    def __init__(
        self, per: Literal["all", "problem"] = "all", floor: float = 0.0, ceiling: float = 1.0, shape: float = 1.0
    ) -> None:
        """Set the map.

        Args:
            per: One exposure from the success over all problems, or each problem's own from its own; a problem not seen
                before has its level's. Before any feedback competence is 1/2.
            floor: Exposure of what is always solved, in [0, 1].
            ceiling: Exposure of what is never solved, in [floor, 1].
            shape: Above 1 the solution is withdrawn early, below 1 late; 1 is a straight line. > 0.

        Raises:
            ValueError: If an argument is out of range.
        """
        self.per, self.shape = per, _positive("shape", shape)
        self.floor, self.ceiling = in_order("floor", floor, "ceiling", ceiling)

    def ratios(self, state: TrainingState) -> list[float]:
        """The competence as the window opened, mapped: over all, or of each problem."""
        if state.competence is None:
            raise ValueError("exposure.strategy CompetenceBased reads competence: add a CompetenceEstimator callback.")
        if self.per == "all":
            return [self._map(state.competence.mean())] * len(state.problem_ids)
        keys = zip(state.levels, state.problem_ids)
        return [self._map(state.competence.mean(level=level, problem=problem)) for level, problem in keys]

    def _map(self, success: float) -> float:
        ratio = self.floor + (self.ceiling - self.floor) * (1 - success) ** self.shape
        return min(max(ratio, self.floor), self.ceiling)


class MismatchTarget(Exposure):
    """Holds the mean mismatch, KL(teacher || student) per token, at a target, by integral control.

    Use it when steps should ask the same of the student throughout: too much is shown where the teacher says what the
    student would never say, too little where there is nothing to learn. As a window opens, exposure moves by
    gain * (target - mismatch) / target of the window before. The rule is ours.
    """

    def __init__(
        self, target: float = 0.05, gain: float = 0.1, start: float = 0.5, floor: float = 0.0, ceiling: float = 1.0
    ) -> None:
        """Set the control.

        Args:
            target: Mismatch to hold, > 0; nats per token.
            gain: Change of exposure in a window without mismatch, > 0; above 2 * target over the mismatch at full
                exposure it swings.
            start: Exposure of the first window, in [floor, ceiling].
            floor: Least exposure, in [0, 1].
            ceiling: Greatest exposure, in [floor, 1].

        Raises:
            ValueError: If an argument is out of range.
        """
        self.target, self.gain = _positive("target", target), _positive("gain", gain)
        self.floor, self.ceiling = in_order("floor", floor, "ceiling", ceiling)
        if not floor <= start <= ceiling:
            raise ValueError(f"exposure.strategy.init_args.start must lie in [{floor}, {ceiling}], got {start}.")
        self._ratio, self._ignored = start, 0
        self._sum, self._steps, self._last = 0.0, 0, math.nan

    def begin_window(self, state: TrainingState, progress: float | None) -> list[Credit]:
        """Move by the error. What is integrated is the clipped value, so that a bound is left at once (anti-windup)."""
        if self._steps:
            self._last = self._sum / self._steps
            moved = self._ratio + self.gain * (1 - self._last / self.target)
            self._ratio = min(max(moved, self.floor), self.ceiling)
            self._sum, self._steps = 0.0, 0
        return []

    def ratios(self, state: TrainingState) -> list[float]:
        """The window's ratio, for each problem."""
        return [self._ratio] * len(state.problem_ids)

    def update(self, feedback: StepFeedback) -> None:
        """Add a step to the window's mean; each counts the same. What is not finite is counted and left out."""
        if not feedback.mean_length:  # nothing was sampled, so there is no mismatch
            return
        if math.isfinite(feedback.mismatch):
            self._sum, self._steps = self._sum + feedback.mismatch, self._steps + 1
        else:
            self._ignored += 1

    def scalars(self) -> dict[str, float]:
        """The relative error that made the last move, and steps left out."""
        known = {} if math.isnan(self._last) else {"mismatch_error": self._last / self.target - 1}
        return {**known, "mismatch_ignored": float(self._ignored)}

    def state_dict(self) -> dict[str, Any]:
        """Where the control stands."""
        names = ("_ratio", "_ignored", "_sum", "_steps", "_last")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, within floor and ceiling as they are now."""
        self.__dict__.update(state)
        self._ratio = min(max(self._ratio, self.floor), self.ceiling)
