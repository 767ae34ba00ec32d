"""Products with few rows against float64, and what is left to the module itself."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lit_atex import products
from lit_atex.products import PATIENCE, linear, norm


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
    with torch.no_grad():
        for count in counts * (PATIENCE + 1):  # rows leave the batch
            x = torch.randn(count, inputs)
            got = run(x)
            assert got.is_contiguous()
            assert got.dtype == torch.float32
            wanted = x.double() @ module.weight.double().T + (module.bias.double() if bias else 0)
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    assert len(packs) == (counts != [1])  # once


@pytest.mark.filterwarnings("ignore:TF32")
def test_what_is_not_packed_runs_by_itself(packs, monkeypatch):
    monkeypatch.setattr(products, "PATIENCE", 0)
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
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(run(x), module(x))
    run(x).sum().backward()  # with gradients
    assert module.weight.grad is not None
    assert module.bias.grad is not None
    assert not packs
    with torch.no_grad():
        run(x)
    assert len(packs) == 1


def test_a_matrix_is_packed_once_it_has_been_asked_for_a_few_times(packs, monkeypatch):
    monkeypatch.setattr(products, "PACKED", 1)
    run, x = linear(nn.Linear(8, 16)), torch.randn(4, 8)
    with torch.no_grad():
        for n in range(2 * PATIENCE):
            run(x[:1])  # a single row has no use for it
            run(x)
            assert len(packs) == (n >= PATIENCE)


def test_weights_that_change_between_rollouts_are_packed_anew(packs, monkeypatch):
    monkeypatch.setattr(products, "PACKED", 1)
    monkeypatch.setattr(products, "PATIENCE", 0)
    module, x = nn.Linear(8, 16), torch.randn(4, 8)
    with torch.no_grad():
        linear(module)(x)
        module.weight.mul_(3)
        torch.testing.assert_close(linear(module)(x), module(x))
    assert len(packs) == 2


def test_under_autocast_a_weight_is_cast_once(monkeypatch):
    """Autocast remembers casts of parameters alone, not of what is detached from them."""
    monkeypatch.setattr(products, "PACKED", 1)
    run, x = linear(nn.Linear(64, 32)), torch.randn(4, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(8):
            run(x)
    casts = sum(event.count for event in seen.key_averages() if event.key == "aten::_to_copy")
    assert casts == 8 + 2  # of x each time; of weight and bias once
