"""Files that are written whole or not at all, and arrays that carry their checksum."""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from stx.files.errors import FileError
from stx.files.untrusted import one_line

HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"  # process numbers mean nothing on another machine
PART_NAME = re.compile(r"\..*-([0-9a-f]{8})-(\d+)\.part")


def write_text(path: Path, text: str) -> None:
    """Writes a file that is either whole or as it was."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name to write to, renamed to `path` at the end: a kill or a full disk leaves the old file as it was.

    The content is on the disk before the old file goes, so that a power failure leaves no empty file. What killed runs
    of this machine left in the folder is swept; a missing one is made. The new file has the mode of the old one, or
    that of any new file, whatever a library gave it. Raises `FileError` when the file system refuses.
    """
    sweep_parts(path.parent)
    short = f"{path.name[:40]}-{zlib.crc32(os.fsencode(path.name)):08x}"  # a long name leaves no room for more
    own = path.with_name(f".{short}-{HOST}-{os.getpid()}.part")  # a folder, since libraries put files beside theirs
    part = own / "new.part"
    try:
        own.mkdir(parents=True, exist_ok=True)
        yield part
        with contextlib.suppress(OSError):  # not every file system has modes
            part.chmod(stat.S_IMODE(path.stat().st_mode) if path.exists() else own.stat().st_mode & 0o666)
        _flush(part)
        os.replace(part, path)
        with contextlib.suppress(OSError):  # not every file system flushes folders
            _flush(path.parent)
    except FileError:  # of another file that is written within
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        told = f"cannot be written ({one_line(error)}); the former file is kept, free some space"
        raise FileError(f"{path}: {told}") from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


@functools.cache
def sweep_parts(folder: Path) -> None:
    """Deletes, once per process, what killed processes of this machine left half-written in a folder."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = PART_NAME.fullmatch(entry.name)
            if found and found[1] == HOST and not _alive(int(found[2])):
                shutil.rmtree(entry.path, ignore_errors=True)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file that is either whole or absent, its SHA-256 behind the array. Raises `FileError`."""
    with atomic_write(path) as part:
        with open(part, "wb") as file:
            np.save(file, array)
        with open(part, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        with open(part, "ab") as file:
            file.write(digest)


def load_array(path: Path) -> np.ndarray | None:
    """The array of `save_array`, mapped into memory; None for a file that is missing, damaged, altered or of others.

    The whole file is read once per process for its checksum: about a second per gigabyte.
    """
    try:
        state = path.stat()
        if not _unaltered(path, state.st_size, state.st_mtime_ns):
            return None
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


@functools.cache
def _unaltered(path: Path, size: int, changed: int) -> bool:
    """Of a file of that size and time of change: whether its last 32 bytes are the SHA-256 of the rest."""
    digest, left = hashlib.sha256(), size - 32
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        return left == 0 and file.read() == digest.digest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
