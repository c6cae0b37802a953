"""Encoders and their training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path

import pandas as pd
import torch

from stx.baselines.registry import METHODS, EncoderSizes, build_encoder
from stx.domains.datasets import Domain
from stx.encoder import Encoder
from stx.files.checksums import fingerprint
from stx.files.errors import TrainingError
from stx.inversion import InversionLoss, InversionTask
from stx.perception.lpips import check_size, load_lpips
from stx.recipes.groups import Training, group, run
from stx.runtime import plainly
from stx.stylegan2.networks import Generator


@dataclass(frozen=True, kw_only=True)
class EncoderTraining(Training):
    """What `stx.inversion.InversionTask` takes."""

    steps: int = 4000
    batch: int = 16
    lr: float = 5e-4
    lr_decay: float = 0.3
    mirror: bool = False
    accumulate: int = 1
    precision: str = "float32"


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Of `stx.inversion.InversionLoss`."""

    l2: float = 1.0
    lpips: float = 0.8
    id: float = 0.1


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe(EncoderTraining, LossWeights, EncoderSizes):
    """An encoder and its training. method: one of `stx.baselines.registry.METHODS`.

    pictures: of the training split, the first; None: all.
    """

    method: str = "style_transformer"
    pictures: int | None = None


def encoder_recipe(domain: Domain, generator: Generator, **changes) -> EncoderRecipe:
    """The default recipe, its backbone sized by the codes and the pictures; `changes` win.

    Codes of 512 and pictures of 256 pixels give IR-SE50.
    """
    w = generator.w_dim
    units = (3, 4, 14, 3) if max(domain.input_size) > 128 else EncoderRecipe.units
    return replace(EncoderRecipe(widths=(w // 8, w // 4, w // 2, w), units=units), **changes)


def compared_recipe(domain: Domain, generator: Generator, **changes) -> EncoderRecipe:
    """The sizes and the budget of the table of encoders: all can be trained in hours and kept; `changes` win.

    The rate is the method's own (`stx.baselines.registry.Method`). Inside pSp's heads and the feed-forward blocks they
    are narrower than published: over codes of 256 the encoders have 1.8 to 3.4 million parameters, where pSp would have
    twenty.
    """
    w = generator.w_dim
    sizes = {"widths": (w // 16, w // 8, w // 4, w), "units": (1, 1, 1, 1), "hidden": w // 4}
    budget = {"steps": 1500, "batch": 8, "lr": METHODS[changes.get("method", EncoderRecipe.method)].lr, "lr_decay": 0.5}
    return encoder_recipe(domain, generator, **budget | sizes | changes)


@plainly
def train_encoder(
    domain: Domain,
    generator: Generator,
    recipe: EncoderRecipe,
    folder: str | Path,
    *,
    identity: torch.nn.Module | None = None,
    start: Encoder | None = None,
    device: str = "cpu",
    validation: int = 256,
    evaluate_every: int = 300,
) -> tuple[Encoder, pd.DataFrame]:
    """An encoder for a frozen generator, and the log with validation losses on `validation` pictures.

    start: weights to go on from instead of random ones (the sizes must agree). Raises `ValueError` for pictures that
    are too small for LPIPS.
    """
    check_size(domain)
    torch.manual_seed(recipe.seed)
    encoder, extras = build_encoder(
        METHODS[recipe.method], generator, domain, recipe, steps=recipe.steps, lr=recipe.lr, device=device
    )
    if start is not None:
        encoder.load_state_dict(start.state_dict())
    task = InversionTask(
        encoder=encoder,
        generator=generator,
        loss=InversionLoss(load_lpips("alex", device), identity, group(LossWeights, recipe)),
        data=domain.split("train", recipe.pictures),
        view=domain.view,
        extras=extras,
        device=device,
        **group(EncoderTraining, recipe),
    )
    held_out = domain.split("val", validation)
    config = {"domain": domain.name, "generator": fingerprint(generator), "pictures seen": task.data.fingerprint()}
    config |= asdict(recipe)
    config["start"] = None if start is None else fingerprint(start)
    log = run(
        task, recipe, folder, config, evaluate=lambda step: task.validate(held_out), evaluate_every=evaluate_every
    )
    return encoder.eval(), log


def best_rate(logs: Mapping[str, pd.DataFrame]) -> str:
    """The rate whose training, by its log, ended with the least validation loss. Raises `TrainingError` without one."""
    ends = {rate: loss for rate, log in logs.items() if not isnan(loss := ended(log)[0])}
    if not ends:
        raise TrainingError(f"no validation loss at the rates {', '.join(logs)}: train for more updates")
    return min(ends, key=ends.get)


def ended(log: pd.DataFrame) -> tuple[float, float]:
    """The last validation loss of a training, by its log, and `last_tenth`; NaN where the log has none."""
    losses = log.get("val_loss", pd.Series(dtype=float)).dropna()
    return losses.iloc[-1] if len(losses) else float("nan"), last_tenth(log)


def last_tenth(log: pd.DataFrame) -> float:
    """By which share the loss fell in the last tenth of a training: its mean there, beside that of the tenth before.

    A training is long enough where that is under 0.02. NaN for one that is too short to have been logged.
    """
    if "loss" not in log:
        return float("nan")
    loss = log.dropna(subset=["loss"]).set_index("step")["loss"]
    end = loss.index.max()
    before, last = loss[(loss.index > 0.8 * end) & (loss.index <= 0.9 * end)], loss[loss.index > 0.9 * end]
    return float(1 - last.mean() / before.mean())
