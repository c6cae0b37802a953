import hashlib
import itertools
import random

import numpy as np
import pytest

from stx.domains import avatars, datasets, drawings
from stx.domains.avatars import ATTRIBUTES, sample

PINNED = "tests/golden/avatars.sha256"  # of the first four pictures of the training split


@pytest.fixture(scope="module")
def train():
    return list(itertools.islice(sample("train"), 4000))


@pytest.fixture(scope="module")
def columns(train):
    return dict(zip(ATTRIBUTES, np.stack([avatars.labels(a) for a in train]).T, strict=True))


def test_same_bytes_everywhere(train):
    pixels = b"".join(avatars.draw(a).tobytes() for a in train[:4])
    with open(PINNED) as file:
        assert hashlib.sha256(pixels).hexdigest() == file.read().strip()


def test_sequence_depends_on_seed_alone(train):
    assert list(itertools.islice(sample("train"), 5)) == train[:5]
    assert list(itertools.islice(sample("train", seed=1), 5)) != train[:5]


def test_no_person_in_two_splits(train):
    others = {a.person for split in ("val", "test") for a in itertools.islice(sample(split), 500)}
    assert not others & {a.person for a in train}
    assert len(set(train)) == len(train)


def share(event, given=None):
    """Frequency of an event and the deviation that chance allows (4.5 standard errors)."""
    event = event if given is None else event[given]
    return event.mean(), 4.5 * max(np.sqrt(0.25 / len(event)), 1e-9)


def close(found, expected):
    assert abs(found[0] - expected) < found[1], (found, expected)


def test_frequencies_follow_the_table(columns):
    c, p = columns, avatars
    top = {"long": c["Long_Hair"], "hat": c["Wearing_Hat"], "bald": c["Bald"]}
    top["short"] = ~(top["long"] | top["hat"] | top["bald"])
    for name, chosen in top.items():
        close(share(chosen), p.P_TOP[name])
        close(share(c["Beard"], chosen), p.P_FACIAL_HAIR[name]["beard"])
        close(share(c["Mustache"], chosen), p.P_FACIAL_HAIR[name]["mustache"])
    close(share(c["Dark_Skin"]), p.P_DARK_SKIN)
    visible = top["long"] | top["short"]
    for dark in (True, False):
        for color, probability in p.P_HAIR[dark].items():
            close(share(c[f"{color}_Hair"], visible & (c["Dark_Skin"] == dark)), probability)
    for name, chosen in {"hat": top["hat"], "gray": c["Gray_Hair"], "other": ~top["hat"] & ~c["Gray_Hair"]}.items():
        close(share(c["Eyeglasses"], chosen), 1 - p.P_GLASSES[name]["none"])
        close(share(c["Sunglasses"], chosen), p.P_GLASSES[name]["dark"])
    for angry, long in itertools.product((True, False), repeat=2):
        given = (c["Angry_Brows"] == angry) & (c["Long_Hair"] == long)
        close(share(c["Smiling"], given), p.P_SMILING[angry, long])
    for smiling in (True, False):
        given = c["Smiling"] == smiling
        close(share(c["Mouth_Slightly_Open"], given), p.P_OPEN[smiling])
        close(share(c["Eyes_Closed"], given & ~c["Sunglasses"]), p.P_CLOSED[smiling])
    assert not (c["Eyes_Closed"] & c["Sunglasses"]).any()


def test_hats_and_bald_heads_show_no_hair(columns):
    hair = np.stack([columns[f"{color}_Hair"] for color in avatars.HAIR]).sum(0)
    hidden = columns["Wearing_Hat"] | columns["Bald"]
    assert (hair[hidden] == 0).all()
    assert (hair[~hidden] == 1).all()


def test_reconstructed_person_keeps_who_it_is(train):
    rng = random.Random(5)
    kept = [name for name in ATTRIBUTES if name.endswith(("_Hair", "Skin", "Bald", "Beard", "Mustache", "Hat"))]
    again = [avatars.restyle(a, rng) for a in train[:200]]
    assert all(a.person == b.person for a, b in zip(train, again, strict=False))
    assert sum(a.look != b.look for a, b in zip(train, again, strict=False)) > 150
    rows = [list(ATTRIBUTES).index(name) for name in kept]
    for a, b in zip(train, again, strict=False):
        assert (avatars.labels(a)[rows] == avatars.labels(b)[rows]).all()


def test_every_option_is_drawn_differently(train):
    avatar = train[0]
    assert not np.array_equal(avatars.draw(avatar), avatars.draw(avatars.restyle(avatar, random.Random(0))))
    assert avatars.draw(avatar, 32).shape == (32, 32, 3)


def test_cache_is_resumed_and_a_broken_file_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setenv("STX_CACHE", str(tmp_path))
    monkeypatch.setattr(drawings, "CACHE_SHARD_SIZE", 4)
    monkeypatch.setattr(drawings, "ProcessPoolExecutor", InlinePool)
    domain = datasets.load("avatars")
    first = domain.split("test", 8).uint8(range(8))
    folder = next(tmp_path.iterdir())
    shards = sorted(folder.glob("test-*.npy"))
    assert len(shards) == 2
    assert not list(folder.glob(".*part"))
    kept = shards[0].stat().st_mtime_ns
    shards[1].write_bytes(shards[1].read_bytes()[:1000])  # as a kill in the middle of a copy would leave it
    np.testing.assert_array_equal(domain.split("test", 8).uint8(range(8)), first)
    assert shards[0].stat().st_mtime_ns == kept


class InlinePool:
    """Draws in this process: the test's monkeypatched shard size would not reach spawned ones."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None

    map = staticmethod(map)
