"""Commands for pictures: `stx invert`, `edit`, `align`."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from stx.cli.words import (
    COUNT,
    FOLDER,
    SIDE,
    Number,
    command,
    device,
    encoder,
    exit_code,
    generator,
    look_for,
    one_picture,
    own,
    pictures,
)
from stx.files.errors import InputError


@command("invert", "Find the codes of pictures and draw them again.")
@pictures
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="gets codes, index.json and NAME.png")
@click.option("--domain", default="avatars", show_default=True, help="avatars, ffhq, cars or a folder of pictures")
@encoder
@generator
@own
@click.option("--align", is_flag=True, help="photographs: invert each face, aligned as FFHQ's")
@click.option("--detail", default="codes", metavar="METHOD", help="keep what codes lose: feature_editor, hfgi, ...")
@click.option("--codes-only", is_flag=True, help="draw nothing")
@click.option("--shard", type=COUNT, default=256, show_default=True, metavar="N", help="codes in a file")
@device
def _invert(
    pictures: tuple[str, ...],
    out: Path,
    domain: str,
    encoder: str,
    generator: str,
    own: str,
    align: bool,
    detail: str,
    codes_only: bool,
    shard: int,
    device: str,
) -> int:
    look_for(pictures)
    from stx import batch, pipeline, runtime
    from stx.baselines.registry import add_own
    from stx.domains import images
    from stx.files.outputs import claim_output

    add_own(own)
    paths = _each_once(images.names_of(pictures))
    claim_output(out, [*pictures, domain], locked=True)
    pipe = pipeline.load(domain, device=device, encoder=encoder, generator=generator)
    options = {"faces": align, "reconstruct": not codes_only, "shard": shard, "detail": detail}
    there, failed = batch.invert_files(pipe, paths, out, **options)
    if runtime.is_main():
        for reason in failed:
            print(f"stx: {reason}", file=sys.stderr)
        before = f" ({there} of them before)" if there else ""
        print(f"{len(paths) - len(failed)} of {len(paths)} pictures inverted{before}; codes in {out}")
    runtime.wait()  # a process that ends with an error code ends the others
    return exit_code(len(failed), len(paths))


@command("edit", "Add attributes to pictures and remove others, or move them along directions.")
@click.argument("pictures", nargs=-1, metavar="PHOTO|CODES...")
@click.option("--add", default="", metavar="NAMES", help="with commas between them: Eyeglasses,Smiling or age,sefa:3")
@click.option("--remove", default="", metavar="NAMES", help="what to take away")
@click.option("--list", "listed", is_flag=True, help="tell what can be edited in this domain, and nothing else")
@click.option("--strength", type=Number(0), default=1.0, show_default=True, help="1 is a whole edit")
@click.option("--tokens", metavar="A-B", help="only these of the code's tokens, counted from 0")
@click.option("--until", type=Number(0, 1, True, True), metavar="P", help="go on until it is so probable")
@click.option(
    "--like",
    metavar="REFERENCE",
    help="a picture (with --align a photograph) whose kind of the added is taken",
)
@click.option("--detail", default="codes", metavar="METHOD", help="keep what codes lose: feature_editor, hfgi, ...")
@click.option("--out", type=FOLDER, metavar="DIR", help="gets NAME.png")
@click.option("--domain", default="avatars", show_default=True, help="avatars, ffhq, cars or a folder of pictures")
@encoder
@generator
@click.option("--align", is_flag=True, help="photographs: edit each face, aligned as FFHQ's")
@click.option("--paste", is_flag=True, help="and lay it back into the photograph or the film, which keeps its format")
@click.option("--frames", is_flag=True, help="a folder is the frames of a film, in the order of their names")
@device
def _edit(
    pictures: tuple[str, ...],
    add: str,
    remove: str,
    listed: bool,
    detail: str,
    out: Path | None,
    domain: str,
    encoder: str,
    generator: str,
    align: bool,
    paste: bool,
    frames: bool,
    device: str,
    **options,
) -> int:
    if listed:
        return _tell_editable(domain, device, encoder, generator)
    options |= {"add": _words(add), "remove": _words(remove), "tokens": _range(options["tokens"])}
    if not options["add"] + options["remove"]:
        raise InputError("nothing to edit: name attributes with --add or --remove (--list tells them)")
    if not pictures or out is None:
        raise InputError("pictures to edit and an output folder are needed: stx edit PHOTO... --out DIR")
    look_for(pictures)
    if options["like"] is not None:
        look_for([options["like"]])
        options["like"] = one_picture(options["like"], "a kind is taken from")
    from stx import batch, photographs, pipeline
    from stx.domains import align as faces
    from stx.domains import images, video
    from stx.files.outputs import claim_output

    folders = [Path(given) for given in pictures if batch.holds_codes(given)]
    films = [Path(given) for given in pictures if video.is_film(given) or (frames and Path(given).is_dir())]
    if films and not paste:
        raise InputError(f"{films[0]}: a film is edited in place; add --paste")
    if detail != "codes" and films:
        raise InputError(f"{films[0]}: --detail is for pictures; films are edited without")
    if (align or paste) and folders:
        told = f"{folders[0]}: codes, which no face is cut out for and no photograph is kept with"
        raise InputError(f"{told}; give the photographs themselves to --align and --paste")
    if detail != "codes" and folders:
        raise InputError(f"{folders[0]}: what is kept of codes was told when they were inverted; leave --detail out")
    paths = _each_once(images.names_of([given for given in pictures if Path(given) not in [*folders, *films]]))
    claim_output(out, [*pictures, domain], locked=True)
    pipe = pipeline.load(domain, device=device, encoder=encoder, generator=generator)
    if options["like"]:
        kind = [options["like"]]
        kind = faces.faces_in(*kind, pipe.domain.resolution, device=pipe.device)[:1] if align or paste else kind
        options["like"] = pipe.invert(kind)
    pipe.detail(detail)
    pipe.edit(pipe.sample(1), **options)  # an unknown attribute is told before anything is written

    def edit(ws):
        return pipe.edit(ws, **options)

    done = batch.edit_codes(pipe, folders, out, edit) if folders else 0
    write = photographs.edit_photos if paste else partial(batch.edit_files, faces=align)
    failed = write(pipe, paths, out, edit, inputs=pictures, detail=detail) if paths else []
    failed += photographs.edit_films(pipe, films, out, edit, inputs=pictures)
    paths += films
    for reason in failed:
        print(f"stx: {reason}", file=sys.stderr)
    print(f"{done + len(paths) - len(failed)} of {done + len(paths)} pictures edited; in {out}")
    return exit_code(len(failed), done + len(paths))


def _each_once(paths: Sequence[Path]) -> list[Path]:
    """Files that were named twice, by themselves or in a folder, only once, under their first name."""
    from stx import batch

    return list({batch.source_of(path): path for path in reversed(paths)}.values())[::-1]


def _tell_editable(domain: str, device: str, encoder: str, generator: str) -> int:
    from stx import pipeline

    pipe = pipeline.load(domain, device=device, encoder=encoder, generator=generator)
    print("what --add and --remove take, and what --strength 1 is")
    for found in pipe.editable():
        name = f"{found.name}:0 to {found.name}:{found.count - 1}" if found.count > 1 else found.name
        name = f"{found.name}:LAYER_CHANNEL" if found.kind == "channel" else name
        print(f"  {name:28} {found.kind:10} {found.unit}")
    return 0


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not all(number.isdecimal() and len(number) < 10 for number in (first, last or first)):
        raise InputError(f"--tokens {text}: expected a number or two, such as 3 or 0-5")
    return int(first), int(last or first)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@command("align", "Cut the faces out of photographs as FFHQ's are.")
@pictures
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="gets NAME.png, NAME-face2.png, ...")
@click.option("--size", type=SIDE, default=1024, show_default=True, help="side of the crops in pixels")
@device
def _align(pictures: tuple[str, ...], out: Path, size: int, device: str) -> int:
    look_for(pictures)
    from stx import batch
    from stx.domains import images
    from stx.runtime import pick_device

    paths, device = _each_once(images.names_of(pictures)), pick_device(device)
    failed = len(batch.align_files(paths, out, size, inputs=pictures, device=device))
    print(f"{len(paths) - failed} of {len(paths)} photographs had faces; crops of {size} px in {out}")
    return exit_code(failed, len(paths))


@command("draw", "A second drawn domain: pictures of a DiceBear style with labels, a folder that is a domain.")
@click.argument("style")
@click.option(
    "--count", type=click.IntRange(1, 10**6), default=12000, show_default=True, help="pictures of all splits together"
)
@click.option("--resolution", type=SIDE, default=64, show_default=True, help="their side in pixels")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="gets train/, val/, test/ and labels.csv")
def _draw(style: str, count: int, resolution: int, seed: int, out: Path) -> int:
    from stx.domains import styles

    names = styles.attributes(style)
    import pandas as pd

    from stx.domains.images import SUFFIXES, save_image
    from stx.files.outputs import Kind, claim_files, lock_output
    from stx.reports.figures import provenance, save_table
    from stx.runtime import progress

    files, rows = styles.files(count), []
    pictures = {path.relative_to(out).as_posix() for path in out.glob("*/*") if path.suffix.lower() in SUFFIXES}
    if others := pictures - set(files):
        raise InputError(f"{out}: has {len(others)} other pictures, such as {min(others)}; name another folder")
    table = [out / f"labels.{suffix}" for suffix in ("csv", "json", "md")]
    claim_files((out / file for file in files), kind=Kind.DRAWN)
    claim_files(table, kind=Kind.FIGURE)
    with lock_output(out, wait=False):
        for file in table:  # of the former pictures; the .md last, by which the others are known
            file.unlink(missing_ok=True)
        drawn = styles.drawings(style, count, resolution=resolution, seed=seed)
        for name, picture, labels in progress(drawn, total=len(files), desc=f"drawing {style}", unit="img"):
            save_image(picture, out / name, kind=Kind.DRAWN)
            rows.append([name, *labels.astype(int)])
        record = provenance(command="stx draw", style=style, count=count, resolution=resolution, seed=seed)
        save_table(pd.DataFrame(rows, columns=["file", *names]), "labels", out, record)
    print(f"{len(rows)} pictures and labels.csv with {len(names)} attributes in {out}; it is a domain: --domain {out}")
    return 0
