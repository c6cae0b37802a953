"""What all encoders have in common: one pass, or refinement from the encoder's own last picture (ReStyle).

Alaluf et al. 2021 (2104.02699): the encoder sees the picture and what its codes give so far, and tells the change of
the codes; it starts from the average code.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx.files.config import Configured
from stx.files.errors import InputError
from stx.stylegan2.networks import Generator

REFINEMENT_STEPS = 5  # of the public code's inference
SEES_ITS_PICTURE = 6  # channels: those of the picture and of what its codes give so far


class Encoder(Configured, nn.Module):
    """Pictures to W+ codes. `latent_avg [num_ws, w_dim]`: the average code, to which `offsets` are added.

    in_channels: 6 for an encoder that also sees its last picture; 3, or those of a sketch or of labels, for one pass.
    """

    def __init__(self, *, num_ws: int, w_dim: int, in_channels: int = 3):
        super().__init__()
        self.num_ws, self.w_dim, self.in_channels = num_ws, w_dim, in_channels
        self.register_buffer("latent_avg", torch.zeros(num_ws, w_dim))

    @classmethod
    def for_generator(
        cls, generator: Generator, *, widths: Sequence[int], units: Sequence[int], **options
    ) -> "Encoder":
        """A new one for a generator's codes. widths, units: of the backbone; options: as the constructor's.

        Raises `ValueError` when the last width is not the generator's w_dim.
        """
        if widths[-1] != generator.w_dim:
            raise InputError(f"the backbone ends with width {widths[-1]}, the generator's codes have {generator.w_dim}")
        net = cls(num_ws=generator.num_ws, widths=widths, units=units, **options)
        net.latent_avg.copy_(generator.w_avg())
        return net

    @property
    def passes(self) -> int:
        """How often `invert` runs the network."""
        return REFINEMENT_STEPS if self.in_channels == SEES_ITS_PICTURE else 1

    def offsets(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b num_ws w_dim"]:
        """What the network adds to the average code."""
        raise NotImplementedError

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b num_ws w_dim"]:
        """The W+ codes of pictures in [-1, 1], in one pass."""
        return self.offsets(image) + self.latent_avg

    def refine(
        self, image: Float[Tensor, "b 3 h w"], draw: Callable[[Tensor], Tensor], *, steps: int = REFINEMENT_STEPS
    ) -> list[Float[Tensor, "b num_ws w_dim"]]:
        """The codes after each step. draw: codes to pictures of the size of `image`, as the domain views them."""
        ws = self.latent_avg.expand(len(image), -1, -1)
        picture = draw(self.latent_avg[None]).expand(len(image), -1, -1, -1)
        found = []
        for _ in range(steps):
            ws = ws + self.offsets(torch.cat([image, picture], 1))
            found.append(ws)
            if len(found) < steps:
                picture = draw(ws)
        return found

    def invert(
        self,
        image: Float[Tensor, "b c h w"],
        generator: Generator,
        view: Callable[[Tensor], Tensor] = lambda image: image,
    ) -> Float[Tensor, "b num_ws w_dim"]:
        """The codes of pictures, by one pass or by refinement, whatever this encoder needs.

        Raises `InputError` for pictures of other channels than it takes.
        """
        if self.passes > 1:
            return self.refine(image, lambda ws: view(generator(ws, noise="const")))[-1]
        if image.shape[1] != self.in_channels:
            raise InputError(f"pictures of {image.shape[1]} channels: this encoder takes {self.in_channels}")
        return self(image)
