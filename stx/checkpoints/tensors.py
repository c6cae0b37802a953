"""Named tensors of a file, each of which must be accounted for."""

import json
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stx.files.errors import WeightsError
from stx.stylegan2.ops import fir_kernel

State = dict[str, Tensor]


class Tensors:
    """The tensors of a file, taken one by one; `finish` names the tensors that were not used."""

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


def need(state: dict, names: Iterable[str], source: str) -> None:
    """Raises `WeightsError` naming the first of `names` that is not there."""
    missing = [name for name in names if name not in state]
    if missing:
        raise WeightsError(f"{source}: {len(missing)} tensors missing ({some(missing)})")


def canonical(key: str) -> str:
    """A key without DataParallel's `module`."""
    return ".".join(part for part in key.split(".") if part != "module")


def floats(state: Any) -> State:
    """A state dict in float32 with canonical keys."""
    return {canonical(k): v.float() if v.is_floating_point() else v for k, v in state.items()}


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


def load_into(net: nn.Module, state: State, source: str) -> Any:
    """The network with these tensors, each accounted for."""
    check_state(state, net.state_dict(), source)
    net.load_state_dict(state, assign=True)
    return net


def plain(opts: Any) -> dict:
    """Options as JSON takes them."""
    opts = vars(opts) if hasattr(opts, "__dict__") else opts
    return json.loads(json.dumps(opts, default=str)) if isinstance(opts, dict) else {}
