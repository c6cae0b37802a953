"""StyleGAN2 generator and discriminator (Karras et al. 2020, arXiv 1912.04958).

Weight names and numbers are those of rosinality's stylegan2-pytorch, so public checkpoints load as they are; the
interface follows NVlabs: `ws` in, picture out. The number of tokens follows from the resolution.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.files.config import Configured
from stx.files.errors import InputError
from stx.stylegan2.ops import (
    EPSILON,
    LEAKY_GAIN,
    LEAKY_SLOPE,
    EqualConv2d,
    EqualLinear,
    FusedLeakyReLU,
    Resample,
    fir_kernel,
    folded_weight,
    modulated_conv2d,
    up_conv2d,
)

Changes = Mapping[str, Callable[[Tensor], Tensor]]  # of features: by styled convolution, its output to another one
Styles = dict[str, Float[Tensor, "b _"]]  # of StyleSpace, by layer
NOISE_MODES = ("random", "const", "none")
MAPPING_LR_MUL = 0.01
ALONE = 256  # pixels from which pictures are drawn one by one when no gradient is wanted: see `StyledConv.folded`
STDDEV_GROUP = 4  # samples whose standard deviation the discriminator sees


def resolutions(size: int) -> list[int]:
    """4, 8, ... size. Raises `ValueError` when `size` is not a power of two of at least 8."""
    if size < 8 or size & (size - 1):
        raise InputError(f"resolution {size} is not a power of two of at least 8")
    return [2**i for i in range(2, size.bit_length())]


class PixelNorm(nn.Module):
    """Divides by the root mean square along axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPSILON)


def mapping_network(dim: int, depth: int) -> nn.Sequential:
    """The MLP from z to w: pixel norm and `depth` layers that learn a hundred times slower."""
    layers = [EqualLinear(dim, dim, lr_mul=MAPPING_LR_MUL, activation=True) for _ in range(depth)]
    return nn.Sequential(PixelNorm(), *layers)


class ConstantInput(nn.Module):
    """The learnt 4x4 start of the synthesis network."""

    def __init__(self, channels: int):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class ModulatedConv2d(nn.Module):
    """`modulated_conv2d` with its affine layer `modulation`, which turns a token w into a style vector s."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, w_dim: int, *, demodulate=True, up=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.modulation = EqualLinear(w_dim, in_channels, bias=1.0)
        self.scale, self.demodulate = 1 / math.sqrt(in_channels * kernel_size**2), demodulate
        if up:
            self.blur = nn.Module()
            self.blur.register_buffer("kernel", fir_kernel(gain=4.0))
        self.up = up

    def forward(self, x: Float[Tensor, "b i h w"], style: Float[Tensor, "b i"]) -> Float[Tensor, "b o out_h out_w"]:
        return modulated_conv2d(
            x,
            self.weight[0] * self.scale,
            style,
            demodulate=self.demodulate,
            up=self.up,
            fir=self.blur.kernel if self.up else None,
        )


class NoiseInjection(nn.Module):
    """The learnt strength of the noise."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, *, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, w_dim, up=up)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(out_channels)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        if len(x) == 1 and not torch.is_grad_enabled():
            return self.folded(x, style, noise)
        x = self.conv(x, style)
        if noise is not None:
            x = x + self.noise.weight * noise
        return self.activate(x)

    def folded(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        """The same for one picture, all factors folded into the weight: two passes over the output instead of seven."""
        conv, bias = self.conv, self.activate.bias * LEAKY_GAIN
        weight = folded_weight(conv.weight[0] * conv.scale, style[0], gain=LEAKY_GAIN)
        x = up_conv2d(x, weight, conv.blur.kernel, bias) if conv.up else F.conv2d(x, weight, bias, padding=1)
        if noise is not None:
            x.add_(noise * (self.noise.weight * LEAKY_GAIN))
        return F.leaky_relu_(x, LEAKY_SLOPE)


class ToRGB(nn.Module):
    """Features to a picture, added to the upsampled picture of the previous resolution."""

    def __init__(self, in_channels: int, w_dim: int, *, up: bool = True):
        super().__init__()
        if up:
            self.upsample = Resample(up=2, pad=(2, 1))
        self.conv = ModulatedConv2d(in_channels, 3, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:
        if len(x) == 1 and not torch.is_grad_enabled():
            weight = folded_weight(self.conv.weight[0] * self.conv.scale, style[0], demodulate=False)
            rgb = F.conv2d(x, weight, self.bias.flatten())
        else:
            rgb = self.conv(x, style) + self.bias
        return rgb if skip is None else rgb + self.upsample(skip)


class Generator(Configured, nn.Module):
    """z -> w -> ws -> styles -> picture.

    size: resolution. channel_base, channel_max: channels at resolution r are min(channel_base / r, channel_max).
    `ws [b, num_ws, w_dim]` has one token per style layer; a style layer per convolution, and the last token of each
    resolution also feeds the first convolution of the next one's ToRGB. Buffer `latent_avg [w_dim]`: the average w.
    """

    def __init__(
        self, *, size: int, z_dim: int = 512, n_mlp: int = 8, channel_base: int = 32768, channel_max: int = 512
    ):
        super().__init__()
        sizes = resolutions(size)
        channels = [max(1, min(channel_base // r, channel_max)) for r in sizes]
        self.size, self.w_dim, self.num_ws = size, z_dim, 2 * len(sizes)
        self.style = mapping_network(z_dim, n_mlp)
        self.input = ConstantInput(channels[0])
        self.conv1 = StyledConv(channels[0], channels[0], z_dim)
        self.to_rgb1 = ToRGB(channels[0], z_dim, up=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for i, o in pairwise(channels):
            self.convs += [StyledConv(i, o, z_dim, up=True), StyledConv(o, o, z_dim)]
            self.to_rgbs.append(ToRGB(o, z_dim))
        for layer, r in enumerate(self.noise_sizes()):
            self.noises.register_buffer(f"noise_{layer}", torch.randn(1, 1, r, r))
        self.register_buffer("latent_avg", torch.zeros(z_dim))  # zeros: not known

    def noise_sizes(self) -> list[int]:
        """The side of each noise map: 4, 8, 8, 16, 16, ..."""
        return [4] + [r for r in resolutions(self.size)[1:] for _ in range(2)]

    def mapping(self, z: Float[Tensor, "b z_dim"]) -> Float[Tensor, "b w_dim"]:
        """z to w: pixel norm and the MLP."""
        return self.style(z)

    def broadcast(self, w: Float[Tensor, "b w_dim"]) -> Float[Tensor, "b num_ws w_dim"]:
        """One w for every token: W into W+."""
        return w[:, None].repeat(1, self.num_ws, 1)  # a view would change all tokens where one is changed

    @staticmethod
    def truncate(w: Tensor, psi: float, w_avg: Tensor) -> Tensor:
        """`w_avg + psi (w - w_avg)`, for w or ws."""
        return w_avg + psi * (w - w_avg)

    @torch.no_grad()
    def mean_w(self, samples: int = 10_000, seed: int = 0) -> Float[Tensor, "w_dim"]:
        """The average w, by sampling. The same for the same seed."""
        like = self.style[1].weight
        z = torch.randn(
            samples, self.w_dim, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32, device="cpu"
        )
        return self.mapping(z.to(like)).mean(0)

    def w_avg(self) -> Float[Tensor, "w_dim"]:
        """The average w: `latent_avg` as the checkpoint has it, else by sampling."""
        return self.latent_avg.clone() if self.latent_avg.any() else self.mean_w()

    def style_layers(self) -> list[tuple[str, ModulatedConv2d, int]]:
        """(name, layer, its token) in the order of use: conv1, to_rgb1, convs.0, convs.1, to_rgbs.0, ..."""
        layers = [("conv1", self.conv1.conv, 0), ("to_rgb1", self.to_rgb1.conv, 1)]
        for i, rgb in enumerate(self.to_rgbs):
            for j in (2 * i, 2 * i + 1):
                layers.append((f"convs.{j}", self.convs[j].conv, j + 1))
            layers.append((f"to_rgbs.{i}", rgb.conv, 2 * i + 3))
        return layers

    def styles(self, ws: Float[Tensor, "b num_ws w_dim"] | Styles) -> Styles:
        """W+ to StyleSpace: the output of each affine layer, in the order of use (Wu et al. 2021).

        Vectors of StyleSpace are given back as they are.
        """
        if isinstance(ws, dict):
            return ws
        self.check_ws(ws)
        return {name: layer.modulation(ws[:, token]) for name, layer, token in self.style_layers()}

    def check_ws(self, ws: Tensor) -> None:
        """Raises `ValueError` when codes are not of this generator's shape."""
        if ws.ndim != 3 or tuple(ws.shape[1:]) != (self.num_ws, self.w_dim):
            raise InputError(
                f"codes of shape {tuple(ws.shape)} do not fit: this {self.size}-px generator takes "
                f"[batch, {self.num_ws}, {self.w_dim}]"
            )

    def forward(
        self,
        ws: Float[Tensor, "b num_ws w_dim"] | Styles,
        *,
        noise: str | Sequence[Tensor] = "const",
        changes: Changes | None = None,
    ) -> Float[Tensor, "b 3 size size"]:
        """The picture of W+ codes, or of StyleSpace vectors as `styles` gives them, in [-1, 1] up to overshoot.

        noise: "random" (fresh), "const" (the checkpoint's own maps), "none", or one tensor `[b or 1, 1, r, r]` per
        layer. changes: of the features that `features` gives, by the same names. Raises `ValueError` for codes of
        another shape, an unknown noise mode or an unknown layer.
        """
        styles = self.styles(ws)
        if changes is None:
            return self.synthesize_styles(styles, noise=noise)
        if unknown := changes.keys() - self.feature_layers().keys():
            raise InputError(f"no layer {min(unknown)!r}: expected one of {', '.join(self.feature_layers())}")
        return self._draw(styles, self._noise_maps(noise, len(styles["conv1"])), changes)

    def feature_layers(self) -> dict[str, tuple[int, int]]:
        """Channels and side of the output of every styled convolution, in the order of use: conv1, convs.0, ..."""
        names = ["conv1", *(f"convs.{j}" for j in range(len(self.convs)))]
        convs = [self.conv1, *self.convs]
        return {n: (c.conv.weight.shape[1], r) for n, c, r in zip(names, convs, self.noise_sizes(), strict=True)}

    def synthesize_styles(
        self, styles: Styles, *, noise: str | Sequence[Tensor] = "const"
    ) -> Float[Tensor, "b 3 size size"]:
        """The picture of StyleSpace vectors as `styles` gives them."""
        batch = len(styles["conv1"])
        maps = self._noise_maps(noise, batch)
        if batch > 1 and self.size >= ALONE and not torch.is_grad_enabled():
            parts = []
            for i in range(batch):
                own = [m if m is None or len(m) == 1 else m[i : i + 1] for m in maps]
                parts.append(self._draw({name: s[i : i + 1] for name, s in styles.items()}, own))
            return torch.cat(parts)
        return self._draw(styles, maps)

    def features(
        self, ws: Float[Tensor, "b num_ws w_dim"] | Styles, *, last: str | None = None
    ) -> dict[str, Float[Tensor, "b channels r r"]]:
        """The output of every styled convolution up to `last` (conv1, convs.0, ...), with the checkpoint's noise.

        ws: as `forward` takes them.
        """
        styles = self.styles(ws)
        batch = len(styles["conv1"])
        maps = self._noise_maps("const", batch)
        x = self.conv1(self.input.input.expand(batch, -1, -1, -1), styles["conv1"], maps[0])
        found = {"conv1": x}
        for j, conv in enumerate(self.convs):
            if last in found:
                break
            x = conv(x, styles[f"convs.{j}"], maps[j + 1])
            found[f"convs.{j}"] = x
        return found

    def _draw(self, styles: dict[str, Tensor], maps: Sequence[Tensor | None], changes: Changes | None = None) -> Tensor:
        batch, changes = len(styles["conv1"]), changes or {}
        x = self.input.input.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.conv1(x, styles["conv1"], maps[0])
        x = changes["conv1"](x) if "conv1" in changes else x
        rgb = self.to_rgb1(x, styles["to_rgb1"])
        for i, to_rgb in enumerate(self.to_rgbs):
            for j in (2 * i, 2 * i + 1):
                x = self.convs[j](x, styles[f"convs.{j}"], maps[j + 1])
                x = changes[f"convs.{j}"](x) if f"convs.{j}" in changes else x
            rgb = to_rgb(x, styles[f"to_rgbs.{i}"], rgb)
        return rgb

    def _noise_maps(self, noise: str | Sequence[Tensor], batch: int) -> Sequence[Tensor | None]:
        sizes = self.noise_sizes()
        if isinstance(noise, list | tuple):
            if len(noise) != len(sizes):
                raise InputError(f"{len(noise)} noise maps given, this generator has {len(sizes)} layers with noise")
            return noise
        if noise not in NOISE_MODES:
            raise InputError(f"unknown noise mode {noise!r}: expected one of {', '.join(NOISE_MODES)}")
        if noise == "none":
            return [None] * len(sizes)
        if noise == "const":
            return [getattr(self.noises, f"noise_{i}") for i in range(len(sizes))]
        like = self.input.input
        return [torch.randn(batch, 1, r, r, device=like.device, dtype=like.dtype) for r in sizes]


class ConvLayer(nn.Sequential):
    """Equalised convolution, halving the resolution when `down`, with bias and activation unless switched off."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, down=False, activate=True):
        layers = []
        if down:
            slack = 2 + kernel_size - 1
            layers += [Resample(pad=((slack + 1) // 2, slack // 2))]
        stride, padding = (2, 0) if down else (1, kernel_size // 2)
        layers += [EqualConv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)]
        layers += [FusedLeakyReLU(out_channels)] if activate else []
        super().__init__(*layers)


class ResBlock(nn.Module):
    """Two convolutions, the second halving the resolution, beside a linear skip."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3)
        self.conv2 = ConvLayer(in_channels, out_channels, 3, down=True)
        self.skip = ConvLayer(in_channels, out_channels, 1, down=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Discriminator(Configured, nn.Module):
    """Residual discriminator with the minibatch standard deviation as an extra channel.

    group: samples whose standard deviation is taken (NVIDIA's configurations have other ones; None: the whole batch);
    the batch must be smaller or a multiple of it.
    """

    def __init__(
        self, *, size: int, channel_base: int = 32768, channel_max: int = 512, group: int | None = STDDEV_GROUP
    ):
        super().__init__()
        channels = [max(1, min(channel_base // r, channel_max)) for r in reversed(resolutions(size))]
        blocks = [ResBlock(i, o) for i, o in pairwise(channels)]
        self.convs = nn.Sequential(ConvLayer(3, channels[0], 1), *blocks)
        last = channels[-1]
        self.final_conv = ConvLayer(last + 1, last, 3)
        self.final_linear = nn.Sequential(EqualLinear(last * 16, last, activation=True), EqualLinear(last, 1))
        self.size, self.group = size, group

    def views(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """What is scored: the picture itself. Raises `ValueError` for another size."""
        if tuple(image.shape[1:]) != (3, self.size, self.size):
            raise InputError(f"pictures of shape {tuple(image.shape)}: expected [batch, 3, {self.size}, {self.size}]")
        return [image]

    def score(self, views: list[Tensor]) -> Float[Tensor, "b 1"]:
        """Logits, large for what looks real."""
        x = self.convs(views[0].contiguous(memory_format=torch.channels_last))
        x = torch.cat([x, minibatch_stddev(x, self.group)], 1)
        return self.final_linear(self.final_conv(x).flatten(1))

    def forward(self, image: Float[Tensor, "b 3 size size"]) -> Float[Tensor, "b 1"]:
        return self.score(self.views(image))


def minibatch_stddev(x: Float[Tensor, "b c h w"], most: int | None = STDDEV_GROUP) -> Float[Tensor, "b 1 h w"]:
    """The standard deviation over groups of at most so many samples, averaged over features, as a constant map."""
    b, c, h, w = x.shape
    group = min(b, most or b)
    if b % group:
        raise InputError(f"a batch of {b}: expected fewer than {most} or a multiple of it")
    std = (x.reshape(group, b // group, c, h, w).var(0, unbiased=False) + EPSILON).sqrt()
    return std.mean((1, 2, 3)).repeat(group)[:, None, None, None].expand(b, 1, h, w)
