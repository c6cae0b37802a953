"""Edited faces back in the photograph they were cut from: the inverse of `stx.domains.align`; files that stay alike.

The crop is warped back, feathered towards its border, and laid over the photograph. Where an edit leaves the crop as it
was, the photograph's own pixels stay, so that an edit that changes nothing gives it back to the bit.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms, JpegImagePlugin
from scipy import ndimage

from stx.domains import images
from stx.files.atomic import atomic_write
from stx.files.errors import ImageError, StxError
from stx.files.outputs import ORIENTATION, Kind, claim_files, mark_photo
from stx.files.untrusted import one_line

MARGIN, FEATHER = 0.02, 0.15  # of a crop's border: left out, and faded over, in crop sides
UNCHANGED = 6.0  # levels of 255 by which a crop may differ and still keep half of the photograph's own detail
SPREAD = 0.01  # over which that difference is averaged, in crop sides
MAX_GAIN = 1.5  # of contrast, where colours are matched
CENTRE, FACE_WIDTH = (0.5, 0.55), 0.22  # of the face in its crop, in crop sides: where colours are compared
MAX_JPEG_EXIF = 65_533  # bytes
KEPT = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif"}
BACK = {  # from upright pixels to those that an EXIF orientation stands for
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Patch:
    """A face to lay over a photograph. square: see `align.square`; original: its crop; edited: what to show instead."""

    square: Float[np.ndarray, "4 2"]
    original: UInt8[np.ndarray, "size size 3"]
    edited: UInt8[np.ndarray, "size size 3"]


def paste(photo: UInt8[np.ndarray, "h w 3"], patches: Sequence[Patch]) -> UInt8[np.ndarray, "h w 3"]:
    """The photograph with the patches laid over it; where two overlap, each has the share of its own mask."""
    result = photo.copy()
    for i, patch in enumerate(patches):
        low = np.clip(np.floor(patch.square.min(0)).astype(int), 0, photo.shape[1::-1])
        high = np.clip(np.ceil(patch.square.max(0)).astype(int), 0, photo.shape[1::-1])
        if (high <= low).any():
            continue
        part = np.s_[low[1] : high[1], low[0] : high[0]]
        masks = np.stack([_mask(other.square, low, high) for other in patches])
        weight = masks[i] ** 2 / masks.sum(0).clip(1e-6)
        below = photo[part].astype(np.float32)
        edited, original = (_warped(crop, patch.square, low, high) for crop in (patch.edited, patch.original))
        value = edited + _unchanged(patch, low, high)[..., None] * (below - original)
        change = weight[..., None] * (value - below)
        result[part] = np.clip(np.rint(result[part] + change), 0, 255).astype(np.uint8)
    return result


def mask(square: Float[np.ndarray, "4 2"], photo: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
    """How much of a pasted face each pixel of a photo of that shape shows: 1 inside, fading to 0 at its border."""
    return _mask(square, np.zeros(2, int), np.array(photo[1::-1]))


def match_colours(
    edited: UInt8[np.ndarray, "size size 3"],
    inversion: UInt8[np.ndarray, "size size 3"],
    original: UInt8[np.ndarray, "size size 3"],
) -> UInt8[np.ndarray, "size size 3"]:
    """An edited face in the colours of the photograph: what brings its inversion to the original, channel by channel.

    Mean and contrast of the face (Reinhard et al. 2001). What the edit itself does to colours is kept.
    """
    return apply_colours(edited, colour_shift(inversion, original))


def colour_shift(
    inversion: UInt8[np.ndarray, "size size 3"], original: UInt8[np.ndarray, "size size 3"]
) -> Float[np.ndarray, "2 3"]:
    """Gain and offset of each channel by which an inversion becomes its original, in mean and contrast."""
    side = np.arange(len(original)) / len(original)
    weight = np.exp(-((side[:, None] - CENTRE[1]) ** 2 + (side - CENTRE[0]) ** 2) / (2 * FACE_WIDTH**2))[..., None]
    weight = weight / weight.sum()
    (mean, spread), (wanted, contrast) = (_moments(face.astype(np.float64), weight) for face in (inversion, original))
    gain = np.clip(contrast / np.maximum(spread, 1.0), 1 / MAX_GAIN, MAX_GAIN)
    return np.stack([gain, wanted - gain * mean])


def apply_colours(
    face: UInt8[np.ndarray, "size size 3"], shift: Float[np.ndarray, "2 3"]
) -> UInt8[np.ndarray, "size size 3"]:
    """`gain * face + offset`, channel by channel."""
    return np.clip(np.rint(face * shift[0] + shift[1]), 0, 255).astype(np.uint8)


def _moments(face: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = (face * weight).sum((0, 1))
    return mean, np.sqrt(((face - mean) ** 2 * weight).sum((0, 1)))


def _to_crop(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(matrix, start): `matrix @ (point - start)` is where a point of the photo lies in the crop, in crop sides."""
    return np.linalg.inv(np.stack([square[3] - square[0], square[1] - square[0]], 1)), square[0]


def _mask(square: np.ndarray, low: np.ndarray, high: np.ndarray) -> Float[np.ndarray, "h w"]:
    """1 inside of a square, fading to 0 towards its border and 0 outside, on the pixels from `low` to `high`."""
    matrix, start = _to_crop(square)
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32) + 0.5
    mask = np.ones(x.shape, np.float32)
    for row in matrix:
        along = row[0] * (x - start[0]) + row[1] * (y - start[1])
        t = np.clip((np.minimum(along, 1 - along) - MARGIN) / FEATHER, 0, 1)
        mask *= t * t * (3 - 2 * t)
    return mask


def _warped(crop: np.ndarray, square: np.ndarray, low: np.ndarray, high: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    """A crop where it lies in the photograph, twice as fine and averaged, on the pixels from `low` to `high`."""
    side = max(round(2 * float(np.hypot(*(square[3] - square[0])))), 1)
    picture = Image.fromarray(crop)
    if side < len(crop):
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    matrix, start = _to_crop(square)
    matrix = matrix * picture.width
    offset, fine = matrix @ (low - start), matrix / 2
    coefficients = (*fine[0], offset[0], *fine[1], offset[1])
    width, height = (int(n) for n in high - low)
    upright = picture.transform((2 * width, 2 * height), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    return np.asarray(upright.resize((width, height), Image.Resampling.BOX)).astype(np.float32)


def _unchanged(patch: Patch, low: np.ndarray, high: np.ndarray) -> Float[np.ndarray, "h w"]:
    """1 where the edit left the crop as it was, falling to 0 where it changed."""
    size = len(patch.edited)
    change = np.abs(patch.edited.astype(np.float32) - patch.original).mean(2)
    same = 0.5 ** ((ndimage.gaussian_filter(change, max(SPREAD * size, 1)) / UNCHANGED) ** 2)
    levels = np.repeat((np.rint(255 * same))[..., None], 3, 2).astype(np.uint8)
    return _warped(levels, patch.square, low, high)[..., 0] / 255


@dataclass(frozen=True)
class Photo:
    """A photograph as its file has it. rgb: upright in sRGB, for networks; pixels: upright in its own colours.

    Of the file: its format, mode ("L", "RGB" or "RGBA"), EXIF, colour profile, and what a JPEG was compressed with.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    pixels: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None
    mode: str
    format: str
    exif: Image.Exif
    profile: bytes | None
    compression: dict

    def suffix(self, path: Path) -> str:
        """Of the file that `save` writes: that of `path` where it says the format.

        HEIC comes back as JPEG, formats without EXIF as PNG.
        """
        known = Image.registered_extensions().get(path.suffix.lower())
        return path.suffix if known == self.format and self.format in KEPT else KEPT.get(self.format, ".png")

    def own_colours(self, crop: UInt8[np.ndarray, "size size 3"]) -> UInt8[np.ndarray, "size size 3"]:
        """A crop in sRGB in the colours of the photograph's profile."""
        if self.profile is None or self.mode == "L":
            return crop
        own = ImageCms.getOpenProfile(io.BytesIO(self.profile))
        return np.asarray(ImageCms.profileToProfile(Image.fromarray(crop), ImageCms.createProfile("sRGB"), own))

    def paste(self, patches: Sequence[Patch]) -> UInt8[np.ndarray, "h w 3"]:
        """Its pixels with patches, whose crops are in sRGB, laid over them."""
        own = [Patch(p.square, self.own_colours(p.original), self.own_colours(p.edited)) for p in patches]
        return paste(self.pixels, own)

    def save(self, pixels: UInt8[np.ndarray, "h w 3"], path: Path, source: Path) -> None:
        """Writes upright pixels of its own colours as the file was: format, orientation, EXIF, profile, compression.

        source: the photograph's file, of which a checksum of the name is kept. Raises `FileError` as `save_image`,
        `ImageError` for what its format cannot hold.
        """
        picture = Image.fromarray(pixels)
        if self.alpha is not None:
            picture.putalpha(Image.fromarray(self.alpha))
        picture = picture.convert("L") if self.mode == "L" else picture
        if (back := BACK.get(self.exif.get(ORIENTATION))) is not None:
            picture = picture.transpose(back)
        kind = Image.registered_extensions()[path.suffix.lower()]
        exif = mark_photo(self.exif, source, most=MAX_JPEG_EXIF if kind == "JPEG" else None)
        claim_files([path], kind=Kind.EDITED)
        try:
            with atomic_write(path) as part:
                picture.save(part, format=kind, exif=exif, icc_profile=self.profile, **self.compression)
        except StxError:
            raise
        except Exception as error:  # encoders raise every kind
            raise ImageError(f"{source}: cannot be written as {path.name} ({one_line(error)})") from None


def read_photo(path: str | Path) -> Photo:
    """A photograph to paste into. Raises `ImageError` as `images.read_image`, and for animations and several pages.

    Colours of modes that are not read as they are (palettes, CMYK, 16 bits) become sRGB.
    """
    rgb = images.read_image(path)
    with Image.open(path) as image:
        count = 1 if image.format in ("MPO", "HEIF") else getattr(image, "n_frames", 1)  # theirs are previews
        if count > 1:
            raise ImageError(
                f"{path}: {count} frames or pages, of which one would stay; save them as a folder (--frames)"
            )
        kind = "JPEG" if image.format in ("MPO", "HEIF") else image.format
        compression = _compression(image)
        exif, upright = images.exif_of(image), images.upright(image)
        profile, mode = image.info.get("icc_profile"), upright.mode
        if mode not in ("L", "RGB", "RGBA") or (mode == "L" and profile) or not _usable(profile):
            return Photo(rgb, rgb, None, "RGB", kind, exif, None, compression)
        alpha = np.asarray(upright.getchannel("A")) if mode == "RGBA" else None
        return Photo(rgb, np.asarray(upright.convert("RGB")), alpha, mode, kind, exif, profile, compression)


def _compression(image: Image.Image) -> dict:
    """How the file was compressed, as far as it can be told: a JPEG's tables, with which the rest comes out alike."""
    if image.format in ("JPEG", "MPO"):
        sampling = JpegImagePlugin.get_sampling(image)
        return {"qtables": image.quantization} | ({"subsampling": sampling} if sampling >= 0 else {})
    if image.format == "WEBP":
        image.fp.seek(0)
        lossless = b"VP8L" in image.fp.read(4096)
        return {"lossless": True, "exact": True} if lossless else {"quality": 95}
    return {"AVIF": {"quality": 95}, "HEIF": {"quality": 95, "subsampling": 0}}.get(image.format, {})


def _usable(profile: bytes | None) -> bool:
    """Whether colours can be brought into a profile; without one they can stay as they are."""
    if profile is None:
        return True
    try:
        own, srgb = ImageCms.getOpenProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        ImageCms.profileToProfile(Image.new("RGB", (1, 1)), srgb, own)
        return True
    except Exception:  # lcms and the parser of profiles raise many kinds
        return False
