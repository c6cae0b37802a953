"""The methods that label editing is compared with, fitted on the same codes and called in the same way.

A method is a function (ws, index of the attribute, target) -> (strength -> W+ codes or StyleSpace vectors); target is
1 to add the attribute, 0 to remove it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx import editing
from stx.dependency import best_match, changes, dependency, strengths
from stx.directions import GANSpace, InterFaceGAN, SeFa, conditioned
from stx.evaluation import judged
from stx.learned_editing import LatentCLR, LatentTransformer, StyleFlow
from stx.perceptual import load_lpips
from stx.pipeline import Pipeline
from stx.stylespace import StyleSpace

Edit = Callable[[float], Tensor | dict[str, Tensor]]
Method = Callable[[Tensor, int, float], Edit]
COMPONENTS = 32  # of GANSpace and SeFa, as many as LatentCLR has


def label_editing(classifier: nn.Module, *, order: Callable[..., Tensor] = editing.first_order, **options) -> Method:
    """The paper's: a direction of each code's own."""

    def method(ws: Tensor, index: int, target: float) -> Edit:
        direction = order(classifier, ws, [index] * len(ws), [target] * len(ws), **options)
        return lambda strength: editing.edit(ws, direction, strength)

    return method


def fit_methods(
    pipe: Pipeline,
    classifier: nn.Module,
    ws: Float[Tensor, "n num_ws w_dim"],
    logits: Float[np.ndarray, "n attributes"],
    *,
    flow_steps: int = 300,
    transformer_steps: int = 300,
    contrastive_steps: int = 150,
    seed: int = 0,
) -> dict[str, Method]:
    """Every method by name. ws: sampled codes, all tokens alike; logits: of the image classifier on their pictures.

    Methods without labels (GANSpace, SeFa, LatentCLR) give for an attribute the direction that goes with it best.
    """
    w = ws[:, 0].cpu().numpy()
    labels = logits > 0
    ws, probabilities = ws.to(pipe.device), torch.from_numpy(logits).float().sigmoid().to(pipe.device)
    planes = [InterFaceGAN(seed=seed).fit(w, scores).direction_ for scores in logits.T]
    free = [_conditioned(planes, k) for k in range(len(planes))]
    space = GANSpace(components=min(COMPONENTS, *w.shape)).fit(w)
    sefa = SeFa().fit(pipe.generator)
    clr = LatentCLR(pipe.generator, steps=contrastive_steps, count=COMPONENTS, seed=seed).fit(ws[:, 0])
    flow = StyleFlow(steps=flow_steps, seed=seed).fit(ws[:, 0], probabilities)
    transformer = LatentTransformer(classifier, steps=transformer_steps, seed=seed).fit(ws, labels)
    channels = [_channel(pipe, ws, labels[:, k]) for k in range(labels.shape[1])]

    def by_flow(codes: Tensor, index: int, target: float) -> Edit:
        now = classifier(codes)[0].sigmoid()
        return lambda strength: flow.edit(codes, now, index, strength, target)

    def by_transformer(codes: Tensor, index: int, target: float) -> Edit:
        return lambda strength: transformer.edit(codes, index, strength if target > 0.5 else -strength)

    def by_channel(codes: Tensor, index: int, target: float) -> Edit:
        if channels[index] is None:
            return lambda strength: codes
        return lambda strength: channels[index].edit(codes, strength if target > 0.5 else -strength)

    return {
        "first order": label_editing(classifier),
        "second order": label_editing(classifier, order=editing.second_order, seed=seed),
        "InterFaceGAN": _global(planes),
        "InterFaceGAN, conditional": _global(free),
        "GANSpace": _global(_matched(space.directions_, w, logits)),
        "SeFa": _global(_matched(sefa.directions_[:COMPONENTS], w, logits)),
        "LatentCLR": _global(_matched(clr.directions_, w, logits)),
        "StyleSpace": by_channel,
        "StyleFlow": by_flow,
        "latent transformer": by_transformer,
    }


@torch.no_grad()
def examine(
    pipe: Pipeline,
    judge: nn.Module,
    method: Method,
    ws: Float[Tensor, "n num_ws w_dim"],
    index: int,
    sigma: Float[np.ndarray, "attributes"],
    *,
    truth: Float[Tensor, "n 3 h w"] | None = None,
    count: int = 5,
    search: int = 8,
) -> tuple[pd.DataFrame, Float[np.ndarray, "edits attributes"]]:
    """Edits that add attribute `index`, at `count` strengths up to a large target change: a row per code and strength.

    Columns: picture, strength, target change (signed, in sigmas), mean-AD, max-AD, ID to the unedited picture where the
    domain has an identity network, and LPIPS to `truth`, the pictures the edits should give. Beside it the delta of
    every logit. The strengths are found on the first `search` codes.
    """
    alex, identity, edit = load_lpips("alex", pipe.device), pipe.identity(), method(ws, index, 1.0)
    unedited = pipe.redraw(ws)
    before = judge(unedited).cpu().numpy()
    few = method(ws[:search], index, 1.0)

    def achieved(strength: float) -> float:
        return float(((judged(pipe, judge, few(strength)) - before[:search])[:, index] / sigma[index]).mean())

    tables, deltas = [], []
    for strength in strengths(achieved, count=count):
        image = pipe.redraw(edit(float(strength)))
        after = judge(image).cpu().numpy()
        delta = changes(before, after, sigma)
        mean_ad, max_ad = dependency(delta, index)
        signed = (after - before)[:, index] / sigma[index]
        table = {"picture": np.arange(len(ws)), "strength": strength, "target change": signed}
        table |= {"mean-AD": mean_ad, "max-AD": max_ad}
        if identity is not None:
            table["ID"] = F.cosine_similarity(identity(image), identity(unedited)).cpu().numpy()
        if truth is not None:
            table["LPIPS to truth"] = alex(image, truth.to(pipe.device)).flatten().cpu().numpy()
        tables.append(pd.DataFrame(table))
        deltas.append(delta)
    return pd.concat(tables, ignore_index=True), np.concatenate(deltas)


def _global(directions: list[np.ndarray]) -> Method:
    def edit(ws: Tensor, direction: Tensor, strength: float) -> Tensor:
        return ws + strength * direction

    def method(ws: Tensor, index: int, target: float) -> Edit:
        direction = torch.from_numpy(directions[index]).to(ws)
        return partial(edit, ws, direction if target > 0.5 else -direction)

    return method


def _conditioned(planes: list[np.ndarray], k: int) -> np.ndarray:
    return conditioned(planes[k], planes[:k] + planes[k + 1 :]) if len(planes) > 1 else planes[k]


def _matched(directions: np.ndarray, w: np.ndarray, logits: np.ndarray) -> list[np.ndarray]:
    matches = [best_match(directions, w, scores) for scores in logits.T]
    return [sign * directions[index] for index, sign in matches]


def _channel(pipe: Pipeline, ws: Tensor, labels: np.ndarray) -> StyleSpace | None:
    return StyleSpace(pipe.generator).fit(ws, labels) if labels.sum() > 1 else None
