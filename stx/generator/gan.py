"""Training of the generator: non-saturating loss, lazy R1, lazy path lengths, style mixing, averaged weights.

StyleGAN2 (Karras et al. 2020, arXiv 1912.04958, sections 3.1 and 3.2, appendix B), with StyleGAN2's discriminator or
with one on ImageNet features (`stx.generator.projected`). A discriminator may give several logits; their losses add
up. More losses of the generator serve a training that goes on: `KeptPictures`, `ClearAttributes`, and one in
`stx.generator.autoencoder`.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx import runtime
from stx.domains.splits import Dataset, mirrored
from stx.generator.graphs import Replayed
from stx.generator.projected import ProjectedDiscriminator
from stx.stylegan2.networks import Discriminator, Generator
from stx.training.loop import Resumable, ema_update, falling_rate, minimise

REMEMBERED = 512  # latest samples, which tell how often an attribute is shown; more would be stale


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


def path_length_penalty(
    lengths: Float[Tensor, "b"], mean: Float[Tensor, ""], pl_mean: float, decay: float = 0.01
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The penalty E[(|J^T y| - a)^2] and the moving mean a after this step, detached.

    mean: of the lengths; a moves towards it by `decay` before it is used, and the penalty's gradient goes through it,
    as in the public code. pl_mean: a before the step.
    """
    moved = pl_mean + decay * (mean - pl_mean)
    return (lengths - moved).square().mean(), moved.detach()


class ExtraLoss:
    """One more loss of the generator, logged under its name and added by its weight."""

    name: str
    weight: float

    def __call__(self, generator: Generator, fake: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """The loss; fake: the update's samples."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """What a resumed run needs beside what it is given anew."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""


class KeptPictures(ExtraLoss):
    """Codes go on drawing what they draw now: the mean squared change of their pictures, some codes at a time.

    With it encoders stay valid whose generator is trained on. codes: of the encoders, `[n, num_ws, w_dim]`.
    """

    name = "change"

    def __init__(self, generator: Generator, codes: Float[Tensor, "n num_ws w_dim"], weight: float):
        self.before = copy.deepcopy(generator).eval().requires_grad_(False)
        self.codes, self.weight = codes.to(generator.latent_avg), weight

    def __call__(self, generator: Generator, fake: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        ws = self.codes[torch.randint(len(self.codes), (max(len(fake) // 2, 1),), device=fake.device)]
        return F.mse_loss(generator(ws), self.before(ws))


class ClearAttributes(ExtraLoss):
    """Samples show every attribute clearly or not at all, and as often as real pictures do.

    The latest `REMEMBERED` samples are ranked by a frozen classifier's logit of the attribute; a sample among the share
    that real pictures have gets the label 1, the others 0, and the classifier's cross-entropy with these labels is the
    loss. (Pseudo-labels with aligned shares, as in ReMixMatch, Berthelot et al. 2020, arXiv 1911.09785; a classifier's
    loss on samples as in AC-GAN, Odena et al. 2017.) attribute_classifier: pictures in [-1, 1] to logits `[b, k]`;
    shares `[k]`.
    """

    name = "unclear"

    def __init__(self, attribute_classifier: Callable[[Tensor], Tensor], shares: Float[Tensor, "k"], weight: float):
        self.attribute_classifier, self.shares, self.weight = attribute_classifier, shares, weight
        self.seen = torch.full((REMEMBERED, len(shares)), torch.inf)

    def __call__(self, generator: Generator, fake: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        logits = self.attribute_classifier(fake)
        self.seen = self.seen.to(logits)  # changed in place and moved once, as is what graphs replay
        self.shares = self.shares.to(logits)
        self.seen.copy_(torch.cat([self.seen, logits.detach()])[-REMEMBERED:])
        known = len(self.seen) - self.seen[:, 0].isinf().sum()
        place = ((1 - self.shares) * (known - 1)).round().long()
        least = self.seen.sort(0).values.gather(0, place[None])  # what is not known comes last
        return F.binary_cross_entropy_with_logits(logits, (logits.detach() > least).float())

    def state_dict(self) -> dict:
        """The logits of the latest samples."""
        return {"seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""
        self.seen = state["seen"]


class GanTask(Resumable):
    """A generator and a discriminator, their optimisers and the averaged generator (a `training.Task`).

    lr falls linearly to a hundredth over the last `lr_decay` share of `steps`; the generator's by its own updates,
    which begin after `head_start`. The mapping network's is `mapping_rate` times as high. mirror: turn half of the real
    pictures round. mixing: probability that a sample takes two w's. r1_gamma, r1_every; pl_weight (0: off), pl_every:
    the lazy regularisers. ema_images: half-life of the average in pictures, shortened to `ema_rampup` of the run so
    far. head_start: first updates, of the discriminator alone. discriminator: of `stx.stylegan2.networks` or
    `stx.generator.projected`; R1 is taken on what it scores, pixels or features. extras: more losses of the generator,
    each by its weight. On CUDA updates are replayed as graphs (`stx.generator.graphs`). Of several processes
    (`stx.runtime`) each takes its share of a batch, with its own random z and noise.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        discriminator: Discriminator | ProjectedDiscriminator,
        data: Dataset,
        batch: int = 16,
        lr: float = 2e-3,
        lr_decay: float = 0.0,
        steps: int = 0,
        mirror: bool = False,
        mixing: float = 0.7,
        r1_gamma: float = 0.5,
        r1_every: int = 16,
        pl_weight: float = 0.0,
        pl_every: int = 4,
        ema_images: float = 10_000,
        ema_rampup: float = 0.05,
        head_start: int = 0,
        mapping_rate: float = 1.0,
        extras: Sequence[ExtraLoss] = (),
        seed: int = 0,
        device: str = "cpu",
    ):
        self.generator = generator.to(device).train()
        self.discriminator = discriminator.to(device).train()
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.data, self.batch, self.seed, self.device = data, batch, seed, device
        self.examples = len(data)
        self.mirror, self.mixing, self.r1_gamma, self.r1_every = mirror, mixing, r1_gamma, r1_every
        self.pl_weight, self.pl_every, self.pl_mean = pl_weight, pl_every, 0.0
        self.ema_images, self.ema_rampup, self.head_start = ema_images, ema_rampup, head_start
        self.extras = extras
        parts = dict(self.generator.named_parameters())
        mapping = [parts.pop(name) for name in list(parts) if name.startswith("style.")]
        groups = [(parts.values(), lr), (mapping, lr * mapping_rate)]
        cuda = torch.device(device).type == "cuda"
        self.g_optimizer = _lazy_adam(groups, pl_every if pl_weight else None, cuda)
        self.learning = [p for p in self.discriminator.parameters() if p.requires_grad]
        self.d_optimizer = _lazy_adam([(self.learning, lr)], r1_every if r1_gamma else None, cuda)
        self.g_schedule, self.d_schedule = (
            falling_rate(optimizer, steps, lr_decay) for optimizer in (self.g_optimizer, self.d_optimizer)
        )
        self.replays = cuda and runtime.world_size() == 1 and not lr_decay  # a graph would keep the rate of its capture
        self._prepare()

    def _prepare(self) -> None:
        """The updates that CUDA replays, to be captured anew."""
        self.learn_real = Replayed(self._update_discriminator, self.replays)
        self.learn_smooth = Replayed(self._regularise_discriminator, self.replays)
        self.learn_to_draw = Replayed(self._update_generator, self.replays)

    def step(self, step: int) -> dict[str, float]:
        """One update of D and one of G on the same number of pictures."""
        real = self.data.batch(runtime.share(self.positions(step))).to(self.device)
        real = mirrored(real) if self.mirror else real
        log = dict(self.learn_real(real))
        if self.r1_gamma and step % self.r1_every == 0:
            log |= self.learn_smooth(real)
        if step >= self.head_start:
            log |= self.learn_to_draw()
            if self.pl_weight and step % self.pl_every == 0:
                log |= self._regularise_generator()
            half_life = min(self.ema_images, self.ema_rampup * (step + 1) * self.batch)
            ema_update(self.average, self.generator, 0.5 ** (self.batch / max(half_life, 1e-8)))
            self.g_schedule.step()
        self.d_schedule.step()
        return {name: float(value) for name, value in log.items()}

    def state_dict(self) -> dict:
        """Networks, average, optimisers and the mean path length."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"pl_mean": self.pl_mean}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(_for_device(state[name], part) if "param_groups" in state[name] else state[name])
        self.pl_mean = state["pl_mean"]
        self._prepare()

    def _parts(self) -> dict:
        names = ("generator", "discriminator", "average", "g_optimizer", "d_optimizer", "g_schedule", "d_schedule")
        return {name: getattr(self, name) for name in names} | {extra.name: extra for extra in self.extras}

    def sample_ws(self, count: int) -> Float[Tensor, "count num_ws w_dim"]:
        """Codes of random z, some with a second w from a random token on (style mixing)."""
        g = self.generator
        first, second = g.mapping(torch.randn(2 * count, g.w_dim, device=self.device)).chunk(2)
        cut = torch.randint(1, g.num_ws, (count, 1), device=self.device)
        cut = torch.where(torch.rand(count, 1, device=self.device) < self.mixing, cut, g.num_ws)
        keep = torch.arange(g.num_ws, device=self.device) < cut
        return torch.where(keep[:, :, None], g.broadcast(first), g.broadcast(second))

    def _update_discriminator(self, real: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.generator(self.sample_ws(len(real)), noise="random")
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)
        loss = discriminator_loss(real_logits, fake_logits)
        minimise(self.d_optimizer, loss)
        return {"d_loss": loss.detach(), "d_real": real_logits.detach().mean(), "d_fake": fake_logits.detach().mean()}

    def _regularise_discriminator(self, real: Tensor) -> dict[str, Tensor]:
        views = [view.detach().requires_grad_() for view in self.discriminator.views(real)]
        penalty = r1_penalty(self.discriminator.score(views), views)
        minimise(self.d_optimizer, self.r1_gamma / 2 * self.r1_every * penalty)
        return {"r1": penalty.detach()}

    def _update_generator(self) -> dict[str, Tensor]:
        for p in self.learning:
            p.requires_grad_(False)
        fake = self.generator(self.sample_ws(self.batch // runtime.world_size()), noise="random")
        losses = {"g_loss": generator_loss(self.discriminator(fake))}
        losses |= {extra.name: extra(self.generator, fake) for extra in self.extras}
        weights = [1.0, *(extra.weight for extra in self.extras)]
        minimise(self.g_optimizer, sum(w * loss for w, loss in zip(weights, losses.values(), strict=True)))
        for p in self.learning:
            p.requires_grad_(True)
        return {name: loss.detach() for name, loss in losses.items()}

    def _regularise_generator(self) -> dict[str, float]:
        ws = self.sample_ws(max(self.batch // runtime.world_size() // 2, 1))
        lengths = path_lengths(self.generator(ws, noise="random"), ws)
        length = runtime.mean({"path_length": lengths.mean().item()})
        mean = lengths.mean() + (length["path_length"] - lengths.detach().mean())  # of all processes, with a gradient
        penalty, pl_mean = path_length_penalty(lengths, mean, self.pl_mean)
        self.pl_mean = pl_mean.item()
        minimise(self.g_optimizer, self.pl_weight * self.pl_every * penalty)
        return length


def _lazy_adam(
    groups: Sequence[tuple[Iterable[nn.Parameter], float]], every: int | None, cuda: bool
) -> torch.optim.Adam:
    """Adam of parameters with their rates, adapted to a regulariser every `every` steps (StyleGAN2, appendix B)."""
    ratio = every / (every + 1) if every else 1.0
    parts = [{"params": list(parameters), "lr": lr * ratio} for parameters, lr in groups]
    return torch.optim.Adam(parts, betas=(0.0, 0.99**ratio), capturable=cuda, fused=cuda)


def _for_device(state: dict, optimizer: torch.optim.Adam) -> dict:
    """The state of an Adam of any device for one of this device."""
    here = {name: optimizer.defaults[name] for name in ("capturable", "fused")}
    return state | {"param_groups": [group | here for group in state["param_groups"]]}


@torch.no_grad()
def sample_images(
    generator: Generator, count: int, *, seed: int = 0, view: Callable | None = None, batch: int = 25
) -> torch.Tensor:
    """Pictures of random z, not truncated, `[count, 3, h, w]`, each batch through `view` (`Domain.view`)."""
    device = generator.input.input.device
    z = torch.randn(count, generator.w_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    parts = []
    for part in z.split(batch):
        image = generator(generator.broadcast(generator.mapping(part)))
        parts.append((view(image) if view else image).clamp(-1, 1))
    return torch.cat(parts)
