"""Trains the embedded reasoner from nothing on texts of its domain: `lit-atex pretrain --out DIR`.

It knows nothing of distillation: what comes out is an ordinary Hugging Face folder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int64
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lit_atex.embedded.card import write_card
from lit_atex.embedded.domain import LEVELS, Text, draw_text
from lit_atex.progress import StepProgress
from lit_atex.types import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|unk|>", "<|end|>", "<|user|>", "<|assistant|>"]
SYMBOLS = [*"0123456789+-*=\n", "####"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, "####" and role marks; anything else is <|unk|>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {symbol: i for i, symbol in enumerate([*SPECIAL, *SYMBOLS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"####|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<|unk|>",
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of 0.4 million parameters with fresh weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        intermediate_size=256,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


class Texts(IterableDataset):
    """Endless batches of (ids, labels); texts of like length share a batch, so little of it is padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch_size: int, seed: int, pool: int = 8) -> None:
        self.tokenizer, self.batch_size, self.seed, self.pool = tokenizer, batch_size, seed, pool

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = seeded(self.seed, "pretrain")
        while True:
            levels = sorted(rng.choice(LEVELS, self.batch_size * self.pool).tolist())
            batches = [levels[i : i + self.batch_size] for i in range(0, len(levels), self.batch_size)]
            for b in rng.permutation(len(batches)):
                yield self.collate([draw_text(rng, level) for level in batches[b]])

    def collate(self, texts: list[Text]) -> tuple[Int64[Tensor, "texts tokens"], Int64[Tensor, "texts tokens"]]:
        """Right-padded ids and labels; labels are -100 outside what the author wrote."""
        prompts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": f"{t.question}\n{t.hint}" if t.hint else t.question}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for t in texts
        ]
        heads = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        solutions = [t.solution + self.tokenizer.eos_token for t in texts]
        tails = self.tokenizer(solutions, add_special_tokens=False)["input_ids"]
        width = max(len(h) + len(t) for h, t in zip(heads, tails))
        ids = torch.full((len(texts), width), self.tokenizer.pad_token_id)
        labels = torch.full((len(texts), width), -100)
        for i, (head, tail) in enumerate(zip(heads, tails)):
            ids[i, : len(head) + len(tail)] = torch.tensor(head + tail)
            labels[i, len(head) : len(head) + len(tail)] = torch.tensor(tail)
        return ids, labels


class Pretraining(pl.LightningModule):
    """Next-token cross-entropy on what the authors wrote, AdamW with warm-up and cosine decay."""

    def __init__(self, model: Qwen3ForCausalLM, lr: float, steps: int) -> None:
        super().__init__()
        self.model, self.lr, self.steps = model, lr, steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Float[Tensor, ""]:
        """Cross-entropy per token, nats."""
        ids, labels = batch
        logits = self.model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        self.log("loss", loss, prog_bar=True, batch_size=len(ids))
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Warm-up over 5 % of the steps, then cosine to a twentieth of the peak."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.9, 0.98), weight_decay=0.01)
        warmup = max(1, self.steps // 20)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def pretrain(out: Path, steps: int = 2200, batch_size: int = 64, lr: float = 3e-3, seed: int = 0) -> None:
    """Train the embedded reasoner and write it as a Hugging Face folder with a model card.

    Args:
        out: Folder to write; created, must not hold a model yet.
        steps: Optimizer steps.
        batch_size: Texts per step.
        lr: Peak learning rate.
        seed: Seed of weights and texts.

    Raises:
        ValueError: If `out` already holds a model.
    """
    if (out / "config.json").exists():
        raise ValueError(f"--out {out} already holds a model; name another folder or delete it.")
    began = time.perf_counter()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        gradient_clip_val=1.0,
        callbacks=[StepProgress()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Pretraining(model, lr, steps), DataLoader(Texts(tokenizer, batch_size, seed), batch_size=None))
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    training = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed, "threads": torch.get_num_threads()}
    write_card(out, {**training, "minutes": (time.perf_counter() - began) / 60})
