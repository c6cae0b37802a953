"""Training of an encoder over a frozen generator: L2 + LPIPS + identity (Hu et al. 2022, equation 6).

The paper's weights are 1.0, 0.8 and 0.1, its optimiser Ranger at 1e-4 with batches of 8.
"""

from collections.abc import Callable

import lpips
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.domains import Dataset, batch_positions
from stx.ranger import Ranger
from stx.stylegan2 import Generator

WEIGHTS = {"l2": 1.0, "lpips": 0.8, "id": 0.1}


class InversionLoss(nn.Module):
    """The weighted sum and its parts. lpips: AlexNet LPIPS; identity: pictures to unit vectors, or None without."""

    def __init__(self, perceptual: lpips.LPIPS, identity: nn.Module | None, weights: dict[str, float] | None = None):
        super().__init__()
        self.perceptual, self.identity = perceptual, identity
        self.weights = WEIGHTS | (weights or {})

    def parts(self, target: Float[Tensor, "b 3 h w"], image: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b"]]:
        """Each loss per picture."""
        parts = {
            "l2": (image - target).square().mean((1, 2, 3)),
            "lpips": self.perceptual(image, target).flatten(),
        }
        if self.identity is not None:
            parts["id"] = 1 - F.cosine_similarity(self.identity(image), self.identity(target))
        return parts

    def forward(self, target: Tensor, image: Tensor) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The weighted sum over the batch, and the mean of each part."""
        means = {name: value.mean() for name, value in self.parts(target, image).items()}
        total = sum(self.weights[name] * value for name, value in means.items())
        return total, {name: value.item() for name, value in means.items()}


class InversionTask:
    """Trains an encoder so that the frozen generator draws its input again (a `training.Task`).

    encoder: pictures to W+ codes. view: drawn pictures to the size of the data (`Domain.view`). lr may fall linearly to
    zero over the last `decay` share of `steps`.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        generator: Generator,
        loss: InversionLoss,
        data: Dataset,
        steps: int,
        batch: int = 8,
        lr: float = 1e-4,
        decay: float = 0.0,
        mirror: bool = False,
        view: Callable[[Tensor], Tensor] = lambda image: image,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.encoder, self.view = encoder.to(device), view
        self.generator = generator.to(device).eval().requires_grad_(False)
        self.loss, self.data, self.batch, self.mirror = loss.to(device), data, batch, mirror
        self.seed, self.device = seed, device
        self.optimizer = Ranger([p for p in encoder.parameters() if p.requires_grad], lr=lr)

        def rate(step: int) -> float:
            left = (steps - step) / max(steps * decay, 1)
            return min(1.0, max(left, 0.01)) if decay else 1.0

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def positions(self, step: int) -> list[int]:
        """Data positions of batch `step`."""
        return batch_positions(len(self.data), self.batch, step, self.seed).tolist()

    def redraw(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The generator's pictures of the codes that the encoder finds."""
        return self.view(self.generator(self.encoder(image), noise="const"))

    def step(self, step: int) -> dict[str, float]:
        """One update."""
        self.encoder.train()
        image = self.data.batch(self.positions(step)).to(self.device)
        if self.mirror:
            image = torch.where(torch.rand(len(image), 1, 1, 1, device=image.device) < 0.5, image.flip(3), image)
        total, parts = self.loss(image, self.redraw(image))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.schedule.step()
        return {"loss": total.item()} | parts

    @torch.no_grad()
    def validate(self, data: Dataset, batch: int = 64) -> dict[str, float]:
        """Mean losses on held-out pictures, names starting with `val_`."""
        self.encoder.eval()
        sums: dict[str, float] = {}
        for first in range(0, len(data), batch):
            image = data.batch(range(first, min(first + batch, len(data)))).to(self.device)
            parts = self.loss.parts(image, self.redraw(image))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.sum().item()
        means = {name: total / len(data) for name, total in sums.items()}
        means["loss"] = sum(self.loss.weights[name] * value for name, value in means.items())
        return {f"val_{name}": value for name, value in means.items()}

    def state_dict(self) -> dict:
        """Encoder, optimiser and schedule."""
        return {name: getattr(self, name).state_dict() for name in ("encoder", "optimizer", "schedule")}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)
