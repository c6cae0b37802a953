"""What a notebook of a user hands to the package by mistake: other types, shapes and numbers than are meant."""

import numpy as np
import pytest
import torch
from PIL import Image

import stx
from stx.baselines.registry import add_own
from stx.checkpoints import weights
from stx.detail.kept import Detail, Inversion
from stx.domains import avatars, images
from stx.files.errors import InputError, StxError, WeightsError
from stx.perception.attribute_classifier import AttributeClassifier

pytestmark = pytest.mark.usefixtures("unchecked")
PERSON = avatars.draw(next(avatars.sample("test")))


def cases(names, table):
    """A table of cases by what they are called."""
    return pytest.mark.parametrize(names, table.values(), ids=table)


def told(call) -> str:
    """What is said of an error of ours: one line; any other error ends the test."""
    with pytest.raises(StxError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@cases(
    ("given", "named"),
    {
        "nothing": (None, "NoneType"),
        "a number": (3, "int"),
        "the bytes of a file": (b"\xff\xd8", "bytes"),
        "a list with nothing in it": ([], "no pictures"),
        "a list in a list": ([[PERSON]], "list"),
        "floats": (PERSON / 255, r"float64 (64, 64, 3)"),
        "channels first": (PERSON.transpose(2, 0, 1), "uint8 (3, 64, 64)"),
        "grey": (PERSON[..., 0], "uint8 (64, 64)"),
        "without pixels": (PERSON[:0], "uint8 (0, 64, 3)"),
        "a tensor of 0 to 255": (torch.full((1, 3, 64, 64), 255.0), "[-1, 1]"),
        "a tensor without a batch": (torch.zeros(3, 64, 64), "(3, 64, 64)"),
        "codes": (torch.zeros(1, 10, 256), "(1, 10, 256)"),
    },
)
def test_what_is_no_picture(pipe, given, named):
    """What is no picture is told with its type or shape, and what is one."""
    for take in (pipe.images, pipe.invert, pipe.invert_detail):
        assert named in told(lambda take=take: take(given))


@cases(
    ("given", "named"),
    {
        "nothing": (None, "NoneType"),
        "a path": ("o/codes-00000.safetensors", "str"),
        "a list of tensors": ([torch.zeros(10, 256)] * 2, "list"),
        "complex": (torch.zeros(1, 10, 256, dtype=torch.complex64), "[batch, num_ws, w_dim]"),
        "one code": (torch.zeros(10, 256), "(10, 256)"),
        "of a 1024-pixel generator": (torch.zeros(1, 18, 512), "(1, 18, 512)"),
        "NaN": (torch.full((1, 10, 256), torch.nan), "not finite"),
        "a dict of nothing": ({}, "conv1"),
        "a file of codes": ({"ws": torch.zeros(1, 10, 256)}, "'ws'"),
        "layers of other sizes": ("conv1", "'conv1'"),
    },
)
def test_what_are_no_codes(pipe, given, named):
    """What are no codes is told before it is drawn, drawn as the encoder sees it, edited, or edited like."""
    ws = pipe.sample(1)
    if given == "conv1":
        given = pipe.generator.styles(ws) | {"conv1": torch.zeros(1, 3)}
    for take in (pipe.synthesize, pipe.reconstruct, lambda x: pipe.edit(x, add="Bald")):
        assert named in told(lambda take=take: take(given))
    if given is not None:
        told(lambda: pipe.edit(ws, add="Bald", like=given))


@cases(
    ("options", "named"),
    {
        "a number for a name": ({"add": [3]}, "'3'"),
        "a strength in words": ({"strength": "big"}, "strength 'big'"),
        "a strength for each code": ({"strength": [1, 2]}, "strength [1, 2]"),
        "a probability in words": ({"until": "x"}, "until 'x'"),
        "one token": ({"tokens": 3}, "tokens 3"),
        "tokens as on the command line": ({"tokens": "0-5"}, "tokens 0-5"),
        "three tokens": ({"tokens": (1, 2, 3)}, "(1, 2, 3)"),
        "two references": ({"like": torch.zeros(2, 10, 256)}, "2 codes"),
        "a reference of nothing": ({"add": [], "remove": "Bald", "like": torch.zeros(1, 10, 256)}, "like"),
        "a picture for a reference": ({"like": Image.fromarray(PERSON)}, "Image"),
    },
)
def test_odd_options_of_an_edit(pipe, options, named):
    """An option of an edit that is of another type is told with what was given."""
    assert named in told(lambda: pipe.edit(pipe.sample(2), **({"add": "Bald"} | options)))


def test_no_codes_are_edited_to_none(pipe):
    """Codes of no picture, as a mask leaves them, are edited and drawn as such; arrays and lists are codes too."""
    none = pipe.edit(pipe.sample(2)[:0], add="Bald", remove=None)
    assert none.shape == (0, 10, 256) and pipe.synthesize(none).shape == (0, 3, 64, 64)
    ws = pipe.sample(1)
    for same in (ws.numpy(), ws.double(), ws.tolist()):
        assert torch.equal(pipe.synthesize(same), pipe.synthesize(ws))
    tokens = [pipe.edit(ws, add="sefa:0", tokens=pair) for pair in ((1, 3), np.array([1, 3]))]
    assert torch.equal(*tokens)


@cases(
    ("call", "named"),
    {
        "no domain": (lambda: stx.load(None), "'None'"),
        "a number for a domain": (lambda: stx.load(3), "'3'"),
        "no encoder": (lambda: stx.load(encoder=None), "None/config.json"),
        "no generator": (lambda: stx.load(generator=None), "None/config.json"),
        "no device": (lambda: stx.load(device=None), "'None'"),
        "a number for a folder": (lambda: stx.load(folder=3), "3/generator/config.json"),
    },
)
def test_what_cannot_be_loaded(call, named):
    """None and numbers in place of names are told as names that do not exist."""
    assert named in told(call)


def test_an_inversion_is_saved_into_a_new_folder(pipe, tmp_path):
    """The folder of a file that is saved is made, as those of pictures are."""
    pipe.invert_detail(PERSON).save(tmp_path / "new" / "deep" / "x.safetensors")
    assert len(pipe.load_inversion(tmp_path / "new" / "deep" / "x.safetensors")) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6], ids=["NaN", "infinite", "too large for float16"])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, number):
    """A network with a number that is not finite, or not in float16, is not written over the one that is there."""
    net = AttributeClassifier(size=16, attributes=("Hat",), widths=(4, 8, 12), units=(1, 1, 2))
    weights.save(net, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = number
    with pytest.raises(WeightsError, match="not finite"):
        weights.save(net, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_notes_that_are_not_json_are_not_saved(tmp_path):
    """Notes that JSON does not have are told before the former weights go, whose record would not fit the new ones."""
    net = AttributeClassifier(size=16, attributes=("Hat",), widths=(4, 8, 12), units=(1, 1, 2))
    weights.save(net, tmp_path)
    torch.nn.init.zeros_(next(net.parameters()))
    assert "not JSON" in told(lambda: weights.save(net, tmp_path, notes={"classes": {1, 2}}))
    assert next(weights.load(tmp_path).parameters()).any()


@cases(
    ("code", "named"),
    {
        "syntax": ("def f(:\n", "SyntaxError"),
        "an error": ("x = 1\nraise RuntimeError('boom')\n", "RuntimeError: boom; line 2"),
        "no such module": ("import nothing_there\n", "line 1"),
        "an end": ("import sys\nsys.exit(0)\n", "SystemExit"),
        "no text": ("\0", "null bytes"),
    },
)
def test_own_files_that_fail(tmp_path, code, named):
    """A Python file of one's own that fails, or ends the program, is told with the line in which it does."""
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(InputError, match=r"mine\.py: does not run") as error:
        add_own(tmp_path / "mine.py")
    assert named in str(error.value)


@cases(
    ("given", "named"),
    {
        "a word for a count": ({"count": "x"}, "count 'x': expected a whole number"),
        "nothing for a count": ({"count": None}, "count None: expected a whole number"),
        "half a code": ({"count": 1.5}, "count 1.5: expected a whole number"),
        "no codes": ({"count": 0}, "count 0: expected at least 1"),
        "less than none": ({"count": -3}, "count -3: expected at least 1"),
        "more than can be": ({"count": 10**30}, "1e+30 is too many"),
        "a word for a seed": ({"count": 1, "seed": "x"}, "seed 'x': expected a whole number"),
        "a word for psi": ({"count": 1, "psi": "x"}, "psi 'x': expected a number"),
    },
)
def test_what_cannot_be_sampled(pipe, given, named):
    assert named in told(lambda: pipe.sample(**given))


def test_numbers_of_numpy_are_numbers(pipe):
    assert torch.equal(pipe.sample(np.int64(2), seed=np.int32(1), psi=np.float32(1)), pipe.sample(2, seed=1))


@cases(
    ("given", "named"),
    {
        "floats": (PERSON / 255, "float64 (64, 64, 3)"),
        "a picture of the pipeline": (images.to_tensor(PERSON), "float32 (3, 64, 64)"),
        "several": (PERSON[None], "uint8 (1, 64, 64, 3)"),
        "without pixels": (PERSON[:0], "uint8 (0, 64, 3)"),
        "of PIL": (Image.fromarray(PERSON), "of Image"),
        "nothing": (None, "NoneType"),
    },
)
def test_what_cannot_be_saved_as_a_picture(tmp_path, given, named):
    """What is no picture of 0 to 255 is told with its type, and no file is begun."""
    assert named in told(lambda: images.save_image(given, tmp_path / "new" / "a.png"))
    assert not list(tmp_path.iterdir())


@cases(
    "call",
    {
        "floats": lambda: images.to_tensor(PERSON / 255),
        "channels first": lambda: images.to_tensor(PERSON.transpose(2, 0, 1)),
        "NaN": lambda: images.to_uint8(torch.full((1, 3, 4, 4), torch.nan)),
        "a file without pixels": lambda: images.to_rgb(Image.new("RGB", (0, 5))),
    },
)
def test_other_pixels_become_no_picture(call):
    """Pixels of another range or order, or of no number, are told: they would give another picture, or a black one."""
    told(call)


def test_codes_of_which_no_picture_comes(pipe):
    """Finite codes that are too large to be drawn, and detail that is not finite, are told, not drawn black."""
    ws = pipe.sample(1)
    kept = Inversion(ws * torch.nan, {}, "codes", Detail(side=64))
    for codes in (torch.full_like(ws, 3e38), kept):
        assert "no picture comes of them" in told(lambda codes=codes: pipe.synthesize(codes))


@cases(
    ("call", "named"),
    {
        "noise": (lambda pipe: pipe.synthesize(pipe.sample(1), noise=None), "noise mode None"),
        "detail": (lambda pipe: pipe.invert_detail(PERSON, ["hfgi"]), "unknown method ['hfgi']"),
        "directions": (lambda pipe: pipe.directions(None), "'None'"),
        "network": (lambda pipe: pipe.network(3), "3/config.json: missing"),
    },
)
def test_what_is_no_name_of_a_pipelines_parts(pipe, call, named):
    """Nothing, numbers and lists in place of names in a pipeline are told as names that do not exist."""
    assert named in told(lambda: call(pipe))
