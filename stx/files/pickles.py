"""Untrusted pickles, read without executing anything: torch files, NVIDIA's networks, numpy arrays.

One unpickler for all of them. It knows the instructions of protocols 2 to 5 and a list of names, each of which stands
for a function of ours: no class or function of a library is ever called by a file. Source text inside a file is never
run, and all that a file makes is counted against one budget (`stx.files.untrusted`).
"""

import argparse
import io
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stx.files.errors import WeightsError
from stx.files.stand_ins import (
    Refused,
    _Array,
    _buffer,
    _bytes,
    _checked,
    _device,
    _DType,
    _encode,
    _Mapping,
    _mapping,
    _parameter,
    _rebuilt,
    _scalar,
    _set,
    _size,
    _Storage,
    as_array,
)
from stx.files.untrusted import ZIP_MAGIC, Budget, Members, arrays_of, check_shape, one_line, size_of

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # of torch files before 1.6
TORCH_MAGIC = (ZIP_MAGIC, LEGACY_MAGIC)
MAX_INSTRUCTIONS = 1_000_000  # of a pickle; public files have up to 200,000
MAX_MODULES, MAX_DEPTH = 10_000, 32  # of a network in a pickle


def read_torch(path: str | Path) -> Any:
    """What a file of `torch.save` holds: tensors, numbers, strings, and dicts and lists of them. Also a `.npz`.

    Raises `WeightsError`, naming the file, for code, a damaged file, or sizes that the file does not contain.
    """
    return _read(path, _torch_content)


def read_pickle(path: str | Path) -> Any:
    """What an NVIDIA pickle, or one of numpy arrays, holds: see `Persistent` and `TfNetwork` for their objects.

    Raises `WeightsError`, naming the file, for any other class, a damaged file, or sizes that it does not contain.
    """
    return _read(path, lambda file, budget: _Unpickler(file, budget).load())


def _read(path: str | Path, reader: Callable[[io.BufferedIOBase, Budget], Any]) -> Any:
    try:
        with open(path, "rb") as file:
            return _with_arrays(reader(file, Budget(size_of(file))))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except Refused as error:
        raise WeightsError(f"{path}: refused, {one_line(error)}") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {one_line(error)}") from None
    except Exception as error:  # an unpickler meets every kind of damage
        told = one_line(error) or type(error).__name__
        raise WeightsError(f"{path}: damaged or incomplete ({told}); fetch it again") from None


def _with_arrays(content: Any) -> Any:
    """Arrays in place of what stood for them, in dicts and lists; each container is visited once."""
    content = as_array(content) if isinstance(content, _Array) else content
    waiting, seen = [content], set()
    while waiting:
        here = waiting.pop()
        if id(here) in seen or not isinstance(here, dict | list):
            continue
        seen.add(id(here))
        for key, value in list(here.items() if isinstance(here, dict) else enumerate(here)):
            if isinstance(value, _Array):
                here[key] = as_array(value)
            elif isinstance(value, dict | list):
                waiting.append(value)
    return content


class Persistent:
    """A module of stylegan2-ada-pytorch or stylegan3: its class name and its `__dict__`; the source is dropped."""

    def __init__(self, meta: dict):
        if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
            raise Refused("a persistent object without a state")
        name = meta.get("class_name")
        self.class_name, self.state = name if isinstance(name, str) else "", meta["state"]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by their full names, as `state_dict` of the live module would give them."""
        found = {}
        for prefix, module in _tree(self, lambda module: module._part("_modules"), "."):
            for group in ("_parameters", "_buffers"):
                tensors = module._part(group).items()
                found |= {prefix + k: v for k, v in tensors if isinstance(v, torch.Tensor) and isinstance(k, str)}
        return found

    def modules(self) -> Iterator["Persistent"]:
        """This one and all below it."""
        return (module for _, module in _tree(self, lambda module: module._part("_modules"), "."))

    def attributes(self, name: str) -> dict[str, Any]:
        """The plain attribute `name` of this one and all below it that have it, by their full names."""
        tree = _tree(self, lambda module: module._part("_modules"), ".")
        return {prefix.removesuffix("."): module.state[name] for prefix, module in tree if name in module.state}

    def _part(self, name: str) -> dict:
        part = self.state.get(name)
        return part if isinstance(part, dict) else {}


class TfNetwork:
    """A TensorFlow network of StyleGAN2: `state` with name, variables, components and static_kwargs."""

    def __init__(self):
        self.state: dict = {}

    def arrays(self) -> dict[str, np.ndarray]:
        """Variables by component and name: `dlatent_avg`, `mapping/Dense0/weight`, `synthesis/4x4/Const/const`, ..."""
        found = {}
        for prefix, network in _tree(self, lambda network: network.state.get("components") or {}, "/"):
            found |= {f"{prefix}{name}": as_array(value) for name, value in network.state.get("variables", [])}
        return found


def _tree(root: Any, children: Callable[[Any], dict], mark: str) -> Iterator[tuple[str, Any]]:
    """(prefix, node) of a network and all parts of its own class; one that occurs twice is no tree, and refused."""
    waiting, seen = [("", root, 0)], set()
    while waiting:
        prefix, node, depth = waiting.pop()
        if id(node) in seen or len(seen) >= MAX_MODULES or depth > MAX_DEPTH:
            raise WeightsError("refused, a network whose parts contain each other, or too many of them")
        seen.add(id(node))
        yield prefix, node
        parts = [(name, part) for name, part in children(node).items() if isinstance(part, type(root))]
        waiting += [(f"{prefix}{name}{mark}", part, depth + 1) for name, part in reversed(parts)]


# ---------------------------------------------------------------------------------------------------- torch's objects


def _with_attributes(reader: "_Unpickler", rebuild: Any, kind: Any, args: Any, state: Any) -> torch.Tensor:
    if not isinstance(rebuild, _Global) or rebuild.make not in (_rebuilt, _parameter):
        raise Refused("a tensor of an unknown class")
    return rebuild.make(reader, *args)


def _inner_storage(reader: "_Unpickler", raw: Any) -> _Storage:
    """A storage inside an NVIDIA pickle is a torch file of its own."""
    if not isinstance(raw, bytes | bytearray) or not raw.startswith(LEGACY_MAGIC) or reader.inner:
        raise Refused("a storage that is no torch file")
    reader.budget.spend(len(raw))
    return _legacy_content(io.BytesIO(raw), reader.budget, inner=True)


def _torch_content(file: io.BufferedIOBase, budget: Budget) -> Any:
    magic = file.read(len(LEGACY_MAGIC))
    file.seek(0)
    if magic == LEGACY_MAGIC:
        return _legacy_content(file, budget)
    if not magic.startswith(ZIP_MAGIC):
        raise WeightsError("not a torch file")
    members = Members(file, budget)
    root = next((name.removesuffix("data.pkl") for name in members.infos if name.endswith("/data.pkl")), None)
    if root is None and any(name.endswith(".npy") for name in members.infos):
        return arrays_of(members)
    if root is None:
        raise WeightsError("a zip archive without weights of torch; unpack it, or convert what is in it")
    if root + "constants.pkl" in members.infos:
        raise WeightsError("a TorchScript program, not weights; save its state_dict() with torch.save")
    if root + "byteorder" in members.infos and members.read(root + "byteorder") != b"little":
        raise WeightsError("written by a big-endian machine, which is not supported")

    def storage(key: str, nbytes: int) -> bytearray:
        raw = members.read(f"{root}data/{key}")
        if len(raw) < nbytes:
            raise WeightsError(f"refused, {key} claims {nbytes} bytes but has {len(raw)}")
        return raw[:nbytes] if len(raw) > nbytes else raw

    return _Unpickler(io.BytesIO(members.read(root + "data.pkl")), budget, storage).load()


def _legacy_content(file: io.BufferedIOBase, budget: Budget, inner: bool = False) -> Any:
    """Torch's form before 1.6: pickles of a number, the version, the machine, the object and its storages' keys."""
    left, raws = size_of(file), {}

    def storage(key: str, nbytes: int) -> bytearray:
        nonlocal left
        left -= nbytes
        if left < 0:
            raise WeightsError("refused, its tensors claim more bytes than the file has")
        budget.spend(nbytes)
        raws[key] = bytearray(nbytes)
        return raws[key]

    _, version, machine = (_Unpickler(file, budget).load() for _ in range(3))
    if version != 1001 or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise WeightsError("a torch file of an unknown version or machine")
    reader = _Unpickler(file, budget, storage, inner)
    content = reader.load()
    keys = _Unpickler(file, budget).load()
    if not isinstance(keys, list) or len(keys) != len(raws) or set(map(_key, keys)) != raws.keys():
        raise WeightsError("damaged or incomplete (its storages are not those that it lists); fetch it again")
    for key in map(_key, keys):
        (count,) = struct.unpack("<q", file.read(8))
        if count != reader.storages[key].count or file.readinto(raws[key]) != len(raws[key]):
            raise WeightsError("damaged or incomplete (it ends within a tensor); fetch it again")
    return content


def _key(key: Any) -> str:
    if not isinstance(key, str | int):
        raise Refused("a storage without a name")
    return str(key)


# ------------------------------------------------------------------------------------------- what a pickle may contain


@dataclass(frozen=True)
class _Global:
    """What a name in a pickle stands for: inert, but for `make(reader, *args)` where there is one."""

    name: str
    make: Callable | None = None
    dtype: torch.dtype | None = None


_FUNCTIONS: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("dnnlib.util", "EasyDict"): _mapping,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("builtins", "bytearray"): _bytes,
    ("__builtin__", "bytearray"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("_codecs", "encode"): _encode,
    ("argparse", "Namespace"): lambda reader: argparse.Namespace(),  # training files of rosinality keep options so
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): lambda reader, meta: Persistent(meta),
    ("dnnlib.tflib.network", "Network"): lambda reader: TfNetwork(),
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch._utils", "_rebuild_tensor"): _rebuilt,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
    ("torch.storage", "_load_from_bytes"): _inner_storage,
}
for _module in (
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
):
    _FUNCTIONS |= {
        (_module, "ndarray"): lambda reader, *_: _Array(),
        (_module, "dtype"): lambda reader, code, *_: _DType(code),
        (_module, "_reconstruct"): lambda reader, *_: _Array(),
        (_module, "_frombuffer"): _buffer,
        (_module, "scalar"): _scalar,
    }
_ALLOWED = {name: _Global(".".join(name), make) for name, make in _FUNCTIONS.items()}
_STORAGES = {
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
for _name, _dtype in _STORAGES.items():
    for _module in ("torch", "torch.cuda"):
        _ALLOWED[_module, f"{_name}Storage"] = _Global(f"{_module}.{_name}Storage", dtype=_dtype)
    _ALLOWED["torch", str(_dtype).removeprefix("torch.")] = _Global(str(_dtype))
for _module, _name in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("torch.nn.parameter", "Buffer")):
    _ALLOWED[_module, _name] = _Global(f"{_module}.{_name}")

_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT
    BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    EMPTY_SET ADDITEMS FROZENSET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
    BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE
"""


class _Unpickler(pickle._Unpickler):
    """The Python unpickler (the C one allocates what a file merely claims), less all that weights do not need.

    storage: gives the memory of a storage by its key and bytes; None where there are none. inner: within another one.
    """

    def __init__(
        self,
        file: io.BufferedIOBase,
        budget: Budget,
        storage: Callable[[str, int], bytearray] | None = None,
        inner: bool = False,
    ):
        super().__init__(file)
        self.budget, self.inner, self.storage = budget, inner, storage
        self.storages: dict[str, _Storage] = {}

    def load(self) -> Any:
        """The object of the next pickle in the file."""
        self._unframer = pickle._Unframer(self._file_read, self._file_readline)
        self.read, self.readline = self._unframer.read, self._unframer.readline
        self.metastack, self.stack, self.proto = [], [], 0
        self.append = self.stack.append
        read, dispatch = self.read, self.dispatch
        try:
            for _ in range(MAX_INSTRUCTIONS):
                dispatch[read(1)[0]](self)
        except pickle._Stop as stop:
            return stop.value
        except IndexError:
            raise EOFError("it ends early, or takes what is not there") from None
        raise Refused("it has more instructions than any network needs")

    def find_class(self, module: str, name: str) -> _Global:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise Refused(f"it asks for {module}.{name}, which weights do not need") from None

    def persistent_load(self, pid: Any) -> _Storage:
        if self.storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
            raise Refused("it refers to data outside the file")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _Global) or kind.dtype is None or any(part is not None for part in view):
            raise Refused("numbers of a type that is not read")
        key, (count,) = _key(key), check_shape([count])
        if key not in self.storages:
            self.storages[key] = _Storage(self.storage(key, count * kind.dtype.itemsize), kind.dtype, count)
        found = self.storages[key]
        if (found.dtype, found.count) != (kind.dtype, count):
            raise Refused("the same numbers under two types")
        return found

    def load_reduce(self) -> None:
        args, called = self.stack.pop(), self.stack[-1]
        if not isinstance(called, _Global) or called.make is None or not isinstance(args, tuple):
            raise Refused(f"it calls {called.name if isinstance(called, _Global) else 'what is no function'}")
        self.stack[-1] = called.make(self, *args)

    def load_newobj(self) -> None:
        if not isinstance(self.stack[-1], tuple) or self.stack[-1]:
            raise Refused("an object made with arguments")
        self.load_reduce()

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if type(made) in (_Array, _DType):
            made.set_state(self, state)
        elif type(made) is _Mapping:
            pass  # attributes of a dict, such as the versions of a state dict
        elif type(made) in (TfNetwork, argparse.Namespace) and isinstance(state, dict):
            self.budget.spend(100 * len(state))
            (made.state if type(made) is TfNetwork else vars(made)).update(state)
        else:
            raise Refused(f"it sets the state of a {type(made).__name__}")

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._fill(items[::2], items[1::2])

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key], [value])

    def _fill(self, keys: list, values: list) -> None:
        if type(self.stack[-1]) not in (dict, _Mapping):
            raise Refused(f"it sets an item of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(zip(map(_checked, keys), values, strict=True))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({_checked(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def _extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise Refused(f"it adds to a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(_checked, items))

    def load_frozenset(self) -> None:
        self.append(frozenset(map(_checked, self.pop_mark())))

    def load_bytearray8(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(count)))  # not of the size that it claims

    def load_unknown(self) -> None:
        raise Refused("it is no pickle of protocol 2 to 5")


_Unpickler.dispatch = dict.fromkeys(range(256), _Unpickler.load_unknown) | {
    code: getattr(_Unpickler, step.__name__)  # ours where there is one
    for code, step in pickle._Unpickler.dispatch.items()
    if code in {getattr(pickle, name)[0] for name in _INSTRUCTIONS.split()}
}
