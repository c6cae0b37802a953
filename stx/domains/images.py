"""Pictures in and out: files of any kind to uint8 RGB, uint8 to tensors in [-1, 1] and back.

One reader for every path into the package, so that a grey, transparent, 16-bit or rotated file is treated the same
everywhere, and a broken one is refused with its name.
"""

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from stx.files.errors import ImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".avif", ".jp2")
UNREADABLE = (".heic", ".heif")  # pictures that Pillow cannot read: taken up so that they are refused by name
MAX_PIXELS = 100_000_000  # a larger picture is refused before it is decoded


def read_image(path: str | Path | io.BytesIO, *, name: str = "") -> np.ndarray:
    """A picture file, or the bytes of one called `name`, as uint8 RGB `[h, w, 3]`, upright.

    EXIF rotation is applied, transparency is laid on white, grey is repeated to three channels, 16 bits become 8.
    Raises `ImageError` for a missing, truncated, oversized or non-image file.
    """
    name = name or str(path)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: {image.width} x {image.height} pixels is too large; shrink it first")
            image.load()
            return to_rgb(image)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture that Pillow can read; convert it to PNG or JPEG") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: damaged or incomplete picture ({error}); fetch or export it again") from None


def to_rgb(image: Image.Image) -> np.ndarray:
    """An opened picture of any mode as uint8 RGB `[h, w, 3]`, upright (see `read_image`)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        wide = np.asarray(image, dtype=np.float64)
        levels = (65535,) if image.mode.startswith("I;16") else (1, 255, 65535) if image.mode == "F" else (255, 65535)
        white = next((level for level in levels if wide.max() <= level), levels[-1])
        image = Image.fromarray(np.clip(wide / white * 255 + 0.5, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def resize(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Bilinear with antialiasing, the aspect ratio not kept: the public transform (Resize on a PIL image)."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def to_tensor(images: UInt8[np.ndarray, "*batch h w 3"]) -> Float[Tensor, "*batch 3 h w"]:
    """uint8 RGB 0..255 to float32 in [-1, 1], channels first."""
    return torch.from_numpy(np.moveaxis(images, -1, -3).astype(np.float32)) / 127.5 - 1


def to_uint8(images: Float[Tensor, "*batch 3 h w"]) -> UInt8[np.ndarray, "*batch h w 3"]:
    """[-1, 1] to uint8 RGB, rounded to the nearest level; values outside are clipped."""
    levels = ((images.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return np.moveaxis(levels.byte().cpu().numpy(), -3, -1)


def save_image(image: UInt8[np.ndarray, "h w 3"], path: str | Path) -> None:
    """Writes a picture in the format of the path's suffix; the folder is made when it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def list_images(folder: str | Path) -> list[Path]:
    """The picture files below a folder, sorted, without hidden ones. Raises `ImageError` when there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES + UNREADABLE and p.is_file())
    files = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not files:
        raise ImageError(f"{folder}: no pictures in this folder (looked for {', '.join(SUFFIXES)})")
    return files


def grid(images: UInt8[np.ndarray, "n h w 3"], columns: int) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures side by side, row by row; missing places in the last row stay white."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * columns, h, w, 3), 255, np.uint8)
    sheet[:n] = images
    return sheet.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)
