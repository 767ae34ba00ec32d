"""Running success of the student, overall and per level, with forgetting; it knows no model and no strategy."""

from __future__ import annotations

from typing import Any

from lit_atex.types import StepFeedback, Verdict


class Competence:
    """Beta-Bernoulli counts that forget: each optimizer step multiplies what was counted by `decay`."""

    def __init__(self, decay: float = 0.9) -> None:
        """Set the memory.

        Args:
            decay: Share of the counts that is kept at each optimizer step, in (0, 1]; 0.9 remembers about ten steps.

        Raises:
            ValueError: If decay is out of range.
        """
        if not 0 < decay <= 1:
            raise ValueError(f"competence.decay must lie in (0, 1], got {decay}.")
        self.decay = decay
        self._counts: dict[str, tuple[float, float]] = {}

    def update(self, feedback: StepFeedback) -> None:
        """Count one optimizer step's verdicts."""
        self._counts = {k: (s * self.decay, f * self.decay) for k, (s, f) in self._counts.items()}
        samples = len(feedback.verdicts) // max(len(feedback.problem_ids), 1)
        for i, verdict in enumerate(feedback.verdicts):
            correct = verdict is Verdict.CORRECT
            for key in ("", f"level {feedback.levels[i // samples]}"):
                successes, failures = self._counts.get(key, (0.0, 0.0))
                self._counts[key] = (successes + correct, failures + (not correct))

    def mean(self, level: str | None = None) -> float:
        """Posterior mean success under a uniform prior, in (0, 1); 0.5 with no data.

        Args:
            level: A level label, or None for all.
        """
        successes, failures = self._counts.get("" if level is None else f"level {level}", (0.0, 0.0))
        return (successes + 1) / (successes + failures + 2)

    def levels(self) -> list[str]:
        """The labels seen so far."""
        return [key.removeprefix("level ") for key in self._counts if key]

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the counts back."""
        self._counts = {k: tuple(v) for k, v in state["counts"].items()}
