"""Codes of pictures that other tools wrote: NVIDIA's `projected_w.npz`, e4e's `latents.pt`, arrays, rosinality's.

W codes, one vector for all tokens, become W+ codes of the generator they are for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stx.files.errors import WeightsError
from stx.files.outputs import Names
from stx.files.places import safe_name

W_PLUS = ("w", "ws", "w_plus", "latent", "latents", "projected_w", "codes")  # names that public code gives to codes
NETWORK_KEYS = {"g_ema", "g", "d", "state_dict"}  # names of networks: what lies below them are weights
TOKENS = range(4, 19)  # of generators of 8 to 1024 pixels: so many rows are one code
MAX_CODES = 1_000_000


def codes_in(content: Any, source: str) -> dict[str, Tensor]:
    """What a file holds as codes, by name: arrays of [w_dim], [n, w_dim], [num_ws, w_dim] or [n, num_ws, w_dim].

    Also lists of them, and arrays by the names of pictures. None where it holds something else. Raises `WeightsError`
    for numbers that no code has.
    """
    stem = safe_name(Path(source).stem)
    if isinstance(content, Tensor | np.ndarray):
        return {stem: _numbers(content, source)}
    if isinstance(content, list | tuple) and content and all(isinstance(part, Tensor | np.ndarray) for part in content):
        return {f"{stem}-{i:04d}": _numbers(part, source) for i, part in enumerate(content)}
    if not isinstance(content, Mapping) or NETWORK_KEYS & content.keys():
        return {}
    if (found := _of(content)) is not None:
        return codes_in(found, source)
    inner = {str(name): _of(part) for name, part in content.items() if isinstance(part, Mapping)}  # rosinality's
    if not inner and _are_codes(list(content.values())):
        inner = {str(name): part for name, part in content.items()}
    if not inner or any(part is None for part in inner.values()):
        return {}
    names = Names()  # by the pictures' files, of which two may have one name in two folders
    return {
        names.reserve(safe_name(Path(name).stem), name): _numbers(part, source)
        for name, part in inner.items()
        if isinstance(part, Tensor | np.ndarray)
    }


def _are_codes(parts: list[Any]) -> bool:
    """Whether arrays are all [num_ws, w_dim], or one or more of these, of one size: weights are of several."""
    if not all(isinstance(part, Tensor | np.ndarray) and part.ndim in (2, 3) for part in parts):
        return False
    sizes = {tuple(part.shape[-2:]) for part in parts}
    return len(sizes) == 1 and sizes.pop()[0] in TOKENS


def w_plus(codes: Mapping[str, Tensor], num_ws: int | None, w_dim: int | None, source: str) -> dict[str, Tensor]:
    """Codes as `[num_ws, w_dim]` each, by name; several of one array are numbered.

    num_ws, w_dim: of the generator they are for, None where that is not known. Raises `WeightsError` with both shapes
    where they do not fit, and for W codes without a generator.
    """
    found = {}
    for name, given in codes.items():
        rows = _rows(given, num_ws, source)
        if (w_dim, num_ws) != (None, None) and tuple(rows.shape[1:]) != (num_ws, w_dim):
            shape = " x ".join(map(str, rows.shape[1:]))
            raise WeightsError(f"{source}: codes of {shape} do not fit a generator that takes {num_ws} x {w_dim}")
        found |= {f"{name}-{i:04d}" if len(rows) > 1 else name: row for i, row in enumerate(rows)}
    return found


def _rows(given: Tensor, num_ws: int | None, source: str) -> Float[Tensor, "n num_ws w_dim"]:
    if given.ndim == 3 and given.shape[1] > 1:
        return given
    if given.ndim == 2 and (len(given) == num_ws or (num_ws is None and len(given) in TOKENS)):
        return given[None]
    if num_ws is None:
        told = f"W codes of shape {list(given.shape)} need their generator's number of tokens; convert it first"
        raise WeightsError(f"{source}: {told}, into the same folder")
    return given.reshape(-1, 1, given.shape[-1]).repeat(1, num_ws, 1)


def _of(content: Mapping) -> Any:
    """The codes among what a file names."""
    names = [name for name in W_PLUS if isinstance(content.get(name), Tensor | np.ndarray | list)]
    return content[names[0]] if names else None


def _numbers(given: Tensor | np.ndarray, source: str) -> Tensor:
    tensor = torch.as_tensor(given)
    shape = list(tensor.shape)
    if tensor.ndim not in (1, 2, 3) or not tensor.numel() or not tensor.is_floating_point() or len(tensor) > MAX_CODES:
        raise WeightsError(f"{source}: numbers of shape {shape} are not codes ([n, num_ws, w_dim] or the like)")
    if not torch.isfinite(tensor).all():
        raise WeightsError(f"{source}: codes that are not finite (NaN or infinite)")
    return tensor.float()
