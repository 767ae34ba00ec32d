"""Scores completions with a language model: its output head, and the hidden states that predict completion tokens.

Samples of one problem share their prompt, which is then read once; rows of like length go through the model together,
so that little is spent on padding. It knows nothing of distillation, nor of how a model is loaded: a student and a
teacher are the same thing to it.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lit_atex.decode import pad_left
from lit_atex.fused import Head
from lit_atex.models import cache_argument, cache_of, context_of, unwrap
from lit_atex.sampling import Sampling, log_probs
from lit_atex.types import Rollouts

GROUP_TOKENS = 1024  # a forward pass of fewer tokens is mostly overhead
GROUP_SHRINKS = 0.85  # a new pass begins where rows have become shorter than this share of its longest


def head_of(model: nn.Module) -> Head:
    """The output head as a plain matrix product, with the scale and soft cap that some families add.

    Raises:
        ValueError: If the head is not linear. Whether the model's own logits come out of it: `checks.check_head`.
    """
    base = unwrap(model)
    linear = base.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"the output head is {type(linear)}, not nn.Linear; model.student.init_args.lora must not adapt it."
        )
    text = base.config.get_text_config()
    scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
    return Head(linear.weight, linear.bias, float(scale), getattr(text, "final_logit_softcapping", None))


class Sequences(NamedTuple):
    """Prompts and completions side by side: prompts padded on the left, completions on the right.

    Attributes:
        ids: `[rollouts, width]`.
        attention: `[rollouts, width]` 1 where there is a token.
        positions: `[rollouts, width]` position ids; the first token of a row has 0.
        predicts: `[rollouts, width]` True where the hidden state predicts a completion token.
    """

    ids: Int64[Tensor, "rollouts width"]
    attention: Int64[Tensor, "rollouts width"]
    positions: Int64[Tensor, "rollouts width"]
    predicts: Tensor


def join(prompts: list[list[int]], rollouts: Rollouts) -> Sequences:
    """Put each prompt directly before its completion.

    Args:
        prompts: One list of ids per rollout, none empty; at least one.
        rollouts: Completions, right-padded.
    """
    assert len(prompts) == len(rollouts.ids)
    assert all(prompts)
    head, seen, _ = pad_left(prompts, rollouts.ids.device)
    mask = rollouts.mask[:, : int(rollouts.lengths.max())]
    ids = torch.cat([head, rollouts.ids[:, : mask.shape[1]].masked_fill(~mask, 0)], dim=1)
    attention = torch.cat([seen, mask.long()], dim=1)
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    # The state at position i predicts the token at i + 1.
    predicts = torch.cat(
        [mask.new_zeros(len(prompts), head.shape[1] - 1), mask, mask.new_zeros(len(prompts), 1)], dim=1
    )
    return Sequences(ids, attention, positions, predicts)


def completion_hidden(model: nn.Module, prompts: list[list[int]], rollouts: Rollouts) -> Float[Tensor, "tokens hidden"]:
    """Final hidden states that predict the completion tokens, and only those: no logits are made here.

    Args:
        model: Language model; gradients flow if they are enabled.
        prompts: One prompt per rollout.
        rollouts: What is scored.

    Returns:
        States of all completion tokens, rollout after rollout; row n belongs to `rollouts.ids[rollouts.mask][n]`.

    Raises:
        ValueError: If a prompt and its completion do not fit into the model's context.
    """
    base = unwrap(model)
    context, name = context_of(model)
    lengths = rollouts.lengths.tolist()
    longest = max(len(p) + n for p, n in zip(prompts, lengths))
    if context is not None and longest > context:
        raise ValueError(
            f"a prompt and its completion have {longest} tokens, but the model's context is {context} ({name}): lower "
            "model.prompts.init_args.max_teacher_tokens, or model.sampling.max_new_tokens."
        )
    saved = sum(len(p) for p, q in zip(prompts[1:], prompts) if p == q)
    if _reads_in_parts(base) and saved > 0.1 * (sum(map(len, prompts)) + sum(lengths)):
        read = _Read(base, prompts)
        groups = _groups(lengths)
        parts = [read.go_on(base, group, rollouts.some(group)) for group in groups]
    else:
        groups = _groups([len(p) + n for p, n in zip(prompts, lengths)])
        parts = [_in_one_pass(base, [prompts[i] for i in group], rollouts.some(group)) for group in groups]
    if len(groups) == 1:
        return parts[0]
    # From the order in which rollouts were scored back to the one in which they came.
    order = [i for group in groups for i in group]
    pieces = dict(zip(order, torch.cat(parts).split([lengths[i] for i in order])))
    return torch.cat([pieces[i] for i in range(len(prompts))])


def _groups(widths: list[int]) -> list[list[int]]:
    """Which rows go through the model together, longest first.

    One group, in the order given, unless that leaves out a good part of the padding.
    """
    groups: list[list[int]] = [[]]
    widest = tokens = 0
    for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
        if tokens >= GROUP_TOKENS and widths[i] < GROUP_SHRINKS * widest:
            groups.append([])
            tokens = 0
        widest = widths[i] if not groups[-1] else widest
        groups[-1].append(i)
        tokens += widest
    return groups if len(groups) > 1 else [list(range(len(widths)))]


def _in_one_pass(base: Any, prompts: list[list[int]], rollouts: Rollouts) -> Float[Tensor, "tokens hidden"]:
    """Each prompt and its completion as one row."""
    sequences = join(prompts, rollouts)
    output = base.get_decoder()(
        input_ids=sequences.ids,
        attention_mask=sequences.attention,
        position_ids=sequences.positions,
        use_cache=False,
    )
    return output.last_hidden_state[sequences.predicts]


class _Read:
    """Prompts that have been read, each run of equal ones once; gradients flow through their keys and values."""

    def __init__(self, base: Any, prompts: list[list[int]]) -> None:
        runs = [list(run) for _, run in groupby(prompts)]
        self.run = torch.arange(len(runs)).repeat_interleave(torch.tensor([len(run) for run in runs])).to(base.device)
        ids, self.mask, self.positions = pad_left([run[0] for run in runs], base.device)
        output = base.get_decoder()(
            input_ids=ids, attention_mask=self.mask, position_ids=self.positions, use_cache=True
        )
        self.last, self.layers = output.last_hidden_state[:, -1:], cache_of(output).layers

    def go_on(self, base: Any, rows: list[int], rollouts: Rollouts) -> Float[Tensor, "tokens hidden"]:
        """States that predict the completions of these rows."""
        from transformers import DynamicCache

        device = rollouts.ids.device
        run = self.run[torch.tensor(rows, device=device)]
        hidden = self.last[run]  # predicts the first token
        mask = rollouts.mask[:, : int(rollouts.lengths.max())]
        fed = mask[:, 1:]  # the token there predicts one
        if fed.shape[1]:
            cache = DynamicCache(config=base.config)
            for i, layer in enumerate(self.layers):
                cache.update(layer.keys[run], layer.values[run], i)
            decoder = base.get_decoder()
            output = decoder(
                input_ids=rollouts.ids[:, : fed.shape[1]].masked_fill(~fed, 0),
                attention_mask=torch.cat([self.mask[run], fed.long()], dim=1),
                position_ids=self.positions[run, -1:] + 1 + torch.arange(fed.shape[1], device=device),
                use_cache=True,
                **{cache_argument(decoder): cache},
            )
            hidden = torch.cat([hidden, output.last_hidden_state], dim=1)
        return hidden[:, : mask.shape[1]][mask]


def _reads_in_parts(base: Any) -> bool:
    """Whether a row may be read in two parts: only keys and values, all of them, are carried from one to the other."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if base.training and base.is_activation_checkpointing:
        return False  # it switches the cache off
    layers = DynamicCache(config=base.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


PLAIN = Sampling()
"""Temperature 1, nothing filtered."""


def token_log_probs(
    model: nn.Module, prompts: list[list[int]], rollouts: Rollouts, chunk_tokens: int, sampling: Sampling = PLAIN
) -> Float[Tensor, " tokens"]:
    """Log-probability of each completion token, in nats.

    Args:
        model: Language model.
        prompts: One prompt per rollout.
        rollouts: What is scored.
        chunk_tokens: Tokens whose logits are alive at a time.
        sampling: How they are taken to be drawn: temperature, above 0, and filters.
    """
    hidden, head = completion_hidden(model, prompts, rollouts), head_of(model)
    ids = rollouts.ids[rollouts.mask]
    parts = zip(hidden.split(chunk_tokens), ids.split(chunk_tokens))
    return torch.cat([log_probs(head(states), part, sampling) for states, part in parts])
