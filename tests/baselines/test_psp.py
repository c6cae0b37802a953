"""The pSp family: tokens computed by hand from named tensors, refinement step by step, public files."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stx import cli, pipeline
from stx.baselines.psp import PSP, ResNet
from stx.checkpoints import convert, weights
from stx.domains import images
from stx.files.errors import WeightsError
from stx.perception.irse import IRSE
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Generator
from tests.checkpoints.test_convert import randomised

WIDTHS, UNITS, SIDE = (4, 6, 8, 16), (1, 2, 1, 1), 64  # maps of 32, 16, 8 and 4 pixels
COUNT = 8


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(1)
    made = Generator(size=32, z_dim=16, n_mlp=2, channel_base=128, channel_max=8)
    return made.eval().requires_grad_(False)


def picture(channels: int = 3, count: int = 2, side: int = SIDE) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1


def token(state: dict, i: int, x: torch.Tensor) -> torch.Tensor:
    """Token i of a style stack, from its tensors alone."""
    depth = sum(k.startswith(f"styles.{i}.convs") and k.endswith("weight") for k in state)
    for j in range(depth):
        x = F.conv2d(x, state[f"styles.{i}.convs.{2 * j}.weight"], state[f"styles.{i}.convs.{2 * j}.bias"], 2, 1)
        x = torch.where(x > 0, x, 0.01 * x)
    weight = state[f"styles.{i}.linear.weight"]
    return x.flatten(1) @ weight.T / weight.shape[1] ** 0.5 + state[f"styles.{i}.linear.bias"]


def made(**options) -> PSP:
    net = randomised(PSP(num_ws=COUNT, widths=WIDTHS, units=UNITS, input_side=SIDE, **options))
    net.latent_avg.normal_(generator=torch.Generator().manual_seed(9))
    return net.requires_grad_(False)


def pyramid(net: PSP, image: torch.Tensor) -> list[torch.Tensor]:
    state = net.state_dict()
    maps = net.backbone(image)
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    middle = up(maps[3]) + F.conv2d(maps[2], state["latlayer1.weight"], state["latlayer1.bias"])
    fine = up(middle) + F.conv2d(maps[1], state["latlayer2.weight"], state["latlayer2.bias"])
    return [maps[3]] * 3 + [middle] * 4 + [fine] * (COUNT - 7)


def test_psp_tokens_come_from_the_pyramid():
    net = made()
    expected = torch.stack([token(net.state_dict(), i, x) for i, x in enumerate(pyramid(net, picture()))], 1)
    torch.testing.assert_close(net(picture()), expected + net.latent_avg)


def test_e4e_tokens_are_offsets_from_the_first_and_grow_in_by_stages():
    net = made(progressive=True)
    tokens = [token(net.state_dict(), i, x) for i, x in enumerate(pyramid(net, picture()))]
    for stage in (1, 4, COUNT):
        net.stage = stage
        expected = [tokens[0] + (tokens[i] if 0 < i < stage else 0) for i in range(COUNT)]
        torch.testing.assert_close(net.offsets(picture()), torch.stack(expected, 1))


def test_heads_into_w_and_w_plus():
    net = made(head="W")
    codes = net.offsets(picture())
    last, weight = net.backbone(picture())[-1], net.state_dict()["linear.weight"]
    torch.testing.assert_close(codes[:, 0], last.mean((2, 3)) @ weight.T / 4 + net.linear.bias)
    assert torch.equal(codes[:, 0], codes[:, 5])
    net = made(head="W+")
    flat = net.output_layer_2(net.backbone(picture())[-1])
    codes = (flat @ net.linear.weight.T / 4 + net.linear.bias).reshape(2, COUNT, 16)
    torch.testing.assert_close(net.offsets(picture()), codes)
    with pytest.raises(ValueError, match="head 'Z': expected one of pyramid"):
        made(head="Z")


def test_a_pyramid_of_a_resnet():
    net = made(resnet=True)
    assert [m.shape[1:] for m in net.backbone(picture())] == [(4, 32, 32), (6, 16, 16), (8, 8, 8), (16, 4, 4)]
    expected = torch.stack([token(net.state_dict(), i, x) for i, x in enumerate(pyramid(net, picture()))], 1)
    torch.testing.assert_close(net(picture()), expected + net.latent_avg)


@pytest.mark.parametrize("channels", [1, 19])
def test_sketches_and_labels_take_one_pass(tmp_path, generator, channels):
    net = made(in_channels=channels)
    torch.save(public(net, generator, "GradualStyleEncoder", input_nc=channels), tmp_path / "file.pt")
    again = convert.read(tmp_path / "file.pt").networks["psp"]
    image = picture(channels)
    assert torch.equal(again.invert(image, generator), net.offsets(image) + net.latent_avg)
    with pytest.raises(ValueError, match=f"pictures of 3 channels: this encoder takes {channels}"):
        again.invert(picture(), generator)


def st(in_channels: int) -> StyleTransformer:
    torch.manual_seed(2)
    sizes = {"widths": WIDTHS, "units": UNITS, "in_channels": in_channels}
    return StyleTransformer(num_ws=COUNT, n_mlp=2, **sizes).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["psp", "e4e", "resnet", "style transformer"])
def test_refinement_starts_from_the_average_and_adds_up(generator, kind):
    options = {"psp": {}, "e4e": {"progressive": True}, "resnet": {"resnet": True}}
    own = options.get(kind)
    net = st(6) if own is None else made(head="last map", in_channels=6, **own)
    net, generator, image = net.double(), copy.deepcopy(generator).double(), picture().double()
    view = nn.Upsample(scale_factor=2)
    found = net.refine(image, lambda ws: view(generator(ws)), steps=3)
    ws = net.latent_avg.expand(2, -1, -1)
    seen = view(generator(ws))
    for step in range(3):
        ws = ws + net.offsets(torch.cat([image, seen], 1))
        torch.testing.assert_close(found[step], ws)
        seen = view(generator(ws))
    assert not torch.allclose(found[0], found[2])
    after_five = net.refine(image, lambda ws: view(generator(ws)))[4]
    torch.testing.assert_close(net.invert(image, generator, view), after_five)


def public(net: PSP, generator: Generator, kind: str, *, extra: int = 0, **opts) -> dict:
    """A file as its authors write it: 18 or the generator's tokens, the decoder, options, the repeated average."""
    decoder = {f"decoder.{k}": v for k, v in generator.state_dict().items() if k != "latent_avg"}
    mine = {k.removeprefix("backbone."): v for k, v in net.state_dict().items() if k != "latent_avg"}
    stacks = {k: v for k, v in mine.items() if k.startswith(f"styles.{COUNT - 1}.")}
    for i in range(extra):
        mine |= {k.replace(f".{COUNT - 1}.", f".{COUNT + i}.", 1): v + 1 for k, v in stacks.items()}
    average = torch.cat([net.latent_avg, torch.ones(extra, 16)])
    state = {f"encoder.{k}": v for k, v in mine.items()} | decoder
    return {"state_dict": state, "latent_avg": average, "opts": {"encoder_type": kind, "device": "cuda", **opts}}


FILES = [
    ("psp", "GradualStyleEncoder", {}),
    ("e4e", "Encoder4Editing", {"progressive": True}),
    ("restyle_psp", "BackboneEncoder", {"head": "last map", "in_channels": 6}),
    ("restyle_e4e", "ProgressiveBackboneEncoder", {"head": "last map", "in_channels": 6, "progressive": True}),
    ("restyle_psp", "ResNetBackboneEncoder", {"head": "last map", "in_channels": 6, "resnet": True}),
    (
        "restyle_e4e",
        "ResNetProgressiveBackboneEncoder",
        {"head": "last map", "in_channels": 6, "resnet": True, "progressive": True},
    ),
    ("restyle_psp", "ResNetGradualStyleEncoder", {"in_channels": 6, "resnet": True}),
    ("psp", "BackboneEncoderUsingLastLayerIntoW", {"head": "W"}),
    ("psp", "BackboneEncoderUsingLastLayerIntoWPlus", {"head": "W+"}),
]


@pytest.mark.parametrize(("name", "kind", "options"), FILES, ids=[kind for _, kind, _ in FILES])
def test_public_files(tmp_path, generator, name, kind, options):
    net = made(**options)
    torch.save(public(net, generator, kind), tmp_path / "file.pt")
    found = convert.read(tmp_path / "file.pt")
    again = found.networks[name]
    assert torch.equal(
        again.invert(picture(), generator, nn.Upsample(scale_factor=2)),
        net.invert(picture(), generator, nn.Upsample(scale_factor=2)),
    )
    assert found.networks["generator"].num_ws == COUNT
    weights.save(again, tmp_path / "again", dtype=torch.float32)
    assert torch.equal(
        weights.load(tmp_path / "again").offsets(picture(net.in_channels)), net.offsets(picture(net.in_channels))
    )


ADD_IN_ANY_CASE = ("ProgressiveBackboneEncoder", "ResNetBackboneEncoder", "GradualStyleEncoder", "WEncoder")


@pytest.mark.parametrize("kind", ADD_IN_ANY_CASE)
def test_public_code_that_adds_the_average_without_the_option(tmp_path, generator, kind):
    """ReStyle's and HyperStyle's: without `--start_from_latent_avg` the files say False, and the average is added."""
    head = {"WEncoder": "W", "GradualStyleEncoder": "pyramid"}.get(kind, "last map")
    options = {"in_channels": 3 if head == "W" else 6, "resnet": "ResNet" in kind, "progressive": "Progressive" in kind}
    net = made(head=head, **options)
    options = {"start_from_latent_avg": False, "learn_in_w": True}
    torch.save(public(net, generator, kind, **options), tmp_path / "file.pt")
    again = next(iter(convert.read(tmp_path / "file.pt").networks.values()))
    assert torch.equal(again.latent_avg, net.latent_avg)  # a row to each token
    view = nn.Upsample(scale_factor=2)
    assert torch.equal(again.invert(picture(), generator, view), net.invert(picture(), generator, view))


def test_files_with_more_tokens_than_the_generator_reads(tmp_path, generator):
    net = made()
    torch.save(public(net, generator, "GradualStyleEncoder", extra=3), tmp_path / "file.pt")
    assert torch.equal(convert.read(tmp_path / "file.pt").networks["psp"](picture()), net(picture()))
    content = public(net, generator, "GradualStyleEncoder", start_from_latent_avg=False)
    torch.save(content, tmp_path / "file.pt")
    again = convert.read(tmp_path / "file.pt").networks["psp"]
    assert torch.equal(again(picture()), net.offsets(picture()))
    del content["state_dict"]["encoder.styles.4.linear.bias"]
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=r"1 missing \(styles.4.linear.bias\)"):
        convert.read(tmp_path / "file.pt")


def test_a_pipeline_with_another_encoder(tmp_path, home, tiny, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    images.save_image(images.to_uint8(picture(side=16))[0], folder / "a.png")
    weights.save(tiny["psp"], home / "e4e", dtype=torch.float32)
    weights.save(tiny["classifier"], home / "other", dtype=torch.float32)
    pipe = pipeline.load(folder, folder=home, encoder="e4e", device="cpu")
    ws = pipe.invert([folder / "a.png"])
    net = copy.deepcopy(tiny["psp"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(ws, net(pipe.images([folder / "a.png"])))
    with pytest.raises(WeightsError, match="a AttributeClassifier is no encoder"):
        pipeline.load(folder, folder=home, encoder="other", device="cpu")
    assert cli.main(["invert", str(folder), "--out", str(tmp_path / "out"), "--encoder", "nothing"]) == 2
    assert "nothing/config.json: missing" in capsys.readouterr().err


def test_taps_are_those_of_the_public_code():
    """IR-SE50's maps after units 6, 20 and 23, of 128, 256 and 512 channels; ResNet-34's after 6, 12 and 15."""
    with torch.device("meta"):
        assert IRSE().taps == [2, 6, 20, 23]
        assert ResNet(widths=(64, 128, 256, 512), units=(3, 4, 6, 3), in_channels=6).taps == [2, 6, 12, 15]
