"""What codes lose is kept: drawn, edited, sliced, saved and loaded by one interface, whatever the method keeps."""

import pytest
import torch

from stx.detail.features import disturbed
from stx.detail.hfgi import moved
from stx.detail.kept import Detail, Inversion, joined, load_inversion
from stx.detail.offsets import Offsets
from stx.detail.refinement import refined
from stx.files.errors import FileError, InputError, WeightsError
from stx.inversion import InversionLoss
from stx.perception.lpips import load_lpips

NETWORKS = ["feature_encoder", "feature_editor", "hfgi", "hyperstyle"]


@pytest.fixture
def given(tiny):
    torch.manual_seed(0)
    generator = tiny["generator"].eval().requires_grad_(False)
    return generator, torch.rand(3, 3, 16, 16) * 2 - 1, torch.randn(3, generator.num_ws, generator.w_dim)


def stirred(net):
    """A copy with other weights, so that nothing is zero; `tiny` is left as it was."""
    import copy

    torch.manual_seed(1)
    own = copy.deepcopy(net).eval()
    with torch.no_grad():
        for weight in own.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return own


def kept_by(net, given, name="features"):
    generator, image, ws = given
    with torch.no_grad():
        return Inversion(ws, net.keep(generator, image, ws), name, net)


def restored(net, given):
    return lambda tensors, method, networks: Inversion.of(tensors, method, net, networks, given[0])


@pytest.mark.parametrize("name", ["feature_encoder", "feature_editor", "hfgi"])
def test_before_training_nothing_is_added(name, tiny, given):
    found = kept_by(tiny[name].eval(), given)
    with torch.no_grad():
        torch.testing.assert_close(found.draw(given[0]), given[0](given[2]))


@pytest.mark.parametrize("name", NETWORKS)
def test_pictures_do_not_mix(name, tiny, given):
    """Each picture of a batch is drawn as alone, edited or not, and the picture of the codes is another one."""
    generator, image, ws = given
    net, edited = stirred(tiny[name]), ws + 0.3
    found = kept_by(net, given).edit(edited)
    with torch.no_grad():
        drawn = found.draw(generator)
        alone = kept_by(net, (generator, image[1:2], ws[1:2])).draw(generator, edited[1:2])
        assert (found.draw(generator, ws) - generator(ws)).abs().max() > 1e-3
    torch.testing.assert_close(drawn[1:2], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[[1, 1]].draw(generator)[1:], alone, rtol=1e-4, atol=1e-4)
    parts = joined(found.split(2))
    assert len(parts) == 3
    torch.testing.assert_close(parts.draw(generator), drawn, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_is_loaded(name, tiny, given, tmp_path):
    net = stirred(tiny[name])
    found = kept_by(net, given, "hfgi").edit(given[2] + 0.1)
    found.save(tmp_path / "kept.safetensors")
    found.save(tmp_path / "kept.safetensors")  # its own file may be replaced
    again = load_inversion(tmp_path / "kept.safetensors", restored(net, given))
    assert again.method == "hfgi"
    assert torch.equal(again.edited, found.edited)
    assert all(torch.equal(again.kept[name], value) for name, value in found.kept.items())
    with torch.no_grad():  # another memory format rounds otherwise
        torch.testing.assert_close(again.draw(given[0]), found.draw(given[0]), rtol=1e-4, atol=1e-4)


def test_no_other_file_is_loaded_or_replaced(given, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"not mine")
    with pytest.raises(WeightsError, match="no inversion that stx saved"):
        load_inversion(other, restored(Detail(side=16), given))
    with pytest.raises(FileError, match="was not made by stx"):
        kept_by(Detail(side=16), given).save(other)


@pytest.mark.parametrize("name", [*NETWORKS, "tuned"])
def test_channels_are_edited_with_detail(name, tiny, given, tmp_path):
    """An edit of W+ told as StyleSpace vectors is the same picture; a channel moves what is kept as W+ does."""
    generator, _, ws = given
    if name == "tuned":  # of all weights, the affine layers' among them
        kept = {
            n: 0.1 * torch.randn(3, *p.shape) for n, p in generator.named_parameters() if not n.startswith("style.")
        }
        found = Inversion(ws, kept, "tuning", Offsets(side=16))
    else:
        found = kept_by(stirred(tiny[name]), given, "hfgi")
    edited = ws + 0.3 * torch.randn(1, generator.num_ws, generator.w_dim)
    with torch.no_grad():
        if name != "tuned":  # there affine layers are others, so that a change of vectors is not that of codes
            same = found.draw(generator, generator.styles(edited))
            torch.testing.assert_close(same, found.draw(generator, edited), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found.draw(generator, generator.styles(ws)), found.draw(generator), rtol=1e-4, atol=1e-4
        )
        styles = generator.styles(ws)
        styles["conv1"] = styles["conv1"] + 0.5
        moved = found.edit(styles)
        drawn = moved.draw(generator)
        assert (drawn - found.draw(generator)).abs().max() > 1e-3
        torch.testing.assert_close(moved[[2, 1]].draw(generator)[1:], drawn[1:2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(joined(moved.split(2)).draw(generator), drawn, rtol=1e-4, atol=1e-4)
        moved.save(tmp_path / "kept.safetensors")
        again = load_inversion(tmp_path / "kept.safetensors", restored(found.how, given))
        torch.testing.assert_close(again.draw(generator), drawn, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="of 3 pictures"):
        found.edit({layer: style[:2] for layer, style in styles.items()})


def test_without_an_edit_the_editor_leaves_features_as_they_are(tiny, given):
    """Its outputs are multiplied by how much features changed: for the same codes it is the feature encoder."""
    editor = stirred(tiny["feature_editor"])
    found = kept_by(editor, given)
    with torch.no_grad():
        plain = given[0](given[2], changes={editor.layer: lambda x: x + found.kept["features"]})
        torch.testing.assert_close(found.draw(given[0]), plain)


def test_offsets_are_added_to_weights(given):
    """Adding b to the bias of the last colour layer adds b to every pixel of that picture alone."""
    generator, _, ws = given
    name = f"to_rgbs.{len(generator.to_rgbs) - 1}.bias"
    kept = {name: torch.tensor([0.0, 0.5, 0.0]).view(3, 1, 1, 1, 1).expand(3, 1, 3, 1, 1)}
    with torch.no_grad():
        change = Offsets(side=16).draw(generator, kept, ws, ws) - generator(ws)
    expected = torch.tensor([0.0, 0.5, 0.0]).view(3, 1, 1, 1).expand_as(change)
    torch.testing.assert_close(change, expected, atol=1e-5, rtol=0)


def test_hooks_change_features_where_they_are(given):
    generator, _, ws = given
    seen = {}
    generator(ws, changes={name: lambda x, name=name: seen.setdefault(name, x) for name in generator.feature_layers()})
    own = generator.features(ws)
    for name, (channels, side) in generator.feature_layers().items():
        assert seen[name].shape == (3, channels, side, side)
        torch.testing.assert_close(seen[name], own[name])
    with pytest.raises(InputError, match="no layer 'convs.99'"):
        generator(ws, changes={"convs.99": lambda x: x})


@pytest.mark.parametrize("method", ["search", "tuning"])
def test_refinement_comes_nearer_and_can_be_edited(method):
    from stx.stylegan2.networks import Generator

    torch.manual_seed(0)
    generator = Generator(size=32, z_dim=8, n_mlp=2, channel_base=256, channel_max=16).eval().requires_grad_(False)
    ws = torch.randn(2, generator.num_ws, 8)
    image, start = generator(ws), ws + 0.3 * torch.randn_like(ws)
    before = copy_of(generator)
    found = refined(generator, InversionLoss(load_lpips("alex"), None), image, start, method, steps=25)
    far, near = ((drawn - image).square().mean() for drawn in (generator(start), found.draw(generator)))
    assert near < 0.7 * far
    assert method == "search" or torch.equal(found.ws, start)
    assert all(torch.equal(a, b) for a, b in zip(before, generator.parameters(), strict=True))
    assert found.draw(generator, found.ws + 0.1).shape == image.shape


def copy_of(net):
    return [weight.clone() for weight in net.parameters()]


@pytest.mark.parametrize("name", NETWORKS)
def test_practice_reaches_every_trained_weight(name, tiny, given):
    generator, image, ws = given
    net = stirred(tiny[name]).train()
    net.requires_grad_(True)
    found = net.practice(generator, image, ws, lambda codes: codes + 0.5)
    loss = sum((drawn - target).square().mean() for target, drawn in found.pairs) + sum(found.own.values())
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.trained())
    assert sum(weight.grad.abs().sum() > 0 for weight in net.trained()) > 0.8 * len(net.trained())


def test_wide_pictures_lie_between_black_bars(given):
    wide = Detail(side=16).square(torch.ones(1, 3, 12, 16))
    assert wide.shape == (1, 3, 16, 16)
    assert (wide[:, :, :2] == -1).all() and (wide[:, :, 2:14] == 1).all() and (wide[:, :, 14:] == -1).all()
    with pytest.raises(InputError, match="for 16 pixels"):
        Detail(side=16).square(torch.ones(1, 3, 8, 8))


def test_edits_of_another_shape_are_refused(given):
    with pytest.raises(InputError, match="edited codes of shape"):
        kept_by(Detail(side=16), given).edit(given[2][:1])


def test_disturbed_codes_and_moved_pictures_stay_near():
    torch.manual_seed(0)
    ws, picture = torch.randn(64, 6, 12), torch.ones(64, 3, 16, 16)
    still = (disturbed(ws) == ws).flatten(2).all(2).float().mean().item()
    assert 0.4 < still < 0.6  # half of the tokens
    unmoved = (moved(picture) == 1).flatten(1).all(1).float().mean().item()
    assert 0.3 < unmoved < 0.8
    assert moved(picture).mean() > 0.9
