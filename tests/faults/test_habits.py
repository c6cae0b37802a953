"""Habits of a shell and of photographers: unset variables, odd names, pipes, photographs and films of all makes."""

import hashlib
import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from stx import cli, runtime
from stx.domains import align, avatars, images, paste, video
from stx.files.errors import FileError, ImageError, InputError, StxError
from stx.files.outputs import LOCK, Names
from stx.files.places import ROOT

PEOPLE = [avatars.draw(avatar) for avatar, _ in zip(avatars.sample("test"), range(3), strict=False)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of its own, in which an avatar lies."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "a.png")
    return tmp_path


@pytest.fixture(scope="module")
def portrait():
    """A face on a photograph of 270 pixels."""
    pytest.importorskip("facenet_pytorch")
    path = next(path for path in align.packaged_portraits() if path.stem == "astronaut")
    return Image.open(path).convert("RGB").crop((90, 0, 360, 270))


def saved(path, person=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PEOPLE[person]).save(path)
    return path


def stx(*words) -> int:
    return cli.main([*map(str, words), *([] if words[0] in ("draw", "convert", "weights") else ["--device", "cpu"])])


def digests(folder) -> dict:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["invert", "", "--out", "o"], id="invert, picture"),
        pytest.param(["invert", "a.png", "--out", ""], id="invert, output"),
        pytest.param(["invert", "a.png", "--out", "o", "--domain", ""], id="invert, domain"),
        pytest.param(["edit", "", "--add", "Bald", "--out", "o"], id="edit, picture"),
        pytest.param(["edit", "a.png", "--add", "Bald", "--like", "", "--out", "o"], id="edit, reference"),
        pytest.param(["align", "a.png", "", "--out", "o"], id="align, one of two"),
        pytest.param(["tune", "", "--out", "o"], id="tune, picture"),
        pytest.param(["train", "encoder", ""], id="train, domain"),
        pytest.param(["convert", "", "--out", "o"], id="convert, file"),
    ],
)
def test_unset_variable(here, words):
    """An unset variable of the shell is refused, and is not the current folder."""
    before = digests(here)
    assert stx(*words) == 2 and digests(here) == before


@pytest.mark.parametrize(
    "words",
    [
        ["invert", "{}", "--out", "o"],
        ["edit", "{}", "--add", "Bald", "--out", "o"],
        ["align", "{}", "--out", "o"],
        ["invert", "a.png", "--out", "o", "--encoder", "{}"],
        ["invert", "a.png", "--out", "a.png/{}"],
    ],
    ids=["invert", "edit", "align", "encoder", "output"],
)
def test_names_in_messages(here, capsys, words):
    """A name with line breaks, escapes for terminals or bytes that are no UTF-8 is told in one line, escaped."""
    name = "x\ny\x1b[31m\udce9.png"
    (here / name).write_bytes(b"bad")
    assert stx(*[word.format(name) for word in words]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "x\\ny\\x1b[31m\\udce9.png" in told


@pytest.mark.parametrize("command", ["invert", "edit", "tune"])
def test_names_in_other_encodings(here, command):
    """Pictures and folders whose names are no UTF-8 are taken; for codes and networks, which could not be read there,
    refused before the work."""
    name = saved(here / "caf\udce9.png").name
    words = {"invert": [], "edit": ["--add", "Bald"], "tune": ["--steps", 1]}[command]
    assert stx(command, name, *words, "--out", "o") == 0
    assert stx(command, name, *words, "--out", "o\udce9") == (0 if command == "edit" else 2)


@pytest.mark.parametrize(
    "words", [[], ["--add", "Bald"], ["--add", "sefa:0", "--paste"]], ids=["invert", "edit", "paste"]
)
def test_named_pipes(here, portrait, words):
    """A named pipe among the pictures or in the output is no picture, and nobody waits for its other end."""
    for pipe in ("in/pipe.png", "o/other.png"):
        (here / pipe).parent.mkdir()
        os.mkfifo(here / pipe)
    portrait.save(here / "in" / "b.jpg")
    assert stx(*(["edit", *words] if words else ["invert"]), "in/pipe.png", "in/b.jpg", "--out", "o") == 1


def test_one_name_from_two_folders(here, monkeypatch):
    """`img.png` named from two folders is two pictures: both codes are kept."""
    for person, folder in enumerate("xy"):
        saved(here / folder / "img.png", person)
        monkeypatch.chdir(here / folder)
        assert stx("invert", "img.png", "--out", here / "o") == 0
    assert set(json.loads((here / "o" / "index.json").read_text())["codes"]) == {"img", "img-2"}


def test_further_faces(here, portrait):
    """Further faces keep their names when they are edited again, and leave other files of such a name alone."""
    three = Image.new("RGB", (810, 270))
    for i in range(3):
        three.paste(portrait, (270 * i, 0))
    three.save(here / "p.png")
    other = {folder: saved(here / folder / "p-face2.png").read_bytes() for folder in "oe"}
    for command, out in (
        (["align", "--size", 64], "o"),
        (["invert", "--align", "--codes-only"], "o"),
        (["edit", "--align", "--add", "sefa:0"], "e"),
    ):
        for _ in "12":
            assert stx(command[0], "p.png", *command[1:], "--out", out) == 0
        assert (here / out / "p-face2.png").read_bytes() == other[out]
        assert {"p.png", "p-face2-2.png", "p-face3.png"} <= {path.name for path in (here / out).iterdir()}
        assert len(list((here / out).glob("*.png"))) == 4
    assert set(json.loads((here / "o" / "index.json").read_text())["codes"]) == {"p", "p-face2", "p-face3"}
    assert stx("edit", "p.png", "--align", "--add", "sefa:0", "--out", "o") == 2  # in the place of those of `align`


def test_one_form_of_unicode():
    """Names that differ only in the form of their letters are one to some file systems, and get two."""
    names = Names()
    given = [names.reserve(unicodedata.normalize(form, "Zoë"), form) for form in ("NFC", "NFD")]
    assert given[1] == unicodedata.normalize("NFD", "Zoë") + "-2"


@pytest.mark.parametrize(
    "words",
    [
        *(pytest.param(["--add", "Bald", "--strength", value], id=f"strength {value}") for value in ("nan", "1e39")),
        pytest.param(["--add", "Bald", "--until", "nan"], id="until nan"),
        pytest.param(["--add", "sefa:"], id="an unset variable for a component"),
    ],
)
def test_numbers_that_are_none(here, words):
    """A number that is not finite or not there is refused, where it would draw black pictures or another edit."""
    assert stx("edit", "a.png", *words, "--out", "o") == 2
    assert not list(here.glob("o/*.png"))


@pytest.mark.parametrize("rate", ["nan", "inf"])
def test_rates_that_are_no_numbers(here, capsys, rate):
    """A rate that is not finite is refused before a training that it would spoil."""
    assert stx("train", "encoder", "avatars", "--steps", 1, "--lr", rate, "--out", "o", "--runs", "r") == 2
    assert "not finite" in capsys.readouterr().err and not (here / "o").exists()


@pytest.mark.parametrize("shut", ["a file in its place", "no permission"])
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["tune", "a.png", "--steps", 1], id="tune"),
        pytest.param(["draw", "bottts", "--count", 6], id="draw"),
        pytest.param(["align", "a.png"], id="align"),
    ],
)
def test_folders_that_cannot_be_written_to(here, capsys, monkeypatch, words, shut):
    """A folder that cannot be made or written to is told before the work whose results it would get."""
    if shut == "no permission":
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
    before = digests(here)
    assert stx(*words, "--out", "a.png/o" if shut == "a file in its place" else "o") == 2
    told = capsys.readouterr()
    assert "another" in told.err and not told.out and digests(here) == before


def test_processes_that_cannot_meet(monkeypatch):
    """Variables of the environment that ask for several processes, without saying where, are told with the remedy."""

    def fail(**_):
        raise ValueError("`MASTER_ADDR` env was not set")

    monkeypatch.setattr(runtime, "PartialState", fail)
    with pytest.raises(InputError, match=r"WORLD_SIZE.*MASTER_ADDR.*torchrun"):
        runtime.world_size()


def test_codes_that_are_no_numbers(here, capsys):
    """Codes that are not finite are told, not drawn."""
    assert stx("invert", "a.png", "--out", "o") == 0
    shard = here / "o" / "codes-00000.safetensors"
    with safetensors.safe_open(shard, "pt") as file:
        header, ws = file.metadata(), file.get_tensor("ws")
    ws[0, 3, 5] = torch.nan
    safetensors.torch.save_file({"ws": ws}, shard, header)
    assert stx("edit", "o", "--add", "Bald", "--out", "e") == 2
    assert "not finite" in capsys.readouterr().err and not list(here.glob("e/*.png"))


@pytest.mark.parametrize(
    "command", [["tune", "a.png", "--steps", 1], ["draw", "bottts", "--count", 6]], ids=["tune", "draw"]
)
def test_told_before_the_work(here, command):
    """What would be replaced at the end of long work is told before it begins."""
    for name in ("codes-a/index.json", "labels.csv"):
        (here / "o" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "o" / name).write_text("mine")
    before = digests(here / "o")
    assert stx(*command, "--out", "o") == 2 and digests(here / "o") == before


def test_a_damaged_network_hides_no_other(here, capsys, monkeypatch):
    """`stx weights` tells of a network whose `config.json` is damaged, and of the others; notes stay text."""
    monkeypatch.setenv("STX_DATA", str(here))
    for name, text in {"one": "{", "two": '{"network": "psp", "notes": {"file": "a\\n\\u001b[2J"}}'}.items():
        (here / "mine" / name).mkdir(parents=True)
        (here / "mine" / name / "config.json").write_text(text)
    assert stx("weights", "--domain", "mine") == 1
    told = capsys.readouterr().out
    assert "config.json is not readable" in told and "two" in told and "\x1b" not in told


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["tune", "two", "--steps", 1], id="tune"),
        pytest.param(["edit", "a.png", "--add", "Eyeglasses", "--like", "two"], id="edit like"),
    ],
)
def test_one_picture_is_meant(here, capsys, words):
    """Of a folder of two pictures none is chosen without a word, where a generator is tuned or a kind is taken."""
    saved(here / "two" / "x.png"), saved(here / "two" / "y.png")
    assert stx(*words, "--out", "o") == 2
    assert "2 pictures" in capsys.readouterr().err and not (here / "o").exists()


@pytest.mark.parametrize("command", [["invert"], ["edit", "--add", "Bald"], ["align"], ["tune"]], ids=lambda c: c[0])
def test_links_that_go_in_circles(here, capsys, command):
    """A link to itself as the output folder, or in the name of a picture, is told in one line."""
    (here / "loop").symlink_to("loop")
    assert stx(*command, "a.png", "--out", "loop") == 2
    assert stx(*command, "loop/a.png", "--out", "o") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    if command != ["tune"]:
        assert stx(*command, "loop/a.png", "a.png", "--out", "o") in (1, 2)


@pytest.mark.parametrize(
    "shell",
    [
        "weights --domain avatars | true",
        "weights --domain avatars >&-",
        "weights --domain nothere 2>&-",
        "--help | true",
    ],
)
def test_outputs_that_are_closed(shell):
    """A reader that has gone and outputs that are closed end in an exit code, without a traceback."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = f"{sys.executable} -m stx.cli {shell}; echo ${{PIPESTATUS[0]}} >&3"
    told = subprocess.run(["bash", "-c", f"exec 3>&1; ({words})"], capture_output=True, text=True, env=environment)
    assert told.stderr == "" and int(told.stdout.split()[-1]) in (0, 1, 2)


def test_photographs_whose_notes_are_too_long_for_jpeg(here, portrait):
    """Of EXIF that is too long for the format of the copy the orientation stays; the batch goes on."""
    exif = Image.Exif()
    exif[0x9286], exif[0x0112] = b"x" * 80_000, 1
    portrait.save(here / "in.png", exif=exif)
    photo = paste.read_photo(here / "in.png")
    heic = paste.Photo(*[*vars(photo).values()][:4], "JPEG", photo.exif, photo.profile, {})
    heic.save(photo.pixels, here / "o.jpg", here / "in.png")
    with Image.open(here / "o.jpg") as file:
        assert file.getexif()[0x0112] == 1 and 0x9286 not in file.getexif()
    bad = paste.Photo(*[*vars(photo).values()][:4], "JPEG", photo.exif, photo.profile, {"qtables": [[1]]})
    with pytest.raises(ImageError, match=r"in\.png: cannot be written as p\.jpg"):
        bad.save(photo.pixels, here / "p.jpg", here / "in.png")
    assert not list(here.glob("*p*.jpg*"))


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "P", "1", "I;16", "RGBA", "L"])
def test_tiffs_of_all_kinds(here, portrait, mode):
    """A TIFF whose pixels lie in another way than those of its copy comes back as a file that can be read."""
    grey = np.asarray(portrait.convert("L")).astype(np.uint16) * 257
    picture = Image.fromarray(grey) if mode == "I;16" else portrait.convert(mode)
    picture.save(here / "in.tif", compression="tiff_lzw", tiffinfo={317: 2} if mode in ("RGBA", "L") else {})
    photo = paste.read_photo(here / "in.tif")
    photo.save(photo.pixels, here / "o.tif", here / "in.tif")
    np.testing.assert_array_equal(images.read_image(here / "o.tif"), images.read_image(here / "in.tif"))


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tif"])
def test_animations_and_pages(here, capsys, portrait, kind):
    """Of an animation or a TIFF of several pages no copy with one of them is written in place: that is told."""
    portrait.save(here / f"p.{kind}", save_all=True, append_images=[portrait.transpose(0)])
    assert stx("edit", f"p.{kind}", "--add", "sefa:0", "--paste", "--out", "o") == 2
    assert "2 frames or pages" in capsys.readouterr().err and not list(here.glob("o/p*"))
    assert stx("invert", f"p.{kind}", "--out", "i") == 0  # of which the first is taken


def test_very_large_pictures(here, recwarn):
    """A picture of more pixels than are read is told in words, without warnings of the library."""
    head = (here / "a.png").read_bytes()
    for side in (9_800, 50_000):
        wide = b"IHDR" + side.to_bytes(4, "big") * 2
        (here / "b.png").write_bytes(head.replace(head[12:24], wide))
        with pytest.raises(ImageError):
            images.read_image(here / "b.png")
    assert not recwarn.list


# ---------------------------------------------------------------------------------------------------------- films


def film(path, faces, *, codec="mpeg4", sound=None, times=None, **options):
    """A film of pictures; sound: a codec, whose samples are silence."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as made:
        stream = made.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = *faces[0].size, "yuv420p"
        audio = made.add_stream(sound, rate=8000, layout="mono") if sound else None
        for face in faces:
            made.mux(stream.encode(av.VideoFrame.from_image(face)))
        made.mux(stream.encode())
        if audio:
            silence = av.AudioFrame(format=audio.codec_context.format.name, layout="mono", samples=800)
            silence.rate, silence.pts = 8000, 0
            silence.planes[0].update(bytes(silence.planes[0].buffer_size))
            made.mux(audio.encode(silence))
            made.mux(audio.encode())
    return path


def edit_film(*words) -> int:
    return stx("edit", *words, "--add", "sefa:0", "--paste", "--out", "o")


def test_films_of_one_name(here, portrait):
    """Films of one name from two folders are both kept; one that is edited again replaces its own."""
    for folder in "xy":
        film(here / folder / "f.mp4", [portrait] * 2)
    for given in ("x/f.mp4", "y/f.mp4", "x/f.mp4"):
        assert edit_film(given) == 0
    assert {path.name for path in (here / "o").glob("*.mp4")} == {"f.mp4", "f-2.mp4"}


def test_frames_of_one_name(here, portrait):
    """Folders of frames of one name are both kept, and frames of one name in two formats or folders."""
    for folder in "xy":
        (here / folder / "f" / "g").mkdir(parents=True)
        for name in ("1.png", "1.jpg", "g/1.png"):
            portrait.save(here / folder / "f" / name)
    for given in ("x/f", "y/f", "x/f"):
        assert edit_film(given, "--frames") == 0
    made = {path.relative_to(here / "o").as_posix() for path in (here / "o").rglob("*.png")}
    assert made == {f"{folder}/{name}.png" for folder in ("f", "f-2") for name in ("1", "1-2", "g/1")}


def test_numbers_in_the_names_of_frames(here):
    """Frame 2 comes before frame 10."""
    for number in (10, 2, 1, 11):
        saved(here / "f" / f"frame{number}.png")
    assert [file.stem for file in video.frame_files(here / "f")] == [f"frame{n}" for n in (1, 2, 10, 11)]


def test_films_of_others_stay(here, portrait):
    """A film or frame in the output that stx did not make stays, and nothing is written before that is told."""
    film(here / "f.mp4", [portrait] * 2)
    theirs = film(here / "o" / "f.mp4", [portrait]).read_bytes()
    assert edit_film("f.mp4") == 0
    assert (here / "o" / "f.mp4").read_bytes() == theirs and (here / "o" / "f-2.mp4").is_file()
    (here / "g").mkdir()
    for i in (1, 2):
        portrait.save(here / "g" / f"{i}.png")
    assert edit_film("g", "--frames") == 0
    portrait.save(here / "o" / "g" / "2.png")
    before = digests(here / "o")
    assert edit_film("g", "--frames") in (0, 2)  # into a folder of another name, or told
    assert before.items() <= digests(here / "o").items()


def test_films_without_faces_are_named(here, capsys, portrait):
    """Of several films the one without a face, or that is none, is named; the others are edited."""
    film(here / "nobody.mp4", [Image.new("RGB", (320, 240), "navy")] * 2)
    (here / "text.mov").write_text("hello")
    film(here / "f.mp4", [portrait] * 2)
    assert edit_film("nobody.mp4", "text.mov", "f.mp4") == 1
    told = capsys.readouterr().err
    assert "nobody.mp4: no face found" in told and "text.mov: not a film" in told
    assert (here / "o" / "f.mp4").is_file()


@pytest.mark.parametrize(("sound", "ending"), [("pcm_s16le", ".mp4"), ("pcm_u8", ".mkv"), ("adpcm_ms", "")])
def test_sound_that_mp4_cannot_hold(here, portrait, sound, ending):
    """A film whose sound MP4 cannot hold becomes a Matroska file, or is told; no sound is lost without a word."""
    av = pytest.importorskip("av")
    film(here / "f.avi", [portrait] * 2, sound=sound)
    assert edit_film("f.avi") == (0 if ending else 2)
    if not ending:
        return
    with av.open(str(here / "o" / f"f{ending}")) as made:
        assert made.streams.audio[0].codec_context.name.removesuffix("le") == sound.removesuffix("le")


def test_frames_without_times(here, portrait):
    """Frames of a film that have no times of their own (H.264 in AVI) follow each other at its rate."""
    film(here / "f.avi", [portrait] * 6, codec="libx264", bf="2")
    assert edit_film("f.avi") == 0
    assert len(list(video.frames(here / "o" / "f.mp4"))) == 6


def test_a_full_disk_ends_a_film_in_words(here, portrait, monkeypatch):
    """Whatever the library of films raises as it writes is one of our errors, and leaves no half of a film."""
    av = pytest.importorskip("av")
    path = film(here / "f.mp4", [portrait] * 2)
    frames = [np.asarray(portrait)] * 2
    for error, kind in (
        (av.error.OSError(28, "No space left on device"), FileError),
        (av.error.ExternalError(1, "x"), ImageError),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(video, "_copy", lambda *_: None)
            patched.setattr(video, "_even", lambda _, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(StxError) as told:
                video.write(here / "g.mp4", iter(frames), path)
        assert type(told.value) is kind and not list(here.glob("*g.mp4*"))


def test_a_film_of_several_faces(here, capsys, portrait):
    """Of a film of several faces the largest is edited, and that the others stay is said."""
    both = Image.new("RGB", (540, 270))
    both.paste(portrait, (0, 0)), both.paste(portrait.resize((200, 200)), (300, 30))
    film(here / "f.mp4", [both] * 2)
    assert edit_film("f.mp4") == 0
    assert "2 faces" in capsys.readouterr().err
    before, after = (next(video.frames(path)).astype(int) for path in (here / "f.mp4", here / "o" / "f.mp4"))
    left, right = (np.abs(after - before)[:, side].mean() for side in (np.s_[:270], np.s_[300:500]))
    assert left > 4 * right


@pytest.mark.parametrize("option", ["--paste", "--align"])
def test_codes_have_no_photograph(here, capsys, option):
    """Codes cannot be laid back into a photograph nor aligned again: that is told, where they would be drawn alone."""
    assert stx("invert", "a.png", "--out", "codes") == 0
    assert stx("edit", "codes", "--add", "Bald", option, "--out", "o") == 2
    assert "codes" in capsys.readouterr().err and not (here / "o").exists()
