"""Films as frames: read one by one, from a file (PyAV) or a folder of pictures, and written again with their sound.

Landmarks of one face in every frame, smoothed over time, so that crops do not jump where the detector does.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from stx.domains import images
from stx.domains.align import Face
from stx.files.atomic import atomic_write
from stx.files.errors import ImageError
from stx.files.outputs import Kind, claim_files, photo_owner

SMOOTH = 2.0  # frames: deviation of the Gaussian over which landmarks are averaged
FAR = 0.75  # of a face's side: further from where it was, a face is another one
MISSED_FRAMES = 12  # frames in which a face may be missed
FORMS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}  # containers that are written
QUALITY = "16"  # constant rate factor of x264: hardly to be told from the input

Frame = UInt8[np.ndarray, "h w 3"]


def is_film(path: str | Path) -> bool:
    """Whether a file's name says that it is a film."""
    return Path(path).suffix.lower() in images.FILMS and Path(path).is_file()


def frame_files(folder: str | Path) -> list[Path]:
    """The pictures of a folder of frames in the order of their names, in which numbers count as such (2 before 10)."""
    files = images.list_images(folder)
    return sorted(files, key=lambda file: [int(n) if n.isdecimal() else n for n in re.split(r"(\d+)", str(file))])


def frames(path: str | Path) -> Iterator[Frame]:
    """The frames of a film, upright, or the pictures of a folder (`frame_files`), as uint8 `[h, w, 3]`.

    Raises `ImageError` for a file that cannot be read, and for pictures of another size than the first.
    """
    if Path(path).is_dir():
        shape = None
        for file in frame_files(path):
            frame = images.read_image(file)
            if shape not in (None, frame.shape):
                raise ImageError(f"{file}: a frame of another size than those before ({frame.shape} after {shape})")
            shape = frame.shape
            yield frame
        return
    av = _library(path)
    with _opened(av, path) as film:
        for frame in film.decode(video=0):
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)


@contextlib.contextmanager
def _opened(av, path: str | Path) -> Iterator:
    try:
        with av.open(str(path)) as film:
            if not film.streams.video:
                raise ImageError(f"{path}: a file without pictures")
            yield film
    except (av.error.FFmpegError, OSError) as error:
        raise ImageError(f"{path}: not a film that can be read ({' '.join(str(error).split())})") from None


def write(path: Path, edited: Iterable[Frame], source: str | Path) -> None:
    """Frames as a film, whole or not at all, with the times of the frames of `source` and its sound as it is.

    Pictures are H.264 at constant quality, of an even number of pixels; packets of sound are copied. Frames whose times
    are missing or go back follow each other at the film's rate. Raises `FileError` where the disk refuses or something
    that stx did not make would be replaced, `ImageError` where the film cannot be written.
    """
    av = _library(source)
    claim_files([path], kind=Kind.EDITED)
    try:
        with atomic_write(path) as part:
            _write(av, part, FORMS.get(path.suffix.lower(), "mp4"), edited, source)
    except av.error.FFmpegError as error:
        raise ImageError(f"{source}: cannot be written as {path.name} ({' '.join(str(error).split())})") from None


def _write(av, part: Path, form: str, edited: Iterable[Frame], source: str | Path) -> None:
    with av.open(str(source)) as film, av.open(str(part), "w", format=form) as made:
        made.metadata["comment"] = f"stx {photo_owner(Path(source))}"
        given, sound = film.streams.video[0], film.streams.audio[0] if film.streams.audio else None
        pictures = made.add_stream("libx264", rate=given.average_rate or 25, options={"crf": QUALITY})
        pictures.pix_fmt, pictures.codec_context.time_base = "yuv420p", given.time_base
        copied = made.add_stream_from_template(sound) if sound is not None else None
        packets = [p for p in film.demux(sound) if p.dts is not None] if sound is not None else []
        film.seek(0)
        times = [frame.pts for frame in film.decode(video=0)]
        if None in times or any(b <= a for a, b in pairwise(times)):
            step = 1 / (given.average_rate or 25) / given.time_base
            times = [round(i * step) for i in range(len(times))]
        for i, (frame, time) in enumerate(zip(edited, times, strict=True)):
            picture = av.VideoFrame.from_ndarray(_even(frame), format="rgb24")
            if not i:
                pictures.width, pictures.height = picture.width, picture.height
            picture.pts, picture.time_base = time, given.time_base
            while packets and packets[0].dts * packets[0].time_base <= time * given.time_base:
                _copy(made, packets.pop(0), copied)
            made.mux(pictures.encode(picture))
        made.mux(pictures.encode())
        for packet in packets:
            _copy(made, packet, copied)


def suffix(path: Path) -> str:
    """Of the film that one is written as: its own where it is written, else that of a container that takes its sound.

    Raises `ImageError` for a film that cannot be read or whose sound none takes.
    """
    av = _library(path)
    endings = sorted(FORMS, key=lambda ending: ending != path.suffix.lower())  # its own first
    with _opened(av, path) as film:
        sound = film.streams.audio[0].codec_context.codec.canonical_name if film.streams.audio else ""
    for ending in endings:
        with av.open(io.BytesIO(), "w", format=FORMS[ending]) as made:
            if not sound or sound in made.supported_codecs:
                return ending
    raise ImageError(f"{path}: no film that is written here holds its sound ({sound}); convert it first")


def _even(frame: Frame) -> Frame:
    return np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])


def _copy(made, packet, stream) -> None:
    packet.stream = stream
    made.mux(packet)


def follow(found: Iterable[list[Face]]) -> list[Face | None]:
    """The largest face of the first frame that has one, in every frame: the nearest to where it was, or None."""
    track: list[Face | None] = []
    last = None
    for faces in found:
        near = sorted(faces, key=lambda face: _distance(face, last)) if last is not None else faces
        chosen = near[0] if near and (last is None or _distance(near[0], last) < FAR) else None
        track.append(chosen)
        last = chosen or last
    return track


def steady(track: list[Face | None], smooth: float = SMOOTH, *, name: str = "film") -> list[Face | None]:
    """The face in every frame: where it was not found its landmarks are interpolated, then all are smoothed over time.

    smooth: deviation of the Gaussian, in frames; 0: as found. A frame further than `MISSED_FRAMES` from any with it has
    None. Raises `ImageError` where there is none at all.
    """
    known = [i for i, face in enumerate(track) if face is not None]
    if not known:
        raise ImageError(f"{name}: no face found in any frame; use a film with a larger, frontal face")
    there = np.stack([track[i].points for i in known]).reshape(len(known), 10)
    every = np.arange(len(track))
    points = np.stack([np.interp(every, known, line) for line in there.T], 1)
    if smooth:
        points = ndimage.gaussian_filter1d(points, smooth, axis=0, mode="nearest")
    far = np.abs(every[:, None] - known).min(1) > MISSED_FRAMES
    like = track[known[0]]
    return [None if far[i] else replace(like, points=points[i].reshape(5, 2)) for i in every]


def _distance(face: Face, other: Face) -> float:
    """Between the middles of two faces, in sides of the other."""
    side = max(other.box[2] - other.box[0], 1.0)
    return float(np.hypot(*(face.points.mean(0) - other.points.mean(0)))) / side


def _library(path: str | Path):
    try:
        import av
    except ImportError:
        raise ImageError(f"{path}: films need PyAV; pip install av, or give a folder of frames") from None
    return av
