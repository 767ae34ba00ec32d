"""How the Beta policy learns: REINFORCE, from decisions whose reward is known, and a reward model, from every window.

A learner sees states, exposures and rewards as numbers; it knows neither what they mean nor when they were taken.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Beta

from lit_atex.beta_net import BetaNet
from lit_atex.reward import FINITE
from lit_atex.reward_model import Array, effect, unit, within_reach


class Matured(NamedTuple):
    """A decision whose reward is known.

    Attributes:
        state: The statistics at decision time, raw, always in the same order.
        action: The sample of the Beta, in (0, 1); `BetaNet.exposure` has what it stands for.
        reward: What it earned, in any unit; not finite: the decision is passed over.
    """

    state: list[float]
    action: float
    reward: float


class Window(NamedTuple):
    """A window that has ended.

    Attributes:
        state: As in `Matured`, like `action`.
        action: The decision that held in it.
        gain: How much progress rose in it, in any unit; not finite: not known.
    """

    state: list[float]
    action: float
    gain: float


def _within(name: str, value: float, low: float, high: float = math.inf) -> float:
    if not (low <= value <= high and value < math.inf):
        allowed = f"in [{low:g}, {high:g}]" if high < math.inf else f"finite and at least {low:g}"
        raise ValueError(f"exposure.strategy.init_args.learner.init_args.{name} must be {allowed}, got {value}.")
    return value


class Learner(ABC):
    """Moves a policy by what its decisions earned."""

    policy: BetaNet
    optimizer: torch.optim.Adam
    horizon: int
    discount: float

    def __init__(self, lr: float) -> None:
        """Set the step size."""
        self.lr = _within("lr", lr, 0, 10)

    def bind(self, policy: BetaNet, horizon: int, discount: float) -> None:
        """Take charge of a policy, rewarded by so many discounted windows; once, before anything else."""
        self.policy, self.horizon, self.discount = policy, horizon, discount
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=self.lr, fused=True)

    def learn(self, matured: list[Matured], ended: Window | None, state: list[float]) -> dict[str, float]:
        """Learn, and prepare the policy for the state now. Called once per window, before its exposure is sampled.

        Args:
            matured: The decisions whose reward has become known since the last call, oldest first; any number.
            ended: The window that has just ended, whose decision may have yet to mature; None before the first.
            state: The raw statistics now.

        Returns:
            What to log.
        """
        self.policy.observe(state)
        return self.move([m for m in matured if abs(m.reward) < FINITE], ended, state)

    @abstractmethod
    def move(self, matured: list[Matured], ended: Window | None, state: list[float]) -> dict[str, float]:
        """`learn`, with finite rewards only and a policy that has observed the state."""

    def density(self, state: Tensor) -> Beta:
        """The policy at the raw state(s)."""
        a, b = self.policy(state)
        return Beta(a, b, validate_args=False)

    def ascend(self, objective: Tensor) -> None:
        """One step of Adam uphill."""
        self.optimizer.zero_grad()
        (-objective).backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold, besides the policy."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the step size is that of now."""
        steps = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, lr in zip(self.optimizer.param_groups, steps):
            group["lr"] = lr


class Reinforce(Learner):
    """The plain reading of the paper, kept as a baseline (results/controllers.md compares the two).

    One step of Adam along the mean over the matured decisions of A_k grad log Beta(u_k; a, b), plus an entropy bonus,
    where A_k = (R_k - baseline) / running SD (Williams 1992).
    """

    def __init__(self, lr: float = 0.01, entropy: float = 0.01, decay: float = 0.9) -> None:
        """Set the step.

        Args:
            lr: Step size of Adam, in [0, 10].
            entropy: Weight of the policy's entropy (nats) against advantages of unit variance, >= 0.
            decay: Of the running mean and variance of rewards, per decision, in [0, 0.999]; at 1 none would count.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__(lr)
        self.entropy, self.decay = _within("entropy", entropy, 0), _within("decay", decay, 0, 0.999)
        self.baseline: float | None = None
        self.variance = self.weight = 0.0

    def move(self, matured: list[Matured], ended: Window | None, state: list[float]) -> dict[str, float]:
        """One step, if anything has matured."""
        advantages = [self.advantage(m.reward) for m in matured]
        if not matured:
            return {}
        policy = self.density(torch.tensor([m.state for m in matured], dtype=torch.float64))
        actions = torch.tensor([m.action for m in matured], dtype=torch.float64)
        entropy = policy.entropy().mean()
        score = (policy.log_prob(actions) * torch.tensor(advantages, dtype=torch.float64)).mean()
        self.ascend(score + self.entropy * entropy)
        return {"baseline": self.baseline or 0.0, "advantage": advantages[-1], "entropy": entropy.item()}

    def advantage(self, reward: float) -> float:
        """The reward against what was usual before it, in SD; counts the reward in."""
        if self.baseline is None:
            self.baseline = reward
            return 0.0
        apart, share = reward - self.baseline, 1 - self.decay
        self.variance = self.decay * self.variance + share * apart**2
        self.weight = self.decay * self.weight + share  # of what the variance is a mean of; it began at 0
        self.baseline += share * apart
        return apart / math.sqrt(self.variance / self.weight) if self.variance > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and running moments."""
        return super().state_dict() | {name: getattr(self, name) for name in ("baseline", "variance", "weight")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.baseline, self.variance, self.weight = (state[name] for name in ("baseline", "variance", "weight"))


class Surrogate(Learner):
    """Fits a reward model to all windows, and moves the policy uphill on it, at the state now.

    With m(u) and s(u) the mean and SD of what is believed of the exposure that a sample u stands for
    (`reward_model.py`), each window takes some steps of Adam uphill on

        E_Beta[m(u) + optimism * s(u)] + entropy * mean(s)^2 * H(Beta)

    by quadrature. Optimism tries what is not known (upper confidence bounds; Srinivas et al. 2010); the entropy keeps
    the policy broad while little is known, and lets it narrow as the model becomes sure. Nothing is drawn here.

    The model is of what each window gained, not of rewards: these share their readings with those of their neighbours,
    and are known only when their horizon has passed. Its worth of an exposure is a decision's expected reward but for
    what falls back by itself. A gain that is not known counts as 0, and the next known one has it.
    """

    def __init__(
        self, memory: float = 200.0, optimism: float = 0.3, entropy: float = 0.25, steps: int = 5, lr: float = 0.01
    ) -> None:
        """Set how it forgets and explores.

        Args:
            memory: Windows until one weighs 1/e, >= 1: shorter follows a student that changes, longer averages noise.
            optimism: Weight of the model's uncertainty as a bonus, >= 0.
            entropy: Weight of the policy's entropy (nats) per squared mean uncertainty, >= 0: higher is broader,
                and sees sooner that the best exposure moves (results/controllers.md compares 0.25 and 1).
            steps: Steps of Adam per window, >= 0.
            lr: Their size, in [0, 10].

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__(lr)
        self.memory, self.optimism = _within("memory", memory, 1), _within("optimism", optimism, 0)
        self.entropy, self.steps = _within("entropy", entropy, 0), int(_within("steps", steps, 0))
        self.windows: list[Window] = []

    def move(self, matured: list[Matured], ended: Window | None, state: list[float]) -> dict[str, float]:
        """Fit anew, then climb."""
        # Beyond three memories a window weighs under 5 %.
        self.windows = [*self.windows, *([] if ended is None else [ended])][-max(math.ceil(3 * self.memory), LEAST) :]
        gains = self.gains()
        if sum(abs(w.gain) < FINITE for w in self.windows) < LEAST:
            return {}
        mean, spread, relevance = self.believe(state, gains)
        value, temperature = mean + self.optimism * spread, self.entropy * float(spread.mean()) ** 2
        z = self.policy.standardise(state)
        for _ in range(self.steps):
            self.policy.slope(z, lambda a, b: uphill(a, b, value, temperature))
            self.optimizer.step()
        a, b = self.policy.at(z)
        share = shares(a, b)
        return {
            "baseline": float(np.nanmean(gains)) * sum(self.discount**i for i in range(self.horizon)),
            "advantage": float(share @ mean - mean.mean()),
            "uncertainty": float(spread.mean()),
            "best": float(self.policy.exposure(GRID)[mean.argmax()]),
            "moved_by_state": float(relevance.sum()),
            "entropy": entropy(a, b),
        }

    def gains(self) -> Array:
        """`[windows]` what they gained, without outliers; NaN before the first known, 0 for others that are not."""
        gains = np.array([w.gain for w in self.windows])
        known = abs(gains) < FINITE
        gains = np.where(known, gains, np.where(known.cumsum() > 0, 0.0, np.nan))
        if known.any():
            gains[~np.isnan(gains)] = within_reach(gains[~np.isnan(gains)])
        return gains

    def believe(self, state: list[float], gains: Array | None = None) -> tuple[Array, Array, Array]:
        """Mean and SD of the worth of each sample of GRID at this state, in SD of the gains; and relevance."""
        gains = self.gains() if gains is None else gains
        levels = np.nancumsum(gains) - np.nan_to_num(gains)
        levels, gains = unit(levels, levels), unit(gains, gains[~np.isnan(gains)])
        states = self.policy.standardise([w.state for w in self.windows])
        now = self.policy.standardise(state)
        exposures, every = (self.policy.exposure(x) for x in (np.array([w.action for w in self.windows]), GRID))
        found = effect(states, exposures, levels, gains, now, self.memory, self.horizon, self.discount, every)
        # A statistic that has never varied moves nothing.
        return found.mean, np.sqrt(np.diagonal(found.covariance).clip(0)), found.relevance * (states != 0).any(0)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and windows."""
        return super().state_dict() | {"windows": [list(w) for w in self.windows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.windows = [Window(*w) for w in state["windows"]]


GRID = (np.arange(64) + 0.5) / 64
"""Samples of a Beta, for quadrature."""
LOGS = np.log(GRID), np.log1p(-GRID)
LEAST = 4
"""Fewer windows do not move the policy."""


def shares(a: float, b: float) -> Array:
    """`[64]` what Beta(a, b) gives to each sample of GRID, summing to 1."""
    logit = (a - 1) * LOGS[0] + (b - 1) * LOGS[1]
    share = np.exp(logit - logit.max())
    return share / share.sum()


def log_beta(a: float, b: float) -> float:
    """Logarithm of the beta function, which normalises the density."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def entropy(a: float, b: float) -> float:
    """Of Beta(a, b), in nats."""
    at_a, at_b, at_both = torch.digamma(torch.tensor([a, b, a + b], dtype=torch.float64)).tolist()
    return log_beta(a, b) - (a - 1) * at_a - (b - 1) * at_b + (a + b - 2) * at_both


def uphill(a: float, b: float, value: Array, temperature: float) -> tuple[float, float]:
    """The derivatives by a and b of E[value] + temperature * entropy under Beta(a, b).

    Of the expectation, a sum over GRID, they are its covariance with log u and log(1 - u); of the entropy they are
    (a + b - 2) trigamma(a + b) less (a - 1) trigamma(a), or the same of b.
    """
    share = shares(a, b)
    pull = share * (value - share @ value)
    at_a, at_b, at_both = torch.polygamma(1, torch.tensor([a, b, a + b], dtype=torch.float64)).tolist()
    both = (a + b - 2) * at_both
    by_a = pull @ LOGS[0] + temperature * (both - (a - 1) * at_a)
    by_b = pull @ LOGS[1] + temperature * (both - (b - 1) * at_b)
    return float(by_a), float(by_b)
