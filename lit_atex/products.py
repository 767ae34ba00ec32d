"""Modules of a decoding step as functions, with products that are fast for few rows. It knows no model.

For few rows a product with a large matrix takes as long as reading the matrix does, if the library lets it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INTEL = hasattr(torch.cpu, "get_capabilities") and "Intel" in str(torch.cpu.get_capabilities().get("cpu_name"))
"""Whether this is a processor of Intel's, whose BLAS reads a matrix as fast for few rows as for one."""
PACKED = 2**22
"""Elements from which on a head is packed for oneDNN, which takes as long as a few products with it."""


def norm(module: Any) -> Callable[[Tensor], Tensor]:
    """A Llama RMSNorm as a function."""
    if not type(module).__name__.endswith("RMSNorm"):
        return module  # an adapter
    weight, eps = module.weight, module.variance_epsilon

    def run(x: Tensor) -> Tensor:
        return torch.rms_norm(x, weight.shape, weight, eps) if x.dtype == weight.dtype else module(x)  # autocast

    return run


def linear(module: Any) -> Callable[[Tensor], Tensor]:
    """The module as a function. But on Intel's processors a product with few rows is turned round: W xᵀ for x Wᵀ.

    Elsewhere float32 BLAS reads a matrix two to three times more slowly for x Wᵀ with 2 to 8 rows (4, with more inputs
    than outputs), unless it is below a quarter megabyte, and so in the cache. On Intel's W xᵀ is the slower one.
    """
    if type(module) is not nn.Linear:  # an adapter, a quantised layer
        return module
    weight, bias = module.weight, module.bias
    most = 8 if weight.shape[0] >= 2 * weight.shape[1] else 4
    if INTEL or weight.numel() < 2**16 or weight.device.type != "cpu" or weight.dtype != torch.float32:
        most = 0

    def run(x: Tensor) -> Tensor:
        if not 2 <= x.shape[0] <= most:
            return F.linear(x, weight, bias)
        out = (weight @ x.T).T.contiguous()
        return out if bias is None else out + bias

    return run


def head(module: Any) -> Callable[[Tensor], Tensor]:
    """The output head as a function for 2 to 32 rows at a time: a large one is packed for oneDNN, at its first product.

    The weights must not change while the function is in use. 4 rows by 151,936 x 256, two threads of an Intel Xeon:
    7 ms for 12; packing takes 46.
    """
    plain = linear(module)
    if type(module) is not nn.Linear or not torch.backends.mkldnn.is_available():
        return plain
    weight, bias = module.weight, module.bias
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.numel() < PACKED:
        return plain
    packed: list[Tensor] = []

    def run(x: Tensor) -> Tensor:
        if not 2 <= x.shape[0] <= 32 or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return plain(x)
        if not packed:
            packed.append(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), x.shape[0]))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed[0], bias, "none", [], "")
        return out

    return run
