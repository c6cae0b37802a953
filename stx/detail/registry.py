"""The methods that keep detail, by name: what each is made of, and what its paper claims."""

from dataclasses import dataclass

from stx.detail.features import FeatureEditor, FeatureEncoder
from stx.detail.hfgi import HFGI
from stx.detail.kept import Detail
from stx.detail.offsets import HyperStyle, Offsets
from stx.files.errors import InputError

FOLDER = "detail"  # in a domain's folder


@dataclass(frozen=True)
class DetailMethod:
    """title: as tables have it; network: its class; begins_with: the method whose weights its training begins with.

    trained: whether it has weights; the others search, or keep nothing.
    """

    title: str
    network: type[Detail]
    begins_with: str = ""
    trained: bool = True


METHODS = {
    "codes": DetailMethod("Style Transformer", Detail, trained=False),
    "search": DetailMethod("W+ search from there", Detail, trained=False),
    "tuning": DetailMethod("PTI from there", Offsets, trained=False),
    "features": DetailMethod("features (FeatureStyle)", FeatureEncoder),
    "hfgi": DetailMethod("HFGI", HFGI),
    "hyperstyle": DetailMethod("HyperStyle", HyperStyle),
    "feature_editor": DetailMethod("StyleFeatureEditor", FeatureEditor, begins_with="features"),
}
TRAINED = {name: method for name, method in METHODS.items() if method.trained}


def named(method: str) -> DetailMethod:
    """The method of a name. Raises `InputError` for an unknown one."""
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"unknown method {method!r} of keeping detail: {', '.join(METHODS)}")
    return METHODS[method]
