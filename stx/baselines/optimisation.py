"""Inversion by optimisation: in W or W+ (StyleGAN2's projector, Image2StyleGAN), in the domain (IDInvert), PTI.

Karras et al. 2020 (1912.04958, appendix D), Abdal et al. 2019 (1904.03189), Zhu et al. 2020 (2004.00049), Roich et al.
2021 (2106.05744). The loss is the encoders' own (`stx.inversion.InversionLoss`), so that only the search differs.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.files.errors import InputError
from stx.inversion import InversionLoss
from stx.runtime import plainly, progress
from stx.stylegan2.networks import Generator

SPACES = ("w", "w+")
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the run in which the rate rises and falls, as in StyleGAN2's projector
NOISE_UNTIL = 0.75  # share of the run at which the noise on the code has faded out
NOISE_WEIGHT = 1e5  # of the regulariser of noise maps, in StyleGAN2's projector
SMALLEST_POOLED = 8  # side of noise maps of which no smaller version is regularised


@dataclass
class Inverted:
    """What was found. ws: codes; image: their pictures, `[b, 3, h, w]` as the domain views them.

    losses: mean loss before each step; snapshots: pictures after some steps, for curves; noise: optimised maps;
    generators: one per picture where the generator was tuned.
    """

    ws: Float[Tensor, "b num_ws w_dim"]
    image: Float[Tensor, "b 3 h w"]
    losses: list[float] = field(default_factory=list)
    snapshots: dict[int, Float[Tensor, "b 3 h w"]] = field(default_factory=dict)
    noise: list[Tensor] | None = None
    generators: list[Generator] = field(default_factory=list)


@plainly
def project(
    generator: Generator,
    loss: InversionLoss,
    image: Float[Tensor, "b 3 h w"],
    *,
    space: str = "w+",
    start: Float[Tensor, "b num_ws w_dim"] | None = None,
    steps: int = 500,
    lr: float = 0.1,
    code_noise: float = 0.05,
    maps: bool = False,
    encoder: nn.Module | None = None,
    domain_weight: float = 2.0,
    view: Callable[[Tensor], Tensor] = lambda image: image,
    snapshots: tuple[int, ...] = (),
    seed: int = 0,
) -> Inverted:
    """The codes whose pictures come nearest to `image`, each picture for itself.

    space: "w", one vector for all tokens, or "w+". start: codes to begin with (default: the average). code_noise: of
    the noise on codes, in their spread, fading out. maps: also optimise the noise maps, kept free of signal. encoder:
    one whose reading of the drawn picture should stay the code (IDInvert), with `domain_weight`.
    Raises `ValueError` for an unknown space.
    """
    if space not in SPACES:
        raise InputError(f"unknown space {space!r}: expected one of {', '.join(SPACES)}")
    random = torch.Generator().manual_seed(seed)
    begin = generator.w_avg().expand(len(image), generator.num_ws, -1) if start is None else start
    code = (begin.mean(1, keepdim=True) if space == "w" else begin).detach().clone().requires_grad_()
    noise = _noise_maps(generator, len(image), random) if maps else None
    optimizer = torch.optim.Adam([code, *(noise or [])], lr=lr, betas=(0.9, 0.999))
    spread = code_noise * _spread(generator) if code_noise else 0.0
    losses, taken = [], {}

    def draw(ws: Tensor) -> Tensor:
        return view(generator(ws, noise=noise or "const"))

    for step in progress(range(steps), desc=f"optimising {space}", unit="step"):
        optimizer.param_groups[0]["lr"] = lr * _ramp(step / steps)
        fade = max(1 - step / steps / NOISE_UNTIL, 0) ** 2
        ws = code.expand(-1, generator.num_ws, -1)
        if spread and fade:
            ws = ws + spread * fade * torch.randn(code.shape, generator=random).to(code)
        drawn = draw(ws)
        parts = loss.parts(image, drawn)
        each = sum(loss.weights[name] * value for name, value in parts.items())
        total = each.sum()
        if encoder is not None:
            total = total + domain_weight * (encoder(drawn) - ws).square().mean((1, 2)).sum()
        if noise:
            total = total + NOISE_WEIGHT * sum(map(noise_correlation, noise))
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        losses.append(each.mean().item())
        if noise:
            _normalise(noise)
        if step + 1 in snapshots:
            with torch.no_grad():
                taken[step + 1] = draw(code.detach().expand(-1, generator.num_ws, -1)).clamp(-1, 1)
    with torch.no_grad():
        ws = code.detach().expand(-1, generator.num_ws, -1).contiguous()
        found = [m.detach() for m in noise] if noise else None
        return Inverted(ws, draw(ws).clamp(-1, 1), losses, taken, found)


@plainly
def tune(
    generator: Generator,
    loss: InversionLoss,
    image: Float[Tensor, "b 3 h w"],
    pivots: Float[Tensor, "b num_ws w_dim"],
    *,
    steps: int = 350,
    lr: float = 3e-4,
    enough: float = 0.06,
    view: Callable[[Tensor], Tensor] = lambda image: image,
) -> Inverted:
    """Pivotal tuning: a copy of the generator for each picture, trained to draw it from its pivot (PTI, equation 3).

    The loss is L2 + LPIPS, as in the public code, which also gives rate, steps and the LPIPS that is `enough`.
    """
    tuned, drawn, curves = [], [], []
    loss = InversionLoss(loss.perceptual, None)  # identity is no part of it
    for target, pivot in progress(list(zip(image, pivots, strict=True)), desc="tuning", unit="picture"):
        own = copy.deepcopy(generator).requires_grad_(True)
        optimizer = torch.optim.Adam(own.parameters(), lr=lr)
        curve = []
        for _ in range(steps):
            parts = loss.parts(target[None], view(own(pivot[None], noise="const")))
            if parts["lpips"].item() <= enough:
                break
            total = (parts["l2"] + parts["lpips"]).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            curve.append(total.item())
        tuned.append(own.requires_grad_(False))
        curves.append(curve)
        with torch.no_grad():
            drawn.append(view(own(pivot[None], noise="const")).clamp(-1, 1))
    longest = max(map(len, curves))
    padded = [curve + curve[-1:] * (longest - len(curve)) for curve in curves if curve]
    losses = [sum(values) / len(padded) for values in zip(*padded, strict=True)]
    return Inverted(pivots, torch.cat(drawn), losses, generators=tuned)


def noise_correlation(noise: Float[Tensor, "b 1 r r"]) -> Float[Tensor, ""]:
    """How much neighbours of a noise map go together, over its pyramid (appendix D): zero for white noise."""
    total = sum((noise * noise.roll(1, axis)).mean((1, 2, 3)).square().sum() for axis in (2, 3))
    if noise.shape[2] <= SMALLEST_POOLED:
        return total
    return total + noise_correlation(F.avg_pool2d(noise, 2))


def _noise_maps(generator: Generator, count: int, random: torch.Generator) -> list[Tensor]:
    like = generator.input.input
    sizes = generator.noise_sizes()
    return [torch.randn(count, 1, r, r, generator=random).to(like).requires_grad_() for r in sizes]


@torch.no_grad()
def _normalise(noise: list[Tensor]) -> None:
    for m in noise:
        m.sub_(m.mean((2, 3), keepdim=True)).div_(m.std((2, 3), keepdim=True))


def _ramp(t: float) -> float:
    """The rate's factor at share `t` of the run: a linear rise, a cosine fall."""
    down = min(1.0, (1 - t) / RAMP_DOWN)
    return (0.5 - 0.5 * math.cos(down * math.pi)) * min(1.0, t / RAMP_UP)


@torch.no_grad()
def _spread(generator: Generator, samples: int = 10_000) -> float:
    """The root of the mean squared distance of w from its average."""
    like = generator.style[1].weight
    w = generator.mapping(torch.randn(samples, generator.w_dim, generator=torch.Generator().manual_seed(0)).to(like))
    return (w - w.mean(0)).square().sum(1).mean().sqrt().item()
