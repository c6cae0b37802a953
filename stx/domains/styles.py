"""Other drawn domains: a DiceBear style as a folder of pictures with labels, which every command takes as a domain.

`stx draw bottts --out bottts`. A style is data: of each attribute the option of the drawing that shows it. Bottts are
robots by Pablo Stanley, free for personal and commercial use.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from stx.domains import avatars
from stx.files.errors import DomainError

SPLITS = {"train": 0.85, "val": 0.05, "test": 0.10}


@dataclass(frozen=True)
class Shown:
    """An attribute is shown where an option of a drawing has one of these values, or begins like one of them."""

    option: str
    values: tuple[str, ...]


STYLES: dict[str, dict[str, Shown]] = {
    "bottts": {
        "Round_Head": Shown("headVariant", ("round",)),
        "Textured": Shown("textureVariant", ("",)),
        "Smiling": Shown("mouthVariant", ("smile",)),
        "Grill": Shown("mouthVariant", ("grill",)),
        "Round_Eyes": Shown("eyesVariant", ("round",)),
        "Framed_Eyes": Shown("eyesVariant", ("frame",)),
        "Antenna_Ears": Shown("sidesVariant", ("antenna",)),
        "Cable_Ears": Shown("sidesVariant", ("cables",)),
        "Square_Ears": Shown("sidesVariant", ("square",)),
        "Horns": Shown("topVariant", ("horns",)),
        "Bulb": Shown("topVariant", ("bulb", "glowingBulb")),
        "Antenna": Shown("topVariant", ("antenna",)),
        "Blue": Shown("baseColor", ("#1499da",)),
        "Green": Shown("baseColor", ("#40a843", "#7a9f12", "#15a594")),
        "Grey": Shown("baseColor", ("#879198", "#8f8f8f", "#978d87")),
        "Red_Or_Pink": Shown("baseColor", ("#d95c9a", "#e25a75", "#e45e4d")),
    }
}


def attributes(style: str) -> tuple[str, ...]:
    """The names of a style's attributes. Raises `DomainError` for a style that has none here."""
    if style not in STYLES:
        raise DomainError(f"unknown style {style!r}: expected {', '.join(STYLES)}")
    return tuple(STYLES[style])


def drawings(
    style: str, count: int, *, resolution: int = 64, seed: int = 0
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "attributes"]]]:
    """`count` drawings: the path of each below a folder (`train/00000.png`), its picture, and its labels.

    The first pictures of each split stay the same where there are more. Raises `DomainError` for an unknown style.
    """
    attributes(style)
    for file in files(count):
        split, _, number = file.removesuffix(".png").partition("/")
        given = {"seed": f"{split}/{seed}/{int(number)}"}
        yield file, avatars.rasterise(style, given, resolution=resolution), labels(style, given)


def files(count: int) -> list[str]:
    """The paths of `count` drawings below their folder: `train/00000.png`, ... Raises `DomainError` for too few."""
    if count < len(SPLITS):
        raise DomainError(f"{count} drawings: expected at least {len(SPLITS)}, one for each of {', '.join(SPLITS)}")
    counts = {split: max(round(share * count), 1) for split, share in SPLITS.items()}
    counts["train"] += count - sum(counts.values())
    return [f"{split}/{i:05d}.png" for split, n in counts.items() for i in range(n)]


def labels(style: str, given: dict) -> Bool[np.ndarray, "attributes"]:
    """What a drawing shows, by the options that DiceBear chose for it."""
    import dicebear

    chosen = dicebear.Avatar(avatars.style_of(style), given).to_json()["options"]
    return np.array([_shows(chosen.get(of.option), of.values) for of in STYLES[style].values()])


def _shows(value: str | Sequence[str] | None, wanted: tuple[str, ...]) -> bool:
    found = [value] if isinstance(value, str) else list(value or ())
    return any(one.startswith(wanted) for one in found)
