"""Arithmetic on log-probabilities that may be -inf; it knows neither sides nor divergences."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def weighted(log_w: Tensor, x: Tensor) -> Tensor:
    """exp(log_w) · x with 0 · inf = 0 in value and gradient; a NaN in `log_w` stays visible."""
    w = log_w.exp()
    return w * x.masked_fill(w == 0, 0.0)


def log_ratio(log_a: Tensor, log_b: Tensor) -> Tensor:
    """log(a / b); 0 where both are zero, as at masked vocabulary entries."""
    return (log_a - log_b).masked_fill((log_a == -math.inf) & (log_b == -math.inf), 0.0)


def log_mix(ratio: Tensor, w: float) -> Tensor:
    """log(1 - w + w·exp(ratio)) for 0 < w < 1: exactly 0 at ratio 0, precise in both tails, finite gradients."""
    near = w * torch.expm1(ratio.clamp(max=30.0))  # log1p loses digits below -0.5, and expm1 overflows far above 30
    far = torch.logaddexp(ratio + math.log(w), ratio.new_full((), math.log1p(-w)))
    return torch.where((near >= -0.5) & (ratio < 30.0), near.clamp(min=-0.5).log1p(), far)


def log_mixes(ratio: Tensor, w: float) -> tuple[Tensor, Tensor]:
    """`log_mix` for both sides: log m/a and log m/b of m = w·a + (1 - w)·b, 0 < w < 1, from ratio = log b/a."""
    if not 1 / 16 <= w <= 15 / 16:  # below, digits would be lost
        return log_mix(ratio, 1 - w), log_mix(-ratio, w)
    # Over the larger of a and b what is left is the same: 1 - c + c·exp(-|ratio|), c the weight of the smaller.
    smaller = w if w == 0.5 else torch.where(ratio > 0, ratio.new_full((), w), ratio.new_full((), 1 - w))
    left = (smaller * torch.expm1(-ratio.abs())).log1p()
    return left + ratio.clamp(min=0), left - ratio.clamp(max=0)
