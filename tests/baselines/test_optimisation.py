"""Inversion by optimisation: it finds what can be found, keeps noise white, stays in the domain, tunes only a copy."""

import copy

import pytest
import torch

from stx.baselines import optimisation
from stx.inversion import InversionLoss
from stx.perception.lpips import load_lpips
from stx.stylegan2.networks import Generator


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    made = Generator(size=32, z_dim=8, n_mlp=2, channel_base=256, channel_max=16)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def loss():
    return InversionLoss(load_lpips("alex"), None)


def of(generator, seed=1, count=2):
    z = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    ws = generator.broadcast(generator.mapping(z)).contiguous()
    return ws, generator(ws)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_projection_comes_nearer_and_repeats(generator, loss, space):
    _, image = of(generator)
    found = optimisation.project(generator, loss, image, space=space, steps=60, snapshots=(30,))
    assert found.losses[-1] < 0.3 * found.losses[0]
    same_token = torch.equal(found.ws[:, 0], found.ws[:, -1])
    assert same_token == (space == "w")
    torch.testing.assert_close(found.image, generator(found.ws).clamp(-1, 1))
    assert list(found.snapshots) == [30]
    again = optimisation.project(generator, loss, image, space=space, steps=60)
    assert torch.equal(again.ws, found.ws)
    with pytest.raises(ValueError, match="unknown space 'z': expected one of w, w"):
        optimisation.project(generator, loss, image, space="z")


def test_pictures_do_not_disturb_each_other(generator, loss):
    _, image = of(generator)
    options = {"steps": 10, "code_noise": 0.0}
    both = optimisation.project(generator, loss, image, **options)
    one = optimisation.project(generator, loss, image[1:], **options)
    torch.testing.assert_close(both.ws[1:], one.ws, atol=1e-3, rtol=1e-3)


def test_noise_maps_stay_white(generator, loss):
    _, image = of(generator)
    found = optimisation.project(generator, loss, image, steps=20, maps=True)
    assert [m.shape[2] for m in found.noise] == generator.noise_sizes()
    for m in found.noise:
        torch.testing.assert_close(m.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
        assert optimisation.noise_correlation(m) < 0.05
    stripes = torch.ones(1, 1, 16, 16)
    stripes[:, :, ::2] = -1
    white = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert optimisation.noise_correlation(stripes) > 1 > 20 * optimisation.noise_correlation(white)
    assert optimisation.noise_correlation(stripes[:, :, :4, :4]) == 2  # maps of 4 x 4 too, as in the projector
    blocks = stripes[:, :, :8, :8].repeat_interleave(2, 2)  # 16 x 8: alternate only in the version of half the size
    assert optimisation.noise_correlation(blocks[..., :16].repeat(1, 1, 1, 2)) == 1 + 2


def test_rate_rises_and_falls():
    rates = [optimisation._ramp(t / 100) for t in range(101)]
    assert rates[0] == 0
    assert rates[5] == rates[75] == 1
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert sorted(rates[75:], reverse=True) == rates[75:]


def test_in_domain_codes_stay_where_the_encoder_reads_them(generator, loss):
    ws, image = of(generator)

    class Reader(torch.nn.Module):
        """An encoder that always reads the same codes."""

        def forward(self, image):
            return ws

    near = {"start": ws + 0.5, "steps": 30, "code_noise": 0.0, "encoder": Reader()}
    free = optimisation.project(generator, loss, image.flip(3), domain_weight=0.0, **near)
    bound = optimisation.project(generator, loss, image.flip(3), domain_weight=50.0, **near)
    assert (bound.ws - ws).norm() < 0.5 * (free.ws - ws).norm()


def test_tuning_changes_a_copy_and_draws_the_picture(generator, loss):
    ws, image = of(generator)
    before = copy.deepcopy(generator.state_dict())
    target = image.flip(3).clamp(-1, 1)
    found = optimisation.tune(generator, loss, target, ws, steps=40, lr=0.01, enough=0.0)
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())
    assert (found.image - target).square().mean() < 0.5 * (image.clamp(-1, 1) - target).square().mean()
    assert len(found.generators) == 2
    assert found.losses[-1] < 0.5 * found.losses[0]
    assert torch.equal(found.ws, ws)
    stopped = optimisation.tune(generator, loss, image, ws, steps=30)
    assert stopped.losses == []
