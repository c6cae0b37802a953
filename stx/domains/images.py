"""Pictures in and out: files of any kind to uint8 RGB, uint8 to tensors in [-1, 1] and back.

One reader for every path into the package, so that a grey, transparent, 16-bit or rotated file is treated the same
everywhere, and a broken one is refused with its name.
"""

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from stx.files.atomic import atomic_write
from stx.files.errors import ImageError, InputError
from stx.files.outputs import LOCK, ORIENTATION, Kind, claim_files, is_folder, png_note

JPEG, TIFF = (".jpg", ".jpeg", ".jpe", ".jfif"), (".tif", ".tiff")
SUFFIXES = (".png", *JPEG, ".webp", ".bmp", *TIFF, ".ppm", ".pgm", ".gif", ".avif", ".jp2", ".tga")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF", "JPEG2000")  # whatever the suffix says
HEIF = (".heic", ".heif")  # of iPhones: read with pillow-heif, and refused by name without it
FILMS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".3gp", ".flv", ".wmv", ".mts", ".ogv")
MAX_PIXELS = 100_000_000  # a larger picture is refused before it is decoded
WHITES = {"I": (255, 65535), "F": (1, 255, 65535)}  # by Pillow's mode: where the values of a wide picture may end
BITS = 258  # TIFF's tag of bits per sample
OVERSHOOT = 0.05  # of a range: by which a resampled picture may leave it
DARKEST = 1 / 16  # of a range: a picture with nothing brighter is of another one, such as HDR or 10 bits
TURNS = {  # as `ImageOps.exif_transpose`, which fails where EXIF can be read but not written again
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path | io.BytesIO, *, name: str = "") -> np.ndarray:
    """A picture file, or the bytes of one called `name`, as uint8 RGB `[h, w, 3]`, upright.

    EXIF rotation is applied, colours are brought to sRGB, transparency is laid on white, grey is repeated to three
    channels, 16 bits become 8. Raises `ImageError` for a missing, truncated, oversized or non-image file, and for HEIC
    without the package pillow-heif.
    """
    name = name or str(path)
    if name.lower().endswith(HEIF) and not _reads_heif():
        raise ImageError(f"{name}: a HEIC picture, as iPhones take; pip install pillow-heif, or export it as JPEG")
    formats = [*FORMATS, *(["TGA"] if name.lower().endswith(".tga") else [])]  # TGA has no magic number
    formats += ["HEIF"] if name.lower().endswith(HEIF) else []
    try:
        if not isinstance(path, io.BytesIO) and os.path.lexists(path) and not Path(path).is_file():
            if not Path(path).exists():
                raise ImageError(f"{name}: a link to a file that is not there; fetch it (git annex get, dvc pull)")
            raise ImageError(f"{name}: a folder, a pipe or a device; expected the file of a picture")
        with _unwarned(), Image.open(path, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: {image.width} x {image.height} pixels is too large; shrink it first")
            image.load()
            return _rgb(image, name)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {MAX_PIXELS} pixels is too large; shrink it first") from None
    except UnidentifiedImageError:
        if name.lower().endswith(FILMS):
            raise ImageError(f"{name}: a film, not a picture; `stx edit --paste` edits films") from None
        raise ImageError(f"{name}: not a picture that Pillow can read; convert it to PNG or JPEG") from None
    except Exception as error:  # decoders raise every kind: struct.error, NotImplementedError, MemoryError, ...
        raise ImageError(f"{name}: {_damage(error)}") from None


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Without Pillow's warnings of large pictures and odd metadata, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _reads_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """An opened picture of any mode as uint8 RGB `[h, w, 3]`, upright (see `read_image`). Raises `ImageError`."""
    name = getattr(image, "filename", "") or "picture"
    try:
        return _rgb(image, name)
    except ImageError:
        raise
    except Exception as error:  # an opened file may be decoded only here
        raise ImageError(f"{name}: {_damage(error)}") from None


def _damage(error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"damaged or incomplete picture ({reason}); fetch or export it again"


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    if not image.width * image.height:
        raise ImageError(f"{name}: a picture without pixels; export it again")
    full = _full_range(image)
    image = _to_srgb(upright(image))
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, full, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def upright(image: Image.Image) -> Image.Image:
    """An opened picture turned as its EXIF says."""
    image.load()  # which turns a TIFF already
    turn = TURNS.get(exif_of(image).get(ORIENTATION))
    return image if turn is None else image.transpose(turn)


def exif_of(image: Image.Image) -> Image.Exif:
    """The EXIF of an opened picture; empty where it cannot be read."""
    try:
        exif = image.getexif()
        exif.get(ORIENTATION)  # tags are parsed when they are asked for
        return exif
    except Exception:  # the parser raises many kinds; the pixels are fine
        return Image.Exif()


def _full_range(image: Image.Image) -> int | None:
    """What white is in a picture that Pillow keeps in 16 bits, or scaled to them; None where only values can tell."""
    if image.mode == "I" and image.format == "PPM":
        return 65535  # scaled by Pillow
    if image.mode.startswith("I;16"):
        return 4095 if getattr(image, "tag_v2", {}).get(BITS) == (12,) else 65535
    return None


def _eight_bits(image: Image.Image, full: int | None, name: str) -> Image.Image:
    """A picture of wide integers or floats in 8 bits. Raises `ImageError` for values of no range that is known."""
    wide = np.asarray(image, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise ImageError(f"{name}: has values that are not finite (NaN or infinite); export it again")
    low, high, whites = wide.min(), wide.max(), WHITES[image.mode[0]]
    white = full or next((level for level in whites if high <= level * (1 + OVERSHOOT)), None)
    dark = white not in (None, full, 1) and 0 < high < white * DARKEST
    if white is None or low < -white * OVERSHOOT or dark:
        known = ", ".join(f"0 to {level}" for level in whites)
        raise ImageError(f"{name}: values from {low:g} to {high:g}, not of {known}; export it with 8 or 16 bits")
    clear = image.info.get("transparency")
    wide = np.where(wide == clear, white, wide) if isinstance(clear, int) else wide  # on white, as in `_rgb`
    return Image.fromarray(np.clip(wide / white * 255 + 0.5, 0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image) -> Image.Image:
    """A picture with a colour profile in sRGB; as it is without one, or where it is broken or does not fit."""
    if not (code := image.info.get("icc_profile")):
        return image
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(code))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image
        if image.mode in ("P", "LA", "PA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
    except Exception:  # lcms and the parser of profiles raise many kinds; the pixels are fine
        return image


def resize(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Bilinear with antialiasing, the aspect ratio not kept: the public transform (Resize on a PIL image)."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def to_tensor(images: UInt8[np.ndarray, "*batch h w 3"]) -> Float[Tensor, "*batch 3 h w"]:
    """uint8 RGB 0..255 to float32 in [-1, 1], channels first. Raises `InputError` for other numbers or channels."""
    if images.dtype != np.uint8 or images.shape[-1] != 3:
        raise InputError(f"pictures of {images.dtype} {images.shape}: expected uint8 [..., h, w, 3]")
    return torch.from_numpy(np.moveaxis(images, -1, -3).astype(np.float32)) / 127.5 - 1


def padded(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 w w"]:
    """Pictures no higher than wide between the black bars that `Domain.view` cuts off; square ones as they are."""
    height, width = image.shape[2:]
    bar = (width - height) // 2
    return F.pad(image, (0, 0, bar, width - height - bar), value=-1.0)


def to_uint8(images: Float[Tensor, "*batch 3 h w"]) -> UInt8[np.ndarray, "*batch h w 3"]:
    """[-1, 1] to uint8 RGB, rounded to the nearest level; values outside are clipped.

    Raises `InputError` for values that are not finite, which would be black.
    """
    if not torch.isfinite(images).all():
        raise InputError("pictures that are not finite (NaN or infinite)")
    levels = ((images.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return np.moveaxis(levels.byte().cpu().numpy(), -3, -1)


def save_image(
    image: UInt8[np.ndarray, "h w 3"], path: str | Path, *, source: str = "", kind: str = Kind.PICTURE
) -> None:
    """Writes a picture as PNG, whole or not at all; its folder is made when missing.

    source: the file that it shows, kept in it as its kind is. Raises `InputError` for what is not uint8 `[h, w, 3]`,
    `FileError` for a name that does not end in .png, and where something that stx did not make, or made as another
    kind, would be replaced.
    """
    path, image = Path(path), _pixels(image)
    claim_files([path], kind=kind, suffixes=(".png",))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        Image.fromarray(image).save(part, format="PNG", pnginfo=png_note(source, kind))


def list_images(folder: str | Path) -> list[Path]:
    """The picture files below a folder and folders linked there, sorted, without hidden ones and those stx writes into.

    Links to nothing and pipes that are called like pictures are among them: reading them tells what is wrong. Raises
    `ImageError` when there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    files = sorted(p for p in _shown(folder) if p.suffix.lower() in SUFFIXES + HEIF)
    if not files:
        raise ImageError(f"{folder}: no pictures in this folder (looked for {', '.join(SUFFIXES)})")
    return files


def _shown(folder: Path) -> Iterator[Path]:
    """The files below a folder, those of linked folders too, but not what is hidden or where stx writes."""
    for place, folders, files in os.walk(folder, followlinks=True):
        above = [os.path.realpath(place), *map(str, Path(os.path.realpath(place)).parents)]
        below = [name for name in folders if not name.startswith(".") and not Path(place, name, LOCK).is_file()]
        folders[:] = [name for name in below if os.path.realpath(Path(place, name)) not in above]  # a link in a circle
        yield from (Path(place, name) for name in files if not name.startswith("."))


def grid(images: UInt8[np.ndarray, "n h w 3"], columns: int) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures side by side, row by row; missing places in the last row stay white."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * columns, h, w, 3), 255, np.uint8)
    sheet[:n] = images
    return sheet.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)


def names_of(paths: Sequence[str | Path]) -> list[Path]:
    """The picture files that paths mean: files as they are, folders as all pictures below them, no empty names."""
    found: list[Path] = []
    if "" in paths:  # it would be the current folder
        raise InputError("an empty name of a picture; name a file or a folder")
    for path in map(Path, paths):
        found += list_images(path) if is_folder(path) else [path]
    return found


def arrays(picture) -> list[np.ndarray]:
    """Pictures as uint8 RGB `[h, w, 3]`: of a path or a folder, a PIL image, or such an array.

    Raises `ImageError` naming an unusable file, `InputError` for an array of another type or shape.
    """
    if isinstance(picture, str | Path):
        return [read_image(path) for path in names_of([picture])]
    if isinstance(picture, Image.Image):
        return [to_rgb(picture)]
    return [_pixels(picture, "a path, a PIL image or ")]


def _pixels(picture, others: str = "") -> UInt8[np.ndarray, "h w 3"]:
    array = np.asarray(picture) if hasattr(picture, "__array__") else None
    if array is None or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        kind = type(picture).__name__ if array is None else f"{array.dtype} {array.shape}"
        raise InputError(f"a picture of {kind}: expected {others}uint8 [h, w, 3]")
    return array
