"""stx: Style Transformer for Image Inversion and Editing (Hu et al., CVPR 2022), reproducible."""

from importlib import import_module
from importlib.util import find_spec

__all__ = ["Pipeline", "load", "pick_device"]


def __getattr__(name: str):
    """The front door and the modules, imported when they are first asked for: torch takes seconds."""
    if name in __all__:
        return getattr(import_module("stx.pipeline"), name)
    if name.startswith("_") or find_spec(f"stx.{name}") is None:
        raise AttributeError(f"module 'stx' has no attribute {name!r}")
    return import_module(f"stx.{name}")
