"""Divergences against formulas written a second time, in float64, from probabilities instead of log-probabilities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from mpmath import exp, log, mpf, workdps
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from lit_atex.divergence import JSD, Clip, Divergence, ForwardKL, ReverseKL, SampledToken, SkewKL, TopK
from lit_atex.log_space import log_mixes

VOCAB = 9
INF = math.inf
TOP_KS = [None, *(TopK(3, s, t) for s in ("teacher", "student", "union") for t in ("bucket", "renormalise"))]
CLIPS = [None, Clip(0.05, "vocab"), Clip(0.2, "token")]
FORMULAS = [
    (ForwardKL, {}),
    (ReverseKL, {}),
    (JSD, {"beta": 0.3}),
    (JSD, {"beta": 0.8, "rescaled": True}),
    (SkewKL, {"alpha": 0.0}),
    (SkewKL, {"alpha": 0.2}),
]
PLAIN = [cls(**kwargs) for cls, kwargs in FORMULAS]


def logits(tokens: int = 6, vocab: int = VOCAB, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple:
    """Student and teacher logits that disagree, and sampled ids."""
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(tokens, vocab, generator=generator, dtype=torch.float64)
    teacher = student + 1.5 * torch.randn(tokens, vocab, generator=generator, dtype=torch.float64)
    ids = torch.randint(vocab, (tokens,), generator=generator)
    return student.to(dtype), teacher.to(dtype), ids


def entries(divergence: Divergence, p: Tensor, q: Tensor) -> Tensor:
    """Contribution of each entry, straight from the papers' formulas."""
    if isinstance(divergence, ForwardKL):
        return p * (p / q).log()
    if isinstance(divergence, ReverseKL):
        return q * (q / p).log()
    if isinstance(divergence, SkewKL):
        return p * (p / (divergence.alpha * p + (1 - divergence.alpha) * q)).log()
    assert isinstance(divergence, JSD)
    m = divergence.beta * p + (1 - divergence.beta) * q
    jsd = divergence.beta * p * (p / m).log() + (1 - divergence.beta) * q * (q / m).log()
    return jsd / (divergence.beta * (1 - divergence.beta)) if divergence.rescaled else jsd


def oracle(divergence: Divergence, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value and clipped flag of each token, one token at a time."""
    values, clipped = [], []
    for s, t in zip(student, teacher):
        q, p = (s / divergence.temperature).softmax(0), (t / divergence.temperature).softmax(0)
        if divergence.top_k is not None:
            best = {"teacher": set(t.argsort()[-divergence.top_k.k :].tolist())}
            best["student"] = set(s.argsort()[-divergence.top_k.k :].tolist())
            best["union"] = best["teacher"] | best["student"]
            kept = sorted(best[divergence.top_k.support])
            if divergence.top_k.tail == "bucket":
                p, q = (torch.cat([w[kept], 1 - w[kept].sum(0, keepdim=True)]) for w in (p, q))
            else:
                p, q = (w[kept] / w[kept].sum() for w in (p, q))
        terms = entries(divergence, p, q)
        flag = False
        if divergence.clip is not None and divergence.clip.kind == "vocab":
            flag = bool((terms > divergence.clip.at).any())
            terms = terms.minimum(torch.full_like(terms, divergence.clip.at))
        value = terms.sum()
        if divergence.clip is not None and divergence.clip.kind == "token":
            flag = bool(value > divergence.clip.at)
            value = value.minimum(torch.full_like(value, divergence.clip.at))
        values.append(value)
        clipped.append(float(flag))
    return torch.stack(values), torch.tensor(clipped, dtype=student.dtype)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize(("cls", "kwargs"), FORMULAS)
def test_equals_the_formula_in_value_and_gradient(cls, kwargs, temperature):
    student, teacher, ids = logits()
    student.requires_grad_()
    teacher.requires_grad_()
    for top_k, clip in itertools.product(TOP_KS, CLIPS):
        divergence = cls(temperature=temperature, top_k=top_k, clip=clip, **kwargs)
        got = divergence.per_token(student, teacher, ids)
        value, clipped = oracle(divergence, student, teacher.detach())
        torch.testing.assert_close(got.value, value, rtol=1e-10, atol=1e-12, msg=repr(divergence))
        assert torch.equal(got.clipped, clipped), divergence
        grads = [torch.autograd.grad(v.sum(), student, retain_graph=True)[0] for v in (got.value, value)]
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=1e-11, msg=repr(divergence))
        assert not any(field.requires_grad for field in got[1:])
    assert torch.autograd.grad(got.value.sum(), teacher, allow_unused=True) == (None,)


@pytest.mark.parametrize(("cls", "kwargs"), FORMULAS)
def test_gradient_by_finite_differences(cls, kwargs):
    student, teacher, ids = logits(tokens=2, vocab=7)
    for top_k, clip in itertools.product(TOP_KS, CLIPS):
        divergence = cls(temperature=0.7, top_k=top_k, clip=clip, **kwargs)
        leaf = student.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s, d=divergence: d.per_token(s, teacher, ids).value, leaf, fast_mode=True
        )


def test_directions_of_the_two_kls():
    teacher, student = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64).log()
    ids = torch.tensor([0])
    forward = ForwardKL().per_token(student, teacher, ids)
    reverse = ReverseKL().per_token(student, teacher, ids)
    assert forward.value.item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-12)  # 0.368
    assert reverse.value.item() == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5), abs=1e-12)  # 0.511
    assert reverse.mismatch.item() == forward.value.item()

    student, teacher, ids = logits()
    p, q = Categorical(logits=teacher), Categorical(logits=student)
    for divergence, expected in ((ForwardKL(), kl_divergence(p, q)), (ReverseKL(), kl_divergence(q, p))):
        torch.testing.assert_close(divergence.per_token(student, teacher, ids).value, expected)


class InPlace(ForwardKL):
    def contributions(self, log_p, log_q):
        return log_p.exp_() * -log_q


@pytest.mark.parametrize("returned", [torch.zeros(6), (torch.zeros(6),), (torch.zeros(6), torch.zeros(6, 1))])
def test_what_a_divergence_of_the_users_returns_is_looked_at(returned):
    class Mine(Divergence):
        def _value(self, log_p, log_q, ids):
            return returned

    with pytest.raises(ValueError, match=r"model\.divergence: Mine\._value must return \(values, clipped\).* 6 tokens"):
        Mine().per_token(*logits())


@pytest.mark.parametrize(
    "divergence",
    [*PLAIN, InPlace(), ReverseKL(temperature=0.7, top_k=TopK(2), clip=Clip(0.01)), SampledToken(temperature=2.0)],
    ids=lambda d: type(d).__name__,
)
def test_statistics_do_not_depend_on_the_loss(divergence):
    student, teacher, ids = logits()
    got = divergence.per_token(student, teacher, ids)
    p, q = (Categorical(logits=x / divergence.temperature) for x in (teacher, student))
    torch.testing.assert_close(got.mismatch, kl_divergence(p, q))
    torch.testing.assert_close(got.student_entropy, q.entropy())
    torch.testing.assert_close(got.teacher_entropy, p.entropy())


def test_a_clip_per_entry_can_make_the_loss_negative_and_says_so():
    student, teacher, ids = logits()
    got = ForwardKL(clip=Clip(0.001)).per_token(student, teacher, ids)
    assert (got.value < 0).any()
    assert torch.equal(got.negative, (got.value < -1e-6).double())
    assert got.clipped.all()
    unclipped = ForwardKL(clip=Clip(1e6)).per_token(student, teacher, ids)
    assert not unclipped.clipped.any()
    assert not unclipped.negative.any()
    same = ForwardKL(clip=Clip(0.001)).per_token(student, student, ids)
    assert not same.clipped.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("cls", "kwargs"), FORMULAS)
def test_identical_logits_give_exactly_zero(cls, kwargs, dtype):
    student, _, ids = logits(tokens=4, vocab=203, dtype=dtype)
    student[0, :100] = -INF
    for temperature, top_k, clip in itertools.product([1.0, 0.7], TOP_KS, CLIPS):
        leaf = student.clone().requires_grad_()
        got = cls(temperature=temperature, top_k=top_k, clip=clip, **kwargs).per_token(leaf, student.clone(), ids)
        assert (got.value == 0.0).all()
        assert (got.mismatch == 0.0).all()
        got.value.sum().backward()
        assert leaf.grad.abs().max() < 1e-6


def test_identical_logits_leave_the_sampled_token_form_without_loss_and_gradient():
    student, _, ids = logits(dtype=torch.float32)
    leaf = student.clone().requires_grad_()
    got = SampledToken(temperature=0.7).per_token(leaf, student, ids)
    got.value.sum().backward()
    assert (got.value == 0.0).all()
    assert (leaf.grad == 0.0).all()


def test_sampled_token_form_has_the_gradient_of_reverse_kl_in_expectation():
    student, teacher, _ = logits(tokens=1, vocab=5)
    for temperature in (1.0, 0.7):
        leaf = student.clone().requires_grad_()
        q = (student / temperature).softmax(-1)[0]
        expected = torch.zeros_like(student)
        for y in range(5):
            ids = torch.tensor([y])
            value = SampledToken(temperature=temperature).per_token(leaf, teacher, ids).value
            log_q, log_p = (x.div(temperature).log_softmax(-1)[0, y] for x in (student, teacher))
            assert value.item() == pytest.approx(-(log_p - log_q).item() * log_q.item(), abs=1e-12)
            expected += q[y] * torch.autograd.grad(value.sum(), leaf)[0]
        reverse = ReverseKL(temperature=temperature).per_token(leaf, teacher, torch.tensor([0])).value
        torch.testing.assert_close(expected, torch.autograd.grad(reverse.sum(), leaf)[0])
        assert expected.abs().max() > 0.01


def test_jsd_vanishes_at_both_ends_and_the_rescaled_form_tends_to_the_kls():
    student, teacher, ids = logits()
    kls = [cls().per_token(student, teacher, ids).value for cls in (ForwardKL, ReverseKL)]
    for beta, kl in zip((1e-7, 1 - 1e-7), kls):
        assert JSD(beta=beta).per_token(student, teacher, ids).value.max() < 1e-5
        torch.testing.assert_close(
            JSD(beta=beta, rescaled=True).per_token(student, teacher, ids).value, kl, rtol=1e-4, atol=0
        )
    assert not torch.allclose(*kls, rtol=0.05)
    half = JSD(beta=0.5)
    torch.testing.assert_close(
        half.per_token(student, teacher, ids).value, half.per_token(teacher, student, ids).value
    )  # symmetric
    disjoint = torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]])
    assert half.per_token(*disjoint, ids[:1]).value.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("beta", [1e-3, 1 / 16, 0.5, 15 / 16, 1 - 1e-3])
@pytest.mark.parametrize("spread", [0.01, 1.0, 40.0])
def test_float32_stays_within_1e_5_of_float64(beta, spread):
    student, teacher, ids = logits(vocab=2000)
    teacher = student + spread * (teacher - student)
    formulas = [*PLAIN, JSD(beta=beta), JSD(beta=beta, rescaled=True), SkewKL(alpha=beta)]
    for divergence in [*formulas, *(type(d)(**{**vars(d), "top_k": TopK(50, "union")}) for d in formulas)]:
        exact = student.float().double().requires_grad_()
        single = student.float().requires_grad_()
        want = divergence.per_token(exact, teacher.float().double(), ids)
        got = divergence.per_token(single, teacher.float(), ids)
        for field_got, field_want in zip(got[:4], want[:4]):
            torch.testing.assert_close(field_got.double(), field_want, rtol=1e-5, atol=1e-5)
        want.value.sum().backward()
        got.value.sum().backward()
        torch.testing.assert_close(single.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
        assert got.value.dtype == torch.float32


@pytest.mark.parametrize("w", [1e-3, 1 / 16, 0.3, 0.5, 15 / 16, 1 - 1e-3])
def test_mixtures_keep_their_digits_in_both_tails(w):
    ratios = [s * 10.0**e for s in (-1, 1) for e in (-30, -6, -3, -1, 0, 0.5, 1, 1.5, 2, 4)] + [0.0]
    ratio = torch.tensor(ratios, requires_grad=True)
    for sign, got in zip((1, -1), log_mixes(ratio, w)):
        with workdps(60):
            one, other = (mpf(w), 1 - mpf(w))[::sign]
            want = torch.tensor([float(log(one + other * exp(sign * mpf(r)))) for r in ratio.tolist()])
        torch.testing.assert_close(got, want, rtol=2e-6, atol=0.0)
        assert torch.autograd.grad(got.sum(), ratio, retain_graph=True)[0].isfinite().all()


def test_low_precision_logits_are_computed_in_float32():
    student, teacher, ids = logits(dtype=torch.bfloat16)
    got = ForwardKL(temperature=0.7).per_token(student, teacher, ids).value
    assert torch.equal(got, ForwardKL(temperature=0.7).per_token(student.float(), teacher.float(), ids).value)


@pytest.mark.parametrize("divergence", [*PLAIN, SampledToken()], ids=repr)
def test_entries_masked_on_both_sides_do_not_exist(divergence):
    student, teacher, ids = logits()
    ids = ids.clamp(max=5)
    masked = [torch.cat([x[:, :6], torch.full((6, 3), -INF).double()], -1) for x in (student, teacher)]
    masked[0].requires_grad_()
    short = student[:, :6].clone().requires_grad_()
    got, want = divergence.per_token(*masked, ids), divergence.per_token(short, teacher[:, :6], ids)
    for field_got, field_want in zip(got, want):
        torch.testing.assert_close(field_got, field_want)
    got.value.sum().backward()
    want.value.sum().backward()
    torch.testing.assert_close(masked[0].grad[:, :6], short.grad)
    assert (masked[0].grad[:, 6:] == 0).all()


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("divergence", PLAIN, ids=repr)
def test_an_entry_that_one_side_excludes(divergence, who):
    student, teacher, ids = logits()
    (student if who == "student" else teacher)[:, 4] = -INF
    leaf = student.requires_grad_()
    value = divergence.per_token(leaf, teacher, ids).value
    assert not value.isnan().any()
    infinite = {"student": (ForwardKL,), "teacher": (ReverseKL,)}[who]
    assert value.isinf().all() == (
        isinstance(divergence, infinite) or (divergence == SkewKL(alpha=0.0) and who == "student")
    )
    if value.isfinite().all():
        value.sum().backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize("support", ["teacher", "student", "union"])
@pytest.mark.parametrize("divergence", PLAIN, ids=repr)
def test_top_k_without_any_mass_outside_is_the_full_divergence(divergence, support, tail):
    student, teacher, ids = logits()
    student[:, 3:] = teacher[:, 3:] = -INF
    grads = []
    for top_k in (TopK(3, support, tail), TopK(VOCAB, support, tail), None):
        leaf = student.clone().requires_grad_()
        value = type(divergence)(**{**vars(divergence), "top_k": top_k}).per_token(leaf, teacher, ids).value
        value.sum().backward()
        grads.append((value, leaf.grad))
    for got in grads[:2]:
        torch.testing.assert_close(got, grads[2])


def test_a_tail_of_1e_12_is_not_rounded_away():
    student = torch.tensor([[0.0, -30.0, -28.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, -28.0, -29.0]])
    got = ReverseKL(top_k=TopK(1)).per_token(student, teacher, torch.tensor([0]))
    got.value.sum().backward()
    q, p = math.exp(-30) + math.exp(-28), math.exp(-28) + math.exp(-29)
    assert student.grad[0, 1:].sum().item() == pytest.approx(q * math.log(q / p), rel=1e-4)


def test_broken_logits_are_not_hidden():
    student, teacher, ids = logits()
    for broken in ([student * math.nan, teacher], [student, teacher * math.nan]):
        for divergence in [*PLAIN, SampledToken(), ForwardKL(top_k=TopK(2))]:
            assert divergence.per_token(*broken, ids).value.isnan().all()


rows = st.lists(st.floats(-12, 12), min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows, rows, st.integers(1, 8), st.sampled_from(["teacher", "student", "union"]))
def test_with_the_tail_bucket_top_k_lies_between_zero_and_the_full_divergence(s, t, k, support):
    student, teacher = torch.tensor([s]).double(), torch.tensor([t]).double()
    ids = torch.tensor([0])
    for divergence in PLAIN:
        full = divergence.per_token(student, teacher, ids).value.item()
        part = type(divergence)(**{**vars(divergence), "top_k": TopK(k, support)}).per_token(student, teacher, ids)
        assert -1e-9 <= part.value.item() <= full + 1e-9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForwardKL(temperature=0.0), "temperature"),
        (lambda: JSD(beta=0.0), "ForwardKL"),
        (lambda: JSD(beta=1.0), "ReverseKL"),
        (lambda: SkewKL(alpha=1.0), "alpha"),
        (lambda: SkewKL(temperature=-1.0), "temperature"),
        (lambda: TopK(0), "top_k.k"),
        (lambda: Clip(0.0), "clip.at"),
        (
            lambda: ForwardKL().per_token(torch.ones(2, 5), torch.ones(2, 6), torch.zeros(2, dtype=torch.long)),
            r"\[2, 5\], \[2, 6\]",
        ),
    ],
)
def test_mistakes_name_the_key(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Module:
    def __init__(self, divergence: Divergence):
        """A stand-in for the training module.

        Args:
            divergence: The loss.
        """
        self.divergence = divergence


@pytest.mark.parametrize(
    "divergence",
    [
        ForwardKL(temperature=0.7),
        JSD(temperature=2.0, top_k=TopK(20, "union"), clip=Clip(0.05), beta=0.3, rescaled=True),
        SkewKL(alpha=0.2),
        SampledToken(),
    ],
)
def test_configured_by_class_path(divergence, tmp_path):
    parser = ArgumentParser()
    parser.add_class_arguments(Module, "model")
    options = {k: vars(v) if isinstance(v, TopK | Clip) else v for k, v in vars(divergence).items()}
    spec = {"class_path": f"lit_atex.divergence.{type(divergence).__name__}", "init_args": options}
    config = parser.parse_object({"model": {"divergence": spec}})
    assert parser.instantiate(config).model.divergence == divergence
    assert parser.instantiate(parser.parse_string(parser.dump(config))).model.divergence == divergence


@pytest.mark.parametrize("kind", ["vocab", "token"])
@pytest.mark.parametrize("cls", [ForwardKL, ReverseKL, JSD, SkewKL])
def test_what_is_capped_has_no_gradient_though_it_was_infinite(cls, kind):
    """A token that the teacher excludes; the other entries keep the gradient that they have without the cap."""
    student = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64)
    found = cls(clip=Clip(0.05, kind)).per_token(student, teacher, torch.zeros(1, dtype=torch.long))
    found.value.sum().backward()
    assert found.value.isfinite().all()
    assert student.grad.isfinite().all()
    if cls is ReverseKL and kind == "vocab":
        q = student.detach().softmax(-1)[0].requires_grad_()
        p = teacher.softmax(-1)[0]
        (by_hand,) = torch.autograd.grad((q[:2] * (q[:2] / p[:2]).log()).clamp(max=0.05).sum(), q)
        through = q.detach() * (by_hand - (q.detach() * by_hand).sum())  # of the softmax
        torch.testing.assert_close(student.grad[0], through)
