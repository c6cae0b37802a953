"""What e4e and IDInvert add to the training of an encoder: regularisers and discriminators of codes or pictures.

Tov et al. 2021 (2102.02766, section 4.3): codes near W, by small offsets between tokens that grow in one by one, and by
a discriminator of single tokens. Zhu et al. 2020 (2004.00049, equation 4): a discriminator of the reconstructions.
An extra has `begin(step)`, `loss(ws, drawn)` and `update(step, image, ws, drawn)`; see `Extra`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.baselines.psp import PSP
from stx.domains import images
from stx.generator.gan import r1_penalty
from stx.inversion import Extra
from stx.stylegan2.networks import Generator
from stx.training.loop import minimise

GROWTH = (0.1, 0.27)  # shares of the run between which tokens grow in: steps 20,000 to 54,000 of 200,000 in e4e
R1, R1_EVERY = 10.0, 16  # of both discriminators, as in e4e's and IDInvert's public code


class Offsets(Extra):
    """e4e's delta regulariser (equation 6) and progressive training: offsets of later tokens come in one by one.

    The stage follows from the step.
    """

    def __init__(self, encoder: PSP, *, steps: int, weight: float = 2e-4):
        self.encoder, self.steps, self.weight = encoder, steps, weight

    def begin(self, step: int) -> None:
        """Sets how many tokens are in use."""
        first, last = (share * self.steps for share in GROWTH)
        grown = (step - first) / max(last - first, 1) * (self.encoder.num_ws - 1)
        self.encoder.stage = 1 + min(max(int(grown + 1) if grown >= 0 else 0, 0), self.encoder.num_ws - 1)

    def loss(self, ws: Float[Tensor, "b num_ws w_dim"], drawn: Tensor) -> Float[Tensor, ""]:
        """The lengths of all offsets from the first token, summed."""
        return self.weight * (ws[:, 1:] - ws[:, :1]).norm(dim=2).sum(1).mean()


class LatentDiscriminator(nn.Module):
    """Does a token come from W: four linear layers (names as in e4e's checkpoints)."""

    def __init__(self, w_dim: int, layers: int = 4):
        super().__init__()
        hidden = [part for _ in range(layers - 1) for part in (nn.Linear(w_dim, w_dim), nn.LeakyReLU(0.2))]
        self.mlp = nn.Sequential(*hidden, nn.Linear(w_dim, 1))

    def forward(self, w: Float[Tensor, "n w_dim"]) -> Float[Tensor, "n 1"]:
        return self.mlp(w)


class Adversary(Extra):
    """A discriminator beside the encoder: non-saturating loss, R1 every 16 updates.

    real: (picture batch) -> real things; fake: (ws, drawn) -> the encoder's; both as the discriminator takes them.
    """

    kept = ("discriminator", "optimizer")

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        real: Callable[[Tensor], Tensor],
        fake: Callable[[Tensor, Tensor], Tensor],
        weight: float,
        lr: float,
        name: str,
    ):
        self.discriminator, self.real, self.fake, self.weight, self.name = discriminator, real, fake, weight, name
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=(0.9, 0.999))

    def loss(self, ws: Tensor, drawn: Tensor) -> Float[Tensor, ""]:
        """How little the encoder's things look real."""
        self.discriminator.requires_grad_(False)
        return self.weight * F.softplus(-self.discriminator(self.fake(ws, drawn))).mean()

    def update(self, image: Tensor, ws: Tensor, drawn: Tensor, step: int) -> dict[str, float]:
        """One update of the discriminator."""
        self.discriminator.requires_grad_(True)
        real = self.real(image).detach()
        fake = self.fake(ws, drawn).detach()
        loss = F.softplus(-self.discriminator(real)).mean() + F.softplus(self.discriminator(fake)).mean()
        total = loss
        if step % R1_EVERY == 0:
            real.requires_grad_()
            total = loss + R1 / 2 * R1_EVERY * r1_penalty(self.discriminator(real), [real])
        minimise(self.optimizer, total)
        return {f"{self.name}_loss": loss.item()}


def latent_adversary(generator: Generator, *, lr: float, weight: float = 0.1, device: str = "cpu") -> Adversary:
    """e4e's: single tokens against w of random z, as many as the codes have."""

    @torch.no_grad()
    def real(image: Tensor) -> Tensor:
        z = torch.randn(len(image) * generator.num_ws, generator.w_dim, device=image.device)
        return generator.mapping(z)

    net = LatentDiscriminator(generator.w_dim).to(device)
    return Adversary(net, real=real, fake=lambda ws, _: ws.flatten(0, 1), weight=weight, lr=lr, name="latent")


def image_adversary(discriminator: nn.Module, *, lr: float, weight: float = 0.08, device: str = "cpu") -> Adversary:
    """IDInvert's: reconstructions against those they are to be, at the size that encoders see."""
    net, real = discriminator.to(device), images.padded
    return Adversary(net, real=real, fake=lambda _, drawn: real(drawn), weight=weight, lr=lr, name="image")
