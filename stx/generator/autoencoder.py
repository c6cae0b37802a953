"""The generator as the decoder of an autoencoder, and a mapping network for the codes that it then has.

A GAN's samples leave out what the discriminator does not miss. Here the synthesis network learns to draw every training
picture from one w, which a second network reads off the picture (as autoencoders with StyleGAN's layers do: Pidhorskyi
et al. 2020, arXiv 2004.04467). A flow from z to these codes (flow matching, Lipman et al. 2023, arXiv 2210.02747, with
minibatch optimal transport, Tong et al. 2024, arXiv 2302.00482) takes many steps; StyleGAN2's mapping network learns
from it to take them at once (distillation as in rectified flow, Liu et al. 2023, arXiv 2209.03003).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from stx.domains.datasets import Domain
from stx.domains.splits import Dataset
from stx.files.checksums import fingerprint
from stx.files.errors import InputError, TrainingError
from stx.generator.gan import ExtraLoss
from stx.inversion import InversionLoss
from stx.perception.irse import IRSE
from stx.perception.lpips import check_size, load_lpips
from stx.runtime import batched, progress
from stx.stylegan2.networks import Generator, PixelNorm
from stx.stylegan2.ops import pool
from stx.training.loop import Resumable, ema_update, falling_rate, load_state, train

MAX_CODE_ENCODER_SIDE = 256  # pixels that the code encoder sees
FREQUENCIES = 16  # of the flow's time
FLOW_AVERAGE = 0.998  # decay of the flow's averaged weights
FLOW_STEPS = 10  # of Heun's method from z to w
HELD = 2**31  # bytes of training pictures that are held in memory to be drawn again
READ = 64  # pictures read at a time
DRAW_BATCH = 2048  # codes drawn at a time


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The generator as the decoder of an autoencoder, and its mapping network anew."""

    steps: int = 4000
    batch: int = 16
    lr: float = 2e-3
    lr_decay: float = 0.3
    flow_steps: int = 3500
    n_mlp: int = 8  # layers of the mapping network, StyleGAN2's
    pairs: int = 196_608  # z with their codes, from which it learns
    mapping_steps: int = 12_000
    seed: int = 0


class CodeEncoder(nn.Module):
    """Pictures to one w each: IR-SE stages down to 4 x 4 and a dense layer. w_avg: the code to which it adds."""

    def __init__(self, *, size: int, w_dim: int, w_avg: Float[Tensor, "w_dim"]):
        super().__init__()
        self.size = min(size, MAX_CODE_ENCODER_SIDE)
        stages = max(self.size.bit_length() - 3, 1)
        widths = [w_dim // min(2 ** (stages - 1 - i), 8) for i in range(stages)]
        self.backbone = IRSE(widths=widths, units=[2] * stages)
        area = (self.size // 2**stages) ** 2
        self.output_layer = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.Flatten(), nn.Linear(widths[-1] * area, w_dim))
        self.register_buffer("w_avg", w_avg.clone())

    def forward(self, image: Float[Tensor, "b 3 size size"]) -> Float[Tensor, "b w_dim"]:
        """The codes of pictures in [-1, 1]; larger ones are averaged down."""
        if image.shape[-1] != self.size:
            image = pool(image, (self.size, self.size))
        return self.output_layer(self.backbone(image)[-1]) + self.w_avg


class AutoencoderTask(Resumable):
    """Trains a code encoder and a generator's synthesis network to give pictures back (a `training.Task`).

    Adam; lr: of the generator, the encoder's is half of it. The rates fall to a hundredth over the last `lr_decay`
    share of `steps`. data: square pictures as the generator draws them; view: as losses see them.
    """

    kept = ("generator", "encoder", "optimizer", "schedule")

    def __init__(
        self,
        *,
        generator: Generator,
        encoder: CodeEncoder,
        loss: InversionLoss,
        data: Dataset,
        steps: int,
        batch: int = 16,
        lr: float = 2e-3,
        lr_decay: float = 0.3,
        view: Callable[[Tensor], Tensor] = lambda image: image,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.generator, self.encoder = generator.to(device), encoder.to(device).train()
        self.loss, self.data, self.view = loss.to(device), data, view
        self.examples, self.batch, self.seed, self.device = len(data), batch, seed, device
        drawing = [p for name, p in generator.named_parameters() if not name.startswith("style.")]
        groups = [{"params": drawing}, {"params": list(encoder.parameters()), "lr": lr / 2}]
        self.optimizer = torch.optim.Adam(groups, lr=lr, betas=(0.9, 0.99))
        self.schedule = falling_rate(self.optimizer, steps, lr_decay)

    def step(self, step: int) -> dict[str, float]:
        """One update."""
        image = self.data.batch(self.positions(step)).to(self.device)
        drawn = self.generator(self.generator.broadcast(self.encoder(image)), noise="random")
        total, parts = self.loss(self.view(image), self.view(drawn))
        self.descend(total)
        return {"loss": total.item()} | parts

    def codes(self, data: Dataset) -> Float[Tensor, "n w_dim"]:
        """The codes of a data set's pictures, on the CPU."""
        self.encoder.eval()
        found = batched(lambda image: self.encoder(image.to(self.device)), data, READ, desc="reading codes")
        self.encoder.train()
        return found

    def validate(self, data: Dataset) -> dict[str, float]:
        """Mean losses on held-out pictures, names starting with `val_`."""
        self.encoder.eval()

        def pair(image: Tensor) -> tuple[Tensor, Tensor]:
            return self.view(image), self.view(self.generator(self.generator.broadcast(self.encoder(image))))

        found = self.loss.validate(data, pair, device=self.device, batch=READ)
        self.encoder.train()
        return found


class DrawnPictures(ExtraLoss):
    """Codes that were read off pictures draw these pictures, some at a time: one more loss of
    `stx.generator.gan.GanTask`.

    With it a discriminator sharpens what a decoder draws without changing what its codes mean (VAE-GAN, Larsen et al.
    2016, arXiv 1512.09300). codes `[n, w_dim]`; pictures: uint8 `[n, h, w, 3]`; loss: what is drawn, as viewed.
    """

    name = "drawn"

    def __init__(
        self,
        codes: Float[Tensor, "n w_dim"],
        pictures: UInt8[Tensor, "n h w 3"],
        loss: InversionLoss,
        weight: float,
        view: Callable[[Tensor], Tensor] = lambda image: image,
    ):
        self.codes, self.pictures, self.loss, self.weight, self.view = codes, pictures, loss, weight, view

    def __call__(self, generator: Generator, fake: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        self.codes, self.pictures = self.codes.to(fake), self.pictures.to(fake.device)  # moved once
        some = torch.randint(len(self.codes), (max(len(fake) // 2, 1),), device=fake.device)
        target = self.pictures[some].permute(0, 3, 1, 2).to(fake) / 127.5 - 1
        drawn = generator(generator.broadcast(self.codes[some]), noise="random")
        parts = self.loss.parts(self.view(target), self.view(drawn))
        return sum(self.loss.weights[name] * value.mean() for name, value in parts.items())


class Flow(nn.Module):
    """The velocity that carries z (on its sphere, at time 0) to codes (at time 1), in units of the codes' spread.

    hidden, blocks: of its residual MLP.
    """

    def __init__(self, codes: Float[Tensor, "n w_dim"], *, hidden: int = 640, blocks: int = 4):
        super().__init__()
        self.register_buffer("mean", codes.mean(0))
        self.register_buffer("spread", codes.std(0).mean())
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(200), FREQUENCIES)))
        self.first = nn.Linear(codes.shape[1], hidden)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(blocks))
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.last = nn.Linear(hidden, codes.shape[1])
        for layer in (*self.outer, self.last):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Float[Tensor, "b w_dim"], time: Float[Tensor, "b"]) -> Float[Tensor, "b w_dim"]:
        """The velocity at `x` at a time from 0 to 1."""
        angles = time[:, None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        x = self.first(x)
        for norm, inner, outer in zip(self.norms, self.inner, self.outer, strict=True):
            x = x + outer(F.silu(inner(F.silu(norm(x))) + time))
        return self.last(x)

    @torch.no_grad()
    def codes(self, z: Float[Tensor, "b w_dim"], steps: int = FLOW_STEPS) -> Float[Tensor, "b w_dim"]:
        """Where z ends: the flow by Heun's method."""
        x, moments = PixelNorm()(z), torch.linspace(0, 1, steps + 1, device=z.device)[:, None].expand(-1, len(z))
        for before, after in zip(moments[:-1], moments[1:], strict=True):
            velocity = self(x, before)
            x = x + (velocity + self(x + velocity / steps, after)) / (2 * steps)
        return self.mean + self.spread * x


class FlowTask(Resumable):
    """Trains a `Flow` to codes `[n, w_dim]` by matching velocities (a `training.Task`). `average`: the one to use."""

    kept = ("flow", "average", "optimizer", "schedule")

    def __init__(self, *, flow: Flow, codes: Tensor, steps: int, batch=512, lr=1e-3, seed=0, device="cpu"):
        self.flow = flow.to(device)
        self.average = copy.deepcopy(self.flow).requires_grad_(False)
        self.targets = (codes.to(device) - self.flow.mean) / self.flow.spread
        self.batch, self.seed, self.norm = batch, seed, PixelNorm()
        self.examples = len(self.targets)
        self.optimizer = torch.optim.AdamW(flow.parameters(), lr=lr, weight_decay=0.01)
        self.schedule = falling_rate(self.optimizer, steps, 1.0)

    def step(self, step: int) -> dict[str, float]:
        """One update: each z of the batch goes to the code that optimal transport gives it."""
        end = self.targets[self.positions(step)]
        begin = self.norm(torch.randn_like(end))
        _, order = linear_sum_assignment(torch.cdist(begin, end).square().cpu().numpy())
        end, time = end[order], torch.rand(len(end), device=end.device)
        loss = F.mse_loss(self.flow(torch.lerp(begin, end, time[:, None]), time), end - begin)
        self.descend(loss)
        ema_update(self.average, self.flow, min(FLOW_AVERAGE, 1 - 1 / (step + 1)))
        return {"loss": loss.item()}


class MappingTask(Resumable):
    """Trains a generator's mapping network to give the codes of a flow (a `training.Task`).

    count: of z with their codes, which the flow draws before the first update. lr is high since the mapping network's
    weights learn a hundred times slower than others. The loss is in units of the codes' variance.
    """

    kept = ("mapping", "optimizer", "schedule")

    def __init__(
        self, *, generator: Generator, flow: Flow, count: int, steps: int, batch=512, lr=3.0, seed=0, device="cpu"
    ):
        self.mapping, self.flow = generator.to(device).style, flow.to(device)
        self.examples, self.batch, self.seed = count, batch, seed
        self.z = torch.randn(count, generator.w_dim, generator=torch.Generator().manual_seed(seed)).to(device)
        self.optimizer = torch.optim.Adam(self.mapping.parameters(), lr=lr, betas=(0.9, 0.99))
        self.schedule = falling_rate(self.optimizer, steps, 1.0)

    @cached_property
    def codes(self) -> Float[Tensor, "count w_dim"]:
        """Where the flow takes `z`."""
        return torch.cat([self.flow.codes(part) for part in progress(self.z.split(DRAW_BATCH), desc="drawing codes")])

    def step(self, step: int) -> dict[str, float]:
        """One update."""
        where = self.positions(step)
        loss = F.mse_loss(self.mapping(self.z[where]), self.codes[where]) / self.flow.spread.square()
        self.descend(loss)
        return {"loss": loss.item()}


def train_autoencoder(
    domain: Domain,
    generator: Generator,
    recipe: AutoencoderRecipe,
    folder: str | Path,
    *,
    device: str = "cpu",
    validation: int = 256,
    evaluate_every: int = 500,
) -> tuple[Generator, torch.Tensor, pd.DataFrame]:
    """A generator going on from `generator` that can draw every training picture, their codes, the autoencoder's log.

    In three parts below `folder`, each resuming: autoencoder, flow, mapping. The log has validation losses on
    `validation` pictures. Raises `TrainingError` when a part was stopped before its end, `ValueError` for pictures that
    are too small for LPIPS.
    """
    check_size(domain)
    torch.manual_seed(recipe.seed)
    data, held_out = domain.split("train", square=True), domain.split("val", validation, square=True)
    drawer = Generator(**generator.config | {"n_mlp": recipe.n_mlp})
    drawer.load_state_dict(
        drawer.state_dict() | {k: v for k, v in generator.state_dict().items() if not k.startswith("style.")}
    )
    encoder = CodeEncoder(size=drawer.size, w_dim=drawer.w_dim, w_avg=generator.w_avg())
    loss = InversionLoss(load_lpips("alex", device), None)
    options = {"seed": recipe.seed, "device": device}
    task = AutoencoderTask(
        generator=drawer,
        encoder=encoder,
        loss=loss,
        data=data,
        view=domain.view,
        **options,
        **{name: getattr(recipe, name) for name in ("steps", "batch", "lr", "lr_decay")},
    )
    config = {"domain": domain.name, "pictures seen": data.fingerprint(), "start": fingerprint(generator)}
    config |= asdict(recipe)

    def finish(task, name: str, steps: int, **watched) -> pd.DataFrame:
        log = train(task, folder=Path(folder) / name, steps=steps, config=config, seed=recipe.seed, **watched)
        if load_state(Path(folder) / name / "state.pt")["step"] < steps:
            raise TrainingError(f"{Path(folder) / name}: stopped before its end; run it again to go on")
        return log

    validation_loss = {"evaluate": lambda step: task.validate(held_out), "evaluate_every": evaluate_every}
    log = finish(task, "autoencoder", recipe.steps, **validation_loss)
    codes = task.codes(data)
    flowing = FlowTask(flow=Flow(codes), codes=codes, steps=recipe.flow_steps, **options)
    finish(flowing, "flow", recipe.flow_steps)
    steps = recipe.mapping_steps
    mapping = MappingTask(generator=drawer, flow=flowing.average, count=recipe.pairs, steps=steps, **options)
    finish(mapping, "mapping", steps)
    drawer.eval().requires_grad_(False).latent_avg.copy_(drawer.mean_w())
    return drawer, codes, log


@torch.no_grad()
def scale_w(generator: Generator, like: Generator) -> None:
    """Makes w spread as those of another generator, within a factor of 1.4; pictures of z are the same to the bit.

    Codes of an autoencoder are as large as they like, but encoders and strengths of edits expect those of a StyleGAN2.
    The last mapping layer is divided by a power of two, by which the affine layers are multiplied.
    """

    def spread(net: Generator) -> Tensor:
        z = torch.randn(DRAW_BATCH, net.w_dim, generator=torch.Generator().manual_seed(0))
        return net.mapping(z.to(net.latent_avg)).std(0).mean()

    factor = 2.0 ** (spread(generator) / spread(like)).log2().round().item()
    for p in (*generator.style[-1].parameters(), generator.latent_avg):
        p.div_(factor)
    for _, layer, _ in generator.style_layers():
        layer.modulation.weight.mul_(factor)


def drawn_pictures(domain: Domain, data: Dataset, codes: Tensor | None, weight: float, device: str) -> DrawnPictures:
    """`DrawnPictures` of the first pictures of `data`, as many as fit in memory. Raises `ValueError` without codes."""
    if codes is None:
        raise InputError("drawn pictures need the codes of an autoencoder: train it first (decoder_steps)")
    codes = codes[: max(HELD // data.uint8([0]).nbytes, 1)]
    pictures = torch.from_numpy(data.uint8(range(len(codes))))
    return DrawnPictures(codes, pictures, InversionLoss(load_lpips("alex", device), None), weight, domain.view)
