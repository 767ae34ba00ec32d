"""The teacher: the student's own model, frozen, as weights to score with. It knows no prompts and no divergence.

A teacher is taken from the weights in memory, never read again from a path; it is never a submodule of the
LightningModule, so its weights are not parameters, and not in the checkpoint unless they cannot be rebuilt.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_atex.frozen import fingerprint, is_adapted
from lit_atex.rollout import evaluating
from lit_atex.types import StepFeedback

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    def after_step(self, student: PreTrainedModel, feedback: StepFeedback) -> None:
        """Called after each optimizer step that was not skipped.

        Args:
            student: The model as the step left it.
            feedback: What came of the step; reduced over ranks, so every rank's teacher does the same.
        """

    def scalars(self) -> dict[str, float]:
        """What to log, as `teacher/NAME`; as it was in the step, before `after_step`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to rebuild this teacher: numbers, strings, lists, dictionaries and tensors.

        A teacher of your own that remembers something beyond its weights adds it, or a resumed run is another.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; called after `attach`."""


class Copied(Teacher):
    """A second set of weights, begun at the student's start."""

    _copy: PreTrainedModel | None = None

    def attach(self, student: PreTrainedModel) -> None:
        """Copy the weights."""
        self._names = {name for name, weight in student.named_parameters() if weight.requires_grad}
        self._copy = copy.deepcopy(student).requires_grad_(False).eval()

    @property
    def copied(self) -> PreTrainedModel:
        """The second set.

        Raises:
            ValueError: If `attach` of a subclass has not made it.
        """
        if self._copy is None:
            raise ValueError(
                f"model.teacher: {type(self).__name__} has no copy of the student: its `attach` must call "
                "super().attach(student)."
            )
        return self._copy

    @contextmanager
    def scorer(self, student: Any) -> Iterator[nn.Module]:
        """The copy, moved to the student's device once."""
        device = next(student.parameters()).device
        if next(self.copied.parameters()).device != device:
            self.copied.to(device)
        with torch.no_grad():
            yield self.copied

    def trained(self, student: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
        """The copy's and the student's weights in pairs, those that are trained."""
        pairs = zip(self.copied.parameters(), student.parameters(), strict=True)
        return ((ours, weight) for ours, weight in pairs if weight.requires_grad)

    def state_dict(self) -> dict[str, Any]:
        """What of the copy is trained in the student: it cannot be rebuilt, and the rest is the base model's."""
        return {"copy": {name: w for name, w in self.copied.state_dict().items() if name in self._names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the copy back.

        Raises:
            ValueError: If what is trained is not what it was.
        """
        copied = self.copied
        if state["copy"].keys() != self._names:
            raise ValueError("the checkpoint's teacher has other trained weights: set model.student.init_args back.")
        copied.load_state_dict(state["copy"], strict=False)


class Frozen(Copied):
    """The student as it was at the start.

    Full fine-tuning: a second copy of the weights. New adapters: the student with its adapter switched off, no copy;
    checked at the start to give the base model's logits. Adapters that were trained before: the base model is not where
    the student starts, so a copy with the adapter in it.
    """

    _fingerprint = ""

    def attach(self, student: PreTrainedModel) -> None:
        """Copy the weights, or check that the adapter can be switched off.

        Raises:
            ValueError: If switching the adapter off does not give the base model.
        """
        self._copy, self._fingerprint = None, ""  # of the run before, if it had one
        if is_adapted(student) and _adapter_is_new(student):
            return
        super().attach(student)
        self._fingerprint = fingerprint(student.state_dict())

    @contextmanager
    def scorer(self, student: Any) -> Iterator[nn.Module]:
        """The copy; or the student with its adapter off."""
        if self._copy is not None:
            with super().scorer(student) as scorer:
                yield scorer
            return
        with student.disable_adapter(), evaluating(student):
            yield student

    def state_dict(self) -> dict[str, Any]:
        """A fingerprint only: the copy is made again from the same start weights."""
        return {"fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the start weights are those that the run began with.

        Raises:
            ValueError: If `model.student.init_args.name` now gives others, or what was copied was trained.
        """
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                "the frozen teacher cannot be rebuilt: model.student.init_args.name gives other weights than at first, "
                "or it is new in a module that has trained. Put the original back, or start a new run."
            )


class Ema(Copied):
    """An exponential moving average of the student, begun at its start weights.

    With half of the solution shown it took the embedded reasoner beyond a frozen teacher, and then below no training
    (results/teacher): for short runs that are validated often.
    """

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

    def attach(self, student: PreTrainedModel) -> None:
        """Begin the average at the student's weights.

        Raises:
            ValueError: If they are in half precision, in which small updates of an average round away.
        """
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in student.parameters() if p.requires_grad):
            raise ValueError("the Ema teacher needs model.student.init_args.dtype: float32.")
        super().attach(student)

    @torch.no_grad()
    def after_step(self, student: PreTrainedModel, feedback: StepFeedback) -> None:
        """Move the average: decay * average + (1 - decay) * student, for the weights that are trained."""
        for mean, weight in self.trained(student):
            mean.lerp_(weight.to(mean), 1 - self.decay)


class Gated(Copied):
    """The student as it was when it had last got better: refreshed once its running success has risen by a margin.

    For runs in which a frozen teacher is overtaken by its student, and an average would follow it also when it gets
    worse. It gained nothing in 120 steps of the embedded reasoner (results/teacher). The first 1 / (1 - decay) steps
    only measure where it starts: a mean over one step is mostly noise.
    """

    def __init__(self, margin: float = 0.05, decay: float = 0.9) -> None:
        """Set the gate.

        Args:
            margin: Rise of the running success since the last refresh, or since the start, that refreshes; in (0, 1].
            decay: Share of earlier rollouts' weight that is kept at each optimizer step, in [0, 1); at 0.9 the success
                is a mean over about ten steps, as `competence.decay`.

        Raises:
            ValueError: If an argument is out of range.
        """
        if not 0 < margin <= 1:
            raise ValueError(f"model.teacher.init_args.margin must lie in (0, 1], got {margin}.")
        if not 0 <= decay < 1:
            raise ValueError(f"model.teacher.init_args.decay must lie in [0, 1), got {decay}.")
        self.margin, self.decay = margin, decay

    def attach(self, student: PreTrainedModel) -> None:
        """Copy the weights, with the gate where it begins, whatever run was before."""
        super().attach(student)
        self._gate = {"steps": 0.0, "correct": 0.0, "rollouts": 0.0, "reached": 0.0, "refreshes": 0.0}

    @torch.no_grad()
    def after_step(self, student: PreTrainedModel, feedback: StepFeedback) -> None:
        """Measure the student; copy it, for the weights that are trained, if it has risen by enough."""
        gate, rollouts = self._gate, len(feedback.verdicts)
        if not rollouts:
            return
        gate["steps"] += 1
        gate["correct"] = self.decay * gate["correct"] + feedback.accuracy * rollouts
        gate["rollouts"] = self.decay * gate["rollouts"] + rollouts
        success = gate["correct"] / gate["rollouts"]
        if gate["steps"] <= round(1 / (1 - self.decay)):
            gate["reached"] = success
        elif success >= gate["reached"] + self.margin:
            gate |= {"reached": success, "refreshes": gate["refreshes"] + 1}
            for ours, weight in self.trained(student):
                ours.copy_(weight)

    def scalars(self) -> dict[str, float]:
        """How often it was refreshed, and the success that a refresh must exceed by the margin."""
        return {name: self._gate[name] for name in ("refreshes", "reached")}

    def state_dict(self) -> dict[str, Any]:
        """The copy, and where the gate stands."""
        return super().state_dict() | {"gate": dict(self._gate)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put both back."""
        super().load_state_dict(state)
        self._gate = dict(state["gate"])


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

    trained = [p for p in student.parameters() if p.requires_grad]  # disable_adapter switches that off too
    with evaluating(student):
        on = logits()
        with student.disable_adapter():
            off, kept = logits(), [p.clone() for p in trained]
            for parameter in trained:
                parameter.add_(1.0)
            shaken = logits()
            for parameter, values in zip(trained, kept):
                parameter.copy_(values)
    if not torch.equal(off, shaken):
        raise ValueError("switching the adapter off does not give the base model, so it cannot be the frozen teacher.")
    return torch.equal(on, off)
