"""Avatars with one drawing option changed: the truth of an edit, which no set of photographs has."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations, islice

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
    nearest = counterparts(avatar, attribute)
    return nearest[random.Random(f"{seed}/{avatar}").randrange(len(nearest))] if nearest else None


def counterparts(avatar: Avatar, attribute: str) -> list[Avatar]:
    """All avatars of which `counterpart` gives one: a picture tells not which of several hair colours is meant."""
    k, was = list(avatars.ATTRIBUTES).index(attribute), avatars.labels(avatar)
    found: dict[int, list[Avatar]] = {}
    for other in _one_option_changed(avatar):
        now = avatars.labels(other)
        if now[k] != was[k]:
            found.setdefault(int((now != was).sum()), []).append(other)
    return found[min(found)] if found else []


def transplant(source: Avatar, reference: Avatar, attribute: str) -> Avatar | None:
    """The source with the reference's drawing options for an attribute on which they differ: the truth of carrying.

    One option, or where one is not enough two; of those that do it the ones that change the fewest other labels.
    None where none does it.
    """
    k, was = list(avatars.ATTRIBUTES).index(attribute), avatars.labels(source)
    wanted = avatars.labels(reference)[k]
    for count in (1, 2):
        found = []
        for names in combinations(_TABLES, count):
            avatar = source
            for name in names:
                avatar = _with(avatar, name, getattr(_part(reference, name), name))
            if "top" in names:
                avatar = replace(avatar, person=replace(avatar.person, hat_color=reference.person.hat_color))
            avatar = _consistent(avatar)
            now = avatars.labels(avatar)
            if now[k] == wanted != was[k]:
                found.append((int((now != was).sum()), avatar))
        if found:
            return min(found, key=lambda pair: pair[0])[1]
    return None


def other_kinds(avatar: Avatar, attribute: str) -> list[Avatar]:
    """The avatar with each kind of an attribute that it has (which glasses, which hat), its own first."""
    k, labels = list(avatars.ATTRIBUTES).index(attribute), avatars.labels(avatar)
    others = [other for other in _one_option_changed(avatar) if (avatars.labels(other) == labels).all()]
    without = counterparts(avatar, attribute)
    changed = [name for name in _TABLES if any(_value(avatar, name) != _value(other, name) for other in without)]
    kinds = [o for o in others if any(_value(o, name) != _value(avatar, name) for name in changed)]
    return [avatar, *kinds] if labels[k] else [avatar]


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


def _part(avatar: Avatar, name: str) -> avatars.Person | avatars.Look:
    return avatar.person if hasattr(avatar.person, name) else avatar.look


def _value(avatar: Avatar, name: str) -> str:
    return getattr(_part(avatar, name), name)


def _with(avatar: Avatar, name: str, value: str) -> Avatar:
    part_name = "person" if hasattr(avatar.person, name) else "look"
    return replace(avatar, **{part_name: replace(getattr(avatar, part_name), **{name: value})})


def _one_option_changed(avatar: Avatar) -> Iterator[Avatar]:
    for name, table in _TABLES.items():
        for value in chain.from_iterable(table.values()):
            if value != _value(avatar, name):
                other = _consistent(_with(avatar, name, value))
                if _value(other, name) == value:
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
