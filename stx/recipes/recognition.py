"""Networks that recognise attributes and persons in pictures, and their training."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from stx import metrics
from stx.domains.datasets import Domain
from stx.domains.drawings import person_pictures
from stx.files.errors import DomainError
from stx.perception.attribute_classifier import AttributeClassifier, AttributeJudge, ClassifierTask, predict
from stx.perception.identity import IdentityNet, IdentityTask, verification
from stx.recipes.groups import Backbone, Training, group, run
from stx.runtime import plainly


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(Training, Backbone):
    """Attribute classifier and its training."""

    steps: int = 1200


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe(Training):
    """The second attribute classifier, which judges edits and trains nothing, and its training."""

    steps: int = 2500
    lr: float = 3e-3
    seed: int = 1
    side: int = 128


@dataclass(frozen=True, kw_only=True)
class IdentityRecipe(Training, Backbone):
    """Identity network and its training: `people` drawn `looks` times each."""

    steps: int = 1500
    people: int = 3000
    looks: int = 6
    dim: int = 128


@plainly
def train_classifier(
    domain: Domain, recipe: ClassifierRecipe | JudgeRecipe, folder: str | Path, *, device: str = "cpu"
) -> tuple[AttributeClassifier | AttributeJudge, pd.DataFrame]:
    """An attribute classifier, or the judge, and the log with the mean validation accuracy."""
    torch.manual_seed(recipe.seed)
    if isinstance(recipe, JudgeRecipe):
        net = AttributeJudge(attributes=domain.attributes, side=recipe.side)
    else:
        net = AttributeClassifier(size=domain.resolution, attributes=domain.attributes, **group(Backbone, recipe))
    task = ClassifierTask(net=net, data=domain.split("train"), device=device, **group(Training, recipe))
    held_out = domain.split("val")

    def validate(step: int) -> dict[str, float]:
        return {"val_accuracy": float(((predict(net, held_out) > 0) == held_out.labels).mean())}

    config = {"domain": domain.name, "pictures seen": task.data.fingerprint()} | asdict(recipe)
    log = run(task, recipe, folder, config, evaluate=validate)
    return net.eval(), log


@plainly
def train_identity(
    domain: Domain, recipe: IdentityRecipe, folder: str | Path, *, device: str = "cpu"
) -> tuple[IdentityNet, pd.DataFrame]:
    """An identity network, and the log with the verification AUC on persons of the validation split.

    Needs pictures of the same person: avatars, which are drawn again. Raises `DomainError` for another domain.
    """
    if domain.name != "avatars":
        raise DomainError(f"{domain.name} does not tell who is who; an identity network is trained on avatars only")
    torch.manual_seed(recipe.seed)
    net = IdentityNet(size=domain.resolution, dim=recipe.dim, **group(Backbone, recipe))
    task = IdentityTask(
        net=net,
        pictures=person_pictures("train", recipe.people, recipe.looks, recipe.seed),
        device=device,
        **group(Training, recipe),
    )
    held_out = person_pictures("val", 256, 2, recipe.seed)

    def validate(step: int) -> dict[str, float]:
        return {"val_auc": metrics.roc_auc(*verification(net, held_out))}

    log = run(task, recipe, folder, {"domain": domain.name} | asdict(recipe), evaluate=validate)
    return net.eval(), log
