"""Public checkpoints of small sizes, written as their authors write them, read back to the same pictures."""

import argparse
import io
import json
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from stx import batch, cli
from stx.checkpoints import convert, export, weights
from stx.files import pickles
from stx.files.errors import WeightsError
from stx.perception.identity import IdentityNet, MobileFace, MoCo
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Discriminator, Generator
from stx.stylegan2.ops import fir_kernel

SMALL = {"z_dim": 16, "n_mlp": 3, "channel_base": 128, "channel_max": 8}
BACKBONE = {"widths": (8, 12, 16), "units": (1, 2, 1)}


def randomised(net):
    """Random numbers in every parameter and noise map, also where training starts from zeros."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("kernel"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 + (1 if "var" in name else 0))
            tensor.abs_() if "var" in name else None
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def generator():
    return randomised(Generator(size=32, **SMALL))


@pytest.fixture(scope="module")
def encoder(generator):
    net = StyleTransformer(num_ws=8, n_mlp=3, queries=11, **BACKBONE)
    return randomised(net)


def ws_of(generator, b=2):
    return torch.randn(b, generator.num_ws, generator.w_dim, generator=torch.Generator().manual_seed(3))


def public(generator) -> dict:
    state = dict(generator.state_dict())
    return {"latent_avg": state.pop("latent_avg"), "g_ema": state}


# ---------------------------------------------------------------------------------------------------------- rosinality


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("shape", [(16,), (1, 16)])
def test_rosinality(tmp_path, size, shape):
    net = randomised(Generator(size=size, **SMALL))
    discriminator = randomised(Discriminator(size=size, channel_base=128, channel_max=8))
    content = public(net) | {"d": discriminator.state_dict(), "args": argparse.Namespace(lr=0.1), "g_optim": {}}
    content["latent_avg"] = content["latent_avg"].reshape(shape)
    torch.save(content, tmp_path / "g.pt")
    found = convert.read(tmp_path / "g.pt")
    again = found.networks["generator"]
    assert {k: again.config[k] for k in ("size", "z_dim", "n_mlp")} == {"size": size, "z_dim": 16, "n_mlp": 3}
    assert torch.equal(again.latent_avg, net.latent_avg)
    assert torch.equal(again(ws_of(net)), net(ws_of(net)))
    image = again(ws_of(net, 4))
    assert torch.equal(found.networks["discriminator"](image), discriminator(image))


def test_missing_average_is_sampled(tmp_path, generator):
    torch.save({"g_ema": public(generator)["g_ema"]}, tmp_path / "g.pt")
    found = convert.read(tmp_path / "g.pt")
    assert torch.equal(found.networks["generator"].latent_avg, generator.mean_w())
    assert "sampling" in found.notes["latent_avg"]


def test_every_key_is_accounted_for(tmp_path, generator):
    path = tmp_path / "g.pt"

    def error(change) -> str:
        content = public(generator)
        change(content)
        torch.save(content, path)
        with pytest.raises(WeightsError) as caught:
            convert.read(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "1 unexpected (extra.weight)" in error(lambda c: c["g_ema"].update({"extra.weight": torch.ones(2)}))
    assert "1 missing (to_rgbs.1.bias)" in error(lambda c: c["g_ema"].pop("to_rgbs.1.bias"))
    assert "of another shape" in error(lambda c: c["g_ema"].update({"conv1.noise.weight": torch.ones(2)}))
    assert "low-pass" in error(lambda c: c["g_ema"].update({"convs.0.conv.blur.kernel": torch.ones(4, 4)}))
    assert "1 unexpected (surprise)" in error(lambda c: c.update(surprise=1))
    assert "latent_avg is [5]" in error(lambda c: c.update(latent_avg=torch.ones(5)))
    assert "known form" in error(lambda c: (c.clear(), c.update(state_dict={"x.weight": torch.ones(1)})))


# -------------------------------------------------------------------------------------------------- NVIDIA's pickles


@pytest.fixture
def nvidia(monkeypatch):
    """`save(path, content)` and `module(class_name, **state)`, as NVIDIA's persistence pickles them."""
    library = types.ModuleType("torch_utils.persistence")
    library._reconstruct_persistent_obj = lambda meta: None
    library._reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    library._reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    library._reconstruct_persistent_obj.__name__ = "_reconstruct_persistent_obj"
    dnnlib = types.ModuleType("dnnlib.util")
    dnnlib.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    for name in ("torch_utils", "dnnlib"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", library)
    monkeypatch.setitem(sys.modules, "dnnlib.util", dnnlib)

    class Saved:
        def __init__(self, class_name, state):
            self.meta = {"type": "class", "version": 6, "class_name": class_name, "state": state}
            self.meta["module_src"] = "import os; os.mkdir('owned')"

        def __reduce__(self):
            return library._reconstruct_persistent_obj, (self.meta,)

    def tree(class_name, tensors: dict, **plain):
        """Nested persistent modules from full names."""
        children, own = {}, {}
        for name, value in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                children.setdefault(head, {})[rest] = value
            else:
                own[name] = value
        buffers = {k: v for k, v in own.items() if k in ("resample_filter", "noise_const", "w_avg")}
        parameters = {k: torch.nn.Parameter(v) for k, v in own.items() if k not in buffers}
        modules = {name: tree("Sub", part) for name, part in children.items()}
        state = {"training": False, "_parameters": parameters, "_buffers": buffers, "_modules": modules}
        return Saved(class_name, state | {"_non_persistent_buffers_set": set()} | plain)

    def save(path, g, d=None, protocol=4, alone=False, group=4, layers=None, **plain):
        if alone:
            return torch.save(tree("Generator", g, c_dim=0), path)
        options = dnnlib.EasyDict(class_name="training.dataset.ImageFolderDataset", xflip=True)
        content = {"G_ema": tree("Generator", g, c_dim=plain.pop("c_dim", 0), **plain)}
        if d:
            content["D"] = tree("Discriminator", d, c_dim=0)
            modules = content["D"].meta["state"]["_modules"]["b4"].meta["state"]["_modules"]
            modules |= {"mbstd": Saved("MinibatchStdLayer", {"group_size": group, "num_channels": 1})}
        if layers:
            for layer in content["G_ema"].meta["state"]["_modules"]["mapping"].meta["state"]["_modules"].values():
                layer.meta["state"] |= layers
        content |= {"training_set_kwargs": options, "augment_pipe": None}
        return path.write_bytes(pickle.dumps(content, protocol))

    return save


def to_nvidia(net: Generator) -> dict[str, torch.Tensor]:
    """rosinality's state dict under NVIDIA's names (FORMATS.md, section 3)."""
    state, out = net.state_dict(), {"mapping.w_avg": net.latent_avg}
    for i in range(net.config["n_mlp"]):
        out |= {f"mapping.fc{i}.{part}": state[f"style.{i + 1}.{part}"] for part in ("weight", "bias")}
    layers = [("conv1", 4, "conv1", 0), ("to_rgb1", 4, "torgb", None)]
    for i in range(len(net.to_rgbs)):
        r = 8 * 2**i
        layers += [(f"convs.{2 * i}", r, "conv0", 2 * i + 1), (f"convs.{2 * i + 1}", r, "conv1", 2 * i + 2)]
        layers += [(f"to_rgbs.{i}", r, "torgb", None)]
    out["synthesis.b4.const"] = state["input.input"][0]
    for name, r, layer, noise in layers:
        to = f"synthesis.b{r}.{layer}"
        out[f"{to}.weight"] = state[f"{name}.conv.weight"][0]
        out |= {f"{to}.affine.{part}": state[f"{name}.conv.modulation.{part}"] for part in ("weight", "bias")}
        out[f"{to}.resample_filter"] = fir_kernel()
        out[f"synthesis.b{r}.resample_filter"] = fir_kernel()
        if layer == "torgb":
            out[f"{to}.bias"] = state[f"{name}.bias"].flatten()
        else:
            out[f"{to}.bias"] = state[f"{name}.activate.bias"]
            out[f"{to}.noise_strength"] = state[f"{name}.noise.weight"][0]
            out[f"{to}.noise_const"] = state[f"noises.noise_{noise}"][0, 0]
    return {k: v.clone() for k, v in out.items()}


def to_nvidia_d(net: Discriminator) -> dict[str, torch.Tensor]:
    state, size = net.state_dict(), net.size
    out = {f"b{size}.fromrgb.weight": state["convs.0.0.weight"], f"b{size}.fromrgb.bias": state["convs.0.1.bias"]}
    for i in range(1, len(net.convs)):
        r = size // 2 ** (i - 1)
        for to, name in (("conv0", "conv1.0"), ("conv1", "conv2.1"), ("skip", "skip.1")):
            out[f"b{r}.{to}.weight"] = state[f"convs.{i}.{name}.weight"]
            out[f"b{r}.{to}.resample_filter"] = fir_kernel()
        out[f"b{r}.conv0.bias"] = state[f"convs.{i}.conv1.1.bias"]
        out[f"b{r}.conv1.bias"] = state[f"convs.{i}.conv2.2.bias"]
    out |= {"b4.conv.weight": state["final_conv.0.weight"], "b4.conv.bias": state["final_conv.1.bias"]}
    for i, name in enumerate(("fc", "out")):
        out |= {f"b4.{name}.{part}": state[f"final_linear.{i}.{part}"] for part in ("weight", "bias")}
    return {k: v.clone() for k, v in out.items()}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nvidia_pytorch(tmp_path, monkeypatch, generator, nvidia, protocol):
    monkeypatch.chdir(tmp_path)
    discriminator = randomised(Discriminator(size=32, channel_base=128, channel_max=8))
    nvidia(tmp_path / "g.pkl", to_nvidia(generator), to_nvidia_d(discriminator), protocol)
    networks = convert.read(tmp_path / "g.pkl").networks
    for name, value in generator.state_dict().items():
        assert torch.equal(networks["generator"].state_dict()[name], value), name
    image = generator(ws_of(generator, 4))
    assert torch.equal(networks["discriminator"](image), discriminator(image))
    assert not (tmp_path / "owned").exists()  # the source inside the file was not run


@pytest.mark.parametrize("group", [8, 32, None])
def test_nvidia_discriminators_with_other_groups(tmp_path, generator, nvidia, group):
    """NVIDIA's configurations take the standard deviation of 4, 8, 32 or all pictures."""
    net = randomised(Discriminator(size=32, channel_base=128, channel_max=8))
    nvidia(tmp_path / "g.pkl", to_nvidia(generator), to_nvidia_d(net), group=group)
    again = convert.read(tmp_path / "g.pkl").networks["discriminator"]
    assert again.config == net.config | {"group": group}
    image = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    image[::2] *= 20  # which are one of two groups of 4
    x = net.convs(image)
    spread = (x.var(0, unbiased=False) + 1e-8).sqrt().mean().expand(8, 1, 4, 4)
    expected = net.final_linear(net.final_conv(torch.cat([x, spread], 1)).flatten(1))
    torch.testing.assert_close(again(image), expected)
    assert not torch.allclose(net(image), expected, rtol=1e-3)
    torch.testing.assert_close(again(image[:4]), net(image[:4]))


def test_nvidia_mapping_networks_of_other_rates(tmp_path, generator, nvidia):
    """Their layers multiply weight and bias by the rate of their learning, 0.01 unless an option says otherwise."""
    nvidia(tmp_path / "g.pkl", to_nvidia(generator), layers={"bias_gain": 0.02, "activation": "lrelu"})
    z, other = ws_of(generator)[:, 0], convert.read(tmp_path / "g.pkl").networks["generator"]
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for layer in generator.style[1:]:
        x = x @ layer.weight.T * (0.02 / 4) + layer.bias * 0.02
        x = torch.where(x > 0, x, 0.2 * x) * 2**0.5
    torch.testing.assert_close(other.mapping(z), x)
    nvidia(tmp_path / "g.pkl", to_nvidia(generator), layers={"bias_gain": 0.01, "activation": "relu"})
    with pytest.raises(WeightsError, match="layers with the activation 'relu', expected 'lrelu'"):
        convert.read(tmp_path / "g.pkl")


def test_nvidia_of_another_kind(tmp_path, generator, nvidia):
    path, given = tmp_path / "g.pkl", to_nvidia(generator)

    def error(tensors, **plain) -> str:
        nvidia(path, tensors, **plain)
        with pytest.raises(WeightsError) as caught:
            convert.read(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "class-conditional generator (10 classes)" in error(given, c_dim=10)
    assert "1 unexpected (mapping.embed.weight)" in error(given | {"mapping.embed.weight": torch.ones(2, 2)})
    assert "synthesis.b8.conv0.bias is missing" in error({k: v for k, v in given.items() if "b8.conv0.bias" not in k})
    assert "not a StyleGAN2 generator" in error({"synthesis.L0_36_512.weight": torch.ones(2)})
    assert "'skip'" in error(given | {"synthesis.b8.skip.weight": torch.ones(2)})
    assert "low-pass" in error(given | {"synthesis.b8.conv0.resample_filter": torch.ones(4, 4)})


def test_nvidia_tensorflow(tmp_path, monkeypatch, generator):
    library = types.ModuleType("dnnlib.tflib.network")

    class Network:
        def __getstate__(self):
            return self.__dict__

    Network.__module__, Network.__qualname__ = "dnnlib.tflib.network", "Network"
    library.Network = Network
    for name in ("dnnlib", "dnnlib.tflib"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "dnnlib.tflib.network", library)

    def network(name, variables=(), components=None):
        net = Network()
        net.__dict__ = {"version": 4, "name": name, "static_kwargs": {}, "components": components or {}}
        net.__dict__ |= {"variables": [(k, v.numpy()) for k, v in variables], "build_module_src": "1 / 0"}
        return net

    state, synthesis = generator.state_dict(), [("4x4/Const/const", generator.input.input)]
    mapping = [(f"Dense{i}/weight", state[f"style.{i + 1}.weight"].T) for i in range(3)]
    mapping += [(f"Dense{i}/bias", state[f"style.{i + 1}.bias"]) for i in range(3)]
    synthesis += [(f"noise{i}", getattr(generator.noises, f"noise_{i}")) for i in range(7)]
    layers = [("4x4/Conv", "conv1"), ("4x4/ToRGB", "to_rgb1")]
    for i, r in enumerate((8, 16, 32)):
        layers += [(f"{r}x{r}/Conv0_up", f"convs.{2 * i}"), (f"{r}x{r}/Conv1", f"convs.{2 * i + 1}")]
        layers += [(f"{r}x{r}/ToRGB", f"to_rgbs.{i}")]
    for to, name in layers:
        weight = state[f"{name}.conv.weight"][0]
        weight = weight.flip(2, 3) if to.endswith("up") else weight
        synthesis += [(f"{to}/weight", weight.permute(2, 3, 1, 0).contiguous())]
        synthesis += [(f"{to}/mod_weight", state[f"{name}.conv.modulation.weight"].T)]
        synthesis += [(f"{to}/mod_bias", state[f"{name}.conv.modulation.bias"] - 1)]
        if to.endswith("ToRGB"):
            synthesis += [(f"{to}/bias", state[f"{name}.bias"].flatten())]
        else:
            synthesis += [(f"{to}/bias", state[f"{name}.activate.bias"])]
            synthesis += [(f"{to}/noise_strength", state[f"{name}.noise.weight"][0])]
    parts = {"mapping": network("m", mapping), "synthesis": network("s", synthesis)}
    whole = network("Gs", [("dlatent_avg", generator.latent_avg)], parts)
    (tmp_path / "g.pkl").write_bytes(pickle.dumps((network("G"), network("D"), whole)))
    again = convert.read(tmp_path / "g.pkl").networks["generator"]
    assert torch.equal(again.latent_avg, generator.latent_avg)
    torch.testing.assert_close(again(ws_of(generator)), generator(ws_of(generator)), rtol=1e-5, atol=1e-5)
    for options, told in (
        ({"resample_kernel": [1, 2, 1]}, r"a low-pass filter of \[1, 2, 1\], expected \[1, 3, 3, 1\]"),
        ({"nonlinearity": "relu"}, "layers with the activation 'relu'"),
    ):
        whole.static_kwargs = options
        (tmp_path / "g.pkl").write_bytes(pickle.dumps((network("G"), network("D"), whole)))
        with pytest.raises(WeightsError, match=told):
            convert.read(tmp_path / "g.pkl")
    whole.static_kwargs = {"mapping_lrmul": 0.02, "resample_kernel": [1, 3, 3, 1], "nonlinearity": "lrelu"}
    (tmp_path / "g.pkl").write_bytes(pickle.dumps((network("G"), network("D"), whole)))
    other = convert.read(tmp_path / "g.pkl").networks["generator"]
    assert torch.equal(other.style[1].weight, 2 * generator.style[1].weight)
    assert torch.equal(other.style[3].bias, 2 * generator.style[3].bias)


# -------------------------------------------------------------------------------------------- Style Transformer's files


def official(encoder, generator, average) -> dict:
    mine, decoder = encoder.state_dict(), generator.state_dict()
    state = {f"encoder.module.{k[8:]}": v for k, v in mine.items() if k.startswith("encoder.")}
    decoder.pop("latent_avg")
    decoder |= {k: v for k, v in mine.items() if k.startswith("style.")}
    state |= {f"decoder.module.{k}": v for k, v in decoder.items()}
    return {"state_dict": state, "opts": {"device": "cuda", "output_size": 32}, "latent_avg": average}


@pytest.mark.parametrize("shape", [(16,), (1, 16), (8, 16)])
def test_official_inversion(tmp_path, encoder, generator, shape):
    average = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    torch.save(official(encoder, generator, average), tmp_path / "st.pt")
    found = convert.read(tmp_path / "st.pt")
    net = found.networks["style_transformer"]
    assert (net.config["queries"], net.num_ws) == (11, 8)
    image = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    query = encoder.queries().expand(2, -1, -1)
    torch.testing.assert_close(net(image), encoder.encoder(image, query)[:, :8] + average)
    ws = ws_of(generator)
    assert torch.equal(found.networks["generator"](ws), generator(ws))
    export.write(found.networks, "official", tmp_path / "back.pt", found.notes)
    first, second = pickles.read_torch(tmp_path / "st.pt"), pickles.read_torch(tmp_path / "back.pt")
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(v, second["state_dict"][k]) for k, v in first["state_dict"].items())
    assert torch.equal(first["latent_avg"].expand(8, 16), second["latent_avg"].expand(8, 16))
    assert second["opts"]["device"] == "cuda"


def test_official_without_a_part(tmp_path, encoder, generator):
    content = official(encoder, generator, torch.zeros(16))
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if not k.startswith("decoder")}
    torch.save(content, tmp_path / "st.pt")
    with pytest.raises(WeightsError, match="no tensors of the decoder"):
        convert.read(tmp_path / "st.pt")


def test_identity_networks(tmp_path):
    net = randomised(IdentityNet(size=32, dim=5, **BACKBONE))
    torch.save({k.removeprefix("backbone."): v for k, v in net.state_dict().items()}, tmp_path / "id.pth")
    again = convert.read(tmp_path / "id.pth").networks["identity"]
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(again(image), net(image))
    moco = MoCo().eval()
    state = {f"module.encoder_q.{k.removeprefix('backbone.')}": v for k, v in moco.state_dict().items()}
    extra = {"module.encoder_q.fc.0.weight": torch.ones(1), "module.encoder_k.conv1.weight": torch.ones(1)}
    torch.save({"epoch": 800, "state_dict": state | extra | {"module.queue": torch.ones(1)}}, tmp_path / "moco.pt")
    again = convert.read(tmp_path / "moco.pt").networks["identity"]
    torch.testing.assert_close(again(image), moco(image))
    assert again(image).norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_mobileface_from_tensorflow_js(tmp_path):
    net = randomised(MobileFace())
    state, arrays = net.state_dict(), {}
    arrays["conv1_weight"] = state["stem.0.weight"].permute(2, 3, 1, 0)
    arrays["prelu1_gamma"], arrays["mulscalar0_second"] = state["stem.1.weight"], torch.tensor([1 / 128])
    for i in range(4):
        arrays[f"stage{i + 1}_unit1_conv0_0_weight"] = state[f"stages.{i}.expand.weight"].permute(2, 3, 1, 0)
        for j, name in enumerate(("conv0_1", "conv1", "conv2")):
            arrays[f"stage{i + 1}_unit1_{name}_df"] = state[f"stages.{i}.depthwise.{j}.0.weight"].permute(2, 3, 0, 1)
            arrays[f"stage{i + 1}_unit1_prelu{j}_gamma"] = state[f"stages.{i}.depthwise.{j}.1.weight"]
    arrays |= {"dense/kernel": state["dense.weight"].T, "batchnorm0/mul": torch.ones(256)}
    arrays["batchnorm0/sub"] = state["dense.bias"]
    entries = [{"name": k, "shape": list(v.shape), "dtype": "float32"} for k, v in arrays.items()]
    manifest = [{"paths": ["m.bin"], "weights": entries}]
    (tmp_path / "m.json").write_text(json.dumps({"weightsManifest": manifest}))
    raw = b"".join(v.contiguous().numpy().tobytes() for v in arrays.values())
    (tmp_path / "m.bin").write_bytes(raw)
    again = convert.read(tmp_path / "m.json").networks["identity"]
    image = torch.rand(2, 3, 112, 112) * 2 - 1
    torch.testing.assert_close(again(image), net(image))
    (tmp_path / "m.bin").write_bytes(raw[:-7])
    with pytest.raises(WeightsError, match="beyond the end"):
        convert.read(tmp_path / "m.json")


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
@pytest.mark.parametrize("tokens", [1, 18])
def test_interfacegan(tmp_path, suffix, tokens, generator):
    direction = torch.nn.functional.normalize(torch.randn(1, tokens * 512), dim=1)
    path = tmp_path / f"age{suffix}"
    np.save(path, direction.numpy()) if suffix == ".npy" else torch.save(direction, path)
    net = convert.read(path).networks["directions"]
    assert torch.equal(net.directions, direction.reshape(1, tokens, 512))
    with pytest.raises(ValueError, match=f"{tokens} x 512 do not fit codes of 8 x 16"):
        net.check_fit(generator)


def test_ganspace(tmp_path):
    content = {"mean": torch.randn(1, 512), "comp": torch.randn(80, 1, 512), "std": torch.rand(80)}
    torch.save(content, tmp_path / "pca.pt")
    net = convert.read(tmp_path / "pca.pt").networks["directions"]
    assert torch.equal(net.directions, content["comp"])
    assert torch.equal(net.mean, content["mean"][0])
    assert torch.equal(net.std, content["std"])
    torch.save(content | {"std": torch.rand(79)}, tmp_path / "pca.pt")
    with pytest.raises(WeightsError, match="differ"):
        convert.read(tmp_path / "pca.pt")


@pytest.mark.parametrize("old", [False, True])
def test_names_of_files_do_not_matter(tmp_path, generator, old):
    torch.save(public(generator), tmp_path / "g.pkl", _use_new_zipfile_serialization=not old)
    again = convert.read(tmp_path / "g.pkl").networks["generator"]
    assert torch.equal(again(ws_of(generator)), generator(ws_of(generator)))
    np.save(tmp_path / "age.npy", np.ones((1, 512), np.float32) / 512**0.5)
    (tmp_path / "age.npy").rename(tmp_path / "smile.pt")
    assert cli.main(["convert", str(tmp_path / "smile.pt"), "--out", str(tmp_path / "d")]) == 0
    assert weights.load(tmp_path / "d" / "directions-smile").directions.shape == (1, 1, 512)


def converted(tmp_path, path, generator=None) -> int:
    """`stx convert` into a folder with a generator that takes 8 x 16, or with none."""
    if generator is not None:
        weights.save(generator, tmp_path / "data" / "generator", dtype=torch.float32)
    return cli.main(["convert", str(path), "--out", str(tmp_path / "data")])


def test_codes_of_other_tools_are_kept_as_inverted_ones(tmp_path, generator, capsys):
    """NVIDIA's W of one picture, e4e's W+ of several: the same folder that `stx invert` writes."""
    w, ws = 3 * torch.randn(1, 1, 16), 3 * torch.randn(3, 8, 16)
    np.savez(tmp_path / "projected_w.npz", w=w.numpy())
    torch.save(ws, tmp_path / "latents.pt")
    np.save(tmp_path / "one.npy", ws[0].numpy())
    assert converted(tmp_path, tmp_path / "projected_w.npz", generator) == 0
    assert "1 codes of pictures" in capsys.readouterr().out
    names, found = batch.load_codes(tmp_path / "data" / "codes-projected_w")
    assert names == ["projected_w"] and torch.equal(found, w.expand(1, 8, 16))
    assert converted(tmp_path, tmp_path / "latents.pt") == 0
    names, found = batch.load_codes(tmp_path / "data" / "codes-latents")
    assert names == ["latents-0000", "latents-0001", "latents-0002"] and torch.equal(found, ws)
    assert converted(tmp_path, tmp_path / "one.npy") == 0
    assert torch.equal(batch.load_codes(tmp_path / "data" / "codes-one")[1], ws[:1])
    capsys.readouterr()
    assert converted(tmp_path, tmp_path / "latents.pt") == 0
    assert "replaces those that were there" in capsys.readouterr().out


@pytest.mark.parametrize(("shape", "told"), [((2, 6, 16), "6 x 16 do not fit"), ((1, 1, 12), "8 x 12 do not fit")])
def test_codes_of_another_generator_are_told_with_both_shapes(tmp_path, generator, shape, told, capsys):
    torch.save(3 * torch.randn(shape), tmp_path / "latents.pt")
    assert converted(tmp_path, tmp_path / "latents.pt", generator) == 2
    error = capsys.readouterr().err
    assert told in error and "8 x 16" in error
    assert not (tmp_path / "data" / "codes-latents").exists()


def test_w_codes_need_their_generator(tmp_path, capsys):
    np.savez(tmp_path / "projected_w.npz", w=3 * np.random.randn(1, 512).astype(np.float32))
    assert converted(tmp_path, tmp_path / "projected_w.npz") == 2
    assert "need their generator's number of tokens" in capsys.readouterr().err


def test_a_network_that_is_replaced_is_told(tmp_path, generator, capsys):
    for name in ("first.pt", "second.pt"):
        torch.save(public(generator), tmp_path / name)
        assert converted(tmp_path, tmp_path / name) == 0
    told = capsys.readouterr().out
    assert "reading" in told and "replaces the one from first.pt" in told.splitlines()[-1]


def test_a_tuned_generator_of_pti_stands_beside_the_original(tmp_path, generator, nvidia, capsys):
    """PTI saves the network itself, in a torch file: it is read as what NVIDIA's pickles hold, and replaces nothing."""
    nvidia(tmp_path / "model_run_anna.pt", to_nvidia(generator), alone=True)
    assert converted(tmp_path, tmp_path / "model_run_anna.pt", generator) == 0
    again = weights.load(tmp_path / "data" / "tuned-model_run_anna")
    assert torch.equal(again(ws_of(generator)), generator(ws_of(generator)))
    out = tmp_path / "public.pt"
    words = ["export", str(tmp_path / "data"), "--to", "rosinality", "--generator", "tuned-model_run_anna"]
    assert cli.main([*words, "--out", str(out)]) == 0
    assert torch.equal(convert.read(out).networks["generator"](ws_of(generator)), generator(ws_of(generator)))


# -------------------------------------------------------------------------------------------------------------- safety


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


class Unlisted:
    """A harmless class of somebody else's."""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Files that must be refused, by name; the folder `owned` appears when one is executed."""
    monkeypatch.chdir(tmp_path)
    good = io.BytesIO()
    torch.save({"g_ema": {"w": torch.arange(7.0)}}, good)
    old = io.BytesIO()
    torch.save({"g_ema": {"w": torch.arange(7.0)}}, old, _use_new_zipfile_serialization=False)

    def torch_file(name, content, **kwargs):
        torch.save(content, tmp_path / name, **kwargs)

    def rezipped(name, change, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(io.BytesIO(good.getvalue())) as a, zipfile.ZipFile(tmp_path / name, "w", compression) as b:
            for member in a.namelist():
                b.writestr(member, change(member, a.read(member)))

    torch_file("evil.pt", {"g_ema": Evil()})
    torch_file("evil_old.pt", {"g_ema": Evil()}, _use_new_zipfile_serialization=False)
    torch_file("class.pt", {"g_ema": Unlisted()})
    torch_file("expanded.pt", {"g_ema": {"w": torch.zeros(1).expand(10**13)}})
    rezipped("terabytes.pt", lambda n, x: x.replace(b"K\x07", b"J\xff\xff\xff\x7f") if n.endswith("data.pkl") else x)
    rezipped("bomb.pt", lambda n, x: x + bytes(10**7) if n.endswith("data.pkl") else x, zipfile.ZIP_DEFLATED)
    rezipped("nested.pt", lambda n, x: pickle.dumps(Evil(), 2) if n.endswith("data.pkl") else x)
    huge = b"\x8a\x06" + (2**43).to_bytes(6, "little")
    (tmp_path / "terabytes_old.pt").write_bytes(old.getvalue().replace(b"K\x07", huge))
    (tmp_path / "half.pt").write_bytes(good.getvalue()[: len(good.getvalue()) // 2])
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"G_ema": Evil()}))
    (tmp_path / "class.pkl").write_bytes(pickle.dumps({"G_ema": Unlisted()}))
    (tmp_path / "getattr.pkl").write_bytes(pickle.dumps({"G_ema": getattr}))
    inner = torch.storage._load_from_bytes, (b"".join([(tmp_path / "evil_old.pt").read_bytes()]),)
    holder = type("Holder", (), {"__reduce__": lambda self: inner})
    (tmp_path / "inside.pkl").write_bytes(pickle.dumps({"G_ema": holder()}))
    (tmp_path / "half.pkl").write_bytes(pickle.dumps({"G_ema": np.ones(1000)})[:500])
    (tmp_path / "bytes.pkl").write_bytes(b"\x80\x04\x8e" + (2**50).to_bytes(8, "little") + b"abc.")
    (tmp_path / "array.pkl").write_bytes(
        pickle.dumps(np.zeros(7, np.uint8), 4).replace(b"K\x07\x85", b"J\xff\xff\xff\x7f\x85")
    )
    (tmp_path / "objects.pkl").write_bytes(pickle.dumps(np.array([{}, []], dtype=object)))
    np.save(tmp_path / "objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    return sorted(p for p in tmp_path.iterdir() if p.suffix in (".pt", ".pkl", ".npy"))


def test_hostile_and_damaged_files(hostile, tmp_path, capsys):
    assert len(hostile) == 20
    for path in hostile:
        with pytest.raises(WeightsError) as caught:
            convert.read(path)
        assert str(path) in str(caught.value), path
        assert "\n" not in str(caught.value), path
        assert cli.main(["convert", str(path), "--out", str(tmp_path / "out")]) == 2, path
        assert len(capsys.readouterr().err.splitlines()) == 1, path
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["evil.pt", "evil_old.pt", "class.pt", "evil.pkl", "class.pkl", "getattr.pkl"])
def test_what_was_asked_for_is_named(hostile, tmp_path, name):
    with pytest.raises(WeightsError, match=r"refused, it asks for [\w.]*(mkdir|Unlisted|getattr)"):
        convert.read(tmp_path / name)


# --------------------------------------------------------------------------------------------------------- command line


def test_convert_and_export(tmp_path, encoder, generator, capsys, monkeypatch):
    torch.save(official(encoder, generator, torch.ones(16)), tmp_path / "st.pt")
    assert cli.main(["convert", str(tmp_path / "st.pt"), "--out", str(tmp_path / "mine")]) == 0
    assert "Style Transformer (released)" in capsys.readouterr().out
    again = weights.load(tmp_path / "mine" / "style_transformer")
    assert again.config == encoder.config
    assert weights.read_config(tmp_path / "mine" / "generator")["notes"]["file"] == "st.pt"
    for form in ("official", "rosinality"):
        out = tmp_path / f"{form}.pt"
        assert cli.main(["export", str(tmp_path / "mine"), "--to", form, "--out", str(out)]) == 0
        back = convert.read(out).networks["generator"]
        ws = ws_of(generator)
        assert torch.equal(back(ws), generator(ws))
    first, second = (pickles.read_torch(tmp_path / name) for name in ("st.pt", "official.pt"))
    assert all(torch.equal(v, second["state_dict"][k]) for k, v in first["state_dict"].items())
    assert cli.main(["export", str(tmp_path / "nothing"), "--to", "official", "--out", str(tmp_path / "x.pt")]) == 2
    assert not (tmp_path / "x.pt").exists()
