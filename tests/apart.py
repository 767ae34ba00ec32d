"""A second device for the tests, `apart`, that behaves to the rest of the code as a GPU does to a CPU.

Its tensors are CPU tensors in a wrapper: results are those of the CPU, but as with a GPU no operation takes tensors of
both (single numbers beside tensors, and indices, are let through, as there), NumPy cannot see them, and whatever makes
the host wait for the device is counted, copies included, with the line that asked for it. What it cannot tell: speed,
memory, kernels that a GPU lacks, and autocast, for which it has no rules.

`register` changes torch for the whole process, so its tests run in one of their own (tests/test_device.py).
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, ClassVar

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "apart"
COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}
SIZES_DEPEND_ON_DATA = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive"}
SIZES_DEPEND_ON_DATA |= {"aten::equal", "aten::bincount"}
BY_INDEX = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class Watched:
    """What has been seen, and what is allowed; reset by tests."""

    operations = 0
    waits: ClassVar[Counter[str]] = Counter()  # by line of lit_atex; "elsewhere" without one
    float64 = True


class Apart(torch.Tensor):
    """A tensor on the second device."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Apart:
        assert type(inner) is torch.Tensor
        if inner.dtype == torch.float64 and not Watched.float64:
            raise TypeError(f"{NAME} has no float64")
        given = {"dtype": inner.dtype, "layout": inner.layout, "device": torch.device(NAME, 0)}
        where = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **given, **where)
        self.inner = inner
        return self

    def __init__(self, inner: torch.Tensor) -> None:
        pass

    def __repr__(self) -> str:
        return f"Apart({self.inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a tensor of the CPU, which is where Lightning reads the tensors of a checkpoint to."""
        return self.detach().cpu().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.device} tensor to numpy: copy it to host memory first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on tensors of which at least one is apart."""
    name = func._schema.name
    tensors: list[torch.Tensor] = []
    plain_args, plain_kwargs = _plain(args, tensors), _plain(kwargs, tensors)
    plain_ones = [x for x in tensors if not isinstance(x, Apart)]
    given_to = [args[0], *args[2:3]] if name in BY_INDEX else []
    moves = name in BY_INDEX and not any(x is y for x in plain_ones for y in given_to)  # indices may be on the CPU
    if plain_ones and name not in COPIES and not moves and not _numbers(func, args, plain_ones):
        raise RuntimeError(f"{name} takes tensors of one device, got {[str(x.device) for x in tensors]}")
    Watched.operations += 1
    wanted = kwargs.get("device")
    to_host = wanted is not None and torch.device(wanted).type == "cpu"
    into = args[1] if name == "aten::_copy_from" else args[0]
    between = name in COPIES and (to_host or len({isinstance(x, Apart) for x in tensors}) > 1)
    waits = name in SIZES_DEPEND_ON_DATA or _by_mask(name, args) or (moves and plain_ones)
    if between or name == "aten::_local_scalar_dense" or waits:
        Watched.waits[_asked_by()] += 1
    if name == "aten::_copy_from":
        plain_args[1].copy_(plain_args[0])
        return into
    out = func(*plain_args, **plain_kwargs)
    if to_host:
        return out
    if name == "aten::copy_" and not isinstance(into, Apart):
        return into
    return return_and_correct_aliasing(func, args, kwargs, _apart(out))


def _plain(x: Any, seen: list[torch.Tensor]) -> Any:
    """What the CPU is given, with the tensors that were seen on the way; torch's pytree takes three times as long."""
    if isinstance(x, torch.Tensor):
        seen.append(x)
        return x.inner if isinstance(x, Apart) else x
    if isinstance(x, tuple | list):
        return [_plain(part, seen) for part in x]
    if isinstance(x, dict):
        return {key: _plain(part, seen) for key, part in x.items()}
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x


def _apart(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        return Apart(out)
    return type(out)(map(_apart, out)) if isinstance(out, tuple | list) else out


def _numbers(func: Any, args: Any, plain: list[torch.Tensor]) -> bool:
    """Whether the CPU's tensors are numbers in an operation that goes entry by entry, and none is what it writes to."""
    target = args[0] if func._schema.is_mutable else None
    return torch.Tag.pointwise in func.tags and all(x.dim() == 0 and x is not target for x in plain)


def _by_mask(name: str, args: Any) -> bool:
    """Whether something is picked by a mask, so that the host must know how much."""
    return name in ("aten::index", "aten::index_put_") and any(
        x.dtype == torch.bool for x in args[1] if isinstance(x, torch.Tensor)
    )


def _asked_by() -> str:
    """The innermost line of lit_atex that is being run."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if "/lit_atex/" in path and "/tests/" not in path:
            return f"{path.rsplit('/lit_atex/', 1)[1]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class Backend:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class ApartAccelerator(Accelerator):
    """The device for Lightning: `trainer.accelerator: apart`, `trainer.strategy: apart`."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        return [0]

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def register() -> torch.library.Library:
    """Make the device known to torch and Lightning, as long as what is returned lives."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    # Else modules that share a parameter would each get a copy of their own, as these tensors are a class of their own.
    torch.__future__.set_swap_module_params_on_conversion(True)
    library = torch.library.Library("aten", "IMPL")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and (operation := _factory(name)) is not None:
            library.impl(name.removeprefix("aten::"), _kernel(operation), "PrivateUse1")
    copy = torch.ops.aten._copy_from.default
    library.impl("_copy_from", lambda x, into, *_: run(copy, (x, into), {}), "PrivateUse1")
    AcceleratorRegistry.register(NAME, ApartAccelerator)
    StrategyRegistry.register(NAME, SingleDeviceStrategy, device=f"{NAME}:0", accelerator=ApartAccelerator())
    return library


def _factory(name: str) -> Any:
    """The operation of this name if it makes a tensor on a device out of no tensor; else None."""
    packet, _, overload = name.removeprefix("aten::").partition(".")
    try:
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    except (AttributeError, RuntimeError):
        return None
    takes = operation._schema.arguments
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
        return None
    makes = any(x.name == "device" for x in takes) and not any("Tensor" in str(x.type) for x in takes)
    return operation if makes else None


def _kernel(operation: Any) -> Any:
    def make(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> Apart:
        return Apart(operation(*args, device="cpu", **kwargs))

    return make
