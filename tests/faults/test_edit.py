"""Faults around `stx edit`: outputs over inputs, bad pictures among good ones, unknown attributes, odd references."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stx import batch, cli
from stx.domains import avatars
from stx.files.outputs import png_source

BROKEN = b"\xff\xd8\xff\xe1 not a picture"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Five avatars, the second of which wears glasses."""
    folder, people = tmp_path_factory.mktemp("drawn"), avatars.sample("test")
    chosen = [a for a, _ in zip(people, range(200), strict=False)]
    bare = [a for a in chosen if not avatars.labels(a)[0]]
    wears = next(a for a in chosen if avatars.labels(a)[0])
    for i, avatar in enumerate([bare[0], wears, *bare[1:4]]):
        Image.fromarray(avatars.draw(avatar)).save(folder / f"p{i}.png")
    return folder


@pytest.fixture
def faces(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "faces")
    return tmp_path / "faces"


def edit(*words) -> int:
    return cli.main(["edit", *map(str, words), "--device", "cpu"])


def digest(folder) -> dict:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if not p.name.startswith(".")}


def test_pictures_are_edited_and_the_bad_one_is_told(faces, tmp_path, capsys):
    """Every good picture of a batch is edited; a bad one is named, and the exit code is 1."""
    (faces / "bad.jpg").write_bytes(BROKEN)
    out = tmp_path / "out"
    assert edit(faces, "--add", "Eyeglasses", "--remove", "Smiling,Beard", "--until", "0.9", "--out", out) == 1
    told = capsys.readouterr()
    assert "bad.jpg" in told.err and "5 of 6 pictures edited" in told.out
    assert sorted(path.name for path in out.glob("*.png")) == [f"p{i}.png" for i in range(5)]
    for path in out.glob("*.png"):
        assert png_source(path) == str(faces / path.name)
        assert np.asarray(Image.open(path)).shape == (64, 64, 3)
    before = digest(out)
    assert edit(faces, "--add", "Eyeglasses", "--remove", "Smiling,Beard", "--until", "0.9", "--out", out) == 1
    assert digest(out) == before  # again: the same names, the same pictures


@pytest.mark.parametrize(
    ("words", "told"),
    {
        "the input folder": (["--add", "Bald", "--out", "{faces}"], "{faces}: is"),
        "nothing to do": (["--out", "x"], "nothing to edit"),
        "only commas": (["--add", " , ", "--out", "x"], "nothing to edit"),
        "an unknown attribute": (["--add", "Eyeglases", "--out", "x"], "did you mean Eyeglasses?"),
        "added and removed": (["--add", "Bald", "--remove", "Bald", "--out", "x"], "both to add and to remove"),
        "a probability of 95": (["--add", "Bald", "--until", "95", "--out", "x"], "95"),
        "no such reference": (["--add", "Bald", "--like", "no.png", "--out", "x"], "no.png: no such file"),
        "a broken reference": (["--add", "Bald", "--like", "{faces}/../broken.png", "--out", "x"], "broken.png"),
        "a reference without it": (["--add", "Eyeglasses", "--like", "{faces}/p0.png", "--out", "x"], "does not show"),
        "a domain without weights": (["--add", "Bald", "--domain", "ffhq", "--out", "x"], "generator"),
    }.values(),
)
def test_a_refusal_is_one_line_and_writes_nothing(words, told, faces, tmp_path, capsys, monkeypatch):
    """What cannot be done is told in one line before anything is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(BROKEN)
    before = digest(faces)
    assert edit(faces, *[word.format(faces=faces) for word in words]) == 2
    error = capsys.readouterr().err.strip()
    assert told.format(faces=faces) in error and "Traceback" not in error
    assert digest(faces) == before and not list((tmp_path).glob("x/*.png"))


def test_somebody_elses_picture_in_the_output_stays(faces, tmp_path, capsys):
    """A picture that stx did not make is never replaced by an edited one."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(faces / "p3.png", out / "p0.png")
    before = digest(out)
    assert edit(faces, "--add", "Bald", "--out", out) == 2
    assert "not made by stx" in capsys.readouterr().err and digest(out) == before


def test_the_kind_comes_from_the_reference(faces, tmp_path):
    """Two references give two different edits."""
    people = [a for a, _ in zip(avatars.sample("val"), range(300), strict=False)]
    for name in ("clear", "dark"):
        avatar = next(a for a in people if a.look.glasses in avatars.GLASSES[name])
        Image.fromarray(avatars.draw(avatar)).save(tmp_path / f"{name}.png")
        like = ["--like", tmp_path / f"{name}.png"]
        assert edit(faces / "p0.png", "--add", "Eyeglasses", *like, "--out", tmp_path / f"out_{name}") == 0
    clear, dark = (
        np.asarray(Image.open(tmp_path / f"out_{name}" / "p0.png")).astype(int) for name in ("clear", "dark")
    )
    assert np.abs(clear - dark)[20:36].mean() > 5  # about the eyes


@pytest.mark.parametrize("source", ["a.png", "{", "3", "[]", "[" * 9999])
def test_notes_that_others_wrote(tmp_path, source):
    """A PNG that names stx and a source in another form has none, and its name is not given again."""
    note = PngInfo()
    note.add_text("Software", "stx")
    note.add_text("Source", source)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=note)
    assert png_source(tmp_path / "a.png") == ""
    assert batch._names_in(tmp_path).reserve("a", "elsewhere/a.png") == "a-2"
