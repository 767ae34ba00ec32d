"""Rollouts of the student: the one-method interface of every engine, and the engine that runs in this process.

It knows token ids and a causal language model; it refuses to know text, templates, teachers, optimizers and the run's
seed: every rollout brings a random generator of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from lit_atex.types import Rollouts

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


class RolloutEngine(ABC):
    """Samples completions from the student as it is now."""

    @abstractmethod
    def generate(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        end_ids: Collection[int],
        generators: Sequence[np.random.Generator],
    ) -> Rollouts:
        """Samples `samples` completions of each prompt.

        Args:
            model: The student: a causal language model of transformers, or a PEFT model around one. Passed in every
                call because its weights change between calls; an engine that holds a copy refreshes it from here.
            prompts: `P` prompts as token ids, none empty.
            samples: `G` completions per prompt, at least 1.
            sampling: How tokens are drawn, and how many at most.
            end_ids: Ids that end a completion; may be empty.
            generators: `P * G` generators, grouped by prompt, as made by
                `seeded(seed, "rollout", step, problem_id, sample)`. Nothing else decides a draw: a rollout depends on
                its prompt and its generator, and on its neighbours in the batch only by floating-point rounding. An
                engine with a sampler of its own seeds each request from its generator.

        Returns:
            `P * G` rollouts on the model's device, grouped by prompt, with ids 0 after the end.

        Raises:
            ValueError: If the request is inconsistent or does not fit into the model's context.
            FloatingPointError: If the model's logits are not finite.
        """


class TransformersEngine(RolloutEngine):
    """Samples in this process, with the model's own forward pass and key-value cache.

    A prompt is read once and its cache copied to its samples; rows that have ended leave the batch. Parameters that are
    sharded over ranks are not supported: ranks make unequal numbers of forward passes.
    """

    def generate(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        end_ids: Collection[int],
        generators: Sequence[np.random.Generator],
    ) -> Rollouts:
        """See `RolloutEngine.generate`."""
        _check_request(model, prompts, samples, sampling, generators)
        with evaluating(model):
            logits, cache, mask, start = _read_prompts(model, prompts, samples, sampling.max_new_tokens)
            device, (count, width) = mask.device, (len(mask), mask.shape[1] - sampling.max_new_tokens)
            uniforms = torch.zeros(count, sampling.max_new_tokens, dtype=torch.float64)
            if sampling.temperature > 0:
                uniforms = torch.from_numpy(np.stack([g.random(sampling.max_new_tokens) for g in generators]))
            uniforms = uniforms.to(device)
            end = torch.tensor(sorted(end_ids), dtype=torch.int64, device=device)

            ids = torch.zeros(count, sampling.max_new_tokens, dtype=torch.int64, device=device)
            lengths = torch.full((count,), sampling.max_new_tokens, device=device)
            ended = torch.zeros(count, dtype=torch.bool, device=device)
            rows = torch.arange(count, device=device)  # which rollout each row of the shrinking batch is
            running = ~ended  # by row of the batch; a row that has ended is fed zeros, unread, until it is dropped
            for step in range(sampling.max_new_tokens):
                token = draw(logits, uniforms[rows, step], sampling).masked_fill(~running, 0)
                broken = running & ~logits.amax(1).isfinite()  # NaN, +inf, or nothing but -inf
                stops = running & torch.isin(token, end)
                ids[rows, step] = token
                lengths[rows] = torch.where(stops, step + 1, lengths[rows])
                ended[rows] |= stops
                running = running & ~stops
                # The only read by the host per token: on a GPU it waits for the device here.
                left, bad = torch.stack((running.sum(), broken.sum())).tolist()
                if bad:
                    where = f"completion token {step} of rollouts {rows[broken].tolist()}"
                    raise FloatingPointError(f"student logits are not finite at {where}")
                if left == 0 or step + 1 == sampling.max_new_tokens:
                    break
                # Dropping rows copies the cache once, as growing it does at every token: less than the cost of a step,
                # repaid within eight when an eighth of the rows has gone.
                if left <= len(rows) * 7 / 8:
                    keep = running.nonzero()[:, 0]
                    cache.reorder_cache(keep)
                    rows, running, token, mask, start = (x[keep] for x in (rows, running, token, mask, start))
                seen = mask[:, : width + step + 1]
                logits, cache = _forward(model, token[:, None], seen, start[:, None] + step, cache)
        return Rollouts(ids[:, : int(lengths.max())], lengths, ended)


def _read_prompts(
    model: nn.Module, prompts: Sequence[Sequence[int]], samples: int, room: int
) -> tuple[Float[Tensor, "rollouts vocab"], Any, Int64[Tensor, "rollouts columns"], Int64[Tensor, " rollouts"]]:
    """Reads each prompt once: next-token logits, cache, mask with `room` more columns, and length, of every rollout."""
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    # Left padding: a prompt touches its completion. The mask's columns beyond the prompt are those of the completion.
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * (len(p) + room) for p in prompts], device=device)
    positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)
    logits, cache = _forward(model, ids, mask[:, :width], positions, None)
    rows = torch.arange(len(prompts), device=device).repeat_interleave(samples)
    # `reorder_cache` is a plain selection of rows. Unlike the cache's batch_repeat_interleave and batch_select_indices
    # it also moves the states of convolution and recurrent layers.
    if samples > 1:
        cache.reorder_cache(rows)
    return logits[rows], cache, mask[rows], positions[rows, -1] + 1


def _forward(
    model: nn.Module,
    ids: Int64[Tensor, "rows new"],
    mask: Int64[Tensor, "rows seen"],
    positions: Int64[Tensor, "rows new"],
    cache: Any,
) -> tuple[Float[Tensor, "rows vocab"], Any]:
    """One forward pass: the logits of the last position only, and the cache with the new ids in it."""
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1], output.past_key_values


def draw(
    logits: Float[Tensor, "rollouts vocab"], uniforms: Float64[Tensor, " rollouts"], sampling: Sampling
) -> Int64[Tensor, " rollouts"]:
    """Draws one token per row: the first id whose cumulative probability exceeds the row's uniform number.

    Args:
        logits: Next-token logits; -inf is allowed and never drawn.
        uniforms: One number in [0, 1) per row; not read if greedy.
        sampling: Temperature and filters.

    Returns:
        `[rollouts]` ids, each of positive probability after filtering.
    """
    if sampling.temperature == 0:
        return logits.argmax(1)
    scores = _restrict(logits.float() / sampling.temperature, sampling)
    return _inverse_cdf(scores.softmax(1), uniforms)


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
    weights: Float[Tensor, "rollouts vocab"], uniforms: Float64[Tensor, " rollouts"]
) -> Int64[Tensor, " rollouts"]:
    """The first index whose cumulative weight exceeds `uniforms` times the total; never an index of weight 0.

    In two stages, the block and the place in it: one cheap sum over the vocabulary and short float64 cumulative sums,
    where a cumulative sum in float32 would drown ids of probability below 1e-7.
    """
    spare = -weights.shape[1] % BLOCK
    blocks = (F.pad(weights, (0, spare)) if spare else weights).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(2).double()
    block, rest = _first_above(sums, uniforms * sums.sum(1))
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block].double()
    return block * BLOCK + _first_above(inside, rest)[0]


def _first_above(
    weights: Float64[Tensor, "rollouts cells"], target: Float64[Tensor, " rollouts"]
) -> tuple[Int64[Tensor, " rollouts"], Float64[Tensor, " rollouts"]]:
    """The first cell of positive weight whose cumulative weight exceeds `target`, and how far `target` is into it."""
    cumulative = weights.cumsum(1)
    reachable = cumulative.masked_fill(weights <= 0, -1.0)
    # Rounding can put the target at or beyond the total: pull it just below, into the last cell of positive weight.
    target = torch.minimum(target, torch.nextafter(reachable.amax(1), torch.zeros_like(target)))
    cell = (reachable > target[:, None]).byte().argmax(1)  # argmax returns the first of equals
    before = (cumulative - weights).gather(1, cell[:, None])[:, 0]
    return cell, target - before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each submodule's own mode is restored on the way out, also after an error.

    Not inference_mode: its tensors could not enter a graph later. In evaluation mode dropout is off, and gradient
    checkpointing (which would switch the cache off) does not act.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True  # not train(), which would also switch the children
        # Autocast keeps its casts of the weights; those made here have no graph, and the student's own pass in the same
        # block would get no gradient through them (PyTorch before pull request 165068).
        torch.clear_autocast_cache()


def _check_request(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    samples: int,
    sampling: Sampling,
    generators: Sequence[np.random.Generator],
) -> None:
    if samples < 1:
        raise ValueError(f"samples={samples}: set at least 1 rollout per problem")
    if not prompts or not all(prompts):
        raise ValueError("prompts: at least one prompt is needed, and each needs at least one token")
    if len(generators) != len(prompts) * samples:
        raise ValueError(
            f"generators: {len(generators)} were given for {len(prompts)} prompts x {samples} samples; "
            "pass one per rollout, grouped by prompt"
        )
    config: Any = model.config
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    longest = max(map(len, prompts))
    if context is not None and longest + sampling.max_new_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and sampling.max_new_tokens={sampling.max_new_tokens} exceed the model's "
            f"max_position_embeddings={context}: lower sampling.max_new_tokens or shorten the prompt"
        )
