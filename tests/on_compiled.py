"""Compiled divergences against the same as they are written: run by test_compiled.py, without the checks of shapes.

torch.compile does not look into those, with which the other tests run, and users do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from test_fused import ALL, gradients, inputs, plain_divergence
from torch import Tensor

from lit_atex.compiled import Compiled
from lit_atex.divergence import JSD, Clip, Divergence, ReverseKL, TopK
from lit_atex.fused import fused_divergence


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """torch compiles one function for a few cases only, and all divergences share theirs."""
    torch._dynamo.reset()


@dataclass(frozen=True, kw_only=True)
class Squares(Divergence):
    """Somebody's own loss."""

    def _value(self, log_p: Tensor, log_q: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return (log_p.exp() - log_q.exp()).square().sum(-1), torch.zeros_like(log_p[:, 0])


@pytest.mark.parametrize(
    "divergence",
    [
        JSD(beta=0.3, clip=Clip(0.05)),
        ReverseKL(temperature=2.0, top_k=TopK(4, "union")),
        Squares(),
    ],
    ids=repr,
)
def test_values_statistics_and_gradients_are_those_of_what_is_compiled(divergence):
    compiled = Compiled(of=divergence)
    for tokens in (6, 9, 1):  # of the first size, of any, and one that is not compiled
        given = inputs(tokens, softcap=2.0)
        got, got_tokens = fused_divergence(compiled, **given, chunk=6)
        want, want_tokens = plain_divergence(divergence, **given, chunk=0)
        torch.testing.assert_close(got, want)
        for field_got, field_want in zip(got_tokens, want_tokens):
            torch.testing.assert_close(field_got, field_want.detach())
        for grad_got, grad_want in zip(gradients(got, given)[:3], gradients(want, given)[:3]):
            torch.testing.assert_close(grad_got, grad_want)


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_there_is_no_python_within_what_is_compiled(divergence):
    """One graph for the formula and one for its gradient; aot_eager traces both, and makes no kernels of them."""
    given = inputs()
    student = given["student_head"](given["student_hidden"]).detach().requires_grad_()
    teacher = given["teacher_head"](given["teacher_hidden"]).detach()
    once = torch.compile(divergence.per_token, fullgraph=True, backend="aot_eager")
    got, want = (f(student, teacher, given["ids"]).value for f in (once, divergence.per_token))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), student), torch.autograd.grad(want.sum(), student))


def test_it_compiles_for_two_sizes_and_no_more():
    compiled = Compiled(of=JSD())
    torch._dynamo.utils.counters.clear()
    for tokens in (6, 9, 4, 12, 1, 6):
        fused_divergence(compiled, **inputs(tokens), chunk=20)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
