"""What a rollout asks of a model: read the prompts, then one token a step for rows that end at different times.

Any causal language model is driven through its own forward pass. Models of the Llama kind, most of today's, have the
step written out here, for few rows: a cache that is copied a few times, not at every step, and a third of the kernels.
It knows token ids and weights; it refuses to know how a token is chosen, and when a row ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from lit_atex.models import cache_argument, cache_of, unwrap
from lit_atex.products import linear, norm

LLAMA_LIKE = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Architectures of transformers whose layer is the one written out in `LlamaDecoder`."""

FIRST = 256
"""New tokens, at least, that a cache is made for: where the limit is below twice as many, it never grows."""

Logits = Float[Tensor, "rows vocab"]


class Decoder(ABC):
    """Rows of tokens in a model's cache. Made by `decoder_for`, used for one batch of rollouts."""

    patience: float
    """Drop ended rows once this share of the batch or less is left: dropping costs, and so does feeding them."""

    @abstractmethod
    def read(self, prompts: Sequence[Sequence[int]], samples: int, room: int) -> Logits:
        """Read each prompt once, and give its state to its samples.

        Args:
            prompts: None empty.
            samples: Rows per prompt, in turn.
            room: Most tokens that may follow.

        Returns:
            Next-token logits of every row; the caller may overwrite them, as all logits of this class.
        """

    @abstractmethod
    def step(self, token: Int64[Tensor, " rows"]) -> Logits:
        """Append one token to each row; next-token logits."""

    @abstractmethod
    def keep(self, rows: Int64[Tensor, " kept"]) -> None:
        """Go on with these rows only, in this order."""


def decoder_for(model: nn.Module) -> Decoder:
    """The written-out step if the model is exactly what it was written for, else the model's own forward pass."""
    base = unwrap(model)
    config = getattr(base, "config", None)
    if (
        type(base).__name__ in LLAMA_LIKE
        and type(base).__module__.startswith("transformers.models.")
        and getattr(config, "sliding_window", None) is None
        and base.model.rotary_emb.rope_type not in ("dynamic", "longrope")  # frequencies that change with the length
        # Whoever hooks into the forward pass or replaces it wants it to run.
        and not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    ):
        return LlamaDecoder(base)
    return ModelDecoder(model)


def pad_left(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int64[Tensor, "rows width"], Int64[Tensor, "rows width"], Int64[Tensor, "rows width"]]:
    """Ids, mask and positions. Padding is on the left: a prompt touches its completion."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


class ModelDecoder(Decoder):
    """Any causal language model of transformers, by its own forward pass and cache."""

    patience = 7 / 8  # dropping copies the cache, as growing it does at every step: repaid within eight steps

    def __init__(self, model: nn.Module) -> None:
        """Store the model."""
        self.model = model
        self._cache: Any = None
        self._cache_argument = cache_argument(model)

    def read(self, prompts: Sequence[Sequence[int]], samples: int, room: int) -> Logits:
        """See `Decoder.read`."""
        ids, mask, positions = pad_left(prompts, next(self.model.parameters()).device)
        logits = self._forward(ids, mask, positions)
        rows = torch.arange(len(prompts), device=ids.device).repeat_interleave(samples)
        self._mask = F.pad(mask, (0, room), value=1)[rows]
        self._seen, self._position = ids.shape[1], positions[rows, -1]
        if samples > 1:  # batch_repeat_interleave would leave states of convolution where they are
            self._cache.reorder_cache(rows)
        return logits[rows]

    def step(self, token: Int64[Tensor, " rows"]) -> Logits:
        """See `Decoder.step`."""
        self._seen, self._position = self._seen + 1, self._position + 1
        return self._forward(token[:, None], self._mask[:, : self._seen], self._position[:, None])

    def keep(self, rows: Int64[Tensor, " kept"]) -> None:
        """See `Decoder.keep`."""
        self._cache.reorder_cache(rows)
        self._mask, self._position = self._mask[rows], self._position[rows]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Logits:
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        output = self.model(**inputs, **{self._cache_argument: self._cache}, use_cache=True, logits_to_keep=1)
        self._cache = cache_of(output)
        return output.logits[:, -1]


class Layer(NamedTuple):
    """What a layer computes with, looked up once: finding a module's attribute takes as long as a small kernel."""

    norm: Callable[[Tensor], Tensor]
    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    query_norm: Callable[[Tensor], Tensor] | None
    key_norm: Callable[[Tensor], Tensor] | None
    scaling: float
    output: Callable[[Tensor], Tensor]
    mlp_norm: Callable[[Tensor], Tensor]
    gate: Callable[[Tensor], Tensor]
    act: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, layer: Any) -> Layer:
        """The parts of a layer of transformers."""
        block, mlp = layer.self_attn, layer.mlp
        return cls(
            norm=norm(layer.input_layernorm),
            query=linear(block.q_proj),
            key=linear(block.k_proj),
            value=linear(block.v_proj),
            query_norm=norm(block.q_norm) if hasattr(block, "q_norm") else None,
            key_norm=norm(block.k_norm) if hasattr(block, "k_norm") else None,
            scaling=block.scaling,
            output=linear(block.o_proj),
            mlp_norm=norm(layer.post_attention_layernorm),
            gate=linear(mlp.gate_proj),
            act=mlp.act_fn,
            up=linear(mlp.up_proj),
            down=linear(mlp.down_proj),
        )


class LlamaDecoder(Decoder):
    """Models of the Llama kind. Only the step is written out; prompts are read by the model's own forward pass."""

    patience = 15 / 16  # dropping moves as many rows as have ended

    def __init__(self, model: Any) -> None:
        """Store the model, without a PEFT wrapper; its layers may hold adapters."""
        self.model = model
        self._layers = [Layer.of(layer) for layer in model.model.layers]
        self._norm, self._head = norm(model.model.norm), linear(model.lm_head)

    def read(self, prompts: Sequence[Sequence[int]], samples: int, room: int) -> Logits:
        """See `Decoder.read`."""
        device = next(self.model.parameters()).device
        ids, mask, positions = pad_left(prompts, device)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        output = self.model(**inputs, use_cache=True, logits_to_keep=1)
        layers = cache_of(output).layers
        count, self._seen = len(prompts) * samples, ids.shape[1]
        self._read, self._room = self._seen, room
        like = layers[0].values  # under autocast keys may be wider; attention runs in the type of the values
        self._by_products = count >= 16 and device.type == "cpu" and like.dtype == torch.float32
        shape = (len(layers), count, like.shape[1], self._seen + allotted(0, room), like.shape[3])
        self._keys, self._values = empty_cache(like, shape, self._by_products), empty_cache(like, shape)
        for i, layer in enumerate(layers):
            for cache, states in ((self._keys, layer.keys), (self._values, layer.values)):
                cache[i, :, :, : self._seen].unflatten(0, (-1, samples)).copy_(states[:, None])
            layer.keys = layer.values = None  # the copy is in the cache: do not hold it twice
        rows = torch.arange(len(prompts), device=device).repeat_interleave(samples)
        self._position = positions[rows, -1]
        self._bias: Tensor | None = None  # added to attention scores; needed only where there is padding
        if not all(len(p) == self._seen for p in prompts):
            hidden = F.pad(mask[rows] == 0, (0, room))[:, None, None]
            self._bias = torch.zeros_like(hidden, dtype=self._values.dtype).masked_fill_(hidden, -torch.inf)
        # cos and sin of all positions at once, sin with the sign that rotating needs: x·cos + swap(x)·sin.
        every = torch.arange(int(self._position.max()) + room + 1, device=device)[None]
        cos, sin = self.model.model.rotary_emb(self.model.model.embed_tokens.weight[:1], every)
        half = sin.shape[-1] // 2
        self._cos, self._sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=1)
        return output.logits[:, -1][rows]

    def step(self, token: Int64[Tensor, " rows"]) -> Logits:
        """See `Decoder.step`."""
        if self._seen == self._keys.shape[3]:
            self._move()
        # Views of all layers at once: indexing costs as much as a kernel.
        count, caches = len(token), (self._keys, self._values)
        new = [cache[:, :count, :, self._seen].unbind() for cache in caches]
        self._position, self._seen = self._position + 1, self._seen + 1
        places = zip(*(cache[:, :count, :, : self._seen].unbind() for cache in caches), *new)
        bias = None if self._bias is None else self._bias[..., : self._seen]
        cos, sin = self._cos[self._position].unsqueeze(1), self._sin[self._position].unsqueeze(1)
        x = self.model.model.embed_tokens(token)
        for layer, (key, value, new_key, new_value) in zip(self._layers, places):
            h = layer.norm(x)
            new_key.copy_(rotated(layer.key(h), layer.key_norm, cos, sin))
            new_value.copy_(layer.value(h).view(new_value.shape))
            # Query heads that share a key head stand in for query positions: no copies of keys and values.
            q = rotated(layer.query(h), layer.query_norm, cos, sin).to(key.dtype)
            q = q.view(key.shape[0], key.shape[1], -1, key.shape[3])
            out = attention(q, key, value, bias, layer.scaling, self._by_products)
            x = x + layer.output(out.reshape(key.shape[0], -1))
            h = layer.mlp_norm(x)
            x = x + layer.down(layer.act(layer.gate(h)).mul_(layer.up(h)))
        return self._head(self._norm(x))

    def keep(self, rows: Int64[Tensor, " kept"]) -> None:
        """See `Decoder.keep`. Only rows that change place are copied; all are once half have left, to free memory."""
        count, seen = len(rows), self._seen
        moved = (rows != torch.arange(count, device=rows.device)).nonzero()[:, 0]
        for cache in (self._keys, self._values) if len(moved) else ():
            cache[:, moved, :, :seen] = cache[:, rows[moved], :, :seen]
        self._position, self._bias = self._position[rows], None if self._bias is None else self._bias[rows]
        if 2 * count <= self._keys.shape[1]:
            self._move()

    def _move(self) -> None:
        """Into memory for the rows that are left and what comes next; keys first, so that half of it is held twice."""
        layers, _, heads, _, width = self._keys.shape
        count, seen = len(self._position), self._seen
        shape = (layers, count, heads, self._read + allotted(seen + 1 - self._read, self._room), width)
        for name, tokens_last in (("_keys", self._by_products), ("_values", False)):
            cache = empty_cache(self._values, shape, tokens_last)
            cache[:, :, :, :seen] = getattr(self, name)[:, :count, :, :seen]
            setattr(self, name, cache)


def allotted(new: int, room: int) -> int:
    """New tokens to have memory for: `room`, or its half, quarter, ..., the least that is not below `new` and `FIRST`.

    What is copied until there is memory for all is then less than all.
    """
    while (half := -(-room // 2)) >= max(new, FIRST):
        room = half
    return room


def empty_cache(like: Tensor, shape: tuple[int, int, int, int, int], tokens_last: bool = False) -> Tensor:
    """Memory for `[layers, rows, heads, tokens, width]`, whether or not tokens are last in memory."""
    layers, rows, heads, tokens, width = shape
    return like.new_empty(layers, rows, heads, width, tokens).transpose(3, 4) if tokens_last else like.new_empty(shape)


def rotated(
    x: Float[Tensor, "rows joint"], normed: Callable[[Tensor], Tensor] | None, cos: Tensor, sin: Tensor
) -> Float[Tensor, "rows heads width"]:
    """Queries or keys of the new token, turned to its position; `sin` has the sign that swapped halves need."""
    width = cos.shape[2]
    heads = x.view(x.shape[0], -1, width)
    if normed is not None:
        heads = normed(heads)
    return torch.addcmul(heads * cos, heads.roll(width // 2, 2), sin)


def attention(
    query: Float[Tensor, "rows heads queries width"],
    key: Float[Tensor, "rows heads seen width"],
    value: Float[Tensor, "rows heads seen width"],
    bias: Float[Tensor, "rows 1 1 seen"] | None,
    scale: float,
    by_products: bool,
) -> Float[Tensor, "rows heads queries width"]:
    """One new token attends to what was seen.

    With many rows on a CPU two products are faster than the fused kernel, above all with the tokens of `key` last in
    memory: 64 rows of 70 tokens, one thread, 0.12 ms instead of 0.25.
    """
    if not by_products:
        return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
    scores = (query * scale) @ key.transpose(2, 3)
    return (scores if bias is None else scores.add_(bias)).softmax(3) @ value


def compaction(running: Bool[Tensor, " rows"], left: int) -> Int64[Tensor, " left"]:
    """Which row goes to each of the first `left` places so that those that run fill them and few change place."""
    order = torch.arange(left, device=running.device)
    order[~running[:left]] = running[left:].nonzero()[:, 0] + left
    return order
