"""What all recipes share: groups of numbers, each of which goes to one constructor as a whole."""

from dataclasses import dataclass, fields

import pandas as pd

from stx.training.loop import train


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every task takes."""

    steps: int
    batch: int = 64
    lr: float = 2e-3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Widths and units of the IR-SE stages of the networks that recognise."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    units: tuple[int, ...] = (1, 1, 1, 1)


def run(task, recipe, folder, config, **kwargs) -> pd.DataFrame:
    """The log of a task that is trained as its recipe says. `config`, `kwargs`: as `stx.training.loop.train`'s."""
    return train(task, folder=folder, steps=recipe.steps, seed=recipe.seed, config=config, **kwargs)


def group(kind: type, recipe) -> dict:
    """The numbers of a recipe that one of the groups it inherits has."""
    return {field.name: getattr(recipe, field.name) for field in fields(kind)}
