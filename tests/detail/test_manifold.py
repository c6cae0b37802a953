"""Pictures from elsewhere: scores are calibrated, far codes and bad inversions are told, in words."""

import pytest
import torch

from stx.detail.manifold import WARN, fit
from stx.files.errors import InputError


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    spread = torch.linspace(0.1, 3, 24)
    codes = lambda n: (torch.randn(n, 24) * spread + 1).view(n, 4, 6)  # noqa: E731
    distortion = lambda n: (0.3 * torch.randn(n)).exp() * 0.01  # noqa: E731
    return fit(codes(4000), codes(1000), distortion(1000), components=8), codes, distortion


def test_distance_is_one_in_the_domain(fitted):
    net, codes, _ = fitted
    assert abs(net.distance(codes(2000)).square().mean().item() - 1) < 0.1
    with pytest.raises(InputError, match="expected 24 numbers"):
        net.distance(torch.zeros(1, 2, 6))


def test_likely_is_a_share_of_known_pictures(fitted):
    """New pictures of the domain are as strange as p says in a share p of cases."""
    net, codes, distortion = fitted
    likely = net(codes(4000), distortion(4000)).likely
    for p in (0.1, 0.3, 0.7):
        assert abs((likely <= p).float().mean().item() - p) < 0.06
    assert likely.min() >= 1 / 1001


def test_either_part_is_enough(fitted):
    net, codes, distortion = fitted
    ordinary = codes(3), distortion(3)
    far = net(ordinary[0] + 60, ordinary[1])
    bad = net(ordinary[0], ordinary[1] * 50)
    assert (far.likely <= WARN).all() and (bad.likely <= WARN).all()
    assert "code is unlike" in far.warnings("abc")[0]
    told = bad.warnings(["a.png", "b.png", "c.png"])
    assert len(told) == 3 and told[1].startswith(
        "b.png: not a picture of this kind (its inversion resembles it little: stranger"
    )


def test_ordinary_pictures_are_not_warned_of(fitted):
    net, codes, distortion = fitted
    found = net(codes(1000), distortion(1000))
    assert found.strange.sum() <= 10
    assert len(found.warnings([str(i) for i in range(1000)])) == found.strange.sum()


def test_too_few_pictures_are_refused():
    with pytest.raises(InputError, match="held-out codes"):
        fit(torch.zeros(1, 2, 3), torch.zeros(5, 2, 3), torch.zeros(5))
