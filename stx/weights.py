"""Networks in files: safetensors with a config.json beside them, and nothing that could execute.

A folder per network, `data/<domain>/<network>/`, with `model.safetensors` and `config.json`: the class, its arguments,
and where the weights come from (run, steps, commit, what was measured).
"""

import json
import os
import zlib
from pathlib import Path

import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import nn

from stx.classifier import AttributeClassifier
from stx.identity import IdentityNet
from stx.perceptual import WeightsError
from stx.projected import ProjectedDiscriminator
from stx.style_transformer import StyleTransformer
from stx.stylegan2 import Discriminator, Generator
from stx.training import whole_file, write_text

NETWORKS = {
    "generator": Generator,
    "discriminator": Discriminator,
    "projected_discriminator": ProjectedDiscriminator,
    "style_transformer": StyleTransformer,
    "classifier": AttributeClassifier,
    "identity": IdentityNet,
}


def data_dir() -> Path:
    """Where weights lie: $STX_DATA, else `data/` beside the package."""
    return Path(os.environ.get("STX_DATA") or Path(__file__).parent.parent / "data")


def save(net: nn.Module, folder: str | Path, *, notes: dict | None = None, dtype: torch.dtype = torch.float16) -> None:
    """Writes `model.safetensors` (floating tensors as `dtype`) and `config.json`; an old pair survives a failure.

    notes: what to remember of the training, as JSON. Raises `TrainingError` when the disk refuses.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = next(name for name, cls in NETWORKS.items() if isinstance(net, cls))
    tensors = {k: v.detach().cpu() for k, v in net.state_dict().items()}
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    with whole_file(folder / "model.safetensors") as part:
        safetensors.torch.save_file(tensors, part)
    write_text(
        folder / "config.json", json.dumps({"network": kind, "args": net.config, "notes": notes or {}}, indent=2)
    )


def load(folder: str | Path, device: str = "cpu") -> nn.Module:
    """The network of a folder, frozen, in eval mode and float32.

    Raises `WeightsError` that names the file when something is missing, damaged, or of another shape.
    """
    config = read_config(folder)
    path = Path(folder) / "model.safetensors"
    try:
        net = NETWORKS[config["network"]](**config["args"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder}/config.json does not describe a known network ({error})") from None
    if not path.is_file():
        raise WeightsError(f"{path}: missing; train it with its notebook, or fetch data/ again")
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: damaged or incomplete ({error}); fetch it again") from None
    check_state(tensors, net.state_dict(), str(path))
    net.load_state_dict(tensors)
    return net.to(device).eval().requires_grad_(False)


def ship(net: nn.Module, folder: str | Path, log: pd.DataFrame, record: dict) -> None:
    """Makes a trained network the one in `folder`, with its training log and the record of `figures.provenance`."""
    save(net, folder, notes={"steps": int(log["step"].max()), **record})
    write_text(Path(folder) / "log.csv", log.to_csv(index=False, float_format="%.5g"))


def fingerprint(net: nn.Module) -> str:
    """Eight hex digits that tell networks with other weights apart."""
    crc = 0
    for name, tensor in sorted(net.state_dict().items()):
        crc = zlib.crc32(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes(), crc)
    return f"{crc:08x}"


def read_config(folder: str | Path) -> dict:
    """The `config.json` of a network's folder. Raises `WeightsError` when it is missing or damaged."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{path}: missing; this folder holds no network of ours") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable ({error}); fetch it again") from None


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
