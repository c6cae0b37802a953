"""Who is it: an IR-SE network trained with an additive angular margin (ArcFace, arXiv 1801.07698).

Gives the ID loss of training and the ID similarity of the tables. On avatars a person is everything but expression,
glasses and background (see `stx.avatars.Person`).
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from stx import avatars, images
from stx.backbone import IRSE
from stx.domains import batch_positions


class IdentityNet(nn.Module):
    """Pictures to unit vectors; the cosine of two says how alike the persons are.

    size: side of the pictures; widths, units: of the IR-SE backbone; dim: length of the vectors.
    """

    def __init__(self, *, size: int, dim: int, widths: Sequence[int], units: Sequence[int], dropout: float = 0.2):
        super().__init__()
        self.size = size
        self.config = {
            "size": size,
            "dim": dim,
            "widths": list(widths),
            "units": list(units),
        }
        self.backbone = IRSE(widths=widths, units=units)
        area = (size // 2 ** len(widths)) ** 2
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(widths[-1] * area, dim),
            nn.BatchNorm1d(dim),
        )

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Embeddings of unit length of pictures in [-1, 1]; other sizes are resized."""
        if image.shape[2:] != (self.size, self.size):
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)
        return F.normalize(self.output_layer(self.backbone(image)[-1]))


class ArcFaceHead(nn.Module):
    """Logits over identities, the angle to the right one enlarged by `margin` (radians), times `scale`."""

    def __init__(self, dim: int, classes: int, *, margin: float = 0.3, scale: float = 24.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dim) * 0.01)
        self.margin, self.scale = margin, scale

    def forward(self, embedding: Float[Tensor, "b dim"], target: Int[Tensor, "b"]) -> Float[Tensor, "b classes"]:
        cosine = F.linear(embedding, F.normalize(self.weight)).clamp(-1 + 1e-6, 1 - 1e-6)
        right = cosine.gather(1, target[:, None])
        shifted = (right.acos() + self.margin).clamp(max=math.pi).cos()
        return self.scale * cosine.scatter(1, target[:, None], shifted)


def redrawn(people: Sequence[avatars.Avatar], looks: int, seed: int) -> np.ndarray:
    """Every person drawn `looks` times with random looks, uint8 `[people, looks, h, w, 3]`."""
    rng = random.Random(f"looks/{seed}")
    jobs = [avatars.redraw(a, rng) for a in people for _ in range(looks)]
    pictures = [avatars.draw(job) for job in tqdm(jobs, desc="drawing persons", unit="img")]
    return np.stack(pictures).reshape(len(people), looks, *pictures[0].shape)


class IdentityTask:
    """Trains an `IdentityNet` on pictures of known persons (a `training.Task`).

    pictures: uint8 `[persons, looks, h, w, 3]`.
    """

    def __init__(self, *, net: IdentityNet, pictures: np.ndarray, batch=64, lr=1e-3, steps=1000, seed=0, device="cpu"):
        self.net, self.pictures, self.device = net.to(device), pictures.reshape(-1, *pictures.shape[2:]), device
        self.looks, self.batch, self.seed = pictures.shape[1], batch, seed
        self.head = ArcFaceHead(net.output_layer[-1].num_features, len(pictures)).to(device)
        parameters = [*net.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps)

    def positions(self, step: int) -> list[int]:
        """Data positions of batch `step`."""
        return batch_positions(len(self.pictures), self.batch, step, self.seed).tolist()

    def step(self, step: int) -> dict[str, float]:
        """One update."""
        self.net.train()
        where = np.array(self.positions(step))
        image = images.to_tensor(self.pictures[where]).to(self.device)
        target = torch.from_numpy(where // self.looks).to(self.device)
        logits = self.head(self.net(image), target)
        loss = F.cross_entropy(logits, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss.item(), "accuracy": (logits.argmax(1) == target).float().mean().item()}

    def state_dict(self) -> dict:
        """Network, head, optimiser and schedule."""
        return {name: getattr(self, name).state_dict() for name in ("net", "head", "optimizer", "schedule")}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)


@torch.no_grad()
def embed(net: IdentityNet, pictures: np.ndarray, batch: int = 256) -> Float[Tensor, "n dim"]:
    """Embeddings of uint8 pictures `[n, h, w, 3]`."""
    net.eval()
    device = next(net.parameters()).device
    return torch.cat(
        [net(images.to_tensor(pictures[i : i + batch]).to(device)) for i in range(0, len(pictures), batch)]
    )


def verification(net: IdentityNet, pictures: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of genuine pairs (two looks of a person) and of as many impostor pairs.

    pictures: uint8 `[persons, 2, h, w, 3]`, persons all different.
    """
    first, second = embed(net, pictures[:, 0]), embed(net, pictures[:, 1])
    shift = 1 + np.random.RandomState(seed).randint(len(first) - 1)
    genuine, impostor = (first * second).sum(1), (first * second.roll(shift, 0)).sum(1)
    return genuine.cpu().numpy(), impostor.cpu().numpy()
