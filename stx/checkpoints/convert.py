"""Public checkpoints to our networks.

Reads rosinality's and NVIDIA's StyleGAN2 (PyTorch and TensorFlow pickles), the released Style Transformer, its
reference editor and latent classifier, IR-SE50, MoCo-v2, MobileFace, InterFaceGAN and GANSpace directions. Every key of
a file is accounted for: one that is missing, unexpected or of another shape is named. Nothing in a file is executed.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stx.baselines.directions import Directions
from stx.baselines.psp import PSP
from stx.checkpoints import nvidia
from stx.checkpoints.tensors import (
    State,
    Tensors,
    canonical,
    check_state,
    empty,
    floats,
    how_many,
    load_into,
    need,
    parts_of,
    plain,
    refuse_unknown,
    rows_of,
    some,
)
from stx.files.errors import WeightsError
from stx.files.pickles import TORCH_MAGIC, Persistent, TfNetwork, read_pickle, read_torch
from stx.latent_classifier import CELEBA, LatentClassifier
from stx.perception.identity import IdentityNet, MobileFace, MoCo
from stx.perception.irse import IR_SE50
from stx.reference_editing import ReferenceEditor
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Discriminator, Generator
from stx.stylegan2.ops import fir_kernel


@dataclass
class Found:
    """What a file holds. kind: in words; networks: by folder name; notes: what is worth remembering, as JSON."""

    kind: str
    networks: dict[str, nn.Module]
    notes: dict = field(default_factory=dict)


def read(path: str | Path) -> Found:
    """The networks in a public checkpoint, frozen and in eval mode.

    Raises `WeightsError` in one line for a file that is unknown, unsafe, damaged, incomplete or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        found = _by_content(_content(path), str(path))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path}: not a checkpoint of a known form ({error})") from None
    for net in found.networks.values():
        net.eval().requires_grad_(False)
    return found


def _content(path: Path) -> Any:
    """What a file holds, by how it begins; names mislead."""
    with open(path, "rb") as file:
        head = file.read(16)
    if path.suffix == ".safetensors":
        raise WeightsError(f"{path}: already safetensors; put it with its config.json into data/<domain>/<network>/")
    if head.startswith(b"\x93NUMPY"):
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise WeightsError(f"{path}: not a readable array file ({error}); fetch it again") from None
    if head.lstrip().startswith(b"{"):
        return _tfjs_arrays(path)
    return read_torch(path) if head.startswith(TORCH_MAGIC) else read_pickle(path)


def _by_content(content: Any, source: str) -> Found:
    if isinstance(content, torch.Tensor | np.ndarray):
        return _boundary(torch.as_tensor(content), source)
    if isinstance(content, list | tuple) and content and isinstance(content[-1], TfNetwork):
        return _tensorflow(content[-1], source)
    if not isinstance(content, dict):
        raise WeightsError(f"{source}: holds a {type(content).__name__}, not networks")
    if isinstance(content.get("G_ema"), Persistent):
        return _nvidia(content, source)
    if "g_ema" in content:
        return _rosinality(content, source)
    if {"mean", "comp", "std"} <= content.keys():
        return _ganspace(content, source)
    if "conv1_weight" in content and "dense/kernel" in content:
        return _mobileface(content, source)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{source}: no tensors by name in it (it has: {some(map(str, content))})")
    if any(key.startswith("module.encoder_q.") for key in state):
        return _moco(state, source)
    state = {canonical(key): value.float() if value.is_floating_point() else value for key, value in state.items()}
    if "encoder.z" in state:
        return _style_transformer(state, content, source)
    if "encoder.transformerlayer.linear1.weight" in state:
        return _reference_editor(state, content, source)
    if {"encoder.input_layer.0.weight", "encoder.conv1.weight"} & state.keys():
        return _psp_family(state, content, source)
    if "output_fcs.0.weight" in state:
        return Found("latent classifier", {"latent_classifier": _latent_classifier(state, source)})
    if "transformerlayer.linear1.weight" in state:
        return Found("reference editor", {"reference_editor": _editor(state, source)})
    if "output_layer.3.weight" in state:
        return Found("IR-SE50 identity network", {"identity": _ir_se50(state, source)})
    if "conv1.conv.weight" in state:
        return Found("StyleGAN2 generator (rosinality)", {"generator": _generator(state, source)})
    raise WeightsError(f"{source}: not a checkpoint of a known form (first tensors: {some(state)})")


# ------------------------------------------------------------------------------------------------- rosinality's names


def _rosinality(content: dict, source: str) -> Found:
    average = content.get("latent_avg")
    networks = {"generator": _generator(floats(content["g_ema"]), source, average)}
    if "d" in content:
        networks["discriminator"] = _discriminator(floats(content["d"]), source)
    known = {"g", "d", "g_ema", "latent_avg", "g_optim", "d_optim", "args", "ada_aug_p", "iter", "made_by"}
    refuse_unknown(content.keys() - known, source)
    notes = {"latent_avg": "of the file" if average is not None else "by sampling, the file has none"}
    return Found("StyleGAN2 (rosinality)", networks, notes)


def _generator(state: State, source: str, average: Tensor | None = None) -> Generator:
    """rosinality's names to a `Generator` of the size that the shapes tell; the average is sampled when absent."""
    need(state, ("style.1.weight", "conv1.conv.weight", "input.input"), source)
    count = how_many(state, r"to_rgbs\.(\d+)\.bias")
    size = 4 * 2**count
    channels = [state["conv1.conv.weight"].shape[1]]
    channels += [state[f"convs.{2 * i}.conv.weight"].shape[1] for i in range(count)]
    z_dim = state["style.1.weight"].shape[1]
    net = empty(Generator, size=size, z_dim=z_dim, n_mlp=how_many(state, r"style\.(\d+)\.weight"), **_base(channels))
    expected = net.state_dict()
    check_state(state | {"latent_avg": expected["latent_avg"]}, expected, source)
    _check_filters(state, source, gain=4.0)
    net.load_state_dict(state | {"latent_avg": torch.zeros(z_dim)}, assign=True)
    net.latent_avg.copy_(rows_of(average, 1, z_dim, source)[0] if average is not None else net.mean_w())
    return net


def _discriminator(state: State, source: str) -> Discriminator:
    need(state, ("convs.0.0.weight", "final_conv.0.weight"), source)
    count = how_many(state, r"convs\.(\d+)\.skip\.1\.weight")
    channels = [state["final_conv.0.weight"].shape[0]]
    channels += [state[f"convs.{i}.conv1.0.weight"].shape[0] for i in range(count, 0, -1)]
    net = load_into(empty(Discriminator, size=4 * 2**count, **_base(channels)), state, source)
    _check_filters(state, source, gain=1.0)
    return net


def _base(channels: list[int]) -> dict[str, int]:
    """channel_base and channel_max that give these channels at 4, 8, 16, ... pixels."""
    sizes = [4 * 2**i for i in range(len(channels))]
    top = max(channels)
    base = max((c * r for c, r in zip(channels, sizes, strict=True) if c < top), default=top * sizes[-1])
    if channels != [max(1, min(base // r, top)) for r in sizes]:
        raise WeightsError(f"channels {channels} are not min(base / resolution, most) for any base")
    return {"channel_base": base, "channel_max": top}


def _check_filters(state: State, source: str, gain: float) -> None:
    for name in (name for name in state if name.endswith(".kernel")):
        if not torch.allclose(state[name], fir_kernel(gain=gain), atol=1e-6):
            raise WeightsError(f"{source}: {name} is not the [1,3,3,1] low-pass filter")


# ---------------------------------------------------------------------------------------------------- NVIDIA's pickles


def _nvidia(content: dict, source: str) -> Found:
    state, average = nvidia.generator_state(content["G_ema"], source)
    networks: dict[str, nn.Module] = {"generator": _generator(state, source, average)}
    if isinstance(content.get("D"), Persistent):
        networks["discriminator"] = _discriminator(nvidia.discriminator_state(content["D"], source), source)
    notes = {"latent_avg": "of the file", "conv_clamp": nvidia.conv_clamp(content["G_ema"])}
    return Found("StyleGAN2 (NVIDIA, PyTorch)", networks, notes)


def _tensorflow(net: TfNetwork, source: str) -> Found:
    state, average = nvidia.tensorflow_state(net, source)
    networks = {"generator": _generator(state, source, average)}
    return Found("StyleGAN2 (NVIDIA, TensorFlow)", networks, {"latent_avg": "of the file"})


# -------------------------------------------------------------------------------------- the released Style Transformer


def _style_transformer(state: State, content: dict, source: str) -> Found:
    parts = parts_of(state, ("encoder", "decoder"), source)
    generator = _generator(parts["decoder"], source)
    style = {k: v for k, v in parts["decoder"].items() if k.startswith("style.")}
    mine = {f"encoder.{k}": v for k, v in parts["encoder"].items()} | style
    average = content.get("latent_avg")
    widths, units = _backbone(parts["encoder"])
    net = empty(
        StyleTransformer,
        num_ws=generator.num_ws,
        n_mlp=generator.config["n_mlp"],
        widths=widths,
        units=units,
        queries=parts["encoder"]["z"].shape[1],
    )
    average = generator.latent_avg if average is None else torch.as_tensor(average).float()
    mine["latent_avg"] = rows_of(average, generator.num_ws, generator.w_dim, source)
    load_into(net, mine, source)
    generator.latent_avg.copy_(mine["latent_avg"].mean(0))
    notes = {
        "opts": plain(content.get("opts")),
        "mapping": "trained with the encoder: for sampling, truncation and statistics of W take the original generator",
    }
    return Found("Style Transformer (released)", {"style_transformer": net, "generator": generator}, notes)


def _psp_family(state: State, content: dict, source: str) -> Found:
    """pSp, e4e and ReStyle. Their encoders have the same names: `encoder_type` among the options tells e4e from pSp."""
    parts, opts = parts_of(state, ("encoder", "decoder"), source), plain(content.get("opts"))
    given, generator = parts["encoder"], _generator(parts["decoder"], source)
    count, w_dim, resnet = generator.num_ws, generator.w_dim, "conv1.weight" in given
    heads = {"latlayer1.weight": "pyramid", "styles.0.linear.weight": "last map", "output_layer_2.3.weight": "W+"}
    head = next((head for name, head in heads.items() if name in given), "W")
    kind = str(opts.get("encoder_type", ""))
    progressive = "Progressive" in kind or kind == "Encoder4Editing" or (not kind and "stylegan_size" in opts)
    widths, units = _backbone(given, "conv1" if resnet else "res_layer.1")
    net = empty(
        PSP,
        num_ws=count,
        widths=widths,
        units=units,
        input_side=2 ** (len(widths) + sum(bool(re.match(r"styles\.0\.convs\.\d+\.weight", k)) for k in given)),
        head=head,
        progressive=progressive,
        in_channels=given["conv1.weight" if resnet else "input_layer.0.weight"].shape[1],
        resnet=resnet,
    )
    own = ("styles.", "latlayer", "linear.", "output_layer_2.")
    mine = {k if k.startswith(own) else f"backbone.{k}": v for k, v in given.items() if _token(k) < count}
    if head == "W+":  # as many tokens as the generator reads, of the 18 in every file
        mine |= {k: mine[k][: count * w_dim] for k in ("linear.weight", "linear.bias")}
    average = generator.latent_avg if content.get("latent_avg") is None else torch.as_tensor(content["latent_avg"])
    average = rows_of(average[:count] if average.ndim == 2 else average, count, w_dim, source)
    generator.latent_avg.copy_(average.mean(0))
    mine["latent_avg"] = average * (opts.get("start_from_latent_avg") is not False)
    load_into(net, mine, source)
    name = ("restyle_" if net.in_channels == 6 else "") + ("e4e" if progressive else "psp")
    return Found(f"{name} (released)", {name: net, "generator": generator}, {"opts": opts})


def _token(key: str) -> int:
    """The token that a tensor of a style stack belongs to, 0 for all others."""
    found = re.match(r"styles\.(\d+)\.", key)
    return int(found[1]) if found else 0


def _backbone(state: State, conv: str = "res_layer.1") -> tuple[list[int], list[int]]:
    """Widths and units of a backbone from the first convolutions of its units, named `conv`."""
    depth = how_many(state, rf"body\.(\d+)\.{conv}\.")
    outs = [state[f"body.{i}.{conv}.weight"].shape[0] for i in range(depth)]
    widths = sorted(set(outs))
    units = [outs.count(width) for width in widths]
    if outs != [w for w, n in zip(widths, units, strict=True) for _ in range(n)]:
        raise WeightsError(f"backbone with channels {outs}: expected them to grow from stage to stage")
    return widths, units


def _reference_editor(state: State, content: dict, source: str) -> Found:
    parts = parts_of(state, ("encoder", "decoder", "classifier"), source, optional={"decoder", "classifier"})
    networks: dict[str, nn.Module] = {"reference_editor": _editor(parts["encoder"], source)}
    if parts["classifier"]:
        networks["latent_classifier"] = _latent_classifier(parts["classifier"], source)
    if parts["decoder"]:
        networks["generator"] = _generator(parts["decoder"], source)
    return Found("reference editing (released)", networks, {"opts": plain(content.get("opts"))})


def _editor(state: State, source: str) -> ReferenceEditor:
    return load_into(empty(ReferenceEditor, w_dim=state["transformerlayer.norm1.weight"].shape[0]), state, source)


def _latent_classifier(state: State, source: str) -> LatentClassifier:
    """LCNet's layers for each attribute, stacked. The codes' width is the largest of 512, 256, ... that fits."""
    need(state, ("fcs.0.weight", "fcs.1.weight", "indep_fcs.0.weight"), source)
    count, depth = how_many(state, r"output_fcs\.(\d+)\.weight"), how_many(state, r"fcs\.(\d+)\.weight")
    mine = {f"fcs.{i}.{part}": state[f"fcs.{i}.{part}"] for i in range(depth) for part in ("weight", "bias")}
    heads = {"embedding": "indep_fcs", "logit": "output_fcs"}
    for name, released in heads.items():
        for part in ("weight", "bias"):
            need(state, [f"{released}.{k}.{part}" for k in range(count)], source)
            stacked = torch.stack([state[f"{released}.{k}.{part}"] for k in range(count)])
            mine[f"{name}_{part}"] = stacked.squeeze(1) if name == "logit" else stacked
    known = {key for key in state if re.match(r"(fcs|indep_fcs|output_fcs)\.\d+\.(weight|bias)$", key)}
    refuse_unknown(state.keys() - known, source)
    width = mine["fcs.0.weight"].shape[1]
    w_dim = next(w for w in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if width % w == 0)
    net = empty(
        LatentClassifier,
        num_ws=width // w_dim,
        w_dim=w_dim,
        attributes=CELEBA if count == len(CELEBA) else [f"attribute_{k}" for k in range(count)],
        hidden=[mine[f"fcs.{i}.weight"].shape[0] for i in range(depth)],
        dim=mine["embedding_bias"].shape[1],
    )
    return load_into(net, mine, source)


# ------------------------------------------------------------------- networks that look at pictures, and directions


def _ir_se50(state: State, source: str) -> IdentityNet:
    widths, units = _backbone(state)
    dim, flat = state["output_layer.3.weight"].shape
    side = math.isqrt(flat // widths[-1]) * 2 ** len(widths)
    net = empty(IdentityNet, size=side, dim=dim, widths=widths, units=units, face=(widths, units) == _IR_SE50)
    return load_into(net, {k if k.startswith("output_") else f"backbone.{k}": v for k, v in state.items()}, source)


_IR_SE50 = (list(IR_SE50["widths"]), list(IR_SE50["units"]))


def _moco(state: State, source: str) -> Found:
    """Only the query encoder without its head is read, as the public code does; the rest of the file is training."""
    prefix = "module.encoder_q."
    mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    mine = {f"backbone.{k}": v for k, v in mine.items() if not k.startswith("fc")}
    known = ("module.encoder_q.", "module.encoder_k.", "module.queue")
    refuse_unknown({k for k in state if not k.startswith(known)}, source)
    return Found("MoCo-v2 ResNet-50", {"identity": load_into(empty(MoCo), mine, source)})


def _tfjs_arrays(path: Path) -> dict[str, Tensor]:
    """Weights of a TensorFlow.js graph model: `NAME.json` with the .bin beside it that it names."""
    try:
        groups, found = json.loads(path.read_text())["weightsManifest"], {}
        for group in groups:
            raw = b"".join((path.parent / Path(name).name).read_bytes() for name in group["paths"])
            at = 0
            for entry in group["weights"]:
                kind, count = np.dtype(entry["dtype"]), math.prod(entry["shape"])
                if kind.kind not in "if" or at + count * kind.itemsize > len(raw):
                    raise ValueError(f"{entry['name']} lies beyond the end of the .bin file")
                array = np.frombuffer(raw, kind, count, at).reshape(entry["shape"])
                found[entry["name"]] = torch.from_numpy(array.copy())
                at += count * kind.itemsize
        return found
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable TensorFlow.js model ({error}); fetch it again") from None


def _mobileface(given: dict[str, Tensor], source: str) -> Found:
    given = {k: v for k, v in given.items() if not re.search(r"(Maximum|Minimum|Pad|flatten)\w*/|scalar0", k)}
    given = Tensors(given, source)
    take = given.take
    state = {"stem.0.weight": take("conv1_weight").permute(3, 2, 0, 1), "stem.1.weight": take("prelu1_gamma")}
    for i in range(4):
        unit = f"stage{i + 1}_unit1"
        state[f"stages.{i}.expand.weight"] = take(f"{unit}_conv0_0_weight").permute(3, 2, 0, 1)
        for j, name in enumerate(("conv0_1", "conv1", "conv2")):
            state[f"stages.{i}.depthwise.{j}.0.weight"] = take(f"{unit}_{name}_df").permute(2, 3, 0, 1)
            state[f"stages.{i}.depthwise.{j}.1.weight"] = take(f"{unit}_prelu{j}_gamma")
    state["dense.weight"] = (take("dense/kernel") * take("batchnorm0/mul")).T  # the norm folded in
    state["dense.bias"] = take("batchnorm0/sub")
    given.finish()
    state = {k: v.contiguous() for k, v in state.items()}
    return Found("MobileFace identity network", {"identity": load_into(empty(MobileFace), state, source)})


def _boundary(direction: Tensor, source: str) -> Found:
    """InterFaceGAN's normals: [1, 512], or [1, n * 512] for W+; several may be stacked."""
    direction = direction.float()
    if direction.ndim == 3:
        direction = direction.flatten(1) if direction.shape[1] > 1 else direction[:, 0]
    direction = direction[None] if direction.ndim == 1 else direction
    if direction.ndim != 2 or not direction.numel() or not torch.isfinite(direction).all():
        raise WeightsError(
            f"{source}: numbers of shape {list(direction.shape)} are not directions ([1, 512] or the like)"
        )
    w_dim = 512 if direction.shape[1] % 512 == 0 else direction.shape[1]
    net = Directions(count=len(direction), tokens=direction.shape[1] // w_dim, w_dim=w_dim)
    net.directions.copy_(direction.reshape(net.directions.shape))
    return Found("InterFaceGAN direction", {"directions": net})


def _ganspace(content: dict, source: str) -> Found:
    refuse_unknown(content.keys() - {"mean", "comp", "std"}, source)
    mean, comp, std = (torch.as_tensor(content[k]).float() for k in ("mean", "comp", "std"))
    net = Directions(count=len(comp), tokens=1, w_dim=comp.shape[-1])
    shapes = {"mean": mean.numel() == comp.shape[-1], "std": std.numel() == len(comp), "comp": comp.ndim in (2, 3)}
    if not all(shapes.values()):
        raise WeightsError(f"{source}: mean {list(mean.shape)}, comp {list(comp.shape)}, std {list(std.shape)} differ")
    net.directions.copy_(comp.reshape(net.directions.shape))
    net.mean.copy_(mean.flatten()), net.std.copy_(std.flatten())
    return Found("GANSpace components", {"directions": net})
