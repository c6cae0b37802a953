"""Public files of edits: InterFaceGAN, GANSpace."""

from pathlib import Path

import torch
from torch import Tensor

from stx.baselines.directions import Directions
from stx.checkpoints import weights
from stx.checkpoints.tensors import Found, empty, refuse_unknown
from stx.files.errors import WeightsError
from stx.stylegan2.networks import Generator

UNIT = 0.02  # how far from 1 the length of a direction may be


def is_boundary(given: Tensor) -> bool:
    """Whether numbers are directions: rows of length 1. Codes have the same shapes and other lengths."""
    if given.ndim not in (1, 2, 3) or not given.numel() or not given.is_floating_point():
        return False
    lengths = (given.float() if given.ndim > 1 else given.float()[None]).flatten(1).norm(dim=1)
    return bool(((lengths - 1).abs() <= UNIT).all())


def boundary(given: Tensor, source: str) -> Found:
    """InterFaceGAN's normals, each of unit length: [n, 512], or [n, 18 * 512] and [n, 18, 512] for W+.

    Raises `WeightsError` for numbers of no such shape or length.
    """
    if not is_boundary(given):
        raise WeightsError(f"{source}: numbers of shape {list(given.shape)} are not directions ([1, 512] or the like)")
    flat = (given.float() if given.ndim > 1 else given.float()[None]).flatten(1)
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
