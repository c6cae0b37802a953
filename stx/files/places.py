"""Where weights and drawn pictures lie."""

import os
import re
import zlib
from pathlib import Path

from platformdirs import user_cache_path

from stx.files.errors import DomainError

ROOT = Path(__file__).resolve().parents[2]  # of the repository


def data_dir() -> Path:
    """Where weights lie: $STX_DATA, else `data/` of the repository. Raises `DomainError` where there is neither."""
    if given := os.environ.get("STX_DATA"):
        return Path(given)
    if not (ROOT / "pyproject.toml").is_file():
        remedy = "set STX_DATA to the data/ of a clone, or install a clone with `pip install -e .`"
        raise DomainError(f"{ROOT / 'stx'} was installed without the repository's weights: {remedy}")
    return ROOT / "data"


def cache_dir() -> Path:
    """Where drawn pictures are kept: $STX_CACHE, else the user's cache folder (`~/.cache/stx` on Linux)."""
    return Path(os.environ.get("STX_CACHE") or user_cache_path("stx", appauthor=False))


def safe_name(text: str) -> str:
    """Text from a file or an upload as one part of a path: letters, digits, `._-`, at most 80, and no leading dot.

    What had to be changed ends in a checksum of the whole text, so that two texts stay two names.
    """
    plain = re.sub(r"[^\w.-]+", "_", text).lstrip(".")[:80]
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode()):08x}"
