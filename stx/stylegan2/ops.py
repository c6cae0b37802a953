"""The three operations of StyleGAN2: FIR resampling, leaky ReLU with bias and gain, modulated convolution.

Karras et al. 2020 (arXiv 1912.04958). Numerically those of rosinality's stylegan2-pytorch, in plain PyTorch: nothing
is compiled, and first and second derivatives come from autograd on every device.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.files.errors import InputError

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2)
EPSILON = 1e-8  # of demodulation and pixel norm


def fir_kernel(taps: tuple[float, ...] = (1, 3, 3, 1), gain: float = 1.0) -> Float[Tensor, "k k"]:
    """The outer product of `taps`, normalised to the sum `gain`."""
    one = torch.tensor(taps, dtype=torch.float32)
    return torch.outer(one, one) * (gain / one.sum() ** 2)


def pool(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c out_h out_w"]:
    """`F.adaptive_avg_pool2d` on every device: that of MPS takes only sizes of which one divides the other."""
    if x.device.type == "mps":
        return _by_matrices(F.adaptive_avg_pool2d, x, size)
    return F.adaptive_avg_pool2d(x, size)


def resize(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c out_h out_w"]:
    """Bilinear with antialiasing, with a gradient on every device: that of MPS has none."""

    def bilinear(image: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(image, size, mode="bilinear", antialias=True)

    return _by_matrices(bilinear, x, size) if x.device.type == "mps" else bilinear(x, size)


def _by_matrices(operation: Callable[..., Tensor], x: Tensor, size: tuple[int, int]) -> Tensor:
    """A linear operation on rows and columns as the two matrices that it is, read off the identity on the CPU."""
    rows, columns = (operation(torch.eye(n)[None, None], (m, n))[0, 0] for n, m in zip(x.shape[2:], size, strict=True))
    return rows.to(x) @ x @ columns.T.to(x)


def upfirdn2d(
    x: Float[Tensor, "b c h w"],
    kernel: Float[Tensor, "kh kw"],
    *,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    bias: Float[Tensor, "c"] | None = None,
) -> Float[Tensor, "b c out_h out_w"]:
    """Upsample with zeros, pad, filter, keep every `down`-th sample, add `bias`.

    up, down: factors for (x, y). pad: (left, right, top, bottom) of the upsampled picture; negative numbers crop.
    The filter is a true convolution (the kernel is flipped). Raises `ValueError` when nothing would be left.
    """
    b, c, h, w = x.shape
    (ux, uy), (kh, kw) = up, kernel.shape
    width, height = w * ux + pad[0] + pad[1] - kw + 1, h * uy + pad[2] + pad[3] - kh + 1
    if width < 1 or height < 1:
        raise InputError(f"a {kh}x{kw} filter on {h}x{w} pixels, up {up}, pad {pad}, leaves nothing")
    if up != (1, 1):
        zeros = x.new_zeros(b, c, h, uy, w, ux)
        zeros[:, :, :, 0, :, 0] = x
        x = zeros.reshape(b, c, h * uy, w * ux)
    even = pad[0] == pad[1] >= 0 and pad[2] == pad[3] >= 0  # then the convolution pads by itself, without a copy
    x = x if even else F.pad(x, pad)
    weight = kernel.to(x.dtype).flip(0, 1).expand(c, 1, kh, kw)
    padding = (pad[2], pad[0]) if even else 0
    return F.conv2d(x, weight, bias, stride=(down[1], down[0]), padding=padding, groups=c)


def fused_leaky_relu(x: Tensor, bias: Tensor | None = None, *, slope: float = LEAKY_SLOPE, gain: float = LEAKY_GAIN):
    """`leaky_relu(x + bias, slope) * gain`, the bias along axis 1 of `x` (`[b, c, ...]`)."""
    if bias is not None:
        x = x + bias.reshape(-1, *[1] * (x.ndim - 2))
    return F.leaky_relu(x, slope) * gain


def conv2d(
    x: Float[Tensor, "b i h w"], weight: Float[Tensor, "o i k k"], *, stride: int = 1, padding: int = 0
) -> Float[Tensor, "b o out_h out_w"]:
    """`F.conv2d`, with the pixels that a strided 1x1 convolution sees chosen before it.

    The strided 1x1 convolution of oneDNN writes past its workspace in the backward pass when a channels-last map has
    fewer than 8 channels on AVX2 (uxlfoundation/oneDNN issue 6035): training crashed, or gave other numbers each time.
    """
    if weight.shape[-1] == 1 and not padding:
        x, stride = x[:, :, ::stride, ::stride], 1
    return F.conv2d(x, weight, stride=stride, padding=padding)


def modulated_conv2d(
    x: Float[Tensor, "b i h w"],
    weight: Float[Tensor, "o i k k"],
    style: Float[Tensor, "b i"],
    *,
    demodulate: bool = True,
    up: bool = False,
    down: bool = False,
    fir: Float[Tensor, "f f"] | None = None,
) -> Float[Tensor, "b o out_h out_w"]:
    """Convolution whose input channels are scaled per sample, the output normalised to unit variance.

    The activations are scaled instead of the weights, so that one convolution serves the whole batch: the same numbers,
    without a weight per sample. weight: already equalised. fir: low-pass filter, needed when `up` or `down`
    (resolution times two, or halved). Source: arXiv 1912.04958, section 2.2.
    """
    k = weight.shape[-1]
    x = x * style[:, :, None, None]
    if up:
        x = up_conv2d(x, weight, fir)
    elif down:
        slack = fir.shape[0] - 2 + (k - 1)
        x = conv2d(upfirdn2d(x, fir, pad=((slack + 1) // 2, slack // 2) * 2), weight, stride=2)
    else:
        x = F.conv2d(x, weight, padding=k // 2)
    if demodulate:
        power = weight.square().sum((2, 3))  # [o, i]
        x = x * torch.rsqrt(style.square() @ power.T + EPSILON)[:, :, None, None]
    return x


def up_conv2d(
    x: Float[Tensor, "b i h w"],
    weight: Float[Tensor, "o i k k"],
    fir: Float[Tensor, "f f"],
    bias: Float[Tensor, "o"] | None = None,
) -> Float[Tensor, "b o out_h out_w"]:
    """Transposed convolution to twice the resolution, then the low-pass filter, then the bias."""
    slack = fir.shape[0] - 2 - (weight.shape[-1] - 1)
    x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return upfirdn2d(x, fir, pad=((slack + 1) // 2 + 1, slack // 2 + 1) * 2, bias=bias)


def folded_weight(
    weight: Float[Tensor, "o i k k"], style: Float[Tensor, "i"], *, demodulate: bool = True, gain: float = 1.0
) -> Float[Tensor, "o i k k"]:
    """The weight that makes a plain convolution of `modulated_conv2d` for one picture, times `gain`."""
    weight = weight * style[:, None, None]
    if demodulate:
        gain = gain * torch.rsqrt(weight.square().sum((1, 2, 3)) + EPSILON)[:, None, None, None]
    return weight * gain


class Pool(nn.Module):
    """`pool` to a square, as a layer."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c side side"]:
        return pool(x, (self.side, self.side))


class EqualLinear(nn.Module):
    """A linear layer with an equalised learning rate: unit-variance weights, scaled at run time.

    `weight [out, in]` and `bias [out]` are stored divided by `lr_mul`, as in public checkpoints.
    """

    def __init__(self, in_dim: int, out_dim: int, *, bias: float = 0.0, lr_mul: float = 1.0, activation: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_dim,), float(bias)))
        self.scale, self.lr_mul, self.activation = lr_mul / math.sqrt(in_dim), lr_mul, activation

    def forward(self, x: Float[Tensor, "b in_dim"]) -> Float[Tensor, "b out_dim"]:
        if self.activation:
            return fused_leaky_relu(F.linear(x, self.weight * self.scale), self.bias * self.lr_mul)
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, lr_mul={self.lr_mul}"


class EqualConv2d(nn.Module):
    """A convolution without bias and with an equalised learning rate."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.scale, self.stride, self.padding = 1 / math.sqrt(in_channels * kernel_size**2), stride, padding

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o out_h out_w"]:
        return conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution without bias, of every `stride`-th pixel."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o out_h out_w"]:
        return conv2d(x, self.weight, stride=self.stride[0])


class FusedLeakyReLU(nn.Module):
    """`fused_leaky_relu` with a learnable bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return fused_leaky_relu(x, self.bias)


class Resample(nn.Module):
    """`upfirdn2d` with the [1,3,3,1] filter kept as the buffer `kernel`, as public checkpoints have it."""

    def __init__(self, *, up: int = 1, pad: tuple[int, int]):
        super().__init__()
        self.register_buffer("kernel", fir_kernel(gain=up**2))
        self.up, self.pad = (up, up), pad * 2

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c out_h out_w"]:
        return upfirdn2d(x, self.kernel, up=self.up, pad=self.pad)
