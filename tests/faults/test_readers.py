"""Files that readers meet in the wild: hostile ones are refused in a line, at little cost; public ones are read."""

import io
import json
import pickle
import resource
import time
import zipfile

import numpy as np
import pytest
import torch

from stx import cli
from stx.baselines.directions import GANSpace
from stx.baselines.psp import PSP
from stx.checkpoints import convert, export, weights
from stx.files import pickles
from stx.files.errors import WeightsError
from stx.generator.gan import path_length_penalty
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Discriminator, Generator
from stx.stylegan2.ops import fir_kernel

SMALL = {"z_dim": 16, "n_mlp": 3, "channel_base": 128, "channel_max": 8}
BACKBONE = {"widths": (8, 12, 16), "units": (1, 2, 1)}
SECONDS, MEGABYTES = 5, 250


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(size=32, **SMALL).eval().requires_grad_(False)


def g_ema(net) -> dict:
    return {k: v for k, v in net.state_dict().items() if k != "latent_avg"}


# ------------------------------------------------------------------------------------------------------- hostile files


def text(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


def name(module: str, word: str) -> bytes:
    return text(module) + text(word) + b"\x93"


def number(n: int) -> bytes:
    return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)


def torch_file(values: torch.Tensor) -> bytes:
    inner = io.BytesIO()
    torch.save(values.storage(), inner, _use_new_zipfile_serialization=False)
    return inner.getvalue()


def storage(values: torch.Tensor) -> bytes:
    """A storage inside a pickle, as NVIDIA's have them."""
    raw = torch_file(values)
    return name("torch.storage", "_load_from_bytes") + b"B" + len(raw).to_bytes(4, "little") + raw + b"\x85R"


PROTO = b"\x80\x04"
TENSOR = name("torch._utils", "_rebuild_tensor_v2")
ARRAY = name("numpy.core.multiarray", "_reconstruct") + b")R"
DTYPE = name("numpy", "dtype") + text("f4") + b"\x85R"
MODULE = name("torch_utils.persistence", "_reconstruct_persistent_obj")
MODULE += b"}(" + text("type") + text("class") + text("class_name") + text("G") + text("state")


def shaped(shape: int, stride: int) -> bytes:
    return number(0) + number(shape) + b"\x85" + number(stride) + b"\x85\x89}tR"


def state_on_a_tensor(path):
    """BUILD on a tensor sets its size past what is there (440 bytes read the memory of the process)."""
    built = b"(h\x00" + number(0) + number(8) + number(512) + b"\x86" + number(512) + number(1) + b"\x86tb."
    path.write_bytes(PROTO + storage(torch.zeros(1)) + b"\x940" + TENSOR + b"(h\x00" + shaped(1, 1) + built)


def state_on_a_class(path):
    """BUILD on a class of the list with slots: setattr on it for the rest of the process."""
    slots = b"N}" + text("__init__") + b"N" + b"s\x86b."
    path.write_bytes(PROTO + name("dnnlib.tflib.network", "Network") + slots)


def state_on_a_parameter(path):
    """torch.load has this way round: Parameter.__setstate__."""
    tensor = TENSOR + b"(h\x00" + shaped(1, 1)
    parameter = name("torch._utils", "_rebuild_parameter") + tensor + b"\x88}\x87R"
    path.write_bytes(PROTO + storage(torch.zeros(1)) + b"\x940" + parameter + b"(}tb.")


def call_of_a_tensor(path):
    path.write_bytes(PROTO + storage(torch.zeros(1)) + b")R.")


def list_in_itself(path):
    inner: list = []
    inner.append(inner)
    torch.save({"g_ema": inner}, path)


def dict_in_itself(path):
    inner: dict = {}
    inner["state_dict"] = inner
    torch.save(inner, path)


def laughs(path):
    inner: list = []
    for _ in range(12):
        inner = [inner] * 10
    torch.save({"g_ema": inner}, path)


def laughs_in_options(path):
    inner: list = []
    for _ in range(12):
        inner = [inner] * 10
    torch.save(encoder_file(opts={"a": inner}), path)


def options_in_themselves(path):
    opts: dict = {}
    opts["opts"] = opts
    torch.save(encoder_file(opts=opts), path)


def encoder_file(**more) -> dict:
    torch.manual_seed(0)
    net, generator = StyleTransformer(num_ws=8, n_mlp=3, **BACKBONE), Generator(size=32, **SMALL)
    state = {k: v for k, v in net.state_dict().items() if k.startswith("encoder.")}
    state |= {f"decoder.{k}": v for k, v in g_ema(generator).items()}
    return {"state_dict": state, "latent_avg": torch.arange(16.0)} | more


def deep_key(path):
    path.write_bytes(PROTO + b"})" + b"\x85" * 2_000_000 + b"Ns.")


def deep_member_of_a_set(path):
    path.write_bytes(PROTO + b"\x8f()" + b"\x85" * 900_000 + b"\x90.")


def colliding_keys(path):
    keys = b"".join(b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little") + b"N" for i in range(60_000))
    path.write_bytes(PROTO + b"}(" + keys + b"u.")


def module_in_itself(path):
    start = MODULE + b"}\x94(" + text("_modules") + b"}\x94uu\x85R\x940"
    path.write_bytes(PROTO + start + b"h\x01" + text("a") + b"h\x02s0}" + text("G_ema") + b"h\x02s.")


def modules_shared(path):
    raw = PROTO
    for depth in range(40):
        raw += MODULE + b"}(" + text("_modules") + b"}"
        if depth:
            raw += b"(" + text("a") + b"h" + bytes([depth - 1]) + text("b") + b"h" + bytes([depth - 1]) + b"u"
        raw += b"uu\x85R\x940"
    path.write_bytes(raw + b"}" + text("G_ema") + b"h" + bytes([39]) + b"s.")


def modules_deep(path):
    raw = PROTO
    for depth in range(5000):
        raw += MODULE + b"}(" + text("_modules") + b"}"
        raw += text("a") + b"j" + (depth - 1).to_bytes(4, "little") + b"s" if depth else b""
        raw += b"uu\x85R\x940"
    path.write_bytes(raw + b"}" + text("G_ema") + b"j" + (4999).to_bytes(4, "little") + b"s.")


def tf_components_in_themselves(path):
    net = name("dnnlib.tflib.network", "Network") + b")\x81\x94}\x94(" + text("variables") + b"]" + text("components")
    path.write_bytes(PROTO + net + b"}" + text("a") + b"h\x00s" + b"ub\x85.")


def clones(path):
    """One storage of 4 MB under 400 names."""
    one = torch.zeros(1 << 20)
    torch.save({"g_ema": {f"w{i}": one.view(1 << 10, 1 << 10) for i in range(400)}}, path)


def half_under_many_names(path):
    one = torch.zeros(1 << 21, dtype=torch.float16)
    torch.save({"g_ema": dict.fromkeys([f"w{i}" for i in range(400)], one)}, path)


def clones_in_a_pickle(path):
    raw = PROTO + storage(torch.zeros(1 << 20)) + b"\x940]("
    path.write_bytes(raw + (TENSOR + b"(h\x00" + shaped(1 << 20, 1)) * 400 + b"e.")


def same_storage_read_again(path):
    raw = torch_file(torch.zeros(1 << 20))
    load = name("torch.storage", "_load_from_bytes") + b"\x940B" + len(raw).to_bytes(4, "little") + raw + b"\x940("
    path.write_bytes(PROTO + load + b"h\x00h\x01\x85R" * 400 + b"t.")


def array_made_again(path):
    """One string of bytes of 8 MB as 400 arrays."""
    raw = b"\x00" * (1 << 23)
    start = DTYPE + b"\x940B" + len(raw).to_bytes(4, "little") + raw + b"\x940("
    one = ARRAY + b"(K\x01" + number(1 << 21) + b"\x85h\x00\x89h\x01tb"
    path.write_bytes(PROTO + start + one * 400 + b"t.")


def text_encoded_again(path):
    long = b"\x8d" + (1 << 22).to_bytes(8, "little") + b"a" * (1 << 22) + b"\x940"
    path.write_bytes(
        PROTO + long + b"(" + (name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R") * 400 + b"t."
    )


def bytearray_of_a_number(path):
    path.write_bytes(PROTO + name("builtins", "bytearray") + number(10**12) + b"\x85R.")


def bytearray_claimed(path):
    path.write_bytes(b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc.")


def zero_stride(path):
    torch.save({"g_ema": {"w": torch.zeros(1).expand(10**13)}}, path)


def zero_stride_in_a_pickle(path):
    path.write_bytes(
        PROTO + storage(torch.zeros(1)) + b"\x940}" + text("G_ema") + TENSOR + b"(h\x00" + shaped(10**13, 0) + b"s."
    )


def no_numbers_of_a_huge_shape(path):
    state = {"style.1.weight": torch.zeros(0, 1).expand(0, 10**13), "conv1.conv.weight": torch.zeros(1, 8, 8, 3, 3)}
    state |= {"convs.0.conv.weight": torch.zeros(1, 8, 8, 3, 3)}
    torch.save({"g_ema": state | {"input.input": torch.zeros(0), "to_rgbs.0.bias": torch.zeros(0)}}, path)


def numbers_in_names(path):
    state = {"style.1.weight": torch.zeros(1, 1), "conv1.conv.weight": torch.zeros(1, 1), "input.input": torch.zeros(1)}
    torch.save({"g_ema": state | {"to_rgbs.99999999999.bias": torch.zeros(1)}}, path)


def many_doublings(path):
    state = {"style.1.weight": torch.zeros(1, 1), "conv1.conv.weight": torch.zeros(1, 1), "input.input": torch.zeros(1)}
    state |= {f"to_rgbs.{i}.bias": torch.zeros(1) for i in range(60)}
    torch.save({"g_ema": state | {f"convs.{i}.conv.weight": torch.zeros(1, 1) for i in range(120)}}, path)


def overlapping_members(path):
    """Members of a zip file that are the same bytes: 200 storages of 1 MB in a file of 1 MB."""
    torch.save({"g_ema": {f"w{i}": torch.zeros(1 << 18) for i in range(2)}}, path)
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    first, second = (next(i for n, i in infos.items() if n.endswith(f"data/{k}")) for k in "01")
    at = raw.rindex(second.filename.encode()) - 4  # the offset in the directory
    path.write_bytes(raw[:at] + first.header_offset.to_bytes(4, "little") + raw[at + 4 :])


def zip_bomb(path):
    torch.save({"g_ema": {"w": torch.zeros(1 << 26)}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, raw in members.items():
            archive.writestr(member, raw)


def zip_bomb_of_bzip2(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 28))


def zip_of_a_million_members(path):
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(50_000):
            archive.writestr(f"archive/{'x' * 200}{i}", b"")


def npz_bomb(path):
    np.savez_compressed(path.with_suffix(".npz"), lat_comp=np.zeros(1 << 27, np.float32))
    path.with_suffix(".npz").rename(path)


def npz_of_objects(path):
    np.savez(path.with_suffix(".npz"), lat_comp=np.array([{}], dtype=object))
    path.with_suffix(".npz").rename(path)


def npy_that_claims(path):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
        file.write(b"\x00" * 64)


def npy_of_a_dict(path):
    with path.open("wb") as file:
        np.save(file, {"w": 1})


def npy_with_a_deep_header(path):
    head = "(" * 9000 + ")" * 9000
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode())


def tfjs(path, weights_, paths=("w.bin",), raw=b"\x00" * 16):
    path.write_text(json.dumps({"weightsManifest": [{"paths": list(paths), "weights": weights_}]}))
    (path.parent / "w.bin").write_bytes(raw)


def tfjs_that_claims(path):
    tfjs(path, [{"name": "a", "shape": [10**13], "dtype": "float32"}])


def tfjs_negative(path):
    tfjs(path, [{"name": "a", "shape": [-1], "dtype": "float32"}])


def tfjs_file_again(path):
    tfjs(path, [], paths=["w.bin"] * 1000, raw=bytes(1 << 22))


def tfjs_other_folder(path):
    tfjs(path, [{"name": "a", "shape": [1], "dtype": "float32"}], paths=["../.."])


def tfjs_device(path):
    tfjs(path, [], paths=["zero"])
    (path.parent / "zero").symlink_to("/dev/zero")


def json_deep(path):
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def json_large(path):
    path.write_text("{" + " " * (1 << 25) + "}")


def lines_in_names(path):
    torch.save({"state_dict": {"a\nstx: all is well\x1b[2J" + "x" * 100_000: torch.zeros(1)}}, path)


def lines_in_globals(path):
    path.write_bytes(PROTO + b"\x8c\x05os\n\nx" + text("system") + b"\x93.")


def truncated_storage(path):
    torch.save({"g_ema": {"w": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


def sparse_tensor(path):
    torch.save({"g_ema": {"w": torch.zeros(3, 3).to_sparse()}}, path)


def integers_for_weights(path):
    net = Generator(size=8, **SMALL)
    torch.save({"g_ema": g_ema(net) | {"conv1.activate.bias": torch.zeros(8, dtype=torch.int64)}}, path)


def torchscript(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


HOSTILE = [
    state_on_a_tensor,
    state_on_a_class,
    state_on_a_parameter,
    call_of_a_tensor,
    list_in_itself,
    dict_in_itself,
    laughs,
    laughs_in_options,
    options_in_themselves,
    deep_key,
    deep_member_of_a_set,
    colliding_keys,
    module_in_itself,
    modules_shared,
    modules_deep,
    tf_components_in_themselves,
    clones,
    half_under_many_names,
    clones_in_a_pickle,
    same_storage_read_again,
    array_made_again,
    text_encoded_again,
    bytearray_of_a_number,
    bytearray_claimed,
    zero_stride,
    zero_stride_in_a_pickle,
    no_numbers_of_a_huge_shape,
    numbers_in_names,
    many_doublings,
    overlapping_members,
    zip_bomb,
    zip_bomb_of_bzip2,
    zip_of_a_million_members,
    npz_bomb,
    npz_of_objects,
    npy_that_claims,
    npy_of_a_dict,
    npy_with_a_deep_header,
    tfjs_that_claims,
    tfjs_negative,
    tfjs_file_again,
    tfjs_other_folder,
    tfjs_device,
    json_deep,
    json_large,
    lines_in_names,
    lines_in_globals,
    truncated_storage,
    sparse_tensor,
    integers_for_weights,
    torchscript,
]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_refused_in_a_line_at_little_cost(make, tmp_path, capsys):
    """A hostile file is refused in one line with exit code 2, in under 5 s and 250 MB, and nothing is written."""
    path = tmp_path / "x.pt"
    make(path)
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert cli.main(["convert", str(path), "--out", str(tmp_path / "out")]) == 2
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEGABYTES << 10
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert told.isprintable() or told[:-1].isprintable()
    assert len(told) < 1000
    assert str(path) in told
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------------------- public files


def read(path, content):
    torch.save(content, path)
    return convert.read(path)


def error(path, content=None) -> str:
    if content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError) as caught:
        convert.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["conv1.conv.weight", "to_rgb1.bias", "latent_avg"])
def test_weights_that_are_not_finite(tmp_path, generator, name, value):
    """A network with a number that is not finite, and an average code with one, are told with the tensor's name."""
    content = {"g_ema": dict(g_ema(generator)), "latent_avg": generator.latent_avg.clone()}
    spoilt = (content if name == "latent_avg" else content["g_ema"])[name].clone()
    spoilt.view(-1)[-1] = value
    (content if name == "latent_avg" else content["g_ema"])[name] = spoilt
    assert f"{name} has numbers that are not finite" in error(tmp_path / "g.pt", content)


@pytest.mark.parametrize("form", ["names", "names and batches", "tuple", "names in two folders"])
def test_codes_by_the_names_of_pictures(tmp_path, form):
    """Codes by the names of pictures, and in tuples, are read, each once."""
    one, two = torch.randn(2, 18, 512)
    content = {
        "names": {"anna.jpg": one, "ben.jpg": two},
        "names and batches": {"anna": one[None], "ben": two[None]},
        "tuple": (one, two),
        "names in two folders": {"x/anna.png": {"latent": one}, "y/anna.png": {"latent": two}},
    }[form]
    found = read(tmp_path / "w.pt", content).codes
    assert len(found) == 2 and torch.equal(torch.stack([*found.values()]).reshape(2, 18, 512), torch.stack([one, two]))


def test_noise_maps_may_be_absent(tmp_path, generator):
    """rosinality's files without noise maps are read."""
    state = {k: v for k, v in g_ema(generator).items() if not k.startswith("noises.")}
    found, again = (read(tmp_path / "g.pt", {"g_ema": state}) for _ in range(2))
    assert "anew" in found.notes["noise maps"]
    maps = found.networks["generator"].noises
    assert 0.9 < torch.cat([m.flatten() for m in maps.buffers()]).std() < 1.1
    assert all(
        torch.equal(a, b) for a, b in zip(maps.buffers(), again.networks["generator"].noises.buffers(), strict=True)
    )
    assert "6 missing" in error(tmp_path / "g.pt", {"g_ema": state | {"noises.noise_0": torch.zeros(1, 1, 4, 4)}})


def test_low_pass_kernels_may_be_absent(tmp_path, generator):
    """rosinality's files without low-pass kernels are read."""
    state = {k: v for k, v in g_ema(generator).items() if not k.endswith(".kernel")}
    found = read(tmp_path / "g.pt", {"g_ema": state})
    assert "anew" in found.notes["low-pass kernels"]
    ws = torch.randn(2, 8, 16)
    assert torch.equal(found.networks["generator"](ws), generator(ws))
    net = Discriminator(size=32, channel_base=128, channel_max=8)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith(".kernel")}
    again = read(tmp_path / "d.pt", {"d": state}).networks["discriminator"]
    assert torch.equal(again.state_dict()["convs.1.skip.0.kernel"], fir_kernel())


@pytest.mark.parametrize("form", ["g", "orig_mod", "module", "decoder", "state_dict"])
def test_generator_in_other_forms(tmp_path, generator, form):
    """Generators in further public forms are read to the same pictures."""
    state = g_ema(generator)
    content = {
        "g": {"g": state, "g_optim": {}},
        "orig_mod": {"g_ema": {f"_orig_mod.{k}": v for k, v in state.items()}},
        "module": {"g_ema": {f"module.{k}": v for k, v in state.items()}},
        "decoder": {"state_dict": {f"decoder.{k}": v for k, v in state.items()}, "latent_avg": torch.ones(16)},
        "state_dict": {"state_dict": state},
    }[form]
    found, ws = read(tmp_path / "g.pt", content), torch.randn(2, 8, 16)
    assert torch.equal(found.networks["generator"](ws), generator(ws))
    assert form != "g" or "g_ema" in found.notes["weights"]
    assert form != "decoder" or found.networks["generator"].latent_avg.tolist() == [1.0] * 16


@pytest.mark.parametrize("bare", [False, True])
def test_lone_discriminator(tmp_path, bare):
    """A lone discriminator is read."""
    net, image = Discriminator(size=32, channel_base=128, channel_max=8).eval(), torch.rand(2, 3, 32, 32)
    found = read(tmp_path / "d.pt", net.state_dict() if bare else {"d": net.state_dict()})
    assert list(found.networks) == ["discriminator"]
    assert torch.equal(found.networks["discriminator"](image), net(image))


def test_numbers_pickled_by_numpy_1(tmp_path, generator):
    """Numbers that numpy 1 pickled are read."""
    content = {"g_ema": g_ema(generator), "latent_avg": generator.latent_avg.numpy(), "iter": np.float64(3)}
    torch.save(content, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as a, zipfile.ZipFile(tmp_path / "old.pt", "w") as b:
        for member in a.namelist():
            b.writestr(member, a.read(member).replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core" in (tmp_path / "old.pt").read_bytes()
    assert pickles.read_torch(tmp_path / "old.pt")["iter"] == 3
    for name_ in ("new.pt", "old.pt"):
        found = convert.read(tmp_path / name_).networks["generator"]
        assert torch.equal(found.latent_avg, generator.latent_avg)


SHAPES = [(25, 18, 512), (1, 18, 512), (18, 512), (25, 1, 512), (3, 14, 512), (1, 512), (9216,)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", ["pt", "npy", "npz", "pkl", "projector", "list"])
def test_codes_are_no_direction(tmp_path, shape, form):
    """Files of codes are read as codes and never taken for a direction."""
    codes, path = torch.randn(shape), tmp_path / "latents"
    if form == "npy":
        np.save(path := tmp_path / "latents.npy", codes.numpy())
    elif form == "npz":
        np.savez(path := tmp_path / "projected_w.npz", w=codes.numpy())
    elif form == "pkl":
        path.write_bytes(pickle.dumps(codes.numpy()))
    else:
        torch.save({"pt": codes, "projector": {"a.png": {"latent": codes}}, "list": [codes, codes]}[form], path)
    found = convert.read(path)
    assert found.kind == "codes of pictures" and not found.networks
    assert [tuple(given.shape) for given in found.codes.values()] == [shape] * (2 if form == "list" else 1)


@pytest.mark.parametrize("shape", [(512,), (1, 512), (3, 1, 512), (1, 18, 512), (2, 9216)], ids=str)
def test_directions_have_unit_length(tmp_path, shape):
    """Files of directions are read."""
    rows = torch.randn(shape if len(shape) > 1 else (1, *shape)).double()
    rows = rows / rows.flatten(1).norm(dim=1).reshape(-1, *[1] * (rows.ndim - 1))
    found = read(tmp_path / "age.pt", rows.reshape(shape)).networks["directions"]
    assert torch.allclose(found.directions.flatten().double(), rows.flatten())
    assert found.directions.shape[2] == 512


BEGIN = {
    "a web page": b"<!DOCTYPE html><html>quota exceeded</html>",
    "page": b"\n <HTML><head>",
    "git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "empty file": b"",
    "compressed archive": b"\x1f\x8b\x08\x00",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "a picture": b"\x89PNG\r\n",
    "safetensors": b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":{}}',
}


@pytest.mark.parametrize("words", BEGIN)
def test_what_a_file_is_is_told_in_words(tmp_path, words):
    """What is saved in place of weights is told in words."""
    path = tmp_path / "g.pt"
    path.write_bytes(BEGIN[words])
    assert words in error(path)


def test_ganspace_npz(tmp_path):
    """GANSpace's files are read, and an array too many is told."""
    comp = torch.nn.functional.normalize(torch.randn(80, 1, 512), dim=2).numpy()
    arrays = {f"{space}_comp": comp for space in ("act", "lat")} | {"var_ratio": np.ones(80, np.float32)}
    arrays |= {f"{space}_mean": np.ones((1, 512), np.float32) for space in ("act", "lat")}
    arrays |= {"act_stdev": np.ones(80), "lat_stdev": np.arange(80.0), "random_stdevs": np.ones(80)}
    np.savez_compressed(tmp_path / "pca.npz", **arrays)
    net = convert.read(tmp_path / "pca.npz").networks["directions"]
    assert np.array_equal(net.directions.numpy(), comp)
    assert net.std.tolist() == list(range(80))
    np.savez_compressed(tmp_path / "pca.npz", surprise=np.ones(1), **arrays)
    assert "1 unexpected (surprise)" in error(tmp_path / "pca.npz")


# ------------------------------------------------------------------------------------------ numbers of the public code


def test_path_length_penalty_has_the_gradient_of_the_public_code():
    """The path-length penalty has the public code's gradient."""
    weight = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    penalty, mean = path_length_penalty(weight, weight.mean(), 0.5)
    moved = 0.5 + 0.01 * (7 / 3 - 0.5)
    assert mean.item() == pytest.approx(moved)
    assert not mean.requires_grad
    through = 2 * (7 / 3 - moved) * 0.01 / 3  # what the moving mean takes from each
    penalty.backward()
    expected = [2 / 3 * (length - moved) - through for length in (1.0, 2.0, 4.0)]
    assert weight.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_training_uses_that_penalty(monkeypatch):
    """The training uses that penalty."""
    from stx.generator import gan

    seen = []
    monkeypatch.setattr(gan, "path_length_penalty", lambda *a: seen.append(a) or path_length_penalty(*a))
    net = Generator(size=8, **SMALL)
    ws = torch.randn(2, net.num_ws, 16, requires_grad=True)

    class Training:
        batch, generator, pl_mean, pl_weight, pl_every = 4, net, 0.0, 2.0, 4
        g_optimizer = torch.optim.SGD(net.parameters(), 0.0)
        sample_ws = staticmethod(lambda n: ws)

    training = Training()
    logged = next(v for v in vars(gan).values() if hasattr(v, "_regularise_generator"))._regularise_generator(training)
    (lengths, mean, before) = seen[0]
    assert before == 0
    assert mean.requires_grad
    assert mean.item() == pytest.approx(lengths.mean().item(), rel=1e-6)
    assert training.pl_mean == pytest.approx(0.01 * logged["path_length"], rel=1e-5)


@pytest.mark.parametrize("opts", [{}, {"start_from_latent_avg": True}, {"start_from_latent_avg": False}])
def test_average_is_added_as_the_options_say(tmp_path, opts):
    """The average code is added as a file's options say."""
    average = torch.arange(16.0)
    found = read(tmp_path / "st.pt", encoder_file(opts=opts))
    added = 0 if opts.get("start_from_latent_avg") is False else 1
    assert torch.equal(found.networks["style_transformer"].latent_avg, (added * average).expand(8, 16))
    assert torch.equal(found.networks["generator"].latent_avg, average)
    export.write(found.networks, "official", tmp_path / "back.pt", found.notes)
    back = pickles.read_torch(tmp_path / "back.pt")
    assert torch.equal(back["latent_avg"].expand(8, 16), average.expand(8, 16))
    assert back["opts"]["start_from_latent_avg"] is bool(added)


@pytest.mark.parametrize("head", ["W", "pyramid"])
@pytest.mark.parametrize("learn_in_w", [False, True])
def test_learn_in_w_repeats_one_row_of_the_average(tmp_path, head, learn_in_w):
    """`learn_in_w` of a file repeats one row of the average."""
    torch.manual_seed(0)
    net, generator = PSP(num_ws=8, head=head, input_side=32, **BACKBONE), Generator(size=32, **SMALL)
    state = {f"encoder.{k.removeprefix('backbone.')}": v for k, v in net.state_dict().items() if k != "latent_avg"}
    state |= {f"decoder.{k}": v for k, v in g_ema(generator).items()}
    average = torch.randn(8, 16)
    opts = {"learn_in_w": learn_in_w, "start_from_latent_avg": True}
    found = read(tmp_path / "psp.pt", {"state_dict": state, "opts": opts, "latent_avg": average}).networks["psp"]
    assert torch.equal(found.latent_avg, average[:1].expand(8, 16) if learn_in_w else average)


def test_incremental_ganspace_is_the_public_codes():
    """Incremental GANSpace is the public code's."""
    from sklearn.decomposition import IncrementalPCA

    w = (np.random.RandomState(0).randn(5000, 6) * [5, 3, 1, 0.1, 0.1, 0.1]).astype(np.float64)
    found, exact = GANSpace(components=3, incremental=True).fit(w), GANSpace(components=3).fit(w[:4000])
    public = IncrementalPCA(3)
    for start in (0, 2000):  # the last 1,000 do not fill a batch
        public.partial_fit(w[start : start + 2000])
    assert np.array_equal(found.directions_, public.components_)
    assert np.array_equal(found.std_, np.sqrt(public.explained_variance_))
    assert np.abs((found.directions_ * exact.directions_).sum(1)).min() > 0.999
    assert not np.array_equal(found.directions_, exact.directions_)
    fresh = np.random.RandomState(1).randn(100, 6)
    assert found.lat_stdev(fresh) == pytest.approx(np.std(fresh @ public.components_.T, axis=0))
    assert GANSpace(components=3, incremental=True).fit(w[:50]).mean_ == pytest.approx(w[:50].mean(0))


def test_directions_are_checked_against_the_generator(tmp_path, generator, capsys):
    """Directions are checked against the generator beside which they are put."""
    weights.save(generator, tmp_path / "d" / "generator")
    torch.save(torch.nn.functional.normalize(torch.randn(1, 512), dim=1), tmp_path / "age.pt")
    assert cli.main(["convert", str(tmp_path / "age.pt"), "--out", str(tmp_path / "d")]) == 2
    assert "1 x 512 do not fit codes of 8 x 16" in capsys.readouterr().err
    assert not (tmp_path / "d" / "directions-age").exists()
    torch.save(torch.nn.functional.normalize(torch.randn(1, 16), dim=1), tmp_path / "age.pt")
    assert cli.main(["convert", str(tmp_path / "age.pt"), "--out", str(tmp_path / "d")]) == 0
