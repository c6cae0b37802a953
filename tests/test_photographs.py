"""Photographs edited in place: files, names, refusals, and what an edit may change."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

import stx
from stx import cli, photographs
from stx.domains import align, images, video
from stx.files.outputs import made_by_stx

pytest.importorskip("facenet_pytorch")
ASTRONAUT = next(path for path in align.packaged_portraits() if path.stem == "astronaut")


@pytest.fixture(scope="module")
def pipe():
    return stx.load("avatars", device="cpu")


@pytest.fixture
def photos(tmp_path):
    """One photograph in several files: two faces in a JPEG, one turned by its EXIF, one without a face."""
    folder, face = tmp_path / "photos", Image.open(ASTRONAUT).crop((90, 0, 360, 270))
    folder.mkdir()
    two = Image.new("RGB", (540, 270))
    two.paste(face, (0, 0)), two.paste(ImageOps.mirror(face), (270, 0))
    two.save(folder / "two.jpg", quality=92)
    turned = Image.Exif()
    turned[0x0112] = 6
    face.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=turned)
    Image.new("RGB", (300, 300), "grey").save(folder / "nobody.png")
    return folder


def changed(before, after) -> np.ndarray:
    """Where two picture files differ by more than compression makes of it, upright."""
    return np.abs(images.read_image(before).astype(int) - images.read_image(after)).max(2) > 24


def test_every_face_is_edited_in_place(photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["edit", str(photos), "--add", "sefa:0", "--paste", "--out", str(out), "--device", "cpu"]
    assert cli.main(words) == 1
    told = capsys.readouterr()
    assert "nobody.png: no face found" in told.err and "2 of 3 pictures edited" in told.out
    assert sorted(p.name for p in out.iterdir() if p.name[0] != ".") == ["turned.png", "two.jpg"]
    where = changed(photos / "two.jpg", out / "two.jpg")
    assert where[60:150, 100:170].mean() > 0.3 and where[60:150, 370:440].mean() > 0.3  # both faces
    assert where[200:, 250:290].mean() < 0.02 and where[:, :30].mean() < 0.02
    where = changed(photos / "turned.png", out / "turned.png")
    assert where[60:150, 100:170].mean() > 0.3 and not where[230:].any()
    with Image.open(out / "turned.png") as file:
        assert file.getexif()[0x0112] == 6
    assert all(made_by_stx(path) for path in out.glob("t*"))
    assert cli.main(words) == 1  # again: its own pictures are replaced
    assert len(list(out.glob("t*"))) == 2


def test_of_two_photographs_of_one_name_both_are_kept(photos, tmp_path, pipe):
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "turned.png", tmp_path / "more" / "turned.png")
    for folder in (photos, tmp_path / "more"):
        photographs.edit_photos(pipe, [folder / "turned.png"], tmp_path / "out", lambda ws: ws)
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"turned.png", "turned-2.png"}


def test_the_photograph_itself_and_what_others_made_are_never_replaced(photos, tmp_path, capsys):
    words = ["edit", str(photos / "two.jpg"), "--add", "sefa:0", "--paste", "--device", "cpu", "--out"]
    before = (photos / "two.jpg").read_bytes()
    assert cli.main([*words, str(photos)]) == 2
    assert "is an input" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    shutil.copy(photos / "two.jpg", tmp_path / "taken" / "two.jpg")
    assert cli.main([*words, str(tmp_path / "taken")]) == 2
    assert "not made by stx" in capsys.readouterr().err
    assert (photos / "two.jpg").read_bytes() == before == (tmp_path / "taken" / "two.jpg").read_bytes()


def clip() -> list[Image.Image]:
    """A portrait that moves and turns; 16 frames."""
    photo, made = Image.open(ASTRONAUT).convert("RGB"), []
    for i in range(16):
        turned = photo.rotate(6 * np.sin(i / 4), Image.Resampling.BICUBIC, center=(224, 120))
        shift = (1, 0, 90 + 6 * np.cos(i / 5), 0, 1, 0.7 * i)
        made.append(turned.transform((270, 270), Image.Transform.AFFINE, shift, Image.Resampling.BICUBIC))
    return made


def test_a_film_is_edited_steadily(tmp_path, pipe):
    """A folder of frames: the face changes in each, the rest stays, and it flickers less than frame by frame."""
    (tmp_path / "clip").mkdir()
    for i, frame in enumerate(clip()):
        frame.save(tmp_path / "clip" / f"{i:03d}.png")
    before = [images.read_image(path) for path in sorted((tmp_path / "clip").iterdir())]
    faces = video.steady(video.follow(align.find_faces(frame) for frame in before))
    words = ["edit", str(tmp_path / "clip"), "--frames", "--paste", "--add", "sefa:0", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--device", "cpu"]) == 0
    after = [images.read_image(path) for path in sorted((tmp_path / "out" / "clip").iterdir())]
    different = [np.abs(a.astype(int) - b).max(2) > 24 for a, b in zip(before, after, strict=True)]
    assert all(d[60:150, 100:170].mean() > 0.2 and d[230:].mean() < 0.02 for d in different)
    alone = list(photographs.edit_film(pipe, tmp_path / "clip", lambda ws: pipe.edit(ws, add=["sefa:0"]), smooth=0))
    steady, jumping = photographs.flicker(after, faces), photographs.flicker(alone, faces)
    assert steady < jumping / 2  # 0.007 and 0.048
