"""Faces in photographs: where they are found, how the crop turns with them, and what happens without one."""

import numpy as np
import pytest
import torch
from PIL import Image

from stx import cli
from stx.domains import align, images
from stx.perception.identity import MobileFace, face_crop

pytest.importorskip("facenet_pytorch")
PORTRAITS = {path.stem: path for path in reversed(align.packaged_portraits())}


@pytest.fixture(scope="module")
def astronaut():
    photo = images.read_image(PORTRAITS["astronaut"])
    return photo, align.find_faces(photo)


def test_the_astronaut(astronaut):
    photo, faces = astronaut
    assert len(faces) == 1
    left, top, right, bottom = faces[0].box
    assert 150 < left < right < 300
    assert 30 < top < bottom < 220
    left_eye, right_eye, nose, left_mouth, right_mouth = faces[0].points
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert align.align(photo, faces[0], 64).shape == (64, 64, 3)


def test_square_of_upright_landmarks_is_ffhqs():
    """Eyes 40 apart at height 100, mouth 50 below: by the formula of FFHQ, worked out by hand."""
    points = np.array([[80, 100], [120, 100], [100, 125], [85, 150], [115, 150]], float)
    half = max(40 * 2.0, 50 * 1.8)  # 90
    expected = [[100 - half, 105 - half], [100 - half, 105 + half], [100 + half, 105 + half], [100 + half, 105 - half]]
    np.testing.assert_allclose(align.crop_corners(points), expected)


def test_upright_square_inside_is_a_plain_crop():
    y, x = np.mgrid[:320, :320]
    photo = np.stack([x * 0.7, y * 0.7, 100 + 80 * np.sin(x / 15)], 2).astype(np.uint8)
    points = np.array([[140, 150], [180, 150], [160, 175], [145, 200], [175, 200]], float)
    crop = align.align(photo, align.Face((0, 0, 1, 1), points, 1.0), 180)
    assert np.abs(crop.astype(int) - photo[65:245, 70:250]).mean() < 2  # FFHQ's landmarks are half a pixel off


@pytest.mark.parametrize("angle", [-35, 20, 90])
def test_crop_turns_with_the_face(astronaut, angle):
    photo, faces = astronaut
    turned = Image.fromarray(photo).rotate(angle, Image.BICUBIC, expand=True)
    radians = np.deg2rad(angle)
    rotation = np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]])
    centre, new_centre = np.array(photo.shape[1::-1]) / 2, np.array(turned.size) / 2
    points = (faces[0].points - centre) @ rotation.T + new_centre
    first = align.align(photo, faces[0], 64).astype(int)
    second = align.align(np.asarray(turned), align.Face((0, 0, 1, 1), points, 1.0), 64).astype(int)
    assert np.abs(first - second).mean() < 6
    assert np.abs(first - second[:, ::-1]).mean() > 20


def test_large_photos_are_shrunk_to_the_same_crop(astronaut):
    photo, faces = astronaut
    large = np.asarray(Image.fromarray(photo).resize((2048, 2048), Image.BICUBIC))
    face = align.Face((0, 0, 1, 1), faces[0].points * 4, 1.0)
    difference = align.align(photo, faces[0], 64).astype(int) - align.align(large, face, 64)
    assert np.abs(difference).mean() < 5


def test_beyond_the_photo_is_mirrored_and_smooth(astronaut):
    photo, faces = astronaut
    left, top, right, bottom = (round(x) for x in faces[0].box)
    tight = photo[top:bottom, left:right]
    face = align.Face((0, 0, 1, 1), faces[0].points - (left, top), 1.0)
    crop = align.align(tight, face, 128)
    assert crop.std(axis=(0, 1)).min() > 5
    whole = align.align(photo, faces[0], 128)
    assert np.abs(crop[48:80, 48:80].astype(int) - whole[48:80, 48:80]).mean() < 4
    assert np.abs(np.diff(crop[:12].astype(int), axis=1)).mean() < np.abs(np.diff(whole.astype(int), axis=1)).mean()


def test_several_faces_largest_first():
    faces = align.find_faces(images.read_image(PORTRAITS["emotions_sheet"]))
    assert len(faces) >= 10
    areas = [(f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in faces]
    assert areas == sorted(areas, reverse=True)


def test_align_command(tmp_path, capsys):
    images.save_image(np.full((200, 300, 3), 127, np.uint8), tmp_path / "grey.png")
    images.save_image(np.zeros((5, 3, 3), np.uint8), tmp_path / "tiny.png")
    (tmp_path / "bad.jpg").write_bytes(b"no")
    given = [str(tmp_path / name) for name in ("grey.png", "tiny.png", "bad.jpg")]
    out = ["--out", str(tmp_path / "out"), "--size", "32", "--device", "cpu"]
    assert cli.main(["align", *given, str(PORTRAITS["astronaut"]), *out]) == 1
    told = capsys.readouterr()
    assert len([line for line in told.err.splitlines() if "no face found" in line]) == 2
    assert "bad.jpg" in told.err
    shown = [p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")]
    assert shown == ["astronaut.png"]
    assert cli.main(["align", given[0], *out]) == 2


def test_invert_aligns_photographs(tmp_path, capsys):
    given = [str(PORTRAITS["astronaut"]), "--align", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(["invert", *given]) == 0
    assert images.read_image(tmp_path / "out" / "astronaut.png").shape == (64, 64, 3)
    assert images.read_image(tmp_path / "out" / "astronaut_pair.png").shape == (64, 128, 3)
    images.save_image(np.full((200, 300, 3), 127, np.uint8), tmp_path / "grey.png")
    assert cli.main(["invert", str(tmp_path / "grey.png"), *given[1:]]) == 2
    assert "no face found" in capsys.readouterr().err


def test_mobileface_knows_people_apart():
    """The shipped weights on synthetic people: another photo of a person is nearer than any other person."""
    from stx.checkpoints import weights
    from stx.files.places import data_dir

    net = weights.load(data_dir() / "photographs" / "mobileface")
    assert isinstance(net, MobileFace)
    people = ("P001", "P005", "P007")
    paths = [p for p in align.packaged_portraits() if p.parts[-3] in people and p.stem != "emotions_sheet"]
    crops = np.stack([align.faces_in(p, 256)[0] for p in paths])
    with torch.no_grad():
        embedded = net(images.to_tensor(crops))
    cosines = (embedded @ embedded.T).fill_diagonal_(-1)
    assert [paths[i].parts[-3] for i in cosines.argmax(1)] == [p.parts[-3] for p in paths]


def test_face_crop_of_other_sizes_is_averaged_to_256_first():
    big = torch.rand(2, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.avg_pool2d(big, 2)
    torch.testing.assert_close(face_crop(big), face_crop(small))
    assert face_crop(big, 50).shape == (2, 3, 50, 50)
