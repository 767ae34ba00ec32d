"""Fakes that the tests share: a byte tokenizer, a two-layer model, a scripted engine, six problems. No mocks."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lit_atex.rollout import RolloutEngine
from lit_atex.types import Problem, Rollouts

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def byte_tokenizer(pad: str = "<|im_end|>", chat_template: str | None = CHAT) -> PreTrainedTokenizerFast:
    """One token per byte, and a chat template like Qwen3's; pad equals the end token unless told otherwise."""
    special = ["<|im_end|>", "<|im_start|>", "<|pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({s: i for i, s in enumerate([*special, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token=pad, chat_template=chat_template, padding_side="left"
    )


def two_layer_model(vocab: int = 259, seed: int = 0, **changes) -> Qwen3ForCausalLM:
    """A Qwen3 with fresh weights, spread wide enough that its logits differ."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        **changes,
    )
    return Qwen3ForCausalLM(config)


class ScriptedEngine(RolloutEngine):
    """Says what it was told to say, whatever the model."""

    def __init__(self, completions: list[list[int]], end: int = 0) -> None:
        self.completions, self.end = completions, end

    def generate(self, model, prompts, samples, sampling, end_ids, generators) -> Rollouts:
        count = len(prompts) * samples
        rows = [self.completions[i % len(self.completions)] for i in range(count)]
        width = max(max(map(len, rows)), 1)
        ids = torch.zeros(count, width, dtype=torch.long)
        for row, given in zip(ids, rows):
            row[: len(given)] = torch.tensor(given, dtype=torch.long)
        ended = torch.tensor([bool(row) and row[-1] in end_ids for row in rows])
        return Rollouts(ids, torch.tensor([len(r) for r in rows]), ended)


SIX = [
    Problem("a", "What is 2+3?", "Add the two.\nThe sum is 5.\n#### 5", "5", "six", "1"),
    Problem("b", "What is 4*6?", "Four times six is 24. So the answer is \\boxed{24}.", "24", "six", "1"),
    Problem("c", "Half of 9?", "1. Divide 9 by 2.\n2. This gives $4.5$.\n3. Answer: \\boxed{4.5}", "4.5", "six", "2"),
    Problem("d", "Say {hint} and {question}.", "It is a trap with braces { } in it.\n#### 1", "1", "six", "2"),
    Problem("e", "Solve x² = 9, x > 0.", "We get x = ±3.\nOnly 3 is positive.\n\\boxed{3}", "3", "six", "3"),
    Problem("f", "7-10?", "Seven minus ten is -3.\n#### -3", "-3", "six", "3"),
]
