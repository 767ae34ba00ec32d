"""Rollouts of the student: the one-method interface of every engine, and the engine that runs in this process.

It knows token ids and a causal language model; it refuses to know text, templates, teachers, optimizers and the run's
seed: every rollout brings a random generator of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_atex.decode import Decoder, compaction, decoder_for
from lit_atex.models import context_of
from lit_atex.sampling import Sampling, draw
from lit_atex.types import Rollouts, widest


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
    """Samples in this process, from the weights in memory.

    A prompt is read once and its cache given to its samples; rows that have ended leave the batch. Parameters that are
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
        check_request(model, prompts, samples, sampling, generators)
        uniforms = torch.zeros(len(generators), sampling.max_new_tokens, dtype=torch.float64)
        if sampling.temperature > 0:
            uniforms = torch.from_numpy(np.stack([g.random(sampling.max_new_tokens) for g in generators]))
        with evaluating(model):
            decoder = decoder_for(model)
            logits = decoder.read(prompts, samples, sampling.max_new_tokens)
            # Reading a number makes the host wait for the device: on a GPU, not at every token.
            every = 1 if logits.device.type == "cpu" else 16
            uniforms = uniforms.to(widest(logits.device)).to(logits.device)
            return sample(decoder, logits, uniforms, sampling, end_ids, every)


def sample(
    decoder: Decoder,
    logits: Float[Tensor, "rollouts vocab"],
    uniforms: Float[Tensor, "rollouts tokens"],
    sampling: Sampling,
    end_ids: Collection[int],
    every: int,
) -> Rollouts:
    """Draws tokens until all rows have ended or reached the limit.

    Args:
        decoder: What has read the prompts.
        logits: What it returned.
        uniforms: The numbers that decide the draws.
        sampling: Temperature, filters, limit.
        end_ids: Ids that end a row.
        every: Steps between two looks of the host at what has ended, >= 1. It decides no token.
    """
    device, (count, limit) = logits.device, uniforms.shape
    end = torch.tensor(sorted(end_ids), dtype=torch.int64, device=device)
    ids = torch.zeros(count, limit, dtype=torch.int64, device=device)
    lengths = torch.full((count,), limit, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    rows = torch.arange(count, device=device)  # which rollout each row of the shrinking batch is
    running = ~ended  # by row of the batch; a row that has ended is fed zeros, unread, until it is dropped
    broken = torch.zeros_like(lengths)  # the token, from 1, at which a row's logits were not finite; 0: never
    for step in range(limit):
        bad = running & (broken == 0) & ~logits.amax(1).isfinite()  # NaN, +inf, or nothing but -inf
        broken = broken.masked_fill(bad, step + 1)
        token = draw(logits, uniforms[rows, step], sampling).masked_fill(~running, 0)
        stops = running & torch.isin(token, end)
        ids[rows, step] = token
        lengths[rows] = lengths[rows].masked_fill(stops, step + 1)
        ended[rows] |= stops
        running = running & ~stops
        last = step + 1 == limit
        if last or (step + 1) % every == 0:
            left, first = torch.stack((running.sum(), broken.max())).tolist()
            if first:
                first = int(broken[broken > 0].min())
                where = f"completion token {first - 1} of rollouts {sorted(rows[broken == first].tolist())}"
                raise FloatingPointError(f"student logits are not finite at {where}")
            if left == 0 or last:
                break
            if left <= len(rows) * decoder.patience:
                kept = compaction(running, left)
                decoder.keep(kept)
                rows, running, token, broken = (x[kept] for x in (rows, running, token, broken))
        logits = decoder.step(token)
    return Rollouts(ids[:, : int(lengths.max())], lengths, ended)


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


def check_request(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    samples: int,
    sampling: Sampling,
    generators: Sequence[np.random.Generator],
) -> None:
    """Refuse what no engine can do.

    Raises:
        ValueError: If the request is inconsistent or does not fit into the model's context.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: set at least 1 rollout per problem")
    if not prompts or not all(prompts):
        raise ValueError("prompts: at least one prompt is needed, and each needs at least one token")
    if len(generators) != len(prompts) * samples:
        raise ValueError(
            f"generators: {len(generators)} were given for {len(prompts)} prompts x {samples} samples; "
            "pass one per rollout, grouped by prompt"
        )
    context, name = context_of(model)
    longest = max(map(len, prompts))
    if context is not None and longest + sampling.max_new_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and sampling.max_new_tokens={sampling.max_new_tokens} exceed the model's "
            f"context of {context} tokens ({name}): lower sampling.max_new_tokens or shorten the prompt"
        )


def check_rollouts(rollouts: object, count: int, model: nn.Module, engine: str) -> None:
    """Refuse what training could not score, or would score wrongly. It makes the host wait for the device once.

    Args:
        rollouts: What an engine returned.
        count: How many it was asked for.
        model: The student.
        engine: Name of the engine's class, for the error.

    Raises:
        ValueError: If it is not `count` rollouts of ids of the model's vocabulary, on its device.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    (vocabulary, _), device = embeddings.weight.shape, embeddings.weight.device
    found = f"a {type(rollouts).__name__}"
    if isinstance(rollouts, Rollouts) and all(isinstance(x, Tensor) for x in rollouts):
        ids, lengths, _ = rollouts
        found = ", ".join(f"{x.dtype} {list(x.shape)} on {x.device}" for x in rollouts)
        kinds = [(x.dtype, x.shape, x.device) for x in rollouts]
        shape = torch.Size([count])
        wanted = [(torch.int64, shape + ids.shape[1:2], device), (torch.int64, shape, device)]
        if ids.numel() and kinds == [*wanted, (torch.bool, shape, device)]:
            valid = ids.masked_fill(~rollouts.mask, 0)
            least, most, low, high = torch.stack((lengths.min(), lengths.max(), valid.min(), valid.max())).tolist()
            if min(least, low) >= 0 and most <= ids.shape[1] and high < vocabulary:
                return
            found = f"lengths from {least} to {most} in {ids.shape[1]} columns, ids from {low} to {high}"
    raise ValueError(
        f"model.engine: {engine}.generate must return Rollouts (types.py) of {count} rows on {device}: int64 ids "
        f"[{count}, tokens] below {vocabulary}, int64 lengths [{count}] from 0 to tokens, bool ended [{count}]; it "
        f"returned {found}."
    )
