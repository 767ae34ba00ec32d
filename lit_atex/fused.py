"""A divergence straight from hidden states, without ever holding the logits of the whole batch; it has no formula.

Logits of both sides are formed for `chunk` tokens at a time, reduced to values and to the gradient by the student's
logits, and overwritten. That gradient is folded into those by hidden states and head at once, in the forward pass, so
memory is O(chunk · vocab + vocab · hidden) instead of O(tokens · vocab). The maths is `divergence`'s; models, masks and
means over tokens are the caller's.

A chunk is as large as the matrix products need. What lies between them goes through memory a dozen times, so on a CPU
it is done for a few rows at a time, which stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from lit_atex.divergence import JSD, Divergence, ForwardKL, ReverseKL, TokenDivergence, VocabularyDivergence
from lit_atex.log_space import log_mixes

CHUNK = 3 * 2**24  # most logits of a side at a time (192 MiB): with more, matrix products are hardly faster
BLOCK = 5 * 2**17  # most of them between two products on a CPU (2.5 MiB)


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

    def into(self, out: Float[Tensor, "tokens vocab"], hidden: Float[Tensor, "tokens hidden"]) -> None:
        """Logits, without gradient, into memory that is there: fresh pages of this size cost as much as a product."""
        if self.bias is None:
            torch.mm(hidden, self.weight.T, out=out)
        else:
            torch.addmm(self.bias, hidden, self.weight.T, out=out)
        if self.scale != 1:
            out.mul_(self.scale)
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)

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
        chunk: Most tokens whose logits are held at a time, >= 1, one `[chunk, vocab]` tensor a side; fewer where the
            vocabulary is large. On a GPU about 6 more are alive between the products.
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
    if len(rows) != 1:
        raise ValueError(f"student, teacher, ids and weights must score the same tokens, got {sorted(rows)} rows")
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
        if grad_loss.device.type == "cpu" and grad_loss.item() == 1:  # as usual; copies are large
            return *ctx.saved_tensors, None
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
    vocab = weight.shape[0]
    chunk = min(job.chunk, max(1, CHUNK // vocab), hidden.shape[0])
    block = max(1, BLOCK // vocab) if device == "cpu" else chunk
    student_buffer = hidden.new_empty(chunk, vocab, dtype=dtype)
    teacher_buffer = hidden.new_empty(chunk, vocab, dtype=teacher.weight.dtype)
    # As the buffers: allocated for each block, its pages would be fetched from the system anew each time.
    exact = torch.promote_types(torch.promote_types(dtype, teacher.weight.dtype), torch.float32)
    scratch = [hidden.new_empty(min(block, chunk), vocab, dtype=exact) for _ in range(3)]
    with torch.autocast(device, enabled=False):
        for start in range(0, hidden.shape[0], max(chunk, 1)):
            part = slice(start, min(start + chunk, hidden.shape[0]))
            rows_hidden = hidden[part].to(dtype)
            logits, teacher_logits = student_buffer[: len(rows_hidden)], teacher_buffer[: len(rows_hidden)]
            student.into(logits, rows_hidden)
            teacher.into(teacher_logits, job.teacher_hidden[part].to(teacher.weight.dtype))
            given = (logits, teacher_logits, job.ids[part], job.weights[part])
            for few in zip(*(x.split(block) for x in given)):
                results.append(_reduce(job.divergence, student, few, scratch if any(needs) else None))
            if grad_bias is not None:
                grad_bias += logits.sum(0, dtype=summed)
            if grad_hidden is not None:
                grad_hidden[part] = logits @ student.weight
            if grad_weight is not None and dtype == summed:
                grad_weight.addmm_(logits.T, rows_hidden)
            elif grad_weight is not None:
                grad_weight += logits.T @ rows_hidden
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


def _reduce(
    divergence: Divergence, head: Head, given: tuple[Tensor, ...], scratch: list[Tensor] | None
) -> TokenDivergence:
    """`divergence.per_token` without a graph.

    With `scratch` both logits are lost: the gradient of Σ weights · value by what the head's product gave is left in
    the student's.
    """
    logits, teacher_logits, ids, weights = given
    if scratch is None:
        return divergence.per_token(logits, teacher_logits, ids)
    slope = None
    if head.softcap is not None:
        slope = 1 - (logits.to(torch.promote_types(logits.dtype, torch.float32)) / head.softcap).square_()
    full = isinstance(divergence, VocabularyDivergence) and divergence.top_k is None and divergence.clip is None
    if full and type(divergence) in (ForwardKL, ReverseKL, JSD):  # a subclass may have another formula
        result, grad = _closed_form(divergence, logits, teacher_logits, weights, scratch)
    else:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            result = divergence.per_token(leaf, teacher_logits, ids)
            (grad,) = torch.autograd.grad(result.value, leaf, weights.to(result.value.dtype))
        result = result._replace(value=result.value.detach())
    if slope is not None:
        grad = grad * slope
    if head.scale != 1:
        grad = grad * head.scale
    logits.copy_(grad)  # nothing to do if it is there already
    return result


def _closed_form(
    divergence: Divergence, logits: Tensor, teacher_logits: Tensor, weights: Tensor, scratch: list[Tensor]
) -> tuple[TokenDivergence, Tensor]:
    """Value and gradient without autograd, and in place where it can be: each pass costs.

    Times the temperature the gradient of KL(p‖q) is q - p, and that of KL(q‖m) is q (log q/m - KL(q‖m)), also where m
    is a mixture with q in it and KL(p‖m) comes on top, as in JSD: what is left out cancels.
    """
    p, q, product = (x[: logits.shape[0]] for x in scratch)
    log_p = _softmax(teacher_logits.to(p.dtype), divergence.temperature, p)
    log_q = _softmax(logits.to(q.dtype), divergence.temperature, q)
    teacher_entropy, student_entropy = -_expectation(p, log_p, product), -_expectation(q, log_q, product)
    ratio = log_p.sub_(log_q)
    mismatch = _expectation(p, ratio, product)
    if isinstance(divergence, ForwardKL):
        own, value, grad = 1.0, mismatch, torch.sub(q, p, out=log_q)
    else:
        own, mixed, of_teacher = -1.0, ratio, torch.zeros_like(mismatch)  # log m/q, where m is p
        if isinstance(divergence, JSD):
            b, scale = divergence.beta, divergence.scale
            mixed, over_p = log_mixes(ratio, 1 - b)
            own, of_teacher = (b - 1) * scale, of_teacher - b * scale * _expectation(p, over_p, product)
        minus_kl = _expectation(q, mixed, product)
        value = own * minus_kl + of_teacher
        grad = torch.sub(mixed, minus_kl[:, None], out=log_q).mul_(q).masked_fill_(q == 0, 0.0)
    result = TokenDivergence(
        value=value,
        mismatch=mismatch.clone(),
        student_entropy=student_entropy,
        teacher_entropy=teacher_entropy,
        clipped=torch.zeros_like(value),
        negative=(value < -1e-6).to(value.dtype),
    )
    return result, grad.mul_((weights * (own / divergence.temperature)).to(q.dtype)[:, None])


def _softmax(x: Float[Tensor, "tokens vocab"], temperature: float, p: Float[Tensor, "tokens vocab"]) -> Tensor:
    """Log-probabilities, in the place of the logits, and in `p` probabilities: the exponential is taken once."""
    if temperature != 1:
        x.div_(temperature)
    x.sub_(x.amax(-1, keepdim=True))
    torch.exp(x, out=p)
    total = p.sum(-1, keepdim=True)
    p.div_(total)
    return x.sub_(total.log_())


def _expectation(
    p: Float[Tensor, "tokens vocab"], x: Float[Tensor, "tokens vocab"], product: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """Σ p · x with 0 · inf = 0."""
    if p.device.type == "cpu":  # elsewhere the host would wait for the answer
        found = torch.mul(p, x, out=product).sum(-1)
        if found.isfinite().all():
            return found
    return (p * x.masked_fill(p == 0, 0.0)).sum(-1)
