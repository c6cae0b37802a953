"""Our networks under public names, so that results can be carried back to the authors' own code."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from stx.files.atomic import atomic_write
from stx.files.errors import WeightsError
from stx.files.outputs import Kind, claim_files
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Discriminator, Generator


def write(networks: dict[str, nn.Module], form: str, path: str | Path, notes: dict | None = None) -> list[str]:
    """Writes public names. form: "rosinality" (generator, and StyleGAN2's discriminator) or "official" (encoder too).

    notes: of the networks; `opts` of an official file are written back. Returns which of them it has.
    Raises `WeightsError` for a missing network, `FileError` for another suffix than .pt and .pth, and where something
    else would be replaced.
    """
    maker = {"rosinality": _to_rosinality, "official": _to_official}.get(form)
    if maker is None:
        raise WeightsError(f"unknown form {form!r}: expected rosinality or official")
    path = Path(path)
    claim_files([path], kind=Kind.EXPORT, suffixes=(".pt", ".pth"))
    content = maker(networks, notes or {}) | {"made_by": "stx"}  # by which a second export knows the first
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        torch.save(content, part)
    held = {"generator": True, "discriminator": "d" in content, "style_transformer": form == "official"}
    return [name for name in networks if held.get(name)]


def _to_rosinality(networks: dict[str, nn.Module], notes: dict) -> dict:
    generator = _one(networks, "generator", Generator)
    state = generator.state_dict()
    content = {"latent_avg": state.pop("latent_avg"), "g_ema": dict(state)}
    if isinstance(networks.get("discriminator"), Discriminator):
        content["d"] = dict(networks["discriminator"].state_dict())
    return content


def _to_official(networks: dict[str, nn.Module], notes: dict) -> dict:
    generator = _one(networks, "generator", Generator)
    encoder = _one(networks, "style_transformer", StyleTransformer)
    mine, decoder = encoder.state_dict(), generator.state_dict()
    average, centre = mine.pop("latent_avg"), decoder.pop("latent_avg")
    decoder |= {k: v for k, v in mine.items() if k.startswith("style.")}
    state = {f"encoder.module.{k.removeprefix('encoder.')}": v for k, v in mine.items() if k.startswith("encoder.")}
    state |= {f"decoder.module.{k}": v for k, v in decoder.items()}
    opts = {"output_size": generator.size, "n_styles": generator.num_ws, "input_nc": 3, "device": "cpu"}
    opts |= {"start_from_latent_avg": True, "learn_in_w": False, "checkpoint_path": None} | (notes.get("opts") or {})
    if not opts["start_from_latent_avg"]:  # the file's average is not added, and not in the encoder
        average = centre[None]
    same = bool((average == average[0]).all())
    return {"state_dict": state, "opts": opts, "latent_avg": average[0].clone() if same else average}


def _one(networks: dict[str, nn.Module], name: str, kind: type) -> Any:
    if not isinstance(networks.get(name), kind):
        raise WeightsError(f"no {name} here to export; there is: {', '.join(networks) or 'nothing'}")
    return networks[name]
