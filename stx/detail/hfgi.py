"""HFGI: what the picture of the codes misses, shown to the generator again (Wang et al. 2022, 2109.06590).

Distortion consultation: the difference between a picture and that of its codes is read into a scale and a shift of a
middle layer's features. Adaptive distortion alignment: before, a network fits the difference to the edited picture;
it learns from differences that were moved, which it has to move back. Public code: Tengfei-Wang/HFGI.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.detail.features import MapReader, middle_layer, starting_at_zero
from stx.detail.kept import Detail, Drawn, Edit, Kept, Picture, Practice, Styles, Ws
from stx.stylegan2.networks import Generator

MOVED = {"degrees": 5.0, "shift": 0.05, "scale": 0.05}  # how far differences are moved at most: shifts in sides
STILL = 0.5  # share of differences that are not moved
ALIGNMENT = 0.1  # weight of the alignment's own loss in the public code


class Alignment(nn.Module):
    """A difference and the picture that it should fit, to the difference as it fits: down three times, and up again.

    Ours gives what is added to the difference, and begins with nothing; the public one gives the difference anew.
    """

    def __init__(self, width: int):
        super().__init__()
        widths = [6, width, 2 * width, 2 * width]
        self.down = nn.ModuleList(_layer(i, o, 2) for i, o in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList([_layer(4 * width, 2 * width), _layer(3 * width, width), _layer(width + 6, width)])
        self.out = starting_at_zero(width, 3)

    def forward(
        self, difference: Float[Tensor, "b 3 h w"], picture: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b 3 h w"]:
        x = torch.cat([difference, picture], 1)
        passed = [x]
        for down in self.down:
            x = down(x)
            passed.append(x)
        x = passed.pop()
        for up in self.up:
            skip = passed.pop()
            x = up(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], 1))
        return difference + self.out(x)


class HFGI(Detail):
    """Keeps the difference between a picture and that of its codes, aligned and consulted anew for every edit.

    side: of the pictures; layer, channels: whose features are scaled and shifted; width, units: of two IR-SE stages
    that read the aligned difference; aligning: channels inside the alignment.
    """

    def __init__(self, *, side: int, layer: str, channels: int, width: int = 32, units: int = 1, aligning: int = 24):
        super().__init__(side=side)
        self.layer = layer
        self.align = Alignment(aligning)
        self.consult = MapReader(in_channels=3, width=width, units=units)
        self.condition = starting_at_zero(width, 2 * channels)

    @classmethod
    def for_generator(cls, generator: Generator, *, side: int, **options) -> "HFGI":
        """A new one for a generator's features. side: of the pictures."""
        layer = middle_layer(generator, side)
        return cls(side=side, layer=layer, channels=generator.feature_layers()[layer][0], **options)

    def keep(self, generator: Generator, image: Picture, ws: Ws) -> Kept:
        """The difference, under the name "difference"."""
        with torch.no_grad():
            return {"difference": self.square(image) - self.seen(generator(ws))}

    def draw(self, generator: Generator, kept: Kept, ws: Ws, edited: Ws | Styles) -> Drawn:
        """The picture of edited codes, the difference fitted to it and consulted."""
        with torch.no_grad():
            fits = self.seen(generator(edited))
        return self._consulted(generator, self.align(kept["difference"], fits), edited)

    def practice(self, generator: Generator, image: Tensor, ws: Tensor, edit: Edit) -> Practice:
        """To move moved differences back, and to draw the pictures from them."""
        difference = self.keep(generator, image, ws)["difference"]
        with torch.no_grad():
            fits = self.seen(generator(ws))
        aligned = self.align(moved(difference), fits)
        own = {"alignment": ALIGNMENT * (aligned - difference).abs().mean()}
        return Practice([(image, self._consulted(generator, aligned, ws))], own)

    def _consulted(self, generator: Generator, aligned: Tensor, ws: Ws | Styles) -> Tensor:
        scale, shift = self.condition(self.consult(aligned)).chunk(2, 1)
        return generator(ws, changes={self.layer: lambda x: x * (1 + scale) + shift})


def moved(picture: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures turned, shifted and scaled, each by random amounts within `MOVED`, but for a share that is `STILL`.

    Zeros come in from outside.
    """
    amounts = 2 * torch.rand(4, len(picture), device=picture.device) - 1
    amounts = amounts * (torch.rand(len(picture), device=picture.device) >= STILL)
    angle = amounts[0] * math.radians(MOVED["degrees"])
    scale, shift = 1 + MOVED["scale"] * amounts[1], 2 * MOVED["shift"] * amounts[2:]
    rows = [scale * angle.cos(), -scale * angle.sin(), shift[0], scale * angle.sin(), scale * angle.cos(), shift[1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(picture.shape), align_corners=False)
    return F.grid_sample(picture, grid, align_corners=False)


def _layer(in_channels: int, channels: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.PReLU(channels))
