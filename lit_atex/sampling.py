"""How a token is drawn from logits: temperature, filters, one uniform number a row. It knows no model and no seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128  # the vocabularies of most checkpoints are padded to a multiple of it, so that cutting them copies nothing


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the student's logits.

    The order is that of transformers: temperature, top-k, top-p, min-p. Tokens that tie with the last one kept stay.

    Attributes:
        temperature: Divides the logits; 0 is greedy decoding, and the other options are then without effect.
        top_p: In (0, 1]; keeps the fewest most probable tokens whose probabilities reach it. 1 is off.
        top_k: Keeps that many most probable tokens. 0 is off.
        min_p: In [0, 1]; keeps the tokens at least that probable relative to the most probable one. 0 is off.
        max_new_tokens: Longest completion in tokens, the end token included; a longer one is cut.

    Raises:
        ValueError: If a value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        # Logits over a temperature near the smallest float would overflow.
        if not (self.temperature == 0 or 0.01 <= self.temperature < float("inf")):
            raise ValueError(f"sampling.temperature={self.temperature}: set 0 (greedy) or a value of at least 0.01")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p={self.top_p}: set a value in (0, 1]; 1 is off")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k={self.top_k}: set a positive number of tokens; 0 is off")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"sampling.min_p={self.min_p}: set a value in [0, 1]; 0 is off")
        if self.max_new_tokens < 1:
            raise ValueError(f"sampling.max_new_tokens={self.max_new_tokens}: set at least 1")


def draw(
    logits: Float[Tensor, "rollouts vocab"], uniforms: Float[Tensor, " rollouts"], sampling: Sampling
) -> Int64[Tensor, " rollouts"]:
    """Draws one token per row: the first id whose cumulative probability exceeds the row's uniform number.

    Args:
        logits: Next-token logits; -inf is allowed and never drawn.
        uniforms: One number in [0, 1) per row, or 1 if rounding made it so; not read if greedy.
        sampling: Temperature and filters.

    Returns:
        `[rollouts]` ids, each of positive probability after filtering.
    """
    if sampling.temperature == 0:
        return logits.argmax(1)
    scores = _restrict(logits.float() if sampling.temperature == 1 else logits.float() / sampling.temperature, sampling)
    # Not normalised: `_inverse_cdf` needs the proportions only.
    return _inverse_cdf((scores - scores.amax(1, keepdim=True)).exp_(), uniforms)


def log_probs(
    logits: Float[Tensor, "tokens vocab"], ids: Int64[Tensor, " tokens"], sampling: Sampling
) -> Float[Tensor, " tokens"]:
    """Log-probability with which each id is drawn, in nats; always finite, if the logits are.

    An id that the filters leave out counts as if it alone had been kept besides: it was drawn under other weights, or
    by an engine that rounds otherwise.

    Args:
        logits: Next-token logits, one row for each id.
        ids: What was drawn.
        sampling: Temperature, above 0, and filters.
    """
    scores = logits.float() if sampling.temperature == 1 else logits.float() / sampling.temperature
    drawn, kept = scores.gather(1, ids[:, None])[:, 0], _restrict(scores, sampling)
    total = kept.logsumexp(1)
    left_out = kept.gather(1, ids[:, None])[:, 0] == -torch.inf
    return drawn - torch.where(left_out, torch.logaddexp(total, drawn), total)


def _restrict(scores: Float[Tensor, "rollouts vocab"], sampling: Sampling) -> Float[Tensor, "rollouts vocab"]:
    """Top-k, top-p, min-p, in this order. All three keep what reaches some floor, so one floor per row does it."""
    floor: Tensor | None = None
    if sampling.top_k or sampling.top_p < 1:
        # With top-k on, top-p needs the k best only: no sort of the vocabulary.
        ranked = scores.topk(min(sampling.top_k or scores.shape[1], scores.shape[1]), sorted=True).values
        if sampling.top_p < 1:
            shares = ranked.softmax(1)
            better = shares.cumsum(1) - shares  # mass of the ids before; NaN in a broken row, which the caller reports
            floor = ranked.gather(1, (better < sampling.top_p).sum(1, keepdim=True).clamp(min=1) - 1)
        else:
            floor = ranked[:, -1:]
    if sampling.min_p > 0:
        # p >= min_p * max p, written in logits: it needs no normalisation.
        relative = scores.amax(1, keepdim=True) + float(np.log(sampling.min_p))
        floor = relative if floor is None else torch.maximum(floor, relative)
    return scores if floor is None else scores.masked_fill(scores < floor, -torch.inf)


def _inverse_cdf(
    weights: Float[Tensor, "rollouts vocab"], uniforms: Float[Tensor, " rollouts"]
) -> Int64[Tensor, " rollouts"]:
    """The first index whose cumulative weight exceeds `uniforms` times the total; never an index of weight 0.

    In two stages, the block and the place in it: one cheap sum over the vocabulary and short cumulative sums, in the
    type of `uniforms`: in float32, the widest that some devices have, blocks of probability below 1e-7 may drown.
    """
    spare = -weights.shape[1] % BLOCK
    blocks = (F.pad(weights, (0, spare)) if spare else weights).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(2).to(uniforms.dtype)
    block, rest = _first_above(sums, uniforms * sums.sum(1))
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block].to(uniforms.dtype)
    return block * BLOCK + _first_above(inside, rest)[0]


def _first_above(
    weights: Float[Tensor, "rollouts cells"], target: Float[Tensor, " rollouts"]
) -> tuple[Int64[Tensor, " rollouts"], Float[Tensor, " rollouts"]]:
    """The first cell of positive weight whose cumulative weight exceeds `target`, and how far `target` is into it."""
    cumulative = weights.cumsum(1)
    reachable = cumulative.masked_fill(weights <= 0, -1.0)
    # Rounding can put the target at or beyond the total: pull it just below, into the last cell of positive weight.
    target = torch.minimum(target, torch.nextafter(reachable.amax(1), torch.zeros_like(target)))
    cell = (reachable > target[:, None]).byte().argmax(1)  # argmax returns the first of equals
    before = (cumulative - weights).gather(1, cell[:, None])[:, 0]
    return cell, target - before
