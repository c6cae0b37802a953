"""Folders of pictures as domains, with the labels of a `labels.csv`."""

import csv
import hashlib
import re
import zlib
from pathlib import Path

import numpy as np

from stx.domains import images
from stx.domains.splits import FOLDER_SPLITS, Dataset, check_split
from stx.files.errors import DomainError
from stx.files.untrusted import one_line


class Folder:
    """A folder of pictures, with an optional `labels.csv`: a column `file`, then one column of 0/1 per attribute."""

    def __init__(self, path: Path, resolution: int, input_size: tuple[int, int]):
        self.path, self.resolution, self.input_size = path, resolution, input_size
        self.files = images.list_images(path)
        self.attributes, self.labels = _read_labels(path / "labels.csv", [self.name(f) for f in self.files])

    def origin(self) -> dict[str, str]:
        """The resolved folder, and twelve digits of names and sizes of all pictures: what networks remember of it."""
        told = "\n".join(f"{self.name(file)} {file.stat().st_size}" for file in self.files)
        code = told.encode(errors="surrogateescape") + self.files[0].read_bytes()
        return {"folder": str(self.path.resolve()), "pictures": hashlib.sha256(code).hexdigest()[:12]}

    def name(self, file: Path) -> str:
        """The path below the folder, with forward slashes."""
        return file.relative_to(self.path).as_posix()

    def split(self, name: str, count: int | None = None, *, square: bool = False) -> Dataset:
        """The pictures below `name/`; elsewhere a share by a hash of the file name: a new file moves no other one.

        Without any for `val`, a twentieth of `train` is held out. Raises `DomainError` for an empty split.
        """
        check_split(name, count)
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
        raise DomainError(f"{path}: not a CSV file in UTF-8 ({one_line(error)}); save it as one") from None
    if len(header) < 2 or header[0] != "file" or len(set(header)) < len(header) or "" in header:
        raise DomainError(f"{path}: the first line must be 'file', then one attribute name per column, all different")
    table = {}
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        if len(row) != len(header) or any(not re.fullmatch(r"-1|0|1", cell) for cell in row[1:]):
            raise DomainError(f"{path}, line {number}: expected a file name and {len(header) - 1} values of 0 or 1")
        shown = [int(cell) > 0 for cell in row[1:]]
        if table.setdefault(row[0], shown) != shown:
            raise DomainError(f"{path}, line {number}: {row[0]} has other labels in a line before; leave one of them")
    missing = [name for name in names if name not in table]
    if missing:
        raise DomainError(
            f"{path}: no labels for {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    return tuple(header[1:]), np.array([table[name] for name in names])
