"""Codes on which a latent classifier learns what pictures show: mixed and edited ones beside ordinary ones.

A classifier of ordinary codes alone is certain everywhere and wrong along edits, which lead where it never was. Judged
by the image classifier on drawn pictures, codes along edits, its own among them, teach it better.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx import label_editing
from stx.evaluation.quality import MEASURE_BATCH
from stx.matched_pairs import MatchedPairs
from stx.pipeline import Pipeline
from stx.runtime import batched, batches

LONGEST, FARTHEST = 1.5, 24.0  # of edits by matched pairs, in edits; of those along gradients, in units of W+
PART = 256  # codes edited together

Change = Callable[[Tensor, list[int], list[float]], Tensor]


def mixed(ws: Float[Tensor, "n num_ws w_dim"], count: int, *, seed: int = 0) -> Float[Tensor, "count num_ws w_dim"]:
    """Codes each of whose tokens comes from one of two codes."""
    random = torch.Generator().manual_seed(seed)
    one, other = (ws[torch.randint(len(ws), (count,), generator=random)] for _ in range(2))
    return torch.where(torch.rand(count, ws.shape[1], 1, generator=random) < 0.5, one, other)


def edited(
    ws: Float[Tensor, "n num_ws w_dim"], change: Change, attributes: int, count: int, longest: float, *, seed: int = 0
) -> Float[Tensor, "count num_ws w_dim"]:
    """Codes after an edit of a random attribute, added or removed, at a random strength up to `longest`.

    change: the direction of edits for codes, positions of attributes and targets.
    """
    random = torch.Generator().manual_seed(seed)
    source = ws[torch.randint(len(ws), (count,), generator=random)]
    index = torch.randint(attributes, (count,), generator=random)
    target = torch.randint(2, (count,), generator=random).float()
    strength = longest * torch.rand(count, generator=random)
    parts = [slice(part.start, part.stop) for part in batches(count, PART)]
    moved = [change(source[part], index[part].tolist(), target[part].tolist()) for part in parts]
    return label_editing.edit(source, torch.cat(moved), strength)


def training_codes(
    ws: Float[Tensor, "n num_ws w_dim"], matched: MatchedPairs, count: int, *, seed: int = 0
) -> Float[Tensor, "m num_ws w_dim"]:
    """The ordinary codes, and of `count` more a sixth mixed, a half edited once by matched pairs, a third twice."""
    k = len(matched.attributes)
    once = edited(ws, matched, k, count // 2 + count // 3, LONGEST, seed=seed)
    twice = edited(once[count // 2 :], matched, k, count // 3, LONGEST, seed=seed + 1)
    return torch.cat([ws, mixed(ws, count // 6, seed=seed), once[: count // 2], twice])


def own_codes(
    classifier: nn.Module, ws: Float[Tensor, "n num_ws w_dim"], matched: MatchedPairs, count: int, *, seed: int = 0
) -> Float[Tensor, "m num_ws w_dim"]:
    """Codes edited along a classifier's own first-order and natural directions, half each: where it deceives itself."""
    orders = (
        lambda *given: label_editing.first_order(classifier, *given),
        lambda *given: label_editing.natural_order(classifier, *given, natural=matched.natural),
    )
    k = len(matched.attributes)
    return torch.cat([edited(ws, order, k, count // 2, FARTHEST, seed=seed + i) for i, order in enumerate(orders)])


def seen(
    pipe: Pipeline, attribute_classifier: nn.Module, ws: Float[Tensor, "n num_ws w_dim"]
) -> Float[np.ndarray, "n attributes"]:
    """The probabilities that the image classifier gives the attributes of the codes' pictures."""

    def look(part: Tensor) -> Tensor:
        return attribute_classifier(pipe.reconstruct(part.to(pipe.device))).sigmoid()

    return batched(look, ws, MEASURE_BATCH, desc="drawing and judging", unit="batch").numpy()
