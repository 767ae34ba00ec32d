"""Discounted learning progress: what a decision about exposure earned, which is known only some windows later.

It knows neither how the decision was taken nor how progress is measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple


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
        """R of P_k, P_(k+1), ...; None if fewer than two readings are known.

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
        return total

    def state_dict(self) -> dict[str, Any]:
        """The queue as plain data."""
        return {"waiting": [[*decision, list(readings)] for decision, readings in self._waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the queue back."""
        self._waiting = [(Decision(*given), list(readings)) for *given, readings in state["waiting"]]
