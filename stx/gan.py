"""Training of the generator: non-saturating loss, lazy R1, lazy path lengths, style mixing, averaged weights.

StyleGAN2 (Karras et al. 2020, arXiv 1912.04958, sections 3.1 and 3.2, appendix B), with StyleGAN2's discriminator or
with one on ImageNet features (`stx.projected`). A discriminator may give several logits; their losses add up.
"""

import copy
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx import parallel
from stx.domains import Dataset, batch_positions
from stx.projected import ProjectedDiscriminator
from stx.stylegan2 import Discriminator, Generator
from stx.training import ema_update


def generator_loss(fake: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Non-saturating: -log sigmoid(D(G(z)))."""
    return F.softplus(-fake).mean(0).sum()


def discriminator_loss(real: Float[Tensor, "b k"], fake: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z))))."""
    return (F.softplus(-real) + F.softplus(fake)).mean(0).sum()


def r1_penalty(logits: Float[Tensor, "b k"], views: list[Tensor]) -> Float[Tensor, ""]:
    """Mean squared norm of the gradient of D with respect to real inputs `[b, ...]` (Mescheder et al. 2018)."""
    gradients = torch.autograd.grad(logits.sum(), views, create_graph=True)
    return sum(gradient.flatten(1).square().sum(1).mean() for gradient in gradients)


def path_lengths(image: Float[Tensor, "b 3 h w"], ws: Float[Tensor, "b num_ws w_dim"]) -> Float[Tensor, "b"]:
    """|J^T y| for a random image y: how far a unit step in W moves the picture (appendix B of StyleGAN2)."""
    noise = torch.randn_like(image) / math.sqrt(image.shape[2] * image.shape[3])
    (gradient,) = torch.autograd.grad((image * noise).sum(), ws, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


class GanTask:
    """A generator and a discriminator, their optimisers and the averaged generator (a `training.Task`).

    mirror: flip half of the real pictures. mixing: probability that a sample takes two w's.
    r1_gamma, r1_every; pl_weight (0: off), pl_every: the lazy regularisers. ema_images: half-life of the average in
    pictures, shortened to `ema_rampup` of the run so far. head_start: first updates, of the discriminator alone.
    discriminator: of `stx.stylegan2` or `stx.projected`; R1 is taken on what it judges, pixels or features.
    Of several processes (`stx.parallel`) each takes its share of a batch, with its own random z and noise.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        discriminator: Discriminator | ProjectedDiscriminator,
        data: Dataset,
        batch: int = 16,
        lr: float = 2e-3,
        mirror: bool = False,
        mixing: float = 0.7,
        r1_gamma: float = 0.5,
        r1_every: int = 16,
        pl_weight: float = 0.0,
        pl_every: int = 4,
        ema_images: float = 10_000,
        ema_rampup: float = 0.05,
        head_start: int = 0,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.generator = generator.to(device).train()
        self.discriminator = discriminator.to(device).train()
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.data, self.batch, self.seed, self.device = data, batch, seed, device
        self.mirror, self.mixing, self.r1_gamma, self.r1_every = mirror, mixing, r1_gamma, r1_every
        self.pl_weight, self.pl_every, self.pl_mean = pl_weight, pl_every, 0.0
        self.ema_images, self.ema_rampup, self.head_start = ema_images, ema_rampup, head_start
        self.g_optimizer = _lazy_adam(self.generator.parameters(), lr, pl_every if pl_weight else None)
        self.learning = [p for p in self.discriminator.parameters() if p.requires_grad]
        self.d_optimizer = _lazy_adam(self.learning, lr, r1_every if r1_gamma else None)

    def positions(self, step: int) -> list[int]:
        """Data positions of batch `step`."""
        return batch_positions(len(self.data), self.batch, step, self.seed).tolist()

    def step(self, step: int) -> dict[str, float]:
        """One update of D and one of G on the same number of pictures."""
        real = self.data.batch(parallel.share(self.positions(step))).to(self.device)
        if self.mirror:
            real = torch.where(torch.rand(len(real), 1, 1, 1, device=real.device) < 0.5, real.flip(3), real)
        log = self._update_discriminator(real)
        if self.r1_gamma and step % self.r1_every == 0:
            log |= self._regularise_discriminator(real)
        if step < self.head_start:
            return log
        log |= self._update_generator()
        if self.pl_weight and step % self.pl_every == 0:
            log |= self._regularise_generator()
        half_life = min(self.ema_images, self.ema_rampup * (step + 1) * self.batch)
        ema_update(self.average, self.generator, 0.5 ** (self.batch / max(half_life, 1e-8)))
        return log

    def state_dict(self) -> dict:
        """Networks, average, optimisers and the mean path length."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"pl_mean": self.pl_mean}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.pl_mean = state["pl_mean"]

    def _parts(self) -> dict:
        names = ("generator", "discriminator", "average", "g_optimizer", "d_optimizer")
        return {name: getattr(self, name) for name in names}

    def sample_ws(self, count: int) -> Float[Tensor, "count num_ws w_dim"]:
        """Codes of random z, some with a second w from a random token on (style mixing)."""
        g = self.generator
        first, second = g.mapping(torch.randn(2 * count, g.w_dim, device=self.device)).chunk(2)
        cut = torch.randint(1, g.num_ws, (count, 1), device=self.device)
        cut = torch.where(torch.rand(count, 1, device=self.device) < self.mixing, cut, g.num_ws)
        keep = torch.arange(g.num_ws, device=self.device) < cut
        return torch.where(keep[:, :, None], g.broadcast(first), g.broadcast(second))

    def _update_discriminator(self, real: Tensor) -> dict[str, float]:
        with torch.no_grad():
            fake = self.generator(self.sample_ws(len(real)), noise="random")
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)
        loss = discriminator_loss(real_logits, fake_logits)
        _minimise(self.d_optimizer, loss)
        return {"d_loss": loss.item(), "d_real": real_logits.mean().item(), "d_fake": fake_logits.mean().item()}

    def _regularise_discriminator(self, real: Tensor) -> dict[str, float]:
        views = [view.detach().requires_grad_() for view in self.discriminator.views(real)]
        penalty = r1_penalty(self.discriminator.judge(views), views)
        _minimise(self.d_optimizer, self.r1_gamma / 2 * self.r1_every * penalty)
        return {"r1": penalty.item()}

    def _update_generator(self) -> dict[str, float]:
        for p in self.learning:
            p.requires_grad_(False)
        loss = generator_loss(
            self.discriminator(self.generator(self.sample_ws(self.batch // parallel.count()), noise="random"))
        )
        _minimise(self.g_optimizer, loss)
        for p in self.learning:
            p.requires_grad_(True)
        return {"g_loss": loss.item()}

    def _regularise_generator(self) -> dict[str, float]:
        ws = self.sample_ws(max(self.batch // parallel.count() // 2, 1))
        lengths = path_lengths(self.generator(ws, noise="random"), ws)
        length = parallel.mean({"path_length": lengths.mean().item()})
        self.pl_mean += 0.01 * (length["path_length"] - self.pl_mean)
        penalty = (lengths - self.pl_mean).square().mean()
        _minimise(self.g_optimizer, self.pl_weight * self.pl_every * penalty)
        return length


def _minimise(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parallel.average_gradients(optimizer)
    optimizer.step()


def _lazy_adam(parameters: Iterable[nn.Parameter], lr: float, every: int | None) -> torch.optim.Adam:
    """Adam, its rates adapted to a regulariser that runs every `every` steps (StyleGAN2, appendix B)."""
    ratio = every / (every + 1) if every else 1.0
    return torch.optim.Adam(parameters, lr=lr * ratio, betas=(0.0, 0.99**ratio))
