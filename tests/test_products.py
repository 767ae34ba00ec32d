"""Products with few rows against float64, and what is left to the module itself."""

import pytest
import torch
from torch import nn

from lit_atex import products
from lit_atex.products import linear, norm


@pytest.fixture
def packs(monkeypatch):
    """What has been packed."""
    found = []
    pack = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda *a: found.append(a) or pack(*a))
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 1000), (1000, 96), (64, 4096)])
@pytest.mark.parametrize("counts", [[1], [2], [3, 1], [4, 70, 2], [8], [33, 5], [70]])
def test_a_packed_product_is_the_same_product(packs, inputs, outputs, bias, counts):
    torch.manual_seed(0)
    module = nn.Linear(inputs, outputs, bias=bias)
    run = linear(module)
    for count in counts:  # rows leave the batch
        x = torch.randn(count, inputs)
        with torch.no_grad():
            got = run(x)
            assert got.is_contiguous()
            assert got.dtype == torch.float32
            wanted = x.double() @ module.weight.double().T + (module.bias.double() if bias else 0)
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    assert len(packs) == (counts != [1])  # once


def test_what_is_not_packed_runs_by_itself(packs, monkeypatch):
    x = torch.randn(4, 8)
    with torch.no_grad():
        small = nn.Linear(8, 16)
        assert torch.equal(linear(small)(x), small(x))
        monkeypatch.setattr(products, "PACKED", 1)
        half = nn.Linear(8, 16).bfloat16()
        assert torch.equal(linear(half)(x.bfloat16()), half(x.bfloat16()))
        module = nn.Linear(8, 16)
        run = linear(module)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(run(x), module(x))
        other = nn.Sequential(module)
        assert linear(other) is other
        assert norm(other) is other
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert torch.equal(linear(module)(x), module(x))
    assert not packs


def test_weights_that_change_between_rollouts_are_packed_anew(packs, monkeypatch):
    monkeypatch.setattr(products, "PACKED", 1)
    module, x = nn.Linear(8, 16), torch.randn(4, 8)
    with torch.no_grad():
        linear(module)(x)
        module.weight.mul_(3)
        torch.testing.assert_close(linear(module)(x), module(x))
    assert len(packs) == 2
