"""Discounted learning progress: what a decision about exposure earned, which is known only some windows later.

It knows neither how the decision was taken nor how progress is measured.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

from lit_atex.exposure import Credit, Exposure, TrainingState

FINITE = 1e30
"""Numbers beyond this are no measurements."""


class Decision(NamedTuple):
    """An exposure that was chosen as a window opened.

    Attributes:
        number: Windows opened before, in the whole run.
        step: Optimizer step at which the window opened.
        ratio: The exposure.
        details: What else its learner needs back with the reward: plain numbers and lists.
    """

    number: int
    step: int
    ratio: float
    details: dict[str, Any]


class LearningProgress:
    """The queue of decisions whose reward is not known yet.

    Decision k earns R_k = sum over j = 1..J of discount^(j-1) (P_(k+j) - P_(k+j-1)), where P_k is the progress measure
    as window k opens: j = 1 is what its own window brought, the later terms what came of it (ATESD, "discounted
    learning-progress reward"; the measure, J and the discount are our choice). R_k is known as window k+J opens.
    """

    def __init__(self, horizon: int = 3, discount: float = 0.9) -> None:
        """Set how far ahead a decision is judged.

        Args:
            horizon: Windows that count for a decision (J), >= 1.
            discount: Weight of each further window, in [0, 1]; 0 judges a decision by its own window alone.

        Raises:
            ValueError: If a number is out of range.
        """
        if horizon < 1:
            raise ValueError(f"exposure.strategy.init_args.horizon must be at least 1, got {horizon}.")
        if not 0 <= discount <= 1:
            raise ValueError(f"exposure.strategy.init_args.discount must lie in [0, 1], got {discount}.")
        self.horizon, self.discount = horizon, discount
        self._waiting: list[tuple[Decision, list[float | None]]] = []

    def read(self, progress: float | None) -> list[tuple[Decision, float | None]]:
        """A window opens at this progress.

        Returns:
            The decisions that have seen their whole horizon, oldest first, with their rewards.
        """
        for _, readings in self._waiting:
            readings.append(progress)
        done = [(d, self.reward(readings)) for d, readings in self._waiting if len(readings) > self.horizon]
        self._waiting = [waiting for waiting in self._waiting if len(waiting[1]) <= self.horizon]
        return done

    def wait(self, decision: Decision, progress: float | None) -> None:
        """Queue the decision of the window that opened at this progress."""
        self._waiting.append((decision, [progress]))

    def so_far(self, progress: float | None) -> list[tuple[Decision, float | None]]:
        """The decisions still waiting, with what they earned until now; the queue stays as it is."""
        return [(d, self.reward([*readings, progress])) for d, readings in self._waiting]

    def reward(self, readings: list[float | None]) -> float | None:
        """R of P_k, P_(k+1), ...; None if fewer than two readings are known, or it is beyond FINITE.

        A reading that is not known counts as the known one before it, the first ones as the first known: no progress
        is made up.
        """
        known = [p for p in readings if p is not None]
        if len(known) < 2:
            return None
        last, total, weight = known[0], 0.0, 1.0
        for p in readings[1:]:
            now = last if p is None else p
            total += weight * (now - last)
            last, weight = now, weight * self.discount
        return total if abs(total) < FINITE else None

    def state_dict(self) -> dict[str, Any]:
        """The queue as plain data."""
        return {"waiting": [[*decision, list(readings)] for decision, readings in self._waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the queue back."""
        self._waiting = [(Decision(*given), list(readings)) for *given, readings in state["waiting"]]


class Rewarded(Exposure):
    """A strategy that decides once a window, for all problems, and is told later what that earned."""

    needs_progress = True

    def __init__(self, low: float, high: float, horizon: int, discount: float) -> None:
        """Set the range and the reward.

        Args:
            low: Least exposure, in [0, 1].
            high: Greatest exposure, in (low, 1].
            horizon: Windows of progress that a decision is judged by (J), >= 1.
            discount: Weight of each further window, in [0, 1].

        Raises:
            ValueError: If a number is out of range.
        """
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"exposure.strategy.init_args: low ({low}) and high ({high}) must satisfy 0 <= low < high <= 1."
            )
        self.low, self.high = low, high
        self.queue = LearningProgress(horizon, discount)
        self._number = 0
        self._ratio = (low + high) / 2
        self._scalars: dict[str, float] = {}

    @abstractmethod
    def decide(
        self, state: TrainingState, progress: float | None, earned: list[tuple[Decision, float]]
    ) -> tuple[float, dict[str, Any]]:
        """Learn, then choose the window's exposure.

        Args:
            state: The state of training.
            progress: The progress measure now, finite; None if it is not known.
            earned: The decisions whose reward has become known, oldest first; finite rewards alone.

        Returns:
            The exposure, and what comes back with its reward: plain numbers, lists, dictionaries.
        """

    def begin_window(self, state: TrainingState, progress: float | None) -> list[Credit]:
        """Pass on what was earned, and take the next decision."""
        progress = _known(progress)
        done = self.queue.read(progress)
        earned = [(decision, reward) for decision, reward in done if reward is not None]
        self._ratio, details = self.decide(state, progress, earned)
        self.queue.wait(Decision(self._number, state.step, self._ratio, details), progress)
        self._number += 1
        if earned:
            self._scalars["reward"] = earned[-1][1]
        return [_credit(decision, reward, complete=True) for decision, reward in done]

    def ratios(self, state: TrainingState) -> list[float]:
        """The window's exposure, for each problem."""
        return [self._ratio] * len(state.problem_ids)

    def finish(self, progress: float | None) -> list[Credit]:
        """What the last decisions earned in the windows that the run had left."""
        return [_credit(decision, reward, complete=False) for decision, reward in self.queue.so_far(_known(progress))]

    def scalars(self) -> dict[str, float]:
        """What the last decision was taken by, and the latest reward."""
        return dict(self._scalars)

    def state_dict(self) -> dict[str, Any]:
        """Queue, and the open window."""
        return {
            "queue": self.queue.state_dict(),
            "number": self._number,
            "ratio": self._ratio,
            "scalars": dict(self._scalars),
            "form": self.form(),
        }

    def form(self) -> dict[str, Any]:
        """The arguments that a checkpoint's numbers mean nothing without."""
        return {"low": self.low, "high": self.high, "horizon": self.queue.horizon, "discount": self.queue.discount}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If it is of a strategy with another `form`.
        """
        refuse_other(state["form"], self.form())
        self.queue.load_state_dict(state["queue"])
        self._number, self._ratio, self._scalars = state["number"], state["ratio"], dict(state["scalars"])


def refuse_other(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a checkpoint's strategy is this one.

    Args:
        then: Of the checkpoint, by name of the argument.
        now: Of this strategy.

    Raises:
        ValueError: If they differ.
    """
    for name, value in now.items():
        if then[name] != value:
            raise ValueError(
                f"--resume: exposure.strategy.init_args.{name} was {then[name]} as this run began, and is {value}: set "
                "it back, or begin another run from its student/."
            )


def _known(progress: float | None) -> float | None:
    return progress if progress is not None and math.isfinite(progress) else None


def _credit(decision: Decision, reward: float | None, complete: bool) -> Credit:
    return Credit(decision.number, decision.step, decision.ratio, reward, complete, decision.details)
