"""Faces in photographs, cut out as FFHQ's are: an upright square by eyes and mouth, mirrored where the photo ends.

The landmarks come from MTCNN (Zhang et al. 2016) with the weights inside the PyPI package `facenet-pytorch`; the crop
is that of FFHQ (Karras et al. 2019, arXiv 1812.04948), which takes the centres of the eyes and the corners of the
mouth, so that MTCNN's five points suffice.
"""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from stx.domains import images
from stx.files.errors import ImageError, WeightsError

CONFIDENCE = 0.95  # of a detection
DETECTED_SIDE = 1024  # larger photos are looked at in this size
SUPERSAMPLE = 4  # pixels of the rotated picture per pixel of the crop, along a side
EYE_SPAN, FACE_SPAN, LIFT = 2.0, 1.8, 0.1  # FFHQ's: half side by eyes, by eyes to mouth; centre below the eyes
PAD, BLUR = 0.3, 0.02  # width of the faded border and radius of its blur, in crop sides


@dataclass(frozen=True)
class Face:
    """A face in a photo, in its pixels. points: left eye, right eye (as seen), nose, left and right mouth corner."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    points: Float[np.ndarray, "5 2"]
    confidence: float


@functools.cache
def _detector(device: str):
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        raise WeightsError("no face detector: run pip install --no-deps facenet-pytorch==2.6.0") from None
    here = "cpu" if device.startswith("mps") else device  # MTCNN pools to sizes that MPS does not take
    return MTCNN(keep_all=True, device=here)


def find_faces(photo: UInt8[np.ndarray, "h w 3"], *, device: str = "cpu") -> list[Face]:
    """The faces in a photo, the largest first; an empty list when there is none.

    Raises `WeightsError` when the detector is not installed.
    """
    scale = min(1.0, DETECTED_SIDE / max(photo.shape[:2]))
    small = Image.fromarray(photo).resize([max(round(n * scale), 1) for n in photo.shape[1::-1]], Image.BILINEAR)
    if min(small.size) < 20:  # smaller than the smallest face
        return []
    boxes, sure, points = _detector(device).detect(small, landmarks=True)
    if boxes is None:
        return []
    faces = [
        Face(tuple((box / scale).tolist()), np.asarray(p, float) / scale, float(s))
        for box, p, s in zip(boxes, points, sure, strict=True)
        if s >= CONFIDENCE
    ]
    return sorted(faces, key=lambda face: (face.box[0] - face.box[2]) * (face.box[3] - face.box[1]))


def crop_corners(points: Float[np.ndarray, "5 2"]) -> Float[np.ndarray, "4 2"]:
    """FFHQ's square around a face: its corners in pixels, from the top left one against the clock."""
    left_eye, right_eye, _, left_mouth, right_mouth = points
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    across, down = right_eye - left_eye, mouth - eyes
    x = across - down[::-1] * [-1, 1]  # along the eyes, and at right angles to the line to the mouth
    x *= max(np.hypot(*across) * EYE_SPAN, np.hypot(*down) * FACE_SPAN) / np.hypot(*x)
    y = x[::-1] * [-1, 1]
    centre = eyes + down * LIFT
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def square(face: Face, photo: tuple[int, ...], size: int) -> Float[np.ndarray, "4 2"]:
    """Where the crop of `align` lies in a photo of that shape: its corners, counted from the photo's corner.

    Half a pixel from `crop_corners`, as FFHQ's code has it, and by what large photos are shrunk to before.
    """
    corners = crop_corners(face.points)
    factor = _shrinking(float(np.hypot(*(corners[3] - corners[0]))), size)
    scale = [n / max(round(n / factor), 1) for n in photo[1::-1]]
    return (corners / factor + 0.5) * scale


def align(photo: UInt8[np.ndarray, "h w 3"], face: Face, size: int = 1024) -> UInt8[np.ndarray, "size size 3"]:
    """The face upright in a square of `size` pixels, as in FFHQ; mirrored, blurred borders fill what is missing."""
    corners = crop_corners(face.points)
    side = np.hypot(*(corners[3] - corners[0]))
    photo, corners, side = _shrink(photo, corners, side, size)
    photo, corners = _cut(photo, corners, side)
    photo, corners = _extend(photo, corners, side)
    fine = SUPERSAMPLE * size
    quad = tuple((corners + 0.5).flatten())
    upright = Image.fromarray(photo).transform((fine, fine), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    return np.asarray(upright.resize((size, size), Image.Resampling.LANCZOS))


def faces_in(path: str | Path, size: int = 1024, *, device: str = "cpu") -> list[UInt8[np.ndarray, "size size 3"]]:
    """The aligned faces of a photo file, the largest first. Raises `ImageError` for a bad file or one without faces."""
    photo = images.read_image(path)
    found = find_faces(photo, device=device)
    if not found:
        raise ImageError(f"{path}: no face found; use a photo with a larger, frontal face")
    return [align(photo, face, size) for face in found]


def packaged_portraits() -> list[Path]:
    """Photographs that ship in PyPI packages, where installed: an astronaut and synthetic people."""
    found = []
    for package, pattern in (("skimage", "data/astronaut.png"), ("openpeople", "data/curated/*/assets/*.jpg")):
        spec = importlib.util.find_spec(package)  # found, not imported
        found += sorted(Path(spec.origin).parent.glob(pattern)) if spec else []
    first = {"astronaut": 0, "emotions_sheet": 1, "amateur_selfie": 2, "studio_portrait": 3}
    return sorted((p for p in found if p.stem in first), key=lambda p: (first[p.stem] != 0, p.parts[-3], first[p.stem]))


def portrait_name(path: Path) -> str:
    """Person and photo: openpeople's `P001/selfie`, else the folder and name of the file."""
    return f"{path.parts[-3] if path.parent.name == 'assets' else path.parent.name}/{path.stem}"


def _shrinking(side: float, size: int) -> int:
    """The whole number by which a photo is made smaller before a face of `side` is cut out."""
    factor = int(side / size / 2)
    return factor if factor >= 2 else 1


def _shrink(photo: np.ndarray, corners: np.ndarray, side: float, size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Photos far larger than the crop, by a whole factor."""
    factor = _shrinking(side, size)
    if factor == 1:
        return photo, corners, side
    width, height = (max(round(n / factor), 1) for n in photo.shape[1::-1])
    small = Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(small), corners / factor, side / factor


def _cut(photo: np.ndarray, corners: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """The part of the photo around the square."""
    border = max(round(side * 0.1), 3)
    low = np.maximum(np.floor(corners.min(0)).astype(int) - border, 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + border, photo.shape[1::-1])
    return photo[low[1] : high[1], low[0] : high[0]], corners - low


def _extend(photo: np.ndarray, corners: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the square leaves the photo: mirrored, the mirrored part fading into blur and then the median colour."""
    border = max(round(side * 0.1), 3)
    height, width = photo.shape[:2]
    before = np.maximum(np.ceil(-corners.min(0)).astype(int) + border, 0)
    after = np.maximum(np.ceil(corners.max(0) - (width, height)).astype(int) + border, 0)
    if max(*before, *after) <= border - 4:
        return photo, corners
    least = max(round(side * PAD), 1)
    widths = [(max(int(a), least), max(int(b), least)) for a, b in zip(before, after, strict=True)]
    big = np.pad(photo.astype(np.float64), (widths[1], widths[0], (0, 0)), mode="reflect")
    far = np.maximum(_beyond(big.shape[0], *widths[1])[:, None], _beyond(big.shape[1], *widths[0]))[..., None]
    blur = side * BLUR
    blurred = ndimage.gaussian_filter(big, (blur, blur, 0))
    big += (blurred - big) * np.clip(far * 3 + 1, 0, 1)
    big += (np.median(big, axis=(0, 1)) - big) * np.clip(far, 0, 1)
    return np.clip(np.rint(big), 0, 255).astype(np.uint8), corners + (widths[0][0], widths[1][0])


def _beyond(length: int, before: int, after: int) -> np.ndarray:
    """Along an axis: 1 at its ends, falling to 0 at the photo's edges `before` and `after` them, below 0 inside."""
    at = np.arange(length)
    return 1 - np.minimum(at / before, (length - 1 - at) / after)
