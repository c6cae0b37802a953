"""The IR-SE backbone: improved residual units with squeeze-and-excitation, as in ArcFace (arXiv 1801.07698).

Names of weights as in the public IR-SE50 (InsightFace_Pytorch, pSp); depth and width are arguments.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.files.errors import InputError
from stx.stylegan2.ops import PointwiseConv2d

IR_SE50 = {"widths": (64, 128, 256, 512), "units": (3, 4, 14, 3)}
SE_REDUCTION = 16


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their averages."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // SE_REDUCTION, 1)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu())
        return x * gate.sigmoid()


class IRSEUnit(nn.Module):
    """Norm, convolution, PReLU, (strided) convolution, norm, gate; beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        if in_channels == channels:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            shortcut = PointwiseConv2d(in_channels, channels, stride)
            self.shortcut_layer = nn.Sequential(shortcut, nn.BatchNorm2d(channels))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            SqueezeExcite(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IRSE(nn.Module):
    """Input layer and stages of units; each stage halves the resolution.

    widths, units: channels and number of units of each stage.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = IR_SE50["widths"],
        units: Sequence[int] = IR_SE50["units"],
        in_channels: int = 3,
    ):
        super().__init__()
        if len(widths) != len(units) or min(units) < 1:
            raise InputError(f"one width and at least one unit for each stage, got {widths} and {units}")
        first = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.input_layer = nn.Sequential(first, nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0]))
        self.body, self.taps, last = nn.Sequential(), [], widths[0]
        for width, count in zip(widths, units, strict=True):
            for i in range(count):
                self.body.append(IRSEUnit(last, width, 2 if i == 0 else 1))
                last = width
            self.taps.append(len(self.body) - 1)

    def forward(self, image: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """The maps after each stage, fine to coarse: sides h/2, h/4, h/8, ..."""
        return tapped(self.body, self.taps, self.input_layer(image.contiguous(memory_format=torch.channels_last)))


def tapped(units: nn.Sequential, taps: Sequence[int], x: Tensor) -> list[Tensor]:
    """What comes out of the units numbered `taps` when all of them take `x` in turn."""
    maps = []
    for i, unit in enumerate(units):
        x = unit(x)
        if i in taps:
            maps.append(x)
    return maps


def upsample_add(coarse: Float[Tensor, "b c h w"], fine: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b c h2 w2"]:
    """A step of the feature pyramids: the coarse map enlarged to the fine one, corners aligned, and added."""
    return F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=True) + fine
