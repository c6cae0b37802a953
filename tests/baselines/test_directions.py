"""InterFaceGAN, SeFa and GANSpace against stored numbers and their definitions."""

import numpy as np
import pytest
import torch

from stx.baselines.directions import GANSpace, InterFaceGAN, SeFa, conditioned
from stx.stylegan2.networks import Generator
from tests.golden import case, fill

GENFORCE = ["conv1", *(f"convs.{i}" for i in range(8)), "to_rgbs.3"]


@pytest.mark.parametrize("k", range(4))
def test_interfacegan(k):
    golden = case("interfacegan_toy")
    found = InterFaceGAN(share=0.2, seed=k).fit(golden["codes"], golden[f"scores{k}"][:, 0])
    assert float(found.direction_ @ golden[f"boundary{k}"][0]) > 0.9999
    assert np.linalg.norm(found.direction_) == pytest.approx(1)
    moved = found.edit(golden["codes"], 2.0) - golden["codes"]
    np.testing.assert_allclose(moved, np.broadcast_to(2 * found.direction_, moved.shape), atol=1e-5)
    by_number = InterFaceGAN(share=60, seed=k).fit(golden["codes"], golden[f"scores{k}"][:, 0])
    np.testing.assert_array_equal(by_number.direction_, found.direction_)


def test_interfacegan_lines():
    """Seven codes for a code of W, at -3 to 3 from the plane; five for three tokens of W+, -2 to 2 from themselves."""
    golden, plane = case("interfacegan_toy"), InterFaceGAN()
    plane.direction_ = golden["boundary0"][0]
    code, tokens = golden["codes"][:1], golden["codes"][:3]
    line = np.concatenate([plane.place(code, distance) for distance in np.linspace(-3, 3, 7)])
    np.testing.assert_allclose(line, golden["line2d"], atol=2e-6)
    line = np.stack([plane.edit(tokens, strength) for strength in np.linspace(-2, 2, 5)])
    np.testing.assert_allclose(line, golden["line3d"], atol=2e-6)
    plane.direction_ = np.full((2, 2), 0.5)
    np.testing.assert_allclose((plane.place(np.ones((3, 2, 2)), 5.0) * plane.direction_).sum((1, 2)), 5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_conditioned_directions(k):
    golden = case("interfacegan_toy")
    others = [golden[f"boundary{i}"] for i in range(1, k + 1)]
    found = conditioned(golden["boundary0"], others)
    np.testing.assert_allclose(found, golden[f"project{k}"], atol=2e-6)
    assert max(abs(float(found.ravel() @ other.ravel())) for other in others) < 1e-6
    with pytest.raises(ValueError, match="in the span"):
        conditioned(others[0], others)


def test_interfacegan_of_w_plus_codes():
    random = np.random.RandomState(0)
    codes, true = random.randn(400, 3, 4), random.randn(3, 4)
    found = InterFaceGAN(share=0.3).fit(codes, (codes * true).sum((1, 2)))
    assert found.direction_.shape == (3, 4)
    assert (found.direction_ * true).sum() / np.linalg.norm(true) > 0.97
    with pytest.raises(ValueError, match="too few"):
        InterFaceGAN(share=0.001).fit(codes, codes[:, 0, 0])


@pytest.fixture(scope="module")
def generator():
    net = Generator(size=64)
    return fill.fill_module_(net).eval()


@pytest.mark.parametrize("tag", ["e4e_all", "e4e_l2345", "genforce_all", "genforce_l0-1", "genforce_l4-6"])
def test_sefa(generator, tag):
    golden = case("sefa_64")
    names = [GENFORCE[i] for i in golden[f"{tag}/layers"]]
    if tag == "e4e_l2345":  # e4e counts without conv1
        names = [f"convs.{i}" for i in golden[f"{tag}/layers"]]
    found = SeFa(layers=None if tag == "e4e_all" else names).fit(generator)
    np.testing.assert_allclose(found.values_[:8], golden[f"{tag}/values"], rtol=1e-5)
    cosines = (found.directions_[:8] * golden[f"{tag}/vectors"]).sum(1)
    assert cosines.min() > 1 - 1e-5


def test_sefa_without_normalisation_is_rosinalitys(generator):
    golden = case("sefa_64")
    names = ["conv1", "to_rgb1", *(f"convs.{i}" for i in range(8))]
    found = SeFa(layers=names, normalise=False).fit(generator)
    np.testing.assert_allclose(np.sqrt(found.values_[:8]), golden["rosinality/singular"], rtol=1e-5)
    cosines = np.abs((found.directions_[:8] * golden["rosinality/vectors"]).sum(1))
    assert cosines.min() > 1 - 1e-5
    with pytest.raises(ValueError, match=r"'convs.9'; this generator has: conv1, to_rgb1"):
        SeFa(layers=["convs.9"]).fit(generator)


def test_sefa_default_and_edit(generator):
    found = SeFa().fit(generator)
    np.testing.assert_allclose(found.values_[:8], case("sefa_64")["e4e_all/values"], rtol=1e-5)
    ws = torch.zeros(2, 10, 512)
    moved = found.edit(ws, 3.0, 1)
    assert moved.norm(dim=2).flatten().tolist() == pytest.approx([3] * 20, rel=1e-5)


def test_ganspace():
    random = np.random.RandomState(0)
    basis = np.linalg.qr(random.randn(6, 6))[0]
    w = 2 + (random.randn(4000, 6) * [5, 3, 1, 0.1, 0.1, 0.1]) @ basis
    found = GANSpace(components=3).fit(w)
    assert np.abs((found.directions_ * basis[:3]).sum(1)).min() > 0.99
    assert found.std_ == pytest.approx([5, 3, 1], rel=0.05)
    assert found.mean_ == pytest.approx(w.mean(0))
    np.testing.assert_allclose(found.std_, found.lat_stdev(w), rtol=1e-6)  # of the samples: n and not n - 1
    estimated = GANSpace(components=3, incremental=True).fit(w[:20])
    np.testing.assert_allclose(estimated.std_, estimated.lat_stdev(w[:20]) * np.sqrt(20 / 19), rtol=1e-6)
    ws = torch.zeros(1, 4, 6)
    moved = found.edit(ws, 2.0, 0, tokens=slice(1, 3))
    assert moved.norm(dim=2)[0].tolist() == pytest.approx([0, 2 * found.std_[0], 2 * found.std_[0], 0], rel=1e-5)
    with pytest.raises(ValueError, match="do not give 80 components"):
        GANSpace().fit(w)
