"""Labelled cartoon faces, drawn on the fly: the embedded default domain.

Artwork: Avataaars by Pablo Stanley, through `dicebear-core` / `dicebear-styles`; rasterised by `resvg-py`.
Unlike a photo set, labels are exact (they follow from the drawing options), every person can be drawn again with
another expression, and the joint distribution of the attributes is the written table below (see data/README.md).
"""

import functools
import importlib.resources
import io
import json
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from PIL import Image

RESOLUTION = 64
SPLITS = {"train": 16384, "val": 1024, "test": 2048}
VIEWBOX = "40 16 200 200"  # of the style's 280 x 280 canvas: head and shoulders
SUPERSAMPLE = 2  # drawn at twice the size, then box-filtered

HAIR = {"Black": "2c1b18", "Brown": "724133", "Blond": "d6b370", "Gray": "c8c8c8", "Red": "c93305"}
SKIN = {"pale": "ffdbb4", "light": "edb98a", "tan": "d08b5b", "brown": "ae5d29", "dark": "7c5240"}
TOPS = {
    "long": ("straight01", "straight02", "straightAndStrand", "curvy", "miaWallace"),
    "short": ("shortFlat", "shortRound", "shortWaved", "shortCurly", "theCaesar", "shaggy", "bun"),
    "hat": ("winterHat02", "winterHat03", "winterHat1"),
    "bald": ("none",),
}
FACIAL_HAIR = {
    "none": ("none",),
    "beard": ("beardLight", "beardMedium", "beardMajestic"),
    "mustache": ("moustacheFancy", "moustacheMagnum"),
}
GLASSES = {
    "none": ("none",),
    "clear": ("prescription01", "prescription02", "round"),
    "dark": ("sunglasses", "wayfarers"),
}
MOUTHS = {  # (smiling, open)
    (True, True): ("smile", "default"),
    (True, False): ("twinkle",),
    (False, True): ("screamOpen",),
    (False, False): ("serious", "sad"),
}
EYES = {True: ("closed", "happy"), False: ("default", "squint", "surprised")}  # closed or not
BROWS = {True: ("angry", "angryNatural"), False: ("default", "defaultNatural", "raisedExcited")}  # angry or not
CLOTHES = ("shirtCrewNeck", "shirtVNeck", "hoodie", "collarAndSweater", "blazerAndShirt")
CLOTHES_COLORS = ("262e33", "5199e4", "ff5c5c", "a7ffc4", "ffffb1", "e6e6e6")
HAT_COLORS = ("25557c", "ff488e", "3c4f5c", "ff5c5c")
BACKGROUNDS = ("ffffff", "b6e3f4", "c0aede", "d1d4f9")

# The joint distribution. Each table is conditional on what is drawn before it, in this order.
P_TOP = {"long": 0.38, "short": 0.42, "hat": 0.12, "bald": 0.08}
P_DARK_SKIN = 0.35
P_HAIR = {  # given dark skin
    True: {"Black": 0.55, "Brown": 0.25, "Blond": 0.05, "Gray": 0.12, "Red": 0.03},
    False: {"Black": 0.18, "Brown": 0.30, "Blond": 0.25, "Gray": 0.13, "Red": 0.14},
}
P_FACIAL_HAIR = {  # given the top
    "long": {"none": 0.94, "beard": 0.04, "mustache": 0.02},
    "short": {"none": 0.58, "beard": 0.28, "mustache": 0.14},
    "hat": {"none": 0.63, "beard": 0.25, "mustache": 0.12},
    "bald": {"none": 0.43, "beard": 0.40, "mustache": 0.17},
}
P_GLASSES = {  # given a hat, given visible grey hair, or neither
    "hat": {"none": 0.68, "clear": 0.12, "dark": 0.20},
    "gray": {"none": 0.50, "clear": 0.44, "dark": 0.06},
    "other": {"none": 0.75, "clear": 0.16, "dark": 0.09},
}
P_ANGRY = {"none": 0.14, "beard": 0.32, "mustache": 0.22}  # given the facial hair
P_SMILING = {  # given (angry, long hair)
    (True, True): 0.20,
    (True, False): 0.15,
    (False, True): 0.64,
    (False, False): 0.52,
}
P_OPEN = {True: 0.60, False: 0.30}  # given smiling
P_CLOSED = {True: 0.26, False: 0.12}  # given smiling; never behind dark glasses


@dataclass(frozen=True)
class Person:
    """What makes an avatar the same person: everything but expression, glasses and background."""

    top: str
    hair: str
    skin: str
    facial_hair: str
    clothes: str
    clothes_color: str
    hat_color: str


@dataclass(frozen=True)
class Look:
    """What changes between two drawings of one person."""

    eyes: str
    brows: str
    mouth: str
    glasses: str
    background: str


@dataclass(frozen=True)
class Avatar:
    """One drawing: a person with a look."""

    person: Person
    look: Look


def _top(avatar: Avatar) -> str:
    return _group(TOPS, avatar.person.top)


def _hair(avatar: Avatar, color: str) -> bool:
    return _top(avatar) in ("long", "short") and avatar.person.hair == color


# CelebA's names where CelebA has them. Hair colours and Long_Hair are those of visible head hair (no hat, not bald);
# Mustache is a moustache without a beard; Eyeglasses are any glasses, dark ones included.
ATTRIBUTES = {
    "Eyeglasses": lambda a: a.look.glasses != "none",
    "Sunglasses": lambda a: a.look.glasses in GLASSES["dark"],
    "Smiling": lambda a: a.look.mouth in MOUTHS[True, True] + MOUTHS[True, False],
    "Mouth_Slightly_Open": lambda a: a.look.mouth in MOUTHS[True, True] + MOUTHS[False, True],
    "Eyes_Closed": lambda a: a.look.eyes in EYES[True],
    "Mustache": lambda a: a.person.facial_hair in FACIAL_HAIR["mustache"],
    "Beard": lambda a: a.person.facial_hair in FACIAL_HAIR["beard"],
    "Long_Hair": lambda a: _top(a) == "long",
    "Bald": lambda a: _top(a) == "bald",
    "Wearing_Hat": lambda a: _top(a) == "hat",
    "Black_Hair": lambda a: _hair(a, "Black"),
    "Blond_Hair": lambda a: _hair(a, "Blond"),
    "Brown_Hair": lambda a: _hair(a, "Brown"),
    "Gray_Hair": lambda a: _hair(a, "Gray"),
    "Red_Hair": lambda a: _hair(a, "Red"),
    "Dark_Skin": lambda a: a.person.skin in ("brown", "dark"),
    "Angry_Brows": lambda a: a.look.brows in BROWS[True],
}


def labels(avatar: Avatar) -> np.ndarray:
    """The exact attributes of a drawing, bool `[len(ATTRIBUTES)]` in the order of `ATTRIBUTES`."""
    return np.array([bool(rule(avatar)) for rule in ATTRIBUTES.values()])


def _group(groups: dict, variant: str) -> str:
    return next(name for name, variants in groups.items() if variant in variants)


def _choose(rng: random.Random, table: dict):
    """A key of `table` with the probability that is its value; uses one `rng.random()`."""
    u, total = rng.random() * sum(table.values()), 0.0
    for key, probability in table.items():
        total += probability
        if u < total:
            return key
    return key


def _pick(rng: random.Random, options):
    return options[int(rng.random() * len(options))]  # random.choice may change between Python versions


def sample_person(rng: random.Random) -> Person:
    """A person from the written joint distribution."""
    top = _choose(rng, P_TOP)
    dark = rng.random() < P_DARK_SKIN
    return Person(
        top=_pick(rng, TOPS[top]),
        skin=_pick(rng, ("brown", "dark") if dark else ("pale", "light", "tan")),
        hair=_choose(rng, P_HAIR[dark]),
        facial_hair=_pick(rng, FACIAL_HAIR[_choose(rng, P_FACIAL_HAIR[top])]),
        clothes=_pick(rng, CLOTHES),
        clothes_color=_pick(rng, CLOTHES_COLORS),
        hat_color=_pick(rng, HAT_COLORS) if top == "hat" else "none",
    )


def sample_look(rng: random.Random, person: Person) -> Look:
    """A look for `person` from the written joint distribution."""
    top = _group(TOPS, person.top)
    gray = top in ("long", "short") and person.hair == "Gray"
    glasses = _choose(rng, P_GLASSES["hat" if top == "hat" else "gray" if gray else "other"])
    angry = rng.random() < P_ANGRY[_group(FACIAL_HAIR, person.facial_hair)]
    smiling = rng.random() < P_SMILING[angry, top == "long"]
    is_open = rng.random() < P_OPEN[smiling]
    closed = rng.random() < P_CLOSED[smiling] and glasses != "dark"
    return Look(
        eyes="default" if glasses == "dark" else _pick(rng, EYES[closed]),
        brows=_pick(rng, BROWS[angry]),
        mouth=_pick(rng, MOUTHS[smiling, is_open]),
        glasses=_pick(rng, GLASSES[glasses]),
        background=_pick(rng, BACKGROUNDS),
    )


def split_of(person: Person) -> str:
    """The split a person belongs to: a stable hash, so that no person (and no option set) is in two splits."""
    position = zlib.crc32(repr(sorted(asdict(person).items())).encode()) % sum(SPLITS.values())
    for split, size in SPLITS.items():
        if position < size:
            return split
        position -= size
    raise AssertionError("unreachable")


def sample(split: str, seed: int = 0) -> Iterator[Avatar]:
    """Endless, distinct avatars of a split; the same sequence for the same seed on every machine.

    split: train, val or test.
    """
    seen, attempt = set(), 0
    while True:
        rng = random.Random(f"{seed}/{split}/{attempt}")
        attempt += 1
        person = sample_person(rng)
        if split_of(person) != split:
            continue
        avatar = Avatar(person, sample_look(rng, person))
        if avatar not in seen:
            seen.add(avatar)
            yield avatar


def restyle(avatar: Avatar, rng: random.Random) -> Avatar:
    """The same person with another expression, glasses and background."""
    return replace(avatar, look=sample_look(rng, avatar.person))


@functools.cache
def style_of(name: str):
    """DiceBear's style of that name, read once."""
    from dicebear import Style

    return Style(
        json.loads((importlib.resources.files("dicebear_styles") / f"{name}.json").read_text(encoding="utf-8"))
    )


def _options(avatar: Avatar) -> dict:
    person, look = avatar.person, avatar.look
    hair = [HAIR[person.hair]]
    options = {
        "topVariant": [person.top],
        "topProbability": 100,
        "hairColor": hair,
        "hatColor": [person.hat_color],
        "skinColor": [SKIN[person.skin]],
        "facialHairVariant": [person.facial_hair],
        "facialHairProbability": 100,
        "facialHairColor": hair,
        "clothesVariant": [person.clothes],
        "clothesColor": [person.clothes_color],
        "eyesVariant": [look.eyes],
        "eyebrowsVariant": [look.brows],
        "mouthVariant": [look.mouth],
        "accessoriesVariant": [look.glasses],
        "accessoriesProbability": 100,
        "accessoriesColor": ["262e33"],
        "backgroundColor": [look.background],
    }
    for part in ("top", "facialHair", "accessories"):
        if options[f"{part}Variant"] == ["none"]:
            del options[f"{part}Variant"]
            options[f"{part}Probability"] = 0
    if person.hat_color == "none":
        del options["hatColor"]
    return options


def draw(avatar: Avatar, resolution: int = RESOLUTION) -> np.ndarray:
    """The picture of an avatar, uint8 RGB `[resolution, resolution, 3]`; the same bytes on every machine."""
    return rasterise("avataaars", _options(avatar), resolution=resolution, viewbox=VIEWBOX)


def rasterise(style: str, options: dict, *, resolution: int, viewbox: str | None = None) -> np.ndarray:
    """Any DiceBear style drawn with `options`, uint8 RGB `[resolution, resolution, 3]`.

    viewbox: the part of the style's canvas to show, "x y width height"; all of it when absent.
    """
    import dicebear
    import resvg_py

    svg = str(dicebear.Avatar(style_of(style), options))
    if viewbox:
        svg = re.sub(r'viewBox="[^"]*"', f'viewBox="{viewbox}"', svg, count=1)
    size = resolution * SUPERSAMPLE
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True, background="#ffffff")
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB").reduce(SUPERSAMPLE))
