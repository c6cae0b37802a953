"""The codes of many pictures in safetensors shards with an index: each picture once, resumed, shared by processes.

A shard is written whole or not at all and says in its own header what is in it, so the index can always be made again.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

from stx import runtime
from stx.detail.kept import Inversion, joined
from stx.detail.refinement import STEPS
from stx.domains import align, images
from stx.files.atomic import atomic_write, write_text
from stx.files.checksums import fingerprint
from stx.files.errors import FileError, ImageError, InputError, WeightsError
from stx.files.outputs import Kind, Names, claim_files, claim_output, is_folder, lock_output, made_by_stx, png_source
from stx.files.untrusted import one_line
from stx.pipeline import Codes, Pipeline
from stx.runtime import batches, progress

SHARD_SIZE = 256  # pictures; what a process that is killed has to do again
BATCH_SIDE = 2048  # pixels of all pictures of a batch side by side
PAIR = "_pair"  # the ending of a picture's name for input beside inversion
SHARD_NAME = re.compile(r"codes-\d{5,}\.safetensors")
STAMP = re.compile(r"[0-9a-f]{8}")  # what `fingerprint` gives; converted codes may have words there
SEARCHED = 8  # pictures of a shard at most where they are searched for, and much may be kept of each


@dataclass(frozen=True)
class Row:
    """A code: its name, the picture file it comes from, and that file's size and time of change."""

    name: str
    source: str
    stamp: str


def invert_files(
    pipe: Pipeline,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    faces: bool = False,
    reconstruct: bool = True,
    shard: int = SHARD_SIZE,
    detail: str = "codes",
) -> tuple[int, list[str]]:
    """Inverts picture files into a folder; returns how many were there already, and what went wrong with the others.

    out: gets `codes-NNNNN.safetensors` (`ws [n, num_ws, w_dim]`), `index.json`, and with `reconstruct` for each code
    `NAME.png`, as large as the generator draws, and `NAME_pair.png`, input beside inversion as encoders see them.
    Files whose codes and pictures are there are left out, changed ones are done again; of several processes each takes
    its share of the shards. Another command that writes into the folder is waited for.
    faces: invert every face of a photograph, aligned as FFHQ's. detail: how what codes lose is kept
    (`stx.detail.registry`): beside `ws` as `kept.NAME [n, ...]`, see `load_inversions`; pictures show it.
    Raises `WeightsError` for a folder with codes of other networks or a damaged shard, `FileError` for a full disk,
    and before anything is written where an input or a file that stx did not make would be replaced.
    """
    if shard < 1:
        raise InputError(f"shards of {shard} codes: at least 1")
    out, paths = Path(out), list(dict.fromkeys(Path(source_of(Path(path))) for path in paths))
    settings = {"encoder": fingerprint(pipe.encoder), "generator": fingerprint(pipe.generator), "faces": faces}
    if detail != "codes":
        settings |= {"detail": detail, detail: fingerprint(pipe.detail(detail))}
        shard = min(shard, SEARCHED) if detail in STEPS else shard
    _check_output(out, paths, settings, reconstruct)
    with _sole_writer(out):
        new, names, first = _check_output(out, paths, settings, reconstruct)
        runtime.wait()  # all have seen the same folder before anything is written
        size = min(shard, -(-len(new) // runtime.world_size()) or 1)
        parts = [(first + i, new[at : at + size]) for i, at in enumerate(range(0, len(new), size))]
        mine, failed = parts[runtime.rank() :: runtime.world_size()], []
        batch = max(BATCH_SIDE // pipe.domain.resolution, 1)
        with progress(None, total=sum(len(part) for _, part in mine), desc="inverting", unit="img") as bar:
            for number, part in mine:
                rows, found = [], []
                for at in range(0, len(part), batch):
                    read = _read(pipe, part[at : at + batch], names if faces else None, failed)
                    if read:
                        rows += [row for row, _ in read]
                        found.append(_invert(pipe, read, out if reconstruct else None, detail))
                    bar.update(len(part[at : at + batch]))
                if rows:
                    _write(out / f"codes-{number:05d}.safetensors", rows, joined(found).tensors(), settings)
        failed = gather_object(failed)
        if runtime.is_main():
            there = _write_index(out, settings)
            lost = len(paths) - len(failed) - sum(str(path) in there for path in paths)
            if lost > 0:
                raise FileError(
                    f"{out}: the codes of {lost} pictures are gone again; something else deletes files here"
                )
    return len(paths) - len(new), failed


def align_files(
    paths: Sequence[str | Path], out: str | Path, size: int, *, inputs: Sequence[str | Path] = (), device: str = "cpu"
) -> list[str]:
    """Cuts the faces out of photographs into `NAME.png`, `NAME-face2.png`, ...; returns what went wrong with some.

    A photograph replaces its own crops of an earlier run and takes other names than those of all other files.
    Raises `FileError` before anything is written for an `out` in a folder of `inputs`, and where an input or a file
    that stx did not make would be replaced.
    """
    out, failed, paths = Path(out), [], [Path(path) for path in paths]
    claim_output(out, inputs, locked=True)
    claim_files([out / f"{path.stem}.png" for path in paths], paths)
    with lock_output(out):
        names = _names_in(out)
        chosen = [names.reserve(path.stem, source_of(path)) for path in paths]
        claim_files([out / f"{name}.png" for name in chosen], paths, kind=Kind.ALIGNED)
        for path, name in progress(list(zip(paths, chosen, strict=True)), desc="aligning", unit="img"):
            try:
                faces = align.faces_in(path, size, device=device)
            except ImageError as error:
                print(f"stx: {error}", file=sys.stderr)
                failed.append(str(error))
                continue
            for i, face in enumerate(faces):
                own = names.reserve(f"{name}-face{i + 1}", source_of(path)) if i else name
                images.save_image(face, out / f"{own}.png", source=source_of(path), kind=Kind.ALIGNED)
    return failed


def edit_files(
    pipe: Pipeline,
    paths: Sequence[str | Path],
    out: str | Path,
    edit: Callable[[Tensor], Codes],
    *,
    inputs: Sequence[str | Path] = (),
    faces: bool = False,
    detail: str = "codes",
) -> list[str]:
    """Inverts picture files, edits their codes and draws them as `NAME.png`; returns what went wrong with some.

    edit: codes `[b, num_ws, w_dim]` to edited ones. detail: how what codes lose is kept (`stx.detail.registry`). Names,
    refusals and `faces` are those of `align_files` and `invert_files`.
    """
    out, failed, paths = Path(out), [], [Path(path) for path in paths]
    claim_output(out, inputs, locked=True)
    claim_files([out / f"{path.stem}.png" for path in paths], paths)
    with lock_output(out):
        names = _names_in(out)
        rows = [Row(names.reserve(path.stem, source_of(path)), source_of(path), "") for path in paths]
        claim_files([out / f"{row.name}.png" for row in rows], paths, kind=Kind.EDITED)
        batch = max(BATCH_SIDE // pipe.domain.resolution, 1)
        with progress(None, total=len(rows), desc="editing", unit="img") as bar:
            for part in batches(len(rows), batch):
                read = _read(pipe, rows[part.start : part.stop], names if faces else None, failed)
                if read:
                    image = torch.stack([picture for _, picture in read])
                    found = pipe.invert_detail(image, detail)
                    codes = None if detail == "search" else found.ws
                    warn_of_strangers(pipe, [row.source for row, _ in read], image, codes)
                    drawn = pipe.redraw(found, edit)
                    for (row, _), picture in zip(read, images.to_uint8(drawn), strict=True):
                        images.save_image(picture, out / f"{row.name}.png", source=row.source, kind=Kind.EDITED)
                bar.update(len(part))
    return failed


def edit_codes(pipe: Pipeline, folders: Sequence[Path], out: str | Path, edit: Callable[[Tensor], Codes]) -> int:
    """Edits the codes in folders of `stx invert` or `stx convert` and draws them as `NAME.png`; returns how many.

    What was kept beside codes is drawn too. Raises `WeightsError` for a folder without codes or of other networks,
    `FileError` as `edit_files`.
    """
    out, found = Path(out), {folder: list(_index(folder)[1]) for folder in folders}
    for folder in found:
        next(load_inversions(folder, pipe))  # what cannot be drawn is told before anything is written
    with lock_output(out):
        names, size = _names_in(out), max(BATCH_SIDE // pipe.domain.resolution, 1)
        sources = [folder / name for folder, own in found.items() for name in own]
        files = {source: out / f"{names.reserve(source.name, source_of(source))}.png" for source in sources}
        claim_files(files.values(), kind=Kind.EDITED)
        with progress(None, total=len(files), desc="editing", unit="img") as bar:
            for folder in found:
                for own, inversion in load_inversions(folder, pipe):
                    for part in batches(len(own), size):
                        drawn = pipe.redraw(inversion[part.start : part.stop], edit)
                        for i, picture in zip(part, images.to_uint8(drawn), strict=True):
                            source = folder / own[i]
                            images.save_image(picture, files[source], source=source_of(source), kind=Kind.EDITED)
                        bar.update(len(part))
    return len(files)


def save_codes(folder: str | Path, codes: Mapping[str, Tensor], file: Path, generator: str) -> None:
    """Codes `[num_ws, w_dim]` that come from a file, by name, kept as `load_codes` reads them.

    generator: the fingerprint of the generator they are for, or words. Raises `FileError` where something that stx did
    not make would be replaced.
    """
    folder = Path(folder)
    shard, _ = claim_codes(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"encoder": f"converted from {file.name}", "generator": generator, "faces": False}
    _write(
        shard, [Row(name, source_of(file), "") for name in codes], {"ws": torch.stack(list(codes.values()))}, settings
    )
    _write_index(folder, settings)


def claim_codes(folder: Path) -> list[Path]:
    """The files of `save_codes`. Raises `FileError` where something that stx did not make would be replaced."""
    files = [folder / "codes-00000.safetensors", folder / "index.json"]
    claim_files(files, kind=Kind.CODES)
    return files


def holds_codes(folder: str | Path) -> bool:
    """Whether a folder has the index of `stx invert` or `stx convert`."""
    return is_folder(folder) and (Path(folder) / "index.json").is_file() and bool(_shards(Path(folder)))


def load_codes(folder: str | Path) -> tuple[list[str], Float[Tensor, "n num_ws w_dim"]]:
    """Names and W+ codes of a folder that `stx invert` made. Raises `WeightsError` when there are none."""
    _, places = _index(folder)
    with _readable(folder):
        shards = {path for path, _ in places.values()}
        ws = {path: _finite(safetensors.torch.load_file(path))["ws"] for path in shards}
        return list(places), torch.stack([ws[path][row] for path, row in places.values()])


def load_inversions(folder: str | Path, pipe: Pipeline) -> Iterator[tuple[list[str], Inversion]]:
    """Names, codes and what was kept beside them, of a folder that `stx invert` made, a shard at a time.

    Raises `WeightsError` when there are none, and for detail that was kept for other networks. Codes alone of another
    generator are drawn, with a line on stderr.
    """
    settings, places = _index(folder)
    method, generator = settings.get("detail", "codes"), settings.get("generator")
    networks = {} if method == "codes" else {name: settings[name] for name in ("generator", method) if name in settings}
    if not networks and STAMP.fullmatch(str(generator)) and generator != fingerprint(pipe.generator):
        print(f"stx: {folder}: codes of another generator ({generator}), drawn by this one", file=sys.stderr)
    for path in dict.fromkeys(path for path, _ in places.values()):
        own = {name: row for name, (shard, row) in places.items() if shard == path}
        with _readable(folder):
            tensors = _finite(safetensors.torch.load_file(path, device=str(pipe.device)))
            found = pipe.restored(tensors, method, networks)[list(own.values())]
        yield list(own), found


def _index(folder: str | Path) -> tuple[dict, dict[str, tuple[Path, int]]]:
    """What the index of a folder says of all its codes, and for each code its shard, which is there, and its row."""
    index, counts, places = Path(folder) / "index.json", {}, {}
    with _readable(folder):
        settings = json.loads(index.read_text(encoding="utf-8"))
        for name, place in settings.pop("codes").items():
            if not SHARD_NAME.fullmatch(place["shard"]):
                raise InputError(f"{place['shard']!r} is not a shard of this folder")
            path = index.parent / place["shard"]
            if path not in counts:
                with safetensors.safe_open(path, "pt") as file:
                    counts[path] = file.get_slice("ws").get_shape()[0]
            places[name] = path, range(counts[path])[place["row"]]
    if not places:
        raise WeightsError(f"{index}: there are no codes in it")
    return settings, places


def _finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise InputError("numbers that are not finite (NaN or infinite)")
    return tensors


@contextlib.contextmanager
def _readable(folder: str | Path):
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{folder}: {error}") from None
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        RecursionError,
        safetensors.SafetensorError,
    ) as error:
        told = f"no readable codes ({one_line(error)}); make them with `stx invert --out {folder}`"
        raise WeightsError(f"{Path(folder) / 'index.json'}: {told}") from None


@contextlib.contextmanager
def _sole_writer(out: Path):
    """Holds the lock of a folder in the main process; the others go on, or fail, with it."""
    if runtime.world_size() == 1:
        with lock_output(out):
            yield
        return
    with contextlib.ExitStack() as stack:
        reason = ""
        if runtime.is_main():
            try:
                stack.enter_context(lock_output(out, wait=False))
            except FileError as error:
                reason = str(error)
        if told := "".join(gather_object([reason])):
            raise FileError(told)
        yield
        runtime.wait()  # the lock is held until all are done


def _check_output(out: Path, paths: Sequence[Path], settings: dict, reconstruct: bool) -> tuple[list[Row], Names, int]:
    """What is to be inverted, names for it and the next free shard, where nothing would be replaced that may not be."""
    there = {path: _rows(path, settings) for path in _shards(out)}
    new, names = _new_rows(paths, there.values(), out if reconstruct else None)
    claim_codes(out)
    if reconstruct:
        pictures = [out / f"{row.name}{ending}.png" for row in new for ending in ("", PAIR)]
        claim_files(pictures, paths, kind=Kind.INVERTED)
        if settings["faces"]:  # further ones take names that are free
            names.add((path.stem, str(path)) for path in out.glob("*.png") if not made_by_stx(path))
    return new, names, 1 + max((int(path.stem.split("-")[1]) for path in there), default=-1)


def _shards(out: Path) -> list[Path]:
    return sorted(path for path in out.glob("codes-*.safetensors") if SHARD_NAME.fullmatch(path.name))


def _rows(path: Path, settings: dict) -> list[Row]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata()
        made, rows = json.loads(header["settings"]), [Row(**row) for row in json.loads(header["rows"])]
        if not isinstance(made, dict) or any(Path(row.name).name != row.name for row in rows):
            raise InputError("names that are no file names")
    except (OSError, ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError) as error:
        told = f"not a readable shard of codes ({one_line(error)}); delete it and run again"
        raise WeightsError(f"{path}: {told}") from None
    if made != settings:
        names = [name for name in made | settings if made.get(name) != settings.get(name)]
        other = ", ".join(f"{name}: {made.get(name, 'none')} there, {settings.get(name, 'none')} now" for name in names)
        raise WeightsError(f"{path}: holds codes made otherwise ({one_line(other)}); choose another folder")
    return rows


def _stamp(path: Path) -> str:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return ""  # reading it will tell why
    return f"{state.st_size}-{state.st_mtime_ns}"


def source_of(path: Path) -> str:
    """By which a file is known again, from whatever folder it is named; links to a file are files of their own."""
    return str(Path(os.path.realpath(path.parent)) / path.name)


def _names_in(out: Path) -> Names:
    """The names of the pictures in a folder, each owned by its source; what stx did not make owns itself."""
    return Names((path.stem, png_source(path) or str(path)) for path in out.glob("*.png"))


def _new_rows(paths: Sequence[Path], there: Iterable[Sequence[Row]], out: Path | None) -> tuple[list[Row], Names]:
    """What is to be inverted: new and changed files, under the name they had or their stem, numbered where taken.

    Where pictures are wanted, in `out`, also files of which one is missing. Beside them the names in use, where further
    faces find theirs.
    """
    there = list(there)
    wanted = ((row, out / f"{row.name}{end}.png") for rows in there for row in rows for end in ("", PAIR) if out)
    undrawn = {(row.source, row.stamp) for row, picture in wanted if not picture.is_file()}
    known = {row.source: row for rows in there for row in reversed(rows)}  # the first face names the photograph
    names, new = Names(((row.name, row.source) for rows in there for row in rows), endings=("", PAIR)), []
    for path in paths:
        was, stamp = known.get(str(path)), _stamp(path)
        if was and was.stamp == stamp and (was.source, stamp) not in undrawn:
            continue
        name = was.name if was else names.reserve(path.stem, str(path))
        new.append(Row(name, str(path), stamp))
    return new, names


def _read(pipe: Pipeline, files: Sequence[Row], names: Names | None, failed: list[str]) -> list[tuple[Row, Tensor]]:
    """Rows and pictures `[3, h, w]` of files, or with `names` of the faces in them; faults of files join `failed`."""
    found = []
    for file in files:
        try:
            given = [file.source]
            if names:
                given = align.faces_in(file.source, pipe.domain.resolution, device=pipe.device)
            for i, image in enumerate(pipe.images(given)):
                name = names.reserve(f"{file.name}-face{i + 1}", file.source) if i else file.name
                found.append((replace(file, name=name), image))
        except ImageError as error:
            failed.append(str(error))
    return found


def warn_of_strangers(
    pipe: Pipeline, names: Sequence[str], image: Float[Tensor, "b 3 h w"], ws: Float[Tensor, "b n d"] | None
) -> None:
    """A line on stderr for every picture that is not of the domain, where its networks can tell. ws: as `invert`'s."""
    if pipe.manifold is not None:
        for line in pipe.strangeness(image, ws).warnings(names):
            print(f"stx: {line}", file=sys.stderr)


def _invert(pipe: Pipeline, read: Sequence[tuple[Row, Tensor]], out: Path | None, detail: str) -> Inversion:
    image = torch.stack([picture for _, picture in read])
    found = pipe.invert_detail(image, detail)
    warn_of_strangers(pipe, [row.source for row, _ in read], image, None if detail == "search" else found.ws)
    if out:
        drawn = pipe.synthesize(found)
        shown = [images.to_uint8(pictures) for pictures in (drawn, image, pipe.domain.view(drawn))]
        for (row, _), whole, *pair in zip(read, *shown, strict=True):
            for picture, ending in ((whole, ""), (np.concatenate(pair, axis=1), PAIR)):
                images.save_image(picture, out / f"{row.name}{ending}.png", source=row.source, kind=Kind.INVERTED)
    return found


def _write(path: Path, rows: Sequence[Row], tensors: Mapping[str, Tensor], settings: dict) -> None:
    header = {"settings": json.dumps(settings), "rows": json.dumps([asdict(row) for row in rows])}
    with atomic_write(path) as part:
        safetensors.torch.save_file(dict(tensors), part, header)


def _write_index(out: Path, settings: dict) -> set[str]:
    """Writes the index of all shards; returns the sources whose codes are in it."""
    latest = {}
    for path in _shards(out):
        rows = _rows(path, settings)
        latest |= {row.source: {} for row in rows}
        for i, row in enumerate(rows):
            latest[row.source][row.name] = {"shard": path.name, "row": i, "source": row.source}
    codes = {name: place for rows in latest.values() for name, place in rows.items()}
    write_text(out / "index.json", json.dumps(settings | {"codes": codes}, indent=1))
    return set(latest)
