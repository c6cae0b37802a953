"""Commands for networks: `stx train`, `weights`, `convert`, `export`."""

from pathlib import Path

import click

from stx.cli.words import COUNT, FOLDER, command, device, own
from stx.files.errors import InputError


@command("train", "Train a network for a domain; goes on where it stopped.")
@click.argument("network", type=click.Choice(["generator", "encoder", "detail", "manifold"]))
@click.argument("domain")
@click.option("--method", help="of an encoder: psp, e4e, ... (default: style_transformer); of detail: hfgi, ...")
@own
@click.option("--steps", type=COUNT, help="updates in all (default: of the avatars)")
@click.option("--more", type=COUNT, metavar="N", help="go on for N updates with the encoder that is there")
@click.option("--compared", is_flag=True, help="with the sizes and the budget of the table of encoders")
@click.option("--batch", type=COUNT, help="pictures per update, of all processes together (default: 16)")
@click.option("--accumulate", type=COUNT, help="parts in which an encoder's batch is computed, to save memory")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="the optimiser's rate")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="of an encoder's forward pass")
@click.option("--resolution", type=int, help="side of a new generator's pictures (default 64)")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=FOLDER, metavar="DIR", help="gets the networks (default: data/DOMAIN)")
@click.option("--runs", type=FOLDER, default=Path("runs"), metavar="DIR", help="checkpoints, samples, log")
@device
def _train(
    network: str,
    domain: str,
    method: str | None,
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
    if network != "encoder" and (for_encoders or compared):
        raise InputError("--accumulate, --precision, --compared and --more are for encoders")
    if more and "steps" in given:
        raise InputError("--more goes on for that many updates; --steps begins anew: one of them")
    if more:
        given["steps"] = more
    from stx.baselines.registry import COMPARED, METHODS, add_own
    from stx.checkpoints import weights
    from stx.detail.registry import FOLDER as DETAIL_FOLDER
    from stx.domains import datasets
    from stx.files.outputs import claim_networks, claim_output
    from stx.files.places import data_dir
    from stx.reports.figures import provenance
    from stx.runtime import is_main, pick_device

    add_own(own)
    method = method or {"detail": "features", "manifold": "manifold"}.get(network, "style_transformer")
    if network == "encoder" and method not in METHODS:
        raise InputError(f"unknown method {method!r}: {', '.join(METHODS)}")
    device, world = pick_device(device), datasets.load(domain, resolution=resolution)
    home, run = data_dir() / world.name, runs / world.name
    claim_output(runs, [domain])
    made = ("generator", "discriminator") if network == "generator" else (method,)
    shelf = {"detail": home / DETAIL_FOLDER, "encoder": home / COMPARED if compared else home}.get(network, home)
    claim_networks((out or shelf) / name for name in made)
    record = provenance(command=f"stx train {network}", device=device, domain=domain, **given)
    if network == "generator":
        done, log, steps = _train_generator(world, run / "generator", device, given)
    elif network == "detail":
        done, log, steps = _train_detail(world, home, run / DETAIL_FOLDER / method, device, method, given, record)
    elif network == "manifold":
        done, log, steps = _fit_manifold(world, home, device, record)
    else:
        home, run = (home / COMPARED, run / COMPARED) if compared else (home, run)
        done, log, steps = _train_encoder(world, home, run, device, method, more, compared, given, record)
    if not is_main():
        return 0
    if log.empty or int(log["step"].max()) < steps:
        return 1  # stopped by the user; the checkpoint is kept, nothing is shipped
    for name, net in done.items():
        bits = weights.BITS if compared else None
        weights.ship(net, (out or shelf) / name, _history(shelf / name, log, more), record, bits=bits)
        print(f"trained {name}: {(out or shelf) / name}")
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


def _train_detail(world, home: Path, run: Path, device: str, method: str, given: dict, record: dict):
    from stx import recipes
    from stx.checkpoints import weights
    from stx.detail.registry import FOLDER, named

    def found(name: str):
        return weights.load(home / name, device) if (home / name / "config.json").is_file() else None

    recipe = recipes.DetailRecipe(method=method, **given)
    record["parameters"] |= {"method": recipe.method, "steps": recipe.steps, "batch": recipe.batch}
    generator, encoder = (weights.load(home / name, device) for name in ("generator", "style_transformer"))
    options = {"identity": found("identity"), "start": found(f"{FOLDER}/{named(method).begins_with or method}")}
    edit = recipes.practice_edits(found("matched_pairs"), found("picture_classifier"))
    net, log = recipes.train_detail(world, generator, encoder, recipe, run, edit=edit, device=device, **options)
    return {method: net}, log, recipe.steps


def _fit_manifold(world, home: Path, device: str, record: dict):
    import pandas as pd

    from stx import recipes
    from stx.checkpoints import weights

    generator, encoder = (weights.load(home / name, device) for name in ("generator", "style_transformer"))
    counts = {"train": 4096, "held_out": 1024}
    record["parameters"] |= counts
    net = recipes.fit_manifold(world, generator, encoder, **counts, device=device)
    return {"manifold": net}, pd.DataFrame({"step": [0]}), 0


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
    stem = file.stem.removesuffix(".pth")  # public code names files .pth.tar
    named = {f"{name}-{stem}" if name == "directions" else name: net for name, net in found.networks.items()}
    claim_networks(out / name for name in named)  # a domain has many directions
    for name, net in named.items():
        notes = {"kind": found.kind, "file": file.name, "sha256": sha256(file), **found.notes}
        weights.save(net, out / name, notes=notes, dtype=torch.float32)
        print(f"{found.kind}: {out / name}")
    return 0


@command("export", "Networks of ours as a public checkpoint, or as ONNX graphs for the browser.")
@click.argument("folder", type=FOLDER)
@click.option("--to", type=click.Choice(["rosinality", "official", "onnx"]), required=True)
@click.option("--out", required=True, type=FOLDER, metavar="PATH", help="a file; of onnx a folder")
@click.option("--encoder", default="style_transformer", show_default=True, help="of onnx: psp, compared/e4e, ...")
def _export(folder: Path, to: str, out: Path, encoder: str) -> int:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if to == "onnx":
        return _export_onnx(folder, out, encoder)
    from stx.checkpoints import export, weights

    names = ("generator", "discriminator", "style_transformer")
    networks = {name: weights.load(folder / name) for name in names if (folder / name).is_dir()}
    notes = weights.read_config(folder / "style_transformer")["notes"] if "style_transformer" in networks else {}
    export.write(networks, to, out, notes)
    print(f"{', '.join(networks)} in {to} form: {out}")
    return 0


def _export_onnx(folder: Path, out: Path, encoder: str) -> int:
    from stx.checkpoints import onnx

    told = onnx.write(folder, out, encoder=encoder)
    for name, graph in told["graphs"].items():
        print(f"{out / name}.onnx: {graph['bytes'] / 1e6:.1f} MB, at most {graph['error']:.1e} from PyTorch")
    return 0
