import copy

import numpy as np
import pytest
import torch
from PIL import Image

import stx
from stx import batch, cli, pipeline
from stx.baselines import optimisation
from stx.baselines.directions import Directions
from stx.batch import load_codes
from stx.checkpoints import weights
from stx.domains import avatars, images
from stx.files import places
from stx.files.errors import DomainError, EditError, ImageError, InputError, WeightsError
from stx.inversion import InversionLoss
from stx.stylegan2.networks import Generator
from tests.conftest import SIZE


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for i in range(12):
        picture = np.random.RandomState(i).randint(0, 256, (SIZE + i, SIZE, 3), dtype=np.uint8)
        images.save_image(picture, folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def pipe(home, photos):
    return stx.load(photos, folder=home, device="cpu")


def test_front_door(pipe):
    ws = pipe.invert(torch.rand(3, 3, SIZE, SIZE) * 2 - 1)
    assert ws.shape == (3, 6, 12)
    again = pipe.synthesize(ws)
    assert again.shape == (3, 3, SIZE, SIZE)
    assert again.abs().max() <= 1
    assert torch.equal(again, pipe.synthesize(ws))  # noise is constant unless asked for
    assert torch.equal(again, pipe.synthesize(ws.double().numpy()))
    assert pipe.invert(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)).dtype == torch.float32


def test_converted_directions_are_edits(pipe, tiny, home, capsys, photos, tmp_path):
    net = copy.deepcopy(tiny["directions"])
    net.directions.normal_(generator=torch.Generator().manual_seed(0))
    weights.save(net, home / "directions-age", dtype=torch.float32)
    ws = pipe.sample(2)
    assert pipe.directions("age").shape == (3, 6, 12)
    older, younger = pipe.edit(ws, add=["age:1"], strength=3.0), pipe.edit(ws, remove=["age:1"], strength=3.0)
    torch.testing.assert_close(older - ws, 3 * net.directions[1].expand(2, 6, 12))
    torch.testing.assert_close(older - ws, ws - younger)
    for name in ("age:3", "age:x", "age:-1"):
        with pytest.raises(EditError, match="age has the directions 0 to 2"):
            pipe.edit(ws, add=[name])
    with pytest.raises(EditError, match="nothing called '../age' to edit.*; there is: age:0 to age:2, ganspace:0"):
        pipe.edit(ws, add=["../age"])
    weights.save(Directions(count=1, tokens=1, w_dim=7), home / "directions-wide", dtype=torch.float32)
    with pytest.raises(InputError, match="directions of 1 x 7 do not fit codes of 6 x 12"):
        pipe.edit(ws, add=["wide"])


def test_components_need_neither_labels_nor_files(pipe):
    """SeFa's are of unit length, GANSpace's in standard deviations, a channel of StyleSpace alone moves."""
    ws = pipe.sample(2)
    there = {e.name: e for e in pipe.editable()}
    assert list(there) == ["ganspace", "sefa", "stylespace"] and there["sefa"].count == 12
    moved = pipe.edit(ws, add=["sefa:3"], strength=2.0) - ws
    torch.testing.assert_close(moved.norm(dim=2), torch.full((2, 6), 2.0))
    w = pipe.generator.mapping(torch.randn(4000, 12, generator=torch.Generator().manual_seed(5)))
    step = (pipe.edit(ws, add=["ganspace:1"]) - ws)[0, 0]
    assert (w @ (step / step.norm())).std().item() == pytest.approx(step.norm().item(), rel=0.05)
    assert torch.equal(pipe.edit(ws, add=["ganspace"], tokens=(2, 3))[:, [0, 1, 4, 5]], ws[:, [0, 1, 4, 5]])
    styles = pipe.edit(ws, add=["stylespace:2_5"], strength=3.0)
    spread = pipe.generator.styles(pipe.sample(2000))["convs.0"][:, 5].std()
    for name, style in pipe.generator.styles(ws).items():
        if name == "convs.0":
            style[:, 5] += 3 * spread
        torch.testing.assert_close(styles[name], style)
    assert pipe.synthesize(styles).shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"add": ["sefas"]}, r"nothing called 'sefas' to edit \(did you mean sefa\?\)"),
        ({"add": ["sefa:12"]}, "sefa has the directions 0 to 11"),
        ({"add": ["stylespace:9_0"]}, "with a layer of 0 to 7"),
        ({"add": ["stylespace:0_99"]}, "layer 0 has the channels 0 to 7"),
        ({"add": ["stylespace:conv1"]}, "expected LAYER_CHANNEL"),
        ({"add": ["sefa:0"], "until": 0.5}, "until and like are for attributes"),
        ({"add": ["sefa:0"], "tokens": (3, 6)}, "expected two of 0 to 5"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(pipe, options, told):
    with pytest.raises(EditError, match=told):
        pipe.edit(pipe.sample(1), **options)


def test_directions_of_another_generator_are_not_listed(pipe, home):
    weights.save(Directions(count=1, tokens=1, w_dim=7), home / "directions-wide", dtype=torch.float32)
    assert "wide" not in {e.name for e in pipe.editable()}


class SquaredError(torch.nn.Module):
    def forward(self, a, b):
        return (a - b).square().mean((1, 2, 3))


def test_a_tuned_generator_is_loaded_by_name(home, photos, pipe):
    """Pivotal tuning gives a generator that is saved, loaded, drawn with and edited as any other."""
    image = pipe.images(photos / "00.png")
    loss = InversionLoss(SquaredError(), None)
    ws = pipe.invert(image)
    found = optimisation.tune(pipe.generator, loss, image, ws, steps=3, lr=1e-3, enough=0.0)
    weights.save(found.generators[0], home / "tuned-anna", dtype=torch.float32)
    anna = stx.load(photos, folder=home, device="cpu", generator="tuned-anna")
    torch.testing.assert_close(anna.synthesize(ws), found.image)
    assert not torch.equal(anna.synthesize(ws), pipe.synthesize(ws))
    assert anna.synthesize(anna.edit(ws, add=["sefa:0"])).shape == (1, 3, SIZE, SIZE)
    with pytest.raises(WeightsError, match="a StyleTransformer is no generator"):
        stx.load(photos, folder=home, device="cpu", generator="style_transformer")


def test_a_generator_is_tuned_edited_and_exported_on_the_command_line(tmp_path, capsys):
    Image.fromarray(avatars.draw(next(iter(avatars.sample("test"))))).save(tmp_path / "anna.png")
    words = ["tune", str(tmp_path / "anna.png"), "--steps", "3", "--out", str(tmp_path / "nets"), "--device", "cpu"]
    assert cli.main(words) == 0
    tuned = str(tmp_path / "nets" / "tuned-anna")
    words = ["edit", str(tmp_path / "nets" / "codes-anna"), "--add", "Smiling", "--generator", tuned, "--device", "cpu"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert images.read_image(tmp_path / "out" / "anna.png").shape == (64, 64, 3)
    anna, plain = stx.load("avatars", device="cpu", generator=tuned), stx.load("avatars", device="cpu")
    image, ws = plain.images(tmp_path / "anna.png"), batch.load_codes(tmp_path / "nets" / "codes-anna")[1]
    nearer, before = ((pipe.reconstruct(ws) - image).square().mean() for pipe in (anna, plain))
    assert nearer < before
    words = ["export", str(tmp_path / "nets"), "--to", "rosinality", "--generator", "tuned-anna"]
    assert cli.main([*words, "--out", str(tmp_path / "anna.pt")]) == 0


def test_pictures_of_anybody_take_the_place_of_test_pictures(pipe, photos, tmp_path):
    whole, one = pipe.domain.test(5, photos), pipe.domain.test(5, photos / "03.png")
    assert list(whole.names) == [f"{i:02d}.png" for i in range(5)] and whole.labels is None
    assert one.batch([0]).shape == (1, 3, SIZE, SIZE) and len(one) == 1
    assert list(pipe.domain.test(2).names) == list(pipe.domain.split("test", 2).names)
    with pytest.raises(ImageError, match="no such folder"):
        pipe.domain.test(5, tmp_path / "nothing")


def test_installed_without_its_repository_stx_says_where_weights_come_from(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("STX_DATA", raising=False)
    monkeypatch.setattr(places, "ROOT", tmp_path)
    with pytest.raises(DomainError, match="STX_DATA"):
        stx.load("avatars", device="cpu")
    assert cli.main(["weights"]) == 2
    assert "pip install -e ." in capsys.readouterr().err
    monkeypatch.setenv("STX_DATA", str(tmp_path / "none"))
    with pytest.raises(WeightsError, match="none/avatars/generator/config.json: missing"):
        stx.load("avatars", device="cpu")


def test_any_batch_gives_the_same_codes(pipe, monkeypatch):
    image = torch.rand(5, 3, SIZE, SIZE) * 2 - 1
    whole = pipe.invert(image)
    monkeypatch.setattr(pipeline, "GENERATE_BATCH", 2)
    torch.testing.assert_close(pipe.invert(image), whole)


def test_pictures_of_any_kind(pipe, photos):
    path = photos / "03.png"
    array = images.read_image(path)
    expected = images.to_tensor(images.resize(array, SIZE, SIZE))[None]
    pil = Image.open(path)
    for given in (path, str(path), array, [path], [array], array[None], pil, [pil], pil.convert("RGBA")):
        torch.testing.assert_close(pipe.images(given), expected)
    torch.testing.assert_close(pipe.images(photos)[3:4], expected)
    grey = pipe.images(pil.convert("L"))
    assert torch.equal(grey[:, :1].expand(-1, 3, -1, -1), grey)
    assert pipe.images([path, array, photos / "05.png"]).shape == (3, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (torch.zeros(1, 3, 8, 8), r"\(1, 3, 8, 8\).*\[batch, 3, 16, 16\]"),
        (torch.zeros(3, SIZE, SIZE), r"expected \[batch"),
        (torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), "floats"),
        (torch.full((1, 3, SIZE, SIZE), 255.0), r"expected floats in \[-1, 1\]"),
        (torch.full((1, 3, SIZE, SIZE), torch.nan), r"expected floats in \[-1, 1\]"),
        (np.zeros((SIZE, SIZE, 3), np.float32), r"float32 \(16, 16, 3\): expected a path"),
        ([np.zeros((SIZE, SIZE, 4), np.uint8)], r"uint8 \(16, 16, 4\): expected a path"),
        (np.zeros((SIZE, SIZE), np.uint8), r"uint8 \(16, 16\): expected a path"),
        ([None], "expected a path"),
        ([], "no pictures"),
    ],
)
def test_unfit_pictures(pipe, given, match):
    with pytest.raises(ValueError, match=match):
        pipe.invert(given)


def test_unfit_codes(pipe):
    with pytest.raises(ValueError, match=r"\(2, 5, 12\) do not fit.*\[batch, 6, 12\]"):
        pipe.synthesize(torch.zeros(2, 5, 12))


def test_sampling_and_truncation(pipe):
    a, b = pipe.sample(4, seed=1), pipe.sample(4, seed=1, psi=0.5)
    assert torch.equal(a, pipe.sample(4, seed=1))
    torch.testing.assert_close(b, pipe.generator.w_avg() + 0.5 * (a - pipe.generator.w_avg()))


def test_a_token_can_be_changed_in_place(pipe):
    ws, average = pipe.sample(2), pipe.generator.w_avg()
    before = ws.clone()
    ws[:, 3] = 0
    assert torch.equal(ws[:, :3], before[:, :3]) and torch.equal(ws[:, 4:], before[:, 4:])
    average += 1
    assert not torch.equal(average, pipe.generator.w_avg())


def test_noise_modes(pipe):
    ws = pipe.sample(2)
    for layer in [pipe.generator.conv1, *pipe.generator.convs]:
        layer.noise.weight.data.fill_(0.5)
    const, none = pipe.synthesize(ws), pipe.synthesize(ws, noise="none")
    assert not torch.equal(const, none)
    assert not torch.equal(pipe.synthesize(ws, noise="random"), pipe.synthesize(ws, noise="random"))
    with pytest.raises(ValueError, match="random, const, none"):
        pipe.synthesize(ws, noise="loud")


def test_unknown_domain_device_and_weights(home, photos, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="not available here; there is: .*cpu"):
        stx.load(photos, folder=home, device="tpu")
    monkeypatch.setenv("STX_DATA", str(tmp_path / "none"))
    with pytest.raises(WeightsError, match="config.json: missing"):
        stx.load("avatars")
    with pytest.raises(DomainError, match="unknown domain 'avatarz'"):
        stx.load("avatarz")


def test_networks_that_do_not_fit(home, photos):
    weights.save(Generator(size=32, z_dim=12, n_mlp=2, channel_base=64, channel_max=8), home / "generator")
    with pytest.raises(WeightsError, match="6 x 12, the generator takes 8 x 12"):
        stx.load(photos, folder=home)


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def command(home, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photos").symlink_to(home)
    return lambda *pictures: cli.main(
        ["invert", *map(str, pictures), "--out", str(tmp_path / "out"), "--domain", str(photos), "--device", "cpu"]
    )


def test_invert_command(command, photos, tmp_path, capsys):
    assert command(photos) == 0
    out = tmp_path / "out"
    assert len(list(out.glob("*.png"))) == 24
    assert load_codes(out)[0] == [f"{i:02d}" for i in range(12)]
    assert images.read_image(out / "00.png").shape == (SIZE, SIZE, 3)
    assert images.read_image(out / "00_pair.png").shape == (SIZE, 2 * SIZE, 3)
    assert (images.read_image(out / "00_pair.png")[:, SIZE:] == images.read_image(out / "00.png")).all()
    assert "12 of 12" in capsys.readouterr().out


def test_invert_command_goes_on_after_a_bad_file(command, photos, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes((photos / "00.png").read_bytes()[:60])
    assert command(bad, photos / "01.png", tmp_path / "absent.jpg") == 1
    told = capsys.readouterr()
    assert "bad.png" in told.err
    assert "absent.jpg" in told.err
    assert "1 of 3" in told.out
    assert (tmp_path / "out" / "01.png").exists()
    assert command(bad) == 2


def test_invert_command_keeps_files_of_the_same_name_apart(command, photos, tmp_path):
    images.save_image(images.read_image(photos / "00.png"), tmp_path / "other" / "00.png")
    assert command(photos / "00.png", tmp_path / "other" / "00.png") == 0
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"00.png", "00_pair.png", "00-2.png", "00-2_pair.png"}


def test_invert_command_without_pictures(command, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "empty") == 2
    assert "no pictures in this folder" in capsys.readouterr().err


def test_codes_of_a_folder_are_edited_without_inverting_again(pipe, photos, tmp_path):
    """What `stx invert` wrote is what `stx edit` takes; a picture called as another's pair gets a name of its own."""
    images.save_image(images.read_image(photos / "00.png"), photos / "00_pair.png")
    batch.invert_files(pipe, sorted(photos.glob("00*.png")), tmp_path / "codes")
    made = {p.name for p in (tmp_path / "codes").glob("*.png")}
    assert made == {"00.png", "00_pair.png", "00_pair-2.png", "00_pair-2_pair.png"}
    assert batch.holds_codes(tmp_path / "codes") and not batch.holds_codes(photos)
    names, ws = batch.load_codes(tmp_path / "codes")
    count = batch.edit_codes(pipe, [tmp_path / "codes"], tmp_path / "out", lambda ws: pipe.edit(ws, add=["sefa:1"]))
    assert count == 2 and {p.stem for p in (tmp_path / "out").glob("*.png")} == set(names)
    expected = images.to_uint8(pipe.synthesize(pipe.edit(ws, add=["sefa:1"])))
    for name, picture in zip(names, expected, strict=True):
        assert (images.read_image(tmp_path / "out" / f"{name}.png") == picture).all()
