"""Codes on which a latent classifier learns what pictures show: mixed and edited ones beside ordinary ones.

A classifier of ordinary codes alone is certain everywhere and wrong along edits, which lead where it never was. Codes
along edits, drawn and judged by the image classifier, teach it what pictures show.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx import label_editing
from stx.evaluation.quality import MEASURE_BATCH
from stx.files.errors import EditError
from stx.matched_pairs import MatchedPairs
from stx.pipeline import Pipeline
from stx.runtime import batched, batches

LONGEST = 1.5  # strength of edits, 1 being a whole one
EDIT_BATCH = 256  # codes edited together


def mixed(ws: Float[Tensor, "n num_ws w_dim"], count: int, *, seed: int = 0) -> Float[Tensor, "count num_ws w_dim"]:
    """Codes each of whose tokens comes from one of two codes."""
    random = torch.Generator().manual_seed(seed)
    one, other = (ws[torch.randint(len(ws), (count,), generator=random)] for _ in range(2))
    return torch.where(torch.rand(count, ws.shape[1], 1, generator=random) < 0.5, one, other)


def edited(
    ws: Float[Tensor, "n num_ws w_dim"], matched: MatchedPairs, count: int, *, seed: int = 0
) -> Float[Tensor, "count num_ws w_dim"]:
    """Codes after an edit of a random attribute, added or removed, at a random strength up to `LONGEST`.

    Raises `EditError` where no edit is known.
    """
    random = torch.Generator().manual_seed(seed)
    source = ws[torch.randint(len(ws), (count,), generator=random)]
    known = torch.nonzero(matched.known)  # target and attribute
    if not len(known):
        raise EditError("too few training pictures to learn any edit from")
    target, index = known[torch.randint(len(known), (count,), generator=random)].T
    strength = LONGEST * torch.rand(count, generator=random)
    parts = [slice(part.start, part.stop) for part in batches(count, EDIT_BATCH)]
    moved = [matched(source[part], index[part].tolist(), target[part].float().tolist()) for part in parts]
    return label_editing.edit(source, torch.cat(moved), strength)


def training_codes(
    ws: Float[Tensor, "n num_ws w_dim"], matched: MatchedPairs, count: int, *, seed: int = 0
) -> Float[Tensor, "m num_ws w_dim"]:
    """The ordinary codes, and of `count` more a sixth mixed, a half edited once by matched pairs, a third twice."""
    once = edited(ws, matched, count // 2 + count // 3, seed=seed)
    twice = edited(once[count // 2 :], matched, count // 3, seed=seed + 1)
    return torch.cat([ws, mixed(ws, count // 6, seed=seed), once[: count // 2], twice])


def seen(
    pipe: Pipeline, attribute_classifier: nn.Module, ws: Float[Tensor, "n num_ws w_dim"]
) -> Float[np.ndarray, "n attributes"]:
    """The probabilities that the image classifier gives the attributes of the codes' pictures."""

    def look(part: Tensor) -> Tensor:
        return attribute_classifier(pipe.reconstruct(part.to(pipe.device))).sigmoid()

    return batched(look, ws, MEASURE_BATCH, desc="drawing and judging", unit="batch").numpy()
