"""Editors that are themselves trained, to compare label editing with: StyleFlow, latent transformer, LatentCLR.

Estimators as in `stx.baselines.directions`: `fit` on codes, `edit(ws, strength)`. All train in a minute or two on a
CPU. `watch` is called with the share that is done; what it raises ends the training.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from zuko.flows import CNF

from stx.baselines.directions import TokenMaps
from stx.runtime import plainly, progress
from stx.stylegan2.networks import Generator
from stx.training.loop import batch_positions

Watch = Callable[[float], None]


def _descend(
    parameters: Iterable[Tensor],
    loss_of: Callable[[int], Tensor],
    steps: int,
    *,
    lr: float,
    name: str,
    watch: Watch | None,
    falling: bool = True,
) -> list[float]:
    """The curve of a training by Adam. loss_of: a step's loss; falling: the rate falls to zero as a cosine."""
    optimizer, losses = torch.optim.Adam(parameters, lr=lr), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if falling else None
    for step in progress(range(steps), desc=name, unit="step"):
        if watch:
            watch(step / steps)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        losses.append(loss.item())
    return losses


class StyleFlow:
    """A conditional continuous normalising flow of w given the attributes (Abdal et al. 2021, 2008.02401).

    A code goes to noise under the attributes it has and back under those it should have. As in the paper the flow
    knows W; the tokens of a W+ code go through it one by one. Likelihood by Hutchinson's estimate of the divergence;
    the flow is zuko's, a plain network in place of the paper's gated layers.
    """

    def __init__(
        self,
        *,
        hidden: int = 512,
        steps: int = 300,
        batch: int = 128,
        lr: float = 1e-3,
        tolerance: float = 1e-2,
        seed: int = 0,
    ):
        self.hidden, self.steps, self.batch, self.lr = hidden, steps, batch, lr
        self.tolerance, self.seed = tolerance, seed

    @plainly
    def fit(
        self, w: Float[Tensor, "n w_dim"], probabilities: Float[Tensor, "n attributes"], watch: Watch | None = None
    ) -> "StyleFlow":
        """Samples of W and the probabilities of their attributes. `losses_` is the curve, in nats per number."""
        torch.manual_seed(self.seed)
        self.mean_, self.std_ = w.mean(0), w.std(0).clamp_min(1e-6)
        self.flow_ = CNF(
            w.shape[1],
            probabilities.shape[1],
            hidden_features=(self.hidden, self.hidden),
            exact=False,
            atol=self.tolerance,
            rtol=self.tolerance,
        ).to(w.device)
        normed = (w - self.mean_) / self.std_

        def loss_of(step: int) -> Tensor:
            where = batch_positions(len(w), min(self.batch, len(w)), step, self.seed)
            return -self.flow_(probabilities[where]).log_prob(normed[where]).mean() / w.shape[1]

        learning = {"lr": self.lr, "name": "StyleFlow", "watch": watch}
        self.losses_ = _descend(self.flow_.parameters(), loss_of, self.steps, **learning)
        self.flow_.eval().requires_grad_(False)
        return self

    @plainly
    @torch.no_grad()
    def edit(
        self,
        ws: Float[Tensor, "b num_ws w_dim"],
        strength: float,
        index: int = 0,
        *,
        probabilities: Float[Tensor, "b attributes"],
        target: float = 1.0,
    ) -> Float[Tensor, "b num_ws w_dim"]:
        """Codes whose attribute `index` has moved by `strength` times the way to `target`; 1 is all of it.

        probabilities: of the attributes that the codes have now.
        """
        return self.editor(ws, probabilities, index, target)(strength)

    @plainly
    @torch.no_grad()
    def editor(
        self,
        ws: Float[Tensor, "b num_ws w_dim"],
        probabilities: Float[Tensor, "b attributes"],
        index: int,
        target: float = 1.0,
    ) -> Callable[[float], Tensor]:
        """`edit` for many strengths: what does not depend on them is computed once."""
        tokens = rearrange((ws - self.mean_) / self.std_, "b n d -> (b n) d")
        given = self.flow_(probabilities.repeat_interleave(ws.shape[1], 0)).transform
        noise = given(tokens)
        again = given.inv(noise)  # the solver's own error is no edit

        @plainly
        @torch.no_grad()
        def edit(strength: float) -> Tensor:
            wanted = probabilities.clone()
            wanted[:, index] += strength * (target - probabilities[:, index])
            moved = self.flow_(wanted.repeat_interleave(ws.shape[1], 0)).transform.inv(noise)
            return ws + rearrange(moved - again, "(b n) d -> b n d", n=ws.shape[1]) * self.std_

        return edit


class LatentTransformer:
    """`TokenMaps` for all attributes at once (Yao et al. 2021), trained against a frozen latent classifier.

    The attribute reaches the other label, the other logits stay unless labels go together in the data, the code stays
    near. weights: of these three. What was learnt is `net_`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        steps: int = 300,
        batch: int = 8,
        lr: float = 1e-3,
        weights: tuple[float, float, float] = (1.0, 1.0, 10.0),
        seed: int = 0,
    ):
        self.classifier, self.steps, self.batch, self.lr = classifier, steps, batch, lr
        self.weights, self.seed = weights, seed

    @plainly
    def fit(
        self, ws: Float[Tensor, "n num_ws w_dim"], labels: Bool[np.ndarray, "n attributes"], watch: Watch | None = None
    ) -> "LatentTransformer":
        """Codes, and labels from which only the correlation of attributes is taken. `losses_` is the curve."""
        torch.manual_seed(self.seed)
        count, (num_ws, w_dim) = labels.shape[1], ws.shape[1:]
        together = np.atleast_2d(np.nan_to_num(np.corrcoef(labels.T.astype(float))))
        free = torch.from_numpy(1 - np.abs(together)).to(ws)
        self.net_ = TokenMaps(count=count, num_ws=num_ws, w_dim=w_dim).to(ws.device)
        self.net_.mean.copy_(ws.mean(0))
        size = min(self.batch * count, len(ws) - len(ws) % count)

        def loss_of(step: int) -> Tensor:
            codes = ws[batch_positions(len(ws), size, step, self.seed)]
            return self._loss(rearrange(codes, "(k b) n d -> k b n d", k=count), free)

        learning = {"lr": self.lr, "name": "latent transformer", "watch": watch}
        self.losses_ = _descend(self.net_.parameters(), loss_of, self.steps, **learning)
        self.net_.requires_grad_(False)
        return self

    @plainly
    @torch.no_grad()
    def edit(
        self, ws: Float[Tensor, "b num_ws w_dim"], strength: float, index: int = 0
    ) -> Float[Tensor, "b num_ws w_dim"]:
        """`ws + strength * T(ws)`; positive strengths add the attribute, 1 is what it was trained for."""
        return ws + strength * self.net_.moves(ws, index)

    def _loss(self, codes: Float[Tensor, "k b num_ws d"], free: Float[Tensor, "k k"]) -> Float[Tensor, ""]:
        count, b = codes.shape[:2]
        own = torch.arange(count, device=codes.device)
        with torch.no_grad():
            before = self.classifier(codes.flatten(0, 1))[0].unflatten(0, (count, b))
        p = before[own, :, own].sigmoid()  # [k, b]
        target = (p < 0.5).to(p)
        edited = codes + (target - p)[:, :, None, None] * self.net_(codes)
        after = self.classifier(edited.flatten(0, 1))[0].unflatten(0, (count, b))
        share = target.mean(1, keepdim=True)
        rarity = torch.where(target > 0.5, 1 / share.clamp_min(1 / b), 1 / (1 - share).clamp_min(1 / b))
        wanted = (F.binary_cross_entropy_with_logits(after[own, :, own], target, reduction="none") * rarity).mean(1)
        others = ((after - before) * free[:, None]).square().mean((1, 2))
        near = (edited - codes).square().mean((1, 2, 3))
        return sum(w * part.sum() for w, part in zip(self.weights, (wanted, others, near), strict=True))


class LatentCLR:
    """Directions that change the generator's features each in its own way (Yüksel et al. 2021, 2104.00820).

    `count` global directions of W: what one direction changes in the features of different codes should be alike, what
    different directions change should not (a contrastive loss on the differences). No labels are used. layer: whose
    output is compared; length: of a step while training. `directions_ [count, w_dim]` of unit length.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        count: int = 32,
        layer: str = "convs.3",
        length: float = 3.0,
        steps: int = 150,
        codes: int = 2,
        temperature: float = 0.5,
        seed: int = 0,
    ):
        self.generator, self.count, self.layer, self.length = generator, count, layer, length
        self.steps, self.codes, self.temperature, self.seed = steps, codes, temperature, seed

    @plainly
    def fit(self, w: Float[Tensor, "n w_dim"], watch: Watch | None = None) -> "LatentCLR":
        """Samples of W; every step takes `codes` of them. `losses_` is the curve."""
        torch.manual_seed(self.seed)
        free = torch.randn(self.count, w.shape[1], device=w.device, requires_grad=True)
        group = torch.arange(self.count, device=w.device).repeat_interleave(self.codes)

        def loss_of(step: int) -> Tensor:
            chosen = w[batch_positions(len(w), min(self.codes, len(w)), step, self.seed)]
            moved = chosen[None] + self.length * F.normalize(free, dim=1)[:, None]
            changes = self._features(moved.flatten(0, 1)) - self._features(chosen).repeat(self.count, 1).detach()
            return contrastive(changes, group, self.temperature)

        learning = {"lr": 1e-2, "name": "LatentCLR", "watch": watch, "falling": False}
        self.losses_ = _descend([free], loss_of, self.steps, **learning)
        self.directions_ = F.normalize(free.detach(), dim=1).cpu().numpy()
        return self

    @plainly
    def edit(self, ws: Float[Tensor, "b num_ws w_dim"], strength: float, index: int = 0) -> Tensor:
        """`ws` with direction `index` added to every token."""
        return ws + strength * torch.from_numpy(self.directions_[index]).to(ws)

    def _features(self, w: Float[Tensor, "b w_dim"]) -> Float[Tensor, "b features"]:
        return self.generator.features(self.generator.broadcast(w), last=self.layer)[self.layer].flatten(1)


def contrastive(x: Float[Tensor, "n d"], group: Sequence[int] | Tensor, temperature: float) -> Float[Tensor, ""]:
    """-log of the mean similarity within a group over that with other groups, exp(cosine / temperature) each."""
    x = F.normalize(x, dim=1)
    similarity = (x @ x.T / temperature).exp()
    group = torch.as_tensor(group, device=x.device)
    same = group[:, None] == group
    alike = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    positive = (similarity * alike).sum(1) / alike.sum(1)
    negative = (similarity * ~same).sum(1) / (~same).sum(1)
    return (negative / positive).log().mean()
