"""ONNX graphs give what the package gives, and are refused where they do not."""

import copy
import hashlib
import json

import numpy as np
import onnx as library
import onnxruntime
import pytest
import torch

from stx import cli, label_editing
from stx.baselines.directions import Directions
from stx.baselines.psp import PSP
from stx.checkpoints import onnx, weights
from stx.files.errors import FileError, InputError, WeightsError
from stx.files.outputs import made_by_stx
from stx.latent_classifier import LatentClassifier
from stx.matched_pairs import MatchedPairs
from stx.pipeline import Pipeline
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Generator

BACKBONE = {"widths": (4, 8, 12), "units": (1, 1, 2)}
HAVE = ("Smiling", "Hat", "Bald")


def run(folder, name: str, **inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {key: x.numpy() for key, x in inputs.items()})
    return torch.from_numpy(found)


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    """Random numbers in everything, so that no part can be left out."""
    random = torch.Generator().manual_seed(3)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=random) * 0.1)
        elif tensor.dtype == torch.bool:
            tensor.fill_(True)
    return net.eval().requires_grad_(False)


def classifier(activation: str = "leaky_relu") -> LatentClassifier:
    net = LatentClassifier(num_ws=6, w_dim=12, attributes=HAVE, hidden=(9, 8), dim=4, activation=activation)
    return randomised(net)


@pytest.fixture(scope="module")
def home(tiny, tmp_path_factory):
    """A domain with everything that is exported."""
    folder = tmp_path_factory.mktemp("onnx") / "home"
    matched = randomised(MatchedPairs(**tiny["matched_pairs"].config | {"attributes": HAVE}))
    matched.known[0, 2] = False
    nets = {
        "generator": randomised(copy.deepcopy(tiny["generator"])),
        "style_transformer": randomised(copy.deepcopy(tiny["style_transformer"])),
        "latent_classifier": classifier(),
        "picture_classifier": classifier("gelu"),
        "matched_pairs": matched,
    }
    for name, net in nets.items():
        weights.save(net, folder / name)
    return folder


@pytest.fixture(scope="module")
def out(home):
    assert cli.main(["export", str(home), "--to", "onnx", "--out", str(home.parent / "out")]) == 0
    return home.parent / "out"


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(1))


def graph_of(edit: torch.nn.Module, tmp_path) -> None:
    inputs = {"ws": torch.randn(1, 6, 12), "strengths": torch.randn(1, len(edit.attributes))}
    (tmp_path / "edit.onnx").write_bytes(onnx.export(onnx.Graph(edit, inputs, "edited"))[0])


def test_pictures_and_codes_are_those_of_pytorch(home, out, codes):
    generator, encoder = weights.load(home / "generator"), weights.load(home / "style_transformer")
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert (run(out, "encoder", image=image) - encoder(image)).abs().max() < 1e-4
    drawn = generator(codes, noise="const").clamp(-1, 1)
    assert (run(out, "generator", ws=codes) - drawn).abs().max() < 1e-4
    assert not drawn.allclose(generator(codes, noise="none").clamp(-1, 1), atol=1e-4)  # its noise is in the graph


def test_what_is_told_of_graphs_is_so(home, out):
    told = json.loads((out / "graphs.json").read_text())
    assert set(told["graphs"]) == {"generator", "encoder", "latent_classifier", "picture_classifier", "edit"}
    assert (told["resolution"], told["input_size"], told["classifier"]) == (16, [16, 16], "picture_classifier")
    assert told["attributes"]["latent_classifier"] == list(HAVE)
    assert told["edit"]["method"] == "matched pairs"
    assert [(a["name"], a["remove"], a["add"]) for a in told["edit"]["attributes"]] == [
        *(("Smiling", True, True), ("Hat", True, True), ("Bald", False, True))
    ]
    for name, graph in told["graphs"].items():
        content = (out / f"{name}.onnx").read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (graph["bytes"], graph["sha256"])
        assert graph["error"] <= onnx.TOLERANCE
        assert b".py" not in content and str(home).encode() not in content
        assert made_by_stx(out / f"{name}.onnx")
    generator = weights.load(home / "generator")
    graph = dict(onnx._graphs(home, generator, onnx._domain(home, generator), onnx.ENCODER))["generator"]
    assert onnx.export(graph)[0] == (out / "generator.onnx").read_bytes()  # the same file every time


def test_all_matched_pairs_at_once(home, out, codes):
    matched, net = weights.load(home / "matched_pairs"), weights.load(home / "latent_classifier")
    edited = run(out, "edit", ws=codes, strengths=torch.tensor([[0.5, -1.5, 0.0]]))
    assert (edited - (codes + 0.5 * matched(codes, [0], [1.0]) + 1.5 * matched(codes, [1], [0.0]))).abs().max() < 1e-4
    assert torch.equal(run(out, "edit", ws=codes, strengths=torch.zeros(1, 3)), codes)
    assert (run(out, "latent_classifier", ws=codes) - net(codes)[0]).abs().max() < 1e-4


def test_the_edit_of_the_pipeline(home, out, codes):
    """One attribute that the code lacks, by the front door and by the graph."""
    generator, encoder = weights.load(home / "generator"), weights.load(home / "style_transformer")
    pipe = Pipeline(onnx._domain(home, generator), generator, encoder, folder=home)
    logits = run(out, "picture_classifier", ws=codes)[0]
    lacking = [k for k in range(len(HAVE)) if logits[k] < 0]
    assert lacking
    strengths = torch.zeros(1, 3)
    strengths[0, lacking[0]] = 0.7
    edited = run(out, "edit", ws=codes, strengths=strengths)
    assert (edited - pipe.edit(codes, add=[HAVE[lacking[0]]], strength=0.7)).abs().max() < 1e-4
    assert not torch.equal(edited, codes)


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu"])
def test_first_order_without_autograd(tmp_path, codes, activation):
    net = classifier(activation)
    graph_of(onnx.FirstOrderEdit(net), tmp_path)
    expected, strengths = codes, (2.0, -1.0, 0.5)
    for k, strength in enumerate(strengths):
        direction = label_editing.first_order(net, codes, [k], [float(strength > 0)])
        expected = expected + abs(strength) * direction
    assert (run(tmp_path, "edit", ws=codes, strengths=torch.tensor([strengths])) - expected).abs().max() < 1e-4


def test_converted_directions(home, tmp_path, codes):
    several = randomised(Directions(count=3, tokens=1, w_dim=12))
    weights.save(several, tmp_path / "home" / "directions-pca")
    weights.save(randomised(Directions(count=1, tokens=6, w_dim=12)), tmp_path / "home" / "directions-age")
    generator = weights.load(home / "generator")
    edit = onnx._edit(tmp_path / "home", generator, {})
    assert edit.attributes == ["age", "pca:0", "pca:1", "pca:2"]
    graph_of(edit, tmp_path)
    edited = run(tmp_path, "edit", ws=codes, strengths=torch.tensor([[0.0, 0.0, 0.0, 3.0]]))
    expected = codes + 3 * weights.load(tmp_path / "home" / "directions-pca").directions[2]
    assert (edited - expected).abs().max() < 1e-4
    weights.save(Directions(count=1, tokens=5, w_dim=12), tmp_path / "home" / "directions-other")
    with pytest.raises(InputError, match="5 x 12 do not fit codes of 6 x 12"):
        onnx._edit(tmp_path / "home", generator, {})


@pytest.mark.release  # five passes of encoder and generator are a large graph
def test_an_encoder_that_refines(home, tmp_path):
    generator = weights.load(home / "generator")
    net = randomised(PSP.for_generator(generator, input_side=16, in_channels=6, **BACKBONE))
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    graph = onnx.Graph(onnx.Inversion(net, generator, onnx._domain(home, generator).view), {"image": image}, "ws")
    (tmp_path / "encoder.onnx").write_bytes(onnx.export(graph)[0])
    other = torch.rand(1, 3, 16, 16) * 2 - 1
    assert (run(tmp_path, "encoder", image=other) - net.invert(other, generator)).abs().max() < 1e-4
    with pytest.raises(WeightsError, match="e4e"):
        onnx.write(home, tmp_path / "out", encoder="e4e")


def test_numbers_that_differ_are_refused(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx, "TOLERANCE", 0.0)
    assert cli.main(["export", str(home), "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert "differs from PyTorch by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_stx_did_not_make_is_kept(home, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "generator.onnx").write_bytes(b"mine")
    with pytest.raises(FileError, match="generator.onnx: was not made by stx"):
        onnx.write(home, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["generator.onnx"]


def test_without_the_packages_it_says_which(home, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="onnx, onnxscript, onnxruntime not installed"):
        onnx.write(home, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_are_halved_only_where_nothing_is_lost(tmp_path, dtype):
    """However they are stored, the graph has the network's weights to the bit."""
    net = torch.nn.Linear(40, 40)
    net.weight.data = net.weight.data.to(dtype).float()
    content, _ = onnx.export(onnx.Graph(net, {"x": torch.randn(1, 40)}, "y"))
    stored = {value.name: value for value in library.load_from_string(content).graph.initializer}
    names = [name for name in stored if name.startswith("weight") and list(stored[name].dims) == [40, 40]]
    assert names == ["weight.half" if dtype == torch.float16 else "weight"]
    array = library.numpy_helper.to_array(stored[names[0]]).astype(np.float32)
    assert np.array_equal(array, net.weight.detach().numpy())


@pytest.mark.release
@pytest.mark.parametrize("size", [256, 1024])
def test_public_sizes(tmp_path, size):
    """Random weights of the public shapes but fewer channels: 512-wide codes, 8 mapping layers, 14 or 18 tokens."""
    generator = Generator(size=size, channel_base=size * 4, channel_max=16)
    widths = (4, 8, 16, 512)
    encoder = StyleTransformer.for_generator(generator, widths=widths, units=(1, 1, 1, 1), queries=18)
    for name, net in (("generator", generator), ("style_transformer", encoder)):
        weights.save(randomised(net), tmp_path / "ffhq" / name)
    told = onnx.write(tmp_path / "ffhq", tmp_path / "out")
    assert told["input_size"] == [256, 256]
    ws = torch.randn(1, generator.num_ws, 512)
    expected = weights.load(tmp_path / "ffhq" / "generator")(ws, noise="const").clamp(-1, 1)
    assert (run(tmp_path / "out", "generator", ws=ws) - expected).abs().max() < 1e-4
