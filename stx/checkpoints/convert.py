"""Public checkpoints to our networks.

Reads rosinality's and NVIDIA's StyleGAN2 (PyTorch and TensorFlow pickles), the released Style Transformer, its
reference editor and latent classifier, the latent transformer, IR-SE50, MoCo-v2, MobileFace, directions, generators
that PTI tuned, and codes of pictures. Every key of a file is accounted for: one that is missing, unexpected or of
another shape is named. What public code makes anew (noise maps, low-pass kernels, the average w) may be absent, and the
notes say so. Nothing in a file is executed.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stx.baselines.psp import PSP
from stx.checkpoints import nvidia
from stx.checkpoints.codes import codes_in
from stx.checkpoints.detail import refuse_detail
from stx.checkpoints.directions import boundary, ganspace, is_boundary
from stx.checkpoints.editors import latent_classifier, latent_transformer, logits_only, reference_editor
from stx.checkpoints.tensors import (
    Found,
    State,
    Tensors,
    empty,
    fill,
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
from stx.files.errors import InputError, WeightsError
from stx.files.pickles import TORCH_MAGIC, Persistent, TfNetwork, read_pickle, read_torch
from stx.files.untrusted import NUMPY_MAGIC, Budget, check_shape, one_line, read_array, read_json, what_it_is
from stx.perception.identity import IdentityNet, MobileFace, MoCo
from stx.perception.irse import IR_SE50
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import STDDEV_GROUP, Discriminator, Generator
from stx.stylegan2.ops import fir_kernel

MAX_DOUBLINGS = 10  # from 4 pixels: 4096
MAX_WIDTH = 1 << 16  # of codes


def read(path: str | Path) -> Found:
    """The networks in a public checkpoint, frozen and in eval mode.

    Raises `WeightsError` in one line for a file that is unknown, unsafe, damaged, incomplete, of another shape, or has
    numbers that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        found = _by_content(_content(path), str(path))
    except WeightsError as error:
        raise WeightsError(f"{path}: {one_line(str(error).removeprefix(f'{path}:'))}") from None
    except Exception as error:  # a file of unknown make meets every kind; the cause stays in the traceback
        told = one_line(f"{type(error).__name__}: {error}")
        raise WeightsError(f"{path}: not a checkpoint of a known form ({told})") from error
    for net in found.networks.values():
        for name, tensor in net.eval().requires_grad_(False).state_dict().items():
            if not torch.isfinite(tensor).all():
                raise WeightsError(f"{path}: {one_line(name)} has numbers that are not finite (NaN or infinite)")
    return found


def _content(path: Path) -> Any:
    """What a file holds, by how it begins; names mislead."""
    with open(path, "rb") as file:
        head = file.read(256)
    if path.suffix == ".safetensors":
        raise WeightsError(f"{path}: already safetensors; put it with its config.json into data/<domain>/<network>/")
    if words := what_it_is(head):
        raise WeightsError(f"{path}: {words}")
    if head.startswith(NUMPY_MAGIC):
        return read_array(path)
    if head.lstrip().startswith(b"{"):
        return _tfjs_arrays(path)
    return read_torch(path) if head.startswith(TORCH_MAGIC) else read_pickle(path)


def _by_content(content: Any, source: str) -> Found:
    if isinstance(content, torch.Tensor | np.ndarray) and is_boundary(torch.as_tensor(content)):
        return boundary(torch.as_tensor(content), source)
    if codes := codes_in(content, source):
        return Found("codes of pictures", {}, codes=codes)
    if isinstance(content, Persistent):  # a whole network in torch.save, as PTI keeps its tuned generators
        found = _nvidia({"G_ema": content}, source)
        return Found("StyleGAN2 alone (NVIDIA, PyTorch)", {"tuned": found.networks["generator"]}, found.notes)
    if isinstance(content, list | tuple) and content and isinstance(content[-1], TfNetwork):
        return _tensorflow(content[-1], source)
    if not isinstance(content, dict):
        raise WeightsError(f"{source}: holds a {type(content).__name__}, not networks")
    if isinstance(content.get("G_ema"), Persistent):
        return _nvidia(content, source)
    if {"g_ema", "g", "d"} & content.keys():
        return _rosinality(content, source)
    if {"mean", "comp", "std"} <= content.keys() or "lat_comp" in content:
        return ganspace(content, source)
    if "conv1_weight" in content and "dense/kernel" in content:
        return _mobileface(content, source)
    state = content.get("state_dict", content.get("T_net_state_dict", content))
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{source}: no tensors by name in it (it has: {some(map(str, content))})")
    if any(str(key).startswith("module.encoder_q.") for key in state):
        return _moco(state, source)
    state = floats(state, source)
    refuse_detail(state, source)
    if "encoder.z" in state:
        return _style_transformer(state, content, source)
    if "encoder.transformerlayer.linear1.weight" in state:
        return _reference_editor(state, content, source)
    if {"encoder.input_layer.0.weight", "encoder.conv1.weight"} & state.keys():
        return _psp_family(state, content, source)
    if any(re.match(r"dense\.\d+\.", key) for key in state):
        return latent_transformer(state, source)
    if "output_fcs.0.weight" in state:
        return Found("latent classifier", {"latent_classifier": latent_classifier(state, source)})
    if all(key.startswith("fcs.") for key in state):
        return Found("latent classifier (latent transformer)", {"latent_classifier": logits_only(state, source)})
    if "transformerlayer.linear1.weight" in state:
        return Found("reference editor", {"reference_editor": reference_editor(state, source)})
    if "output_layer.3.weight" in state:
        return Found("IR-SE50 identity network", {"identity": _ir_se50(state, source)})
    if "final_conv.0.weight" in state:
        return _rosinality({"d": state}, source)
    if "conv1.conv.weight" in state:
        return _rosinality({"g_ema": state}, source)
    if all(key.startswith("decoder.") for key in state):
        return _rosinality(content | {"g_ema": parts_of(state, ("decoder",), source)["decoder"]}, source, of_pair=True)
    raise WeightsError(f"{source}: not a checkpoint of a known form (first tensors: {some(state)})")


# ------------------------------------------------------------------------------------------------- rosinality's names


def _rosinality(content: dict, source: str, of_pair: bool = False) -> Found:
    """A training file, or one of its networks alone. of_pair: the decoder of an encoder's file without the encoder."""
    known = {"g", "d", "g_ema", "latent_avg", "g_optim", "d_optim", "args", "ada_aug_p", "iter", "made_by"}
    refuse_unknown(content.keys() - known - ({"state_dict", "opts"} if of_pair else set()), source)
    notes: dict[str, Any] = {}
    networks: dict[str, nn.Module] = {}
    name = "g_ema" if "g_ema" in content else "g"
    if name in content:
        networks["generator"] = _generator(floats(content[name], source), source, content.get("latent_avg"), notes)
        notes |= {} if name == "g_ema" else {"weights": "of the last step (g), the file has no average of them (g_ema)"}
    if "d" in content:
        networks["discriminator"] = _discriminator(floats(content["d"], source), source)
    kind = "StyleGAN2 (rosinality)" if "generator" in networks else "StyleGAN2 discriminator (rosinality)"
    return Found(kind, networks, notes)


def _generator(state: State, source: str, average: Any = None, notes: dict | None = None) -> Generator:
    """rosinality's names to a `Generator` of the size that the shapes tell; the average is sampled when absent.

    notes: gets what was made anew since the file has none.
    """
    need(state, ("style.1.weight", "conv1.conv.weight", "input.input"), source)
    count = how_many(state, r"to_rgbs\.(\d+)\.bias")
    if count > MAX_DOUBLINGS:
        raise WeightsError(f"{source}: {count} doublings of 4 pixels, more than any generator has")
    need(state, [f"convs.{2 * i}.conv.weight" for i in range(count)], source)
    channels = [state["conv1.conv.weight"].shape[1]]
    channels += [state[f"convs.{2 * i}.conv.weight"].shape[1] for i in range(count)]
    z_dim = state["style.1.weight"].shape[1]
    sizes = {"size": 4 * 2**count, "z_dim": z_dim, "n_mlp": how_many(state, r"style\.(\d+)\.weight")}
    net = empty(Generator, **sizes, **_base(channels))
    state = dict(state)
    made = fill(state, net.state_dict(), 4.0, source)
    load_into(net, state | {"latent_avg": torch.zeros(min(z_dim, MAX_WIDTH))}, source)
    _check_filters(state, source, gain=4.0)
    net.latent_avg.copy_(rows_of(average, 1, z_dim, source)[0] if average is not None else net.mean_w())
    if notes is not None:
        notes["latent_avg"] = "of the file" if average is not None else "by sampling, the file has none"
        notes |= dict.fromkeys(made, "made anew, the file has none")
    return net


def _discriminator(state: State, source: str, group: int | None = STDDEV_GROUP) -> Discriminator:
    need(state, ("convs.0.0.weight", "final_conv.0.weight"), source)
    count = how_many(state, r"convs\.(\d+)\.skip\.1\.weight")
    if count > MAX_DOUBLINGS:
        raise WeightsError(f"{source}: {count} halvings to 4 pixels, more than any discriminator has")
    need(state, [f"convs.{i}.conv1.0.weight" for i in range(count, 0, -1)], source)
    channels = [state["final_conv.0.weight"].shape[0]]
    channels += [state[f"convs.{i}.conv1.0.weight"].shape[0] for i in range(count, 0, -1)]
    net, state = empty(Discriminator, size=4 * 2**count, group=group, **_base(channels)), dict(state)
    fill(state, net.state_dict(), 1.0, source)
    load_into(net, state, source)
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
        state, group = nvidia.discriminator_state(content["D"], source), nvidia.stddev_group(content["D"])
        networks["discriminator"] = _discriminator(state, source, group)
    notes = {"latent_avg": "of the file", "conv_clamp": nvidia.conv_clamp(content["G_ema"])}
    return Found("StyleGAN2 (NVIDIA, PyTorch)", networks, notes)


def _tensorflow(net: TfNetwork, source: str) -> Found:
    state, average = nvidia.tensorflow_state(net, source)
    networks = {"generator": _generator(state, source, average)}
    return Found("StyleGAN2 (NVIDIA, TensorFlow)", networks, {"latent_avg": "of the file"})


# -------------------------------------------------------------------------------------- the released Style Transformer


def _style_transformer(state: State, content: dict, source: str) -> Found:
    parts = parts_of(state, ("encoder", "decoder"), source)
    need(parts["encoder"], ("input_layer.0.weight",), source)
    generator = _generator(parts["decoder"], source)
    style = {k: v for k, v in parts["decoder"].items() if k.startswith("style.")}
    mine = {f"encoder.{k}": v for k, v in parts["encoder"].items()} | style
    widths, units = _backbone(parts["encoder"])
    net = empty(
        StyleTransformer,
        num_ws=generator.num_ws,
        n_mlp=generator.config["n_mlp"],
        widths=widths,
        units=units,
        queries=parts["encoder"]["z"].shape[1],
        in_channels=parts["encoder"]["input_layer.0.weight"].shape[1],
    )
    opts = plain(content.get("opts"))
    average = _average(content, opts, generator, source)
    generator.latent_avg.copy_(average.mean(0))
    mine["latent_avg"] = average * _starts_from_average(opts)
    load_into(net, mine, source)
    notes = {
        "opts": opts,
        "mapping": "trained with the encoder: for sampling, truncation and statistics of W take the original generator",
    }
    return Found("Style Transformer (released)", {"style_transformer": net, "generator": generator}, notes)


def _average(content: dict, opts: dict, generator: Generator, source: str) -> Tensor:
    """The average code of an encoder's file, [num_ws, w_dim]; that of the generator where there is none.

    Where the encoder was learnt in W (`learn_in_w`), public code repeats one row of it for all tokens.
    """
    given = content.get("latent_avg")
    given = generator.latent_avg if given is None else torch.as_tensor(given).float()
    rows = given[: 1 if opts.get("learn_in_w") else generator.num_ws] if given.ndim == 2 else given
    return rows_of(rows, generator.num_ws, generator.w_dim, source)


def _starts_from_average(opts: dict) -> bool:
    """Whether the average is added to what the encoder gives; it is unless the options say no."""
    return bool(opts.get("start_from_latent_avg", True))


def _psp_family(state: State, content: dict, source: str) -> Found:
    """pSp, e4e and ReStyle. Their encoders have the same names: `encoder_type` among the options tells e4e from pSp.

    ReStyle and HyperStyle's encoder into W add the average, a row to each token, whatever their options say of it.
    """
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
    unheeded = net.passes > 1 or kind == "WEncoder" or kind.endswith("BackboneEncoder")
    heeded = {} if unheeded else opts
    average = _average(content, heeded, generator, source)
    generator.latent_avg.copy_(average.mean(0))
    mine["latent_avg"] = average * _starts_from_average(heeded)
    load_into(net, mine, source)
    name = ("restyle_" if net.passes > 1 else "") + ("e4e" if progressive else "psp")
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
    networks: dict[str, nn.Module] = {"reference_editor": reference_editor(parts["encoder"], source)}
    if parts["classifier"]:
        networks["latent_classifier"] = latent_classifier(parts["classifier"], source)
    if parts["decoder"]:
        networks["generator"] = _generator(parts["decoder"], source)
    return Found("reference editing (released)", networks, {"opts": plain(content.get("opts"))})


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
        groups, found = read_json(path)["weightsManifest"], {}
        budget = Budget(path.stat().st_size + sum(file.stat().st_size for file in _bins(groups, path)))
        for group in groups:
            files, at = _bins([group], path), 0
            budget.spend(sum(file.stat().st_size for file in files))
            raw = b"".join(file.read_bytes() for file in files)
            for entry in group["weights"]:
                name, kind, shape = entry["name"], _TFJS_TYPES[entry["dtype"]], check_shape(entry["shape"])
                count = math.prod(shape)
                if name in found or at + count * kind.itemsize > len(raw):
                    raise InputError(f"{name} lies beyond the end of the .bin file, or occurs twice")
                budget.spend(count * kind.itemsize)
                found[name] = torch.from_numpy(np.frombuffer(raw, kind, count, at).reshape(shape).copy())
                at += count * kind.itemsize
        return found
    except (OSError, KeyError, TypeError, ValueError, WeightsError) as error:
        told = one_line(error)
        raise WeightsError(f"{path}: not a readable TensorFlow.js model ({told}); fetch it again") from None


def _bins(groups: list, path: Path) -> list[Path]:
    """The files that a manifest names, each once; they lie beside it whatever folder it gives."""
    files = [path.parent / Path(name).name for group in groups for name in group["paths"]]
    for file in set(files):
        if not file.is_file() or file.resolve().parent != path.parent.resolve():
            raise InputError(f"{file.name} is not a file beside it")
    if len(set(files)) != len(files):
        raise InputError("it names a .bin file twice")
    return files


_TFJS_TYPES = {"float32": np.dtype("<f4"), "int32": np.dtype("<i4")}


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
