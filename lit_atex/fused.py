"""A divergence straight from hidden states, without ever holding the logits of the whole batch; it has no formula.

Logits of both sides are formed for `chunk` tokens at a time, reduced to values and to the gradient by the student's
logits, and dropped. That gradient is folded into those by hidden states and head at once, in the forward pass, so
memory is O(chunk · vocab + vocab · hidden) instead of O(tokens · vocab). The maths is `divergence`'s; models, masks and
means over tokens are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lit_atex.divergence import Divergence, ForwardKL, TokenDivergence


class Head(NamedTuple):
    """An output head: logits = cap(scale · (hidden Wᵀ + bias)).

    Attributes:
        weight: `[vocab, hidden]`, possibly tied to the input embedding.
        bias: `[vocab]`.
        scale: Factor on the logits (Granite, Cohere, MiniCPM); 1 for most models.
        softcap: c of c · tanh(logits / c), applied after the scale (Gemma).
    """

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocab"]:
        """Logits, by ordinary differentiable operations."""
        logits = F.linear(hidden, self.weight, self.bias)
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def fused_divergence(
    divergence: Divergence,
    student_hidden: Float[Tensor, "tokens hidden"],
    student_head: Head,
    teacher_hidden: Float[Tensor, "tokens teacher_hidden"],
    teacher_head: Head,
    ids: Int64[Tensor, " tokens"],
    chunk: int,
    weights: Float[Tensor, " tokens"] | None = None,
) -> tuple[Float[Tensor, ""], TokenDivergence]:
    """Σ weights · divergence over tokens, equal to the plain definition in value and gradient.

    Gradients reach the student's hidden states and, where they require it, its head's weight and bias; never the
    teacher. Matrix products run in the autocast type if autocast is on, else in the weight's type; everything from the
    logits on, and the sum of the weight's gradient over chunks, in float32 or better. Without grad mode, or if nothing
    requires a gradient, only values are computed. A second derivative is an error.

    Args:
        divergence: The formula, with its temperature.
        student_hidden: The student's last hidden states, after its final norm, one row per token that counts.
        student_head: The student's output head.
        teacher_hidden: The teacher's at the same tokens.
        teacher_head: The teacher's output head, with as many vocabulary entries.
        ids: The sampled tokens.
        chunk: Tokens whose logits are held at a time, >= 1; about 6 `[chunk, vocab]` float32 tensors are alive at once.
        weights: Weight of each token in the sum; 1 if left out.

    Returns:
        The weighted sum in nats (0 with a gradient path if there are no tokens), and per-token values and statistics
        without gradient, unweighted.

    Raises:
        ValueError: `chunk` < 1, or the heads' vocabularies differ in size.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    if student_head.weight.shape[0] != teacher_head.weight.shape[0]:
        sizes = f"{student_head.weight.shape[0]} and {teacher_head.weight.shape[0]}"
        raise ValueError(f"student and teacher heads have {sizes} vocabulary entries; choose a teacher with as many")
    if weights is None:
        weights = student_hidden.new_ones(student_hidden.shape[0], dtype=torch.float32)
    rows = {student_hidden.shape[0], teacher_hidden.shape[0], ids.shape[0], weights.shape[0]}
    assert len(rows) == 1, f"student, teacher, ids and weights must score the same tokens, got {rows} rows"
    job = _Job(divergence, student_head, teacher_hidden, teacher_head, ids, weights, chunk)
    inputs = (student_hidden, student_head.weight, student_head.bias)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        loss, *fields = _Fused.apply(*inputs, job)
        return loss, TokenDivergence(*fields)
    loss, result, _ = _run(job, *inputs, needs=(False, False, False))
    return loss, result


class _Job(NamedTuple):
    """What `_run` needs besides the tensors that may require a gradient."""

    divergence: Divergence
    head: Head
    teacher_hidden: Tensor
    teacher_head: Head
    ids: Tensor
    weights: Tensor
    chunk: int


class _Fused(torch.autograd.Function):
    """Gradients for a unit cotangent are made in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        loss, result, grads = _run(job, hidden, weight, bias, needs=ctx.needs_input_grad[:3])
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(*result)
        return loss, *result

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; `once_differentiable` would let most such calls pass unnoticed
            raise RuntimeError("fused_divergence has no second derivative; use Divergence.per_token for create_graph")
        # Not in place: a second backward through a retained graph must find the same numbers.
        return *(None if g is None else g * grad_loss for g in ctx.saved_tensors), None


@torch.no_grad()
def _run(
    job: _Job, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, TokenDivergence, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Loss, per-token results, and the gradients by hidden, weight and bias that `needs` asks for."""
    device = hidden.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    student = _cast(Head(weight, bias, job.head.scale, job.head.softcap), autocast)
    teacher = _cast(job.teacher_head, autocast)
    dtype = student.weight.dtype
    summed = torch.promote_types(dtype, torch.float32)
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if needs[0] else None
    grad_weight = torch.zeros_like(weight, dtype=summed, memory_format=torch.contiguous_format) if needs[1] else None
    grad_bias = torch.zeros_like(bias, dtype=summed) if bias is not None and needs[2] else None
    results: list[TokenDivergence] = []
    with torch.autocast(device, enabled=False):
        for start in range(0, hidden.shape[0], job.chunk):
            rows = slice(start, start + job.chunk)
            rows_hidden = hidden[rows].to(dtype)
            logits = student(rows_hidden)
            teacher_logits = teacher(job.teacher_hidden[rows].to(teacher.weight.dtype))
            if not any(needs):
                results.append(job.divergence.per_token(logits, teacher_logits, job.ids[rows]))
                continue
            result, grad = _value_and_grad(job.divergence, logits, teacher_logits, job.ids[rows], job.weights[rows])
            results.append(result)
            del teacher_logits
            if student.softcap is not None:
                grad.mul_(1 - (logits.to(grad.dtype) / student.softcap).square_())
            del logits
            if student.scale != 1:
                grad.mul_(student.scale)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ student.weight
            if grad_weight is not None and dtype == summed:
                grad_weight.addmm_(grad.T, rows_hidden)
            elif grad_weight is not None:
                grad_weight += grad.T @ rows_hidden
    grads = (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
    )
    if not results:
        nothing = hidden.new_zeros(0, dtype=summed)
        results.append(TokenDivergence(*(nothing.clone() for _ in TokenDivergence._fields)))
    result = TokenDivergence(*(torch.cat(field) for field in zip(*results)))
    return (result.value * job.weights.to(result.value.dtype)).sum(), result, grads


def _cast(head: Head, dtype: torch.dtype | None) -> Head:
    """The head, detached, in `dtype`, or in its weight's type."""
    dtype = head.weight.dtype if dtype is None or head.weight.dtype == torch.float64 else dtype
    bias = None if head.bias is None else head.bias.detach().to(dtype)
    return Head(head.weight.detach().to(dtype), bias, head.scale, head.softcap)


def _value_and_grad(
    divergence: Divergence, logits: Tensor, teacher_logits: Tensor, ids: Tensor, weights: Tensor
) -> tuple[TokenDivergence, Tensor]:
    """`divergence.per_token` without a graph, and the gradient of Σ weights · value by the student's logits."""
    if type(divergence) is ForwardKL and divergence.top_k is None and divergence.clip is None:
        return _forward_kl(divergence, logits, teacher_logits, weights)
    with torch.enable_grad():
        leaf = logits.to(torch.promote_types(logits.dtype, torch.float32)).detach().requires_grad_()
        result = divergence.per_token(leaf, teacher_logits, ids)
        (grad,) = torch.autograd.grad(result.value, leaf, weights.to(result.value.dtype))
    return result._replace(value=result.value.detach()), grad


def _forward_kl(
    divergence: ForwardKL, logits: Tensor, teacher_logits: Tensor, weights: Tensor
) -> tuple[TokenDivergence, Tensor]:
    """The default loss in closed form, gradient (q - p) / temperature, and in place: each pass costs."""
    log_p, log_q = divergence.log_probs(logits, teacher_logits)
    p, q = log_p.exp(), log_q.exp()
    zero = p == 0
    value = (log_p - log_q).masked_fill_(zero, 0.0).mul_(p).sum(-1)
    teacher_entropy = -log_p.masked_fill_(zero, 0.0).mul_(p).sum(-1)
    student_entropy = -log_q.masked_fill_(q == 0, 0.0).mul_(q).sum(-1)
    grad = q.sub_(p).mul_((weights / divergence.temperature).to(q.dtype)[:, None])
    result = TokenDivergence(
        value=value,
        mismatch=value.clone(),
        student_entropy=student_entropy,
        teacher_entropy=teacher_entropy,
        clipped=torch.zeros_like(value),
        negative=(value < -1e-6).to(value.dtype),
    )
    return result, grad
