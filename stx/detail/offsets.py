"""The generator's weights moved for each picture: HyperStyle (Alaluf et al. 2022, 2111.15666), pivotal tuning.

A hypernetwork sees the picture and what is drawn so far, and tells by which factor each kernel of the later layers
changes (equation 4 of the paper: weight times one plus offset), in several passes as ReStyle does.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from stx.detail.kept import Detail, Drawn, Edit, Kept, Picture, Practice, Styles, Ws, codes_of
from stx.perception.irse import IRSE
from stx.stylegan2.networks import Generator

LATER = 4  # layers whose maps have at least a fourth of the picture's side are changed: not pose and shape
POOLED = 2  # side of the map that the heads see
SMALL = 0.05  # scale of new heads' outputs


class Offsets(Detail):
    """Keeps, under the names of the generator's parameters, what is added to each for every picture."""

    def draw(self, generator: Generator, kept: Kept, ws: Ws, edited: Ws | Styles) -> Drawn:
        """The pictures of edited codes, each by its own generator."""
        own, drawn = dict(generator.named_parameters()), []
        for i in range(len(ws)):
            weights = own | {name: own[name] + self.added(own[name], value[i]) for name, value in kept.items()}
            one = codes_of(edited, slice(i, i + 1))
            if isinstance(one, dict):
                one = self._styles(generator, weights, ws[i : i + 1], one)
            drawn.append(functional_call(generator, weights, (one,)))
        return torch.cat(drawn)

    def _styles(self, generator: Generator, weights: dict[str, Tensor], ws: Ws, edited: Styles) -> Styles:
        """What the moved generator makes of codes, changed by what the edit changes in the generator's own."""
        found = {}
        for (name, layer, token), before in zip(generator.style_layers(), generator.styles(ws).values(), strict=True):
            of = f"{name}.conv.modulation."
            moved = {key.removeprefix(of): value for key, value in weights.items() if key.startswith(of)}
            found[name] = functional_call(layer.modulation, moved, (ws[:, token],)) + edited[name] - before
        return found

    def added(self, weight: Tensor, kept: Tensor) -> Tensor:
        """What is added to a parameter."""
        return kept


class HyperStyle(Offsets):
    """Keeps a factor for every kernel (pair of channels) of the later layers.

    side: of the pictures; layers: in and out channels by name of the weight; widths: of IR-SE stages of one unit;
    hidden: what the heads see; rank: of the factors of a layer, whose second half all pictures share, as in the paper's
    shared refinement blocks (Ha et al. 2017, 1609.09106). passes: of refinement.
    """

    def __init__(
        self,
        *,
        side: int,
        layers: Mapping[str, Sequence[int]],
        widths: Sequence[int] = (24, 48, 96, 128),
        hidden: int = 128,
        rank: int = 8,
        passes: int = 2,
    ):
        super().__init__(side=side)
        self.layers, self.passes, self.rank = {name: tuple(size) for name, size in layers.items()}, passes, rank
        self.backbone = IRSE(widths=widths, units=(1,) * len(widths), in_channels=6)
        pool = nn.AdaptiveAvgPool2d(POOLED)
        self.shared = nn.Sequential(pool, nn.Flatten(), nn.Linear(widths[-1] * POOLED**2, hidden), nn.PReLU(hidden))
        self.heads = nn.ModuleList(nn.Linear(hidden, i * rank) for i, _ in self.layers.values())
        self.bases = nn.ParameterList(nn.Parameter(torch.randn(rank, o) / rank**0.5) for _, o in self.layers.values())
        for head in self.heads:
            nn.init.normal_(head.weight, std=SMALL / hidden**0.5)
            nn.init.zeros_(head.bias)

    @classmethod
    def for_generator(cls, generator: Generator, *, side: int, **options) -> "HyperStyle":
        """A new one for a generator's later layers. side: of the pictures."""
        later = {n: c for n, (c, r) in generator.feature_layers().items() if r >= generator.size // LATER}
        convs = {f"{name}.conv.weight": generator.get_parameter(f"{name}.conv.weight") for name in later}
        return cls(side=side, layers={name: [w.shape[2], w.shape[1]] for name, w in convs.items()}, **options)

    def added(self, weight: Float[Tensor, "1 o i k k"], kept: Float[Tensor, "o i"]) -> Float[Tensor, "1 o i k k"]:
        """Weight times its factors."""
        return weight * kept[None, :, :, None, None]

    def factors(
        self, image: Float[Tensor, "b 3 side side"], again: Float[Tensor, "b 3 side side"]
    ) -> dict[str, Tensor]:
        """What one pass adds to the factors. again: the pictures as they are drawn so far."""
        seen = self.shared(self.backbone(torch.cat([image, image - again], 1))[-1])
        found = {}
        for (name, (inputs, _)), head, basis in zip(self.layers.items(), self.heads, self.bases, strict=True):
            found[name] = (head(seen).view(-1, inputs, self.rank) @ basis).transpose(1, 2)
        return found

    def passed(self, generator: Generator, image: Tensor, ws: Tensor) -> list[dict[str, Tensor]]:
        """The factors after each pass; gradients reach one pass only."""
        image, found = self.square(image), []
        for _ in range(self.passes):
            with torch.no_grad():
                again = self.seen(self.draw(generator, found[-1], ws, ws) if found else generator(ws))
            more = self.factors(image, again)
            found.append({name: v + found[-1][name].detach() for name, v in more.items()} if found else more)
        return found

    def keep(self, generator: Generator, image: Picture, ws: Ws) -> Kept:
        """The factors `[b, out, in]` of each layer after all passes, under its weight's name."""
        return self.passed(generator, image, ws)[-1]

    def practice(self, generator: Generator, image: Tensor, ws: Tensor, edit: Edit) -> Practice:
        """To draw the pictures after each pass."""
        return Practice([(image, self.draw(generator, kept, ws, ws)) for kept in self.passed(generator, image, ws)])
