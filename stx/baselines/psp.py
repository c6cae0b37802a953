"""Encoders of the pSp family: pSp (Richardson et al. 2021), e4e (Tov et al. 2021), ReStyle (Alaluf et al. 2021).

All turn feature maps into style tokens by strided convolutions, one stack per token. pSp takes coarse tokens from the
coarsest map of a pyramid, fine ones from the finest; e4e adds every token to the first one; ReStyle takes all tokens
from the last map, sees its own last picture beside the input, and refines (`stx.encoder`). The public code has a class
for each; here they are one network with switches, and their state dicts differ only by the prefix `backbone.`.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx.encoder import Encoder
from stx.files.errors import InputError
from stx.perception.irse import IRSE, tapped, upsample_add
from stx.stylegan2.ops import EqualLinear, PointwiseConv2d, Pool

MIDDLE, FINE = 3, 7  # the first tokens of the middle and of the fine map
TOKEN_SOURCES = ("pyramid", "last map", "W", "W+")  # where tokens come from
POOLED = 7  # side of the pooled map of the W+ head


class MapToStyle(nn.Module):
    """A map to one token: convolutions that halve it to one pixel, then an equalised linear layer."""

    def __init__(self, channels: int, hidden: int, w_dim: int, halvings: int):
        super().__init__()
        widths = [channels] + [hidden] * halvings
        layers = [(nn.Conv2d(i, o, 3, 2, 1), nn.LeakyReLU()) for i, o in zip(widths, widths[1:], strict=False)]
        self.convs = nn.Sequential(*[part for layer in layers for part in layer])
        self.linear = EqualLinear(widths[-1], w_dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b w_dim"]:
        return self.linear(self.convs(x).flatten(1))


class ResNet(nn.Module):
    """A ResNet-34 without max pooling and with a PReLU first, as ReStyle has it for cars."""

    def __init__(self, *, widths: Sequence[int], units: Sequence[int], in_channels: int):
        from torchvision.models.resnet import BasicBlock  # here, since torchvision takes seconds to import

        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        self.body, self.taps, last = nn.Sequential(), [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, units, strict=True)):
            for i in range(count):
                stride = 2 if stage and not i else 1
                shortcut = None
                if stride != 1 or last != width:
                    shortcut = nn.Sequential(PointwiseConv2d(last, width, stride), nn.BatchNorm2d(width))
                self.body.append(BasicBlock(last, width, stride, shortcut))
                last = width
            self.taps.append(len(self.body) - 1)

    def forward(self, image: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """The maps after each stage, fine to coarse: sides h/2, h/4, h/8, ..."""
        return tapped(self.body, self.taps, self.relu(self.bn1(self.conv1(image))))


class PSP(Encoder):
    """Pictures to codes. `latent_avg [num_ws, w_dim]` is added to what the network gives.

    widths, units: of the backbone, the last width being w_dim; input_side: the longer side of the pictures.
    head: "pyramid" (pSp, e4e), "last map" (ReStyle), "W" or "W+" (pSp's ablations). progressive: tokens are offsets
    from the first one (e4e), of which the first `stage` are in use; all of them unless training says otherwise.
    in_channels: 6 for an encoder that refines. resnet: ResNet units in place of IR-SE ones. hidden: channels inside the
    stacks of tokens and before the last layer of the W+ head; None for w_dim, as published.
    """

    def __init__(
        self,
        *,
        num_ws: int,
        widths: Sequence[int],
        units: Sequence[int],
        input_side: int = 256,
        head: str = "pyramid",
        progressive: bool = False,
        in_channels: int = 3,
        resnet: bool = False,
        hidden: int | None = None,
    ):
        w_dim = widths[-1]
        super().__init__(num_ws=num_ws, w_dim=w_dim, in_channels=in_channels)
        if head not in TOKEN_SOURCES:
            raise InputError(f"head {head!r}: expected one of {', '.join(TOKEN_SOURCES)}")
        self.head, self.progressive, self.stage = head, progressive, num_ws
        hidden = hidden or w_dim
        self.backbone = (ResNet if resnet else IRSE)(widths=widths, units=units, in_channels=in_channels)
        halvings = max(int(math.log2(input_side / 2 ** len(widths))), 0)
        if head in ("pyramid", "last map"):
            finer = [0] * num_ws if head == "last map" else [(i >= MIDDLE) + (i >= FINE) for i in range(num_ws)]
            self.styles = nn.ModuleList(MapToStyle(w_dim, hidden, w_dim, halvings + more) for more in finer)
        if head == "pyramid":
            self.latlayer1 = nn.Conv2d(widths[-2], w_dim, 1)
            self.latlayer2 = nn.Conv2d(widths[-3], w_dim, 1)
        elif head == "W":
            self.linear = EqualLinear(w_dim, w_dim)
        elif head == "W+":
            flat = nn.Linear(w_dim * POOLED**2, hidden)
            self.output_layer_2 = nn.Sequential(nn.BatchNorm2d(w_dim), Pool(POOLED), nn.Flatten(), flat)
            self.linear = EqualLinear(hidden, w_dim * num_ws)

    def offsets(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b num_ws w_dim"]:
        """Codes as offsets from the average."""
        maps = self.backbone(image)
        if self.head == "W":
            return self.linear(maps[-1].mean((2, 3)))[:, None].expand(-1, self.num_ws, -1)
        if self.head == "W+":
            return self.linear(self.output_layer_2(maps[-1])).unflatten(1, (self.num_ws, self.w_dim))
        levels = [maps[-1]]
        if self.head == "pyramid":
            levels.append(upsample_add(levels[-1], self.latlayer1(maps[-2])))
            levels.append(upsample_add(levels[-1], self.latlayer2(maps[-3])))
        used = self.styles[: self.stage] if self.progressive else self.styles
        level = [0] * self.num_ws if len(levels) == 1 else [(i >= MIDDLE) + (i >= FINE) for i in range(self.num_ws)]
        tokens = [style(levels[at]) for style, at in zip(used, level, strict=False)]
        if not self.progressive:
            return torch.stack(tokens, 1)
        zero = torch.zeros_like(tokens[0])
        changes = [zero, *tokens[1:], *[zero] * (self.num_ws - len(tokens))]
        return tokens[0][:, None] + torch.stack(changes, 1)
