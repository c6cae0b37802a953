"""Networks in files: safetensors with a config.json beside them, and nothing that could execute.

A folder per network, `data/<domain>/<network>/`, with `model.safetensors` and `config.json`: the class, its arguments,
and where the weights come from (run, steps, commit, what was measured).
"""

import hashlib
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
from stx.directions import Directions
from stx.identity import IdentityNet, MobileFace, MoCo
from stx.latent_classifier import LatentClassifier
from stx.pickles import WeightsError
from stx.projected import ProjectedDiscriminator
from stx.reference_editing import ReferenceEditor
from stx.style_transformer import StyleTransformer
from stx.stylegan2 import Discriminator, Generator
from stx.tensors import check_state
from stx.training import whole_file, write_text

NETWORKS = {
    "generator": Generator,
    "discriminator": Discriminator,
    "projected_discriminator": ProjectedDiscriminator,
    "style_transformer": StyleTransformer,
    "classifier": AttributeClassifier,
    "identity": IdentityNet,
    "moco": MoCo,
    "mobileface": MobileFace,
    "latent_classifier": LatentClassifier,
    "reference_editor": ReferenceEditor,
    "directions": Directions,
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


def sha256(path: str | Path) -> str:
    """The checksum of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_config(folder: str | Path) -> dict:
    """The `config.json` of a network's folder. Raises `WeightsError` when it is missing or damaged."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(f"{path}: missing; this folder holds no network of ours") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable ({error}); fetch it again") from None
