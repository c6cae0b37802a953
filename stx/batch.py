"""The codes of many pictures in safetensors shards with an index: each picture once, resumed, shared by processes.

A shard is written whole or not at all and says in its own header what is in it, so the index can always be made again.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from stx.domains import align, images
from stx.files.atomic import atomic_write, write_text
from stx.files.checksums import fingerprint
from stx.files.errors import FileError, ImageError, InputError, WeightsError
from stx.files.outputs import Names, claim_files, claim_output, is_folder, lock_output, made_by_stx, png_source
from stx.pipeline import Codes, Pipeline
from stx.runtime import batches, progress

SHARD_SIZE = 256  # pictures; what a process that is killed has to do again
BATCH_SIDE = 2048  # pixels of all pictures of a batch side by side
PAIR = "_pair"  # the ending of a picture's name for input beside inversion
SHARD_NAME = re.compile(r"codes-\d{5,}\.safetensors")


@dataclass(frozen=True)
class Row:
    """A code: its name, the picture file it comes from, and that file's size and time of change."""

    name: str
    source: str
    stamp: str


def invert_files(
    pipe: Pipeline,
    paths: Sequence[Path],
    out: str | Path,
    *,
    faces: bool = False,
    reconstruct: bool = True,
    shard: int = SHARD_SIZE,
) -> tuple[int, list[str]]:
    """Inverts picture files into a folder; returns how many were there already, and what went wrong with the others.

    out: gets `codes-NNNNN.safetensors` (`ws [n, num_ws, w_dim]`), `index.json`, and with `reconstruct` for each code
    `NAME.png`, as large as the generator draws, and `NAME_pair.png`, input beside inversion as encoders see them.
    Pictures whose codes are there are left out, changed ones are done again; of several processes each takes its share
    of the shards. Another command that writes into the folder is waited for.
    faces: invert every face of a photograph, aligned as FFHQ's.
    Raises `WeightsError` for a folder with codes of other networks or a damaged shard, `FileError` for a full disk,
    and before anything is written where an input or a file that stx did not make would be replaced.
    """
    if shard < 1:
        raise InputError(f"shards of {shard} codes: at least 1")
    out, paths = Path(out), list(dict.fromkeys(Path(_source(path)) for path in paths))
    settings = {"encoder": fingerprint(pipe.encoder), "generator": fingerprint(pipe.generator), "faces": faces}
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
                rows, codes = [], []
                for at in range(0, len(part), batch):
                    read = _read(pipe, part[at : at + batch], names if faces else None, failed)
                    if read:
                        rows += [row for row, _ in read]
                        codes.append(_invert(pipe, read, out if reconstruct else None))
                    bar.update(len(part[at : at + batch]))
                if rows:
                    _write(out / f"codes-{number:05d}.safetensors", rows, torch.cat(codes), settings)
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
    paths: Sequence[Path], out: str | Path, size: int, *, inputs: Sequence[str | Path] = (), device: str = "cpu"
) -> list[str]:
    """Cuts the faces out of photographs into `NAME.png`, `NAME-face2.png`, ...; returns what went wrong with some.

    A photograph replaces its own crops of an earlier run and takes other names than those of all other files.
    Raises `FileError` before anything is written for an `out` in a folder of `inputs`, and where an input or a file
    that stx did not make would be replaced.
    """
    out, failed = Path(out), []
    claim_output(out, inputs, locked=True)
    claim_files([out / f"{path.stem}.png" for path in paths], paths)
    with lock_output(out):
        names = _names_in(out)
        chosen = [names.reserve(path.stem, _source(path)) for path in paths]
        claim_files([out / f"{name}.png" for name in chosen], paths)
        for path, name in progress(list(zip(paths, chosen, strict=True)), desc="aligning", unit="img"):
            try:
                faces = align.faces_in(path, size, device=device)
            except ImageError as error:
                print(f"stx: {error}", file=sys.stderr)
                failed.append(str(error))
                continue
            for i, face in enumerate(faces):
                own = names.reserve(f"{name}-face{i + 1}", _source(path)) if i else name
                images.save_image(face, out / f"{own}.png", source=_source(path))
    return failed


def edit_files(
    pipe: Pipeline,
    paths: Sequence[Path],
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
    out, failed = Path(out), []
    claim_output(out, inputs, locked=True)
    claim_files([out / f"{path.stem}.png" for path in paths], paths)
    with lock_output(out):
        names = _names_in(out)
        rows = [Row(names.reserve(path.stem, _source(path)), _source(path), "") for path in paths]
        claim_files([out / f"{row.name}.png" for row in rows], paths)
        batch = max(BATCH_SIDE // pipe.domain.resolution, 1)
        with progress(None, total=len(rows), desc="editing", unit="img") as bar:
            for part in batches(len(rows), batch):
                read = _read(pipe, rows[part.start : part.stop], names if faces else None, failed)
                if read:
                    image = torch.stack([picture for _, picture in read])
                    found = pipe.invert_detail(image, detail)
                    codes = found.ws if detail == "codes" else None
                    warn_of_strangers(pipe, [row.source for row, _ in read], image, codes)
                    drawn = pipe.redraw(found, edit)
                    for (row, _), picture in zip(read, images.to_uint8(drawn), strict=True):
                        images.save_image(picture, out / f"{row.name}.png", source=row.source)
                bar.update(len(part))
    return failed


def edit_codes(pipe: Pipeline, folders: Sequence[Path], out: str | Path, edit: Callable[[Tensor], Codes]) -> int:
    """Edits the codes in folders of `stx invert` or `stx convert` and draws them as `NAME.png`; returns how many.

    Codes of another generator of that shape are drawn too, with a line on stderr.
    Raises `WeightsError` for a folder without codes, `InputError` for codes of another generator, `FileError` as
    `edit_files`.
    """
    out, found, mine = Path(out), {folder: load_codes(folder) for folder in folders}, fingerprint(pipe.generator)
    for folder in folders:
        made = json.loads((folder / "index.json").read_text()).get("generator")
        if made not in (mine, "unknown"):
            print(f"stx: {folder}: codes of another generator ({made}, this one is {mine})", file=sys.stderr)
    with lock_output(out):
        names = _names_in(out)
        rows = [(folder / name, ws) for folder, codes in found.items() for name, ws in zip(*codes, strict=True)]
        files = [out / f"{names.reserve(source.name, _source(source))}.png" for source, _ in rows]
        claim_files(files)
        size = max(BATCH_SIDE // pipe.domain.resolution, 1)
        with progress(None, total=len(rows), desc="editing", unit="img") as bar:
            for part in batches(len(rows), size):
                ws = torch.stack([rows[i][1] for i in part]).to(pipe.device)
                for i, picture in zip(part, images.to_uint8(pipe.synthesize(edit(ws))), strict=True):
                    images.save_image(picture, files[i], source=_source(rows[i][0]))
                bar.update(len(part))
    return len(rows)


def save_codes(folder: str | Path, codes: Mapping[str, Tensor], file: Path, generator: str) -> None:
    """Codes `[num_ws, w_dim]` that come from a file, by name, kept as `load_codes` reads them.

    generator: the fingerprint of the generator they are for, or words. Raises `FileError` where something that stx did
    not make would be replaced.
    """
    folder = Path(folder)
    shard, _ = claim_codes(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"encoder": f"converted from {file.name}", "generator": generator, "faces": False}
    _write(shard, [Row(name, _source(file), "") for name in codes], torch.stack(list(codes.values())), settings)
    _write_index(folder, settings)


def claim_codes(folder: Path) -> list[Path]:
    """The files of `save_codes`. Raises `FileError` where something that stx did not make would be replaced."""
    files = [folder / "codes-00000.safetensors", folder / "index.json"]
    claim_files(files)
    return files


def holds_codes(folder: str | Path) -> bool:
    """Whether a folder has the index of `stx invert` or `stx convert`."""
    return is_folder(folder) and (Path(folder) / "index.json").is_file() and bool(_shards(Path(folder)))


def load_codes(folder: str | Path) -> tuple[list[str], Float[Tensor, "n num_ws w_dim"]]:
    """Names and W+ codes of a folder that `stx invert` made. Raises `WeightsError` when there are none."""
    index = Path(folder) / "index.json"
    try:
        places = json.loads(index.read_text())["codes"]
        shards = {place["shard"] for place in places.values()}
        for name in shards:
            if not SHARD_NAME.fullmatch(name):
                raise InputError(f"{name!r} is not a shard of this folder")
        ws = {name: safetensors.torch.load_file(index.parent / name)["ws"] for name in sorted(shards)}
        rows = [ws[place["shard"]][range(len(ws[place["shard"]]))[place["row"]]] for place in places.values()]
        if rows and not all(torch.isfinite(row).all() for row in rows):
            raise InputError("numbers that are not finite (NaN or infinite)")
        if rows:
            return list(places), torch.stack(rows)
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
        told = f"no readable codes ({_one_line(error)}); make them with `stx invert --out {folder}`"
        raise WeightsError(f"{index}: {told}") from None
    raise WeightsError(f"{index}: there are no codes in it")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
    new, names = _new_rows(paths, there.values())
    claim_files([out / "index.json"], paths)
    try:
        os.fsencode(out).decode()
    except UnicodeDecodeError:
        told = f"{out}: a name that is no UTF-8, in which safetensors cannot be read; choose another folder"
        raise FileError(told) from None
    if reconstruct:
        claim_files([out / f"{row.name}{ending}.png" for row in new for ending in ("", PAIR)], paths)
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
        told = f"not a readable shard of codes ({_one_line(error)}); delete it and run again"
        raise WeightsError(f"{path}: {told}") from None
    if made != settings:
        other = ", ".join(f"{name}: {made.get(name)} there, {settings[name]} now" for name in settings)
        raise WeightsError(f"{path}: holds codes made otherwise ({other}); choose another folder")
    return rows


def _stamp(path: Path) -> str:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return ""  # reading it will tell why
    return f"{state.st_size}-{state.st_mtime_ns}"


def _source(path: Path) -> str:
    """By which a file is known again, from whatever folder it is named; links to a file are files of their own."""
    return str(path.parent.resolve() / path.name)


def _names_in(out: Path) -> Names:
    """The names of the pictures in a folder, each owned by its source; what stx did not make owns itself."""
    return Names((path.stem, png_source(path) or str(path)) for path in out.glob("*.png"))


def _new_rows(paths: Sequence[Path], there: Iterable[Sequence[Row]]) -> tuple[list[Row], Names]:
    """What is to be inverted: new and changed files, under the name they had or their stem, numbered where taken.

    Beside them the names in use, where further faces find theirs.
    """
    there = list(there)
    known = {row.source: row for rows in there for row in reversed(rows)}  # the first face names the photograph
    names, new = Names(((row.name, row.source) for rows in there for row in rows), endings=("", PAIR)), []
    for path in paths:
        was, stamp = known.get(str(path)), _stamp(path)
        if was and was.stamp == stamp:
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


def _invert(pipe: Pipeline, read: Sequence[tuple[Row, Tensor]], out: Path | None) -> Tensor:
    image = torch.stack([picture for _, picture in read])
    ws = pipe.invert(image)
    warn_of_strangers(pipe, [row.source for row, _ in read], image, ws)
    if out:
        drawn = pipe.synthesize(ws)
        shown = [images.to_uint8(pictures) for pictures in (drawn, image, pipe.domain.view(drawn))]
        for (row, _), whole, *pair in zip(read, *shown, strict=True):
            images.save_image(whole, out / f"{row.name}.png", source=row.source)
            images.save_image(np.concatenate(pair, axis=1), out / f"{row.name}{PAIR}.png", source=row.source)
    return ws.cpu()


def _write(path: Path, rows: Sequence[Row], ws: Tensor, settings: dict) -> None:
    header = {"settings": json.dumps(settings), "rows": json.dumps([asdict(row) for row in rows])}
    with atomic_write(path) as part:
        safetensors.torch.save_file({"ws": ws.contiguous()}, part, header)


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
