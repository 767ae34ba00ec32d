"""The network of the Beta policy: statistics of training in, a Beta distribution out, whose samples are exposures.

It knows nothing of rewards; `learners.py` moves its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lit_atex.reward import FINITE
from lit_atex.reward_model import Array

CLIP = 5.0
"""Standardised statistics are kept within this."""
EXCESS = (0.5, 100.0)
"""The policy's a + b - 2 lies between: from nearly flat, where a gradient still moves the mode, to an SD of 0.05."""
LOW, HIGH = (math.log(x) for x in EXCESS)
DAMPING = 4.0
"""The hidden layer's outputs, which Adam moves all at once, count for this much less than the two biases."""


class Within(torch.autograd.Function):
    """Clamps to [0, 1] without losing the way back: only the gradient that leads further out is dropped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: D102
        (x,) = ctx.saved_tensors
        return torch.where((x < 0) & (grad > 0) | (x > 1) & (grad < 0), 0.0, grad)


class BetaNet(nn.Module):
    """The policy: raw statistics to the a and b of a Beta distribution, whose samples stand for exposures.

    As a sample runs from 0 to 1 its exposure runs from `margin` below the least to `margin` above the greatest, and is
    cut there. So both ends can be chosen, and held: a Beta on the range itself never gives either, and its mean stays
    well inside while it explores.

    A small network gives its mode and the logarithm of a + b - 2, each within its range (`Within`): a, b >= 1, so there
    is one mode, and a density that is finite at the ends. (With a, b = 1 + softplus(.), or a sigmoid, a policy that has
    become flat stays so: no gradient is left there, and Adam remembers larger ones. A real run did, for 160 steps.)

    It standardises its input by the mean and variance of *all* states observed so far. (Standardised at decision time
    instead, a statistic that rises steadily would read sqrt(3) for ever.)
    """

    count: Tensor
    center: Tensor
    squares: Tensor

    def __init__(
        self, features: int, hidden: int, mean: float, concentration: float, seed: int, margin: float = 0.0
    ) -> None:
        """Set the first policy, which does not depend on the state.

        Args:
            features: Statistics in a state.
            hidden: Width.
            mean: Its first mean, in (0, 1).
            concentration: Its first a + b, with a and b > 1, and a + b - 2 within EXCESS.
            seed: Of the first layer's weights.
            margin: How far samples go beyond each end, in units of the range, >= 0.
        """
        super().__init__()
        self.margin = margin
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(features, hidden, dtype=torch.float64)
        self.last = nn.Linear(hidden, 2, dtype=torch.float64)
        excess = concentration - 2
        start = torch.tensor([(mean * concentration - 1) / excess, (math.log(excess) - LOW) / (HIGH - LOW)])
        with torch.no_grad():
            self.first.weight.normal_(0, features**-0.5, generator=generator)
            self.first.bias.zero_()
            self.last.weight.zero_()
            self.last.bias.copy_(start)
        for name in ("count", "center", "squares"):
            self.register_buffer(name, torch.zeros(features, dtype=torch.float64))

    def exposure(self, sample: Array) -> Array:
        """Where samples lie between the least exposure (0) and the greatest (1), any shape."""
        return (sample * (1 + 2 * self.margin) - self.margin).clip(0, 1)

    def observe(self, state: list[float]) -> None:
        """Count a state in mean and variance (Welford); a statistic that is not finite is left out."""
        count, center, squares = self._moments()
        x = np.array(state)
        known = np.isfinite(x)
        x = np.where(known, x, center).clip(-FINITE, FINITE)
        count += known
        apart = x - center
        center += apart / count.clip(1)
        squares += apart * (x - center)

    def standardise(self, state: ArrayLike) -> Array:
        """`[..., features]` of zero mean and unit variance, within +-5; 0 where not finite or never varied."""
        count, center, squares = self._moments()
        spread = np.sqrt(squares / count.clip(1))
        varies = spread > 1e-9 * abs(center).clip(1e-9)
        z = (np.asarray(state).clip(-FINITE, FINITE) - center) / np.where(varies, spread, 1.0)
        return np.where(varies & np.isfinite(z), z, 0.0).clip(-CLIP, CLIP)

    def _moments(self) -> tuple[Array, Array, Array]:
        """Count, mean and sum of squares of each statistic: the buffers' memory, in NumPy at a tenth of the time."""
        return self.count.numpy(), self.center.numpy(), self.squares.numpy()

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """A and b at the state(s) `[... features]`."""
        hidden = torch.tanh(self.first(torch.from_numpy(self.standardise(state.numpy()))))
        mode, width = Within.apply(hidden @ self.last.weight.T / DAMPING + self.last.bias).unbind(-1)
        excess = (LOW + (HIGH - LOW) * width).exp()
        return 1 + excess * mode, 1 + excess * (1 - mode)

    def at(self, z: Array) -> tuple[float, float]:
        """A and b at one state `[features]`, standardised; without gradients, in NumPy."""
        _, _, mode, excess = self._at(z)
        return 1 + excess * mode, 1 + excess * (1 - mode)

    def _at(self, z: Array) -> tuple[Array, Array, float, float]:
        parameters = self.first.weight, self.first.bias, self.last.weight, self.last.bias
        first, offset, last, bias = (p.detach().numpy() for p in parameters)
        hidden = np.tanh(first @ z + offset)
        raw = last @ hidden / DAMPING + bias
        mode, width = raw.clip(0, 1).tolist()
        return hidden, raw, mode, math.exp(LOW + (HIGH - LOW) * width)

    def slope(self, z: Array, worth: Callable[[float, float], tuple[float, float]]) -> None:
        """Set the parameters' `grad`, as autograd would for a loss of a and b at one state.

        In NumPy, at a fifth of autograd's time: for a network this small, its bookkeeping is the cost.

        Args:
            z: `[features]` the state, standardised.
            worth: The derivatives by a and b of what is to rise, at an a and b.
        """
        parameters = self.first.weight, self.first.bias, self.last.weight, self.last.bias
        hidden, raw, mode, excess = self._at(z)
        last = self.last.weight.detach().numpy()
        by_a, by_b = worth(1 + excess * mode, 1 + excess * (1 - mode))
        by = -excess * np.array([by_a - by_b, (HIGH - LOW) * (mode * by_a + (1 - mode) * by_b)])
        by[(raw < 0) & (by > 0) | (raw > 1) & (by < 0)] = 0.0  # as in `Within`
        inner = by @ last / DAMPING * (1 - hidden * hidden)
        for parameter, grad in zip(parameters, (np.outer(inner, z), inner, np.outer(by, hidden) / DAMPING, by)):
            parameter.grad = torch.from_numpy(grad)
