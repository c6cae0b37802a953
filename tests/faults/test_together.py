"""Things that do not fit together: codes and pictures, options and networks, files that are there twice."""

import copy
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

from stx import cli
from stx.checkpoints import weights
from stx.domains import align, avatars, datasets, images, styles
from stx.files.checksums import sha256
from stx.files.errors import DomainError, EditError, InputError, TrainingError, WeightsError
from stx.files.places import ROOT
from stx.pipeline import Pipeline
from stx.reports import claims, figures, readme
from stx.training import loop
from tests.faults.mutate import Counter
from tests.faults.test_habits import digests
from tests.faults.test_habits import stx as command

pytestmark = pytest.mark.usefixtures("unchecked")
NAN, TOO_LARGE = float("nan"), 2**70


@pytest.fixture(scope="module")
def ws(pipe):
    return pipe.sample(2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of its own, with two avatars in `faces`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").mkdir()
    for name, avatar in zip("ab", avatars.sample("test"), strict=False):
        Image.fromarray(avatars.draw(avatar)).save(tmp_path / "faces" / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("measure", ["distortion", "strangeness"])
@pytest.mark.parametrize("count", [1, 3])
def test_codes_of_other_pictures(pipe, measure, count):
    """Codes that are not as many as the pictures are refused: none is held against another picture."""
    with pytest.raises(InputError, match=rf"{count} codes for 2 pictures"):
        getattr(pipe, measure)(["faces/a.png", "faces/b.png"], pipe.sample(count))


def test_codes_of_other_kinds(pipe):
    """Codes as an array or as an inversion are measured as those of a tensor; an empty dict is refused."""
    found = pipe.invert_detail(["faces/a.png", "faces/b.png"], "codes")
    known = pipe.strangeness("faces", found.ws).score
    for codes in (found, found.ws.numpy(), None):
        assert torch.allclose(pipe.strangeness("faces", codes).score, known, atol=1e-4)
    with pytest.raises(InputError, match="StyleSpace"):
        pipe.distortion("faces", {})
    assert pipe.strangeness(torch.zeros(0, 3, 64, 64)).score.shape == (0,)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"add": "sefa:0", "strength": "much"}, id="strength in words"),
        pytest.param({"add": "sefa:0", "strength": NAN}, id="strength that is no number"),
        pytest.param({"add": "Eyeglasses", "until": "often"}, id="until in words"),
        pytest.param({"add": 5}, id="a number for a name"),
        pytest.param({"add": "Eyeglasses", "tokens": (0, [1, 2])}, id="tokens of tokens"),
        pytest.param({"add": f"sefa:{'9' * 5000}"}, id="a component of 5,000 digits"),
        pytest.param({"add": "stylespace:6_50", "until": 0.9}, id="a channel until"),
        pytest.param({"add": "stylespace:6_50", "tokens": (0, 1)}, id="tokens of a channel"),
        pytest.param({"add": "stylespace:6_50", "like": torch.zeros(1, 10, 256)}, id="a channel like"),
    ],
)
def test_what_edit_refuses(pipe, ws, given):
    """What an edit cannot follow is refused, and not left out without a word."""
    with pytest.raises(EditError):
        pipe.edit(ws, **given)


def test_numbers_as_text_and_names_as_arrays(pipe, ws):
    """A strength or a probability as text, and names as an array, mean what they say."""
    for given, same in (
        ({"add": "sefa:0", "strength": "2"}, {"add": "sefa:0", "strength": 2}),
        ({"add": "Eyeglasses", "until": "0.5"}, {"add": "Eyeglasses", "until": 0.5}),
        ({"add": np.array(["Beard", "Smiling"])}, {"add": ["Beard", "Smiling"]}),
    ):
        assert torch.equal(pipe.edit(ws, **given), pipe.edit(ws, **same))


@pytest.mark.parametrize("given", [{"psi": NAN}, {"seed": TOO_LARGE}, {"seed": NAN}], ids=str)
def test_samples_of_no_number(pipe, given):
    """Samples by a number that is none, or of more than 64 bits, are refused."""
    with pytest.raises(EditError):
        pipe.sample(1, **given)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("encoder avatars --resolution 64", id="resolution of an encoder"),
        pytest.param("generator faces --method psp", id="method of a generator"),
        *(pytest.param(f"manifold avatars --{name} 3", id=f"{name} of a manifold") for name in ("steps", "seed", "lr")),
    ],
)
def test_options_of_other_networks(here, capsys, words):
    """Options that a network's training has no use for are refused, and not recorded as if they had been used."""
    assert command("train", *words.split(), "--out", "o", "--runs", "r") == 2
    assert "--" in capsys.readouterr().err and not (here / "o").exists() and not (here / "r").exists()


def test_drawings_beside_others(here, capsys):
    """Drawings go into no folder with more drawings, whose labels would be lost; a domain has as many as asked for."""
    assert command("draw", "bottts", "--count", 5, "--resolution", 8, "--out", "o") == 0
    assert len(datasets.load("o", resolution=8).split("train")) == 3
    before = sorted(here.glob("o/**/*"))
    assert command("draw", "bottts", "--count", 3, "--resolution", 8, "--out", "o") == 2
    assert "2 other pictures" in capsys.readouterr().err and sorted(here.glob("o/**/*")) == before
    assert command("draw", "bottts", "--count", 2, "--out", "two") == 2


def test_drawings_that_are_stopped(here, capsys, monkeypatch):
    """Drawings that are stopped over earlier ones have not the labels of those; the same command completes them."""
    draw = ("draw", "bottts", "--count", 5, "--resolution", 8, "--out", "o")
    assert command(*draw) == 0
    earlier = (here / "o" / "labels.csv").read_text()
    drawings = styles.drawings

    def stopped(*given, **options):
        yield next(drawings(*given, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(styles, "drawings", stopped)
        assert command(*draw, "--seed", 1) == 130
    assert "the same command completes it" in capsys.readouterr().err
    assert len(list(here.glob("o/*/*.png"))) == 5 and not list(here.glob("o/labels.*"))
    assert command(*draw, "--seed", 1) == 0
    assert (here / "o" / "labels.csv").read_text() != earlier


def test_pictures_that_were_left_out(here, capsys):
    """A picture that was not drawn with its code, or was deleted, is drawn when it is asked for."""
    assert command("invert", "faces", "--out", "o", "--codes-only") == 0 and not list(here.glob("o/*.png"))
    assert command("invert", "faces", "--out", "o") == 0 and len(list(here.glob("o/*.png"))) == 4
    (here / "o" / "a_pair.png").unlink()
    capsys.readouterr()
    assert command("invert", "faces", "--out", "o") == 0
    assert "(1 of them before)" in capsys.readouterr().out and len(list(here.glob("o/*.png"))) == 4
    assert command("invert", "faces", "--out", "o") == 0
    assert "(2 of them before)" in capsys.readouterr().out


def test_files_that_are_named_twice(here, capsys):
    """A file that is named twice, by itself and in its folder, is counted once, with its fault."""
    (here / "faces" / "bad.png").touch()
    assert command("invert", "faces/bad.png", here / "faces" / "bad.png", "--out", "o") == 2
    assert command("invert", "faces", "faces/bad.png", "faces/a.png", "--out", "o") == 1
    assert "2 of 3 pictures inverted" in capsys.readouterr().out


def test_labels_that_contradict(here):
    """Two lines of labels for one picture are told where they differ."""
    table = "file,Bald\na.png,1\nb.png,0\na.png,{}\n"
    (here / "faces" / "labels.csv").write_text(table.format(1))
    assert datasets.load("faces").attributes == ("Bald",)
    (here / "faces" / "labels.csv").write_text(table.format(0))
    with pytest.raises(DomainError, match=r"line 4: a\.png has other labels"):
        datasets.load("faces")


@pytest.mark.parametrize("kind", ["link to nothing", "folder", "pipe", "two of them", "link to itself"])
def test_labels_that_are_no_file(here, kind):
    """A `labels.csv` that cannot be read as a file is refused, and the pictures are not taken for unlabelled ones."""
    labels = here / "faces" / "labels.csv"
    if kind == "folder":
        labels.mkdir()
    elif kind == "pipe":
        os.mkfifo(labels)
    elif kind == "two of them":
        labels.touch()
        labels.with_name("Labels.csv").touch()
    else:
        labels.symlink_to(here / "gone" if kind == "link to nothing" else labels)
    with pytest.raises(DomainError, match=r"abels\.csv"):
        datasets.load("faces")


@pytest.mark.parametrize("kind", ["link to nothing", "link to itself", "pipe"])
def test_pictures_that_are_not_there(here, capsys, kind):
    """Links to nothing (git-annex, DVC) and pipes in a folder are told by name like other unreadable pictures."""
    bad = here / "faces" / "c.png"
    if kind == "pipe":
        os.mkfifo(bad)
    else:
        bad.symlink_to(bad if kind == "link to itself" else here / "gone")
    assert command("invert", "faces", "--out", "o") == 1
    told = capsys.readouterr()
    assert "2 of 3 pictures inverted" in told.out
    assert f"c.png: {'a folder, a pipe' if kind == 'pipe' else 'a link to a file that is not there'}" in told.err
    for name in "ab":
        (here / "faces" / f"{name}.png").unlink()
    assert command("invert", "faces", "--out", "o2") == command("invert", "faces/c.png", "--out", "o3") == 2
    assert "no such file" not in capsys.readouterr().err
    datasets.load("faces")  # what networks remember of a folder is of the pictures that are there


def test_linked_folders(here):
    """Pictures of a linked folder are found; links in circles end, what is hidden or made by stx is left out."""
    (here / "links" / "own").mkdir(parents=True)
    (here / "links" / "more").symlink_to(here / "faces")
    (here / "links" / "own" / "back").symlink_to(here / "links")
    (here / "links" / ".hidden").symlink_to(here / "faces")
    found = [path.relative_to(here / "links").as_posix() for path in images.list_images(here / "links")]
    assert found == ["more/a.png", "more/b.png"]
    assert command("invert", "links/more/a.png", "--out", "links/own") == 0
    assert len(images.list_images(here / "links")) == 2


def test_a_reference_on_a_photograph(here, monkeypatch):
    """The kind of an attribute is taken from the face on a photograph, cut out like those that are edited."""
    cut = []
    monkeypatch.setattr(align, "faces_in", lambda path, *_, **__: cut.append(str(path)) or [images.read_image(path)])
    command("edit", "faces/a.png", "--align", "--add", "Bald", "--like", "faces/b.png", "--out", "o")
    assert cut[0] == "faces/b.png"


def test_claims_that_are_told_twice(here, capsys):
    """A run named like a column of the table of verdicts, and a claim that is there twice, are told in one line."""
    found = claims.Interval(1.0, 0.5, 1.5, 0.001, 9)
    record = figures.provenance(notebook="t")
    claims.save([claims.evidence("it holds", "s", "c", "u", found, "04")], here / "run", record)
    assert cli.main(["claims", "claim=run", "b=run", "--out", "o"]) == 2
    assert cli.main(["claims", "agree=run", "b=run", "--out", "o"]) == 2
    table = pd.read_csv(here / "run" / "claims.csv")
    (here / "twice").mkdir()
    pd.concat([table, table]).to_csv(here / "twice" / "claims.csv", index=False)
    assert cli.main(["claims", "a=twice", "b=run", "--out", "o"]) == 2
    assert "there twice" in capsys.readouterr().err


def test_places_that_no_number_fills(here):
    """A place whose table lacks a column or has no finite number is named; ends of lines stay as they were."""
    (here / "q.csv").write_text("value\ninf\n")
    (here / "03_quality.csv").write_text("metric,val\nL2,1\n")
    for place in ("q value ,d", "table quality"):
        with pytest.raises(InputError, match="the place"):
            readme.fill(f"<!-- stx: {place} -->x<!-- /stx -->", here)
    (here / "q.csv").write_text("value\n3\n")
    (here / "T.md").write_bytes(b"one\r\n<!-- stx: q value d -->x<!-- /stx -->\r\n")
    assert cli.main(["readme", "T.md", "--figures", "."]) == 0
    assert (here / "T.md").read_bytes() == b"one\r\n<!-- stx: q value d -->3<!-- /stx -->\r\n"


def copied(here, monkeypatch, *names) -> Path:
    """A domain's folder with some of the avatars' networks, as files of one's own."""
    monkeypatch.setenv("STX_DATA", str(here / "data"))
    for name in names:
        shutil.copytree(ROOT / "data" / "avatars" / name, here / "data" / "avatars" / name)
    return here / "data" / "avatars"


def test_an_export_over_its_network(here, capsys, monkeypatch):
    """A network is exported over no network and no training run; what the form has no place for is told."""
    home = copied(here, monkeypatch, "generator", "discriminator")
    before = digests(home)
    words = ["export", str(home), "--to", "rosinality", "--out"]
    assert cli.main([*words, str(home / "generator" / "model.safetensors")]) == 2
    assert "ends in .pt or .pth" in capsys.readouterr().err and digests(home) == before
    loop.train(Counter(), folder=here / "run", steps=1, config={})
    assert cli.main([*words, "run/state.pt"]) == 2
    assert "is or belongs to a training run, which a public checkpoint would replace" in capsys.readouterr().err
    assert cli.main([*words, "g.pt"]) == 0
    assert "generator in rosinality form: g.pt (discriminator left out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["generator", "style_transformer", "matched_pairs"])
def test_networks_of_no_numbers(here, monkeypatch, name):
    """A network with a number that is none is refused by the name of the tensor, though its checksum fits."""
    folder = copied(here, monkeypatch, name) / name
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    spoilt = next(key for key, tensor in tensors.items() if tensor.is_floating_point())
    safetensors.torch.save_file(tensors | {spoilt: tensors[spoilt] * NAN}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = sha256(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=rf"{re.escape(spoilt)} has numbers that are not finite"):
        weights.load(folder)


@pytest.mark.parametrize(
    ("name", "given"),
    [("matched_pairs", "classifier"), ("manifold", "classifier"), ("detail/feature_editor", "detail/hfgi")],
)
def test_networks_under_the_name_of_others(here, monkeypatch, name, given):
    """A folder that holds a network of another kind than its name says is refused."""
    home = copied(here, monkeypatch, given)
    (home / given).rename(home / Path(name).name)
    with pytest.raises(WeightsError, match="expected a"):
        weights.load(home / Path(name).name)


@pytest.mark.parametrize(
    "change",
    [{"network": ["psp"]}, {"args": [1]}, {"notes": {"parameters": "many"}}, {"notes": {"commit": 7}}],
    ids=lambda change: json.dumps(change),
)
def test_records_of_other_types(here, monkeypatch, change):
    """A value of another type in a network's record is told by its name, by whatever reads it."""
    folder = copied(here, monkeypatch, "manifold") / "manifold"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert command("cards", folder.parent) == 2
    with pytest.raises(WeightsError, match="is not of the type"):
        weights.load(folder)


@pytest.mark.parametrize(
    "change", [{"config": [1]}, {"rows": [1, 2]}, {"step": "9"}, {"rows": [{"loss": 1.0}]}], ids=str
)
def test_checkpoints_of_other_types(here, change):
    """A checkpoint of a training whose record is another one's is refused."""
    state = {"step": 2, "config": {}, "window": {}, "task": {}, "rows": [{"step": 2}]}
    torch.save(state, "state.pt")
    assert loop.load_state(Path("state.pt")) == state
    torch.save(state | change, "state.pt")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        loop.load_state(Path("state.pt"))


@pytest.mark.parametrize(
    "words", [["score", "--scale", "smoke"], ["train", "encoder", "avatars", "--runs", "r"]], ids=str
)
@pytest.mark.parametrize("seed", [-1, 10**23])
def test_seeds_out_of_range(here, words, seed):
    """A seed that random numbers cannot begin with is refused before the work."""
    assert command(*words, "--seed", seed, "--out", "o") == 2 and not (here / "o").exists()


def test_a_folder_of_a_sweep_twice(here, capsys):
    """A folder that is named twice is no second run, whose deviations would be none."""
    figures.save_table(pd.DataFrame({"value": [1.0]}), "t", here / "run", figures.provenance(notebook="t"))
    assert cli.main(["sweep", "run", "./run/", "--out", "o"]) == 2
    assert "twice" in capsys.readouterr().err and not (here / "o").exists()


def test_grey_pictures_of_16_bits(here):
    """Dark grey pictures of 16 bits stay dark in every format, and what is transparent in them is white."""
    dark = Image.fromarray(np.full((8, 8), 200, np.uint16))
    for name in ("dark.pgm", "dark.png", "dark.tif"):
        dark.save(name)
        assert images.read_image(name).max() <= 1
    dark.save("clear.png", transparency=200)
    assert images.read_image("clear.png").min() == 255


class Backwards(torch.nn.Module):
    """A classifier of codes that knows the same attributes in another order."""

    def __init__(self, net):
        super().__init__()
        self.net, self.attributes = net, net.attributes[::-1]

    def forward(self, ws):
        logits, features = self.net(ws)
        return logits.flip(1), features


def test_classifiers_with_their_attributes_in_another_order(pipe, ws):
    """Attributes are found by name in each network: a classifier with them in another order gives the same edits."""
    (matched, reader), other = pipe._editors, copy.copy(pipe)
    other.__dict__["_editors"] = matched, Backwards(reader)
    for edit in ({"add": "Wearing_Hat", "until": 0.9}, {"remove": "Smiling"}, {"add": "Eyeglasses", "like": ws[:1]}):
        try:
            expected = pipe.edit(ws, **edit)
        except EditError as error:
            with pytest.raises(EditError, match=str(error)):
                other.edit(ws, **edit)
        else:
            assert torch.equal(other.edit(ws, **edit), expected)


def test_classifiers_of_other_labels(pipe):
    """A classifier trained on other labels than the domain has now is refused; it would be read by position."""
    names = pipe.domain.attributes
    for labels, told in ((("Beards", *names[1:]), "Beards"), (names[::-1], "their order")):
        other = dataclasses.replace(pipe.domain, attributes=labels)
        with pytest.raises(WeightsError, match=f"classifier: trained on other labels .*{told}"):
            Pipeline(other, pipe.generator, pipe.encoder, "cpu", pipe.folder, "style_transformer").network("classifier")


@pytest.mark.parametrize("kind", ["nan", "styles", "wide", "none", "empty"])
def test_edits_of_ones_own(pipe, kind):
    """Codes of an inversion edited by any means are checked: NaN and what is none is refused."""
    found = pipe.invert_detail("faces", "features")
    styles = pipe.generator.styles(found.ws)
    given = {
        "nan": found.ws * NAN,
        "styles": styles | {"conv1": styles["conv1"] * NAN},
        "wide": found.ws.double() * 1e200,
        "none": None,
        "empty": {},
    }[kind]
    for use in (found.edit, pipe.synthesize):
        with pytest.raises(InputError):
            use(given)


def test_edits_of_ones_own_of_another_precision(pipe):
    """Edited codes as an array or in another precision are drawn; vectors without one of the layers are refused."""
    found = pipe.invert_detail("faces", "features")
    styles = {name: style.double() for name, style in pipe.generator.styles(found.ws).items()}
    plain = pipe.synthesize(found)
    for given in (found.ws.numpy().astype(np.float64), styles):
        assert torch.equal(pipe.synthesize(found.edit(given)), plain)
    with pytest.raises(InputError, match="'convs.7' does not fit"):
        pipe.synthesize(found.edit({name: style for name, style in styles.items() if name != "convs.7"}))


@pytest.mark.parametrize("steps", [0, -1, 2.5, "a", NAN])
def test_searches_of_no_steps(pipe, steps):
    """A search of no number of steps is refused; it would give the encoder's codes as searched ones."""
    with pytest.raises(EditError, match="steps"):
        pipe.invert_detail("faces", "search", steps=steps)


@pytest.mark.parametrize("device", ["cpu:foo", "cuda:99", "gpu", "meta"])
def test_devices_that_are_not_there(device, capsys):
    """A device that is none, or is not here, is one line."""
    assert cli.main(["invert", "faces", "--out", "o", "--device", device]) == 2
    assert "is not available here; there is: cpu" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory(monkeypatch, capsys, error):
    """Too little memory is one line with what would need less."""

    def greedy():
        raise error

    monkeypatch.setattr(weights, "inventory", greedy)
    assert cli.main(["weights"]) == 2
    assert "not enough memory; give fewer or smaller pictures; a training a smaller --batch" in capsys.readouterr().err


@pytest.mark.parametrize("side", ["0", "4194304"])
def test_generators_of_no_size(side, capsys):
    """A generator of no pixels, or of more than memory could hold, is refused."""
    assert cli.main(["train", "generator", "faces", "--resolution", side]) == 2
    assert "not in the range 1<=x<=4096" in capsys.readouterr().err
