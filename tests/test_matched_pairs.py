"""Matched pairs on codes whose making is known: effects, kinds, what is left alone, and what cannot be learnt."""

import numpy as np
import pytest
import torch

from stx import matched_pairs
from stx.files.errors import EditError, InputError
from stx.matched_pairs import Matching

NUM_WS, W_DIM = 3, 8
RARE = 5  # codes with the last attribute


@pytest.fixture(scope="module")
def world():
    """Codes made of a hat (two kinds), a smile, and clothes that nobody labels; hats go along with some clothes."""
    rng = np.random.default_rng(0)
    n, size = 3000, NUM_WS * W_DIM
    parts = np.linalg.qr(rng.normal(size=(size, size)))[0] * 3
    hat, smile, kind = rng.random(n) < 0.4, rng.random(n) < 0.5, rng.integers(0, 2, n)
    clothes = np.where(rng.random(n) < 0.5, hat * 2, rng.integers(0, 4, n))
    rare = np.arange(n) < RARE
    codes = 0.05 * rng.normal(size=(n, size)) + hat[:, None] * parts[0] + smile[:, None] * parts[1]
    codes += (hat * kind)[:, None] * parts[2] + parts[3 : 3 + 4][clothes] + rare[:, None] * parts[8]
    ws = torch.from_numpy(codes).float().reshape(n, NUM_WS, W_DIM)
    return {"ws": ws, "labels": np.stack([hat, smile, rare], 1), "parts": parts, "kind": kind, "clothes": clothes}


@pytest.fixture(scope="module")
def net(world):
    names = ("Hat", "Smiling", "Rare")
    return matched_pairs.fit(world["ws"], world["labels"], names, components=16, kinds=2, matching=Matching(ridge=0.1))


def along(change, part) -> np.ndarray:
    """How much of a part of the making is in changes, 1 being the whole part."""
    return (change.flatten(1).numpy() @ part) / (part @ part)


def test_an_edit_is_the_effect_and_leaves_what_goes_along_with_it_alone(world, net):
    lacking = torch.from_numpy(~world["labels"][:, 0])
    change = net(world["ws"][lacking], [0] * int(lacking.sum()), [1.0] * int(lacking.sum()))
    assert along(change, world["parts"][0]).mean() == pytest.approx(1, abs=0.05)
    assert abs(along(change, world["parts"][1])).mean() < 0.05  # the smile
    for worn, part in enumerate(world["parts"][3:7]):  # clothes, which hats go along with
        own = world["clothes"][lacking.numpy()] == worn
        assert abs(along(change[torch.from_numpy(own)], part)).mean() < 0.1


def test_removing_takes_off_what_adding_puts_on(world, net):
    ws = world["ws"][~world["labels"][:, 0]][:50]
    there = ws + net(ws, [0] * 50, [1.0] * 50)
    back = there + net(there, [0] * 50, [0.0] * 50)
    assert (back - ws).norm(dim=(1, 2)).mean() < 0.25 * (there - ws).norm(dim=(1, 2)).mean()


def test_a_reference_gives_its_kind(world, net):
    hat, kind = world["labels"][:, 0], world["kind"]
    sources = world["ws"][~hat][:40]
    no, yes = torch.zeros(40, dtype=torch.bool), torch.ones(40, dtype=torch.bool)
    for wanted in (0, 1):
        references = world["ws"][hat & (kind == wanted)][:40]
        change = net.carry(sources, references, [0] * 40, (no, yes))
        assert along(change, world["parts"][0]).mean() == pytest.approx(1, abs=0.1)
        assert along(change, world["parts"][2]).mean() == pytest.approx(wanted, abs=0.3)
        others = world["ws"][hat & (kind != wanted)][:40]
        exchanged = net.carry(others, references, [0] * 40, (yes, yes))  # both wear one: the kind alone
        assert along(exchanged, world["parts"][2]).mean() == pytest.approx(2 * wanted - 1, abs=0.2)
        assert abs(along(exchanged, world["parts"][0])).mean() < 0.15
    assert not net.carry(sources, sources.flip(0), [0] * 40, (no, no)).any()


def test_too_few_pictures_and_other_shapes(world, net):
    with pytest.raises(EditError, match="too few training pictures with Rare"):
        net(world["ws"][:1], [2], [1.0])
    with pytest.raises(InputError, match="expected"):
        net(torch.zeros(1, NUM_WS + 1, W_DIM), [0], [1.0])
    with pytest.raises(InputError, match="do not fit"):
        matched_pairs.fit(world["ws"], world["labels"], ("Hat",))


def test_labels_that_cannot_stay():
    rng = np.random.default_rng(1)
    black = rng.random(2000) < 0.3
    blond = ~black & (rng.random(2000) < 0.4)
    glasses = rng.random(2000) < 0.4
    dark = glasses & (rng.random(2000) < 0.3)
    found = matched_pairs.tied(np.stack([black, blond, glasses, dark], 1))
    wanted = np.zeros((4, 4), bool)
    wanted[0, 1] = wanted[1, 0] = wanted[2, 3] = wanted[3, 2] = True
    assert (found == wanted).all()


def test_natural_is_the_covariance_of_codes(world, net):
    flat = world["ws"].flatten(1).double()
    covariance = torch.cov(flat.T, correction=0)
    covariance += matched_pairs.SHRINK * covariance.diag().mean() * torch.eye(len(covariance))
    whole = matched_pairs.fit(world["ws"], world["labels"], ("Hat", "Smiling", "Rare"), components=24, kinds=2)
    gradient = torch.randn(4, NUM_WS, W_DIM, generator=torch.Generator().manual_seed(0))
    expected = (gradient.flatten(1).double() @ covariance).float().view_as(gradient)
    torch.testing.assert_close(whole.natural(gradient), expected, rtol=1e-3, atol=1e-4)
