"""Weights that no step changes; checkpoints leave out those of a base model, which memory has. It knows no trainer."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("lit_atex")


def is_adapted(model: nn.Module) -> bool:
    """Whether the model carries PEFT adapters."""
    return hasattr(model, "disable_adapter")


def read_by_text(model: Any) -> set[nn.Parameter]:
    """The weights of a model of transformers that text goes through: all, but for parts that see or hear."""
    parts = model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()
    return {weight for part in parts if part is not None for weight in part.parameters()}


def freeze_unread(model: nn.Module) -> None:
    """Train no weight that text does not go through: it gets no gradient, for which ranks would wait in vain."""
    if not hasattr(model.get_decoder(), "config"):  # type: ignore[operator]
        return  # a head called so: `check_head` refuses the model
    read = read_by_text(model)
    unread = [weight for weight in model.parameters() if weight.requires_grad and weight not in read]
    for weight in unread:
        weight.requires_grad_(False)
    if unread:
        size, kind = sum(weight.numel() for weight in unread), type(model).__name__
        log.warning("%d weights of %s are not trained: they see or hear, and text does not reach them.", size, kind)


def fingerprint(weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """A hash of weights, bit for bit, about a second per gigabyte; sums would depend on the number of threads.

    Args:
        weights: By name.
        dtype: The type that they are rounded to before; None: their own.
    """
    digest = hashlib.sha256()
    for name, weight in weights.items():
        weight = weight.to(dtype or weight.dtype)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class FrozenWeights:
    """Those of the base model of a student with adapters, as it is read when a run starts.

    A run of adapters would else write the whole model with each checkpoint, 16 GB of an 8B model in half precision.
    Which they are is found once; of a student without adapters there are none.
    """

    KEY, ROUNDED = "frozen_weights", "frozen_weights_rounded"

    def __init__(self, student: nn.Module, prefix: str) -> None:
        """Find them.

        Args:
            student: The model, as it was read.
            prefix: What a checkpoint's names of its weights begin with.
        """
        self._student, self._prefix = student, prefix
        named = student.state_dict(keep_vars=True, prefix=prefix) if is_adapted(student) else {}
        self._names = [
            n for n, weight in named.items() if isinstance(weight, nn.Parameter) and not weight.requires_grad
        ]

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._weights())

    @cached_property
    def _rounded(self) -> str:
        """The same whether the weights were read as float32 or as bfloat16."""
        weights, half = self._weights(), torch.bfloat16
        exact = all(weight.dtype == half for weight in weights.values())
        return self._fingerprint if exact else fingerprint(weights, half)

    def _weights(self) -> dict[str, Tensor]:
        weights = self._student.state_dict(prefix=self._prefix)
        return {name: weights[name] for name in self._names}

    def leave_out(self, checkpoint: dict[str, Any]) -> None:
        """Take them out of a checkpoint, and note which they are; none, if one of them is trained by now."""
        trained = {f"{self._prefix}{name}" for name, weight in self._student.named_parameters() if weight.requires_grad}
        if not self._names or trained.intersection(self._names):
            return
        checkpoint["state_dict"] = {n: w for n, w in checkpoint["state_dict"].items() if n not in set(self._names)}
        checkpoint |= {self.KEY: self._fingerprint, self.ROUNDED: self._rounded}

    def put_back(self, checkpoint: dict[str, Any], exactly: bool = True) -> None:
        """Complete a checkpoint that was read.

        Args:
            checkpoint: The checkpoint.
            exactly: Refuse others, bit for bit; else an evaluation may read the same ones in another dtype.

        Raises:
            ValueError: If the model in memory has others.
        """
        if self.KEY not in checkpoint:
            return
        if checkpoint[self.KEY] != self._fingerprint:
            if exactly or checkpoint.get(self.ROUNDED) != self._rounded:
                raise ValueError(
                    "the checkpoint holds adapters of another base model: model.student.init_args (name, dtype, lora) "
                    "now give other frozen weights than when the run began. Put the original ones back, or start a new "
                    "run."
                )
            log.warning("the checkpoint's adapters were trained on this base model in another dtype.")
        checkpoint["state_dict"] = self._weights() | checkpoint["state_dict"]
