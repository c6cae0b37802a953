"""Public checkpoints to our networks.

Reads rosinality's and NVIDIA's StyleGAN2 (PyTorch and TensorFlow pickles), the released Style Transformer, its
reference editor and latent classifier, IR-SE50, MoCo-v2, MobileFace, InterFaceGAN and GANSpace directions. Every key of
a file is accounted for: one that is missing, unexpected or of another shape is named. Nothing in a file is executed.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stx import nvidia
from stx.backbone import IR_SE50
from stx.directions import Directions
from stx.identity import IdentityNet, MobileFace, MoCo
from stx.latent_classifier import CELEBA, LatentClassifier
from stx.ops import fir_kernel
from stx.pickles import TORCH_MAGIC, Persistent, TfNetwork, WeightsError, read_pickle, read_torch
from stx.reference_editing import ReferenceEditor
from stx.style_transformer import StyleTransformer
from stx.stylegan2 import Discriminator, Generator
from stx.tensors import Tensors, check_state, how_many, refuse_unknown, some

State = dict[str, Tensor]


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
    state = {_canonical(key): value.float() if value.is_floating_point() else value for key, value in state.items()}
    if "encoder.z" in state:
        return _style_transformer(state, content, source)
    if "encoder.transformerlayer.linear1.weight" in state:
        return _reference_editor(state, content, source)
    if any(key.startswith("encoder.styles.") for key in state):
        raise WeightsError(
            f"{source}: an encoder of the pSp family (pSp, e4e, ReStyle), which stx has no network for yet"
        )
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
    networks = {"generator": _generator(_floats(content["g_ema"]), source, average)}
    if "d" in content:
        networks["discriminator"] = _discriminator(_floats(content["d"]), source)
    known = {"g", "d", "g_ema", "latent_avg", "g_optim", "d_optim", "args", "ada_aug_p", "iter"}
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
    net = _empty(Generator, size=size, z_dim=z_dim, n_mlp=how_many(state, r"style\.(\d+)\.weight"), **_base(channels))
    expected = net.state_dict()
    check_state(state | {"latent_avg": expected["latent_avg"]}, expected, source)
    _check_filters(state, source, gain=4.0)
    net.load_state_dict(state | {"latent_avg": torch.zeros(z_dim)}, assign=True)
    net.latent_avg.copy_(_rows(average, 1, z_dim, source)[0] if average is not None else net.mean_w())
    return net


def _discriminator(state: State, source: str) -> Discriminator:
    need(state, ("convs.0.0.weight", "final_conv.0.weight"), source)
    count = how_many(state, r"convs\.(\d+)\.skip\.1\.weight")
    channels = [state["final_conv.0.weight"].shape[0]]
    channels += [state[f"convs.{i}.conv1.0.weight"].shape[0] for i in range(count, 0, -1)]
    net = _load(_empty(Discriminator, size=4 * 2**count, **_base(channels)), state, source)
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
    parts = _parts(state, ("encoder", "decoder"), source)
    generator = _generator(parts["decoder"], source)
    style = {k: v for k, v in parts["decoder"].items() if k.startswith("style.")}
    mine = {f"encoder.{k}": v for k, v in parts["encoder"].items()} | style
    average = content.get("latent_avg")
    widths, units = _backbone(parts["encoder"])
    net = _empty(
        StyleTransformer,
        num_ws=generator.num_ws,
        n_mlp=generator.config["n_mlp"],
        widths=widths,
        units=units,
        queries=parts["encoder"]["z"].shape[1],
    )
    average = generator.latent_avg if average is None else torch.as_tensor(average).float()
    mine["latent_avg"] = _rows(average, generator.num_ws, generator.w_dim, source)
    _load(net, mine, source)
    generator.latent_avg.copy_(mine["latent_avg"].mean(0))
    notes = {
        "opts": _plain(content.get("opts")),
        "mapping": "trained with the encoder: for sampling, truncation and statistics of W take the original generator",
    }
    return Found("Style Transformer (released)", {"style_transformer": net, "generator": generator}, notes)


def _backbone(state: State) -> tuple[list[int], list[int]]:
    """Widths and units of an IR-SE backbone from its convolutions."""
    depth = how_many(state, r"body\.(\d+)\.res_layer\.1")
    outs = [state[f"body.{i}.res_layer.1.weight"].shape[0] for i in range(depth)]
    widths = sorted(set(outs))
    units = [outs.count(width) for width in widths]
    if outs != [w for w, n in zip(widths, units, strict=True) for _ in range(n)]:
        raise WeightsError(f"backbone with channels {outs}: expected them to grow from stage to stage")
    return widths, units


def _reference_editor(state: State, content: dict, source: str) -> Found:
    parts = _parts(state, ("encoder", "decoder", "classifier"), source, optional={"decoder", "classifier"})
    networks: dict[str, nn.Module] = {"reference_editor": _editor(parts["encoder"], source)}
    if parts["classifier"]:
        networks["latent_classifier"] = _latent_classifier(parts["classifier"], source)
    if parts["decoder"]:
        networks["generator"] = _generator(parts["decoder"], source)
    return Found("reference editing (released)", networks, {"opts": _plain(content.get("opts"))})


def _editor(state: State, source: str) -> ReferenceEditor:
    return _load(_empty(ReferenceEditor, w_dim=state["transformerlayer.norm1.weight"].shape[0]), state, source)


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
    net = _empty(
        LatentClassifier,
        num_ws=width // w_dim,
        w_dim=w_dim,
        attributes=CELEBA if count == len(CELEBA) else [f"attribute_{k}" for k in range(count)],
        hidden=[mine[f"fcs.{i}.weight"].shape[0] for i in range(depth)],
        dim=mine["embedding_bias"].shape[1],
    )
    return _load(net, mine, source)


# -------------------------------------------------------------------------------------------- judges and directions


def _ir_se50(state: State, source: str) -> IdentityNet:
    widths, units = _backbone(state)
    dim, flat = state["output_layer.3.weight"].shape
    side = math.isqrt(flat // widths[-1]) * 2 ** len(widths)
    net = _empty(IdentityNet, size=side, dim=dim, widths=widths, units=units, face=(widths, units) == _IR_SE50)
    return _load(net, {k if k.startswith("output_") else f"backbone.{k}": v for k, v in state.items()}, source)


_IR_SE50 = (list(IR_SE50["widths"]), list(IR_SE50["units"]))


def _moco(state: State, source: str) -> Found:
    """Only the query encoder without its head is read, as the public code does; the rest of the file is training."""
    prefix = "module.encoder_q."
    mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    mine = {f"backbone.{k}": v for k, v in mine.items() if not k.startswith("fc")}
    known = ("module.encoder_q.", "module.encoder_k.", "module.queue")
    refuse_unknown({k for k in state if not k.startswith(known)}, source)
    return Found("MoCo-v2 ResNet-50", {"identity": _load(_empty(MoCo), mine, source)})


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
    return Found("MobileFace identity network", {"identity": _load(_empty(MobileFace), state, source)})


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


# ----------------------------------------------------------------------------------------------------------- helpers


def need(state: dict, names: Iterable[str], source: str) -> None:
    """Raises `WeightsError` naming the first of `names` that is not there."""
    missing = [name for name in names if name not in state]
    if missing:
        raise WeightsError(f"{source}: {len(missing)} tensors missing ({some(missing)})")


def _canonical(key: str) -> str:
    """A key without DataParallel's `module`."""
    return ".".join(part for part in key.split(".") if part != "module")


def _floats(state: Any) -> State:
    return {_canonical(k): v.float() if v.is_floating_point() else v for k, v in state.items()}


def _parts(state: State, prefixes: tuple[str, ...], source: str, optional: set[str] = frozenset()) -> dict[str, State]:
    parts = {p: {k[len(p) + 1 :]: v for k, v in state.items() if k.startswith(p + ".")} for p in prefixes}
    missing = [p for p in prefixes if not parts[p] and p not in optional]
    if missing:
        raise WeightsError(f"{source}: no tensors of the {missing[0]} in it (first: {some(state)})")
    refuse_unknown({k for k in state if not k.startswith(tuple(p + "." for p in prefixes))}, source)
    return parts


def _rows(average: Any, count: int, width: int, source: str) -> Tensor:
    """An average as [count, width]: files have [width], [1, width] or [count, width]."""
    given = torch.as_tensor(average).float()
    rows = given[None] if given.ndim == 1 else given
    if rows.ndim != 2 or rows.shape[1] != width or len(rows) not in (1, count):
        raise WeightsError(f"{source}: latent_avg is {list(given.shape)}: expected [{width}] or [{count}, {width}]")
    return rows.expand(count, -1).clone()


def _empty(kind: type, **sizes: Any) -> Any:
    """A network of these sizes whose weights are about to be read: nothing is drawn or held twice."""
    with torch.device("meta"):
        return kind(**sizes)


def _load(net: nn.Module, state: State, source: str) -> Any:
    check_state(state, net.state_dict(), source)
    net.load_state_dict(state, assign=True)
    return net


def _plain(opts: Any) -> dict:
    """Options as JSON takes them."""
    opts = vars(opts) if hasattr(opts, "__dict__") else opts
    return json.loads(json.dumps(opts, default=str)) if isinstance(opts, dict) else {}
