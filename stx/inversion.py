"""Training of an encoder over a frozen generator: L2 + LPIPS + identity (Hu et al. 2022, equation 6).

The paper's weights are 1.0, 0.8 and 0.1, its optimiser Ranger at 1e-4 with batches of 8.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx import runtime
from stx.domains.splits import Dataset, mirrored
from stx.encoder import Encoder
from stx.files.errors import InputError
from stx.stylegan2.networks import Generator
from stx.training.loop import Resumable, falling_rate
from stx.training.ranger import Ranger

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHTS = {"l2": 1.0, "lpips": 0.8, "id": 0.1}


class InversionLoss(nn.Module):
    """L = l2 |I - G(w)|^2 + lpips LPIPS(I, G(w)) + id (1 - cos(R(I), R(G(w)))) (equation 6), |.|^2 a mean over pixels.

    weights: l2, lpips and id. perceptual: LPIPS, the paper's with AlexNet; identity: R, pictures to feature vectors, or
    None without the third term.
    """

    def __init__(self, perceptual: Callable, identity: Callable | None, weights: dict[str, float] | None = None):
        super().__init__()
        self.perceptual, self.identity = perceptual, identity
        self.weights = WEIGHTS | (weights or {})

    def parts(self, target: Float[Tensor, "b 3 h w"], image: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b"]]:
        """Each unweighted term of equation 6 per picture; pictures in [-1, 1]."""
        parts = {"l2": (image - target).square().mean((1, 2, 3)), "lpips": self.perceptual(image, target).flatten()}
        if self.identity is not None:
            parts["id"] = 1 - F.cosine_similarity(self.identity(image), self.identity(target))
        return parts

    def forward(self, target: Tensor, image: Tensor) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The weighted sum of the parts, each a mean over the batch; and these means."""
        means = {name: value.mean() for name, value in self.parts(target, image).items()}
        total = sum(self.weights[name] * value for name, value in means.items())
        return total, {name: value.item() for name, value in means.items()}

    @torch.no_grad()
    def validate(
        self, data: Dataset, pair: Callable[[Tensor], tuple[Tensor, Tensor]], *, device: str, batch: int = 64
    ) -> dict[str, float]:
        """Means over held-out pictures, names starting with `val_`. pair: a batch to its targets and what is drawn."""
        sums: dict[str, float] = {}
        for part in runtime.batches(len(data), batch):
            for name, value in self.parts(*pair(data.batch(part).to(device))).items():
                sums[name] = sums.get(name, 0.0) + value.sum().item()
        means = {name: total / len(data) for name, total in sums.items()}
        means["loss"] = sum(self.weights[name] * value for name, value in means.items())
        return {f"val_{name}": value for name, value in means.items()}


class Extra(Resumable):
    """Something beside the inversion losses; here one that neither changes with time nor learns."""

    kept = ()

    def begin(self, step: int) -> None:
        """Called before update `step`."""

    def loss(self, ws: Tensor, drawn: Tensor) -> Tensor:
        """A weighted term of the encoder's loss."""
        raise NotImplementedError

    def update(self, image: Tensor, ws: Tensor, drawn: Tensor, step: int) -> dict[str, float]:
        """What the extra itself learns from, after the encoder's update; returns what to log."""
        return {}


class InversionTask(Resumable):
    """Trains an encoder so that the frozen generator draws its input again (a `training.Task`).

    encoder: pictures to W+ codes; one that refines learns from each of its passes, the codes before being given
    (ReStyle, section 3.2). view: drawn pictures to the size of the data (`Domain.view`). lr may fall linearly to a
    hundredth over the last `lr_decay` share of `steps`. mirror: turn half of the pictures round. accumulate: parts in
    which a batch is computed, to save memory (batch norm sees a part). precision: "bfloat16" computes codes and
    pictures in it, losses and weights stay float32. extras: see `stx.baselines.e4e`. Raises `ValueError` for a batch
    that does not divide by parts and processes.
    """

    kept = ("encoder", "optimizer", "schedule")

    def __init__(
        self,
        *,
        encoder: Encoder,
        generator: Generator,
        loss: InversionLoss,
        data: Dataset,
        steps: int,
        batch: int = 8,
        lr: float = 1e-4,
        lr_decay: float = 0.0,
        mirror: bool = False,
        accumulate: int = 1,
        precision: str = "float32",
        view: Callable[[Tensor], Tensor] = lambda image: image,
        extras: Sequence[Extra] = (),
        seed: int = 0,
        device: str = "cpu",
    ):
        self.encoder, self.view = encoder.to(device), view
        self.generator = generator.to(device).eval().requires_grad_(False)
        self.loss, self.data, self.batch, self.mirror = loss.to(device), data, batch, mirror
        self.examples = len(data)
        self.seed, self.device, self.extras = seed, device, list(extras)
        if precision not in PRECISIONS:
            raise InputError(f"unknown precision {precision!r}; there is: {', '.join(PRECISIONS)}")
        if accumulate < 1 or batch % (accumulate * runtime.world_size()):
            raise InputError(
                f"a batch of {batch} does not divide by {accumulate} parts x {runtime.world_size()} processes"
            )
        self.accumulate, self.dtype = accumulate, PRECISIONS[precision]
        runtime.share_statistics(self.encoder)
        self.optimizer = Ranger([p for p in encoder.parameters() if p.requires_grad], lr=lr)
        self.schedule = falling_rate(self.optimizer, steps, lr_decay)

    def draw(self, ws: Float[Tensor, "b num_ws w_dim"]) -> Float[Tensor, "b 3 h w"]:
        """The generator's pictures of codes."""
        return self.view(self.generator(ws, noise="const"))

    def passes(self, image: Float[Tensor, "b 3 h w"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes and pictures of each pass; gradients reach one pass only."""
        if self.encoder.passes == 1:
            yield self._pass(image, self.encoder.latent_avg)
            return
        ws = self.encoder.latent_avg.expand(len(image), -1, -1)
        seen = self.draw(ws[:1]).expand(len(image), -1, -1, -1)
        for _ in range(self.encoder.passes):
            ws, seen = self._pass(torch.cat([image, seen.detach()], 1), ws.detach())
            yield ws, seen

    def step(self, step: int) -> dict[str, float]:
        """One update."""
        self.encoder.train()
        for extra in self.extras:
            extra.begin(step)
        whole = self._pictures(step)
        self.optimizer.zero_grad(set_to_none=True)
        logs, found = [], []
        with runtime.shared_dropout():
            for image in whole.chunk(self.accumulate):
                for ws, drawn in self.passes(image):
                    total, parts = self.loss(image, drawn)
                    (sum((extra.loss(ws, drawn) for extra in self.extras), total) / self.accumulate).backward()
                logs.append({"loss": total.item()} | parts)
                found.append((ws.detach(), drawn.detach()))
        runtime.average_gradients(self.optimizer)
        self.optimizer.step()
        self.schedule.step()
        log = {name: sum(part[name] for part in logs) / len(logs) for name in logs[0]}
        ws, drawn = map(torch.cat, zip(*found, strict=True))
        for extra in self.extras:
            log |= extra.update(whole, ws, drawn, step)
        return log

    def _pass(self, given: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(given.device.type, self.dtype, enabled=self.dtype != torch.float32):
            ws = base + self.encoder.offsets(given)
            return ws.float(), self.draw(ws).float()

    def _pictures(self, step: int) -> Tensor:
        """This process's pictures of a batch, some mirrored."""
        image = self.data.batch(runtime.share(self.positions(step))).to(self.device)
        return mirrored(image) if self.mirror else image

    def validate(self, data: Dataset) -> dict[str, float]:
        """Mean losses on held-out pictures, names starting with `val_`."""
        self.encoder.eval()

        def pair(image: Tensor) -> tuple[Tensor, Tensor]:
            return image, self.draw(self.encoder.invert(image, self.generator, self.view))

        return self.loss.validate(data, pair, device=self.device)

    def state_dict(self) -> dict:
        """Encoder, optimiser, schedule and the state of the extras."""
        return super().state_dict() | {f"extra_{i}": extra.state_dict() for i, extra in enumerate(self.extras)}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""
        super().load_state_dict(state)
        for i, extra in enumerate(self.extras):
            extra.load_state_dict(state[f"extra_{i}"])
