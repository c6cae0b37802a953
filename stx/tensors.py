"""Named tensors of a file, each of which must be accounted for."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from stx.ops import fir_kernel
from stx.pickles import WeightsError

State = dict[str, Tensor]


class Tensors:
    """The tensors of a file, taken one by one; `finish` names what nobody took."""

    def __init__(self, given: dict, source: str):
        self.left, self.source = dict(given), source

    def take(self, name: str) -> Tensor:
        """The tensor of this name as float32, once. Raises `WeightsError` when it is missing."""
        if name not in self.left:
            raise WeightsError(f"{self.source}: {name} is missing")
        return torch.as_tensor(self.left.pop(name)).float()

    def finish(self) -> None:
        """Raises `WeightsError` for tensors left over, but for StyleGAN2's usual low-pass filters."""
        for name in [name for name in self.left if name.endswith("resample_filter")]:
            if not torch.allclose(self.take(name), fir_kernel(), atol=1e-6):
                raise WeightsError(f"{self.source}: {name} is not the [1,3,3,1] low-pass filter")
        refuse_unknown(self.left, self.source)


def how_many(names: Iterable[str], pattern: str) -> int:
    """How many numbers `pattern` captures in the names: up to the highest, from 0 or 1 on."""
    numbers = {int(m[1]) for m in (re.match(pattern, name) for name in names) if m}
    if not numbers:
        raise WeightsError(f"no tensor is named like {pattern}")
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
    """Raises `WeightsError` naming the first tensors that are missing, unexpected or of another shape."""
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    shapes = [
        f"{k} is {list(given[k].shape)} instead of {list(expected[k].shape)}"
        for k in sorted(given.keys() & expected.keys())
        if given[k].shape != expected[k].shape
    ]
    problems = []
    for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if names:
            problems.append(f"{len(names)} {label} ({', '.join(names[:3])}{', ...' if names[3:] else ''})")
    if problems:
        raise WeightsError(f"{source} does not fit the network: tensors {'; '.join(problems)}")
