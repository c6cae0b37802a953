"""Photographs and films whose faces are edited in place: found, aligned, inverted, edited, and laid back.

In a film, landmarks and colours are smoothed over time and one edit, that of the average code, serves all frames (after
Tzaban et al. 2022, 2201.08361, who tune the generator too): what the encoder sees from frame to frame stays.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from stx.domains import align, images, paste, video
from stx.domains.align import Face
from stx.files.errors import ImageError
from stx.files.outputs import Kind, Names, claim_files, claim_output, films_in, lock_output, photo_owner, photos_in
from stx.perception.lpips import load_lpips
from stx.pipeline import Codes, Pipeline
from stx.runtime import batches, progress

COLOURS = 8.0  # frames: deviation of the Gaussian over which colour shifts are averaged
DRAWN_SIDE = 2048  # pixels of all faces that are drawn at a time, side by side
LOOKED_AT = 256  # side of the crops whose flicker is measured
Edit = Callable[[Tensor], Codes]


def edit_photo(
    pipe: Pipeline, photo: paste.Photo, edit: Edit, *, name: str = "photograph", detail: str = "codes"
) -> np.ndarray:
    """A photograph with all its faces edited, upright in its own colours, uint8 `[h, w, 3]`.

    edit: codes `[b, num_ws, w_dim]` to edited ones; detail: how what codes lose is kept (`stx.detail.registry`). Raises
    `ImageError` where there is no face.
    """
    size, faces = pipe.domain.resolution, align.find_faces(photo.rgb, device=pipe.device)
    if not faces:
        raise ImageError(f"{name}: no face found; use a photo with a larger, frontal face")
    crops = [align.align(photo.rgb, face, size) for face in faces]
    drawn = []
    for part in batches(len(crops), max(DRAWN_SIDE // size, 1)):  # a crowd at 1024 pixels would not fit into memory
        found = pipe.invert_detail(crops[part.start : part.stop], detail)
        pairs = (pipe.redraw(found, edit), pipe.synthesize(found))
        drawn += zip(*map(images.to_uint8, pairs), strict=True)
    patches = [
        paste.Patch(align.square(face, photo.rgb.shape, size), crop, paste.match_colours(edited, inverted, crop))
        for face, crop, (edited, inverted) in zip(faces, crops, drawn, strict=True)
    ]
    return photo.paste(patches)


def edit_photos(
    pipe: Pipeline,
    paths: Sequence[Path],
    out: str | Path,
    edit: Edit,
    *,
    inputs: Sequence[str | Path] = (),
    detail: str = "codes",
) -> list[str]:
    """Edits the faces in photograph files, each written under its name in its format; returns what went wrong.

    A photograph replaces its own of an earlier run and takes other names than those of all other files. Raises
    `FileError` before anything is written for an `out` in a folder of `inputs`, and where an input or a file that stx
    did not make would be replaced.
    """
    out, failed = Path(out), []
    claim_output(out, inputs, locked=True)
    claim_files([out / path.name for path in paths], paths)
    with lock_output(out):
        names: Names = photos_in(out)
        for path in progress(paths, desc="editing", unit="img"):
            try:
                photo = paste.read_photo(path)
                pixels = edit_photo(pipe, photo, edit, name=str(path), detail=detail)
            except ImageError as error:
                failed.append(str(error))
                continue
            name = names.reserve(path.stem, photo_owner(path))
            photo.save(pixels, out / f"{name}{photo.suffix(path)}", path)
    return failed


def edit_films(
    pipe: Pipeline, films: Sequence[Path], out: str | Path, edit: Edit, *, inputs: Sequence[str | Path] = ()
) -> list[str]:
    """Edits the face in film files and folders of frames: `NAME.mp4`, or a folder `NAME`; returns what went wrong.

    Names and refusals are those of `edit_photos`.
    """
    out, failed, work = Path(out), [], []
    claim_output(out, inputs, locked=True)
    with lock_output(out):
        names = films_in(out)
        for path in films:
            try:
                work.append((path, _written(path, out, names)))
            except ImageError as error:
                failed.append(str(error))
        claim_files((file for _, files in work for file in files), films, kind=Kind.EDITED)
        for path, files in work:
            try:
                frames = edit_film(pipe, path, edit)
                if path.is_file():
                    video.write(files[0], frames, path)
                    continue
                for given, file, frame in zip(video.frame_files(path), files, frames, strict=True):
                    images.save_image(frame, file, source=str(given.resolve()), kind=Kind.EDITED)
            except ImageError as error:
                failed.append(str(error))
    return failed


def _written(path: Path, out: Path, names: Names) -> list[Path]:
    """What a film becomes: `NAME.mp4`, or `NAME/FRAME.png` for every frame of a folder."""
    if path.is_file():
        ending = video.suffix(path)
        return [out / f"{names.reserve(path.stem, photo_owner(path))}{ending}"]
    given, frames = video.frame_files(path), Names()
    folder = out / names.reserve(path.resolve().name, photo_owner(path))
    stems = [str(file.relative_to(path).with_suffix("")) for file in given]
    return [folder / f"{frames.reserve(stem, str(file))}.png" for stem, file in zip(stems, given, strict=True)]


def edit_film(pipe: Pipeline, path: Path, edit: Edit, *, smooth: float = video.SMOOTH) -> Iterator[np.ndarray]:
    """The frames of a film with its largest face edited, one by one.

    smooth: deviation of the Gaussian over landmarks, in frames; 0: every frame for itself, with an edit of its own.
    Raises `ImageError` for a film that cannot be read or has no face.
    """
    size = pipe.domain.resolution
    found = [align.find_faces(frame, device=pipe.device) for frame in progress(video.frames(path), desc="looking")]
    if (most := max(map(len, found), default=0)) > 1:
        told = f"{path}: up to {most} faces in a frame, of which the largest is followed and edited; the others stay"
        print(f"stx: {told}", file=sys.stderr)
    faces = video.steady(video.follow(found), smooth, name=str(path))
    codes, shifts = [], []
    for frame, face in progress(zip(video.frames(path), faces, strict=True), total=len(faces), desc="inverting"):
        if face is not None:
            crop = align.align(frame, face, size)
            codes.append(pipe.invert(crop))
            inverted = images.to_uint8(pipe.synthesize(codes[-1]))[0]
            shifts.append(paste.colour_shift(inverted, crop))
    changed = _one_edit(pipe, torch.cat(codes), edit) if smooth else map(edit, codes)
    shifts = ndimage.gaussian_filter1d(np.stack(shifts), COLOURS, axis=0, mode="nearest") if smooth else shifts
    moves = zip(changed, shifts, strict=True)
    for frame, face in progress(zip(video.frames(path), faces, strict=True), total=len(faces), desc="editing"):
        if face is None:
            yield frame
            continue
        ws, shift = next(moves)
        edited = paste.apply_colours(images.to_uint8(pipe.synthesize(ws))[0], shift)
        square = align.square(face, frame.shape, size)
        yield paste.paste(frame, [paste.Patch(square, align.align(frame, face, size), edited)])


def _one_edit(pipe: Pipeline, ws: Tensor, edit: Edit) -> Iterator[Codes]:
    """Every code with what the edit changes in the average of them all."""
    average = ws.mean(0, keepdim=True)
    edited = edit(average)
    if isinstance(edited, Tensor):
        yield from (ws + edited - average).split(1)
        return
    styles, before = pipe.generator.styles(ws), pipe.generator.styles(average)
    moved = {name: style + edited[name] - before[name] for name, style in styles.items()}
    yield from ({name: style[i : i + 1] for name, style in moved.items()} for i in range(len(ws)))


def flicker(frames: Sequence[np.ndarray], faces: Sequence[Face]) -> float:
    """Mean LPIPS-Alex between neighbouring frames, on crops of the face that move with it.

    faces: where it is, the same for all films that are compared (those of `video.steady` on the unedited one).
    """
    crops = [align.align(frame, face, LOOKED_AT) for frame, face in zip(frames, faces, strict=True)]
    shown = images.to_tensor(np.stack(crops))
    lpips = load_lpips("alex")
    with torch.no_grad():
        steps = [lpips(a, b) for a, b in zip(shown[:-1].split(1), shown[1:].split(1), strict=True)]
    return float(torch.cat(steps).mean())
