"""Public files of edits (InterFaceGAN, GANSpace), and codes that are none."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stx.baselines.directions import Directions
from stx.checkpoints import weights
from stx.checkpoints.tensors import Found, empty, refuse_unknown
from stx.files.errors import WeightsError
from stx.stylegan2.networks import Generator

UNIT = 0.02  # how far from 1 the length of a direction may be


W_PLUS = ("w", "ws", "w_plus", "latent", "latents", "projected_w", "codes")  # names that public code gives to codes


CODES = "are codes of pictures, neither networks nor a direction; nothing converts them"


def refuse_codes(content: Any, source: str) -> None:
    """Raises `WeightsError` for W+ codes under a name: projected_w.npz, rosinality's projector and others."""
    if isinstance(content, list) and content and all(isinstance(part, Tensor | np.ndarray) for part in content):
        raise WeightsError(f"{source}: a list of {len(content)} tensors {CODES}")
    if not isinstance(content, dict):
        return
    inner = [part for part in content.values() if isinstance(part, dict)][:1]
    for names in [content, *inner]:
        found = [name for name in W_PLUS if isinstance(names.get(name), Tensor | np.ndarray | list)]
        if found:
            shape = list(names[found[0]].shape) if not isinstance(names[found[0]], list) else "a list"
            raise WeightsError(f"{source}: {found[0]!r} ({shape}) {CODES}")


def boundary(given: Tensor, source: str) -> Found:
    """InterFaceGAN's normals, each of unit length: [n, 512], or [n, 18 * 512] and [n, 18, 512] for W+.

    Codes have the same shapes and other lengths. Raises `WeightsError` for them, and for numbers of no such shape.
    """
    if given.ndim not in (1, 2, 3) or not given.numel() or given.is_complex() or not torch.isfinite(given).all():
        raise WeightsError(f"{source}: numbers of shape {list(given.shape)} are not directions ([1, 512] or the like)")
    flat = given.float() if given.ndim > 1 else given.float()[None]
    flat = flat.flatten(1)
    lengths = flat.norm(dim=1)
    if ((lengths - 1).abs() > UNIT).any():
        told = f"rows of length {lengths.min():.3g} to {lengths.max():.3g}"
        remedy = "a direction has length 1: divide by its length if it is one"
        raise WeightsError(f"{source}: numbers of shape {list(given.shape)} ({told}) {CODES} ({remedy})")
    w_dim = given.shape[2] if given.ndim == 3 else 512 if flat.shape[1] % 512 == 0 else flat.shape[1]
    net = Directions(count=len(flat), tokens=flat.shape[1] // w_dim, w_dim=w_dim)
    net.directions.copy_(flat.reshape(net.directions.shape))
    return Found("InterFaceGAN direction", {"directions": net})


def ganspace(content: dict, source: str) -> Found:
    """GANSpace's components: e4e's file (mean, comp, std) or the `.npz` of GANSpace itself, of which W's are read."""
    if "lat_comp" in content:
        known = {f"{space}_{name}" for space in ("act", "lat") for name in ("comp", "mean", "stdev")}
        refuse_unknown(content.keys() - known - {"var_ratio", "random_stdevs"}, source)
        content = {name: content[f"lat_{of}"] for name, of in (("mean", "mean"), ("comp", "comp"), ("std", "stdev"))}
    refuse_unknown(content.keys() - {"mean", "comp", "std"}, source)
    mean, comp, std = (torch.as_tensor(content[k]).float() for k in ("mean", "comp", "std"))
    shapes = {"mean": mean.numel() == comp.shape[-1], "std": std.numel() == len(comp), "comp": comp.ndim in (2, 3)}
    if not all(shapes.values()) or comp.numel() != len(comp) * comp.shape[-1]:
        raise WeightsError(f"{source}: mean {list(mean.shape)}, comp {list(comp.shape)}, std {list(std.shape)} differ")
    net = Directions(count=len(comp), tokens=1, w_dim=comp.shape[-1])
    net.directions.copy_(comp.reshape(net.directions.shape))
    net.mean.copy_(mean.flatten()), net.std.copy_(std.flatten())
    return Found("GANSpace components", {"directions": net})


def check_fit(found: Found, folder: Path) -> None:
    """Raises `WeightsError` when directions do not fit the codes of the generator in `folder`, if there is one."""
    directions, config = found.networks.get("directions"), folder / "generator" / "config.json"
    if directions is not None and config.is_file():
        try:
            directions.check_fit(empty(Generator, **weights.read_config(config.parent)["args"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{config.parent}: {error}") from None
