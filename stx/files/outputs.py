"""Where outputs go: nothing is replaced that stx did not make, or made as something else; one command writes at a time.

What stx makes is told by the files themselves: PNG and PDF name it as their software, JSON records have its keys, and
the others lie beside such a record.
"""

import contextlib
import json
import os
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import filelock
import safetensors
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from stx.files.errors import FileError
from stx.files.untrusted import one_line

LOCK = ".stx.lock"
FILMS = (".mp4", ".mov", ".mkv")  # that are written
PHOTO_MARK = 0x000B  # EXIF's ProcessingSoftware, by which photographs with edited faces are known
ORIENTATION = 0x0112  # EXIF's
LAYOUT = {*range(254, 267), 273, *range(277, 282), 284, *range(290, 294), 317, *range(320, 348), *range(512, 533)}
# of a TIFF: how its pixels lie in the file; those of a copy lie in another way
MAX_NAME = 200  # bytes of an output's name without its suffix; file systems take 255 in all


class Kind(StrEnum):
    """What stx writes, as messages name it: a file of one kind does not replace one of another."""

    NETWORK = "a network"
    TRAINING = "a training run"
    DOMAIN = "a domain"
    GRAPHS = "a folder of ONNX graphs"
    EXPORT = "a public checkpoint"
    CODES = "a folder of codes"
    KEPT = "a kept inversion"
    FIGURE = "a figure or table"
    NOTEBOOK = "an executed notebook"
    PICTURE = "a picture"
    INVERTED = "an inverted picture"
    EDITED = "an edited picture"
    ALIGNED = "an aligned face"
    DRAWN = "a drawing"


RECORDS = (  # keys of what stx writes as JSON, those that say `made_by` first; what else says so is of an earlier stx
    ({"made_by", "domain", "networks"}, Kind.DOMAIN),
    ({"made_by", "graphs"}, Kind.GRAPHS),
    ({"made_by", "seed"}, Kind.TRAINING),
    ({"commit", "made", "parameters"}, Kind.FIGURE),
    ({"network", "args"}, Kind.NETWORK),
    ({"encoder", "generator", "codes"}, Kind.CODES),
)


def claim_output(folder: str | Path, inputs: Iterable[str | Path] = (), *, locked: bool = False) -> None:
    """Raises `FileError` for an output folder that is, or lies in, one of the input folders.

    Outputs there would replace inputs, or be read as inputs the next time. locked: it will be under `lock_output`, by
    which `list_images` knows it and leaves it out: then it may lie in one. Of `inputs`, what is no folder is passed
    over.
    """
    out = Path(os.path.realpath(folder))
    for given in inputs:
        path = Path(os.path.realpath(given)) if is_folder(given) else None
        if path and (out == path or (path in out.parents and not locked)):
            raise FileError(
                f"{folder}: is or lies in the input folder {given}, where outputs would replace inputs or count as "
                "inputs next time; choose another folder"
            )


def claim_files(
    files: Iterable[Path], inputs: Iterable[str | Path] = (), *, kind: str = "", suffixes: Sequence[str] = ()
) -> None:
    """Raises `FileError` where writing `files` would replace an input or something that stx did not make.

    And where they cannot be written to their folders, or not read there. kind: what they will be; what stx made as
    another one is not replaced either, where it tells its kind (earlier versions wrote none into pictures). suffixes:
    one of which names must have that users give, for the files to be known again.
    """
    files = list(files)
    for file in files if suffixes else ():
        if file.suffix.lower() not in suffixes:
            raise FileError(f"{file}: {kind} has a name that ends in {' or '.join(suffixes)}; choose such a one")
    _claim_folders(files)
    given = {os.path.realpath(path) for path in inputs if "\0" not in str(path)}
    for file in files:
        if given and os.path.realpath(file) in given:
            raise FileError(f"{file}: is an input and would be replaced; choose another folder for the output")
        there = kind_of(file) if os.path.lexists(file) else kind
        if there is None:
            raise FileError(f"{file}: was not made by stx and would be replaced; move it away or choose another output")
        if kind and there and there != kind:
            raise FileError(f"{file}: is or belongs to {there}, which {kind} would replace; choose another output")


def _claim_folders(files: Sequence[Path]) -> None:
    """Raises `FileError` for folders that are shut, and for names under which safetensors cannot be read."""
    for folder in dict.fromkeys(file.parent for file in files):
        there = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
        if not is_folder(there) or not os.access(there, os.W_OK | os.X_OK):
            raise FileError(f"{folder}: cannot be written to, or {there} is no folder; choose another one")
    try:
        for file in files:
            os.fsencode(file if file.suffix == ".safetensors" else "").decode()
    except UnicodeDecodeError:
        raise FileError(
            f"{file}: a name that is no UTF-8, under which it cannot be read; choose another folder"
        ) from None


def claim_networks(folders: Iterable[Path]) -> None:
    """Raises `FileError` where saving networks into these folders would replace what stx did not make as a network."""
    names = ("model.safetensors", "config.json", "log.csv")
    claim_files((folder / name for folder in folders for name in names), kind=Kind.NETWORK)


def made_by_stx(file: str | Path) -> bool:
    """Whether a file that exists was written by stx, by its content or by the record beside it."""
    return kind_of(file) is not None


def kind_of(file: str | Path) -> str | None:
    """As what stx wrote a file that exists (`Kind`), "" where it does not say; None for what stx did not make."""
    file = Path(file)
    try:
        return _READERS[file.suffix.lower()](file) if file.is_file() else None
    except Exception:  # a file of anybody, in any state
        return None


def png_note(source: str = "", kind: str = Kind.PICTURE) -> PngInfo:
    """What marks a PNG as written by stx, with the file that it shows and its kind."""
    note = PngInfo()
    note.add_text("Software", "stx")
    note.add_text("Kind", kind)
    if source:
        note.add_text("Source", json.dumps(source))  # ASCII, whatever the name
    return note


def png_source(file: Path) -> str | None:
    """The source of a PNG of stx, "" without a readable one; None for a file that stx did not make."""
    if not made_by_stx(file):
        return None
    with contextlib.suppress(Exception), Image.open(file, formats=["PNG"]) as image:  # anybody can write such a note
        source = json.loads(image.info["Source"])
        return source if isinstance(source, str) else ""
    return ""


def mark_photo(exif: Image.Exif, source: Path, most: int | None = None) -> Image.Exif:
    """EXIF that marks a photograph as written by stx, with a checksum of its source's name and without a preview.

    A path would tell whoever gets the photograph where it lay; the preview of the file shows what was there before,
    and a TIFF's tags of how its pixels lie are not those of the copy.
    most: bytes; of longer EXIF only which way is up stays.
    """
    marked = Image.Exif()
    try:
        marked.load(exif.tobytes())
    except Exception:  # cameras write EXIF that cannot be written again: then only which way is up stays
        marked[ORIENTATION] = exif.get(ORIENTATION, 1)
    marked[PHOTO_MARK] = f"stx {photo_owner(source)}"
    marked._ifds.pop(ExifTags.IFD.IFD1, None)
    for tag in LAYOUT & set(marked):
        del marked[tag]
    if most is not None and len(marked.tobytes()) > most:
        up = Image.Exif()
        up[ORIENTATION] = exif.get(ORIENTATION, 1)
        return mark_photo(up, source)
    return marked


def photo_owner(source: Path) -> str:
    """The checksum of a source's name: what is kept of it in a photograph."""
    return f"{zlib.crc32(os.fsencode(os.path.realpath(source))):08x}"


class Names:
    """Names of outputs, each given out once, also where upper and lower case or the forms of Unicode are the same.

    taken: names that are in use, with their owners (see `reserve`). endings: what is written for one name, as in
    `NAME` and `NAME_pair`.
    """

    def __init__(self, taken: Iterable[tuple[str, str]] = (), *, endings: Sequence[str] = ("",)):
        self._endings, self._owners = endings, {}
        self.add(taken)

    def add(self, taken: Iterable[tuple[str, str]]) -> None:
        """Further names that are in use, with their owners."""
        for name, owner in taken:
            self._give(name, owner)

    def reserve(self, wanted: str, owner: str) -> str:
        """`wanted`, cut where a file system would not take it, or with the first free number: `wanted-2`, ...

        The same owner gets a name of its own again.
        """
        name = base = _cut(wanted)
        number = 1
        while any(self._owners.get(_one_form(name + ending), owner) != owner for ending in self._endings):
            number += 1
            name = f"{base}-{number}"
        self._give(name, owner)
        return name

    def _give(self, name: str, owner: str) -> None:
        self._owners |= {_one_form(name + ending): owner for ending in self._endings}


def photos_in(folder: Path) -> Names:
    """The names of the photographs in a folder, each owned by its source's checksum; of others by themselves."""
    return Names((path.stem, _owner(path, _photo_mark)) for path in _entries(folder))


def films_in(folder: Path) -> Names:
    """The names of the films and folders of frames in a folder, each owned as in `photos_in`."""
    films = [(path.stem, _owner(path, _film_mark)) for path in _entries(folder) if path.suffix.lower() in FILMS]
    return Names([*films, *((path.name, _owner(path, _frames_mark)) for path in _entries(folder) if path.is_dir())])


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _owner(path: Path, mark: Callable[[Path], str]) -> str:
    """The checksum of the source that a file of stx is marked with; of others their own path."""
    with contextlib.suppress(Exception):  # a file of anybody, in any state
        made_by, _, owner = mark(path).partition(" ")
        return owner if made_by == "stx" else str(path)
    return str(path)


def _photo_mark(path: Path) -> str:
    if not path.is_file():  # opening a pipe would wait for its other end
        return ""
    with Image.open(path) as image:
        return str(image.getexif().get(PHOTO_MARK, ""))


def _film_mark(path: Path) -> str:
    import av  # here: not everybody has it

    with av.open(str(path)) as film:
        return {key.lower(): value for key, value in film.metadata.items()}.get("comment", "")


def _frames_mark(folder: Path) -> str:
    frame = next(folder.rglob("*.png"))
    source = Path(png_source(frame))
    return f"stx {photo_owner(source.parents[len(frame.relative_to(folder).parts) - 1])}"


@contextlib.contextmanager
def lock_output(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """While inside, no other command writes into the folder, which is made. Waits for one that does, or not at all.

    Raises `FileError` for a folder that cannot be written to, and without `wait` for one that is locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if not wait:
                told = f"{folder}: another stx writes into it; wait until it is done or choose another folder"
                raise FileError(told) from None
            print(f"stx: {folder}: another stx writes into it; waiting", file=sys.stderr)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{folder}: cannot be written to ({one_line(error)}); choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def is_folder(path: str | Path) -> bool:
    """`Path.is_dir`, which some names raise at."""
    try:
        return Path(path).is_dir()
    except OSError:  # such as a name that is too long
        return False


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _cut(name: str) -> str:
    code = os.fsencode(name := name.replace("\0", "_"))
    if len(code) <= MAX_NAME:
        return name
    return f"{code[: MAX_NAME - 9].decode(errors='ignore')}-{zlib.crc32(code):08x}"


def _record(file: Path) -> str | None:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return None
    earlier = "" if content.get("made_by") == "stx" else None
    named = {key for key, value in content.items() if key != "made_by" or value == "stx"}
    return next((kind for keys, kind in RECORDS if keys <= named), earlier)


def _beside_config(file: Path) -> str | None:
    return _record(file.with_name("config.json"))


def _csv(file: Path) -> str | None:
    if file.name == "log.csv":
        return _beside_config(file)
    return None if _text(file.with_suffix(".md")) is None else Kind.FIGURE


def _text(file: Path) -> str | None:
    """Of tables, their index and cards; which of them it is does not matter."""
    text = file.read_text(encoding="utf-8")
    made = "\n\nMade " in text and " by stx " in text.rsplit("\n\nMade ")[-1]
    return "" if made or text.startswith("# Figures and tables\n") else None


def _png(file: Path) -> str | None:
    with Image.open(file, formats=["PNG"]) as image:
        software, _, commit = str(image.info.get("Software", "")).partition(" ")
        kind = str(image.info.get("Kind", ""))
    if software == "stx":
        return Kind.FIGURE if commit else kind if kind in set(Kind) else ""
    return _photo(file)


def _photo(file: Path) -> str | None:
    return Kind.EDITED if _photo_mark(file).split(" ")[0] == "stx" else None


def _film(file: Path) -> str | None:
    return Kind.EDITED if _film_mark(file).split(" ")[0] == "stx" else None


def _pdf(file: Path) -> str | None:
    return Kind.FIGURE if b"/Creator (stx " in file.read_bytes() else None


def _tensors(file: Path) -> str | None:
    told = {}
    with contextlib.suppress(safetensors.SafetensorError), safetensors.safe_open(file, "pt") as shard:
        told = shard.metadata() or {}
    if {"settings", "rows"} <= told.keys():
        return Kind.CODES
    if told.get("made_by") == "stx" and "method" in told:
        return Kind.KEPT
    if file.name == "model.safetensors" and file.with_name("config.json").exists():
        return _beside_config(file)
    return Kind.NETWORK if told.get("made_by") == "stx" else None


def _notebook(file: Path) -> str | None:
    return (
        Kind.NOTEBOOK if json.loads(file.read_text(encoding="utf-8"))["metadata"]["papermill"]["input_path"] else None
    )


def _checkpoint(file: Path) -> str | None:
    if file.name == "state.pt" and file.with_name("config.json").exists():  # of a training run
        return _beside_config(file)
    from stx.files.pickles import read_torch  # here, since torch takes seconds to import

    return Kind.EXPORT if read_torch(file)["made_by"] == "stx" else None


_READERS = {
    ".pt": _checkpoint,
    ".pth": _checkpoint,
    ".png": _png,
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".avif", ".avifs"), _photo),
    **dict.fromkeys(FILMS, _film),
    ".pdf": _pdf,
    ".json": _record,
    ".csv": _csv,
    ".md": _text,
    ".ipynb": _notebook,
    ".onnx": lambda file: _record(file.with_name("graphs.json")),
    ".safetensors": _tensors,
}
