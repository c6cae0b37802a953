"""Commands for networks: `stx train`, `tune`, `weights`, `cards`, `convert`, `export`."""

import shlex
from pathlib import Path

import click

from stx.cli.words import COUNT, FOLDER, SEED, SIDE, Number, command, device, generator, look_for, one_picture, own
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
@click.option("--lr", type=Number(min=0, min_open=True), help="the optimiser's rate")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="of an encoder's forward pass")
@click.option("--mirror", is_flag=True, default=None, help="turn half of the pictures round, where left is as right")
@click.option("--resolution", type=SIDE, help="side of a new generator's pictures (default 64)")
@click.option("--seed", type=SEED, default=0, show_default=True)
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
    if network in ("detail", "manifold") and "mirror" in given:
        raise InputError("--mirror is for generators and encoders")
    if network == "manifold" and (method or given["seed"] or given.keys() & {"steps", "batch", "lr"}):
        raise InputError("a manifold is fitted in one way: no --method, --steps, --batch, --lr or --seed")
    if network == "generator" and method:
        raise InputError("--method is for encoders and detail")
    if network != "generator" and resolution:
        raise InputError("--resolution is for a new generator; other networks are of the size of the one that is there")
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
    if (out or shelf).resolve() == (run / shelf.relative_to(home)).resolve():
        raise InputError(f"{out or shelf}: the training's own record goes there too; name another --out or --runs")
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
        return 130  # stopped by the user; the checkpoint is kept, nothing is shipped
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
    record["parameters"] |= {name: getattr(recipe, name) for name in ("method", "steps", "batch", "lr")}
    record["parameters"]["generator"] = fingerprint(generator)
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


@command("tune", "Tune a copy of the generator until it draws a picture from its code (PTI).")
@click.argument("picture")
@click.option("--name", help="of the generator, tuned-NAME, and its code, codes-NAME (default: the picture's)")
@click.option("--domain", default="avatars", show_default=True, help="avatars, ffhq, cars or a folder of pictures")
@click.option("--encoder", default="style_transformer", show_default=True, help="its folder; it finds the code")
@click.option("--align", is_flag=True, help="a photograph: its largest face, aligned as FFHQ's")
@click.option("--steps", type=COUNT, default=350, show_default=True, help="updates at most")
@click.option("--out", type=FOLDER, metavar="DIR", help="gets both (default: data/DOMAIN)")
@device
def _tune(
    picture: str, name: str | None, domain: str, encoder: str, align: bool, steps: int, out: Path | None, device: str
) -> int:
    look_for([picture])
    import torch

    from stx import batch, pipeline
    from stx.baselines import optimisation
    from stx.checkpoints import weights
    from stx.domains import align as faces
    from stx.files.checksums import fingerprint
    from stx.files.outputs import claim_networks
    from stx.files.places import safe_name
    from stx.inversion import InversionLoss
    from stx.perception.lpips import load_lpips

    picture = one_picture(picture, "a generator is tuned to")
    pipe = pipeline.load(domain, device=device, encoder=encoder)
    out, name = out or pipe.folder, safe_name(name or picture.stem)
    claim_networks([out / f"tuned-{name}"])
    batch.claim_codes(out / f"codes-{name}")
    given = faces.faces_in(picture, pipe.domain.resolution, device=pipe.device)[:1] if align else [picture]
    image = pipe.images(given)
    ws, loss = pipe.invert(image), InversionLoss(load_lpips("alex", pipe.device), None)
    enough = 0.0 if domain == "avatars" else 0.06  # the public code's suits photographs; cartoons are under it before
    found = optimisation.tune(pipe.generator, loss, image, ws, steps=steps, enough=enough, view=pipe.domain.view)
    before = _replaced(out / f"tuned-{name}")
    notes = {"kind": "tuned (PTI)", "file": picture.name, "steps": len(found.losses)}
    weights.save(found.generators[0], out / f"tuned-{name}", notes=notes, dtype=torch.float32)
    batch.save_codes(out / f"codes-{name}", {name: ws[0].cpu()}, picture, fingerprint(found.generators[0]))
    words = ["stx", "edit", out / f"codes-{name}", "--generator", out.absolute() / f"tuned-{name}", "--domain", domain]
    print(f"{out / f'tuned-{name}'}{before}: `{shlex.join(map(str, words))}` edits it")
    return 0


@command("weights", "What is in data/, what is missing and where it is published.")
@click.option("--domain", metavar="NAME", help="tell of this one alone")
def _weights(domain: str | None) -> int:
    from stx.checkpoints import weights

    table = weights.inventory()
    if domain is not None and domain not in set(table["domain"]):
        raise InputError(f"nothing is known of the domain {domain!r}: {', '.join(dict.fromkeys(table['domain']))}")
    table = table[table["domain"] == domain] if domain is not None else table
    for name, rows in table.groupby("domain", sort=False):
        print(f"{name}")
        for row in rows[rows["state"] != "missing"].itertuples():
            print(f"  {row.network:36} {row.state}  ({row.source})")
        for network, ways in rows[rows["state"] == "missing"].groupby("network", sort=False):
            print(f"  {network:36} missing" + (", one of" if len(ways) > 1 else ""))
            for way in ways["source"]:
                print(f"      {way}")
    return 0 if not table["state"].str.startswith("damaged").any() else 1


@command("cards", "README.md of networks and domains, from each config.json.")
@click.argument("homes", nargs=-1, type=FOLDER, metavar="DIR...")
@click.option("--check", is_flag=True, help="write nothing; exit code 1 where a card is stale")
def _cards(homes: tuple[Path, ...], check: bool) -> int:
    """DIR is a domain's folder of networks (default: all of data/)."""
    from stx.checkpoints import cards, weights
    from stx.files.places import data_dir

    stale = 0
    for home in homes or sorted(path for path in data_dir().iterdir() if path.is_dir()):
        told = weights.cards_of(home)
        if not told and homes:
            raise InputError(f"{home}: no networks; a domain's folder holds them, as data/avatars does")
        for folder, text in told.items():
            if not cards.is_there(folder, text):
                stale += 1
                print(f"{'stale' if check else 'written'}: {folder / cards.FILE}")
                if not check:
                    cards.write(folder, text)
    print(f"{stale} cards {'stale' if check else 'written'}")
    return int(check and stale > 0)


@command("convert", "Public checkpoints to safetensors; nothing in them is executed.")
@click.argument("file", type=FOLDER)
@click.option("--to", type=click.Choice(["safetensors"]), default="safetensors")
@click.option("--out", required=True, type=FOLDER, metavar="DIR", help="gets a folder per network: data/ffhq")
def _convert(file: Path, to: str, out: Path) -> int:
    if not file.is_file():
        raise InputError(f"{file}: {'a folder or a device, not a file' if file.exists() else 'no such file'}")
    import torch

    from stx.checkpoints import convert, directions, weights
    from stx.files.checksums import sha256
    from stx.files.outputs import claim_networks
    from stx.files.places import safe_name

    print(f"reading {file}, {file.stat().st_size / 1e6:.0f} MB", flush=True)
    found = convert.read(file)
    directions.check_fit(found, out)
    if found.codes:
        return _keep_codes(found, file, out)
    many, stem = ("directions", "tuned"), safe_name(file.stem.removesuffix(".pth"))  # public code has .pth.tar
    named = {f"{name}-{stem}" if name in many else name: net for name, net in found.networks.items()}
    claim_networks(out / name for name in named)  # a domain has many directions, and tuned generators
    code = sha256(file)
    for name, net in named.items():
        before = _replaced(out / name)
        notes = {"kind": found.kind, "file": file.name, "sha256": code, **found.notes}
        weights.save(net, out / name, notes=notes, dtype=torch.float32)
        size = (out / name / "model.safetensors").stat().st_size / 1e6
        print(f"{found.kind}: {out / name}, {size:.0f} MB{before}", flush=True)
    return 0


def _replaced(folder: Path) -> str:
    """In words: what a folder of a network holds already."""
    if not (folder / "config.json").is_file():
        return ""
    from stx.checkpoints import weights
    from stx.files.errors import WeightsError

    try:
        notes = weights.read_config(folder).get("notes") or {}
    except WeightsError:
        return " (replaces a damaged one)"
    made = notes.get("file") or (f"a training of {notes['steps']} steps" if "steps" in notes else "another run")
    return f" (replaces the one from {made})"


def _keep_codes(found, file: Path, out: Path) -> int:
    from stx import batch
    from stx.checkpoints import codes, weights
    from stx.files.checksums import fingerprint
    from stx.files.places import safe_name

    folder = out / f"codes-{safe_name(file.stem)}"
    generator = weights.load(out / "generator") if (out / "generator").is_dir() else None
    sizes = (generator.num_ws, generator.w_dim) if generator is not None else (None, None)
    named = codes.w_plus(found.codes, *sizes, str(file))
    before = " (replaces those that were there)" if (folder / "index.json").is_file() else ""
    batch.save_codes(folder, named, file, fingerprint(generator) if generator is not None else "unknown")
    print(f"{len(named)} codes of pictures: {folder}{before}; `stx edit {folder}` edits and draws them")
    return 0


@command("export", "Networks of ours as a public checkpoint, or as ONNX graphs for the browser.")
@click.argument("folder", type=FOLDER)
@click.option("--to", type=click.Choice(["rosinality", "official", "onnx"]), required=True)
@click.option("--out", required=True, type=FOLDER, metavar="PATH", help="a file; of onnx a folder")
@click.option("--encoder", default="style_transformer", show_default=True, help="of onnx: psp, compared/e4e, ...")
@generator
def _export(folder: Path, to: str, out: Path, encoder: str, generator: str) -> int:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if to == "onnx":
        return _export_onnx(folder, out, encoder, generator)
    from stx.checkpoints import export, weights

    folders = {"generator": generator} | {name: name for name in ("discriminator", "style_transformer")}
    networks = {name: weights.load(folder / at) for name, at in folders.items() if (folder / at).is_dir()}
    notes = weights.read_config(folder / "style_transformer")["notes"] if "style_transformer" in networks else {}
    written = export.write(networks, to, out, notes)
    left = f" ({', '.join(name for name in networks if name not in written)} left out: not of that form)"
    print(f"{', '.join(written)} in {to} form: {out}" + left * (len(written) < len(networks)))
    return 0


def _export_onnx(folder: Path, out: Path, encoder: str, generator: str) -> int:
    from stx.checkpoints import onnx

    told = onnx.write(folder, out, encoder=encoder, generator=generator)
    for name, graph in told["graphs"].items():
        print(f"{out / name}.onnx: {graph['bytes'] / 1e6:.1f} MB, at most {graph['error']:.1e} from PyTorch")
    return 0
