import io
import os
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from stx.baselines.directions import FITTED
from stx.domains import datasets, folders, images, paste, splits
from stx.files.errors import DomainError, ImageError
from stx.training import loop


@pytest.fixture
def picture():
    return np.random.RandomState(0).randint(0, 256, (11, 7, 3), dtype=np.uint8)


def test_reads_what_was_saved(tmp_path, picture):
    images.save_image(picture, tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(images.read_image(tmp_path / "new" / "a.png"), picture)


def test_pictures_of_one_name_in_two_folders_stay_apart(tmp_path, picture):
    for place in ("one/a.png", "two/a.png"):
        images.save_image(picture, tmp_path / place)
    data = datasets.load("avatars").test(pictures=tmp_path)
    assert list(data.names) == ["one/a.png", "two/a.png"]
    assert list(datasets.load("avatars").test(pictures=tmp_path / "two" / "a.png").names) == ["a.png"]


def test_tensor_round_trip_is_exact():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = images.to_tensor(levels)
    assert tensor.shape == (3, 16, 16)
    assert tensor.min() == -1
    assert tensor.max() == 1
    np.testing.assert_array_equal(images.to_uint8(tensor), levels)
    assert images.to_uint8(torch.full((3, 1, 1), 1.7)).max() == 255


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "I", "F", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = np.full((6, 5), 128, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 5), 128 * 257, np.uint16))
    elif mode in ("I", "F"):
        image = Image.fromarray(grey.astype({"I": np.int32, "F": np.float32}[mode]))
    else:
        image = Image.fromarray(grey).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("I", "F", "CMYK") else "a.png")
    image.save(path)
    rgb = images.read_image(path)
    assert rgb.shape == (6, 5, 3)
    assert rgb.dtype == np.uint8
    if mode != "1":
        assert abs(rgb.astype(int) - 128).max() <= 1


@pytest.mark.parametrize(("values", "kind"), [((0, 1), np.float32), ((0, 255), np.int32), ((0, 65535), np.int32)])
def test_levels_of_wide_pictures(tmp_path, values, kind):
    Image.fromarray(np.array([values] * 2, dtype=kind)).save(tmp_path / "a.tif")
    assert images.read_image(tmp_path / "a.tif").max() == 255
    Image.fromarray(np.array([[0, 200]] * 2, dtype=np.uint16)).save(tmp_path / "dark.png")
    assert images.read_image(tmp_path / "dark.png").max() == 1  # 16 bits stay 16 bits, also when dark


@pytest.mark.parametrize(
    ("values", "kind", "mean"),
    [
        ((0.0, 1.003), "float32", 127.5), ((-0.002, 1.0), "float32", 127.5), ((0.0, 255.5), "float32", 127.5),
        ((0, 66000), "int32", 127.5), ((0, 260), "int32", 127.5), ((0, 128), "int32", 64), ((0, 0), "int32", 0),
    ],
)  # fmt: skip
def test_wide_pictures_that_overshoot_their_range(tmp_path, values, kind, mean):
    Image.fromarray(np.array([values] * 2, dtype=kind)).save(tmp_path / "a.tif")
    assert abs(images.read_image(tmp_path / "a.tif").mean() - mean) <= 0.5


def test_tiff_of_12_bits(tmp_path):
    """Two pixels in three bytes; white is 4095."""
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
    head = b"II*\0" + struct.pack("<I", 14) + b"\xff\xf0\x00\x80\x00\x00"  # 4095, 0, 2048, 0
    told = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    (tmp_path / "a.tif").write_bytes(head + struct.pack("<H", len(tags)) + told + bytes(4))
    assert images.read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [255, 0, 128, 0]


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_unreadable_exif_leaves_the_pixels(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (7, 5), "red").save(path, exif=b"Exif\0\0no tags at all")
    assert images.read_image(path).shape == (5, 7, 3)
    photo = paste.read_photo(path)
    photo.save(photo.pixels, tmp_path / f"b.{suffix}", path)
    assert images.read_image(tmp_path / f"b.{suffix}").shape == (5, 7, 3)


def test_transparency_is_laid_on_white(tmp_path):
    Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA").save(tmp_path / "a.png")
    assert (images.read_image(tmp_path / "a.png") == 255).all()


def test_exif_rotation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), np.rot90(picture, -1))


@pytest.mark.parametrize("kind", ["absent", "text", "empty", "truncated png", "truncated jpeg", "folder"])
def test_unusable_file_is_named(tmp_path, picture, kind):
    path = tmp_path / "bad.png"
    big = np.random.RandomState(1).randint(0, 256, (90, 90, 3), dtype=np.uint8)
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind.startswith("truncated"):
        stream = io.BytesIO()
        Image.fromarray(big).save(stream, kind.split()[1])
        path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    with pytest.raises(ImageError, match=r"bad\.png") as caught:
        images.read_image(path)
    assert "\n" not in str(caught.value)


def test_too_large_picture_is_refused_before_decoding(tmp_path, monkeypatch, picture):
    images.save_image(picture, tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 11 * 7 - 1)
    with pytest.raises(ImageError, match="7 x 11"):
        images.read_image(tmp_path / "a.png")


def test_resize_is_the_public_transform(picture):
    assert images.resize(picture, 11, 7) is picture
    out = images.resize(picture, 5, 13)
    expected = Image.fromarray(picture).resize((13, 5), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(out, np.asarray(expected))


def test_grid_places_pictures_row_by_row():
    sheet = images.grid(np.stack([np.full((2, 3, 3), i, np.uint8) for i in range(5)]), columns=3)
    assert sheet.shape == (4, 9, 3)
    assert sheet[:2, 6:].max() == 2
    assert (sheet[2:, :3] == 3).all()
    assert (sheet[2:, 6:] == 255).all()


# --------------------------------------------------------------------------------------------------- folders as domains


@pytest.fixture
def folder(tmp_path, picture):
    for i in range(60):
        images.save_image(np.roll(picture, i, 0), tmp_path / f"{i % 3}" / f"{i:02d}.png")
    return tmp_path


def test_folder_is_a_domain(folder):
    domain = datasets.load(folder, resolution=16)
    assert (domain.resolution, domain.attributes) == (16, ())
    splits = {name: domain.split(name) for name in ("train", "val", "test")}
    names = [n for data in splits.values() for n in data.names]
    assert len(names) == len(set(names)) == 60
    assert len(splits["train"]) > len(splits["test"]) > 0
    assert splits["train"].batch([0, 1]).shape == (2, 3, 16, 16)
    assert splits["train"].labels is None
    images.save_image(np.zeros((4, 4, 3), np.uint8), folder / "another.png")
    moved = datasets.load(folder, resolution=16).split("train")
    assert set(splits["train"].names) <= set(moved.names)


def test_pictures_of_a_folder(tmp_path, picture, monkeypatch):
    for name in ("b.PPM", "sub/a.gif", "c.avif", "d.jp2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)
        assert images.read_image(tmp_path / name).shape == picture.shape
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for hidden in ("._b.png", ".ipynb_checkpoints/b.png", "sub/.trash/b.png"):
        images.save_image(picture, tmp_path / hidden)
    (tmp_path / "notes.txt").touch()
    found = [file.relative_to(tmp_path).as_posix() for file in images.list_images(tmp_path)]
    assert found == ["b.PPM", "c.avif", "d.jp2", "phone.heic", "sub/a.gif"]
    monkeypatch.setattr(images, "_reads_heif", lambda: False)
    with pytest.raises(ImageError, match=r"phone\.heic: a HEIC picture.*pip install pillow-heif"):
        images.read_image(tmp_path / "phone.heic")


@pytest.mark.parametrize(
    "places",
    [
        ("Train", "Val", "Test"), ("TRAIN", "validation", "testing"), ("training", "valid", "test_set"),
        ("train2017", "Dev", "test2017"), ("images/train", "images/val", "images/test"),
        ("cats/Train set", "cats/val-data", "cats/test images"),
    ],
)  # fmt: skip
def test_splits_by_other_names(tmp_path, picture, places):
    for place in places:
        for i in range(4):
            images.save_image(picture, tmp_path / place / f"{i}.png")
    domain = datasets.load(tmp_path)
    for split, place in zip(("train", "val", "test"), places, strict=True):
        assert domain.split(split).names == [f"{place}/{i}.png" for i in range(4)]


@pytest.mark.parametrize("name", ["trainers", "testament", "device", "valley", "train.png"])
def test_folders_that_are_no_splits(tmp_path, name):
    assert len({folders._folder_split(f"{name}/{i}") for i in range(200)}) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode here")
def test_names_that_are_no_text(tmp_path, picture):
    for name in (b"\xff.png", b"train/\xfe.png", b"plain.png"):
        path = tmp_path / os.fsdecode(name)
        images.save_image(picture, path.parent / "x.png")
        (path.parent / "x.png").rename(path)
    domain = datasets.load(tmp_path, resolution=32)
    found = [domain.split(name) for name in ("train", "val")]
    assert os.fsdecode(b"train/\xfe.png") in [n for part in found for n in part.names]
    assert found[0].fingerprint()


def test_folder_labels(folder):
    names = [f"{i % 3}/{i:02d}.png" for i in range(60)]
    rows = "".join(f"{n},{i % 2},-1\n" for i, n in enumerate(names))
    (folder / "labels.csv").write_text("file, Smiling,Hat\n" + rows + "\n")
    domain = datasets.load(folder, resolution=16)
    data = domain.split("train")
    assert domain.attributes == ("Smiling", "Hat")
    assert [bool(row[0]) for row in data.labels] == [int(n[2:4]) % 2 == 1 for n in data.names]
    assert not data.labels[:, 1].any()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,Smiling\n", "first line"),
        ("file,Smiling\n0/00.png,2\n", "line 2"),
        ("file,Smiling\n0/00.png,1\n", "no labels for"),
        ("", "first line"),
        ("file,Smiling,Smiling\n0/00.png,1,1\n", "all different"),
        ("file,Smiling,\n0/00.png,1,1\n", "one attribute name"),
        (b"file,R\xf6te\n", "UTF-8"),
        ('file,"A,B"\n0/00.png,1\n', "cannot be called 'A,B'"),
        *((f"file,Hat,{name}\n0/00.png,1,1\n", f"cannot be called '{name}'") for name in (*FITTED, "stylespace")),
        *((f"file,{name}\n0/00.png,1\n", f"'{name}'") for name in ("sefa:0", "stylespace:6_501", "age:2")),
    ],
)
def test_faulty_labels_are_explained(folder, text, match):
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DomainError, match=match):
        datasets.load(folder)


@pytest.mark.parametrize(
    ("file", "cell"),
    [
        ("\N{LATIN SMALL LETTER U WITH DIAERESIS}.png", "u\N{COMBINING DIAERESIS}.png"),
        ("u\N{COMBINING DIAERESIS}.png", "\N{LATIN SMALL LETTER U WITH DIAERESIS}.png"),
        ("a.png", "./a.png"), ("train/a.png", "train\\a.png"), ("train/a.png", ".\\train\\a.png"),
        ("train/a.png", "train//a.png"),
    ],
)  # fmt: skip
def test_labels_of_files_in_other_forms(tmp_path, picture, file, cell):
    images.save_image(picture, tmp_path / file)
    (tmp_path / "Labels.CSV").write_text(f"file,Hat\n{cell},1\n", encoding="utf-8")
    found = folders.Folder(tmp_path, 16, (16, 16))
    assert found.attributes == ("Hat",) and found.labels.tolist() == [[True]]


def test_unknown_domains(tmp_path):
    with pytest.raises(DomainError, match="avatarz"):
        datasets.load("avatarz")
    with pytest.raises(ImageError, match="no pictures"):
        datasets.load(tmp_path)
    with pytest.raises(DomainError, match="unknown split"):
        datasets.load("avatars").split("training")


def test_a_folder_called_like_a_known_domain_is_refused(tmp_path, picture):
    """Its networks would lie where the shipped ones do."""
    images.save_image(picture, tmp_path / "avatars" / "a.png")
    with pytest.raises(DomainError, match="a folder called avatars would replace"):
        datasets.load(tmp_path / "avatars")


def test_a_split_of_no_pictures_is_refused(folder):
    for domain in (datasets.load("avatars"), datasets.load(folder, resolution=16)):
        for count in (0, -2):
            with pytest.raises(DomainError, match=f"{count} pictures of the split 'test': at least 1"):
                domain.split("test", count)


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (7, 7), (3, 8), (5, 1)])
def test_batches_go_through_every_epoch(n, batch):
    steps = 6 * n
    seen = np.concatenate([loop.batch_positions(n, batch, step, seed=3) for step in range(steps)])
    assert len(seen) == steps * batch
    for epoch in range(len(seen) // n):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert len(set(map(tuple, seen[: len(seen) // n * n].reshape(-1, n)))) > 1 or n == 1


def test_exif_that_cannot_be_written_again_turns_the_picture(tmp_path, picture, monkeypatch):
    """As that of some cameras."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    expected = images.read_image(tmp_path / "a.png")
    assert np.array_equal(expected, np.rot90(picture, -1))

    def broken(exif, offset=8):
        raise TypeError("a tag of another type")

    monkeypatch.setattr(Image.Exif, "tobytes", broken)
    assert np.array_equal(images.read_image(tmp_path / "a.png"), expected)


def test_half_of_a_batch_is_turned_round():
    torch.manual_seed(0)
    image = torch.rand(400, 3, 2, 2)
    found = splits.mirrored(image)
    turned = torch.tensor([torch.equal(x, y.flip(2)) for x, y in zip(found, image, strict=True)])
    assert 160 < turned.sum() < 240
    assert torch.equal(found[~turned], image[~turned])


def test_heic_of_phones(tmp_path, picture):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    big, exif = Image.fromarray(picture).resize((96, 64)), Image.Exif()
    exif[0x010F] = "Phone"
    big.save(tmp_path / "a.heic", quality=95, exif=exif)
    found = images.read_image(tmp_path / "a.heic")
    assert np.abs(found.astype(int) - np.asarray(big)).mean() < 8
    photo = paste.read_photo(tmp_path / "a.heic")
    out = tmp_path / f"b{photo.suffix(tmp_path / 'a.heic')}"
    photo.save(photo.pixels, out, tmp_path / "a.heic")
    assert out.suffix == ".jpg" and np.abs(images.read_image(out).astype(int) - found).mean() < 4
    with Image.open(out) as file:
        assert file.getexif()[0x010F] == "Phone"
