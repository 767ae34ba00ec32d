"""Products with few rows against float64, on either kind of processor, and what is left to the module itself."""

import pytest
import torch
from torch import nn

from lit_atex import products
from lit_atex.products import head, linear, norm


def exact(module, x):
    bias = None if module.bias is None else module.bias.double()
    return nn.functional.linear(x.double(), module.weight.double(), bias)


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 4096), (4096, 64), (8, 8)])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 9, 70])
def test_a_product_turned_round_is_the_same_product(monkeypatch, inputs, outputs, bias, count, intel):
    monkeypatch.setattr(products, "INTEL", intel)
    torch.manual_seed(0)
    module, x = nn.Linear(inputs, outputs, bias=bias), torch.randn(count, inputs)
    with torch.no_grad():
        got = linear(module)(x)
        assert got.is_contiguous()
        torch.testing.assert_close(got.double(), exact(module, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 17, 32, 33])
def test_a_packed_head_is_the_same_product(monkeypatch, bias, count):
    monkeypatch.setattr(products, "PACKED", 2**12)
    packs = []
    pack = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda *a: packs.append(a) or pack(*a))
    torch.manual_seed(0)
    module, x = nn.Linear(96, 1000, bias=bias), torch.randn(count, 96)
    run = head(module)
    with torch.no_grad():
        for _ in range(2):  # packed once
            torch.testing.assert_close(run(x).double(), exact(module, x), rtol=1e-5, atol=1e-5)
    assert len(packs) == (2 <= count <= 32)


def test_other_heads_run_by_themselves(monkeypatch):
    monkeypatch.setattr(products, "PACKED", 1)
    monkeypatch.delattr(torch.ops.mkldnn, "_reorder_linear_weight", raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", None, raising=False)  # not to be called
    x = torch.randn(4, 8)
    with torch.no_grad():
        half = nn.Linear(8, 16).bfloat16()
        assert torch.equal(head(half)(x.bfloat16()), half(x.bfloat16()))
        module = nn.Linear(8, 16)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(head(module)(x), module(x))
        other = nn.Sequential(module)
        assert head(other) is other
        assert norm(other) is other
        monkeypatch.setattr(products, "PACKED", 10**9)
        torch.testing.assert_close(head(module)(x), module(x))


def test_a_head_that_changes_between_rollouts_is_packed_anew(monkeypatch):
    monkeypatch.setattr(products, "PACKED", 1)
    module, x = nn.Linear(8, 16), torch.randn(4, 8)
    with torch.no_grad():
        head(module)(x)
        module.weight.mul_(3)
        torch.testing.assert_close(head(module)(x), module(x))
