"""The teacher: the student's own model, frozen, as weights to score with. It knows no prompts and no divergence.

A teacher is taken from the weights in memory, never read again from a path; it is never a submodule of the
LightningModule, so its weights are not parameters, and not in the checkpoint unless they cannot be rebuilt.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_atex.rollout import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_adapted(model: nn.Module) -> bool:
    """Whether the model carries PEFT adapters."""
    return hasattr(model, "disable_adapter")


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights, bit for bit, about a second per gigabyte; sums would depend on the number of threads."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


class Teacher(ABC):
    """Gives the module that the teacher's scores come from."""

    def attach(self, student: PreTrainedModel) -> None:
        """Take the weights from the student in memory; called once, before training and before a checkpoint is read.

        Args:
            student: The model that will be trained.
        """

    @abstractmethod
    def scorer(self, student: PreTrainedModel) -> Any:
        """A context manager that yields the module to score with, in evaluation mode, without gradients."""

    def after_step(self, student: PreTrainedModel) -> None:
        """Called after each optimizer step that was not skipped."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to rebuild this teacher."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; called after `attach`."""


class Frozen(Teacher):
    """The student as it was at the start.

    Full fine-tuning: a second copy of the weights. New adapters: the student with its adapter switched off, no copy;
    checked at the start to give the base model's logits. Adapters that were trained before: the base model is not where
    the student starts, so a copy with the adapter in it.
    """

    def __init__(self) -> None:
        self._copy: PreTrainedModel | None = None
        self._fingerprint = ""

    def attach(self, student: PreTrainedModel) -> None:
        """Copy the weights, or check that the adapter can be switched off.

        Raises:
            ValueError: If switching the adapter off does not give the base model.
        """
        if is_adapted(student) and _adapter_is_new(student):
            return
        self._copy = copy.deepcopy(student).requires_grad_(False).eval()
        self._fingerprint = fingerprint(self._copy)

    @contextmanager
    def scorer(self, student: Any) -> Iterator[nn.Module]:
        """The copy, moved to the student's device once; or the student with its adapter off."""
        if self._copy is None:
            with student.disable_adapter(), evaluating(student):
                yield student
            return
        device = next(student.parameters()).device
        if next(self._copy.parameters()).device != device:
            self._copy.to(device)
        with torch.no_grad():
            yield self._copy

    def state_dict(self) -> dict[str, Any]:
        """A fingerprint only: the copy is made again from the same start weights."""
        return {"fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the start weights are those that the run began with.

        Raises:
            ValueError: If `model.student.init_args.name` now gives other weights than when the run began.
        """
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                "the frozen teacher cannot be rebuilt: model.student.init_args.name gives other weights than when this "
                "run began. Put the original weights back, or start a new run."
            )


class Ema(Teacher):
    """An exponential moving average of the student, begun at its start weights."""

    def __init__(self, decay: float = 0.99) -> None:
        """Set the decay.

        Args:
            decay: Share of the old average that is kept at each optimizer step, in [0, 1).

        Raises:
            ValueError: If decay is out of range.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"model.teacher.init_args.decay must lie in [0, 1), got {decay}; 1 is `Frozen`.")
        self.decay = decay
        self._average: PreTrainedModel | None = None

    def attach(self, student: PreTrainedModel) -> None:
        """Begin the average at the student's weights.

        Raises:
            ValueError: If they are in half precision, in which small updates of an average round away.
        """
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in student.parameters() if p.requires_grad):
            raise ValueError("the Ema teacher needs model.student.init_args.dtype: float32.")
        self._average = copy.deepcopy(student).requires_grad_(False).eval()

    @contextmanager
    def scorer(self, student: Any) -> Iterator[nn.Module]:
        """The average, on the student's device."""
        assert self._average is not None
        device = next(student.parameters()).device
        if next(self._average.parameters()).device != device:
            self._average.to(device)
        with torch.no_grad():
            yield self._average

    @torch.no_grad()
    def after_step(self, student: PreTrainedModel) -> None:
        """Move the average: decay * average + (1 - decay) * student, for the weights that are trained."""
        assert self._average is not None
        for mean, weight in zip(self._average.parameters(), student.parameters(), strict=True):
            if weight.requires_grad:
                mean.lerp_(weight.to(mean), 1 - self.decay)

    def state_dict(self) -> dict[str, Any]:
        """The average: it cannot be rebuilt."""
        assert self._average is not None
        return {"average": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the average back."""
        assert self._average is not None
        self._average.load_state_dict(state["average"])


class Live(Teacher):
    """The student as it is now, without gradients."""

    @contextmanager
    def scorer(self, student: PreTrainedModel) -> Iterator[nn.Module]:
        """The student itself."""
        with evaluating(student):
            yield student


@torch.no_grad()
def _adapter_is_new(student: Any) -> bool:
    """Whether switching the adapter off leaves the logits as they are: nothing has been trained into it yet.

    With the adapter off the logits must not depend on what is trained: shake that, compare, put it back.

    Raises:
        ValueError: If they do.
    """
    ids = torch.tensor([[0, 1, 2]], device=next(student.parameters()).device)

    def logits() -> Tensor:
        return student(input_ids=ids, use_cache=False).logits

    with evaluating(student):
        on = logits()
        with student.disable_adapter():
            off = logits()
            trained = [p for p in student.parameters() if p.requires_grad]
            kept = [p.clone() for p in trained]
            for parameter in trained:
                parameter.add_(1.0)
            shaken = logits()
            for parameter, values in zip(trained, kept):
                parameter.copy_(values)
    if not torch.equal(off, shaken):
        raise ValueError("switching the adapter off does not give the base model, so it cannot be the frozen teacher.")
    return torch.equal(on, off)
