"""Discounted Thompson sampling over a grid: the simple learner that the Beta policy must justify itself against.

It looks at rewards alone, never at the state of training.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lit_atex.exposure import TrainingState
from lit_atex.reward import Decision, Rewarded
from lit_atex.types import seeded

PRIOR = 1.0
"""Rewards that the prior of an arm is worth; its mean is the mean of all."""


class Bandit(Rewarded):
    """Exposure as a bandit: a few fixed values, each tried as often as it is likely to be the best.

    Use it when decisions are few and the state of training says little: it has nothing else to learn, and is what a
    learner of more must be compared with.

    The mean reward of arm i is believed to be Normal((S_i + m) / (N_i + 1), s2 / (N_i + 1)), with N_i and S_i the count
    and sum of its rewards, each weighing decay^age, and m and s2 the mean and variance of all rewards, weighed alike. A
    draw from each belief, and the arm with the highest is played (Thompson 1933; discounted: Raj & Kalyani 2017).
    """

    def __init__(
        self,
        arms: int = 6,
        low: float = 0.0,
        high: float = 1.0,
        decay: float = 0.99,
        horizon: int = 3,
        discount: float = 0.9,
        seed: int | None = None,
    ) -> None:
        """Set the grid and the memory.

        Args:
            arms: Exposures to choose from, evenly from low to high, both included, >= 2.
            low: Least exposure, in [0, 1].
            high: Greatest exposure, in (low, 1].
            decay: Weight of a reward against the next one, in (0, 1]; 0.99 remembers about 100 decisions.
            horizon: Windows of progress that a decision is judged by (J), >= 1.
            discount: Weight of each further window, in [0, 1].
            seed: Of the draws. None: that of the run (`seed_everything`), 0 in Python.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__(low, high, horizon, discount)
        where = "exposure.strategy.init_args"
        if arms < 2:
            raise ValueError(f"{where}.arms must be at least 2, got {arms}.")
        if not 0 < decay <= 1:
            raise ValueError(f"{where}.decay must lie in (0, 1], got {decay}.")
        self.grid = [low + (high - low) * i / (arms - 1) for i in range(arms - 1)] + [high]
        self.decay, self.seed = decay, seed or 0
        self.earned: list[tuple[int, float]] = []  # (arm, reward), oldest first
        # Beyond this age a reward weighs under 1 %; without decay, all are kept.
        self._keep = None if decay == 1 else math.ceil(math.log(0.01) / math.log(decay))
        self._ratio = self.grid[arms // 2]

    def decide(
        self, state: TrainingState, progress: float | None, earned: list[tuple[Decision, float]]
    ) -> tuple[float, dict[str, Any]]:
        """Count what has matured, then draw."""
        self.earned += [(decision.details["arm"], reward) for decision, reward in earned]
        if self._keep is not None:
            self.earned = self.earned[-self._keep :]
        mean, spread = self.believe()
        # Counter-based, so that every rank and every resumed run draws the same.
        draws = mean + spread * seeded(self.seed, "bandit", self._number).standard_normal(len(self.grid))
        arm = int(draws.argmax())
        self._scalars |= {"best": self.grid[int(mean.argmax())], "uncertainty": float(spread.mean())}
        return self.grid[arm], {"arm": arm}

    def believe(self) -> tuple[np.ndarray, np.ndarray]:
        """`[arms]` mean and SD of what is believed of each arm, in SD of all rewards around their mean."""
        if not self.earned:
            return np.zeros(len(self.grid)), np.ones(len(self.grid))
        arms, rewards = np.array([a for a, _ in self.earned]), np.array([r for _, r in self.earned])
        weights = self.decay ** np.arange(len(rewards))[::-1]
        largest = abs(rewards).max()
        rewards = rewards - np.average(rewards, weights=weights)
        scale = math.sqrt(np.average(rewards**2, weights=weights))
        # Equal rewards differ from their mean by rounding, which is no reason to prefer an arm.
        rewards = rewards / scale if scale > 1e-9 * largest else np.zeros_like(rewards)
        count = np.bincount(arms, weights, minlength=len(self.grid)) + PRIOR
        return np.bincount(arms, weights * rewards, minlength=len(self.grid)) / count, count**-0.5

    def state_dict(self) -> dict[str, Any]:
        """The rewards besides."""
        return super().state_dict() | {"earned": [list(e) for e in self.earned]}

    def form(self) -> dict[str, Any]:
        """The grid besides."""
        return super().form() | {"arms": len(self.grid)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If it is of another grid, or was rewarded otherwise.
        """
        super().load_state_dict(state)
        self.earned = [(arm, reward) for arm, reward in state["earned"]]
