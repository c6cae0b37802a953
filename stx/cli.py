"""The command line: `stx align`, `invert`, `train`, `weights`, `convert`, `export`, `run`, `bench`."""

import argparse
import os
import sys
from pathlib import Path

import pandas as pd
import torch

from benchmarks import bench
from stx import batch, pipeline, recipes, runtime
from stx.baselines.registry import COMPARED, METHODS, add_own
from stx.checkpoints import convert, export, weights
from stx.domains import align, datasets, images
from stx.files.checksums import fingerprint, sha256
from stx.files.errors import DomainError, ImageError, NotebookError, TrainingError, WeightsError
from stx.files.places import data_dir
from stx.inversion import PRECISIONS
from stx.reports import notebooks
from stx.reports.figures import provenance, save_table, sweep, write_index
from stx.runtime import pick_device, progress
from stx.training.loop import continued

OWN_FILE = "a Python file with methods of your own, as in the README"
ERRORS = (ImageError, DomainError, WeightsError, TrainingError, NotebookError, ValueError, OSError)


def main(words: list[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 all done, 1 some pictures failed, 2 nothing could be done."""
    options = _parser().parse_args(words)
    try:
        return options.command(options)
    except ERRORS as error:
        print(f"stx: {error}", file=sys.stderr)
        return 2


def _count(word: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of at least 1")
    return int(word)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stx", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    invert = commands.add_parser("invert", help="find the codes of pictures and draw them again")
    invert.add_argument("pictures", nargs="+", metavar="PHOTO", help="picture files or folders of them")
    invert.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets codes, index.json and NAME.png")
    invert.add_argument("--domain", default="avatars", help="avatars, ffhq, cars or a folder of pictures")
    invert.add_argument("--encoder", default="style_transformer", help="its folder: psp, e4e, restyle_psp, ...")
    invert.add_argument("--own", default="", metavar="FILE", help=OWN_FILE)
    invert.add_argument("--align", action="store_true", help="photographs: invert each face, aligned as FFHQ's")
    invert.add_argument("--codes-only", action="store_true", help="draw nothing")
    invert.add_argument("--shard", type=_count, default=batch.SHARD_SIZE, metavar="N", help="codes in a file")
    invert.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    invert.set_defaults(command=_invert)

    train = commands.add_parser("train", help="train a network for a domain; goes on where it stopped")
    train.add_argument("network", choices=["generator", "encoder"])
    train.add_argument("domain", help="a folder of pictures, ffhq or cars")
    train.add_argument("--method", default="style_transformer", help=f"of the encoder: {', '.join(METHODS)}")
    train.add_argument("--own", default="", metavar="FILE", help=OWN_FILE)
    train.add_argument("--steps", type=_count, help="updates in all (default: of the avatars)")
    train.add_argument("--more", type=_count, metavar="N", help="go on for N updates with the encoder that is there")
    train.add_argument("--compared", action="store_true", help="with the sizes and the budget of the table of encoders")
    train.add_argument("--batch", type=_count, help="pictures per update, of all processes together (default: 16)")
    train.add_argument(
        "--accumulate", type=_count, help="parts in which an encoder's batch is computed, to save memory"
    )
    train.add_argument("--precision", choices=list(PRECISIONS), help="of an encoder's forward pass")
    train.add_argument("--resolution", type=int, help="side of a new generator's pictures (default 64)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", type=Path, metavar="DIR", help="gets the networks (default: data/DOMAIN)")
    train.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="checkpoints, samples, log")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    train.set_defaults(command=_train)

    listed = commands.add_parser("weights", help="what is in data/, what is missing and where it is published")
    listed.set_defaults(command=_weights)

    timed = commands.add_parser("bench", help="seconds and memory at full size, beside the public form")
    timed.add_argument("--sizes", type=_count, nargs="+", default=[256, 1024], metavar="PIXELS")
    timed.add_argument(
        "--processes", type=_count, nargs="+", metavar="N", help="instead: avatars with so many processes"
    )
    timed.add_argument("--threads", type=_count, default=torch.get_num_threads())
    timed.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="gets bench.csv and bench.md")
    timed.set_defaults(command=_bench)

    aligned = commands.add_parser("align", help="cut the faces out of photographs as FFHQ's are")
    aligned.add_argument("pictures", nargs="+", metavar="PHOTO", help="picture files or folders of them")
    aligned.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets NAME.png, NAME-face2.png, ...")
    aligned.add_argument("--size", type=_count, default=1024, help="side of the crops in pixels")
    aligned.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    aligned.set_defaults(command=_align)

    convert = commands.add_parser("convert", help="public checkpoints to safetensors; nothing in them is executed")
    convert.add_argument("file", type=Path, metavar="FILE")
    convert.add_argument("--to", choices=["safetensors"], default="safetensors")
    convert.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets a folder per network: data/ffhq")
    convert.set_defaults(command=_convert)

    exported = commands.add_parser("export", help="networks of ours as a public checkpoint")
    exported.add_argument("folder", type=Path, metavar="DIR", help="a folder of networks: data/avatars")
    exported.add_argument("--to", choices=["rosinality", "official"], required=True)
    exported.add_argument("--out", required=True, type=Path, metavar="FILE")
    exported.set_defaults(command=_export)

    swept = commands.add_parser("sweep", help="mean and sd of the tables of several runs")
    swept.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="figure folders of runs with other seeds")
    swept.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="gets sweep_NAME.csv and .md")
    swept.set_defaults(command=_sweep)

    index = commands.add_parser("index", help="index.md of all figures and tables of a folder")
    index.add_argument("folder", type=Path, metavar="DIR")
    index.set_defaults(command=_index)

    run = commands.add_parser("run", help="execute a notebook with parameters")
    notebooks.add_arguments(run)
    return parser


def _invert(options: argparse.Namespace) -> int:
    add_own(options.own)
    paths = pipeline.names_of(options.pictures)
    pipe = pipeline.load(options.domain, device=options.device, encoder=options.encoder)
    there, failed = batch.invert_files(
        pipe, paths, options.out, faces=options.align, reconstruct=not options.codes_only, shard=options.shard
    )
    if runtime.is_main():
        for reason in failed:
            print(f"stx: {reason}", file=sys.stderr)
        before = f" ({there} of them before)" if there else ""
        print(f"{len(paths) - len(failed)} of {len(paths)} pictures inverted{before}; codes in {options.out}")
    runtime.wait()  # a process that ends with an error code ends the others
    return _code(len(failed), len(paths))


def _numbered(name: str, face: int) -> str:
    return name if face == 0 else f"{name}-face{face + 1}"


def _code(failed: int, count: int) -> int:
    """0 all done, 1 some pictures failed, 2 all of them."""
    return 0 if not failed else 1 if failed < count else 2


def _train(options: argparse.Namespace) -> int:
    add_own(options.own)
    if options.method not in METHODS:
        raise ValueError(f"unknown method {options.method!r}: {', '.join(METHODS)}")
    device = pick_device(options.device)
    domain = datasets.load(options.domain, resolution=options.resolution)
    home, run = data_dir() / domain.name, options.runs / domain.name
    given = {"seed": options.seed}
    given |= {k: v for k in ("steps", "batch", "accumulate", "precision") if (v := getattr(options, k)) is not None}
    if options.network == "generator" and (options.accumulate or options.precision or options.compared or options.more):
        raise ValueError("--accumulate, --precision, --compared and --more are for encoders")
    if options.more and options.steps:
        raise ValueError("--more goes on for that many updates; --steps begins anew: one of them")
    if options.more:
        given["steps"] = options.more
    record = provenance(command=f"stx train {options.network}", device=device, domain=domain.name, **given)
    if options.network == "generator":
        recipe = recipes.generator_recipe(domain, **given)
        generator, discriminator, log = recipes.train_generator(domain, recipe, run / "generator", device=device)
        done = {"generator": generator, "discriminator": discriminator}
    else:
        generator = weights.load(home / "generator", device)
        identity = weights.load(home / "identity", device) if (home / "identity").is_dir() else None
        if options.compared:
            home, run = home / COMPARED, run / COMPARED
            recipe = recipes.compared_recipe(domain, generator, method=options.method, **given)
        else:
            recipe = recipes.encoder_recipe(domain, generator, method=options.method, **given)
        record["parameters"] |= {"method": recipe.method, "steps": recipe.steps, "batch": recipe.batch}
        run, start = run / options.method, None
        if options.more:
            start = weights.load(home / options.method, device)
            run = run.with_name(f"{options.method}_{fingerprint(start)}")
            record["parameters"]["more"] = options.more
        encoder, log = recipes.train_encoder(
            domain, generator, recipe, run, identity=identity, start=start, device=device
        )
        done = {options.method: encoder}
    if not runtime.is_main():
        return 0
    if log.empty or int(log["step"].max()) < recipe.steps:
        return 1  # stopped by the user; the checkpoint is kept, nothing is shipped
    history = home / options.method / "log.csv"
    if options.more and history.is_file():
        log = continued(pd.read_csv(history), log)
    for name, net in done.items():
        weights.ship(net, (options.out or home) / name, log, record, bits=weights.BITS if options.compared else None)
        print(f"trained {name}: {(options.out or home) / name}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    load = os.getloadavg()[0]
    if options.processes:
        table = bench.scaling(options.processes)
        record = provenance(command="stx bench", processes=options.processes)
        note = (
            f"CPU, one thread per process, {os.cpu_count()} cores; load of the machine before: {load:.1f}. Codes only; "
            "training with batches of 16 in all, identity loss left out. "
        )
        save_table(table, "bench_processes", options.out, record, note=note)
        print((options.out / "bench_processes.md").read_text())
        return 0
    table = bench.compare(options.sizes, threads=options.threads)
    record = provenance(command="stx bench", sizes=options.sizes, threads=options.threads)
    note = (
        f"Random weights, one picture, float32, no gradients, CPU, {options.threads} threads; median of "
        f"{bench.REPEATS} calls after one; load of the machine before: {load:.1f}. Memory is the peak of the process, "
        "weights included; "
        "the encoder is the same in both forms, so `invert` understates the difference."
    )
    save_table(table, "bench", options.out, record, note=note)
    print((options.out / "bench.md").read_text())
    return 0


def _align(options: argparse.Namespace) -> int:
    paths, device = pipeline.names_of(options.pictures), pick_device(options.device)
    failed = 0
    for path, name in progress(list(zip(paths, _unique_names(paths), strict=True)), desc="aligning", unit="img"):
        try:
            faces = align.faces_in(path, options.size, device=device)
        except ImageError as error:
            print(f"stx: {error}", file=sys.stderr)
            failed += 1
            continue
        for i, face in enumerate(faces):
            images.save_image(face, options.out / f"{_numbered(name, i)}.png")
    print(f"{len(paths) - failed} of {len(paths)} photographs had faces; crops of {options.size} px in {options.out}")
    return _code(failed, len(paths))


def _weights(options: argparse.Namespace) -> int:
    table = weights.inventory()
    print(table.to_string(index=False))
    return 0 if not table["state"].str.startswith("damaged").any() else 1


def _convert(options: argparse.Namespace) -> int:
    found = convert.read(options.file)
    convert.check_fit(found, options.out)
    for name, net in found.networks.items():
        name = f"{name}-{options.file.stem}" if name == "directions" else name  # a domain has many of them
        notes = {"kind": found.kind, "file": options.file.name, "sha256": sha256(options.file), **found.notes}
        weights.save(net, options.out / name, notes=notes, dtype=torch.float32)
        print(f"{found.kind}: {options.out / name}")
    return 0


def _export(options: argparse.Namespace) -> int:
    names = ("generator", "discriminator", "style_transformer")
    networks = {name: weights.load(options.folder / name) for name in names if (options.folder / name).is_dir()}
    notes = (
        weights.read_config(options.folder / "style_transformer")["notes"] if "style_transformer" in networks else {}
    )
    export.write(networks, options.to, options.out, notes)
    print(f"{', '.join(networks)} in {options.to} form: {options.out}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    names = sweep(
        options.folders, options.out, provenance(command="stx sweep", folders=list(map(str, options.folders)))
    )
    print("\n".join(names))
    return 0


def _index(options: argparse.Namespace) -> int:
    print(write_index(options.folder))
    return 0


def _unique_names(paths: list[Path]) -> list[str]:
    """One output name per picture: its stem, with a number where that is taken."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        names.append(name)
    return names


if __name__ == "__main__":
    sys.exit(main())
