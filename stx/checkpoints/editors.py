"""Public files of editing: latent classifiers, reference editors and latent transformers, by their tensors' names."""

import re

import torch
from torch import Tensor

from stx.baselines.directions import TokenMaps
from stx.checkpoints.tensors import Found, State, Tensors, empty, how_many, load_into, need, refuse_unknown
from stx.files.errors import WeightsError
from stx.latent_classifier import CELEBA, LatentClassifier
from stx.reference_editing import ReferenceEditor


def reference_editor(state: State, source: str) -> ReferenceEditor:
    """The transformer of the paper's reference editing (section 3.4), as released."""
    return load_into(empty(ReferenceEditor, w_dim=state["transformerlayer.norm1.weight"].shape[0]), state, source)


def latent_classifier(state: State, source: str) -> LatentClassifier:
    """The paper's classifier, LCNet_40: its layers for each attribute, stacked."""
    need(state, ("fcs.0.weight", "fcs.1.weight", "indep_fcs.0.weight"), source)
    count, heads = how_many(state, r"output_fcs\.(\d+)\.weight"), {"embedding": "indep_fcs", "logit": "output_fcs"}
    shared = {key: state[key] for key in state if re.match(r"fcs\.\d+\.(weight|bias)$", key)}
    mine = {}
    for name, released in heads.items():
        for part in ("weight", "bias"):
            need(state, [f"{released}.{k}.{part}" for k in range(count)], source)
            stacked = torch.stack([state[f"{released}.{k}.{part}"] for k in range(count)])
            mine[f"{name}_{part}"] = stacked.squeeze(1) if name == "logit" else stacked
    known = {key for key in state if re.match(r"(indep_fcs|output_fcs)\.\d+\.(weight|bias)$", key)}
    refuse_unknown(state.keys() - known - shared.keys(), source)
    return _classifier(shared, mine, source)


def logits_only(state: State, source: str) -> LatentClassifier:
    """The latent transformer's classifier, LCNet: its last layer gives the logits, which serve as embeddings of one."""
    depth = how_many(state, r"fcs\.(\d+)\.weight")
    if depth < 2:
        raise WeightsError(f"{source}: a classifier of {depth} layer, expected several (fcs.0, fcs.1, ...)")
    shared = dict(state)
    need(state, (last := (f"fcs.{depth - 1}.weight", f"fcs.{depth - 1}.bias")), source)
    weight, bias = (shared.pop(name) for name in last)
    mine = {"embedding_weight": weight[:, None], "embedding_bias": bias[:, None]}
    mine |= {"logit_weight": torch.ones(len(bias), 1), "logit_bias": torch.zeros(len(bias))}
    return _classifier(shared, mine, source)


def _classifier(shared: State, heads: dict[str, Tensor], source: str) -> LatentClassifier:
    """Names of `LatentClassifier` to one of their size. The codes' width is the largest of 512, 256, ... that fits."""
    depth, (count, dim) = how_many(shared, r"fcs\.(\d+)\.weight"), heads["embedding_bias"].shape
    need(shared, [f"fcs.{i}.weight" for i in range(depth)], source)
    width = shared["fcs.0.weight"].shape[1]
    w_dim = next(w for w in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if width % w == 0)
    net = empty(
        LatentClassifier,
        num_ws=width // w_dim,
        w_dim=w_dim,
        attributes=CELEBA if count == len(CELEBA) else [f"attribute_{k}" for k in range(count)],
        hidden=[shared[f"fcs.{i}.weight"].shape[0] for i in range(depth)],
        dim=dim,
    )
    return load_into(net, shared | heads, source)


def latent_transformer(state: State, source: str) -> Found:
    """The latent transformer of one attribute (Yao et al. 2021), `tnet_15.pth.tar`: a linear layer for each token.

    Its rates are equalised as StyleGAN2's: a weight counts divided by the root of its width.
    """
    num_ws = how_many(state, r"dense\.(\d+)\.weight")
    given = Tensors(state, source)
    maps, offsets = (
        torch.stack([given.take(f"dense.{i}.{part}") for i in range(num_ws)])[None] for part in ("weight", "bias")
    )
    given.finish()
    w_dim = offsets.shape[2]
    net = empty(TokenMaps, count=1, num_ws=num_ws, w_dim=w_dim)
    mine = {"maps": maps / w_dim**0.5, "offsets": offsets, "mean": torch.zeros(num_ws, w_dim)}
    return Found("latent transformer", {"directions": load_into(net, mine, source)})
