"""How far a picture is from the domain: the distance of its code to those of training pictures, and its distortion.

Both are compared with validation pictures, which no training has seen, so that a score is a share of them. The code's
distance is Mahalanobis', in principal components with a floor for all other directions; the picture's is its LPIPS to
its inversion. Of a picture from elsewhere either may be large: an encoder gives ordinary codes for a photograph, whose
inversion then resembles nothing; the larger of the two, in standard deviations of their logarithms, is the score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stx.files.config import Configured
from stx.files.errors import InputError

FLOOR = 0.01  # of the mean variance of codes, in all directions
WARN = 0.002  # share of validation pictures at least as strange, from which downwards a picture is called strange


@dataclass(frozen=True)
class Strangeness:
    """Of pictures. score: in standard deviations; likely: share of validation pictures that are at least as strange.

    code, picture: the two parts of the score: distance of the code, distortion of the picture. The least that `likely`
    can be is one in their number.
    """

    score: Float[Tensor, "b"]
    likely: Float[Tensor, "b"]
    code: Float[Tensor, "b"]
    picture: Float[Tensor, "b"]

    @property
    def strange(self) -> Bool[Tensor, "b"]:
        """Which pictures are warned of."""
        return self.likely <= WARN

    def warnings(self, names: Sequence[str]) -> list[str]:
        """A sentence for every picture that is not of the domain, nothing for the others."""
        told = []
        for name, likely, code, picture in zip(
            names, self.likely.tolist(), self.code.tolist(), self.picture.tolist(), strict=True
        ):
            if likely <= WARN:
                what = "its inversion resembles it little" if picture >= code else "its code is unlike all others"
                told.append(
                    f"{name}: not a picture of this kind ({what}: stranger than {1 - likely:.1%} of known ones)"
                )
        return told


class Manifold(Configured, nn.Module):
    """Codes of a domain's training pictures as a Gaussian, and how far validation pictures are; made by `fit`.

    components: principal components; calibration: how many validation pictures there were; encoder: the fingerprint of
    the one whose codes these are ("": not told).
    """

    def __init__(self, *, num_ws: int, w_dim: int, components: int = 128, calibration: int = 1024, encoder: str = ""):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_ws * w_dim))
        self.register_buffer("basis", torch.zeros(num_ws * w_dim, components))
        self.register_buffer("spread", torch.ones(components))
        self.register_buffer("floor", torch.ones(()))
        self.register_buffer("usual", torch.zeros(2, 2))  # mean and deviation of the logarithms of both distances
        self.register_buffer("scores", torch.zeros(calibration))  # of validation pictures, in order

    def distance(self, ws: Float[Tensor, "b num_ws w_dim"]) -> Float[Tensor, "b"]:
        """The root mean square of a code's coordinates, each in its own standard deviation. About 1 in the domain."""
        if ws.flatten(1).shape[1] != len(self.mean):
            raise InputError(f"codes of shape {tuple(ws.shape)}: expected {len(self.mean)} numbers a picture")
        centred = ws.flatten(1).to(self.mean) - self.mean
        along = centred @ self.basis
        rest = (centred.square().sum(1) - along.square().sum(1)).clamp_min(0) / self.floor.square()
        return (((along / self.spread).square().sum(1) + rest) / len(self.mean)).sqrt()

    def forward(self, ws: Float[Tensor, "b num_ws w_dim"], distortion: Float[Tensor, "b"]) -> Strangeness:
        """How strange pictures are. distortion: their LPIPS to the pictures of their codes."""
        code, picture = self._deviations(self.distance(ws), distortion)
        score = torch.maximum(code, picture)
        beyond = len(self.scores) - torch.searchsorted(self.scores, score.contiguous())
        return Strangeness(score, (beyond + 1).float() / (len(self.scores) + 1), code, picture)

    def _deviations(self, *distances: Tensor) -> list[Tensor]:
        logs = [distance.to(self.usual).clamp_min(1e-12).log() for distance in distances]
        return [(log - mean) / deviation for log, (mean, deviation) in zip(logs, self.usual, strict=True)]


@torch.no_grad()
def fit(
    train: Float[Tensor, "n num_ws w_dim"],
    held_out: Float[Tensor, "m num_ws w_dim"],
    distortion: Float[Tensor, "m"],
    *,
    components: int = 128,
    encoder: str = "",
) -> Manifold:
    """The manifold of training codes, calibrated on the codes and distortions of held-out pictures.

    Raises `InputError` for too few of either. encoder: see `Manifold`.
    """
    if len(train) < 2 or len(held_out) < 2 or len(held_out) != len(distortion):
        raise InputError(f"{len(train)} training and {len(held_out)} held-out codes, {len(distortion)} distortions")
    net = Manifold(
        num_ws=train.shape[1],
        w_dim=train.shape[2],
        components=min(components, len(train) - 1, train[0].numel()),
        calibration=len(held_out),
        encoder=encoder,
    )
    flat = train.flatten(1).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    values, count = values.flip(0).clamp_min(0), net.basis.shape[1]
    floor = FLOOR * values.mean() + values[count:].mean().nan_to_num(0)
    net.mean.copy_(mean)
    net.basis.copy_(vectors.flip(1)[:, :count])
    net.spread.copy_((values[:count] + floor).sqrt())
    net.floor.copy_(floor.sqrt())
    logs = [part.clamp_min(1e-12).log() for part in (net.distance(held_out), distortion)]
    net.usual.copy_(torch.stack([torch.stack([log.mean(), log.std().clamp_min(1e-6)]) for log in logs]))
    net.scores.copy_(torch.maximum(*net._deviations(net.distance(held_out), distortion)).sort().values)
    return net.eval()
