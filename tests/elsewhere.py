"""A device that is not there: its tensors lie in the CPU's memory and refuse what tensors of an accelerator refuse.

Numbers of it say nothing about an accelerator. It finds what no run on a CPU can: tensors left on another device,
float64 where MPS has none, numpy arrays taken from a device, random generators of another one, and two resizings that
MPS lacks (PyTorch issues 143864 and 141287).
"""

import functools
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("mps")
MOVES = {"to", "cpu", "copy_", "__setitem__", "_has_compatible_shallow_copy_type"}
plainly = torch._C.DisableTorchFunctionSubclass


class Elsewhere(Tensor):
    """A tensor of the device."""

    def __deepcopy__(self, memo):
        with plainly():
            again = self.detach().clone().as_subclass(Elsewhere).requires_grad_(self.requires_grad)
        again._is_param = getattr(self, "_is_param", False)
        return memo.setdefault(id(self), again)

    def __reduce_ex__(self, protocol):
        with plainly():
            return self.detach().as_subclass(Tensor).__reduce_ex__(protocol)


def placed(x, there: bool):
    """`x` on the device or on the CPU; what is no tensor, as it is."""
    if not isinstance(x, Tensor) or isinstance(x, Elsewhere) == there:
        return x
    if there and x.dtype == torch.float64:
        raise TypeError(f"{DEVICE} has no float64")
    with plainly():
        if x.is_leaf and x.requires_grad:  # as made by torch.zeros(..., requires_grad=True)
            return x.detach().as_subclass(Elsewhere if there else Tensor).requires_grad_()
        return x.as_subclass(Elsewhere if there else Tensor)


def here(x):
    """The CPU for a word for the device."""
    return torch.device("cpu") if isinstance(x, torch.device) or isinstance(x, str) and x == DEVICE.type else x


def lacking(name: str, x=None, size=None, *_, mode: str = "", antialias: bool = False, **__) -> bool:
    """What MPS does not have: pooling to a size of which neither divides the other, a gradient of antialiasing."""
    if antialias and x.requires_grad:
        return True
    if name != "adaptive_avg_pool2d" and mode != "area":
        return False
    sizes = zip(x.shape[2:], size if isinstance(size, tuple | torch.Size) else (size, size), strict=True)
    return any(n % m and m % n for n, m in sizes)


class Pretence(TorchFunctionMode):
    """Watches every call of PyTorch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__
        if name == "_parse_to":  # what `Module.to` was given
            return func(*args, **kwargs)
        given = [y for x in (*args, *kwargs.values()) for y in (x if isinstance(x, list | tuple) else [x])]
        tensors = [x for x in given if isinstance(x, Tensor)]
        there = any(isinstance(x, Elsewhere) for x in tensors)
        if name == "__get__" and there and func.__self__ is Tensor.device:
            return DEVICE
        if name in ("numpy", "__array__") and there:
            raise TypeError(f"can't convert a tensor of {DEVICE} to numpy")
        asked = [kwargs.get("device")] if name != "to" else [kwargs.get("device"), *args[1:]]
        for word in asked:
            if isinstance(word, str | torch.device):
                there = torch.device(word).type == DEVICE.type
            elif isinstance(word, Tensor):
                there = isinstance(word, Elsewhere)
        if name in ("cpu", "copy_", "__setitem__"):
            there = name != "cpu" and isinstance(args[0], Elsewhere)
        elif there and not (name in MOVES or (name == "__getitem__" and isinstance(args[0], Elsewhere))):
            if any(not isinstance(x, Elsewhere) and x.dim() for x in tensors):
                raise RuntimeError(f"{name}: tensors of {DEVICE} and of the CPU together")
            if any(isinstance(x, torch.Generator) for x in given):
                raise RuntimeError(f"{name}: a random generator of the CPU for a tensor of {DEVICE}")
            if lacking(name, *args, **kwargs):
                raise RuntimeError(f"{name}: not so on {DEVICE}")
        with plainly():
            found = func(*map(here, args), **{key: here(x) for key, x in kwargs.items()})
            if name in ("to", "cpu") and found is args[0] and isinstance(found, Elsewhere) != there:
                found = found.clone()
        if isinstance(found, list | tuple):
            return type(found)([placed(x, there) for x in found])
        return placed(found, there)


@contextmanager
def elsewhere():
    """Within, `device="auto"` is the device that is not there."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    known = functools.wraps(torch.backends.mps.is_available)(lambda: True)
    no_gpu = functools.wraps(torch.cuda.is_available)(lambda: False)
    try:
        with (
            mock.patch.object(torch.backends.mps, "is_available", known),
            mock.patch.object(torch.mps, "synchronize", lambda: None),
            mock.patch.object(torch.cuda, "is_available", no_gpu),
            Pretence(),
        ):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
