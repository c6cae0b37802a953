"""Edit directions in W or W+, as InterFaceGAN and GANSpace give them."""

import torch
from torch import nn

from stx.stylegan2 import Generator


class Directions(nn.Module):
    """Edit directions in W or W+: `directions [count, tokens, w_dim]` of unit length, tokens 1 for W.

    GANSpace's also have `mean [w_dim]` and `std [count]` of the principal components; zeros and ones otherwise.
    """

    def __init__(self, *, count: int, tokens: int, w_dim: int):
        super().__init__()
        self.config = {"count": count, "tokens": tokens, "w_dim": w_dim}
        self.register_buffer("directions", torch.zeros(count, tokens, w_dim))
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("std", torch.ones(count))

    def check_fit(self, generator: Generator) -> None:
        """Raises `ValueError` with both shapes when the directions are not of this generator's codes."""
        tokens, w_dim = self.directions.shape[1:]
        if w_dim != generator.w_dim or tokens not in (1, generator.num_ws):
            raise ValueError(
                f"directions of {tokens} x {w_dim} do not fit codes of {generator.num_ws} x {generator.w_dim}"
            )
