"""Label-based editing: every code gets its own direction from the latent classifier (Hu et al. 2022, section 3.3).

First order: against the gradient of the loss of a label. Second order: the dominant eigenvector of the loss's Hessian,
by power iteration on finite differences of the gradient. Beside them, the form that the released script computes, and
two of ours that measure steps by how codes vary: natural (Amari 1998) and constrained to leave other logits alone.
`classifier` is any module from codes to (logits, embeddings), as `stx.latent_classifier` gives.
"""

import copy
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stx.files.errors import EditError, WeightsError

ITERATIONS, XI = 8, 1e-2  # of the power iteration: the released script has one iteration and 1e-4
RESOLVED = 1e-9  # of the gradient's length: a smaller change of it is rounding


def position(attribute: str, attributes: Sequence[str]) -> int:
    """The index of an attribute. Raises `EditError` that lists the known ones and the nearest."""
    if attribute in attributes:
        return list(attributes).index(attribute)
    near = difflib.get_close_matches(attribute.lower(), [a.lower() for a in attributes], n=1, cutoff=0.4)
    hint = next((f" (did you mean {a}?)" for a in attributes if near and a.lower() == near[0]), "")
    raise EditError(f"unknown attribute {attribute!r}{hint}; known: {', '.join(attributes)}")


def check_labels(folder: Path, known: Sequence[str], labels: Sequence[str]) -> None:
    """Raises `WeightsError` for a network in `folder` that knows other attributes than the labels that there are."""
    if known and labels and tuple(known) != tuple(labels):
        other = ", ".join(sorted(set(known) ^ set(labels))) or "their order"
        raise WeightsError(f"{folder}: trained on other labels than the domain has now ({other}); train it again")


def choose(words: str, attributes: Sequence[str], usual: Sequence[str]) -> dict[str, int]:
    """The attributes that `words` names, with commas between them, and their positions.

    "" stands for as many as `usual` has: those of it that are known, then the first of the others. Raises `EditError`
    for an unknown one.
    """
    named = [word.strip() for word in words.split(",") if word.strip()]
    known = [name for name in usual if name in attributes]
    names = named or [*known, *(name for name in attributes if name not in known)][: len(usual)]
    return {name: position(name, attributes) for name in names}


def addable(chosen: dict[str, int], labels: Bool[np.ndarray, "n attributes"]) -> dict[str, int]:
    """Of chosen attributes those that some picture lacks. Raises `EditError` when every picture shows all of them."""
    found = {name: k for name, k in chosen.items() if not labels[:, k].all()}
    if not found:
        raise EditError(f"all {len(labels)} pictures show {', '.join(chosen)}: take more pictures, or other attributes")
    return found


def normalise(direction: Float[Tensor, "b num_ws w_dim"], *, per_token: bool = False) -> Tensor:
    """Unit length over the whole code, or for each token (as the released script has it). Zeros stay zeros."""
    axes = (2,) if per_token else (1, 2)
    return direction / direction.norm(dim=axes, keepdim=True).clamp_min(1e-12)


def label_gradient(
    classifier: nn.Module, ws: Float[Tensor, "b num_ws w_dim"], index: Sequence[int], target: Sequence[float]
) -> Float[Tensor, "b num_ws w_dim"]:
    """The gradient of each code's own loss BCE(C_l^k(w), y): attribute `index[i]`, label `target[i]` for code i."""
    return _gradient(classifier, ws, index, lambda logits: _bce(logits, target))


def _towards(target: Sequence[float], ws: Float[Tensor, "b num_ws w_dim"]) -> Float[Tensor, "b 1 1"]:
    """1 where the label is wanted, -1 where it is not."""
    return torch.tensor([1.0 if y > 0.5 else -1.0 for y in target], device=ws.device, dtype=ws.dtype)[:, None, None]


def _logit_gradient(classifier: Callable, ws: Tensor, index: Sequence[int]) -> Tensor:
    return _gradient(classifier, ws, index, torch.sum)


def _gradient(classifier: Callable, ws: Tensor, index: Sequence[int], of: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():  # also where the caller infers
        ws = (ws.clone() if ws.is_inference() else ws.detach()).requires_grad_()
        logits, _ = classifier(ws)
        chosen = logits.gather(1, torch.as_tensor(index, device=ws.device)[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(of(chosen), ws)
    return gradient


def _bce(logits: Tensor, target: Sequence[float]) -> Tensor:
    wanted = torch.as_tensor(target, device=logits.device, dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")


def first_order(
    classifier: Callable,
    ws: Float[Tensor, "b num_ws w_dim"],
    index: Sequence[int],
    target: Sequence[float],
    *,
    per_token: bool = False,
) -> Float[Tensor, "b num_ws w_dim"]:
    """n = -g / |g| with g = grad_w BCE(C_l^k(w), y): the steepest descent of each code's own loss (section 3.3).

    g is (P - y) times the gradient of the logit; only its direction counts, so the logit's is taken, with the sign of
    logit(y) - logit(P): the factor rounds to zero where the classifier is certain.

    Args: ws W+ codes; index, target: attribute k and wanted label y (1: add, 0: remove, or the probability to reach) of
    every code; per_token: unit length of each token, as the released script has it, instead of the whole code.
    Returns unit directions of the shape of `ws`.
    """

    def uphill(logits: Tensor) -> Tensor:
        wanted = torch.as_tensor(target, device=logits.device, dtype=logits.dtype).logit()
        return (torch.sign(wanted - logits) * logits).sum()

    return normalise(_gradient(classifier, ws, index, uphill), per_token=per_token)


def second_order(
    classifier: nn.Module,
    ws: Float[Tensor, "b num_ws w_dim"],
    index: Sequence[int],
    target: Sequence[float],
    *,
    per_token: bool = False,
    iterations: int = ITERATIONS,
    xi: float = XI,
    seed: int = 0,
) -> Float[Tensor, "b num_ws w_dim"]:
    """The dominant eigenvector d of the Hessian H of each code's loss, by power iteration (section 3.3).

    d <- Hd / |Hd| with Hd = (g(w + xi d) - g(w)) / xi, from a random unit d of `seed`, `iterations` times.

    Of the two signs the one that lowers the loss is taken. Computed in float64. For a classifier that is linear in
    pieces, as a leaky ReLU network is, the Hessian within a piece is a multiple of g g^T, so that a small xi gives the
    first-order direction again; a larger one sees across the pieces' borders. Where the Hessian vanishes, because the
    classifier is certain, there is no second order: the direction is zero.
    """
    random = torch.Generator("cpu").manual_seed(seed)
    double = torch.float64 if ws.device.type != "mps" else ws.dtype  # which MPS does not have
    with torch.inference_mode(False):  # also where the caller infers
        exact, w = copy.deepcopy(classifier).to(dtype=double), ws.clone().to(double)
    zero = label_gradient(exact, w, index, target)
    noise = RESOLVED * zero.norm(dim=(1, 2), keepdim=True)
    direction = normalise(torch.randn(ws.shape, generator=random, dtype=torch.float32, device="cpu").to(w))
    for _ in range(iterations):
        change = (label_gradient(exact, w + xi * direction, index, target) - zero) / xi
        there = change.norm(dim=(1, 2), keepdim=True) > noise
        direction = torch.where(there, normalise(change), torch.zeros_like(change))
    sign = -torch.sign((direction * zero).sum((1, 2), keepdim=True))
    direction = torch.where(sign == 0, direction, sign * direction).to(ws.dtype)
    return normalise(direction, per_token=True) if per_token else direction


def natural_order(
    classifier: nn.Module,
    ws: Float[Tensor, "b num_ws w_dim"],
    index: Sequence[int],
    target: Sequence[float],
    *,
    natural: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b num_ws w_dim"]:
    """Sigma g / |Sigma g| with g the gradient of the logit: steepest where a step is measured by the spread of codes.

    A gradient alone points where codes hardly vary and the generator hardly draws. natural: multiplies by Sigma, as
    `stx.matched_pairs.MatchedPairs.natural` does. Ours; the natural gradient is Amari's (1998).
    """
    return normalise(natural(_towards(target, ws) * _logit_gradient(classifier, ws, index)))


def constrained_order(
    classifier: nn.Module,
    ws: Float[Tensor, "b num_ws w_dim"],
    index: Sequence[int],
    target: Sequence[float],
    *,
    natural: Callable[[Tensor], Tensor],
    tied: Bool[Tensor, "attributes attributes"],
    ridge: float = 1e-2,
) -> Float[Tensor, "b num_ws w_dim"]:
    """The least step in the metric of codes that moves one logit and leaves the others: Sigma J^T (J Sigma J^T)^-1 e_k.

    J: the Jacobian of all logits. tied: `[k, j]` where label j cannot stay when k changes (hair colours): its logit is
    free. ridge: of the inverse, in units of its mean diagonal. Ours.
    """
    rows = [_logit_gradient(classifier, ws, [k] * len(ws)) for k in range(len(tied))]
    jacobian = torch.stack(rows, 1)  # [b, attributes, num_ws, w_dim]
    spread = natural(jacobian)
    gram = torch.einsum("bknd,bjnd->bkj", jacobian, spread)
    where = torch.as_tensor(index, device=ws.device)
    bound = ~tied.to(ws.device)[where]  # the attribute itself among them
    gram = gram * bound[:, :, None] * bound[:, None]
    size = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    eye = torch.eye(gram.shape[1], device=ws.device, dtype=ws.dtype)
    wanted = F.one_hot(where, gram.shape[1]).to(ws.dtype)[:, :, None]
    weights = torch.linalg.solve(gram + ridge * size * eye, wanted) * bound[:, :, None]
    return normalise(_towards(target, ws) * (weights[..., None] * spread).sum(1))


def released_second_order(
    classifier: nn.Module, ws: Float[Tensor, "b num_ws w_dim"], index: int, *, xi: float = 1e-4, seed: int = 0
) -> Float[Tensor, "b num_ws w_dim"]:
    """What the released script takes for the second order (coach_label_edit.py, 79-105), as a direction to add.

    It subtracts the unscaled gradient from xi times another one, which leaves the plain gradient towards label 1, and
    keeps its random start: -(d0 + g / |g|) per token, d0 ~ N(0, 1), of which the script adds three times.
    """
    random = torch.Generator("cpu").manual_seed(seed)
    start = torch.randn(ws.shape, generator=random, dtype=torch.float32, device="cpu").to(ws)
    where, ones = [index] * len(ws), [1.0] * len(ws)
    moved = xi * label_gradient(classifier, ws + xi * start, where, ones)
    difference = (moved - label_gradient(classifier, ws, where, ones)) / len(ws)  # the script's loss is a mean
    return -(start - normalise(difference, per_token=True))


def walk(
    classifier: nn.Module,
    ws: Float[Tensor, "b num_ws w_dim"],
    index: Sequence[int],
    target: Sequence[float],
    strength: float,
    *,
    steps: int = 1,
    order: Callable[..., Tensor] = first_order,
    tokens: slice = slice(None),
    **options,
) -> Float[Tensor, "b num_ws w_dim"]:
    """The codes after `steps` equal steps of `strength` in all, the direction taken anew before each.

    order: `first_order`, `natural_order`, ..., which take `options`.
    """
    for _ in range(steps):
        ws = edit(ws, order(classifier, ws, index, target, **options), strength / steps, tokens=tokens)
    return ws


@torch.no_grad()
def strength_for(
    classifier: nn.Module,
    ws: Float[Tensor, "b num_ws w_dim"],
    direction: Float[Tensor, "b num_ws w_dim"],
    index: Sequence[int],
    target: Sequence[float],
    probability: float,
    *,
    most: float = 60.0,
    steps: int = 241,
) -> Float[Tensor, "b"]:
    """The least strength at which P(label i is target i) reaches `probability`, or NaN where `most` does not.

    Searched on a grid of `steps` strengths, for the probability need not grow along the whole way.
    """
    found = torch.full((len(ws),), torch.nan, dtype=torch.float32, device=ws.device)
    where, wanted = torch.as_tensor(index, device="cpu")[:, None], torch.as_tensor(target, device="cpu")
    for strength in torch.linspace(0, most, steps, dtype=torch.float32, device="cpu").tolist():
        p = classifier(edit(ws, direction, strength))[0].cpu().gather(1, where)[:, 0].sigmoid()
        reached = torch.where(wanted > 0.5, p, 1 - p).to(ws.device) >= probability
        found = torch.where(found.isnan() & reached, torch.full_like(found, strength), found)
        if not found.isnan().any():
            break
    return found


def edit(
    ws: Float[Tensor, "b num_ws w_dim"],
    direction: Float[Tensor, "b num_ws w_dim"],
    strength: float | Float[Tensor, "b"],
    *,
    tokens: slice = slice(None),
) -> Float[Tensor, "b num_ws w_dim"]:
    """w_e = w + alpha n on a range of tokens; strength: alpha, one for all codes or one each, in units of W+."""
    strength = torch.as_tensor(strength, dtype=ws.dtype, device=ws.device).reshape(-1, 1, 1)
    edited = ws.clone()
    edited[:, tokens] = (ws + strength * direction)[:, tokens]
    return edited
