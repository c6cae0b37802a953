"""Training of what keeps detail, over a frozen encoder and a frozen generator, by the encoders' own losses."""

import torch
from torch import Tensor

from stx import runtime
from stx.detail.kept import Detail, Edit
from stx.domains.datasets import Domain
from stx.domains.splits import Dataset
from stx.encoder import Encoder
from stx.inversion import InversionLoss
from stx.stylegan2.networks import Generator
from stx.training.loop import Resumable, falling_rate
from stx.training.ranger import Ranger


class DetailTask(Resumable):
    """Trains a `Detail` to draw what codes lose (a `training.Task`).

    edit: codes to edited ones, for those that practise edits. lr falls linearly over the last `lr_decay` of `steps`.
    """

    kept = ("net", "optimizer", "schedule")

    def __init__(
        self,
        *,
        net: Detail,
        encoder: Encoder,
        generator: Generator,
        loss: InversionLoss,
        domain: Domain,
        data: Dataset,
        edit: Edit,
        steps: int,
        batch: int = 8,
        lr: float = 5e-4,
        lr_decay: float = 0.5,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.net, self.edit, self.domain = net.to(device), edit, domain
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.generator = generator.to(device).eval().requires_grad_(False)
        self.loss, self.data, self.batch, self.examples = loss.to(device), data, batch, len(data)
        self.seed, self.device = seed, device
        runtime.share_statistics(self.net)
        self.optimizer = Ranger(net.trained(), lr=lr)
        self.schedule = falling_rate(self.optimizer, steps, lr_decay)

    def step(self, step: int) -> dict[str, float]:
        """One update."""
        self.net.train()
        image = self.data.batch(runtime.share(self.positions(step))).to(self.device)
        found = self.net.practice(self.generator, image, self._codes(image), self.edit)
        target, drawn = (torch.cat([self._viewed(pair[side]) for pair in found.pairs]) for side in (0, 1))
        total, parts = self.loss(target, drawn)
        total = sum(found.own.values(), total)
        self.descend(total)
        return {"loss": total.item()} | parts | {name: value.item() for name, value in found.own.items()}

    def validate(self, data: Dataset) -> dict[str, float]:
        """Mean losses of held-out pictures drawn again, names starting with `val_`."""
        self.net.eval()

        def pair(image: Tensor) -> tuple[Tensor, Tensor]:
            ws = self._codes(image)
            drawn = self.net.draw(self.generator, self.net.keep(self.generator, image, ws), ws, ws)
            return image, self._viewed(drawn)

        return self.loss.validate(data, pair, device=self.device)

    @torch.no_grad()
    def _codes(self, image: Tensor) -> Tensor:
        return self.encoder.invert(image, self.generator, self.domain.view)

    def _viewed(self, picture: Tensor) -> Tensor:
        """Drawn pictures as encoders see them; those of the data are as they are."""
        return picture if tuple(picture.shape[2:]) == self.domain.input_size else self.domain.view(picture)
