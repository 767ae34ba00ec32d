"""The paper's controller: a Beta policy over exposure, held for a window, learned from discounted learning progress.

From the paper: the policy is a Beta distribution given compact training statistics, one sample is held for a window,
and the reward is the discounted progress of the student that follows. Our choices: the statistics, the measure of
progress, how the policy learns (`learners.py`), and all numbers. It sees no model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lit_atex.beta_net import EXCESS, BetaNet
from lit_atex.exposure import TrainingState
from lit_atex.learners import GRID, Learner, Matured, Surrogate, Window, log_beta, shares
from lit_atex.reward import Decision, Rewarded
from lit_atex.types import StepFeedback, seeded

STATISTICS = (
    "time",
    "competence",
    "loss",
    "mismatch",
    "student_entropy",
    "teacher_entropy",
    "length",
    "share_cut",
    "last_exposure",
    "progress",
    "last_increment",
)
"""The state: time and competence now; means over the window before; what was chosen there, where progress stands and
what the window brought. Raw: the learner standardises, since only it knows all the data. What was not measured (yet) is
not known, rather than 0: one such 0 would hide all that a statistic of small spread says later. The order is the
learner's prior: the likeliest to move the best exposure first.

Where progress stands explains most of a reward: a student that fell rises again whatever is done next
(results/controllers.md, "On the embedded reasoner")."""


class BetaPolicy(Rewarded):
    """Exposure learned while training: use it when you do not know how much the teacher should see.

    How far it gets in how many decisions, and where it does not: results/controllers.md. The reward model moves the
    first decision when four windows have ended whose progress is known as they opened.
    """

    def __init__(
        self,
        learner: Learner | None = None,
        low: float = 0.0,
        high: float = 1.0,
        mean: float = 0.5,
        concentration: float = 4.0,
        margin: float = 0.0,
        horizon: int = 3,
        discount: float = 0.9,
        statistics: list[str] | None = None,
        hidden: int = 16,
        seed: int | None = None,
    ) -> None:
        """Set the policy's start and what it is rewarded for.

        Args:
            learner: How the policy learns; None: `Surrogate()`.
            low: Least exposure, in [0, 1].
            high: Greatest exposure, in (low, 1].
            mean: Mean of the first policy between low (0) and high (1), in (0, 1), before what lies beyond is cut.
            concentration: a + b of the first Beta(a, b), in (2.5, 102), both above 1; 4 at mean 0.5 is broad.
            margin: How far beyond low and high the Beta reaches, in units of high - low, in [0, 1]; what lies beyond is
                cut to low or high. At 0 it never gives either, and its mean stays inside while it explores; 0.3 settles
                nearer to an end that is best, and explores more widely: for hundreds of decisions (results/margin).
            horizon: Windows of progress that a decision is judged by (J), >= 1.
            discount: Weight of each further window, in [0, 1].
            statistics: What policy and learner see of STATISTICS, the likeliest to move the best exposure first; None:
                all, in that order; []: nothing, one policy for the whole run. The reward model sees progress anyway.
            hidden: Width of the policy network.
            seed: Of the policy's first weights and its samples. None: that of the run (`seed_everything`), 0 in Python.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__(low, high, horizon, discount)
        where = "exposure.strategy.init_args"
        if not 0 < mean < 1:
            raise ValueError(f"{where}.mean must lie in (0, 1), got {mean}.")
        if not 0 <= margin <= 1:
            raise ValueError(f"{where}.margin must lie in [0, 1], got {margin}.")
        sample = (mean + margin) / (1 + 2 * margin)
        least, most = max(1 / min(sample, 1 - sample), 2 + EXCESS[0]), 2 + EXCESS[1]
        if not least < concentration < most:
            raise ValueError(
                f"{where}.concentration must lie between {least:.3g} and {most:.3g} at mean {mean} and margin "
                f"{margin}, so that the Beta has one mode; got {concentration}."
            )
        if hidden < 1:
            raise ValueError(f"{where}.hidden must be at least 1, got {hidden}.")
        self.statistics = list(STATISTICS) if statistics is None else statistics
        if unknown := [name for name in self.statistics if self.statistics.count(name) > 1 or name not in STATISTICS]:
            raise ValueError(f"{where}.statistics: {unknown[0]} is not one of {', '.join(STATISTICS)}, named once.")
        self.seed, self.hidden = seed or 0, hidden
        self.policy = BetaNet(max(len(self.statistics), 1), hidden, sample, concentration, self.seed, margin)
        self.learner = Surrogate() if learner is None else learner
        self.learner.bind(self.policy, horizon, discount)
        self._window = dict.fromkeys(STATISTICS[2:8], 0.0)
        self._steps = 0
        self._ratio = low + (high - low) * mean
        self._progress: float | None = None
        self._read: float | None = None  # progress as the window opened
        self._increment: float | None = None
        self._open: tuple[dict[str, float | None], float] | None = None  # statistics and sample of the window

    def decide(
        self, state: TrainingState, progress: float | None, earned: list[tuple[Decision, float]]
    ) -> tuple[float, dict[str, Any]]:
        """Learn from the decisions that have matured, then sample the window's exposure."""
        self._increment = None if progress is None or self._read is None else progress - self._read
        gain = math.nan if progress is None or self._progress is None else progress - self._progress
        self._read = progress
        self._progress = progress if progress is not None else self._progress
        every = self._statistics(state)
        seen = self._seen(every)
        matured = [Matured(self._seen(d.details["state"]), d.details["action"], reward) for d, reward in earned]
        ended = self._open and Window(self._seen(self._open[0]), self._open[1], gain)
        learned = self.learner.learn(matured, ended, seen)
        a, b = self.policy.at(self.policy.standardise(seen))
        # Counter-based, so that every rank and every resumed run draws the same; off the ends, where log Beta may end.
        action = min(max(float(seeded(self.seed, "exposure", self._number).beta(a, b)), 1e-6), 1 - 1e-6)
        density = math.exp((a - 1) * math.log(action) + (b - 1) * math.log1p(-action) - log_beta(a, b))
        self._window, self._steps, self._open = dict.fromkeys(self._window, 0.0), 0, (every, action)
        ratio = self._between(self.policy.exposure(np.array(action)))
        mean = self._between(shares(a, b) @ self.policy.exposure(GRID))
        self._scalars |= {"alpha": a, "beta": b, "mean": mean}
        self._scalars |= {"density": density} | learned
        if self._progress is not None:
            self._scalars["progress"] = self._progress
        return ratio, {"state": every, "action": action, "alpha": a, "beta": b, "mean": mean}

    def _between(self, share: Any) -> float:
        """The exposure that is so far on the way from low to high."""
        return min(self.low + (self.high - self.low) * float(share), self.high)

    def _seen(self, statistics: dict[str, float | None]) -> list[float]:
        """Those that the policy sees, NaN for what is not known; a constant, if none."""
        return [math.nan if (value := statistics[name]) is None else value for name in self.statistics] or [0.0]

    def _statistics(self, state: TrainingState) -> dict[str, float | None]:
        """All of STATISTICS; what is not known (yet) or not finite is None."""
        known: dict[str, float | None] = dict.fromkeys(STATISTICS)
        known |= {name: total / self._steps for name, total in self._window.items() if self._steps}
        if state.max_steps > 0:
            known["time"] = state.progress
        if state.competence is not None and state.competence.tally().rollouts:
            known["competence"] = state.competence.mean()
        if self._number:
            known["last_exposure"] = self._ratio
        known |= {"last_increment": self._increment, "progress": self._progress}
        return {name: value if value is not None and math.isfinite(value) else None for name, value in known.items()}

    def update(self, feedback: StepFeedback) -> None:
        """Add to the window's statistics. A step in which nothing was sampled, or a number is not finite, has none."""
        found = {name: getattr(feedback, name) for name in self._window if name != "length"}
        found["length"] = feedback.mean_length / max(feedback.max_new_tokens, 1)
        if feedback.mean_length and all(math.isfinite(value) for value in found.values()):
            self._steps += 1
            self._window = {name: total + found[name] for name, total in self._window.items()}

    def state_dict(self) -> dict[str, Any]:
        """Policy, learner, and the window so far besides."""
        return super().state_dict() | {
            "policy": self.policy.state_dict(),
            "learner": self.learner.state_dict(),
            "window": dict(self._window),
            "steps": self._steps,
            "progress": self._progress,
            "read": self._read,
            "open": self._open and list(self._open),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If it is of a policy that learns otherwise, sees other statistics, or was rewarded otherwise.
        """
        super().load_state_dict(state)
        self.policy.load_state_dict(state["policy"])
        self.learner.load_state_dict(state["learner"])
        self._window, self._steps = dict(state["window"]), state["steps"]
        self._progress, self._read = state["progress"], state["read"]
        self._open = state["open"] and (state["open"][0], state["open"][1])

    def form(self) -> dict[str, Any]:
        """Learner, statistics and width of the network besides."""
        own = {"learner": type(self.learner).__name__, "statistics": self.statistics, "hidden": self.hidden}
        own["margin"] = self.policy.margin
        return super().form() | own
