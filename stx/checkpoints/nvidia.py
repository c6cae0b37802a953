"""NVIDIA's StyleGAN2 under rosinality's names: pickles of stylegan2-ada-pytorch, stylegan3 and TensorFlow."""

import re
from collections.abc import Iterable

import torch

from stx.checkpoints.tensors import State, Tensors, how_many, some
from stx.files.errors import WeightsError
from stx.files.pickles import Persistent, TfNetwork
from stx.files.untrusted import one_line
from stx.stylegan2.networks import MAPPING_LR_MUL, STDDEV_GROUP, resolutions
from stx.stylegan2.ops import fir_kernel

USUAL_TAPS = [1, 3, 3, 1]  # of the low-pass filter


def generator_state(net: Persistent, source: str) -> tuple[State, torch.Tensor]:
    """rosinality's state dict and average w of `G_ema`. Raises `WeightsError` for another architecture."""
    given = Tensors(net.tensors(), source)
    _check_activations(net.attributes("activation").values(), source)
    if net.state.get("c_dim"):
        raise WeightsError(f"{source}: a class-conditional generator ({net.state['c_dim']} classes) is not supported")
    if "synthesis.b4.const" not in given.left:
        raise WeightsError(f"{source}: not a StyleGAN2 generator (its tensors: {some(given.left)})")
    size = max(int(r) for r in re.findall(r"synthesis\.b(\d+)\.", " ".join(given.left)))
    if "synthesis.b8.skip.weight" in given.left or "synthesis.b8.torgb.weight" not in given.left:
        raise WeightsError(f"{source}: not of architecture 'skip', which the public checkpoints have")
    take = given.take
    state = {"input.input": take("synthesis.b4.const")[None]}
    rates = net.attributes("bias_gain")
    for n in range(how_many(given.left, r"mapping\.fc(\d+)\.weight")):
        rate = float(rates.get(f"mapping.fc{n}", MAPPING_LR_MUL)) / MAPPING_LR_MUL
        state |= {f"style.{n + 1}.{part}": take(f"mapping.fc{n}.{part}") * rate for part in ("weight", "bias")}
    for name, block, layer, noise in _layers(size):
        source_name = f"synthesis.b{block}.{layer}"
        state |= {
            f"{name}.conv.weight": take(f"{source_name}.weight")[None],
            f"{name}.conv.modulation.weight": take(f"{source_name}.affine.weight"),
            f"{name}.conv.modulation.bias": take(f"{source_name}.affine.bias"),
        }
        bias = take(f"{source_name}.bias")
        if layer == "torgb":
            state[f"{name}.bias"] = bias.reshape(1, 3, 1, 1)
        else:
            state[f"{name}.activate.bias"] = bias
            state[f"{name}.noise.weight"] = take(f"{source_name}.noise_strength").reshape(1)
            state[f"noises.noise_{noise}"] = take(f"{source_name}.noise_const")[None, None]
    average = take("mapping.w_avg")
    given.finish()
    return state | _filters(size), average


def discriminator_state(net: Persistent, source: str) -> State:
    """rosinality's state dict of `D`."""
    given = Tensors(net.tensors(), source)
    _check_activations(net.attributes("activation").values(), source)
    if net.state.get("c_dim"):
        raise WeightsError(f"{source}: a class-conditional discriminator is not supported")
    take = given.take
    size = max(int(r) for r in re.findall(r"\bb(\d+)\.", " ".join(given.left)))
    state = {
        "convs.0.0.weight": take(f"b{size}.fromrgb.weight"),
        "convs.0.1.bias": take(f"b{size}.fromrgb.bias"),
        "final_conv.0.weight": take("b4.conv.weight"),
        "final_conv.1.bias": take("b4.conv.bias"),
    }
    for i, r in enumerate(reversed(resolutions(size)[1:]), start=1):
        state |= {
            f"convs.{i}.conv1.0.weight": take(f"b{r}.conv0.weight"),
            f"convs.{i}.conv1.1.bias": take(f"b{r}.conv0.bias"),
            f"convs.{i}.conv2.0.kernel": fir_kernel(),
            f"convs.{i}.conv2.1.weight": take(f"b{r}.conv1.weight"),
            f"convs.{i}.conv2.2.bias": take(f"b{r}.conv1.bias"),
            f"convs.{i}.skip.0.kernel": fir_kernel(),
            f"convs.{i}.skip.1.weight": take(f"b{r}.skip.weight"),
        }
    for i, layer in enumerate(("fc", "out")):
        state |= {f"final_linear.{i}.{part}": take(f"b4.{layer}.{part}") for part in ("weight", "bias")}
    given.finish()
    return state


def stddev_group(net: Persistent) -> int | None:
    """How many samples a discriminator takes the standard deviation of: 4, 8, 32 or, without a number, all of them."""
    group = next(iter(net.attributes("group_size").values()), STDDEV_GROUP)
    return None if group is None else int(group)


def conv_clamp(net: Persistent) -> float | None:
    """Where NVIDIA's layers clip activations, in units before the gain. Not applied: trained networks stay below."""
    for module in net.modules():
        if module.state.get("conv_clamp") is not None:
            return float(module.state["conv_clamp"])
    return None


def tensorflow_state(net: TfNetwork, source: str) -> tuple[State, torch.Tensor]:
    """rosinality's state dict and average w of `Gs` in a TensorFlow pickle."""
    given = Tensors(net.arrays(), source)
    if "synthesis/4x4/Const/const" not in given.left:
        raise WeightsError(f"{source}: not a StyleGAN2 generator of config F (its variables: {some(given.left)})")
    size = max(int(r) for r in re.findall(r"synthesis/(\d+)x\d+/ToRGB/weight", " ".join(given.left)))
    options = net.state.get("static_kwargs") or {}
    _check_activations((options.get(name) for name in ("nonlinearity", "mapping_nonlinearity")), source)
    taps = options.get("resample_kernel")
    if taps is not None and list(taps) != USUAL_TAPS:
        raise WeightsError(f"{source}: a low-pass filter of {one_line(taps)}, expected {USUAL_TAPS}")
    take, rate = given.take, (options.get("mapping_lrmul") or MAPPING_LR_MUL) / MAPPING_LR_MUL
    state = {"input.input": take("synthesis/4x4/Const/const")}
    for n in range(how_many(given.left, r"mapping/Dense(\d+)/weight")):
        state[f"style.{n + 1}.weight"] = take(f"mapping/Dense{n}/weight").T.contiguous() * rate
        state[f"style.{n + 1}.bias"] = take(f"mapping/Dense{n}/bias") * rate
    names = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB"}
    for name, block, layer, noise in _layers(size):
        own = "Conv" if (block, layer) == (4, "conv1") else names[layer]
        source_name = f"synthesis/{block}x{block}/{own}"
        weight = take(f"{source_name}/weight").permute(3, 2, 0, 1)
        state |= {
            f"{name}.conv.weight": (weight.flip(2, 3) if layer == "conv0" else weight)[None].contiguous(),
            f"{name}.conv.modulation.weight": take(f"{source_name}/mod_weight").T.contiguous(),
            f"{name}.conv.modulation.bias": take(f"{source_name}/mod_bias") + 1,
        }
        bias = take(f"{source_name}/bias")
        if layer == "torgb":
            state[f"{name}.bias"] = bias.reshape(1, 3, 1, 1)
        else:
            state[f"{name}.activate.bias"] = bias
            state[f"{name}.noise.weight"] = take(f"{source_name}/noise_strength").reshape(1)
            state[f"noises.noise_{noise}"] = take(f"synthesis/noise{noise}")
    average = take("dlatent_avg")
    for name in ("lod", "synthesis/lod"):  # the progress of progressive growing, left over from StyleGAN1
        given.left.pop(name, None)
    given.finish()
    return state | _filters(size), average


def _check_activations(kinds: Iterable, source: str) -> None:
    """Raises `WeightsError` for layers with another activation than all public networks have."""
    if other := sorted({str(kind) for kind in kinds if kind is not None} - {"lrelu", "linear"}):
        raise WeightsError(f"{source}: layers with the activation {other[0]!r}, expected 'lrelu'")


def _layers(size: int) -> Iterable[tuple[str, int, str, int | None]]:
    """(our name, block, NVIDIA's layer, number of its noise) of every modulated layer."""
    yield "conv1", 4, "conv1", 0
    yield "to_rgb1", 4, "torgb", None
    for i, r in enumerate(resolutions(size)[1:]):
        yield f"convs.{2 * i}", r, "conv0", 2 * i + 1
        yield f"convs.{2 * i + 1}", r, "conv1", 2 * i + 2
        yield f"to_rgbs.{i}", r, "torgb", None


def _filters(size: int) -> State:
    names = [f"convs.{2 * i}.conv.blur.kernel" for i in range(len(resolutions(size)) - 1)]
    names += [f"to_rgbs.{i}.upsample.kernel" for i in range(len(resolutions(size)) - 1)]
    return {name: fir_kernel(gain=4.0) for name in names}
