"""What each rollout counts for in the loss, by how it and its problem's other rollouts were graded.

Without a weighting each counts 1, and grades are not part of the loss. With `NegativeLogLikelihood` in the place of a
divergence the teacher has no say, and what is learned from is verdicts alone: GRPO, rejection sampling. It knows no
models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_atex.types import Verdict


class Weighting(ABC):
    """Weights of rollouts: the loss is the sum of weight times divergence, over the number of completion tokens.

    It depends on a batch's verdicts alone: nothing of it is in a checkpoint.
    """

    least_samples: ClassVar[int] = 1
    """Rollouts of a problem (`model.samples`) without which it says nothing."""

    @abstractmethod
    def weights(self, correct: Float[Tensor, "problems samples"]) -> Float[Tensor, "problems samples"]:
        """The weight of each rollout.

        Args:
            correct: 1 for a correct rollout, 0 for any other (wrong, no answer found, timed out); in float32.
        """


@dataclass(frozen=True)
class Correct(Weighting):
    """What was right counts 1, the rest nothing.

    With `NegativeLogLikelihood` this is fine-tuning on rejection samples, renewed at each step (Yuan et al.,
    arXiv:2308.01825); with a divergence, distillation where the student was right alone.
    """

    def weights(self, correct: Float[Tensor, "problems samples"]) -> Float[Tensor, "problems samples"]:
        """The verdicts themselves."""
        return correct


@dataclass(frozen=True)
class GroupRelative(Weighting):
    """How much better a rollout is than the problem's others: GRPO's advantage (Shao et al., arXiv:2402.03300).

    With `NegativeLogLikelihood` this is GRPO where each batch of rollouts is used for one step, so that the ratio to
    the policy that sampled them is 1 and nothing is clipped; without a KL term, and with the mean over all tokens of
    a step. A problem whose rollouts are all right, or all wrong, has no say.

    Args:
        scaled: Divide by the SD of the problem's rollouts, as GRPO does; without it a problem counts by its spread
            (Dr. GRPO; Liu et al., arXiv:2503.20783).
    """

    scaled: bool = True
    least_samples: ClassVar[int] = 2

    def weights(self, correct: Float[Tensor, "problems samples"]) -> Float[Tensor, "problems samples"]:
        """(reward - mean) / SD over the problem's rollouts."""
        apart = correct - correct.mean(1, keepdim=True)
        return apart / correct.std(1, keepdim=True).clamp(min=1e-6) if self.scaled else apart


def check_weighting(weighting: Weighting | None, samples: int, completions: str) -> None:
    """Refuse, before anything is evaluated, what a weighting cannot work with.

    Raises:
        ValueError: If there are too few rollouts to a problem, or references in their place.
    """
    if weighting is None:
        return
    name = type(weighting).__name__
    if completions != "student":
        raise ValueError(
            f"model.weighting: {name} weighs rollouts, and model.completions is {completions}: set one of them back "
            "(weighting: null, completions: student)."
        )
    if samples < weighting.least_samples:
        raise ValueError(f"model.samples must be at least {weighting.least_samples} for {name}, got {samples}.")


def rollout_weights(weighting: Weighting | None, verdicts: Sequence[Verdict], samples: int) -> Tensor | None:
    """`[rollouts]` the weight of each; None if all count the same.

    Raises:
        ValueError: If a weighting of the user's own returns something else.
    """
    if weighting is None:
        return None
    if not verdicts:
        return torch.zeros(0)
    correct = torch.tensor([float(v is Verdict.CORRECT) for v in verdicts]).view(len(verdicts) // samples, samples)
    weights = weighting.weights(correct)
    if not isinstance(weights, Tensor) or weights.shape != correct.shape or not weights.isfinite().all():
        name = f"model.weighting: {type(weighting).__name__}.weights"
        raise ValueError(f"{name} must return a tensor of finite numbers, one for each of {list(correct.shape)}.")
    return weights.float().flatten()
