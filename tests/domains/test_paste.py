"""Faces laid back into photographs: geometry, seams, and files that keep what they had."""

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from stx.domains import align, images, paste

pytest.importorskip("facenet_pytorch")
PORTRAITS = {path.stem: path for path in reversed(align.packaged_portraits())}


def psnr(a, b) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean()))


def upright(x: float, y: float, half: float, angle: float = 0.0) -> np.ndarray:
    """Corners of a square about (x, y), turned by an angle in degrees."""
    turn = np.deg2rad(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.array([[-half, -half], [-half, half], [half, half], [half, -half]]) @ matrix.T + (x, y)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 60 * np.sin(x / 19 + k) * np.cos(y / 23 - k) for k in range(3)]
    return np.stack(waves, 2).astype(np.uint8)


@pytest.fixture(scope="module", params=["astronaut", "studio_portrait"])
def portrait(request):
    photo = images.read_image(PORTRAITS[request.param])
    return photo, align.find_faces(photo)


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_an_edit_that_changes_nothing_gives_the_photograph_back(portrait, size):
    photo, faces = portrait
    crops = [align.align(photo, face, size) for face in faces]
    patches = [paste.Patch(align.square(f, photo.shape, size), c, c) for f, c in zip(faces, crops, strict=True)]
    assert (paste.paste(photo, patches) == photo).all()


def test_an_edit_of_every_pixel_lands_where_it_was_made(portrait):
    """The negative of a photograph, cut out, is laid back as its negative: 38 dB and more inside the mask."""
    photo, (face, *_) = portrait
    negative, square = 255 - photo, align.square(face, photo.shape, 1024)
    patch = paste.Patch(square, align.align(photo, face, 1024), align.align(negative, face, 1024))
    found, mask = paste.paste(photo, [patch]), paste.mask(square, photo.shape)
    assert psnr(found[mask > 0.999], negative[mask > 0.999]) > 37
    assert (found[mask == 0] == photo[mask == 0]).all()


@pytest.mark.parametrize(("angle", "x", "y"), [(0, 100, 90), (30, 110, 95), (-80, 20, 170), (10, 195, 10)])
def test_turned_squares_and_squares_over_the_edge(angle, x, y):
    """A crop that is brighter by 40 brightens the photograph by 40 in its middle, also where half of it is outside."""
    photo = smooth(180, 200)
    square = upright(x, y, 60, angle)
    crop = np.full((128, 128, 3), 100, np.uint8)
    found = paste.paste(photo, [paste.Patch(square, crop, crop + 40)]).astype(int)
    y0, x0 = min(y, 179), min(x, 199)
    assert np.abs(found[y0, x0] - 140).max() <= 1
    step = np.abs(np.diff(found - photo.astype(int), axis=0)).max()
    assert step < 16  # faded: no seam


def test_overlapping_faces_do_not_depend_on_their_order():
    photo, crop = smooth(120, 200), np.full((64, 64, 3), 90, np.uint8)
    patches = [paste.Patch(upright(x, 60, 50), crop, crop + 50 * i) for i, x in enumerate((80, 120), start=1)]
    one, other = paste.paste(photo, patches).astype(int), paste.paste(photo, patches[::-1]).astype(int)
    assert np.abs(one - other).max() <= 2  # each is rounded
    assert np.abs(one[60, 100] - 165).max() <= 1  # half of 140, half of 190


def test_colours_of_the_inversion_are_brought_to_the_photographs():
    original = smooth(64, 64)
    inversion = (original * [0.8, 0.9, 1.0] + [20, 5, 10]).round().astype(np.uint8)
    assert np.abs(paste.match_colours(inversion, inversion, original).astype(int) - original).max() <= 2
    redder = inversion.copy()
    redder[..., 0] += 8  # what the edit does stays
    found = paste.match_colours(redder, inversion, original).astype(int) - original
    assert 9 <= found[..., 0].mean() <= 11 and np.abs(found[..., 1:]).mean() < 1


def display_p3() -> bytes:
    """An sRGB profile with the primaries of Display P3."""
    code = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for i in range(struct.unpack(">I", code[128:132])[0]):
        tag, at, _ = struct.unpack(">4sII", code[132 + 12 * i : 144 + 12 * i])
        if tag in primaries:
            code[at + 8 : at + 20] = struct.pack(">3i", *(round(65536 * v) for v in primaries[tag]))
    return bytes(code).replace("sRGB".encode("utf-16-be"), "P3 3".encode("utf-16-be"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_exif_and_profile_are_kept(tmp_path, orientation):
    exif, profile = Image.Exif(), display_p3()
    exif[paste.ORIENTATION], exif[ExifTags.Base.Make] = orientation, "Camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:01:02 03:04:05"
    Image.fromarray(smooth(48, 80)).save(tmp_path / "in.png", exif=exif, icc_profile=profile)
    photo = paste.read_photo(tmp_path / "in.png")
    assert photo.pixels.shape[:2] == ((48, 80) if orientation < 5 else (80, 48))
    photo.save(photo.pixels, tmp_path / "out.png", tmp_path / "in.png")
    with Image.open(tmp_path / "in.png") as before, Image.open(tmp_path / "out.png") as after:
        assert (np.asarray(before) == np.asarray(after)).all()
        assert after.info["icc_profile"] == profile
        assert after.getexif()[paste.ORIENTATION] == orientation and after.getexif()[ExifTags.Base.Make] == "Camera"
        assert after.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal].startswith("2024")


@pytest.mark.parametrize("suffix", ["tif", "jpg", "webp"])
def test_turned_photographs_of_other_formats(tmp_path, suffix):
    exif = Image.Exif()
    exif[paste.ORIENTATION] = 6
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:, :40] = 255  # on the left, upright above
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", exif=exif)
    photo = paste.read_photo(tmp_path / f"a.{suffix}")
    assert photo.pixels.shape == (80, 48, 3) and photo.pixels[:36].min() > 240 and photo.pixels[44:].max() < 15
    photo.save(photo.pixels, tmp_path / f"b.{suffix}", tmp_path / f"a.{suffix}")
    assert np.abs(images.read_image(tmp_path / f"b.{suffix}").astype(int) - photo.rgb).max() < 15


def test_a_crop_is_brought_into_the_photographs_colours(tmp_path):
    """Pure red of sRGB is less than the red of Display P3: (234, 51, 35) there."""
    picture = Image.new("RGB", (40, 40), (120, 130, 140))
    picture.save(tmp_path / "p3.png", icc_profile=display_p3())
    photo = paste.read_photo(tmp_path / "p3.png")
    red = np.full((16, 16, 3), (255, 0, 0), np.uint8)
    assert np.abs(photo.own_colours(red)[8, 8].astype(int) - (234, 51, 35)).max() <= 1
    assert np.abs(photo.rgb[0, 0].astype(int) - photo.pixels[0, 0]).max() > 0


@pytest.mark.parametrize(
    ("name", "mode", "worst"),
    [
        ("a.jpg", "RGB", 2), ("a.jpg", "L", 2), ("a.tif", "RGB", 0), ("a.webp", "RGBA", 0),
        ("a.png", "RGBA", 0), ("a.avif", "RGB", 12), ("a.bmp", "RGB", 0), ("a.png", "P", 0), ("a.gif", "P", 0),
    ],
)  # fmt: skip
def test_the_format_is_kept_and_the_rest_of_the_picture(tmp_path, name, mode, worst):
    picture = Image.fromarray(smooth(64, 96)).convert(mode)
    options = {"a.jpg": {"quality": 83, "subsampling": 2}, "a.webp": {"lossless": True, "exact": True}}.get(name, {})
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(tmp_path / name, **options)
    photo = paste.read_photo(tmp_path / name)
    out = tmp_path / f"out{photo.suffix(tmp_path / name)}"
    photo.save(photo.pixels, out, tmp_path / name)
    assert out.suffix == {"a.bmp": ".png", "a.gif": ".png"}.get(name, "." + name.split(".")[1])
    with Image.open(tmp_path / name) as before, Image.open(out) as after:
        assert after.mode == (mode if mode != "P" else "RGB")
        difference = np.asarray(before.convert(after.mode)).astype(int) - np.asarray(after)
        assert np.abs(difference).max() <= worst


def test_no_preview_of_the_face_before_the_edit_stays(tmp_path):
    """Cameras put a thumbnail into EXIF: it would still show what was there before."""
    small = io.BytesIO()
    Image.fromarray(smooth(12, 16)).save(small, "JPEG")
    head = b"Exif\0\0MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x0f\0\x02\0\0\0\x04Cam\0" + b"\0\0\0\x1a"
    second = b"\0\x02" + struct.pack(">HHII", 0x0201, 4, 1, 26 + 2 + 24 + 4)
    second += struct.pack(">HHII", 0x0202, 4, 1, len(small.getvalue())) + b"\0\0\0\0"
    Image.fromarray(smooth(48, 80)).save(tmp_path / "a.jpg", exif=head + second + small.getvalue())
    assert (tmp_path / "a.jpg").read_bytes().count(b"\xff\xd8\xff") == 2
    photo = paste.read_photo(tmp_path / "a.jpg")
    photo.save(photo.pixels, tmp_path / "b.jpg", tmp_path / "a.jpg")
    assert (tmp_path / "b.jpg").read_bytes().count(b"\xff\xd8\xff") == 1
    with Image.open(tmp_path / "b.jpg") as after:
        assert after.getexif()[ExifTags.Base.Make] == "Cam"
