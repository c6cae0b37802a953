"""The command line: `stx align`, `invert`, `edit`, `train`, `weights`, `convert`, `export`, `run`, `bench`.

Words are read before anything heavy is imported: each command imports what it needs, so that `--help` and a typing
error answer at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from stx.files.errors import ImageError, InputError, StxError

COUNT = click.IntRange(min=1)
FOLDER = click.Path(path_type=Path)


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 all done, 1 some pictures failed, 2 nothing could be done.

    What a user can mend is one line: `StxError` and errors of the operating system. Ctrl-C gives 130. Anything else is
    a bug and keeps its traceback.
    """
    try:
        return commands.main(words, prog_name="stx", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("stx: interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except (StxError, OSError) as error:
        print(f"stx: {error}", file=sys.stderr)
        return 2


class Command(click.Command):
    """A command whose repeatable options also take several words, as in `--sizes 256 1024`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Gives each further word its option again, as click expects it."""
        options = [p for p in self.params if isinstance(p, click.Option) and p.multiple and p.nargs == 1]
        repeatable = {name for option in options for name in option.opts}
        spread: list[str] = []
        option, first = "", True
        for word in args:
            if word.startswith("-"):
                option, first = (word if word in repeatable else ""), True
            elif option and not first:
                spread.append(option)
            else:
                first = False
            spread.append(word)
        return super().parse_args(ctx, spread)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def commands() -> None:
    """Style Transformer for image inversion and editing: pictures to codes, and codes to pictures."""


def command(name: str, help: str) -> Callable:
    """A command of `stx`."""
    return commands.command(name, cls=Command, help=help, short_help=help)


pictures = click.argument("pictures", nargs=-1, required=True, metavar="PHOTO...")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps")
own = click.option("--own", default="", metavar="FILE", help="a Python file with methods of your own")


@command("invert", "Find the codes of pictures and draw them again.")
@pictures
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="gets codes, index.json and NAME.png")
@click.option("--domain", default="avatars", show_default=True, help="avatars, ffhq, cars or a folder of pictures")
@click.option(
    "--encoder", default="style_transformer", show_default=True, help="its folder: psp, e4e, restyle_psp, ..."
)
@own
@click.option("--align", is_flag=True, help="photographs: invert each face, aligned as FFHQ's")
@click.option("--codes-only", is_flag=True, help="draw nothing")
@click.option("--shard", type=COUNT, default=256, show_default=True, metavar="N", help="codes in a file")
@device
def _invert(
    pictures: tuple[str, ...],
    out: Path,
    domain: str,
    encoder: str,
    own: str,
    align: bool,
    codes_only: bool,
    shard: int,
    device: str,
) -> int:
    look_for(pictures)
    from stx import batch, pipeline, runtime
    from stx.baselines.registry import add_own
    from stx.files.outputs import claim_output

    add_own(own)
    paths = pipeline.names_of(pictures)
    claim_output(out, [*pictures, domain], locked=True)
    pipe = pipeline.load(domain, device=device, encoder=encoder)
    there, failed = batch.invert_files(pipe, paths, out, faces=align, reconstruct=not codes_only, shard=shard)
    if runtime.is_main():
        for reason in failed:
            print(f"stx: {reason}", file=sys.stderr)
        before = f" ({there} of them before)" if there else ""
        print(f"{len(paths) - len(failed)} of {len(paths)} pictures inverted{before}; codes in {out}")
    runtime.wait()  # a process that ends with an error code ends the others
    return exit_code(len(failed), len(paths))


@command("edit", "Add attributes to pictures and remove others.")
@pictures
@click.option("--add", default="", metavar="NAMES", help="attributes with commas between them: Eyeglasses,Smiling")
@click.option("--remove", default="", metavar="NAMES", help="attributes to take away")
@click.option("--strength", type=click.FloatRange(0), default=1.0, show_default=True, help="1 is a whole edit")
@click.option("--until", type=click.FloatRange(0, 1, True, True), metavar="P", help="go on until it is so probable")
@click.option("--like", metavar="REFERENCE", help="a picture whose kind of the added attributes is taken")
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="gets NAME.png")
@click.option("--domain", default="avatars", show_default=True, help="avatars or a folder of pictures with labels")
@click.option("--align", is_flag=True, help="photographs: edit each face, aligned as FFHQ's")
@device
def _edit(
    pictures: tuple[str, ...],
    add: str,
    remove: str,
    strength: float,
    until: float | None,
    like: str | None,
    out: Path,
    domain: str,
    align: bool,
    device: str,
) -> int:
    wanted = {"add": _words(add), "remove": _words(remove)}
    if not any(wanted.values()):
        raise InputError("nothing to edit: name attributes with --add or --remove")
    look_for(pictures)
    if like:
        look_for([like])
    from stx import batch, pipeline
    from stx.files.outputs import claim_output

    paths = pipeline.names_of(pictures)
    claim_output(out, [*pictures, domain], locked=True)
    pipe = pipeline.load(domain, device=device)
    options = wanted | {"strength": strength, "until": until}
    if like:
        options["like"] = pipe.invert(like)[:1]
    pipe.edit(pipe.sample(1), **options)  # an unknown attribute is told before anything is written
    failed = batch.edit_files(pipe, paths, out, lambda ws: pipe.edit(ws, **options), inputs=pictures, faces=align)
    for reason in failed:
        print(f"stx: {reason}", file=sys.stderr)
    print(f"{len(paths) - len(failed)} of {len(paths)} pictures edited; in {out}")
    return exit_code(len(failed), len(paths))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def look_for(names: Sequence[str]) -> None:
    """Raises `ImageError` when none of these files and folders exists: before networks are loaded for nothing."""
    if not any(Path(name).exists() for name in names):
        raise ImageError(
            f"{names[0]}: no such file" + (f", nor any of the other {len(names) - 1}" if names[1:] else "")
        )


def exit_code(failed: int, count: int) -> int:
    """0 all done, 1 some pictures failed, 2 all of them."""
    return 0 if not failed else 1 if failed < count else 2


@command("train", "Train a network for a domain; goes on where it stopped.")
@click.argument("network", type=click.Choice(["generator", "encoder"]))
@click.argument("domain")
@click.option("--method", default="style_transformer", show_default=True, help="of the encoder: psp, e4e, ...")
@own
@click.option("--steps", type=COUNT, help="updates in all (default: of the avatars)")
@click.option("--more", type=COUNT, metavar="N", help="go on for N updates with the encoder that is there")
@click.option("--compared", is_flag=True, help="with the sizes and the budget of the table of encoders")
@click.option("--batch", type=COUNT, help="pictures per update, of all processes together (default: 16)")
@click.option("--accumulate", type=COUNT, help="parts in which an encoder's batch is computed, to save memory")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="of an encoder's forward pass")
@click.option("--resolution", type=int, help="side of a new generator's pictures (default 64)")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=FOLDER, metavar="DIR", help="gets the networks (default: data/DOMAIN)")
@click.option("--runs", type=FOLDER, default=Path("runs"), metavar="DIR", help="checkpoints, samples, log")
@device
def _train(
    network: str,
    domain: str,
    method: str,
    own: str,
    more: int | None,
    compared: bool,
    resolution: int | None,
    out: Path | None,
    runs: Path,
    device: str,
    **given,
) -> int:
    given = {name: value for name, value in given.items() if value is not None}
    for_encoders = [name for name in ("accumulate", "precision") if name in given] + ["more"] * bool(more)
    if network == "generator" and (for_encoders or compared):
        raise InputError("--accumulate, --precision, --compared and --more are for encoders")
    if more and "steps" in given:
        raise InputError("--more goes on for that many updates; --steps begins anew: one of them")
    if more:
        given["steps"] = more
    from stx.baselines.registry import COMPARED, METHODS, add_own
    from stx.checkpoints import weights
    from stx.domains import datasets
    from stx.files.outputs import claim_networks, claim_output
    from stx.files.places import data_dir
    from stx.reports.figures import provenance
    from stx.runtime import is_main, pick_device

    add_own(own)
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: {', '.join(METHODS)}")
    device, world = pick_device(device), datasets.load(domain, resolution=resolution)
    home, run = data_dir() / world.name, runs / world.name
    claim_output(runs, [domain])
    made = ("generator", "discriminator") if network == "generator" else (method,)
    claim_networks((out or (home / COMPARED if compared else home)) / name for name in made)
    record = provenance(command=f"stx train {network}", device=device, domain=domain, **given)
    if network == "generator":
        done, log, steps = _train_generator(world, run / "generator", device, given)
    else:
        home, run = (home / COMPARED, run / COMPARED) if compared else (home, run)
        done, log, steps = _train_encoder(world, home, run, device, method, more, compared, given, record)
    if not is_main():
        return 0
    if log.empty or int(log["step"].max()) < steps:
        return 1  # stopped by the user; the checkpoint is kept, nothing is shipped
    for name, net in done.items():
        bits = weights.BITS if compared else None
        weights.ship(net, (out or home) / name, _history(home / name, log, more), record, bits=bits)
        print(f"trained {name}: {(out or home) / name}")
    return 0


def _train_generator(world, run: Path, device: str, given: dict):
    from stx import recipes

    recipe = recipes.generator_recipe(world, **given)
    generator, discriminator, log = recipes.train_generator(world, recipe, run, device=device)
    return {"generator": generator, "discriminator": discriminator}, log, recipe.steps


def _train_encoder(
    world, home: Path, run: Path, device: str, method: str, more: int | None, compared: bool, given: dict, record: dict
):
    from stx import recipes
    from stx.checkpoints import weights
    from stx.files.checksums import fingerprint
    from stx.files.places import data_dir

    networks = data_dir() / world.name
    generator = weights.load(networks / "generator", device)
    identity = weights.load(networks / "identity", device) if (networks / "identity").is_dir() else None
    sizes = recipes.compared_recipe if compared else recipes.encoder_recipe
    recipe = sizes(world, generator, method=method, **given)
    record["parameters"] |= {"method": recipe.method, "steps": recipe.steps, "batch": recipe.batch}
    run, start = run / method, None
    if more:
        start = weights.load(home / method, device)
        run = run.with_name(f"{method}_{fingerprint(start)}")
        record["parameters"]["more"] = more
    encoder, log = recipes.train_encoder(world, generator, recipe, run, identity=identity, start=start, device=device)
    return {method: encoder}, log, recipe.steps


def _history(folder: Path, log, more: int | None):
    """The log of a training, after that of the one that it went on from."""
    if not more or not (folder / "log.csv").is_file():
        return log
    from stx.reports.figures import read_table
    from stx.training.loop import continued

    return continued(read_table(folder / "log.csv", numbers=["step"]), log)


@command("weights", "What is in data/, what is missing and where it is published.")
def _weights() -> int:
    from stx.checkpoints import weights

    table = weights.inventory()
    print(table.to_string(index=False))
    return 0 if not table["state"].str.startswith("damaged").any() else 1


@command("bench", "Seconds and memory at full size, beside the public form.")
@click.option("--sizes", type=COUNT, multiple=True, default=[256, 1024], metavar="PIXELS...", show_default=True)
@click.option("--processes", type=COUNT, multiple=True, metavar="N...", help="instead: avatars with so many processes")
@click.option("--threads", type=COUNT, help="default: those of torch")
@click.option("--out", type=FOLDER, default=Path("figures"), metavar="DIR", help="gets bench.csv and bench.md")
def _bench(sizes: tuple[int, ...], processes: tuple[int, ...], threads: int | None, out: Path) -> int:
    import torch

    from stx.files.places import ROOT
    from stx.reports.figures import provenance, save_table

    if not (ROOT / "benchmarks").is_dir():
        raise InputError(f"{ROOT}: no benchmarks/ here; `stx bench` needs a clone (`pip install -e .`)")
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from benchmarks import bench

    load, threads = os.getloadavg()[0], threads or torch.get_num_threads()
    if processes:
        name, table = "bench_processes", bench.scaling(processes)
        record = provenance(command="stx bench", processes=list(processes))
        note = (
            f"CPU, one thread per process, {os.cpu_count()} cores; load of the machine before: {load:.1f}. Codes only; "
            "training with batches of 16 in all, identity loss left out. "
        )
    else:
        name, table = "bench", bench.compare(list(sizes), threads=threads)
        record = provenance(command="stx bench", sizes=list(sizes), threads=threads)
        note = (
            f"Random weights, one picture, float32, no gradients, CPU, {threads} threads; median of {bench.REPEATS} "
            f"calls after one; load of the machine before: {load:.1f}. Memory is the peak of the process with weights; "
            "the encoder is the same in both forms, so `invert` understates the difference."
        )
    save_table(table, name, out, record, note=note)
    print((out / f"{name}.md").read_text())
    return 0


@command("align", "Cut the faces out of photographs as FFHQ's are.")
@pictures
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="gets NAME.png, NAME-face2.png, ...")
@click.option("--size", type=COUNT, default=1024, show_default=True, help="side of the crops in pixels")
@device
def _align(pictures: tuple[str, ...], out: Path, size: int, device: str) -> int:
    look_for(pictures)
    from stx import batch, pipeline
    from stx.runtime import pick_device

    paths, device = pipeline.names_of(pictures), pick_device(device)
    failed = len(batch.align_files(paths, out, size, inputs=pictures, device=device))
    print(f"{len(paths) - failed} of {len(paths)} photographs had faces; crops of {size} px in {out}")
    return exit_code(failed, len(paths))


@command("convert", "Public checkpoints to safetensors; nothing in them is executed.")
@click.argument("file", type=FOLDER)
@click.option("--to", type=click.Choice(["safetensors"]), default="safetensors")
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="gets a folder per network: data/ffhq")
def _convert(file: Path, to: str, out: Path) -> int:
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    import torch

    from stx.checkpoints import convert, directions, weights
    from stx.files.checksums import sha256
    from stx.files.outputs import claim_networks

    found = convert.read(file)
    directions.check_fit(found, out)
    named = {f"{name}-{file.stem}" if name == "directions" else name: net for name, net in found.networks.items()}
    claim_networks(out / name for name in named)  # a domain has many directions
    for name, net in named.items():
        notes = {"kind": found.kind, "file": file.name, "sha256": sha256(file), **found.notes}
        weights.save(net, out / name, notes=notes, dtype=torch.float32)
        print(f"{found.kind}: {out / name}")
    return 0


@command("export", "Networks of ours as a public checkpoint.")
@click.argument("folder", type=FOLDER)
@click.option("--to", type=click.Choice(["rosinality", "official"]), required=True)
@click.option("--out", required=True, type=FOLDER, metavar="FILE")
def _export(folder: Path, to: str, out: Path) -> int:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    from stx.checkpoints import export, weights

    names = ("generator", "discriminator", "style_transformer")
    networks = {name: weights.load(folder / name) for name in names if (folder / name).is_dir()}
    notes = weights.read_config(folder / "style_transformer")["notes"] if "style_transformer" in networks else {}
    export.write(networks, to, out, notes)
    print(f"{', '.join(networks)} in {to} form: {out}")
    return 0


@command("sweep", "Mean and sd of the tables of several runs.")
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, default=Path("figures"), metavar="DIR", help="gets sweep_NAME.csv and .md")
def _sweep(folders: tuple[Path, ...], out: Path) -> int:
    from stx.reports.figures import provenance, sweep

    record = provenance(command="stx sweep", folders=list(map(str, folders)))
    print("\n".join(sweep(folders, out, record)))
    return 0


@command("check", "Are the numbers of a run those that are committed.")
@click.argument("folder", type=FOLDER)
@click.option("--against", type=FOLDER, default=Path("figures"), show_default=True, metavar="DIR")
def _check(folder: Path, against: Path) -> int:
    from stx.reports import check

    numbers, verdicts = check.compare(folder, against)
    for row in numbers[~numbers["agrees"]].itertuples():
        print(
            f"differs: {row.table}, {row.row}, {row.column}: {row.committed:.4g} committed, {row.run:.4g} in this run"
        )
    for row in verdicts[~verdicts["agrees"]].itertuples():
        print(f"differs: claim '{row.claim}': {row.committed} committed, {row.run} in this run")
    for name in check.unlike(folder, against):
        print(f"not compared, made with other parameters or not at all: {name}")
    agreed, held = int(numbers["agrees"].sum()), int(verdicts["agrees"].sum())
    print(f"reproduced: {agreed} of {len(numbers)} numbers, {held} of {len(verdicts)} claims")
    return 0 if agreed == len(numbers) and held == len(verdicts) else 1


@command("index", "index.md of all figures and tables of a folder.")
@click.argument("folder", type=FOLDER)
def _index(folder: Path) -> int:
    from stx.reports.figures import write_index

    print(write_index(folder))
    return 0


@command("run", "Execute a notebook with parameters.")
@click.argument("notebook", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, metavar="FILE", help="the executed copy")
@click.option("-p", "--parameter", "given", nargs=2, multiple=True, metavar="NAME VALUE")
@click.option("--timeout", type=COUNT, help="seconds for a cell (default: three hours)")
def _run(notebook: Path, out: Path, given: Sequence[tuple[str, str]], timeout: int | None) -> int:
    from stx.reports import notebooks

    notebooks.run_words(notebook, out, given, timeout=timeout or notebooks.TIMEOUT)
    print(f"executed copy: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
