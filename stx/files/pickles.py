"""Untrusted files, read without executing anything.

Torch files go through `torch.load(weights_only=True)`, NVIDIA's pickles and those of numpy arrays through an unpickler
that knows a handful of names and nothing else; source text inside a file is never run. Sizes are checked against what
is really there before anything is allocated for them.
"""

import argparse
import collections
import io
import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stx.files.errors import WeightsError

ZIP_MAGIC = b"PK\x03\x04"
TORCH_MAGIC = (ZIP_MAGIC, b"\x80\x02\x8a\nl\xfc\x9cF\xf9")  # of torch files, since 1.6 and before


class Refused(pickle.UnpicklingError):
    """Something in a pickle that is not on the list."""


def read_torch(source: str | Path | io.BytesIO, name: str | None = None) -> Any:
    """What a file of `torch.save` holds: tensors, numbers, strings, and dicts and lists of them.

    Raises `WeightsError`, naming the file, for code, a damaged file, or sizes that the file does not contain.
    """
    name = name or str(source)
    try:
        with open(source, "rb") if isinstance(source, str | Path) else source as file:
            _check_zip(file, name)
            # argparse.Namespace: training files of rosinality keep their options so; it only takes attributes
            with torch.serialization.safe_globals([argparse.Namespace, *_NUMPY_NUMBERS]):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{name}: no such file") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        if found:
            raise WeightsError(f"{name}: refused, it asks for {found[1]}, which weights do not need") from None
        raise WeightsError(f"{name}: not a readable torch file; fetch it again, or convert what it is") from None
    except WeightsError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise WeightsError(f"{name}: damaged or incomplete ({_first_line(error)}); fetch it again") from None
    for tensor in tensors_of(content):
        _check_extent(tensor, name)
    return content


def read_pickle(path: str | Path) -> Any:
    """What an NVIDIA pickle, or one of numpy arrays, holds: see `Persistent` and `TfNetwork` for their objects.

    Raises `WeightsError`, naming the file, for any other class, a damaged file, or sizes that it does not contain.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load()
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except Refused as error:
        raise WeightsError(f"{path}: refused, {error}") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception as error:  # an unpickler meets every kind of damage
        raise WeightsError(f"{path}: damaged or incomplete ({_first_line(error)}); fetch it again") from None


class Persistent:
    """A module of stylegan2-ada-pytorch or stylegan3: its class name and its `__dict__`; the source is dropped."""

    def __init__(self, meta: dict):
        if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
            raise Refused("a persistent object without a state")
        self.class_name, self.state = str(meta.get("class_name")), meta["state"]

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Parameters and buffers by their full names, as `state_dict` of the live module would give them."""
        found = {}
        for group in ("_parameters", "_buffers"):
            found |= {prefix + k: v for k, v in self.state.get(group, {}).items() if isinstance(v, torch.Tensor)}
        for name, child in self.state.get("_modules", {}).items():
            if isinstance(child, Persistent):
                found |= child.tensors(f"{prefix}{name}.")
        return found

    def modules(self) -> Iterator["Persistent"]:
        """This one and all below it."""
        yield self
        for child in self.state.get("_modules", {}).values():
            if isinstance(child, Persistent):
                yield from child.modules()


class TfNetwork:
    """A TensorFlow network of StyleGAN2: `state` with name, variables, components and static_kwargs."""

    state: dict

    def __setstate__(self, state: dict) -> None:
        self.state = dict(state)

    def arrays(self) -> dict[str, np.ndarray]:
        """Variables by component and name: `dlatent_avg`, `mapping/Dense0/weight`, `synthesis/4x4/Const/const`, ..."""
        found = {name: as_array(value) for name, value in self.state.get("variables", [])}
        for part, network in self.state.get("components", {}).items():
            found |= {f"{part}/{name}": array for name, array in network.arrays().items()}
        return found


def tensors_of(content: Any) -> list[torch.Tensor]:
    """Every tensor in nested dicts, lists and tuples."""
    if isinstance(content, torch.Tensor):
        return [content]
    if isinstance(content, dict):
        return [t for value in content.values() for t in tensors_of(value)]
    if isinstance(content, list | tuple):
        return [t for value in content for t in tensors_of(value)]
    return []


def as_array(value: Any) -> np.ndarray:
    """The array of an unpickled `_Array`, a number or an array."""
    return value.value if isinstance(value, _Array) else np.asarray(value)


# ------------------------------------------------------------------------------------------- what a pickle may contain


class _DType:
    """Stands for numpy's dtype: plain numbers only."""

    def __init__(self, code: Any, *_: Any):
        self.type = np.dtype(str(code))
        if self.type.kind not in "biuf":
            raise Refused(f"an array of type {code!r}; only numbers are read")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in (">", "<"):
            self.type = self.type.newbyteorder(state[1])


class _Array:
    """Stands for numpy's ndarray while it is read; `value` is the array."""

    value: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _DType) or not isinstance(raw, bytes | bytearray):
            raise Refused("an array of objects; only numbers are read")
        self.value = _from_bytes(raw, dtype, shape).reshape(shape, order="F" if fortran else "C")


def _from_bytes(raw: bytes, dtype: _DType, shape: tuple) -> np.ndarray:
    if math.prod(shape) * dtype.type.itemsize != len(raw):
        raise WeightsError(f"an array claims the shape {list(shape)} but has {len(raw)} bytes")
    return np.frombuffer(raw, dtype.type).astype(dtype.type.newbyteorder("="))


def _buffer(raw: bytes, dtype: _DType, shape: tuple, order: str = "C") -> _Array:
    array = _Array()
    array.value = _from_bytes(bytes(raw), dtype, shape).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(dtype: _DType, raw: bytes) -> Any:
    return _from_bytes(raw, dtype, ()).reshape(())[()].item()


def _parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    return data


class _EasyDict(dict):
    """NVIDIA's dict with attributes."""


def _encode(text: str, *_: Any) -> bytes:  # protocol 2 writes bytes as latin-1 text
    return str(text).encode("latin-1")


def _storage(raw: bytes) -> Any:
    """A storage inside an NVIDIA pickle is a torch file of its own."""
    if not isinstance(raw, bytes | bytearray):
        raise Refused("a storage that is not bytes")
    return read_torch(io.BytesIO(raw), "a tensor inside it")


def _rebuilt(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    there = len(storage)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or last >= max(there, 1) or math.prod(size) > there:
        raise WeightsError(f"a tensor claims the shape {list(size)} but has {there} numbers")
    return torch.empty(0, dtype=storage.dtype).set_(storage.untyped(), offset, tuple(size), tuple(stride)).clone()


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _encode,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Persistent,
    ("dnnlib.util", "EasyDict"): _EasyDict,
    ("dnnlib.tflib.network", "Network"): TfNetwork,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}
for _module in (
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
):
    _ALLOWED |= {
        (_module, "ndarray"): _Array,
        (_module, "dtype"): _DType,
        (_module, "_reconstruct"): lambda *_: _Array(),
        (_module, "_frombuffer"): _buffer,
        (_module, "scalar"): _scalar,
    }
_NUMPY_NUMBERS = [np._core.multiarray.scalar, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}]


class _Unpickler(pickle._Unpickler):
    """The Python unpickler: the C one allocates what a file merely claims. Calls only what is on the list."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise Refused(f"it asks for {module}.{name}, which weights do not need") from None

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to data outside the file")


def _check_zip(file: Any, name: str) -> None:
    """A torch file is a zip of stored members; a compressed member could unfold to any size."""
    magic = file.read(4)
    file.seek(0)
    if magic != ZIP_MAGIC:
        return
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED and member.file_size > 64 * max(
                member.compress_size, 1 << 14
            ):
                raise WeightsError(f"{name}: refused, {member.filename} unfolds to {member.file_size:,} bytes")
    file.seek(0)


def _check_extent(tensor: torch.Tensor, name: str) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise WeightsError(f"{name}: refused, a tensor of layout {tensor.layout}")
    there = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > there:
        raise WeightsError(f"{name}: refused, a tensor claims the shape {list(tensor.shape)} but has {there} bytes")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
