"""Named tensors of a file, each of which must be accounted for."""

import argparse
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stx.files.errors import WeightsError
from stx.files.untrusted import MAX_MESSAGE
from stx.stylegan2.ops import fir_kernel

State = dict[str, Tensor]
MAX_LAYERS = 256  # of one kind; the names of a file could claim any number
MAX_REPEATS = 1 << 24  # bytes of a state that are the same tensors under further names
MAX_OPTIONS, MAX_OPTION_DEPTH = 10_000, 8
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye}


@dataclass
class Found:
    """What a file holds. kind: in words; networks: by folder name; notes: what is worth remembering, as JSON.

    codes: of pictures, by name, as `stx.checkpoints.codes` finds them.
    """

    kind: str
    networks: dict[str, nn.Module]
    notes: dict = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)


class Tensors:
    """The tensors of a file, taken one by one; `finish` names the tensors that were not used."""

    def __init__(self, given: dict, source: str):
        self.left, self.source = floats(given, source), source

    def take(self, name: str) -> Tensor:
        """The tensor of this name as float32, once. Raises `WeightsError` when it is missing."""
        if name not in self.left:
            raise WeightsError(f"{self.source}: {name} is missing")
        return self.left.pop(name).float()

    def finish(self) -> None:
        """Raises `WeightsError` for tensors left over, but for StyleGAN2's usual low-pass filters."""
        for name in [name for name in self.left if name.endswith("resample_filter")]:
            if not torch.allclose(self.take(name), fir_kernel(), atol=1e-6):
                raise WeightsError(f"{self.source}: {name} is not the [1,3,3,1] low-pass filter")
        refuse_unknown(self.left, self.source)


def how_many(names: Iterable[str], pattern: str) -> int:
    """How many numbers `pattern` captures in the names: up to the highest, from 0 or 1 on.

    Raises `WeightsError` for none, or a number beyond any network.
    """
    numbers = {int(m[1]) for m in (re.match(pattern, name) for name in names) if m}
    if not numbers:
        raise WeightsError(f"no tensor is named like {pattern}")
    if max(numbers) > MAX_LAYERS:
        raise WeightsError(f"a tensor named like {pattern} has a number beyond {MAX_LAYERS}")
    return max(numbers) + (0 if min(numbers) else 1)


def refuse_unknown(names: Iterable[str], source: str) -> None:
    """Raises `WeightsError` that lists the first of `names`, when there are any."""
    names = sorted(map(str, names))
    if names:
        raise WeightsError(f"{source}: {len(names)} unexpected ({some(names)})")


def some(names: Iterable[str]) -> str:
    """The first three names."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if names[3:] else "")


def check_state(given: dict, expected: dict, source: str) -> None:
    """Raises `WeightsError` naming the first tensors that are missing, unexpected or of another shape or type."""
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes = [
        f"{k} is {list(given[k].shape)} instead of {list(expected[k].shape)}"
        for k in sorted(given.keys() & expected.keys())
        if given[k].shape != expected[k].shape
    ]
    types = [
        f"{k} is {given[k].dtype}"
        for k in sorted(given.keys() & expected.keys())
        if given[k].is_floating_point() != expected[k].is_floating_point()
    ]
    problems, lists = [], {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    for label, names in (lists | {"of another type": types}).items():
        if names:
            problems.append(f"{len(names)} {label} ({some(names)})")
    if problems:
        raise WeightsError(f"{source} does not fit the network: tensors {'; '.join(problems)}")


def need(state: dict, names: Iterable[str], source: str) -> None:
    """Raises `WeightsError` naming the first of `names` that is not there."""
    missing = [name for name in names if name not in state]
    if missing:
        raise WeightsError(f"{source}: {len(missing)} tensors missing ({some(missing)})")


def canonical(key: str) -> str:
    """A key without DataParallel's `module` and torch.compile's `_orig_mod`."""
    return ".".join(part for part in key.split(".") if part not in ("module", "_orig_mod"))


def floats(given: Any, source: str) -> State:
    """A state dict in float32 with canonical keys; arrays become tensors.

    Raises `WeightsError` when it is none, or has the same large tensor under many names.
    """
    values = given.values() if isinstance(given, dict) else [None]
    if not all(isinstance(v, Tensor | np.ndarray) for v in values) or not all(isinstance(k, str) for k in given):
        raise WeightsError(f"{source}: no tensors by name where a state dict is expected")
    once, repeats, found = {}, 0, {}
    for key, value in given.items():
        repeats += value.nbytes if id(value) in once else 0
        if repeats > MAX_REPEATS:
            raise WeightsError(f"{source}: refused, the same tensor under many names ({key})")
        if id(value) not in once:
            tensor = torch.as_tensor(value)
            once[id(value)] = tensor.float() if tensor.is_floating_point() else tensor
        found[canonical(key)] = once[id(value)]
    if len(found) != len(given):
        raise WeightsError(f"{source}: two tensors of the same name, but for `module` and `_orig_mod`")
    return found


def parts_of(
    state: State, prefixes: tuple[str, ...], source: str, optional: set[str] = frozenset()
) -> dict[str, State]:
    """The tensors below each prefix, every one accounted for. Raises `WeightsError` for a part that has none."""
    parts = {p: {k[len(p) + 1 :]: v for k, v in state.items() if k.startswith(p + ".")} for p in prefixes}
    missing = [p for p in prefixes if not parts[p] and p not in optional]
    if missing:
        raise WeightsError(f"{source}: no tensors of the {missing[0]} in it (first: {some(state)})")
    refuse_unknown({k for k in state if not k.startswith(tuple(p + "." for p in prefixes))}, source)
    return parts


def rows_of(average: Any, count: int, width: int, source: str) -> Tensor:
    """An average as [count, width]: files have [width], [1, width] or [count, width]."""
    given = torch.as_tensor(average).float()
    rows = given[None] if given.ndim == 1 else given
    if rows.ndim != 2 or rows.shape[1] != width or len(rows) not in (1, count):
        raise WeightsError(f"{source}: latent_avg is {list(given.shape)}: expected [{width}] or [{count}, {width}]")
    return rows.expand(count, -1).clone()


def empty(kind: type, **sizes: Any) -> Any:
    """A network of these sizes whose weights are about to be read: nothing is drawn or held twice."""
    with torch.device("meta"):
        return kind(**sizes)


class Sparing(TorchFunctionMode):
    """While inside, constructors make no more numbers and tensors than a file of `size` bytes can be meant for.

    Raises `WeightsError` before they are made: arguments from a file may ask for any size.
    """

    def __init__(self, size: int):
        super().__init__()
        self.numbers, self.tensors = 2 * size + (1 << 26), size // 1024 + 3_000

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FACTORIES:
            shape = [kwargs["size"]] if kwargs and "size" in kwargs else args[:1] if func is torch.full else args
            sides = [n for x in shape for n in (x if isinstance(x, list | tuple) else [x]) if isinstance(n, int)]
            self.tensors -= 1
            self.numbers -= abs(math.prod(sides)) ** (2 if func is torch.eye else 1)
            if min(self.tensors, self.numbers) < 0:
                raise WeightsError("it asks for a network far larger than its file")
        return func(*args, **(kwargs or {}))


def load_into(net: nn.Module, state: State, source: str) -> Any:
    """The network with these tensors, each accounted for and with memory of its own."""
    check_state(state, net.state_dict(), source)
    own, seen = {}, set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        whole = storage.data_ptr() not in seen and storage.nbytes() == tensor.nbytes and tensor.is_contiguous()
        own[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    net.load_state_dict(own, assign=True)
    return net


def fill(state: State, expected: State, gain: float, source: str) -> list[str]:
    """Gives a state what public code makes anew where an older file has none: noise maps and low-pass kernels.

    Returns what was made. A file that has some of them has lost the others, and is left for `check_state` to refuse.
    """
    made = []
    for kind, pattern in (("noise maps", r"noises\."), ("low-pass kernels", r".*\.kernel$")):
        names = [name for name in expected if re.match(pattern, name)]
        if not names or any(re.match(pattern, name) for name in state):
            continue
        generator = torch.Generator().manual_seed(0)
        for name in names:
            shape = expected[name].shape
            state[name] = fir_kernel(gain=gain) if kind != "noise maps" else torch.randn(shape, generator=generator)
        made.append(kind)
    return made


def plain(opts: Any) -> dict:
    """Options as JSON takes them. Raises `WeightsError` for too many of them or too deep ones."""
    left = MAX_OPTIONS

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        value = vars(value) if isinstance(value, argparse.Namespace) else value
        if left < 0 or depth > MAX_OPTION_DEPTH:
            raise WeightsError("its options are too many or nested too deeply")
        if isinstance(value, dict):
            return {str(k)[:MAX_MESSAGE]: copy(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [copy(v, depth + 1) for v in value]
        return value if isinstance(value, str | int | float | None) else str(value)[:MAX_MESSAGE]

    opts = copy(opts, 0)
    return json.loads(json.dumps(opts)) if isinstance(opts, dict) else {}
