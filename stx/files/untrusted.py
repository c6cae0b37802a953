"""What readers of untrusted files share: a budget of bytes, zip members, arrays, JSON, and what a file is, in words.

Nothing is allocated for what a file merely claims; sizes are checked against the bytes that are there.
"""

import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from stx.files.errors import InputError, WeightsError

ZIP_MAGIC = b"PK\x03\x04"
NUMPY_MAGIC = b"\x93NUMPY"
UNFOLDS, SLACK = 4, 1 << 24  # a file may become four times its size and 16 MB
MAX_DIRECTORY = 1 << 23  # bytes of a zip file's list of members
MAX_JSON = 1 << 24  # bytes
MAX_AXES, MAX_SIDE = 32, 1 << 48  # of a shape
MAX_MESSAGE = 400  # characters that a file may put into a message
BEGINNINGS = (  # of what is saved in place of weights
    (rb"version https://git-lfs", "a git LFS pointer, not the file itself; run `git lfs pull`"),
    (rb"\s*<(!doctype html|html|head|body|script|meta|\?xml|!--)", "a web page, not weights; download it in a browser"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "a compressed archive; unpack it first"),
    (rb"\x89HDF", "an HDF5 file, of another library; only torch files, pickles and numpy arrays are read"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF", "a picture or a film, not weights"),
    (rb".{5}\x00\x00\x00\{", "a safetensors file; put it with its config.json into data/<domain>/<network>/"),
)


class Budget:
    """Bytes that a file may still become in memory. Raises `WeightsError` when it would be more."""

    def __init__(self, size: int):
        self.left = UNFOLDS * size + SLACK

    def spend(self, count: int) -> None:
        """Takes `count` bytes."""
        self.left -= count
        if count < 0 or self.left < 0:
            raise WeightsError("refused, it unfolds to far more than its own size")


def check_shape(shape: Any) -> tuple[int, ...]:
    """The shape as a tuple of sane sizes. Raises `WeightsError` otherwise."""
    if not isinstance(shape, list | tuple) or len(shape) > MAX_AXES:
        raise WeightsError("refused, a shape that is none")
    if not all(type(n) is int and 0 <= n < MAX_SIDE for n in shape):
        raise WeightsError("refused, a shape that is no list of sizes")
    return tuple(shape)


def what_it_is(head: bytes) -> str | None:
    """In words, when a file begins like something that is no weights; None otherwise."""
    if not head:
        return "an empty file; fetch it again"
    for pattern, words in BEGINNINGS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return words
    return None


def one_line(text: object) -> str:
    """Text from a file, in one line, of bounded length and without control characters."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * MAX_MESSAGE])
    return " ".join(shown.split())[:MAX_MESSAGE]


def size_of(file: io.BufferedIOBase) -> int:
    """Bytes in an open file, whose position is kept."""
    here = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(here)
    return size


class Members:
    """The members of a zip file, each in bytes of its own and at most as long as the budget allows.

    Raises `WeightsError` for a damaged file, members that overlap, occur twice, are encrypted or oddly compressed.
    """

    def __init__(self, file: io.BufferedIOBase, budget: Budget):
        ended = zipfile._EndRecData(file)
        if not ended:
            raise WeightsError("damaged or incomplete (no list of members at its end); fetch it again")
        if ended[zipfile._ECD_SIZE] > MAX_DIRECTORY:
            raise WeightsError("refused, it has more members than any file of weights")
        self.archive, self.budget = zipfile.ZipFile(file), budget
        self.infos: dict[str, zipfile.ZipInfo] = {}
        end = 0
        for info in sorted(self.archive.infolist(), key=lambda info: info.header_offset):
            if info.header_offset < end or info.filename in self.infos:
                raise WeightsError(f"refused, {info.filename} overlaps another member or occurs twice")
            end = info.header_offset + 30 + info.compress_size
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise WeightsError(f"refused, {info.filename} is encrypted or of an unusual compression")
            self.infos[info.filename] = info
        if end > size_of(file):
            raise WeightsError("damaged or incomplete (a member goes beyond its end); fetch it again")

    def read(self, name: str) -> bytearray:
        """The bytes of a member, once checked against its checksum."""
        info = self.infos.get(name)
        if info is None:
            raise WeightsError(f"damaged or incomplete ({name} is missing); fetch it again")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise WeightsError(f"refused, {name} has another size than it claims")
        self.budget.spend(info.file_size)
        raw = bytearray()
        with self.archive.open(info) as member:
            while part := member.read(1 << 20):
                raw += part
                if len(raw) > info.file_size:
                    break
        if len(raw) != info.file_size:
            raise WeightsError(f"damaged or incomplete ({name} has {len(raw)} bytes); fetch it again")
        return raw


def read_array(path: str | Path) -> np.ndarray:
    """The array of a `.npy` file: numbers only.

    Raises `WeightsError`, naming the file, for Python objects, damage, or a size that the file does not contain.
    """
    try:
        with open(path, "rb") as file:
            return _array(file.read())
    except WeightsError as error:
        raise WeightsError(f"{path}: {one_line(error)}") from None
    except Exception as error:  # numpy raises many kinds for a damaged file
        raise WeightsError(f"{path}: damaged or incomplete ({one_line(error)}); fetch it again") from None


def arrays_of(members: Members) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file by name: numbers only."""
    return {name.removesuffix(".npy"): _array(members.read(name)) for name in members.infos if name.endswith(".npy")}


def _array(raw: bytes | bytearray) -> np.ndarray:
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise WeightsError(f"an array file of version {version}; save it again with numpy.save")
    shape, fortran, dtype = read(file)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        kind = "Python objects" if dtype.hasobject else f"the type {dtype}"
        raise WeightsError(f"an array of {kind}; only numbers are read")
    there, shape = len(raw) - file.tell(), check_shape(shape)
    if math.prod(shape) * dtype.itemsize != there:
        raise WeightsError(f"an array claims the shape {list(shape)} but has {there} bytes; fetch it again")
    array = np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))


def read_json(path: Path) -> Any:
    """A JSON file of at most `MAX_JSON` bytes. Raises `ValueError` or `OSError` for any other."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
        raise InputError("a folder, a pipe or a device")
    if path.stat().st_size > MAX_JSON:
        raise InputError(f"larger than {MAX_JSON >> 20} MB")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError("nested too deeply") from None
