"""Photographs whose faces are edited in place: found, aligned, inverted, edited, and laid back where they were."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from stx.domains import align, images, paste
from stx.files.errors import ImageError
from stx.files.outputs import Names, claim_files, claim_output, lock_output, photo_owner, photos_in
from stx.pipeline import Codes, Pipeline
from stx.runtime import progress

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
    found = pipe.invert_detail(crops, detail)
    drawn = zip(
        *(images.to_uint8(picture) for picture in (pipe.redraw(found, edit), pipe.synthesize(found))), strict=True
    )
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
