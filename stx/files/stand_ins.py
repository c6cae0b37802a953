"""What the names in a pickle stand for: plain objects of ours, made with checks, in place of what they name."""

import math
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stx.files.errors import WeightsError
from stx.files.untrusted import check_shape

MAX_KEY_BITS = 60  # of a number that is a key: larger ones can be made to collide


class Refused(pickle.UnpicklingError):
    """Something in a pickle that is not on the list."""


def as_array(value: Any) -> np.ndarray:
    """The array of an unpickled `_Array`, a number or an array."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, np.ndarray | int | float):
        return np.asarray(value)
    raise WeightsError(f"a {type(value).__name__} in place of an array")


class _DType:
    """Stands for numpy's dtype: plain numbers only."""

    def __init__(self, code: Any):
        if not isinstance(code, str | bytes) or len(code) > 3:
            raise Refused("an array of a type that is no number; only numbers are read")
        self.type = np.dtype(code.decode("ascii") if isinstance(code, bytes) else code)
        if self.type.kind not in "biuf" or self.type.itemsize > 8:
            raise Refused(f"an array of type {code!r}; only numbers are read")

    def set_state(self, reader: Any, state: tuple) -> None:
        """The byte order."""
        if state[1] in (">", "<"):
            self.type = self.type.newbyteorder(state[1])


class _Array:
    """Stands for numpy's ndarray while it is read; `value` is the array."""

    def __init__(self):
        self.value = np.zeros(0, np.float32)

    def set_state(self, reader: Any, state: tuple) -> None:
        """The numbers, from (version, shape, dtype, whether in Fortran's order, bytes)."""
        _, shape, dtype, fortran, raw = state
        self.value = _from_bytes(reader, raw, dtype, shape, "F" if fortran is True else "C")


def _from_bytes(reader: Any, raw: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(raw, bytes | bytearray):
        raise Refused("an array of objects; only numbers are read")
    shape = check_shape(shape)
    if math.prod(shape) * dtype.type.itemsize != len(raw):
        raise WeightsError(f"an array claims the shape {list(shape)} but has {len(raw)} bytes")
    reader.budget.spend(len(raw))
    array = np.frombuffer(raw, dtype.type).astype(dtype.type.newbyteorder("="))
    return array.reshape(shape, order="F" if order == "F" else "C")


def _buffer(reader: Any, raw: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    array = _Array()
    array.value = _from_bytes(reader, raw, dtype, shape, "F" if order == "F" else "C")
    return array


def _scalar(reader: Any, dtype: Any, raw: Any) -> Any:
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw
    return _from_bytes(reader, raw, dtype, ()).item()


@dataclass
class _Storage:
    """Numbers of one type, in memory that is filled from the file."""

    raw: bytearray
    dtype: torch.dtype
    count: int

    def tensor(self) -> torch.Tensor:
        return torch.frombuffer(self.raw, dtype=self.dtype) if self.raw else torch.empty(0, dtype=self.dtype)


def _rebuilt(reader: Any, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A view of a storage, within it, counted as memory of its own."""
    if not isinstance(storage, _Storage):
        raise Refused("a tensor without numbers")
    size, stride = check_shape(size), check_shape(stride)
    (offset,) = check_shape([offset])
    if len(size) != len(stride):
        raise WeightsError(f"a tensor claims the shape {list(size)} with strides {list(stride)}")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else offset - 1
    if last >= storage.count or numel > storage.count:
        raise WeightsError(f"refused, a tensor claims the shape {list(size)} but has {storage.count} numbers")
    reader.budget.spend(numel * storage.dtype.itemsize)
    return storage.tensor().as_strided(size, stride, offset if numel else 0)


def _parameter(reader: Any, data: Any, *_: Any) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        raise Refused("a parameter that is no tensor")
    return data


class _Mapping(dict):
    """Stands for OrderedDict, Counter and NVIDIA's EasyDict; their attributes are dropped."""


def _mapping(reader: Any, pairs: Any = ()) -> _Mapping:
    found = _Mapping()
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    reader.budget.spend(100 * len(pairs))
    for key, value in pairs:
        found[_checked(key)] = value
    return found


def _set(reader: Any, items: Any = ()) -> set:
    reader.budget.spend(100 * len(items))
    return set(map(_checked, items))


def _checked(key: Any) -> Any:
    """A key, when it is a name or a number: hashing anything else could take for ever, or the stack."""
    if type(key) not in (str, bytes, int, bool, type(None)):
        raise Refused(f"a {type(key).__name__} as a key")
    if type(key) is int and key.bit_length() > MAX_KEY_BITS:
        raise Refused("a number beyond any count as a key")
    return key


def _encode(reader: Any, text: Any, *_: Any) -> bytes:  # protocol 2 writes bytes as latin-1 text
    if not isinstance(text, str):
        raise Refused("bytes that are no text")
    reader.budget.spend(len(text))
    return text.encode("latin-1")


def _bytes(reader: Any, raw: Any = b"", *_: Any) -> bytes:
    if isinstance(raw, str):
        return _encode(reader, raw)
    if not isinstance(raw, bytes | bytearray):
        raise Refused("bytes that are a number")
    reader.budget.spend(len(raw))
    return bytes(raw)


def _size(reader: Any, sides: Any = ()) -> tuple:
    return check_shape(sides)


def _device(reader: Any, *words: Any) -> str:
    return ":".join(str(word) for word in words if isinstance(word, str | int))[:32]
