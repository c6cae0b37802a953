"""Pictures of one split, read by position, and the order in which training reads them."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stx.domains import images
from stx.files.errors import DomainError

FOLDER_SPLITS = {"train": 0.80, "val": 0.05, "test": 0.15}


Positions = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Pictures of one split, read by position.

    read: position -> uint8 RGB `[h, w, 3]`; names: one per picture; labels: bool `[n, len(attributes)]`, or None.
    """

    read: Callable[[int], np.ndarray]
    names: Sequence[str]
    labels: Bool[np.ndarray, "n attributes"] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def uint8(self, positions: Positions) -> np.ndarray:
        """Pictures at these positions, uint8 `[b, h, w, 3]`."""
        return np.stack([self.read(int(i)) for i in positions])

    def subset(self, positions: Positions) -> "Dataset":
        """The pictures at these positions, in this order, as a data set."""
        labels = None if self.labels is None else self.labels[positions]
        return Dataset(lambda i: self.read(int(positions[i])), [self.names[i] for i in positions], labels)

    def fingerprint(self) -> str:
        """Twelve digits of all names and the first picture: what tells a resumed run that the pictures are others."""
        return hashlib.sha256(os.fsencode("\n".join(self.names)) + self.uint8([0]).tobytes()).hexdigest()[:12]

    def batch(self, positions: Positions) -> Float[Tensor, "b 3 h w"]:
        """Pictures at these positions in [-1, 1]."""
        return images.to_tensor(self.uint8(positions))


def mirrored(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures of which about half, by torch's random numbers, have left and right exchanged."""
    turned = torch.rand(len(image), 1, 1, 1, device=image.device) < 0.5
    return torch.where(turned, image.flip(3), image)


def check_split(name: str, count: int | None) -> None:
    """Raises `DomainError` for a split that no domain has, or for no pictures of it."""
    if name not in FOLDER_SPLITS:
        raise DomainError(f"unknown split {name!r}: expected one of {', '.join(FOLDER_SPLITS)}")
    if count is not None and count < 1:
        raise DomainError(f"{count} pictures of the split {name!r}: at least 1")
