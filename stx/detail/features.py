"""Features of a middle layer kept beside the codes, and an editor that says what of them lives on after an edit.

FeatureStyle (Yao et al. 2022, 2202.02183) reads a feature map F from the picture; an edit moves it by the difference
that the edit makes to the generator's own, F + G_k(w') - G_k(w). Here F - G_k(w) is read, which starts at nothing. In
StyleFeatureEditor (Bobkov et al. 2024, 2406.10601) such a reader is phase one; in phase two a network that sees the
difference learns from pairs, a picture and its edit, what F becomes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx.detail.kept import Detail, Drawn, Edit, Kept, Picture, Practice, Styles, Ws
from stx.files.errors import InputError
from stx.perception.irse import IRSE, IRSEUnit, upsample_add
from stx.stylegan2.networks import Generator

FADES = 1.5  # what the editor begins with: where an edit changes features by their own size, a sixth is left of F
CAUTION = 4.0  # how much more is faded after training; 2 and 4 were tried on validation pictures, whose edits need it
MOST_DISTURBED = 0.4  # of the way to another code, by which codes of practice pictures are wrong at most


def middle_layer(generator: Generator, side: int) -> str:
    """The last layer at half the pictures' side, where F is read: half of what pictures have in each direction."""
    return [name for name, (_, r) in generator.feature_layers().items() if r <= side // 2][-1]


class MapReader(nn.Module):
    """Pictures to a map of half their side: two IR-SE stages, the second enlarged and added to the first."""

    def __init__(self, *, in_channels: int, width: int, units: int):
        super().__init__()
        self.backbone = IRSE(widths=(width, 2 * width), units=(units, units), in_channels=in_channels)
        self.lateral = nn.Conv2d(2 * width, width, 1)

    def forward(self, given: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width h2 w2"]:
        fine, coarse = self.backbone(given)
        return upsample_add(self.lateral(coarse), fine)


def starting_at_zero(in_channels: int, channels: int) -> nn.Conv2d:
    """A convolution that gives zeros before training."""
    made = nn.Conv2d(in_channels, channels, 3, padding=1)
    nn.init.zeros_(made.weight)
    nn.init.zeros_(made.bias)
    return made


class FeatureEncoder(Detail):
    """Keeps F - G_k(w), read from the picture, its difference from the picture of its codes, and G_k(w).

    side: of the pictures; layer, channels: k, as in `Generator.feature_layers`, whose map has half the side; width,
    units: of the first of two IR-SE stages.
    """

    def __init__(self, *, side: int, layer: str, channels: int, width: int = 32, units: int = 2):
        super().__init__(side=side)
        self.layer = layer
        self.reader = MapReader(in_channels=6, width=width, units=units)
        self.mix = nn.Sequential(nn.Conv2d(width + channels, channels, 3, padding=1), nn.PReLU(channels))
        self.out = starting_at_zero(channels, channels)

    @classmethod
    def for_generator(cls, generator: Generator, *, side: int, **options) -> "FeatureEncoder":
        """A new one for a generator's features. side: of the pictures; raises `InputError` where no layer has half."""
        layer = middle_layer(generator, side)
        channels, found = generator.feature_layers()[layer]
        if 2 * found != side:
            raise InputError(f"pictures of {side} pixels: this generator has no layer of {side // 2}")
        return cls(side=side, layer=layer, channels=channels, **options)

    def own(self, generator: Generator, ws: Ws | Styles) -> Float[Tensor, "b channels r r"]:
        """G_k(w): the generator's own features."""
        with torch.no_grad():
            return generator.features(ws, last=self.layer)[self.layer]

    def keep(self, generator: Generator, image: Picture, ws: Ws) -> Kept:
        """F - G_k(w), under the name "features"."""
        image = self.square(image)
        with torch.no_grad():
            again = self.seen(generator(ws))
        read = self.reader(torch.cat([image, image - again], 1))
        return {"features": self.out(self.mix(torch.cat([read, self.own(generator, ws)], 1)))}

    def draw(self, generator: Generator, kept: Kept, ws: Ws, edited: Ws | Styles) -> Drawn:
        """The picture of F + G_k(w') - G_k(w)."""
        return generator(edited, changes={self.layer: lambda x: x + kept["features"]})


class FeatureEditor(FeatureEncoder):
    """What is kept is faded and changed where the edit changes the generator's features, and stays elsewhere.

    The published editor sees F and the difference, and has to learn that F stays where there is no edit; here both of
    its outputs are multiplied by how much the features around a place changed, so that F stays exactly.
    editor_width: inside the editor.
    """

    def __init__(
        self, *, side: int, layer: str, channels: int, width: int = 32, units: int = 2, editor_width: int = 32
    ):
        super().__init__(side=side, layer=layer, channels=channels, width=width, units=units)
        self.editor = nn.Sequential(
            nn.Conv2d(3 * channels, editor_width, 1), IRSEUnit(editor_width, editor_width, 1), nn.PReLU(editor_width)
        )
        self.decide = starting_at_zero(editor_width, 2 * channels)
        nn.init.constant_(self.decide.bias[:channels], FADES)

    def draw(self, generator: Generator, kept: Kept, ws: Ws, edited: Ws | Styles) -> Drawn:
        """The picture of G_k(w') and what of F - G_k(w) the editor leaves."""
        before, after = self.own(generator, ws), self.own(generator, edited)
        change = after - before
        local = nn.functional.avg_pool2d(change.square().mean(1, keepdim=True), 5, 1, 2)
        local = (local / (before.square().mean((1, 2, 3), keepdim=True) + 1e-6)).sqrt()
        fade, new = self.decide(self.editor(torch.cat([kept["features"], change, before], 1))).chunk(2, 1)
        fade = (1.0 if self.training else CAUTION) * nn.functional.softplus(fade)
        left = kept["features"] * torch.exp(-local * fade) + local * new
        return generator(edited, changes={self.layer: lambda x: x + left})

    def practice(self, generator: Generator, image: Tensor, ws: Tensor, edit: Edit) -> Practice:
        """Phase two: pictures of codes, inverted from wrong codes, should give pictures of edited codes.

        That codes are made wrong is ours: else they would lose nothing. The reader stays as phase one left it.
        """
        with torch.no_grad():
            there = self.seen(generator(ws))
            change = edit(ws) - ws
            wrong = disturbed(ws)
            self.reader.eval()
            kept = self.keep(generator, there, wrong)
            truth = self.seen(generator(ws + change))
        return Practice([(truth, self.draw(generator, kept, wrong, wrong + change))])

    def trained(self) -> list[nn.Parameter]:
        """Of phase two."""
        return [*self.editor.parameters(), *self.decide.parameters()]


def disturbed(ws: Float[Tensor, "b num_ws w_dim"]) -> Float[Tensor, "b num_ws w_dim"]:
    """Codes moved towards those of other pictures of the batch, half of the tokens, each by a random share."""
    share = MOST_DISTURBED * torch.rand(len(ws), ws.shape[1], 1, device=ws.device)
    chosen = torch.rand(len(ws), ws.shape[1], 1, device=ws.device) < 0.5
    return ws + chosen * share * (ws.roll(1, 0) - ws)
