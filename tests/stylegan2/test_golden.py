"""Our StyleGAN2 against numbers of the public implementation (tests/golden, made from names by fill.py)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stx.stylegan2.networks import Discriminator, Generator, StyledConv, ToRGB
from stx.stylegan2.ops import conv2d, fused_leaky_relu, modulated_conv2d, upfirdn2d
from tests.golden import assert_golden, case, fill, image, normal

GENERATOR_STYLES = ["conv1", "to_rgb1"] + [
    name for i in range(4) for name in (f"convs.{2 * i}", f"convs.{2 * i + 1}", f"to_rgbs.{i}")
]


def tags(name: str) -> list[str]:
    return sorted({key.split("/")[0] for key in case(name) if not key.startswith("meta")})


def tensors(golden: dict, tag: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(tag + "/"): torch.from_numpy(v) for k, v in golden.items() if k.startswith(tag + "/")}


@pytest.mark.parametrize("tag", tags("upfirdn2d"))
def test_upfirdn2d(tag):
    t = tensors(case("upfirdn2d"), tag)
    x = t["x"].requires_grad_()
    y = upfirdn2d(x, t["k"], up=tuple(t["up"].tolist()), down=tuple(t["down"].tolist()), pad=tuple(t["pad"].tolist()))
    (dx,) = torch.autograd.grad(y, x, t["g"])
    assert_golden("upfirdn2d", {f"{tag}/y": y, f"{tag}/dx": dx})


@pytest.mark.parametrize("tag", tags("fused_leaky_relu"))
def test_fused_leaky_relu(tag):
    t = tensors(case("fused_leaky_relu"), tag)
    inputs = {"dx": t["x"].requires_grad_()} | ({"db": t["b"].requires_grad_()} if "b" in t else {})
    y = fused_leaky_relu(t["x"], t.get("b"))
    grads = torch.autograd.grad(y, list(inputs.values()), t["g"])
    got = {"y": y} | dict(zip(inputs, grads, strict=True))
    assert_golden("fused_leaky_relu", {f"{tag}/{k}": v for k, v in got.items()})


def test_strided_pointwise_convolution_of_few_channels():
    """What oneDNN gets wrong on AVX2, sometimes with a crash (its issue 6035)."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, g = torch.randn(8, 3, 1, 1, requires_grad=True), torch.randn(4, 8, 8, 8)
    expected = torch.autograd.grad(torch.einsum("bihw,oi->bohw", x[..., ::2, ::2], weight[..., 0, 0]), (x, weight), g)
    for _ in range(20):
        torch.testing.assert_close(torch.autograd.grad(conv2d(x, weight, stride=2), (x, weight), g), expected)
    padded = F.conv2d(x, weight, stride=2, padding=1)
    torch.testing.assert_close(conv2d(x, weight, stride=2, padding=1), padded)


@pytest.mark.parametrize("tag", tags("modulated_conv2d"))
def test_modulated_conv2d(tag):
    t = tensors(case("modulated_conv2d"), tag)
    inputs = [t["x"], t["s"], t["w/weight"], t["w/modulation.weight"], t["w/modulation.bias"]]
    x, s, weight, affine, bias = (v.requires_grad_() for v in inputs)
    style = torch.nn.functional.linear(s, affine / affine.shape[1] ** 0.5, bias)
    scale = (weight.shape[2] * weight.shape[3] ** 2) ** -0.5
    y = modulated_conv2d(
        x,
        weight[0] * scale,
        style,
        demodulate=not tag.endswith("nodemod"),
        up=tag.startswith("up"),
        down=tag.startswith("down"),
        fir=t.get("w/blur.kernel"),
    )
    grads = torch.autograd.grad(y, inputs, t["g"])
    names = ["d/x", "d/s", "d/weight", "d/modulation.weight", "d/modulation.bias"]
    got = {"y": y} | dict(zip(names, grads, strict=True))
    assert_golden("modulated_conv2d", {f"{tag}/{k}": v for k, v in got.items()})


@pytest.mark.parametrize("tag", ["plain", "up", "down", "k1"])
def test_modulated_conv2d_second_order(tag):
    t = tensors(case("modulated_conv2d"), tag)
    kwargs = {"up": tag == "up", "down": tag == "down", "fir": t.get("w/blur.kernel")}
    kwargs["fir"] = kwargs["fir"].double() if kwargs["fir"] is not None else None
    inputs = (t["x"][:1, :, :4, :4].double(), t["w/weight"][0].double(), t["s"][:1, :6].double())
    inputs = tuple(v.clone().requires_grad_() for v in inputs)
    assert torch.autograd.gradgradcheck(lambda x, w, s: modulated_conv2d(x, w, s, **kwargs), inputs)


def test_styled_conv_and_to_rgb():
    golden = case("styled_conv_to_rgb")
    layers = {
        "conv": StyledConv(6, 5, 8),
        "conv_up": StyledConv(6, 5, 8, up=True),
        "rgb": ToRGB(6, 8, up=False),
        "rgb_skip": ToRGB(6, 8),
    }
    got = {}
    for tag, layer in layers.items():
        t = tensors(golden, tag)
        weights = {k.removeprefix("w/"): v for k, v in t.items() if k.startswith("w/")}
        layer.load_state_dict(weights)
        extra = [t["noise"]] if "noise" in t else [t["skip"]] if "skip" in t else []
        with torch.no_grad():
            got[f"{tag}/y"] = layer(t["x"], layer.conv.modulation(t["s"]), *extra)
    assert_golden("styled_conv_to_rgb", got)


@pytest.fixture(scope="module")
def generator():
    return fill.fill_module_(Generator(size=64)).eval()


@torch.no_grad()
def test_generator(generator):
    golden_case = "generator_64"
    z, w, w2 = (normal(golden_case, name, 2, 512) for name in ("z", "w", "w2"))
    wplus, trunc = normal(golden_case, "wplus", 2, 10, 512), normal(golden_case, "trunc", 1, 512)
    w_of_z = generator.mapping(z)
    mix = torch.cat([generator.broadcast(w)[:, :5], generator.broadcast(w2)[:, 5:]], 1)
    latent_trunc = generator.broadcast(generator.truncate(w_of_z, 0.6, trunc))
    noise = [normal(golden_case, f"noise_{i}", 1, 1, r, r) for i, r in enumerate(generator.noise_sizes())]
    got = {
        "w_of_z": w_of_z,
        "latent_z": generator.broadcast(w_of_z),
        "latent_mix": mix,
        "latent_trunc": latent_trunc,
        "img_z": generator(generator.broadcast(w_of_z)),
        "img_w": generator(generator.broadcast(w)),
        "img_wplus": generator(wplus),
        "img_mix": generator(mix),
        "img_trunc": generator(latent_trunc),
        "img_noise": generator(wplus, noise=noise),
    }
    styles = generator.styles(wplus)
    assert list(styles) == GENERATOR_STYLES
    got |= {f"style/{name}": value for name, value in styles.items()}
    assert_golden(golden_case, got, whole=True)
    np.testing.assert_array_equal(generator.synthesize_styles(styles), got["img_wplus"])


def test_discriminator():
    net = fill.fill_module_(Discriminator(size=64))
    x = image("discriminator_64", "x", 8, 3, 64, 64)
    with torch.no_grad():
        got = {f"out{b}": net(x[:b]) for b in (2, 4, 8)}
    x4 = x[:4].requires_grad_()
    (got["dx4"],) = torch.autograd.grad(net(x4).sum(), x4)
    assert_golden("discriminator_64", got, whole=True)
