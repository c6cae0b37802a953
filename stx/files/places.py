"""Where weights and drawn pictures lie."""

import os
import re
import zlib
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from stx.files.errors import DomainError

WEIGHTS_PACKAGE = "stx_weights"
ROOT = Path(__file__).resolve().parents[2]  # of the repository


def data_dir() -> Path:
    """Where weights lie: $STX_DATA, else `data/` of the repository, else the installed package of the avatars' weights.

    Raises `DomainError` where there is none of them.
    """
    if given := os.environ.get("STX_DATA"):
        return Path(given)
    if (ROOT / "pyproject.toml").is_file():
        return ROOT / "data"
    package = find_spec(WEIGHTS_PACKAGE)
    if package is None:
        remedy = (
            "install style-transformer-stx-weights (`make wheels` builds it), set STX_DATA to the data/ of a clone, "
            "or install a clone with `pip install -e .`"
        )
        raise DomainError(f"{ROOT / 'stx'} was installed without weights: {remedy}")
    return Path(next(iter(package.submodule_search_locations)))


def cache_dir() -> Path:
    """Where drawn pictures are kept: $STX_CACHE, else the user's cache folder (`~/.cache/stx` on Linux)."""
    return Path(os.environ.get("STX_CACHE") or user_cache_path("stx", appauthor=False))


def safe_name(text: str) -> str:
    """Text from a file or an upload as one part of a path: letters, digits, `._-`, at most 80, and no leading dot.

    What had to be changed ends in a checksum of the whole text, so that two texts stay two names.
    """
    plain = re.sub(r"[^\w.-]+", "_", text).lstrip(".")[:80]
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode(errors='surrogatepass')):08x}"
