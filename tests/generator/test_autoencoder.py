"""The generator as a decoder: what its flow and its mapping network learn, resume, and pictures of other sizes."""

import signal

import numpy as np
import pytest
import torch

from stx import recipes
from stx.domains import datasets
from stx.domains.splits import Dataset
from stx.files.errors import TrainingError
from stx.generator import autoencoder
from stx.generator.autoencoder import AutoencoderTask, CodeEncoder, Flow, FlowTask, MappingTask
from stx.stylegan2.networks import Generator
from stx.training.loop import train

SIDE = 32


@pytest.fixture(scope="module")
def world() -> datasets.Domain:
    """Pictures of one colour each, between two colours."""
    rng = np.random.RandomState(0)
    colors = np.array([[230, 30, 30], [30, 30, 230]]) * rng.rand(48, 1, 1, 1, 1)
    pictures = np.concatenate([np.broadcast_to(c, (1, SIDE, SIDE, 3)) for pair in colors for c in pair[0, 0]])
    pictures = pictures.astype(np.uint8)

    def split(name, count=None, **_):
        return Dataset(pictures.__getitem__, [str(i) for i in range(len(pictures) if count is None else count)])

    return datasets.Domain("toy", SIDE, (SIDE, SIDE), (), split)


def generator(**changes) -> Generator:
    torch.manual_seed(0)
    return Generator(**{"size": SIDE, "z_dim": 8, "n_mlp": 2, "channel_base": 256, "channel_max": 16} | changes)


def recipe(**changes) -> autoencoder.AutoencoderRecipe:
    small = {"steps": 8, "batch": 4, "flow_steps": 6, "n_mlp": 3, "pairs": 1024, "mapping_steps": 5}
    return autoencoder.AutoencoderRecipe(**small | changes)


def two_clusters(count: int) -> torch.Tensor:
    """Codes of 4 numbers near one of two points, three quarters near the first."""
    far = torch.tensor([[6.0, 0, 0, 0], [0, 6.0, 0, 0]])
    return far[(torch.arange(count) % 4 == 0).long()] + 0.2 * torch.randn(count, 4)


def test_scaled_w_draw_the_same_pictures():
    like, g = generator(), generator(n_mlp=3)
    with torch.no_grad():
        g.style[-1].weight.mul_(11.0)
    g.latent_avg.copy_(g.mean_w())
    z = torch.randn(256, 8)
    before, average = g(g.broadcast(g.mapping(z[:4]))), g.w_avg()
    drawn = g(g.broadcast(average[None]))
    autoencoder.scale_w(g, like)
    assert torch.equal(g(g.broadcast(g.mapping(z[:4]))), before)
    assert torch.equal(g(g.broadcast(g.w_avg()[None])), drawn) and not torch.equal(g.w_avg(), average)
    ratio = (g.mapping(z).std(0).mean() / like.mapping(z).std(0).mean()).item()
    assert 0.65 < ratio < 1.5


def test_flow_and_mapping_draw_the_codes_distribution(tmp_path):
    torch.manual_seed(0)
    codes = two_clusters(2048)
    task = FlowTask(flow=Flow(codes, hidden=64, blocks=2), codes=codes, steps=600, batch=256, lr=5e-3)
    train(task, folder=tmp_path / "flow", steps=600, config={})
    g = generator(z_dim=4, n_mlp=8)
    mapping = MappingTask(generator=g, flow=task.average, count=8192, steps=800, batch=256)
    log = train(mapping, folder=tmp_path / "mapping", steps=800, config={})
    assert log["loss"].iloc[-1] < 0.2  # of the variance of the codes; giving the mean is 1
    z = torch.randn(2048, 4)
    for drawn in (task.average.codes(z, 20), g.mapping(z).detach()):
        first = drawn[:, 0] > drawn[:, 1]
        assert abs(first.float().mean() - 0.75) < 0.06
        near = torch.cdist(drawn, torch.tensor([[6.0, 0, 0, 0], [0, 6.0, 0, 0]])).amin(1)
        assert (near < 1.5).float().mean() > 0.85  # a straight line between the two would have most of it outside


def test_training_pictures_can_be_drawn(tmp_path, world):
    before, data = generator(), world.split("train")
    made, codes, log = autoencoder.train_autoencoder(
        world, before, recipe(steps=150, batch=16, mapping_steps=2), tmp_path, validation=8, evaluate_every=50
    )
    losses = log["val_l2"].dropna()
    assert losses.iloc[-1] < 0.3 * losses.iloc[0]
    assert made.config == before.config | {"n_mlp": 3}
    assert len(made.style) == 4
    torch.testing.assert_close(made.latent_avg, made.mean_w())
    assert not any(torch.equal(a, b) for a, b in zip(made.convs.parameters(), before.convs.parameters(), strict=True))
    assert codes.shape == (len(data), 8) == (96, 8)


def test_parts_resume_to_the_same_bits(tmp_path, world, monkeypatch):
    whole, codes, log = autoencoder.train_autoencoder(world, generator(), recipe(), tmp_path / "whole", validation=4)
    for task, stop in ((AutoencoderTask, 3), (FlowTask, 2), (MappingTask, 2)):
        plain = task.step

        def step(self, number, plain=plain, stop=stop):
            if number == stop:
                signal.raise_signal(signal.SIGTERM)
            return plain(self, number)

        with monkeypatch.context() as patch:
            patch.setattr(task, "step", step)
            with pytest.raises(TrainingError, match="stopped before its end; run it again"):
                autoencoder.train_autoencoder(world, generator(), recipe(), tmp_path / "parts", validation=4)
    parts, same, again = autoencoder.train_autoencoder(world, generator(), recipe(), tmp_path / "parts", validation=4)
    assert torch.equal(codes, same)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    assert again["val_loss"].iloc[-1] == log["val_loss"].iloc[-1]


@pytest.mark.release
def test_a_discriminator_changes_no_meaning_of_codes(tmp_path, world):
    made, codes, _ = autoencoder.train_autoencoder(
        world, generator(), recipe(steps=150, batch=16, mapping_steps=2), tmp_path, validation=8
    )
    pictures = world.split("train").batch(range(len(codes)))
    far = {}
    for weight in (0.0, 100.0):
        gan = recipes.GeneratorRecipe(
            steps=40, batch=8, channel_base=256, channel_max=16, z_dim=8, projected=False, drawn=weight, r1_gamma=0
        )
        given = {"start": (made.requires_grad_(True), None), "codes": codes}
        after, _, log = recipes.train_generator(world, gan, tmp_path / f"gan_{weight}", **given)
        assert ("drawn" in log) == bool(weight)
        assert after.config == made.config
        far[weight] = (after(after.broadcast(codes)) - pictures).square().mean().item()
    assert far[100.0] < 0.5 * far[0.0]
    with pytest.raises(ValueError, match="train it first"):
        recipes.train_generator(world, gan, tmp_path / "none", start=(made, None))


@pytest.mark.parametrize("size", [8, 16, 64, 512])
def test_code_encoder_takes_every_resolution(size):
    net = CodeEncoder(size=size, w_dim=16, w_avg=torch.ones(16)).eval()
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 16)


def test_pictures_too_small_for_lpips_are_refused(tmp_path, world):
    small = datasets.Domain("toy", 16, (16, 16), (), world.split)
    with pytest.raises(ValueError, match="pictures of 16 pixels: LPIPS"):
        autoencoder.train_autoencoder(small, generator(size=16), recipe(), tmp_path)
