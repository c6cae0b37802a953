"""Which attributes does a picture show: a small residual CNN with one logit per attribute, and a second opinion.

The judge has another architecture and seed, and no generator, encoder or editor is ever trained with it: an edit that
only deceives the classifier it was made with does not deceive both.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import shufflenet_v2_x0_5

from stx.domains.splits import Dataset
from stx.files.config import Configured
from stx.files.errors import InputError
from stx.perception.irse import IRSE
from stx.runtime import batched
from stx.stylegan2.ops import resize
from stx.training.loop import Resumable


class AttributeClassifier(Configured, nn.Module):
    """Pictures in [-1, 1] to logits, one per attribute.

    size: side of the pictures; widths, units: of the IR-SE backbone.
    """

    def __init__(self, *, size: int, attributes: Sequence[str], widths: Sequence[int], units: Sequence[int]):
        super().__init__()
        self.size, self.attributes = size, tuple(attributes)
        self.backbone = IRSE(widths=widths, units=units)
        area = (size // 2 ** len(widths)) ** 2
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(widths[-1] * area, len(attributes)))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b attributes"]:
        if image.shape[2:] != (self.size, self.size):
            image = resize(image, (self.size, self.size))
        return self.head(self.backbone(image)[-1])


class AttributeJudge(Configured, nn.Module):
    """Pictures in [-1, 1] to logits, by torchvision's ShuffleNet V2 (Ma et al. 2018) on pictures of `side` pixels."""

    def __init__(self, *, attributes: Sequence[str], side: int = 128):
        super().__init__()
        self.attributes, self.side = tuple(attributes), side
        self.net = shufflenet_v2_x0_5(num_classes=len(attributes))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b attributes"]:
        return self.net(resize(image, (self.side, self.side)))


class ClassifierTask(Resumable):
    """Trains an `AttributeClassifier` or an `AttributeJudge` on a labelled data set (a `training.Task`)."""

    def __init__(self, *, net: nn.Module, data: Dataset, batch=64, lr=2e-3, steps=1000, seed=0, device="cpu"):
        if data.labels is None:
            raise InputError("this domain has no labels: put a labels.csv beside its pictures")
        self.net, self.data, self.batch, self.seed, self.device = net.to(device), data, batch, seed, device
        self.examples = len(data)
        self.labels = torch.from_numpy(data.labels).float()
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps)

    def step(self, step: int) -> dict[str, float]:
        """One update; the pictures get a little noise, so that generated ones do not surprise the network."""
        self.net.train()
        where = self.positions(step)
        image = self.data.batch(where).to(self.device)
        image = image + 0.1 * torch.rand(len(image), 1, 1, 1, device=image.device) * torch.randn_like(image)
        loss = F.binary_cross_entropy_with_logits(self.net(image), self.labels[where].to(self.device))
        self.descend(loss)
        return {"loss": loss.item()}


def predict(net: nn.Module, data: Dataset, batch: int = 256) -> np.ndarray:
    """Logits for a whole data set, `[n, attributes]`."""
    net.eval()
    device = next(net.parameters()).device
    return batched(lambda image: net(image.to(device)), data, batch).numpy()
