"""What a user gives to `stx.Pipeline`: numbers, names and places, checked before anything is computed."""

import math
import operator
from collections.abc import Callable

import numpy as np

from stx.files.errors import EditError


def number(value, name: str, kind: Callable = float) -> float | int:
    """`value` as a finite number, by `kind` (`float`, or `operator.index` for a whole one); else `EditError`."""
    wanted = "number" if kind is float else "whole number"
    try:
        found = kind(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise EditError(f"{name} {value!r}: expected a {wanted}") from None
    if not math.isfinite(found):
        raise EditError(f"{name} {value!r}: expected a {wanted}")
    return found


def count(value, name: str) -> int:
    """`value` as a whole number of at least 1, of 31 bits; else `EditError`."""
    found = number(value, name, operator.index)
    if not 1 <= found < 2**31:
        raise EditError(f"{name} {value}: expected at least 1" if found < 1 else f"{name}: {found:.0e} is too many")
    return found


def names(given, name: str) -> list[str]:
    """One name or several as a list; `EditError` for what is neither."""
    if isinstance(given, str):
        return [given]
    try:
        return [str(one) for one in ([] if given is None else given)]
    except TypeError:
        raise EditError(f"{name} {given!r}: expected a name or several") from None


def places(given, most: int) -> tuple[int, int]:
    """The first and the last token, whole numbers of 0 to `most` in their order; else `EditError`."""
    try:
        found = np.ravel(given)
    except ValueError:  # lists of different lengths
        found = np.empty(0)
    if found.shape != (2,) or found.dtype.kind != "i" or not 0 <= found[0] <= found[1] <= most:
        raise EditError(f"tokens {given}: expected two of 0 to {most}")
    return int(found[0]), int(found[1])
