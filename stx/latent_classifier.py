"""Which attributes does a code show: logits and an embedding for each attribute of W+ codes (Hu et al. 2022, 3.3).

A shared MLP, then for every attribute a linear embedding and a linear logit. The public code's LCNet_40, whose
weights were never released, keeps two small layers for each of 40 attributes; here all are one batched product.
"""

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Num, Shaped
from scipy.special import expit
from torch import Tensor, nn

from stx.files.config import Configured
from stx.files.errors import InputError
from stx.metrics import share_interval
from stx.runtime import batched
from stx.training.loop import Resumable

ACTIVATIONS = {"leaky_relu": functools.partial(F.leaky_relu, negative_slope=0.2), "gelu": F.gelu}
CELEBA = (  # the forty, in CelebA's order
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose"),
    *("Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses"),
    *("Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
    *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks"),
    *("Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick"),
    *("Wearing_Necklace", "Wearing_Necktie", "Young"),
)


class LatentClassifier(Configured, nn.Module):
    """W+ codes to logits C_l^k(w) = b_k . C_f^k(w) + c_k and embeddings C_f^k(w) = A_k MLP(w) + a_k (section 3.3).

    num_ws, w_dim: shape of the codes; attributes: their names; hidden: widths of the shared MLP; dim: of an embedding.
    activation: of the MLP; "gelu" is smooth, so that logits have second derivatives, "leaky_relu" is the paper's.
    """

    def __init__(
        self,
        *,
        num_ws: int,
        w_dim: int,
        attributes: Sequence[str],
        hidden: Sequence[int] = (2048, 512),
        dim: int = 32,
        activation: str = "leaky_relu",
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"unknown activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        self.num_ws, self.w_dim, self.attributes = num_ws, w_dim, tuple(attributes)
        widths, count = [num_ws * w_dim, *hidden], len(attributes)
        self.fcs = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.embedding_weight = nn.Parameter(torch.randn(count, dim, widths[-1]) / widths[-1] ** 0.5)
        self.embedding_bias = nn.Parameter(torch.zeros(count, dim))
        self.logit_weight = nn.Parameter(torch.randn(count, dim) / dim**0.5)
        self.logit_bias = nn.Parameter(torch.zeros(count))

    def forward(
        self, ws: Float[Tensor, "b num_ws w_dim"]
    ) -> tuple[Float[Tensor, "b attributes"], Float[Tensor, "b attributes dim"]]:
        """Logits, positive where the attribute is likely, and embeddings. Raises `ValueError` for other shapes."""
        if ws.ndim != 3 or tuple(ws.shape[1:]) != (self.num_ws, self.w_dim):
            raise InputError(f"codes of shape {tuple(ws.shape)}: expected [batch, {self.num_ws}, {self.w_dim}]")
        x = ws.flatten(1)
        for layer in self.fcs:
            x = self.activation(layer(x))
        embeddings = torch.einsum("bh,kdh->bkd", x, self.embedding_weight) + self.embedding_bias
        return (embeddings * self.logit_weight).sum(2) + self.logit_bias, embeddings


class LatentClassifierTask(Resumable):
    """Trains a `LatentClassifier` on labelled codes by the mean of BCE(C_l^k(w), y_k) (a `training.Task`).

    labels: or probabilities, of what the codes' pictures show. noise: standard deviation added to codes, in units of
    each number's own. weight_decay: AdamW's.
    """

    def __init__(
        self,
        *,
        net: LatentClassifier,
        ws: Float[Tensor, "n num_ws w_dim"],
        labels: Shaped[np.ndarray, "n attributes"],
        batch: int = 128,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        noise: float = 0.1,
        steps: int = 1000,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.net, self.ws, self.labels = net.to(device), ws, torch.from_numpy(labels).float()
        self.examples, self.batch, self.seed, self.device = len(ws), batch, seed, device
        self.noise = noise * ws.std(0).to(device)
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps)

    def step(self, step: int) -> dict[str, float]:
        """One update."""
        self.net.train()
        where = self.positions(step)
        ws = self.ws[where].to(self.device)
        logits, _ = self.net(ws + self.noise * torch.randn_like(ws))
        loss = F.binary_cross_entropy_with_logits(logits, self.labels[where].to(self.device))
        self.descend(loss)
        return {"loss": loss.item()}


def predict(net: LatentClassifier, ws: Float[Tensor, "n num_ws w_dim"], batch: int = 1024) -> np.ndarray:
    """Logits of many codes, `[n, attributes]`."""
    net.eval()
    device = net.logit_bias.device
    return batched(lambda part: net(part.to(device))[0], ws, batch).numpy()


def calibrate(net: LatentClassifier, logits: np.ndarray, labels: Shaped[np.ndarray, "n attributes"]) -> np.ndarray:
    """C_l^k / T_k for every attribute, with the T_k of the least BCE on held-out labels (Guo et al. 2017).

    The temperatures, one per attribute, are folded into the network's last layer and returned.
    """
    given, wanted = torch.from_numpy(logits).double(), torch.from_numpy(labels).double()
    log_t = torch.zeros(given.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(given / log_t.exp(), wanted)
        loss.backward()
        return loss

    optimizer.step(closure)
    temperature = log_t.detach().exp().clamp(0.05, 20)
    scale = (1 / temperature).to(net.logit_bias)
    with torch.no_grad():
        net.logit_weight.mul_(scale[:, None])
        net.logit_bias.mul_(scale)
    return temperature.numpy()


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> np.ndarray:
    """Expected calibration error per attribute: |observed frequency - mean predicted probability|, averaged over bins.

    Bins are of predicted probability and equally wide; each counts by its predictions.
    """
    from sklearn.calibration import calibration_curve  # slow to import

    errors, inner_edges = [], np.linspace(0, 1, bins + 1)[1:-1]
    for shown, predicted in zip(labels.T, expit(logits.astype(np.float64)).T, strict=True):
        observed, mean = calibration_curve(shown, predicted, n_bins=bins)  # of the bins with predictions
        counts = np.bincount(np.searchsorted(inner_edges, predicted))
        errors.append(np.average(np.abs(observed - mean), weights=counts[counts > 0]))
    return np.array(errors)


def reliability(
    logits: Float[np.ndarray, "n attributes"], wanted: Num[np.ndarray, "n attributes"], *, bins: int = 10
) -> pd.DataFrame:
    """How often what is predicted is so: a row per bin of predicted probability, all attributes together.

    wanted: labels, or probabilities that count as so above one half. An edge belongs to the bin below it. Columns:
    count, mean predicted probability, observed frequency with its 95 % Wilson interval, NaN in empty bins.
    """
    predicted, shown = expit(logits.astype(np.float64)).ravel(), wanted.ravel() > 0.5
    where, rows = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], predicted), []
    for k in range(bins):
        own = where == k
        mean = predicted[own].mean() if own.any() else np.nan
        rows.append([int(own.sum()), mean, *share_interval(shown[own])])
    return pd.DataFrame(rows, columns=["count", "predicted", "observed", "low", "high"])
