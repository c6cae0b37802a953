"""Domains: a set of pictures of one kind, with its sizes, attributes and splits.

`avatars` is drawn on the fly and kept in a disk cache; `ffhq` and `cars` are the paper's, their pictures in
`data/<domain>/pictures`; any folder of pictures is a domain too. A domain is data: the rest of the package sees a
`Domain` and its `Dataset`s and asks nothing about where they come from.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stx.domains import avatars, images
from stx.domains.drawings import AvatarCache
from stx.domains.folders import Folder
from stx.domains.splits import Dataset
from stx.files.errors import DomainError
from stx.files.outputs import is_folder
from stx.files.places import data_dir

SIZES = {  # side of the generator's square picture; height and width of what the encoder sees
    "avatars": (avatars.RESOLUTION, (avatars.RESOLUTION, avatars.RESOLUTION)),
    "ffhq": (1024, (256, 256)),
    "cars": (512, (192, 256)),  # 512 x 384 cars between black bars
}
ENCODER_SIDE = 256  # the most pixels that an encoder sees of a larger picture


@dataclass(frozen=True)
class Domain:
    """What the rest of the package needs to know about a kind of picture.

    resolution: side of the generator's square pictures, in pixels. input_size: (height, width) of the pictures that
    encoders see and metrics compare. attributes: names of the binary labels. split: (name, count or None) -> Dataset,
    the first `count` pictures of a split or all of it, at `input_size`; with `square=True` as the generator draws them.
    """

    name: str
    resolution: int
    input_size: tuple[int, int]
    attributes: tuple[str, ...]
    split: Callable[..., Dataset]

    def test(self, count: int | None = None, pictures: str | Path = "") -> Dataset:
        """The first test pictures, or those of a folder or file of anybody's, without labels, at `input_size`.

        Raises `ImageError` where there are none.
        """
        if not pictures:
            return self.split("test", count)
        file = Path(pictures)
        files = [file] if file.is_file() else images.list_images(pictures)[:count]
        names = [f.name if f == file else str(f.relative_to(file)) for f in files]
        return Dataset(lambda i: images.resize(images.read_image(files[i]), *self.input_size), names)

    def view(self, image: Float[Tensor, "b 3 resolution resolution"]) -> Float[Tensor, "b 3 h w"]:
        """Drawn pictures as encoders see them: averaged down to the width of `input_size`, black bars cut off."""
        height, width = self.input_size
        if image.shape[-1] != width:
            image = F.adaptive_avg_pool2d(image, (width, width))
        bar = (width - height) // 2
        return image[:, :, bar : bar + height]


def load(name: str | Path, *, resolution: int | None = None, seed: int = 0, same_folder: bool = True) -> Domain:
    """The domain called `name`, or the one that a folder of pictures makes.

    resolution: for a folder, the side of its generator's pictures (default: of its trained generator, else 64).
    seed: of the avatars' drawing. same_folder: refuse a folder of pictures whose name in `data/` has the networks of
    another one, with other pictures.
    Raises `DomainError` when it is neither and for such a folder, `ImageError` for a folder without pictures.
    """
    short = short_name(name)
    if short in SIZES:
        side, size = SIZES[short]
        if resolution not in (None, side):
            raise DomainError(f"{short} has {side} pixels, not {resolution}")
        if short == "avatars":
            return Domain(short, side, size, tuple(avatars.ATTRIBUTES), AvatarCache(seed).split)
        home = data_dir() / short / "pictures"
        if not home.is_dir():
            return Domain(short, side, size, (), without_pictures(home))
        folder = Folder(home, side, size)
        return Domain(short, side, size, folder.attributes, folder.split)
    side = resolution or _trained_size(short) or 64
    if side < 8 or side & (side - 1):
        raise DomainError(f"resolution {side} is not a power of two of at least 8")
    size = (min(side, ENCODER_SIDE),) * 2
    folder = Folder(Path(name), side, size)
    if same_folder:
        _check_origin(folder.origin(), data_dir() / short)
    return Domain(short, side, size, folder.attributes, folder.split)


def origin(name: str | Path) -> dict[str, str]:
    """What networks remember of a folder of pictures (`Folder.origin`); nothing of a known domain."""
    if str(name) in SIZES or not is_folder(name):
        return {}
    return Folder(Path(name), *SIZES["avatars"]).origin()


def short_name(name: str | Path) -> str:
    """What a domain is called, and its networks' folder below `data/`: a known name, or that of a folder of pictures.

    Raises `DomainError` when there is no such folder, and for one that would take the place of a known domain.
    """
    if str(name) in SIZES:
        return str(name)
    if not isinstance(name, str | Path) or not str(name) or not is_folder(name):
        raise DomainError(f"unknown domain {str(name)!r}: expected {', '.join(SIZES)} or a folder of pictures")
    short = Path(name).resolve().name
    if short in SIZES:
        raise DomainError(f"{name}: networks of a folder called {short} would replace that domain's; rename it")
    return short


def _check_origin(found: dict[str, str], home: Path) -> None:
    """Of a folder that moved the pictures are the same, of one that grew the place is."""
    for config in sorted(home.glob("*/config.json")):
        try:
            made = json.loads(config.read_text(encoding="utf-8"))["notes"]["origin"]
            same = any(made[key] == value for key, value in found.items())
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # without a memory; reading the weights tells what is damaged
        if not same:
            raise DomainError(
                f"{found['folder']}: the networks in {home} were made of another folder, {made['folder']}; "
                "rename this one, or set STX_DATA to another place for its networks"
            )


def _trained_size(name: str) -> int | None:
    try:
        return json.loads((data_dir() / name / "generator" / "config.json").read_text(encoding="utf-8"))["args"]["size"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def without_pictures(home: Path) -> Callable[..., Dataset]:
    """The splits of a domain whose pictures are not here: asking for one tells where they belong."""

    def split(name: str, count: int | None = None, *, square: bool = False) -> Dataset:
        raise DomainError(f"no pictures of this domain: put them into {home}/train, val and test")

    return split
