"""Avatars with one drawing option changed: the truth of an edit, which no set of photographs has."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from stx.domains import avatars
from stx.domains.avatars import Avatar
from stx.domains.images import to_tensor
from stx.files.errors import InputError


def counterpart(avatar: Avatar, attribute: str, *, seed: int = 0) -> Avatar | None:
    """The same avatar with one drawing option changed so that `attribute` is the other way, None where none does it.

    Of the options that do it those are taken that change the fewest other labels (a hat must hide hair), one of them by
    `seed`. Raises `ValueError` for an attribute avatars do not have.
    """
    if attribute not in avatars.ATTRIBUTES:
        raise InputError(f"avatars have no attribute {attribute!r}: {', '.join(avatars.ATTRIBUTES)}")
    k, was = list(avatars.ATTRIBUTES).index(attribute), avatars.labels(avatar)
    found: dict[int, list[Avatar]] = {}
    for other in _one_option_changed(avatar):
        now = avatars.labels(other)
        if now[k] != was[k]:
            found.setdefault(int((now != was).sum()), []).append(other)
    if not found:
        return None
    nearest = found[min(found)]
    return nearest[random.Random(f"{seed}/{avatar}").randrange(len(nearest))]


def pictures_with(
    attribute: str, labels: Bool[np.ndarray, "n"], people: Sequence[Avatar] | None, count: int, *, seed: int = 0
) -> tuple[list[int], Float[Tensor, "m 3 h w"] | None]:
    """Positions of the first `count` pictures without an attribute, and the true pictures with it.

    people: the avatars behind the pictures, of which those without a counterpart are passed over; None where nobody
    knows, and then no truth is told.
    """
    lacking = [int(i) for i in np.flatnonzero(~labels)]
    if people is None:
        return lacking[:count], None
    drawn = ((i, counterpart(people[i], attribute, seed=seed)) for i in lacking)
    found = list(islice(((i, other) for i, other in drawn if other is not None), count))
    pictures = np.stack([avatars.draw(other) for _, other in found])
    return [i for i, _ in found], to_tensor(pictures)


def _one_option_changed(avatar: Avatar) -> Iterator[Avatar]:
    for name, table in _TABLES.items():
        part_name = "person" if hasattr(avatar.person, name) else "look"
        part = getattr(avatar, part_name)
        for value in chain.from_iterable(table.values()):
            if value != getattr(part, name):
                other = _consistent(replace(avatar, **{part_name: replace(part, **{name: value})}))
                if getattr(getattr(other, part_name), name) == value:
                    yield other


def _consistent(avatar: Avatar) -> Avatar:
    """Only hats have a hat's colour, and eyes behind dark glasses are open, as in every drawing of the domain."""
    person, look = avatar.person, avatar.look
    if (person.top in avatars.TOPS["hat"]) != (person.hat_color != "none"):
        person = replace(person, hat_color="none" if person.hat_color != "none" else avatars.HAT_COLORS[0])
    if look.glasses in avatars.GLASSES["dark"]:
        look = replace(look, eyes="default")
    return Avatar(person, look)


_TABLES = {
    "top": avatars.TOPS,
    "hair": {"any": tuple(avatars.HAIR)},
    "skin": {"any": tuple(avatars.SKIN)},
    "facial_hair": avatars.FACIAL_HAIR,
    "eyes": avatars.EYES,
    "brows": avatars.BROWS,
    "mouth": avatars.MOUTHS,
    "glasses": avatars.GLASSES,
}
