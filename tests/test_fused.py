"""The chunked divergence against one pass over all logits with ordinary autograd."""

from __future__ import annotations

import itertools

import jaxtyping
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_atex.divergence import JSD, Clip, Divergence, ForwardKL, ReverseKL, SampledToken, SkewKL, TokenDivergence, TopK
from lit_atex.fused import BLOCK, CHUNK, Head, fused_divergence

TOKENS, VOCAB, HIDDEN = 7, 13, 5
ALL = [
    ForwardKL(),
    ForwardKL(temperature=0.7),
    ReverseKL(),
    ReverseKL(temperature=0.7),
    ForwardKL(temperature=0.7, clip=Clip(0.02)),
    ForwardKL(temperature=2.0, top_k=TopK(3, tail="renormalise")),
    ReverseKL(temperature=0.7, top_k=TopK(4, "student")),
    JSD(temperature=2.0, top_k=TopK(3, "union"), clip=Clip(0.1, "token"), beta=0.3),
    JSD(beta=0.3),
    JSD(temperature=0.7, beta=0.7, rescaled=True),
    ReverseKL(clip=Clip(0.05)),
    SkewKL(temperature=0.7, alpha=0.2),
    SkewKL(alpha=0.3, clip=Clip(0.05, "token"), top_k=TopK(4)),
    SampledToken(temperature=2.0),
]


def plain_divergence(
    divergence: Divergence,
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    ids: Tensor,
    chunk: int,
    weights: Tensor | None = None,
) -> tuple[Tensor, TokenDivergence]:
    """The reference: everything at once, `chunk` unused."""
    result = divergence.per_token(student_head(student_hidden), teacher_head(teacher_hidden).detach(), ids)
    return (result.value if weights is None else result.value * weights).sum(), result


def inputs(
    tokens: int = TOKENS, vocab: int = VOCAB, hidden: int = HIDDEN, dtype: torch.dtype = torch.float64, **head
) -> dict:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "student_hidden": draw(tokens, hidden).requires_grad_(),
        "student_head": Head(draw(vocab, hidden).requires_grad_(), draw(vocab).requires_grad_(), **head),
        "teacher_hidden": draw(tokens, hidden + 2).requires_grad_(),
        "teacher_head": Head(draw(vocab, hidden + 2).requires_grad_(), **head),
        "ids": torch.randint(vocab, (tokens,), generator=g),
    }


def gradients(loss: Tensor, given: dict) -> list[Tensor | None]:
    student, teacher = given["student_head"], given["teacher_head"]
    leaves = [given["student_hidden"], student.weight, student.bias, given["teacher_hidden"], teacher.weight]
    return list(torch.autograd.grad(loss, leaves, allow_unused=True))


@pytest.mark.slow
@pytest.mark.parametrize("head", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 1.7, "softcap": 3.0}], ids=repr)
@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_chunked_equals_plain_in_value_and_all_gradients(divergence, head):
    given = inputs(**head)
    for chunk, weights in itertools.product((1, 3, TOKENS, TOKENS + 5), (None, torch.linspace(0, 2, TOKENS).double())):
        got, got_tokens = fused_divergence(divergence, **given, chunk=chunk, weights=weights)
        want, want_tokens = plain_divergence(divergence, **given, chunk=0, weights=weights)
        torch.testing.assert_close(got, want)
        for field_got, field_want in zip(got_tokens, want_tokens):
            torch.testing.assert_close(field_got, field_want.detach())
            assert not field_got.requires_grad
        for grad_got, grad_want in zip(gradients(3 * got, given), gradients(3 * want, given)):
            if grad_want is None:  # the teacher
                assert grad_got is None
            else:
                torch.testing.assert_close(grad_got, grad_want)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [ForwardKL(temperature=0.7), JSD(), JSD(top_k=TopK(3, "union"))], ids=repr)
def test_rows_that_are_taken_a_few_at_a_time_are_all_taken(divergence):
    # Large enough for two chunks of many blocks, the last of each cut short.
    tokens, vocab = (CHUNK // 150_000) + 3, 150_000
    assert CHUNK // vocab > 3 * (BLOCK // vocab)
    given = inputs(tokens, vocab, 4, torch.float32, softcap=3.0)
    weights = torch.linspace(0, 2, tokens)
    got, got_tokens = fused_divergence(divergence, **given, chunk=10_000, weights=weights)
    assert got_tokens.value.shape == (tokens,)
    want = [0.0, [], 0.0, 0.0]
    for n in range(0, tokens, 20):  # all at once would take gigabytes
        part = slice(n, n + 20)
        some = {k: v if isinstance(v, Head) else v[part] for k, v in given.items()}
        loss, values = plain_divergence(divergence, **some, chunk=0, weights=weights[part])
        hidden, weight, *_ = gradients(loss, given)
        want = [want[0] + loss.detach(), [*want[1], values.value.detach()], want[2] + hidden, want[3] + weight]
    torch.testing.assert_close(got, want[0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(got_tokens.value, torch.cat(want[1]), rtol=1e-5, atol=1e-5)
    hidden, weight, *_ = gradients(got, given)
    assert (hidden - want[2]).norm() < 1e-5 * want[2].norm()
    assert (weight - want[3]).norm() < 1e-5 * want[3].norm()


@pytest.mark.parametrize("kind", [ForwardKL, ReverseKL, JSD])
def test_the_closed_forms_are_exact_where_a_side_excludes_entries(kind):
    given = inputs(dtype=torch.float32)
    bias = torch.zeros(VOCAB)
    bias[:3] = -torch.inf
    given["student_head"] = given["student_head"]._replace(bias=bias)
    given["teacher_head"] = given["teacher_head"]._replace(bias=bias.clone())
    if kind is not ForwardKL:  # what the student alone excludes adds nothing to its own side
        given["teacher_head"].bias[1] = 0.0
    if kind is JSD:
        given["student_head"].bias[2] = 0.0
    losses = [f(kind(temperature=0.7), **given, chunk=3)[0] for f in (fused_divergence, plain_divergence)]
    torch.testing.assert_close(*losses)
    leaves = [given["student_hidden"], given["student_head"].weight]
    for grad_got, grad_want in zip(*(torch.autograd.grad(loss, leaves) for loss in losses)):
        assert grad_got.isfinite().all()
        torch.testing.assert_close(grad_got, grad_want)
    given["student_head" if kind is ReverseKL else "teacher_head"].bias[0] = 0.0
    assert (fused_divergence(kind(), **given, chunk=3)[0].item() == torch.inf) == (kind is not JSD)


class Doubled(ReverseKL):
    """Somebody's own, on top of one with a closed form."""

    def contributions(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return 2 * super().contributions(log_p, log_q)


def test_a_subclass_of_one_with_a_closed_form_has_its_own_formula():
    given = inputs()
    got, want = (fused_divergence(d, **given, chunk=3)[0] for d in (Doubled(), ReverseKL()))
    torch.testing.assert_close(got, 2 * want)


def test_a_head_tied_to_the_embedding_gets_both_gradients():
    given = inputs()
    grads = []
    for f in (fused_divergence, plain_divergence):
        embedding = given["student_head"].weight.detach().clone().requires_grad_()
        tied = {**given, "student_hidden": embedding[given["ids"]], "student_head": Head(embedding)}
        tied |= {"teacher_hidden": given["student_hidden"], "teacher_head": Head(embedding)}  # a live teacher, too
        f(ForwardKL(temperature=0.7), **tied, chunk=3)[0].backward()
        grads.append(embedding.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    "divergence",
    [ForwardKL(temperature=0.7), ReverseKL(), JSD(beta=0.3), JSD(temperature=0.7, top_k=TopK(3))],
    ids=repr,
)
def test_the_same_model_on_both_sides_costs_exactly_nothing(divergence):
    given = inputs(dtype=torch.float32, vocab=1003)
    given |= {"teacher_hidden": given["student_hidden"], "teacher_head": given["student_head"]}
    loss, tokens = fused_divergence(divergence, **given, chunk=3)
    assert loss.item() == 0.0
    assert (tokens.mismatch == 0.0).all()
    assert not tokens.value.signbit().any()  # nor is it shown as -0.000
    for grad in torch.autograd.grad(loss, [given["student_hidden"], *given["student_head"][:2]]):
        assert grad.abs().max() < 1e-6
        assert isinstance(divergence, JSD) or (grad == 0.0).all()


def test_only_what_requires_a_gradient_gets_one():
    given = inputs()
    want = gradients(fused_divergence(ReverseKL(), **given, chunk=3)[0], given)
    frozen = {**given, "student_head": Head(*(x.detach() for x in given["student_head"][:2]))}  # as under LoRA
    loss, _ = fused_divergence(ReverseKL(), **frozen, chunk=3)
    torch.testing.assert_close(torch.autograd.grad(loss, given["student_hidden"])[0], want[0])
    loss, _ = fused_divergence(ReverseKL(), **{**given, "student_hidden": given["student_hidden"].detach()}, chunk=3)
    torch.testing.assert_close(torch.autograd.grad(loss, given["student_head"].weight)[0], want[1])


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_without_grad_mode_the_values_are_the_same(divergence):
    given = inputs()
    want, want_tokens = fused_divergence(divergence, **given, chunk=3)
    with torch.no_grad():
        got, tokens = fused_divergence(divergence, **given, chunk=3)
    assert not got.requires_grad
    torch.testing.assert_close((got, tuple(tokens)), (want.detach(), tuple(want_tokens)))


def test_no_tokens_is_a_loss_of_zero_that_can_be_backpropagated():
    given = inputs(tokens=0)
    for divergence in (ForwardKL(), SampledToken()):
        loss, tokens = fused_divergence(divergence, **given, chunk=4)
        assert loss.item() == 0.0
        assert all(field.shape == (0,) for field in tokens)
        hidden, weight, bias, *_ = gradients(loss, given)
        assert hidden.shape == (0, HIDDEN)
        assert (weight == 0).all()
        assert (bias == 0).all()


def test_inputs_need_not_be_contiguous():
    given = inputs()
    want, _ = fused_divergence(JSD(), **given, chunk=3)
    strided = {
        **given,
        "student_hidden": given["student_hidden"].detach().T.contiguous().T.requires_grad_(),
        "student_head": given["student_head"]._replace(
            weight=given["student_head"].weight.detach().repeat_interleave(2, 1)[:, ::2].requires_grad_()
        ),
    }
    assert not strided["student_hidden"].is_contiguous()
    got, _ = fused_divergence(JSD(), **strided, chunk=3)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, strided), gradients(want, given))


def test_second_derivatives_are_refused_and_a_retained_graph_repeats_itself():
    given = inputs()
    loss, _ = fused_divergence(ForwardKL(), **given, chunk=3)
    first, again = (torch.autograd.grad(2 * loss, given["student_hidden"], retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], again[0])
    leaf = given["student_head"].weight
    for times in (1, 2):  # with a cotangent of exactly 1, and gradients changed in place in between
        loss.backward(retain_graph=True)
        torch.testing.assert_close(leaf.grad, 2 * times * torch.autograd.grad(loss / 2, leaf, retain_graph=True)[0])
        leaf.grad.mul_(2).div_(2)
    leaf.grad.zero_()
    loss.backward(retain_graph=True)
    assert leaf.grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, given["student_hidden"], create_graph=True)


@pytest.mark.parametrize("divergence", [ForwardKL(), JSD(temperature=2.0, top_k=TopK(3), beta=0.3)], ids=repr)
def test_mixed_precision(divergence):
    given = inputs(tokens=32, vocab=64, hidden=16, dtype=torch.float32)
    exact = gradients(plain_divergence(divergence, **given, chunk=0)[0], given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, tokens = fused_divergence(divergence, **given, chunk=5)
        plain, _ = plain_divergence(divergence, **given, chunk=0)
    assert loss.dtype == tokens.mismatch.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-4)  # the same rounding of the same products
    for got, want, param in zip(
        gradients(loss, given)[:3], exact, [given["student_hidden"], *given["student_head"][:2]]
    ):
        assert got.dtype == param.dtype
        assert (got - want).norm() < 0.02 * want.norm()

    half = {
        k: Head(*(x.detach().bfloat16().requires_grad_() for x in v[:2] if x is not None))
        if isinstance(v, Head)
        else (v.detach().bfloat16().requires_grad_() if v.is_floating_point() else v)
        for k, v in given.items()
    }
    loss, _ = fused_divergence(divergence, **half, chunk=5)
    assert loss.dtype == torch.float32
    for got, want in zip(gradients(loss, half)[:3], exact):
        assert got.dtype == torch.bfloat16
        assert (got - want).norm() < 0.03 * want.norm()


def test_the_weight_gradient_is_summed_over_chunks_in_float32():
    # 300 equal tokens: in bfloat16 (8 bits) a running sum stalls before the 300th.
    given = inputs(tokens=1, dtype=torch.bfloat16)
    given["student_hidden"] = given["student_hidden"].detach().expand(300, -1).contiguous()
    given["teacher_hidden"] = given["teacher_hidden"].detach().expand(300, -1).contiguous()
    given["ids"] = given["ids"].expand(300)
    one = {k: v if isinstance(v, Head) else v[:1] for k, v in given.items()}
    grads = [
        torch.autograd.grad(fused_divergence(ForwardKL(), **x, chunk=1)[0], given["student_head"].weight)[0].float()
        for x in (given, one)
    ]
    torch.testing.assert_close(grads[0], 300 * grads[1], rtol=0.01, atol=1e-3)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize(
    "divergence", [ForwardKL(), JSD(temperature=0.7, top_k=TopK(8, "union"), clip=Clip(0.1))], ids=repr
)
def test_logits_of_the_whole_batch_never_exist(divergence):
    tokens, vocab, chunk = 2048, 4096, 128
    few = inputs(8, vocab, 32, torch.float32)
    with Largest() as largest:
        plain_divergence(divergence, **few, chunk=0)[0].backward()
    assert largest.numel >= 32 * vocab  # the head's gradient; the instrument works
    given = inputs(tokens, vocab, 32, torch.float32)
    with Largest() as largest:
        fused_divergence(divergence, **given, chunk=chunk)[0].backward()
    assert largest.numel == chunk * vocab


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 0}, "chunk"),
        ({"teacher_head": Head(torch.ones(VOCAB + 1, HIDDEN + 2).double())}, "13 and 14"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fused_divergence(ForwardKL(), **{**inputs(), "chunk": 2, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"ids": torch.zeros(TOKENS - 1, dtype=torch.long)},
        {"teacher_hidden": torch.ones(2, HIDDEN + 2).double()},
        {"weights": torch.ones(1)},
    ],
)
def test_rows_that_do_not_match_are_never_cropped(change):
    with pytest.raises(TypeCheckError):
        fused_divergence(ForwardKL(), **{**inputs(), "chunk": 20, **change})
    jaxtyping.config.update("jaxtyping_disable", True)  # as outside of tests
    try:
        with pytest.raises(ValueError, match="must score the same tokens"):
            fused_divergence(ForwardKL(), **{**inputs(), "chunk": 20, **change})
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
