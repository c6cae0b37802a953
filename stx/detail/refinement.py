"""Refinement from an encoder's codes, as users do it: a search in W+ that begins there, and pivotal tuning there.

Both are the searches of `stx.baselines.optimisation`; what tuning makes of the generator is kept as offsets, so that a
tuned generator is saved and edited as everything else is.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from stx.baselines.optimisation import project, tune
from stx.detail.kept import Detail, Inversion
from stx.detail.offsets import Offsets
from stx.inversion import InversionLoss
from stx.stylegan2.networks import Generator

SEARCH_RATE = 0.02  # of a search that begins near its end
TUNING_RATE = 1e-3  # three times the public one, for a third of its steps
STEPS = {"search": 100, "tuning": 100}


def refined(
    generator: Generator,
    loss: InversionLoss,
    image: Float[Tensor, "b 3 h w"],
    ws: Float[Tensor, "b num_ws w_dim"],
    method: str,
    *,
    steps: int | None = None,
    view: Callable[[Tensor], Tensor] = lambda image: image,
) -> Inversion:
    """Inversions of pictures that begin with `ws`. method: "search" or "tuning", with `steps` of each (`STEPS`)."""
    steps, side = STEPS[method] if steps is None else steps, max(image.shape[2:])
    if method == "search":
        found = project(generator, loss, image, start=ws, steps=steps, lr=SEARCH_RATE, code_noise=0.0, view=view)
        return Inversion(found.ws, {}, method, Detail(side=side))
    tuned = tune(generator, loss, image, ws, steps=steps, lr=TUNING_RATE, enough=0.0, view=view).generators
    before, after = dict(generator.named_parameters()), [dict(own.named_parameters()) for own in tuned]
    drawn = [name for name in before if not name.startswith("style.")]  # the mapping network does not draw
    kept = {name: torch.stack([own[name] - before[name] for own in after]).detach() for name in drawn}
    return Inversion(ws, kept, method, Offsets(side=side))
