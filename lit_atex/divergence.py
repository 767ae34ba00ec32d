"""How far the student's next-token distribution is from the teacher's, per token; it knows logits, not models.

Everywhere p is the teacher, q the student, both softmax(logits / temperature); values are in nats, and only the
student's logits receive a gradient. Masks, means over tokens and heads are the caller's (`fused`): docs/divergences.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lit_atex.log_space import log_mix, log_mixes, log_ratio, weighted

Logits = Float[Tensor, "tokens vocab"]
TeacherLogits = Float[Tensor, "tokens teacher_vocab"]  # the same vocabulary, or it is the user's mistake
Entries = Float[Tensor, "tokens entries"]  # the vocabulary, or a top-k support and its tail bucket
Values = Float[Tensor, " tokens"]
Ids = Int64[Tensor, " tokens"]


@dataclass(frozen=True)
class TopK:
    """Restricts a divergence to a few vocabulary entries per token.

    With the tail bucket the result is a divergence of coarser distributions: never negative, never above the full one.
    Without it, probability that leaves the support is invisible to the loss.

    Args:
        k: Entries per side, >= 1. At or above the vocabulary's size the divergence is the full one.
        support: Whose k most likely entries count; "union" takes both sides' (up to 2k).
        tail: "bucket" collects each side's remaining probability in one further entry; "renormalise" drops it and
            divides by what is left.
    """

    k: int
    support: Literal["teacher", "student", "union"] = "teacher"
    tail: Literal["bucket", "renormalise"] = "bucket"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"top_k.k must be at least 1, got {self.k}; for the full vocabulary leave top_k out")
        if self.support not in ("teacher", "student", "union") or self.tail not in ("bucket", "renormalise"):
            raise ValueError(f"unknown top_k.support or top_k.tail in {self}")


@dataclass(frozen=True)
class Clip:
    """An upper cap, so that a few outliers cannot dominate the gradient. What is capped has no gradient.

    Args:
        at: The cap in nats, > 0.
        kind: "vocab" caps each vocabulary entry's contribution before the sum, as OPSD does (arXiv:2601.18734; its
            `jsd_token_clip`, 0.05): contributions have both signs, so the sum can get negative. "token" caps the sum.
    """

    at: float
    kind: Literal["token", "vocab"] = "vocab"

    def __post_init__(self) -> None:
        if not self.at > 0:
            raise ValueError(f"clip.at must be positive, got {self.at}; to switch clipping off leave clip out")
        if self.kind not in ("token", "vocab"):
            raise ValueError(f'clip.kind must be "token" or "vocab", got {self.kind!r}')


class TokenDivergence(NamedTuple):
    """What one pass over the logits yields, per token.

    Attributes:
        value: The loss per token; nats. The only field that carries a gradient.
        mismatch: KL(p‖q) over the full vocabulary, whatever the loss is; nats.
        student_entropy: Entropy of q; nats, at the divergence's temperature.
        teacher_entropy: Entropy of p; nats, at the divergence's temperature.
        clipped: 1 where a cap was active (for "vocab": on at least one entry), else 0.
        negative: 1 where the value is below -1e-6 (rounding does not count), else 0.
    """

    value: Values
    mismatch: Values
    student_entropy: Values
    teacher_entropy: Values
    clipped: Values
    negative: Values


@dataclass(frozen=True, kw_only=True)
class Divergence(ABC):
    """A loss per token between the student's and the teacher's logits at the same position.

    Args:
        temperature: Divides both sides' logits before the softmax, > 0. It is not the sampling temperature, and the
            loss is not multiplied by its square.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"model.divergence.temperature must be positive, got {self.temperature}")

    @abstractmethod
    def _value(self, log_p: Entries, log_q: Entries, ids: Ids) -> tuple[Values, Values]:
        """The loss per token, with gradient, and 1 where it was clipped."""

    def per_token(self, student_logits: Logits, teacher_logits: TeacherLogits, ids: Ids) -> TokenDivergence:
        """The divergence at every token, with the statistics that the same pass yields.

        A side may give an entry probability 0 (logit -inf): where both do it adds nothing; where one does, the value is
        what the formula says, inf included.

        Args:
            student_logits: The student's logits for the token; with gradient.
            teacher_logits: The teacher's for the same token; treated as a constant.
            ids: The sampled token; only `SampledToken` reads it.

        Returns:
            Values and statistics in float32, or float64 if an input is.

        Raises:
            ValueError: The shapes do not fit, or the vocabularies differ in size.
        """
        shapes = [list(x.shape) for x in (student_logits, teacher_logits, ids)]
        if len(shapes[0]) != 2 or shapes[1] != shapes[0] or shapes[2] != shapes[0][:1]:
            raise ValueError(f"logits must be [tokens, vocab], of one vocabulary, and ids [tokens]: got {shapes}")
        log_p, log_q = self.log_probs(student_logits, teacher_logits)
        with torch.no_grad():  # before the formula: one of the user's may work in place
            mismatch = weighted(log_p, log_ratio(log_p, log_q)).sum(-1)
            of_student, of_teacher = (-weighted(log_w, log_w).sum(-1) for log_w in (log_q, log_p))
        found = self._value(log_p, log_q, ids)
        if not isinstance(found, tuple) or [x.shape for x in found] != [ids.shape] * 2:
            name = f"model.divergence: {type(self).__name__}._value"
            raise ValueError(f"{name} must return (values, clipped), a number each for {len(ids)} tokens.")
        value, clipped = found
        negative = (value < -1e-6).to(value.dtype)
        return TokenDivergence(value, mismatch, of_student, of_teacher, clipped.detach(), negative)

    def log_probs(self, student_logits: Logits, teacher_logits: TeacherLogits) -> tuple[Logits, Logits]:
        """(log p, log q) at the temperature, in new tensors; the teacher's without a graph."""
        dtype = torch.promote_types(torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32)
        student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
        if self.temperature != 1:
            student, teacher = student / self.temperature, teacher / self.temperature
        return teacher.log_softmax(-1), student.log_softmax(-1)


@dataclass(frozen=True, kw_only=True)
class VocabularyDivergence(Divergence):
    """A sum over vocabulary entries, Σ_v c(p_v, q_v) with c(p, p) = 0: so exactly 0.0 for identical logits.

    Args:
        top_k: Restricts the sum to a few entries per token; the full vocabulary if left out.
        clip: An upper cap per token or per vocabulary entry; none if left out.
    """

    top_k: TopK | None = None
    clip: Clip | None = None

    @abstractmethod
    def contributions(self, log_p: Entries, log_q: Entries) -> Entries:
        """c(p_v, q_v) for every entry; the formula of the divergence, and its only one."""

    def _value(self, log_p: Entries, log_q: Entries, ids: Ids) -> tuple[Values, Values]:
        sides = self._supported(log_p, log_q)
        if self.clip is None:
            terms = self.contributions(*sides)
            return terms.sum(-1), torch.zeros_like(terms[:, 0])
        terms = self.contributions(*(side.clamp(min=-1e30) for side in sides))  # inf capped would have a NaN gradient
        if self.clip.kind == "vocab":
            return terms.clamp(max=self.clip.at).sum(-1), (terms > self.clip.at).any(-1).to(terms.dtype)
        value = terms.sum(-1)
        return value.clamp(max=self.clip.at), (value > self.clip.at).to(terms.dtype)

    def _supported(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides' log-probabilities on the support, the tail bucket last."""
        top_k = self.top_k
        if top_k is None or top_k.k >= log_p.shape[-1]:
            return log_p, log_q
        sides = {"teacher": [log_p], "student": [log_q], "union": [log_p, log_q]}[top_k.support]
        index = torch.cat([side.detach().topk(top_k.k, dim=-1).indices for side in sides], dim=-1).sort(-1).values
        repeated = torch.zeros_like(index, dtype=torch.bool)  # in the union: an entry that both sides chose
        repeated[:, 1:] = index[:, 1:] == index[:, :-1]

        def restrict(log_w: Tensor) -> Tensor:
            kept = log_w.gather(-1, index).masked_fill(repeated, -math.inf)
            if top_k.tail == "renormalise":
                return kept.log_softmax(-1)
            # From the complement: 1 - Σ kept has no digits left when the support holds nearly everything.
            rest = log_w.scatter(-1, index, -math.inf)
            empty = (rest == -math.inf).all(-1, keepdim=True)  # logsumexp of nothing has a NaN gradient
            tail = rest.masked_fill(empty, 0.0).logsumexp(-1, keepdim=True).masked_fill(empty, -math.inf)
            return torch.cat([kept, tail], dim=-1)

        return restrict(log_p), restrict(log_q)


@dataclass(frozen=True, kw_only=True)
class ForwardKL(VocabularyDivergence):
    """KL(p‖q) = Σ p (log p - log q), teacher first: the student must cover whatever the teacher finds likely."""

    def contributions(self, log_p: Entries, log_q: Entries) -> Entries:
        """Per entry: p (log p - log q)."""
        return weighted(log_p, log_ratio(log_p, log_q))


@dataclass(frozen=True, kw_only=True)
class ReverseKL(VocabularyDivergence):
    """KL(q‖p) = Σ q (log q - log p), student first: it may drop the teacher's modes, but not add to them."""

    def contributions(self, log_p: Entries, log_q: Entries) -> Entries:
        """Per entry: q (log q - log p)."""
        return weighted(log_q, log_ratio(log_q, log_p))


@dataclass(frozen=True, kw_only=True)
class JSD(VocabularyDivergence):
    """β KL(p‖m) + (1-β) KL(q‖m), m = βp + (1-β)q: the generalised Jensen–Shannon divergence of GKD (arXiv:2306.13649).

    Bounded, finite even for disjoint distributions. It tends to 0 at both ends of β; divided by β(1-β) it tends to
    KL(p‖q) as β → 0 and to KL(q‖p) as β → 1.

    Args:
        beta: Weight of the teacher in the mixture and of KL(p‖m) in the sum, strictly between 0 and 1.
        rescaled: Divide by beta (1 - beta), so that the loss keeps its scale as beta nears an end; a clip caps the
            divided values.
    """

    beta: float = 0.5
    rescaled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < 1:
            ends = "JSD is 0 at both ends; what libraries compute there is ForwardKL (beta 0) or ReverseKL (beta 1)"
            raise ValueError(f"model.divergence.beta must lie strictly between 0 and 1, got {self.beta}: {ends}")

    @property
    def scale(self) -> float:
        """What the sum is multiplied by."""
        return 1 / (self.beta * (1 - self.beta)) if self.rescaled else 1.0

    def contributions(self, log_p: Entries, log_q: Entries) -> Entries:
        """Per entry: β p log(p/m) + (1-β) q log(q/m), by m/p = β + (1-β) q/p and m/q = (1-β) + β p/q."""
        over_p, over_q = log_mixes(log_ratio(log_q, log_p), self.beta)
        b, scale = self.beta, self.scale
        return -(b * scale) * weighted(log_p, over_p) - ((1 - b) * scale) * weighted(log_q, over_q)


@dataclass(frozen=True, kw_only=True)
class SkewKL(VocabularyDivergence):
    """KL(p‖αp + (1-α)q): forward KL that never exceeds log(1/α), however little the student gives to a teacher's token.

    Args:
        alpha: Weight of the teacher in the mixture, in [0, 1); 0 is `ForwardKL`. Near the optimum the loss shrinks like
            (1 - alpha)².
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < 1:
            raise ValueError(f"model.divergence.alpha must lie in [0, 1), got {self.alpha}; at 1 the loss is always 0")

    def contributions(self, log_p: Entries, log_q: Entries) -> Entries:
        """Per entry: p log(p/m), by m/p = α + (1-α) q/p."""
        ratio = log_ratio(log_q, log_p)
        return weighted(log_p, -ratio if self.alpha == 0 else -log_mix(ratio, 1 - self.alpha))


@dataclass(frozen=True, kw_only=True)
class SampledToken(Divergence):
    """Policy-gradient form at the sampled token y: -(log p(y) - log q(y)).detach() · log q(y).

    For y ~ q its expected gradient is that of KL(q‖p); its *value* is not a divergence, so read `mismatch` instead. The
    advantage must stay detached: log q(y) - log p(y) differentiated as it stands has expected gradient 0.
    """

    def _value(self, log_p: Entries, log_q: Entries, ids: Ids) -> tuple[Values, Values]:
        p_y, q_y = (log_w.gather(-1, ids[:, None]).squeeze(-1) for log_w in (log_p, log_q))
        value = -(p_y - q_y).detach() * q_y
        return value, torch.zeros_like(value)
