"""Faults around files: outputs over inputs, two writers, one bad picture among good ones, damaged state."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

import stx
from stx import batch, cli, label_editing
from stx.checkpoints import export, onnx, weights
from stx.domains import datasets, drawings, images
from stx.files import atomic, outputs
from stx.files.errors import DomainError, FileError, ImageError, TrainingError, WeightsError
from stx.files.outputs import Kind
from stx.reports import figures, notebooks
from stx.stylegan2.networks import Generator
from stx.training.loop import load_state, train
from tests.conftest import SIZE
from tests.faults.mutate import Counter


def noise(seed, side=SIZE):
    return np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8)


def photo(path, seed=0):
    """A picture that stx did not make."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path)
    return path


def digests(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != outputs.LOCK)
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture
def faces(tmp_path):
    for i, name in enumerate("ab"):
        photo(tmp_path / "faces" / f"{name}.png", i)
    return tmp_path / "faces"


@pytest.fixture
def pipe(home, faces):
    return stx.load(faces, folder=home, device="cpu")


@pytest.fixture
def data(home, tmp_path, monkeypatch):
    """The tiny networks as those of the domain `faces`."""
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    shutil.copytree(home, tmp_path / "data" / "faces")
    return tmp_path / "data"


def invert(faces, *words):
    return cli.main(["invert", *map(str, words), "--domain", str(faces), "--device", "cpu"])


# ------------------------------------------------------------------------------------------- 1: outputs and inputs


@pytest.mark.parametrize(
    ("pictures", "out", "told"),
    [
        ("faces", "faces", "input folder"),
        ("faces/a.png", "faces", "input folder"),  # the domain's own
        ("other/a.png", "other", "is an input"),
        ("faces", "taken", "was not made by stx"),
    ],
)
def test_invert_replaces_nothing(data, faces, tmp_path, capsys, pictures, out, told):
    """`stx invert` replaces no input and no file that stx did not make: it stops before anything is written."""
    photo(tmp_path / "other" / "a.png", 5)
    photo(tmp_path / "taken" / "b.png", 6)
    before = digests(tmp_path)
    assert invert(faces, tmp_path / pictures, "--out", tmp_path / out) == 2
    assert told in capsys.readouterr().err
    assert digests(tmp_path) == before


def test_outputs_below_the_input_are_no_inputs(data, faces, capsys):
    """An output folder below the input folder is not read as input the second time."""
    before = digests(faces)
    for _ in range(2):
        assert invert(faces, faces, "--out", faces / "out") == 0
    names, _ = batch.load_codes(faces / "out")
    assert len(names) == len(before)
    assert f"({len(before)} of them before)" in capsys.readouterr().out
    assert before.items() <= digests(faces).items()


@pytest.mark.parametrize(("out", "told"), [(".", "is an input"), ("folder", "input folder"), ("taken", "not made by")])
def test_align_replaces_nothing(tmp_path, capsys, monkeypatch, out, told):
    """`stx align` replaces no input and no file that stx did not make."""
    monkeypatch.setattr(batch.align, "faces_in", lambda path, size, device: [noise(1)])
    one = photo(tmp_path / "one.png")
    photo(tmp_path / "folder" / "c.png")
    photo(tmp_path / "taken" / "one.png")
    before = digests(tmp_path)
    assert cli.main(["align", str(one), str(tmp_path / "folder"), "--out", str(tmp_path / out)]) == 2
    assert told in capsys.readouterr().err
    assert digests(tmp_path) == before


def test_own_outputs_are_replaced_on_a_second_run(data, faces, tmp_path, monkeypatch):
    """What stx made itself it makes anew, of a picture that has changed."""
    out = tmp_path / "out"
    assert invert(faces, faces, "--out", out) == 0
    photo(faces / "a.png", 9)
    os.utime(faces / "a.png", ns=(1, 1))
    assert invert(faces, faces, "--out", out) == 0
    assert (images.read_image(out / "a_pair.png")[:, :SIZE] == noise(9)).all()
    names, _ = batch.load_codes(out)
    assert names == ["a", "b"]


def _figure(folder):
    figures.save_figure(Figure(), "a", folder, figures.provenance(notebook="x"))


def _table(folder):
    figures.save_table(pd.DataFrame({"n": [1]}), "a", folder, figures.provenance(notebook="x"))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", _figure),
        ("a.pdf", _figure),
        ("a.json", _figure),
        ("a.csv", _table),
        ("a.md", _table),
        ("index.md", figures.write_index),
        ("a.png", lambda folder: images.save_image(noise(0), folder / "a.png")),
    ],
)
def test_a_foreign_file_is_not_replaced_and_an_own_one_is(tmp_path, name, write):
    """Figures, tables and pictures replace only files that stx made."""
    mine, own = tmp_path / "mine", tmp_path / "own"
    mine.mkdir()
    own.mkdir()
    (mine / name).write_text('{"mine": 1}')
    with pytest.raises(FileError, match="was not made by stx"):
        write(mine)
    assert [p.name for p in mine.iterdir()] == [name]
    write(own)
    write(own)


def test_networks_exports_and_notebooks_replace_nothing(tmp_path, tiny, home):
    """Networks, exports and executed notebooks replace only files that stx made."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(FileError, match="not made by stx"):
            weights.save(tiny["generator"], tmp_path)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    mine = tmp_path / "mine.pt"
    torch.save({"g_ema": {}}, mine)
    before = mine.read_bytes()
    with pytest.raises(FileError, match="not made by stx"):
        export.write({"generator": tiny["generator"]}, "rosinality", mine)
    assert mine.read_bytes() == before
    for _ in range(2):
        export.write({"generator": tiny["generator"]}, "rosinality", tmp_path / "own.pt")
    book = Path("notebooks/06_label_editing.ipynb")
    with pytest.raises(FileError, match="is an input"):
        notebooks.run(book, book, {})
    (tmp_path / "x.ipynb").write_text("{}")
    with pytest.raises(FileError, match="not made by stx"):
        notebooks.run(book, tmp_path / "x.ipynb", {})


@pytest.mark.parametrize(
    ("there", "write"),
    [
        ("generator", lambda pipe, place: pipe.save_pretrained(place)),
        ("generator", lambda pipe, place: train(Counter(), folder=place, steps=1, config={})),
        ("generator", lambda pipe, place: pipe.invert_detail([noise(0)], "codes").save(place / "model.safetensors")),
        ("generator", lambda pipe, place: figures.save_table(pd.DataFrame(), "config", place, figures.provenance())),
        ("run", lambda pipe, place: weights.save(pipe.generator, place)),
        ("run", lambda pipe, place: pipe.save_pretrained(place)),
        ("domain", lambda pipe, place: weights.save(pipe.generator, place)),
        ("kept", lambda pipe, place: weights.save(pipe.generator, place)),
        ("codes", lambda pipe, place: figures.save_table(pd.DataFrame(), "index", place, figures.provenance())),
        ("codes", lambda pipe, place: images.save_image(noise(0), place / "a.png")),
        ("codes", lambda pipe, place: images.save_image(noise(0), place / "a_pair.png", kind=Kind.EDITED)),
    ],
    ids=[
        "domain",
        "training",
        "inversion",
        "table",
        "network",
        "domain",
        "network",
        "network",
        "table",
        "picture",
        "edit",
    ],
)
def test_what_stx_made_as_something_else_is_not_replaced(pipe, home, faces, tmp_path, there, write):
    """A network, training run, domain, code or picture that stx made is replaced by its like alone."""
    place = home / "generator" if there == "generator" else tmp_path / there
    if there == "run":
        train(Counter(), folder=place, steps=1, config={})
    elif there == "domain":
        pipe.save_pretrained(place)
    elif there == "kept":
        pipe.invert_detail([noise(0)], "codes").save(place / "model.safetensors")
    elif there == "codes":
        batch.invert_files(pipe, sorted(faces.iterdir()), place)
    before = digests(place)
    with pytest.raises(FileError, match=r"is or belongs to an? .*, which an? .* would replace"):
        write(pipe, place)
    assert digests(place) == before


def test_inverted_and_edited_pictures_of_one_folder(pipe, faces, tmp_path):
    """Of two commands into one folder the second replaces no picture of the first; those of earlier versions it may."""
    batch.invert_files(pipe, [str(faces / "a.png")], tmp_path / "out")
    before = digests(tmp_path / "out")
    with pytest.raises(FileError, match="an inverted picture, which an edited picture would replace"):
        batch.edit_files(pipe, [str(faces / "a.png")], tmp_path / "out", lambda ws: ws)
    assert digests(tmp_path / "out") == before
    batch.edit_files(pipe, [faces / "b.png"], tmp_path / "edits", lambda ws: ws)
    with pytest.raises(FileError, match="an edited picture, which an inverted picture would replace"):
        batch.invert_files(pipe, [faces / "b.png"], tmp_path / "edits")
    note = PngInfo()
    note.add_text("Software", "stx")
    Image.fromarray(noise(0)).save(tmp_path / "edits" / "b.png", pnginfo=note)
    batch.invert_files(pipe, [faces / "b.png"], tmp_path / "edits")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        *((f"ex{end}", "export") for end in ("", ".tar", ".bin", ".pth.tar", ".safetensors")),
        *((f"kk{end}", "kept") for end in ("", ".st", ".png", ".json")),
        *((f"pic{end}", "picture") for end in ("", ".jpg", ".bmp", ".gif", ".webp", ".tif")),
        ("book.txt", "notebook"),
    ],
)
def test_names_by_which_files_are_not_known_again(pipe, tmp_path, name, write):
    """A name whose suffix would make a file of stx a stranger the second time is refused before it is written."""
    path = tmp_path / name
    writers = {
        "export": lambda: export.write({"generator": pipe.generator}, "rosinality", path),
        "kept": lambda: pipe.invert_detail([noise(0)], "codes").save(path),
        "picture": lambda: images.save_image(noise(0), path),
        "notebook": lambda: notebooks.run("notebooks/06_label_editing.ipynb", path, {}),
    }
    with pytest.raises(FileError, match="has a name that ends in"):
        writers[write]()
    assert not path.exists()


def test_training_writes_into_no_folder_of_pictures_and_over_nothing(data, faces, tmp_path, capsys):
    """A training writes into no folder of pictures and over no run of somebody else."""
    words = ["train", "generator", str(faces), "--steps", "1", "--device", "cpu"]
    assert cli.main([*words, "--runs", str(faces / "runs")]) == 2
    assert "input folder" in capsys.readouterr().err
    assert cli.main([*words, "--runs", str(tmp_path / "r"), "--out", str(tmp_path / "r" / "faces")]) == 2
    assert "the training's own record goes there too" in capsys.readouterr().err and not (tmp_path / "r").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(FileError, match="not made by stx"):
        train(Counter(), folder=tmp_path / "run", steps=1, config={})


# ------------------------------------------------------------------------------------------------------- 2: names


@pytest.mark.parametrize("text", ['{"seed": 1}', '{"seed": 1, "model_type": "bert"}', '{"made_by": "me"}', "[]"])
def test_a_config_of_somebody_else_is_kept(tmp_path, text):
    """A `config.json` of somebody else is kept: many tools write one, and many of them a seed into it."""
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"theirs")
    assert not outputs.made_by_stx(tmp_path / "config.json")
    with pytest.raises(FileError, match="was not made by stx"):
        outputs.claim_networks([tmp_path])


def test_a_hostile_file_in_the_place_of_an_export_is_not_opened_by_torch(tmp_path, monkeypatch):
    """A hostile file in the place of an export is not opened by torch."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    torch.save({"made_by": "stx"}, tmp_path / "ours.pt")
    (tmp_path / "theirs.pt").write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    assert outputs.made_by_stx(tmp_path / "ours.pt")
    assert not outputs.made_by_stx(tmp_path / "theirs.pt")


def test_two_inverts_into_one_folder_keep_all_codes(pipe, tmp_path, monkeypatch):
    """Two inverts into one folder keep all codes, also where both have looked into it before either writes."""
    find, barrier, met = batch._shards, threading.Barrier(2), threading.local()

    def together(path):
        found = find(path)
        if not hasattr(met, "once"):
            met.once = True
            barrier.wait(60)
        return found

    monkeypatch.setattr(batch, "_shards", together)
    files = [photo(tmp_path / folder / "p.png", i) for i, folder in enumerate("xy")]
    threads = [threading.Thread(target=batch.invert_files, args=(pipe, [f], tmp_path / "out")) for f in files]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(batch.load_codes(tmp_path / "out")[0]) == ["p", "p-2"]
    assert (tmp_path / "out" / "p-2.png").is_file()


def test_a_locked_folder_is_refused_where_waiting_is_not_asked_for(tmp_path):
    """A folder into which another stx writes is refused or waited for; a killed one holds nothing."""
    code = "import sys\nfrom pathlib import Path\nfrom stx.files.outputs import lock_output\n"
    code += f"with lock_output(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FileError, match="another stx"), outputs.lock_output(tmp_path, wait=False):
        pass
    holder.kill()
    holder.wait()
    with outputs.lock_output(tmp_path, wait=False):  # a killed holder holds nothing
        pass


def test_names_do_not_collide():
    """Names of outputs do not collide: not in upper and lower case, with numbers, or where they are very long."""
    names = outputs.Names([("a-face2", "given")])
    long = "x" * 300
    wanted = [("a", "1"), ("A", "2"), ("a-2", "3"), ("a-face2", "1"), (long, "1"), (long + "y", "2"), ("é" * 150, "1")]
    found = [names.reserve(*pair) for pair in wanted]
    assert found[:4] == ["a", "A-2", "a-2-2", "a-face2-2"]
    assert len({name.casefold() for name in found}) == len(found)
    assert max(len(os.fsencode(name)) for name in found) <= outputs.MAX_NAME
    assert names.reserve("a", "1") == "a"


def test_further_faces_and_given_names(pipe, tmp_path, monkeypatch):
    """Names of further faces of a photograph do not collide with given ones."""
    monkeypatch.setattr(batch.align, "faces_in", lambda path, *_, **__: [noise(1), noise(2)])
    files = [photo(tmp_path / "in" / f"{name}.png") for name in ("a", "a-face2")]
    batch.invert_files(pipe, files, tmp_path / "out", faces=True)
    names, _ = batch.load_codes(tmp_path / "out")
    assert names == ["a", "a-face2-2", "a-face2", "a-face2-face2"]
    batch.align_files([str(file) for file in files], tmp_path / "crops", SIZE)
    batch.align_files([photo(tmp_path / "elsewhere" / "a.png")], tmp_path / "crops", SIZE)
    assert len(list((tmp_path / "crops").glob("*.png"))) == 6


# ------------------------------------------------------------------------------------------------ 3: which folder


def test_another_folder_of_the_same_name_is_refused(data, tmp_path, tiny):
    """Networks of a folder are not taken for another of the same name; it may grow and move."""
    log = pd.DataFrame({"step": [1]})
    for i, kind in enumerate(("cats", "dogs")):
        for j in range(3):
            photo(tmp_path / kind / "faces" / f"{j}.png", 10 * i + j)
    record = {"parameters": {"domain": str(tmp_path / "cats" / "faces")}}
    weights.ship(tiny["generator"], data / "faces" / "generator", log, record)
    stx.load(tmp_path / "cats" / "faces", device="cpu")
    for use in (datasets.load, stx.load):
        with pytest.raises(DomainError, match="made of another folder"):
            use(tmp_path / "dogs" / "faces")
    stx.load(tmp_path / "dogs" / "faces", folder=data / "faces", device="cpu")  # by their own wish
    photo(tmp_path / "cats" / "faces" / "more.png")
    datasets.load(tmp_path / "cats" / "faces")  # grown
    (tmp_path / "cats" / "faces" / "more.png").unlink()
    (tmp_path / "cats").rename(tmp_path / "moved")
    datasets.load(tmp_path / "moved" / "faces")


# ------------------------------------------------------------------------------------------- 4: one bad picture


def _broken(kind, path):
    """A file that Pillow raises something unusual for."""
    if kind == "eps":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    elif kind == "dds":
        Image.fromarray(noise(0)).save(path, "DDS")
    elif kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        code = exif.tobytes()
        Image.fromarray(noise(0)).save(path, "JPEG", exif=code[:14] + b"\xff\xff" + code[16:])
    elif kind == "nan":
        Image.fromarray(np.full((SIZE, SIZE), np.nan, np.float32)).save(path, "TIFF")
    elif kind == "tga":
        Image.fromarray(noise(0)).save(path, "TGA")
    return path


@pytest.mark.parametrize("kind", ["eps", "dds", "nan", "tga"])
def test_a_file_of_another_format_is_refused(tmp_path, kind, monkeypatch):
    """A file of a format that is not meant is refused whatever its suffix, and never reaches Ghostscript."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("reached Ghostscript"))
    with pytest.raises(ImageError, match=r"bad\.png") as caught:
        images.read_image(_broken(kind, tmp_path / "bad.png"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((-1.0, 1.0), "-1 to 1"), ((0.0, 4.0), "0 to 4"), ((0.0, 1e6), "0 to 1e"), ((-9999.0, 200.0), "-9999 to 200"),
        ((0, 2**31 - 1), "0 to 2.14748e"), ((0, 70_000), "0 to 70000"), ((0, 1023), "0 to 1023"), ((-300, 9), "-300"),
    ],
    ids=["of tensors", "HDR", "beyond", "of terrain", "31 bits", "a little beyond", "10 bits", "signed"],
)  # fmt: skip
def test_wide_pictures_of_unknown_ranges(tmp_path, values, told):
    """A TIFF of 32 bits or floats whose range is not known is refused with its range, and not read black or white."""
    Image.fromarray(np.array([values] * 2, "float32" if isinstance(values[0], float) else "int32")).save(
        tmp_path / "a.tif"
    )
    with pytest.raises(ImageError, match=re.escape(f"a.tif: values from {told}")):
        images.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "kind",
    [struct.error, NotImplementedError, RuntimeError, KeyError, TypeError, OverflowError, RecursionError, MemoryError,
     EOFError, AssertionError, ZeroDivisionError],
)  # fmt: skip
@pytest.mark.parametrize("where", ["load", "open"])
def test_whatever_a_decoder_raises_the_batch_goes_on(pipe, faces, tmp_path, monkeypatch, kind, where):
    """Whatever a decoder raises at one picture, the others are inverted and that one is told in one line."""
    target, name = (Image, "open") if where == "open" else (images, "_rgb")
    plain = getattr(target, name)

    def poisoned(given, *args, **kwargs):
        if "bad" in str(getattr(given, "filename", given)):
            raise kind("two\nlines")
        return plain(given, *args, **kwargs)

    monkeypatch.setattr(target, name, poisoned)
    bad = photo(tmp_path / "bad.png")
    before, failed = batch.invert_files(pipe, [bad, *sorted(faces.iterdir())], tmp_path / "out")
    assert len(failed) == 1 and "bad.png" in failed[0] and "\n" not in failed[0]
    assert batch.load_codes(tmp_path / "out")[0] == ["a", "b"]


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "x" * 252 + ".png", "nul\0.png"])
def test_names_that_no_file_system_takes(pipe, faces, tmp_path, name):
    """Paths that no file system takes are told, and the others are inverted."""
    paths = images.names_of([tmp_path / name, faces])
    _, failed = batch.invert_files(pipe, paths, tmp_path / "out")
    assert len(failed) == 1
    assert batch.load_codes(tmp_path / "out")[0] == ["a", "b"]


def test_a_picture_of_a_very_long_name_is_inverted(pipe, tmp_path):
    """A picture of a very long name is inverted under a shorter one."""
    path = photo(tmp_path / "in" / ("x" * 251 + ".png"))
    assert batch.invert_files(pipe, [path], tmp_path / "out") == (0, [])
    assert len(list((tmp_path / "out").glob("x*.png"))) == 2


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "tga"])
def test_less_usual_suffixes(tmp_path, suffix):
    """Pictures of less usual suffixes are found and read."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(0)).save(path, "TGA" if suffix == "tga" else "JPEG")
    assert images.list_images(tmp_path) == [path]
    assert images.read_image(path).shape == (SIZE, SIZE, 3)


def test_colour_profiles(tmp_path):
    """A colour profile is applied; a broken or unfit one leaves the pixels as they are."""
    picture = Image.fromarray(noise(0))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    red, green = srgb.index(b"rXYZ"), srgb.index(b"gXYZ")  # tags: name, offset, size
    swapped = bytearray(srgb)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    named = bytes(swapped).replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be")).replace(b"sRGB b", b"xRGB b")
    for name, profile in (("same", srgb), ("broken", b"not a profile"), ("unfit", lab), ("swapped", named)):
        picture.save(tmp_path / f"{name}.png", icc_profile=profile)
    for name in ("same", "broken", "unfit"):
        assert (images.read_image(tmp_path / f"{name}.png") == noise(0)).all(), name
    found = images.read_image(tmp_path / "swapped.png").astype(int)
    assert abs(found[..., [1, 0, 2]] - noise(0)).max() <= 3


# ---------------------------------------------------------------------------------------------- 6: damaged state


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_weights_are_noticed_when_they_are_read(home, damage):
    """Damaged weights are noticed when they are read, by their checksum."""
    path = home / "generator" / "model.safetensors"
    code = bytearray(path.read_bytes())
    code[-5] ^= 0x7C
    path.write_bytes({"flipped": bytes(code), "cut": bytes(code[:-9]), "empty": b""}[damage])
    with pytest.raises(WeightsError, match=r"model\.safetensors: damaged"):
        weights.load(home / "generator")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"network": "generator"}', '{"network": [], "args": 1}', "[" * 100_000]
)
def test_broken_config(home, text):
    """A broken `config.json` of a network is told with its file."""
    (home / "generator" / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        weights.load(home / "generator")


@pytest.mark.parametrize(
    "change",
    [
        {"units": [1, 10**13, 2]},
        {"units": [1, 1, 3000]},
        {"widths": [4, 8, 10**13]},
        {"num_ws": 10**10},
        {"n_mlp": 10**9},
        {"feed_forward": 2**40},
        {"queries": -5},
        {"queries": "a few"},
    ],
    ids=str,
)
def test_a_config_that_asks_for_far_more_than_its_file(home, change):
    """A `config.json` that asks for a network far larger than its file is told in a line, in 5 s and 1 GB."""
    path = home / "style_transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"args": config["args"] | change}))
    began, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"config\.json|shape") as caught:
        weights.load(home / "style_transformer")
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "without keys", "a list", "another net"])
def test_damaged_training_state(tmp_path, damage):
    """A damaged training checkpoint is told in one line with its file and the remedy."""
    train(Counter(), folder=tmp_path, steps=1, config={})
    path = tmp_path / "state.pt"
    state = load_state(path)
    if damage == "flipped":
        with zipfile.ZipFile(path) as archive:
            where = next(i for i in archive.infolist() if "/data/" in i.filename)
        code = bytearray(path.read_bytes())
        length = struct.unpack("<HH", code[where.header_offset + 26 : where.header_offset + 30])
        code[where.header_offset + 30 + sum(length)] ^= 1
        path.write_bytes(code)
    elif damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 300 if damage == "cut" else 0])
    else:
        changed = {"without keys": {"step": 1}, "a list": [1], "another net": state | {"task": {"net": {}}}}
        torch.save(changed[damage], path)
    with pytest.raises(TrainingError, match=r"state\.pt: .*delete it to start anew") as caught:
        train(Counter(), folder=tmp_path, steps=2, config={})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "zip", "cut", "scalar", "shape", "flipped", "saved by another"])
def test_a_damaged_cache_of_drawings_is_drawn_again(tmp_path, monkeypatch, damage):
    """A damaged cache of drawings is drawn again."""
    monkeypatch.setenv("STX_CACHE", str(tmp_path))
    drawn = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    path = drawings.AvatarCache(0).folder / "people.npy"
    assert (drawings.drawn("people", lambda: drawn) == drawn).all()
    code = path.read_bytes()
    others = {"scalar": np.array(5), "shape": np.zeros((5, 3)), "saved by another": drawn + 1}
    if damage in others:
        with open(path, "wb") as file:
            np.save(file, others[damage])
    else:
        flipped = code[:-40] + bytes([code[-40] ^ 1]) + code[-39:]
        path.write_bytes({"empty": b"", "zip": b"PK\x03\x04garbage", "cut": code[:-33], "flipped": flipped}[damage])
    os.utime(path, ns=(1, 1))
    assert (drawings.drawn("people", lambda: drawn) == drawn).all()
    assert drawings.drawn("people", lambda: pytest.fail("drawn again")) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda index: [],
        lambda index: {"codes": []},
        lambda index: {"codes": {"a": 1}},
        lambda index: {"codes": {"a": {"shard": "codes-00000.safetensors", "row": 99}}},
        lambda index: {"codes": {"a": {"shard": "codes-00000.safetensors", "row": "0"}}},
        lambda index: {"codes": {"a": {"shard": "../secret.safetensors", "row": 0}}},
        lambda index: {"codes": {"a": {"shard": "/etc/passwd", "row": 0}}},
    ],
    ids=["a list", "codes in a list", "a number", "no such row", "row as text", "folder above", "absolute path"],
)
def test_a_broken_index_of_codes(pipe, faces, tmp_path, change):
    """A broken `index.json` of codes is told in one line with the remedy, and reaches no file elsewhere."""
    batch.invert_files(pipe, sorted(faces.iterdir()), tmp_path / "out", reconstruct=False)
    safetensors.torch.save_file({"ws": torch.zeros(1, 6, 12)}, tmp_path / "secret.safetensors")
    path = tmp_path / "out" / "index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(WeightsError, match=r"index\.json: no readable codes.*stx invert") as caught:
        batch.load_codes(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_shard_cannot_name_a_place_elsewhere(pipe, faces, tmp_path):
    """Names in a shard of codes lead to no place outside its folder."""
    row = {"name": "../../elsewhere", "source": str(faces / "a.png"), "stamp": "1"}
    settings = {"encoder": batch.fingerprint(pipe.encoder), "generator": batch.fingerprint(pipe.generator)}
    header = {"settings": json.dumps(settings | {"faces": False}), "rows": json.dumps([row])}
    (tmp_path / "out").mkdir()
    safetensors.torch.save_file({"ws": torch.zeros(1, 6, 12)}, tmp_path / "out/codes-00000.safetensors", header)
    with pytest.raises(WeightsError, match="not a readable shard"):
        batch.invert_files(pipe, [str(faces / "a.png")], tmp_path / "out")


def test_codes_that_somebody_deletes_meanwhile_are_missed(pipe, faces, tmp_path, monkeypatch):
    """Success is not said of codes whose files are gone when all are done."""
    written, write = [], batch._write

    def delete_the_one_before(path, *given):
        for before in written:
            before.unlink(missing_ok=True)
        written.append(path)
        write(path, *given)

    monkeypatch.setattr(batch, "_write", delete_the_one_before)
    with pytest.raises(FileError, match="the codes of 1 pictures are gone again"):
        batch.invert_files(pipe, sorted(faces.iterdir()), tmp_path / "out", shard=1)
    monkeypatch.setattr(batch, "_write", write)
    batch.invert_files(pipe, sorted(faces.iterdir()), tmp_path / "out", shard=1)
    assert len(batch.load_codes(tmp_path / "out")[0]) == 2


# --------------------------------------------------------------------------------------------------- 7: writing


def test_a_file_is_on_the_disk_before_it_replaces_another(tmp_path, monkeypatch):
    """A file is on the disk before it replaces another."""
    done = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), flush(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    atomic.write_text(tmp_path / "a", "x")
    assert done[:2] == ["fsync", "replace"]


def test_files_have_the_mode_that_new_files_have(tmp_path, tiny, pipe, faces):
    """Networks and codes are read by whoever may read other new files; a mode that was set by hand stays."""
    before = os.umask(0o027)
    try:
        weights.save(tiny["generator"], tmp_path / "net")
        batch.invert_files(pipe, [str(faces / "a.png")], tmp_path / "out")
        pipe.invert_detail([faces / "a.png"], "codes").save(tmp_path / "kept.safetensors")
        made = [*(tmp_path / "net").iterdir(), *(tmp_path / "out").glob("[!.]*"), tmp_path / "kept.safetensors"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in made} == {0o640}
        (tmp_path / "net" / "model.safetensors").chmod(0o604)
        weights.save(tiny["generator"], tmp_path / "net")
        assert stat.S_IMODE((tmp_path / "net" / "model.safetensors").stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_graphs_of_a_full_disk_are_the_former_ones(home, tiny, tmp_path, monkeypatch):
    """An export of graphs that a full disk stops leaves the former graphs with their record, and it needs no other."""
    out = tmp_path / "out"
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/nothing")
    onnx.write(home, out)
    before, write = digests(out), Path.write_bytes
    weights.save(Generator(**tiny["generator"].config), home / "generator")  # of other random numbers

    def full(path, content):
        if "encoder" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match=r"encoder\.onnx: cannot be written .*free some space") as caught:
        onnx.write(home, out)
    assert str(caught.value).count("cannot be written") == 1
    assert digests(out) == before


def test_leftovers_of_killed_runs_are_swept(tmp_path):
    """Half-written files of killed runs are swept, those of living ones and of others are not."""
    code = "from pathlib import Path\nimport time\nfrom stx.files.atomic import atomic_write\n"
    code += f"with atomic_write(Path({str(tmp_path / 'a.bin')!r})) as part:\n part.write_text('x')\n"
    code += " part.with_name('.tmpXyz').write_text('of a library')\n time.sleep(60)"
    worker = subprocess.Popen([sys.executable, "-c", code])
    while not (parts := list(tmp_path.glob(".*.part"))):
        time.sleep(0.05)
    atomic.sweep_parts.cache_clear()
    atomic.write_text(tmp_path / "b", "x")
    assert parts[0].exists()  # of one that is alive
    worker.kill()
    worker.wait()
    (tmp_path / ".mine.part").write_text("kept")
    atomic.sweep_parts.cache_clear()
    atomic.write_text(tmp_path / "b", "x")
    assert [p.name for p in tmp_path.glob(".*.part")] == [".mine.part"]


def test_a_network_whose_writing_was_killed_is_written_again(tmp_path, tiny):
    """Weights whose `config.json` a kill has prevented are known as ours; those of others without one stay."""
    weights.save(tiny["matched_pairs"], tmp_path)
    (tmp_path / "config.json").unlink()
    weights.save(tiny["matched_pairs"], tmp_path)
    (tmp_path / "config.json").unlink()
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FileError, match="not made by stx"):
        weights.save(tiny["matched_pairs"], tmp_path)


# --------------------------------------------------------------------------------------- 9: the caller's settings


@pytest.mark.parametrize("setting", ["inference mode", "float64", "another device"])
def test_any_settings_of_the_caller(home, faces, tiny, setting):
    """A pipeline and label editing give the same numbers under any torch settings of the caller."""
    classifier = tiny["latent_classifier"].eval()
    weights.save(classifier, home / "latent_classifier", dtype=torch.float32)

    def work():
        pipe = stx.load(faces, folder=home, device="cpu")
        ws = pipe.invert(faces / "a.png")
        net = pipe.network("latent_classifier")
        found = [ws, pipe.sample(2), pipe.reconstruct(ws)]
        for order in (label_editing.first_order, label_editing.second_order):
            found.append(order(net, ws, [0], [1.0]))
        strength = label_editing.strength_for(net, ws, found[-1], [0], [1.0], 0.5)
        return [*found, strength, label_editing.first_order(net, ws + 0, [0], [1.0])]

    expected = work()
    try:
        with torch.inference_mode(setting == "inference mode"):
            torch.set_default_dtype(torch.float64 if setting == "float64" else torch.float32)
            torch.set_default_device("meta" if setting == "another device" else "cpu")
            found = work()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype and mine.device == theirs.device
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5, equal_nan=True)
    ws = found[0]
    assert not ws.is_inference()
    assert label_editing.first_order(classifier, ws, [0], [1.0]).isfinite().all()
