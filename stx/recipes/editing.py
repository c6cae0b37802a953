"""Networks that read and edit codes, and their training."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stx import latent_classifier
from stx.files.checksums import fingerprint
from stx.label_editing import position
from stx.latent_classifier import LatentClassifier, LatentClassifierTask
from stx.recipes.groups import Training, group, run
from stx.reference_editing import ReferenceEditor, ReferenceTask
from stx.runtime import plainly


@dataclass(frozen=True, kw_only=True)
class LatentClassifierRecipe(Training):
    """Latent classifier and its training on codes; the sizes of the shared MLP are the paper's."""

    steps: int = 2000
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-2
    noise: float = 0.1
    hidden: tuple[int, ...] = (2048, 512)
    dim: int = 32
    activation: str = "leaky_relu"


@dataclass(frozen=True, kw_only=True)
class PictureClassifierRecipe(LatentClassifierRecipe):
    """A latent classifier of what *pictures* of ordinary, mixed and edited codes show: smooth, smaller, ours."""

    steps: int = 4000
    batch: int = 256
    noise: float = 0.05
    hidden: tuple[int, ...] = (512, 256)
    activation: str = "gelu"


@dataclass(frozen=True, kw_only=True)
class ReferenceRecipe(Training):
    """Editor for one attribute of a reference and its training; the paper's rate is 1e-4 for long runs."""

    steps: int = 400
    weight_decay: float = 5e-4
    form: str = "paper"
    feed_forward: int = 256
    dropout: float = 0.1


@plainly
def train_latent_classifier(
    attributes: Sequence[str],
    train_codes: tuple[torch.Tensor, np.ndarray],
    held_out: tuple[torch.Tensor, np.ndarray],
    recipe: LatentClassifierRecipe,
    folder: str | Path,
    *,
    device: str = "cpu",
) -> tuple[LatentClassifier, pd.DataFrame]:
    """A latent classifier calibrated on held-out codes, and the log with the mean held-out accuracy.

    train_codes, held_out: codes `[n, num_ws, w_dim]` and labels bool, or probabilities, `[n, attributes]`.
    """
    torch.manual_seed(recipe.seed)
    ws, labels = train_codes
    net = LatentClassifier(
        num_ws=ws.shape[1],
        w_dim=ws.shape[2],
        attributes=attributes,
        hidden=recipe.hidden,
        dim=recipe.dim,
        activation=recipe.activation,
    )
    with torch.no_grad():  # codes have a mean far from zero: start where they are centred
        net.fcs[0].bias.sub_(net.fcs[0].weight @ ws.mean(0).flatten().to(net.fcs[0].weight))
    learning = {"weight_decay": recipe.weight_decay, "noise": recipe.noise, **group(Training, recipe)}
    task = LatentClassifierTask(net=net, ws=ws, labels=labels, device=device, **learning)

    def validate(step: int) -> dict[str, float]:
        return {
            "val_accuracy": float(((latent_classifier.predict(net, held_out[0]) > 0) == (held_out[1] > 0.5)).mean())
        }

    config = asdict(recipe) | {"codes": len(ws), "sum": float(ws.double().sum())}
    log = run(task, recipe, folder, config, evaluate=validate, evaluate_every=500)
    latent_classifier.calibrate(net, latent_classifier.predict(net, held_out[0]), held_out[1])
    return net.eval(), log


@plainly
def train_reference_editor(
    classifier: LatentClassifier,
    attribute: str,
    codes: torch.Tensor,
    recipe: ReferenceRecipe,
    folder: str | Path,
    *,
    device: str = "cpu",
    watch: Callable[[float], None] = lambda share: None,
) -> tuple[ReferenceEditor, pd.DataFrame]:
    """An editor that carries `attribute` over from a reference, and the log; 9 of 10 codes train, the others validate.

    folder: gets a suffix that tells settings apart, so that other codes or another classifier begin anew.
    watch: called with the share that is done; what it raises ends the training.
    Raises `EditError` for an attribute that `classifier` does not know.
    """
    index = position(attribute, classifier.attributes)
    torch.manual_seed(recipe.seed)
    editor = ReferenceEditor(
        w_dim=codes.shape[2],
        attribute=attribute,
        form=recipe.form,
        feed_forward=recipe.feed_forward,
        dropout=recipe.dropout,
    )
    held_out = codes[: max(len(codes) // 10, 2)]
    task = ReferenceTask(
        editor=editor,
        classifier=classifier,
        index=index,
        ws=codes[len(held_out) :],
        device=device,
        weight_decay=recipe.weight_decay,
        **group(Training, recipe),
    )
    config = asdict(recipe) | {"attribute": attribute, "codes": len(codes), "sum": float(codes.double().sum())}
    config["classifier"] = fingerprint(classifier)

    def validate(step: int) -> dict[str, float]:
        watch(step / recipe.steps)
        return task.validate(held_out)

    settings = f"{zlib.crc32(json.dumps(config, sort_keys=True).encode()):08x}"
    log = run(task, recipe, f"{folder}_{settings}", config, evaluate=validate, evaluate_every=25)
    return editor.eval(), log
