"""Domains: a set of pictures of one kind, with its sizes, attributes and splits.

`avatars` is drawn on the fly and kept in a disk cache; `ffhq` and `cars` are the paper's, their pictures in
`data/<domain>/pictures`; any folder of pictures is a domain too. A domain is data: the rest of the package sees a
`Domain` and its `Dataset`s and asks nothing about where they come from.
"""

import csv
import hashlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from stx import avatars, images
from stx.training import whole_file

SHARD = 128  # avatars per cache file
FOLDER_SPLITS = {"train": 0.80, "val": 0.05, "test": 0.15}
SIZES = {  # side of the generator's square picture; height and width of what the encoder sees
    "avatars": (avatars.RESOLUTION, (avatars.RESOLUTION, avatars.RESOLUTION)),
    "ffhq": (1024, (256, 256)),
    "cars": (512, (192, 256)),  # 512 x 384 cars between black bars
}
ENCODER_SIDE = 256  # the most pixels that an encoder sees of a larger picture


class DomainError(ValueError):
    """An unknown domain, split or label file; the message says what is known."""


Positions = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Pictures of one split, read by position.

    read: position -> uint8 RGB `[h, w, 3]`; names: one per picture; labels: bool `[n, len(attributes)]`, or None.
    """

    read: Callable[[int], np.ndarray]
    names: Sequence[str]
    labels: Bool[np.ndarray, "n attributes"] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def uint8(self, positions: Positions) -> np.ndarray:
        """Pictures at these positions, uint8 `[b, h, w, 3]`."""
        return np.stack([self.read(int(i)) for i in positions])

    def subset(self, positions: Positions) -> "Dataset":
        """The pictures at these positions, in this order, as a data set."""
        labels = None if self.labels is None else self.labels[positions]
        return Dataset(lambda i: self.read(int(positions[i])), [self.names[i] for i in positions], labels)

    def fingerprint(self) -> str:
        """Twelve digits of all names and the first picture: what tells a resumed run that the pictures are others."""
        return hashlib.sha256("\n".join(self.names).encode() + self.uint8([0]).tobytes()).hexdigest()[:12]

    def batch(self, positions: Positions) -> Float[Tensor, "b 3 h w"]:
        """Pictures at these positions in [-1, 1]."""
        return images.to_tensor(self.uint8(positions))


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

    def view(self, image: Float[Tensor, "b 3 resolution resolution"]) -> Float[Tensor, "b 3 h w"]:
        """Drawn pictures as encoders see them: averaged down to the width of `input_size`, black bars cut off."""
        height, width = self.input_size
        if image.shape[-1] != width:
            image = F.adaptive_avg_pool2d(image, (width, width))
        bar = (width - height) // 2
        return image[:, :, bar : bar + height]


def load(name: str | Path, *, resolution: int | None = None, seed: int = 0) -> Domain:
    """The domain called `name`, or the one that a folder of pictures makes.

    resolution: for a folder, the side of its generator's pictures (default: of its trained generator, else 64).
    seed: of the avatars' drawing.
    Raises `DomainError` when it is neither, `ImageError` for a folder without pictures.
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
            return Domain(short, side, size, (), _without_pictures(home))
        folder = Folder(home, side, size)
        return Domain(short, side, size, folder.attributes, folder.split)
    side = resolution or _trained_size(short) or 64
    if side < 8 or side & (side - 1):
        raise DomainError(f"resolution {side} is not a power of two of at least 8")
    size = (min(side, ENCODER_SIDE),) * 2
    folder = Folder(Path(name), side, size)
    return Domain(short, side, size, folder.attributes, folder.split)


def short_name(name: str | Path) -> str:
    """What a domain is called, and its networks' folder below `data/`: a known name, or that of a folder of pictures.

    Raises `DomainError` when there is no such folder, and for one that would take the place of a known domain.
    """
    if str(name) in SIZES:
        return str(name)
    if not Path(name).is_dir():
        raise DomainError(f"unknown domain {str(name)!r}: expected {', '.join(SIZES)} or a folder of pictures")
    short = Path(name).resolve().name
    if short in SIZES:
        raise DomainError(f"{name}: networks of a folder called {short} would replace that domain's; rename it")
    return short


def _trained_size(name: str) -> int | None:
    try:
        return json.loads((data_dir() / name / "generator" / "config.json").read_text())["args"]["size"]
    except (OSError, ValueError, KeyError):
        return None


def _without_pictures(home: Path) -> Callable[..., Dataset]:
    def split(name: str, count: int | None = None, *, square: bool = False) -> Dataset:
        raise DomainError(f"no pictures of this domain: put them into {home}/train, val and test")

    return split


def _check_split(name: str, count: int | None) -> None:
    if name not in FOLDER_SPLITS:
        raise DomainError(f"unknown split {name!r}: expected one of {', '.join(FOLDER_SPLITS)}")
    if count is not None and count < 1:
        raise DomainError(f"{count} pictures of the split {name!r}: at least 1")


def data_dir() -> Path:
    """Where weights lie: $STX_DATA, else `data/` of the repository. Raises `DomainError` where there is neither."""
    if given := os.environ.get("STX_DATA"):
        return Path(given)
    root = Path(__file__).parent.parent
    if not (root / "pyproject.toml").is_file():
        remedy = "set STX_DATA to the data/ of a clone, or install a clone with `pip install -e .`"
        raise DomainError(f"{root / 'stx'} was installed without the repository's weights: {remedy}")
    return root / "data"


def cache_dir() -> Path:
    """Where drawn pictures are kept: $STX_CACHE, else ~/.cache/stx."""
    return Path(os.environ.get("STX_CACHE") or Path.home() / ".cache" / "stx")


def batch_positions(n: int, batch: int, step: int, seed: int) -> np.ndarray:
    """The positions of training batch `step` (from 0): shuffled epochs over `n` pictures, without an end.

    A function of its arguments alone, so that a resumed run goes on where it stopped without stored state.
    """
    if n == 0:
        raise DomainError("no pictures to train on: this split is empty")
    first = step * batch
    epochs = range(first // n, (first + batch - 1) // n + 1)
    order = np.concatenate([np.random.RandomState((seed * 1_000_003 + e) % 2**32).permutation(n) for e in epochs])
    offset = first - epochs[0] * n
    return order[offset : offset + batch]


# ---------------------------------------------------------------------------------------------------------- avatars


def _draw_shard(shard: list[avatars.Avatar]) -> np.ndarray:
    return np.stack([avatars.draw(a) for a in shard])


class AvatarCache:
    """Drawn avatars on disk, in files of `SHARD` pictures: each written under another name, then renamed."""

    def __init__(self, seed: int):
        versions = [importlib.metadata.version(p) for p in ("dicebear-core", "dicebear-styles", "resvg-py")]
        rules = Path(avatars.__file__).read_bytes()
        key = hashlib.sha256(json.dumps([seed, versions]).encode() + rules).hexdigest()[:12]
        self.seed, self.folder = seed, cache_dir() / f"avatars-{key}"

    def split(self, name: str, count: int | None = None, *, square: bool = False) -> Dataset:
        """The first `count` avatars of a split, drawn where the cache lacks them (one process per core)."""
        _check_split(name, count)
        size = avatars.SPLITS[name] if count is None else min(count, avatars.SPLITS[name])
        whole = -(-size // SHARD) * SHARD
        people = self.avatars(name, whole)
        shards = [people[i : i + SHARD] for i in range(0, whole, SHARD)]
        paths = [self.folder / f"{name}-{i:03d}.npy" for i in range(len(shards))]
        self._fill(name, [(p, s) for p, s in zip(paths, shards, strict=True) if not _readable(p)])
        pictures = [np.load(p, mmap_mode="r") for p in paths]
        return Dataset(
            read=lambda i: np.asarray(pictures[i // SHARD][i % SHARD]),
            names=[f"{name}-{i:05d}" for i in range(size)],
            labels=np.stack([avatars.labels(a) for a in people[:size]]),
        )

    def avatars(self, name: str, count: int) -> list[avatars.Avatar]:
        """The drawing options of the first `count` pictures of a split."""
        return list(itertools.islice(avatars.sample(name, self.seed), count))

    def _fill(self, name: str, missing: list) -> None:
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        workers = min(os.cpu_count() or 1, len(missing))
        bar = tqdm(total=len(missing) * SHARD, desc=f"drawing avatars/{name}", unit="img")
        # forked workers need no main guard in the caller's script, and drawing touches neither torch nor CUDA
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        with bar, ProcessPoolExecutor(workers, mp_context=context) as pool:
            shards = pool.map(_draw_shard, [shard for _, shard in missing])
            for (path, _), pictures in zip(missing, shards, strict=True):
                save_array(path, pictures)
                bar.update(SHARD)


def drawn(name: str, draw: Callable[[], np.ndarray]) -> np.ndarray:
    """A set of avatar drawings from the cache, made by `draw` when the cache lacks it."""
    path = AvatarCache(0).folder / f"{name}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_array(path, draw())
    return np.load(path, mmap_mode="r")


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file that is either whole or absent. Raises `TrainingError` when the disk refuses."""
    with whole_file(path) as part, open(part, "wb") as file:
        np.save(file, array)


def _readable(path: Path) -> bool:
    try:
        return np.load(path, mmap_mode="r").shape[0] == SHARD
    except (OSError, ValueError):
        return False


# ------------------------------------------------------------------------------------------------- folders of pictures


class Folder:
    """A folder of pictures, with an optional `labels.csv`: a column `file`, then one column of 0/1 per attribute."""

    def __init__(self, path: Path, resolution: int, input_size: tuple[int, int]):
        self.path, self.resolution, self.input_size = path, resolution, input_size
        self.files = images.list_images(path)
        self.attributes, self.labels = _read_labels(path / "labels.csv", [self.name(f) for f in self.files])

    def name(self, file: Path) -> str:
        """The path below the folder, with forward slashes."""
        return file.relative_to(self.path).as_posix()

    def split(self, name: str, count: int | None = None, *, square: bool = False) -> Dataset:
        """The pictures below `name/`; elsewhere a share by a hash of the file name: a new file moves no other one.

        Without any for `val`, a twentieth of `train` is held out. Raises `DomainError` for an empty split.
        """
        _check_split(name, count)
        names = [self.name(file) for file in self.files]
        splits = [_folder_split(n) for n in names]
        if "val" not in splits and "train" in splits:
            order = sorted((zlib.crc32(n.encode()), i) for i, n in enumerate(names) if splits[i] == "train")
            for _, i in order[: max(len(order) // 20, 1)]:
                splits[i] = "val"
        chosen = [i for i, split in enumerate(splits) if split == name][:count]
        if not chosen:
            raise DomainError(f"{self.path}: none of its {len(names)} pictures is in the split {name!r}; add pictures")
        read = self._square if square else self._read
        return Dataset(
            read=lambda i: read(self.files[chosen[i]]),
            names=[names[i] for i in chosen],
            labels=None if self.labels is None else self.labels[chosen],
        )

    def _read(self, file: Path) -> np.ndarray:
        return images.resize(images.read_image(file), *self.input_size)

    def _square(self, file: Path) -> np.ndarray:
        """As the generator draws it: black bars above and below where pictures are wider than high."""
        height = self.resolution * self.input_size[0] // self.input_size[1]
        bar = (self.resolution - height) // 2
        return np.pad(images.resize(images.read_image(file), height, self.resolution), ((bar, bar), (0, 0), (0, 0)))


def _folder_split(name: str) -> str:
    first, position = name.split("/")[0], zlib.crc32(name.encode()) / 2**32
    if "/" in name and first in FOLDER_SPLITS:
        return first
    for split, share in FOLDER_SPLITS.items():
        if position < share:
            return split
        position -= share
    return "test"


def _read_labels(path: Path, names: list[str]) -> tuple[tuple[str, ...], np.ndarray | None]:
    if not path.is_file():
        return (), None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = [[cell.strip() for cell in row] for row in csv.reader(file)] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DomainError(f"{path}: not a CSV file in UTF-8 ({error}); save it as one") from None
    if len(header) < 2 or header[0] != "file" or len(set(header)) < len(header) or "" in header:
        raise DomainError(f"{path}: the first line must be 'file', then one attribute name per column, all different")
    table = {}
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        if len(row) != len(header) or any(not re.fullmatch(r"-1|0|1", cell) for cell in row[1:]):
            raise DomainError(f"{path}, line {number}: expected a file name and {len(header) - 1} values of 0 or 1")
        table[row[0]] = [int(cell) > 0 for cell in row[1:]]
    missing = [name for name in names if name not in table]
    if missing:
        raise DomainError(
            f"{path}: no labels for {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    return tuple(header[1:]), np.array([table[name] for name in names])
