"""The codes of many pictures in safetensors shards with an index: each picture once, resumed, shared by processes.

A shard is written whole or not at all and says in its own header what is in it, so the index can always be made again.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
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
from stx.files.errors import ImageError, WeightsError
from stx.pipeline import Pipeline
from stx.runtime import progress

SHARD_SIZE = 256  # pictures; what a process that is killed has to do again
BATCH_SIDE = 2048  # pixels of all pictures of a batch side by side


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

    out: gets `codes-NNNNN.safetensors` (`ws [n, num_ws, w_dim]`), `index.json`, and with `reconstruct` a PNG of input
    and inversion for each code. Pictures whose codes are there are left out, changed ones are done again; of several
    processes each takes its share of the shards. faces: invert every face of a photograph, aligned as FFHQ's.
    Raises `WeightsError` for a folder with codes of other networks or a damaged shard, `TrainingError` for a full disk.
    """
    if shard < 1:
        raise ValueError(f"shards of {shard} codes: at least 1")
    out, paths = Path(out), list(dict.fromkeys(paths))
    out.mkdir(parents=True, exist_ok=True)
    settings = {"encoder": fingerprint(pipe.encoder), "generator": fingerprint(pipe.generator), "faces": faces}
    there = {path: _rows(path, settings) for path in _shards(out)}
    runtime.wait()  # all have seen the same folder before anything is written
    new = _new_rows(paths, there.values())
    size = min(shard, -(-len(new) // runtime.world_size()) or 1)
    first = 1 + max((int(path.stem.split("-")[1]) for path in there), default=-1)
    parts = [(first + i, new[at : at + size]) for i, at in enumerate(range(0, len(new), size))]
    mine, failed = parts[runtime.rank() :: runtime.world_size()], []
    batch = max(BATCH_SIDE // pipe.domain.resolution, 1)
    with progress(None, total=sum(len(part) for _, part in mine), desc="inverting", unit="img") as bar:
        for number, part in mine:
            rows, codes = [], []
            for at in range(0, len(part), batch):
                read = _read(pipe, part[at : at + batch], faces, failed)
                if read:
                    rows += [row for row, _ in read]
                    codes.append(_invert(pipe, read, out if reconstruct else None))
                bar.update(len(part[at : at + batch]))
            if rows:
                _write(out / f"codes-{number:05d}.safetensors", rows, torch.cat(codes), settings)
    failed = gather_object(failed)
    if runtime.is_main():
        _write_index(out, settings)
    return len(paths) - len(new), failed


def load_codes(folder: str | Path) -> tuple[list[str], Float[Tensor, "n num_ws w_dim"]]:
    """Names and W+ codes of a folder that `stx invert` made. Raises `WeightsError` when there are none."""
    index = Path(folder) / "index.json"
    try:
        places = json.loads(index.read_text())["codes"]
        shards = {place["shard"] for place in places.values()}
        ws = {name: safetensors.torch.load_file(index.parent / name)["ws"] for name in sorted(shards)}
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{index}: no readable codes ({error}); make them with `stx invert --out {folder}`"
        ) from None
    if not places:
        raise WeightsError(f"{index}: there are no codes in it")
    return list(places), torch.stack([ws[place["shard"]][place["row"]] for place in places.values()])


def _shards(out: Path) -> list[Path]:
    return sorted(out.glob("codes-*.safetensors"))


def _rows(path: Path, settings: dict) -> list[Row]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata()
        made, rows = json.loads(header["settings"]), [Row(**row) for row in json.loads(header["rows"])]
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable shard of codes ({error}); delete it and run again") from None
    if made != settings:
        other = ", ".join(f"{name}: {made.get(name)} there, {settings[name]} now" for name in settings)
        raise WeightsError(f"{path}: holds codes made otherwise ({other}); choose another folder")
    return rows


def _stamp(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return ""  # reading it will tell why
    return f"{state.st_size}-{state.st_mtime_ns}"


def _new_rows(paths: Sequence[Path], there: Iterable[Sequence[Row]]) -> list[Row]:
    """What is to be inverted: new and changed files, under the name they had or their stem, numbered where taken."""
    known = {row.source: row for rows in there for row in reversed(rows)}  # the first face names the photograph
    taken, new = {row.name for row in known.values()}, []
    for path in paths:
        was, stamp = known.get(str(path)), _stamp(path)
        if was and was.stamp == stamp:
            continue
        free = (path.stem if i == 1 else f"{path.stem}-{i}" for i in count(1))
        name = was.name if was else next(name for name in free if name not in taken)
        taken.add(name)
        new.append(Row(name, str(path), stamp))
    return new


def _read(pipe: Pipeline, files: Sequence[Row], faces: bool, failed: list[str]) -> list[tuple[Row, Tensor]]:
    """Rows and pictures `[3, h, w]` of files or of the faces in them; what is wrong with a file joins `failed`."""
    found = []
    for file in files:
        try:
            given = [file.source]
            if faces:
                given = align.faces_in(file.source, pipe.domain.resolution, device=pipe.device)
            for i, image in enumerate(pipe.images(given)):
                found.append((replace(file, name=f"{file.name}-face{i + 1}") if i else file, image))
        except ImageError as error:
            failed.append(str(error))
    return found


def _invert(pipe: Pipeline, read: Sequence[tuple[Row, Tensor]], out: Path | None) -> Tensor:
    image = torch.stack([picture for _, picture in read])
    ws = pipe.invert(image)
    if out:
        for (row, _), *pair in zip(read, images.to_uint8(image), images.to_uint8(pipe.reconstruct(ws)), strict=True):
            images.save_image(np.concatenate(pair, axis=1), out / f"{row.name}.png")
    return ws.cpu()


def _write(path: Path, rows: Sequence[Row], ws: Tensor, settings: dict) -> None:
    header = {"settings": json.dumps(settings), "rows": json.dumps([asdict(row) for row in rows])}
    with atomic_write(path) as part:
        safetensors.torch.save_file({"ws": ws.contiguous()}, part, header)


def _write_index(out: Path, settings: dict) -> None:
    latest = {}
    for path in _shards(out):
        rows = _rows(path, settings)
        latest |= {row.source: {} for row in rows}
        for i, row in enumerate(rows):
            latest[row.source][row.name] = {"shard": path.name, "row": i, "source": row.source}
    codes = {name: place for rows in latest.values() for name, place in rows.items()}
    write_text(out / "index.json", json.dumps(settings | {"codes": codes}, indent=1))
