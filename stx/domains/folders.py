"""Folders of pictures as domains, with the labels of a `labels.csv`."""

import csv
import hashlib
import os
import re
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from stx.domains import images
from stx.domains.splits import FOLDER_SPLITS, Dataset, check_split
from stx.files.errors import DomainError
from stx.files.untrusted import one_line

SPLIT_FOLDER = re.compile(  # what the folder of a split is called, such as Train, validation, test_set, val2017
    r"(?:(?P<train>train|training)|(?P<val>val|valid|validation|dev)|(?P<test>test|testing))"
    r"(?:[ _-]?(?:set|data|images|\d{4}))?",
    re.IGNORECASE,
)
NOT_ATTRIBUTES = ("ganspace", "sefa", "stylespace")  # what `edit` knows without labels


class Folder:
    """A folder of pictures, with an optional `labels.csv`: a column `file`, then one column of 0/1 per attribute."""

    def __init__(self, path: Path, resolution: int, input_size: tuple[int, int]):
        self.path, self.resolution, self.input_size = path, resolution, input_size
        self.files = images.list_images(path)
        self.attributes, self.labels = _read_labels(path, [self.name(f) for f in self.files])

    def origin(self) -> dict[str, str]:
        """The resolved folder, and twelve digits of names and sizes of the pictures there: what networks remember."""
        there = [file for file in self.files if file.is_file()]
        told = "\n".join(f"{self.name(file)} {file.stat().st_size}" for file in there)
        code = told.encode(errors="surrogateescape") + b"".join(file.read_bytes() for file in there[:1])
        return {"folder": str(self.path.resolve()), "pictures": hashlib.sha256(code).hexdigest()[:12]}

    def name(self, file: Path) -> str:
        """The path below the folder, with forward slashes."""
        return file.relative_to(self.path).as_posix()

    def split(self, name: str, count: int | None = None, *, square: bool = False) -> Dataset:
        """The pictures below `name/`, however that is called (`SPLIT_FOLDER`).

        Elsewhere a share by a hash of the file name, so that a new file moves no other one.
        Without any for `val`, a twentieth of `train` is held out. Raises `DomainError` for an empty split.
        """
        check_split(name, count)
        names = [self.name(file) for file in self.files]
        splits = [_folder_split(n) for n in names]
        if "val" not in splits and "train" in splits:
            order = sorted((zlib.crc32(os.fsencode(n)), i) for i, n in enumerate(names) if splits[i] == "train")
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
    for folder in name.split("/")[:-1]:
        if named := SPLIT_FOLDER.fullmatch(folder):
            return named.lastgroup
    position = zlib.crc32(os.fsencode(name)) / 2**32
    for split, share in FOLDER_SPLITS.items():
        if position < share:
            return split
        position -= share
    return "test"


def _labels_file(folder: Path) -> Path | None:
    """The `labels.csv` of a folder, in upper or lower case; None without one."""
    found = [path for path in folder.iterdir() if path.name.lower() == "labels.csv"]
    if found[1:]:
        raise DomainError(f"{folder}: both {found[0].name} and {found[1].name}; leave one of them")
    if found and not found[0].is_file():
        raise DomainError(f"{found[0]}: a folder, a pipe or a link to nothing; expected a file of labels, or none")
    return found[0] if found else None


def _one_form(name: str) -> str:
    """A file name as it is compared: composed (NFC; macOS has it decomposed), `/` for `\\`, without `./`."""
    return PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/")).as_posix()


def _check_attributes(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if "," in name or ":" in name or name in NOT_ATTRIBUTES or not name.isprintable():
            raise DomainError(
                f"{path}: an attribute cannot be called {name!r}, which edits take for something else: no commas, "
                f"no colons, nothing that cannot be seen, not {', '.join(NOT_ATTRIBUTES)}"
            )


def _read_labels(folder: Path, names: list[str]) -> tuple[tuple[str, ...], np.ndarray | None]:
    path = _labels_file(folder)
    if path is None:
        return (), None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = [[cell.strip() for cell in row] for row in csv.reader(file)] or [[]]
    except OSError as error:
        raise DomainError(f"{path}: cannot be read ({one_line(error.strerror)}); see to its permissions") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DomainError(f"{path}: not a CSV file in UTF-8 ({one_line(error)}); save it as one") from None
    header = [unicodedata.normalize("NFC", name) for name in header]
    if len(header) < 2 or header[0] != "file" or len(set(header)) < len(header) or "" in header:
        raise DomainError(f"{path}: the first line must be 'file', then one attribute name per column, all different")
    _check_attributes(path, header[1:])
    table = {}
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        if len(row) != len(header) or any(not re.fullmatch(r"-1|0|1", cell) for cell in row[1:]):
            raise DomainError(f"{path}, line {number}: expected a file name and {len(header) - 1} values of 0 or 1")
        shown = [int(cell) > 0 for cell in row[1:]]
        if table.setdefault(_one_form(row[0]), shown) != shown:
            raise DomainError(f"{path}, line {number}: {row[0]} has other labels in a line before; leave one of them")
    for name, *shown in zip(header, *filter(any, rows), strict=True):
        if {"0", "-1"} <= set(shown):
            raise DomainError(f"{path}: {name} is both 0 and -1, one of them for what is not known; give 0 and 1")
    missing = [name for name in names if _one_form(name) not in table]
    if missing:
        raise DomainError(
            f"{path}: no labels for {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    return tuple(header[1:]), np.array([table[_one_form(name)] for name in names])
