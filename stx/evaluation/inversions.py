"""Every way to invert under one interface, `invert(images) -> ws`: a domain's trained encoders, and searches.

These are the rows of the table of inversion (Hu et al. 2022, section 4.2). Encoders are described in
`stx.baselines.registry`, searches in `stx.baselines.optimisation`.
"""

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from stx import metrics, pipeline, resampling
from stx.baselines.optimisation import Inverted, project, tune
from stx.baselines.psp import PSP
from stx.baselines.registry import COMPARED, METHODS
from stx.checkpoints import weights
from stx.domains import datasets, images
from stx.domains.datasets import Domain
from stx.domains.splits import Dataset
from stx.encoder import Encoder
from stx.evaluation import quality
from stx.files.atomic import write_text
from stx.files.checksums import fingerprint
from stx.files.errors import WeightsError
from stx.files.places import data_dir
from stx.files.untrusted import read_json
from stx.inversion import InversionLoss
from stx.perception.irse import IR_SE50
from stx.perception.lpips import load_lpips
from stx.pipeline import Pipeline
from stx.recipes.encoders import ended
from stx.reports.figures import provenance, read_table
from stx.runtime import batches, progress, quiet
from stx.stylegan2.networks import Generator

MEASURED, RECORD = "measured.csv", "measured.json"  # beside an encoder: distances of its inversions by picture
OURS, LONGER = "style_transformer", "trained_longer"  # with the budget of all, and with more
ENCODE_BATCH, SEARCH_BATCH = 64, 16  # pictures at a time
COUNTED_STEPS = 5  # of a search, by which its cost is told
PUBLISHED = ("style_transformer", "psp", "e4e", "restyle_psp", "restyle_e4e", "restyle_style_transformer")
SETS = ("SWD", "FD-VGG16", "KD-VGG16")  # metrics of sets, which a handful of pictures cannot tell
COSTS = {"M parameters": "lower", "GFLOPs": "lower", "s per picture": "lower"}


@dataclass(frozen=True)
class Inverter:
    """A method. run: finds the codes of pictures `[b, 3, h, w]` in [-1, 1], as the domain's encoders see them.

    net: the network; None without one. trained: pictures seen in training, repeats counted; None where that is not
    known. steps: of a search, whose `run` also takes another number of `steps`; None for a method that does not
    search. batch: pictures at a time.
    """

    title: str
    run: Callable[..., Inverted]
    net: nn.Module | None = None
    trained: int | None = None
    steps: int | None = None
    batch: int = ENCODE_BATCH

    def invert(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b num_ws w_dim"]:
        """The codes alone, of pictures on any device."""
        return self.run(image).ws


@dataclass(frozen=True)
class Result:
    """What a method made of a data set: codes on the CPU, pictures, and pictures after some steps of a search."""

    ws: Float[Tensor, "n num_ws w_dim"]
    pictures: UInt8[np.ndarray, "n h w 3"]
    snapshots: dict[int, UInt8[np.ndarray, "n h w 3"]] = field(default_factory=dict)


def names(domain: str | Path, folder: str | Path | None = None) -> dict[str, str]:
    """The trained encoders of a domain, method to folder: those of one budget (`compared/`) where there are any.

    Raises `WeightsError` for a domain without any.
    """
    home = Path(folder) if folder else data_dir() / datasets.short_name(domain)
    parent = COMPARED if (home / COMPARED).is_dir() else "."
    found = {name: f"{parent}/{name}" for name in METHODS if (home / parent / name / "config.json").is_file()}
    if not found:
        raise WeightsError(f"{home}: no trained encoder; `stx weights` says what is missing")
    return found


def encoders(pipe: Pipeline, folders: dict[str, str]) -> dict[str, Inverter]:
    """Encoders by method. folders: as `names` gives them.

    Raises `WeightsError` for one that does not fit, or whose notes say that it was trained over another generator.
    """
    made, over = {}, fingerprint(pipe.generator)
    for name, folder in folders.items():
        net = pipe.network(folder)
        pipeline.check_fit(pipe.generator, net, pipe.domain)
        own = replace(pipe, encoder=net)
        notes = weights.read_config(pipe.folder / folder).get("notes") or {}
        given = notes.get("parameters") or {}
        if given.get("generator", over) != over:
            raise WeightsError(
                f"{folder} was trained over another generator ({given['generator']}) than this one ({over})"
            )
        steps, batch = notes.get("steps"), given.get("batch")  # of all trainings, of the last
        trained = steps * batch if steps and batch else None
        made[name] = Inverter(METHODS[name].title, partial(_encode, own), net, trained)
    return made


def longer(pipe: Pipeline) -> dict[str, Inverter]:
    """The domain's Style Transformer that is no part of the comparison, since it was trained longer; {} without one."""
    if not ((pipe.folder / COMPARED).is_dir() and (pipe.folder / OURS / "config.json").is_file()):
        return {}
    found = encoders(pipe, {OURS: OURS})[OURS]
    return {LONGER: replace(found, title=f"{found.title} (trained longer)")}


def searches(
    pipe: Pipeline, *, steps: int = 300, snapshots: Sequence[int] = (), idinvert: Encoder | None = None, seed: int = 0
) -> dict[str, Inverter]:
    """Searches by name: W with noise maps as in StyleGAN2's projector, W+ without as in Image2StyleGAN, IDInvert, PTI.

    steps: of each; PTI tunes for as many after its search (the public code stops at an LPIPS of 0.06, which suits
    photographs: cartoons are under it before).
    idinvert: the domain-guided encoder, without which there is no in-domain search.
    """
    loss = InversionLoss(load_lpips("alex", pipe.device), pipe.identity())
    view, generator = pipe.domain.view, pipe.generator
    search = partial(project, generator, loss, steps=steps, view=view, seed=seed, snapshots=tuple(snapshots))

    def in_domain(image: Tensor, **given) -> Inverted:
        start = idinvert.invert(image, generator, view).detach()
        return search(image, start=start, encoder=idinvert, lr=0.01, code_noise=0.0, **given)

    in_w = partial(search, space="w", maps=True)

    def pivotal(image: Tensor, steps: int = steps) -> Inverted:
        return tune(generator, loss, image, in_w(image, steps=steps).ws, steps=steps, enough=0.0, view=view)

    runs = {
        "w": ("optimisation, W", in_w),
        "w+": ("optimisation, W+", partial(search, space="w+")),
        "in_domain": ("IDInvert (encoder, then search)", in_domain),
        "pti": ("PTI (W, then tuning)", pivotal),
    }

    def moved(run: Callable[..., Inverted]) -> Callable[..., Inverted]:
        return lambda image, **given: run(image.to(pipe.device), **given)

    made = {name: Inverter(title, moved(run), steps=steps, batch=SEARCH_BATCH) for name, (title, run) in runs.items()}
    return {name: found for name, found in made.items() if name != "in_domain" or idinvert is not None}


def family(name: str, method: Inverter) -> str:
    """What kind of method it is, for figures: "Style Transformer", "its ablations", "refinement", "searches", ..."""
    if method.steps is not None:
        return "searches"
    if getattr(method.net, "passes", 1) > 1:
        return "refinement"
    if method.title.startswith("Style Transformer,"):
        return "its ablations"
    return "Style Transformer" if name in (OURS, LONGER) else "other encoders"


def run_all(inverter: Inverter, pipe: Pipeline, data: Dataset, count: int) -> Result:
    """A method applied to the first `count` pictures of a data set."""
    codes, pictures, snapshots = [], [], {}
    for part in progress(batches(count, inverter.batch), desc=inverter.title, unit="batch"):
        found = inverter.run(data.batch(part).to(pipe.device))
        codes.append(found.ws.cpu())
        pictures.append(images.to_uint8(found.image))
        for step, picture in found.snapshots.items():
            snapshots.setdefault(step, []).append(images.to_uint8(picture))
    return Result(torch.cat(codes), np.concatenate(pictures), {k: np.concatenate(v) for k, v in snapshots.items()})


@dataclass(frozen=True)
class Measured:
    """What methods made of a data set, by method: results and distances by picture; the table of all (`summarise`)."""

    results: dict[str, Result]
    tables: dict[str, pd.DataFrame]
    summary: pd.DataFrame


def measure_all(
    methods: dict[str, Inverter],
    pipe: Pipeline,
    data: Dataset,
    counts: tuple[int, int],
    *,
    results: Mapping[str, Result] | None = None,
    **resampled,
) -> Measured:
    """Every method applied to the first pictures of a data set and measured there.

    counts: pictures for methods without and with a search, of which the latter are too few for distances of sets.
    results: of methods that have been applied to them already. resampled: what `summarise` is given.
    """
    results, tables, known, rows = dict(results or {}), {}, {}, []
    for name, method in progress(methods.items(), desc="methods", unit="method"):
        searches = method.steps is not None
        count = counts[searches]
        with quiet():
            results[name] = results.get(name) or run_all(method, pipe, data, count)
            tables[name], sets = quality.measure(pipe, data, results[name].pictures, known=known.get(count))
            spent = cost(method, pipe, data.batch([0]))
            rows.append(summarise(method.title, tables[name], sets, spent, few=searches, **resampled))
        known[count] = sets
    return Measured(results, tables, pd.concat(rows, ignore_index=True))


def pictures_drawn(name: str, method: Inverter) -> int:
    """How many pictures a method draws to invert one: an encoder one in a pass, a search one in a step, PTI in both."""
    drawn = method.steps or getattr(method.net, "passes", 1)
    return 2 * drawn if name == "pti" else drawn


def encoder_codes(domain: str | Path, count: int, *, device: str = "cpu") -> Float[Tensor, "n num_ws w_dim"]:
    """Codes of the first `count` training pictures by all encoders of a domain, one encoder after the other."""
    pipe = pipeline.load(domain, device=device)
    pictures = pipe.domain.split("train", count)
    methods = encoders(pipe, names(domain)).values()
    parts = [run_all(method, pipe, pictures, len(pictures)).ws for method in methods]
    return torch.cat([pipe.invert(pictures.batch(range(len(pictures)))).cpu(), *parts])


@torch.no_grad()
def rate(
    measured: Measured, methods: dict[str, Inverter], pipe: Pipeline, data: Dataset, *, few: int, seed: int = 0
) -> pd.DataFrame:
    """LPIPS-Alex of the first `few` pictures by how many pictures a method drew: of a search also on its way.

    Columns: method, pictures drawn, LPIPS-Alex with the ends of its 95 % interval, pictures. A method's last row is its
    result. few: no more than were measured of any method.
    """
    alex, real, rows = load_lpips("alex", pipe.device), data.batch(range(few)).to(pipe.device), []
    for name, method in methods.items():
        snapshots, last = measured.results[name].snapshots, pictures_drawn(name, method)
        drawn = {
            step: images.to_tensor(snapshots[step][:few]).to(pipe.device) for step in sorted(snapshots.keys() - {last})
        }
        by_step = {step: alex(some, real).flatten().cpu().numpy() for step, some in drawn.items()}
        by_step[last] = measured.tables[name]["LPIPS-Alex"].to_numpy()[:few]
        for step, distances in by_step.items():
            rows.append([method.title, step, *metrics.mean_interval(distances, seed=seed), few])
    ends = "LPIPS-Alex", "LPIPS-Alex low", "LPIPS-Alex high"
    return pd.DataFrame(rows, columns=["method", "pictures drawn", *ends, "pictures"])


def cost(inverter: Inverter, pipe: Pipeline, image: Float[Tensor, "1 3 h w"]) -> dict[str, float]:
    """What the codes of one picture cost: the network's parameters (none in a search), operations, seconds.

    The time is a median of ten calls after two; of a search both are told from its first steps. Drawing the result is
    left out where an encoder does not need it.
    """
    image, net = image.to(pipe.device), inverter.net
    if inverter.steps is not None:
        clock = partial(metrics.seconds, device=pipe.device, repeats=1, warm_up=1)
        size, operations, seconds = float("nan"), *(_whole_search(inverter, image, of) for of in (metrics.flops, clock))
    else:
        alone = isinstance(net, Encoder)
        call = partial(net.invert, image, pipe.generator, pipe.domain.view) if alone else partial(inverter.run, image)
        size, operations = metrics.parameters(net) / 1e6 if net else float("nan"), metrics.flops(call)
        seconds = metrics.seconds(call, device=pipe.device)
    return {
        "M parameters": size,
        "GFLOPs": operations / 1e9,
        "s per picture": seconds,
        "training pictures": inverter.trained if inverter.steps is None else 0,
    }


def summarise(
    title: str, table: pd.DataFrame, sets: dict[str, list[np.ndarray]], spent: dict[str, float], *, few: bool, **options
) -> pd.DataFrame:
    """A row per number of a method: metrics with intervals (`quality.summarise`), then costs without.

    few: too few pictures for distances of sets, which are left out.
    """
    found = quality.summarise(table, sets, **options)
    found = found[~found["metric"].isin(SETS)] if few else found
    spent_rows = pd.DataFrame({"metric": list(spent), "value": list(spent.values())})
    spent_rows["better"] = spent_rows["metric"].map(COSTS)
    rows = pd.concat([found, spent_rows], ignore_index=True)
    return rows.assign(method=title, pictures=len(table))


def readable(rows: pd.DataFrame, groups: Sequence[Sequence[str]]) -> pd.DataFrame:
    """A line per method of what `summarise` gave, "value [low, high]", the best of each group of methods in bold."""
    shown: dict[str, dict[str, str]] = {}
    for metric, part in rows.groupby("metric", sort=False):
        values, direction = part.set_index("method")["value"], part["better"].iloc[0]
        best = set()
        for group in groups:
            own = values[values.index.isin(group)].dropna()
            if len(own) > 1 and direction in ("lower", "higher"):
                best.add(own.idxmin() if direction == "lower" else own.idxmax())
        for row in part.itertuples():
            if np.isnan(row.value):
                continue
            text = f"{row.value:,.0f}" if row.value >= 1000 else f"{row.value:.4g}"
            text = f"**{text}**" if row.method in best else text
            interval = "" if np.isnan(row.low) else f" [{row.low:.3g}, {row.high:.3g}]"
            shown.setdefault(row.method, {"test pictures": str(row.pictures)})[metric] = text + interval
    order = [title for group in groups for title in group if title in shown]
    return pd.DataFrame.from_dict(shown, orient="index").reindex(order).fillna("").reset_index(names="method")


def kept_trainings(pipe: Pipeline) -> list[Path]:
    """Folders of other training seeds that come with a domain: what was measured of encoders that are not kept."""
    return sorted(path for path in (pipe.folder / "trainings").glob("*") if path.is_dir())


def by_training(
    pipe: Pipeline,
    data: Dataset,
    tables: dict[str, pd.DataFrame],
    folders: Sequence[str | Path],
) -> dict[str, pd.DataFrame]:
    """`tables` of encoders by method as training 0, and below them those of the same methods in `folders` as 1, 2, ...

    Each folder is one that `names` reads, such as `make seeds` makes. What is measured of an encoder is written beside
    it (`measured.csv`) and serves the next run on no more of the same pictures. An encoder that is gone and was not
    measured on them has no rows. Raises `WeightsError` for a folder without encoders and for one that does not fit.
    """
    found = {name: [table.assign(training=0)] for name, table in tables.items()}
    for number, home in enumerate(folders, 1):
        for name, folder in names(pipe.domain.name, home).items():
            place = Path(home).resolve() / folder
            if name in tables:
                seen = data.subset(range(len(tables[name])))
                table = _kept(place, pipe, seen)
                if table is None and (place / "model.safetensors").is_file():
                    table = _measure(name, place, pipe, seen)
                found[name] += [] if table is None else [table.assign(training=number)]
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _kept(folder: Path, pipe: Pipeline, data: Dataset) -> pd.DataFrame | None:
    """What `_measure` wrote, where it is of this encoder, this generator and all of these pictures."""
    try:
        told = read_json(folder / RECORD)["parameters"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if told != _told(folder, pipe, data) or not (folder / MEASURED).is_file():
        return None
    table = read_table(folder / MEASURED, words=["picture"], numbers=["L2", "LPIPS-Alex"]).iloc[: len(data)]
    return table if list(table["picture"]) == list(data.names) else None


def _measure(name: str, folder: Path, pipe: Pipeline, data: Dataset) -> pd.DataFrame:
    method = encoders(pipe, {name: str(folder)})[name]
    table = quality.per_picture(pipe, data, run_all(method, pipe, data, len(data)).pictures)
    if os.access(folder, os.W_OK):
        write_text(folder / MEASURED, table.to_csv(index=False, float_format="%.6g"))
        record = provenance(device=pipe.device, **_told(folder, pipe, data))
        write_text(folder / RECORD, json.dumps(record, indent=2))
    return table


def _told(folder: Path, pipe: Pipeline, data: Dataset) -> dict[str, str | None]:
    encoder, first = weights.read_config(folder).get("sha256"), data.subset([0]).fingerprint()
    return {"encoder": encoder, "generator": fingerprint(pipe.generator), "first picture": first}


def spread(tables: dict[str, pd.DataFrame], titles: dict[str, str], *, seed: int = 0) -> pd.DataFrame:
    """A row per method and metric of what `by_training` gave: mean with interval, and the sd of trainings' means."""
    rows = []
    for name, metric in itertools.product(tables, ("L2", "LPIPS-Alex")):
        found, each = resampling.mean(tables[name], metric, seed=seed), tables[name].groupby("training")[metric].mean()
        rows.append([titles[name], metric, len(each), found.value, found.low, found.high, each.std()])
    return pd.DataFrame(rows, columns=["method", "metric", "trainings", "value", "low", "high", "sd of trainings"])


def differences(tables: dict[str, pd.DataFrame], ours: str, titles: dict[str, str]) -> pd.DataFrame:
    """How much further than `ours` each other method of what `by_training` gave is: a row per metric and training.

    The mean over the pictures and its standard error, in the metric's unit. Trainings of the same number are held
    against each other; one that either lacks has no row.
    """
    rows = []
    for name, metric in itertools.product((name for name in tables if name != ours), ("L2", "LPIPS-Alex")):
        other, own = (tables[n].pivot(index="picture", columns="training", values=metric) for n in (name, ours))
        for training, gap in (other - own).dropna(axis=1, how="all").items():
            rows.append([titles[name], metric, training, gap.mean(), gap.sem(), gap.count()])
    return pd.DataFrame(rows, columns=["method", "metric", "training", "difference", "standard error", "pictures"])


def budgets(pipe: Pipeline, homes: Sequence[str | Path]) -> pd.DataFrame:
    """What the trainings of encoders were given and where they ended: a row each, those of `homes` being 0, 1, ...

    homes: folders as `names` reads them. NaN where an encoder's notes and log do not tell. "still gained": by
    which share the loss fell in the last tenth of the updates (`stx.recipes.encoders.last_tenth`). Raises
    `WeightsError` for a folder without encoders.
    """
    rows = []
    for number, home in enumerate(homes):
        for name, folder in names(pipe.domain.name, home).items():
            place = Path(home) / folder
            notes = weights.read_config(place).get("notes") or {}
            given = notes.get("parameters") or {}
            log = read_table(place / "log.csv", numbers=["step"]) if (place / "log.csv").is_file() else pd.DataFrame()
            told = given.get("lr"), notes.get("steps"), given.get("batch")
            rows.append([METHODS[name].title, number, *told, *ended(log)])
    heads = ["method", "training", "rate", "updates", "batch", "validation loss", "still gained"]
    return pd.DataFrame(rows, columns=heads)


def published_sizes(*, size: int = 1024, side: int = 256) -> pd.DataFrame:
    """Parameters and operations of the encoders at the size the papers use, counted without any weights.

    size: the generator's resolution; side: of the pictures. Of ReStyle five passes, with the drawing between them.
    """
    rows = []
    with torch.device("meta"):
        generator = Generator(size=size)
        for name in PUBLISHED:
            method = METHODS[name]
            options = method.options | ({"input_side": side} if method.network is PSP else {"n_mlp": 8})
            net = method.network(num_ws=generator.num_ws, **IR_SE50, **options).eval().requires_grad_(False)
            image, view = torch.empty(1, 3, side, side), Domain("", size, (side, side), (), lambda _: None).view
            operations = metrics.flops(partial(net.invert, image, generator.requires_grad_(False), view))
            rows.append([method.title, metrics.parameters(net) / 1e6, operations / 1e9])
    return pd.DataFrame(rows, columns=["method", "M parameters", "GFLOPs"])


@torch.no_grad()
def _encode(pipe: Pipeline, image: Tensor) -> Inverted:
    ws = pipe.invert(image)
    return Inverted(ws, pipe.reconstruct(ws))


def _whole_search(inverter: Inverter, image: Tensor, measure: Callable[[Callable], float]) -> float:
    """What all steps of a search take, from a short run: every step after the first takes the same."""
    first, some = (measure(partial(inverter.run, image, steps=n)) for n in (1, 1 + COUNTED_STEPS))
    return first + (inverter.steps - 1) * (some - first) / COUNTED_STEPS
