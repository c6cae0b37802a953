"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from stx.files.errors import FileError


def write_text(path: Path, text: str) -> None:
    """Writes a file that is either whole or as it was."""
    with atomic_write(path) as part:
        part.write_text(text)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name to write to, renamed to `path` at the end: a kill or a full disk leaves the old file as it was."""
    part = path.with_name(f".{path.name}-{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise FileError(f"{path}: cannot be written ({error}); the former file is kept, free some space") from error
    finally:
        part.unlink(missing_ok=True)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file that is either whole or absent. Raises `TrainingError` when the disk refuses."""
    with atomic_write(path) as part, open(part, "wb") as file:
        np.save(file, array)
