"""Figures and tables: one style, one way to save, and a record of where each comes from beside it."""

import html
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from stx.files.atomic import atomic_write, write_text
from stx.files.errors import InputError
from stx.files.outputs import Kind, claim_files, made_by_stx
from stx.files.places import ROOT, safe_name
from stx.files.untrusted import one_line
from stx.reports import scales

PACKAGES = ("torch", "numpy", "lpips", "dicebear-styles", "resvg-py")
WIDTH = 7.0  # inches: the width of a page's text, which no figure exceeds
TEXT, TICKS, SMALL = 8, 7, 6  # points: of titles and names of axes; of ticks and legends; of what is dense
RC = {
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": TICKS,
    "ytick.labelsize": TICKS,
    "legend.fontsize": TICKS,
    "legend.title_fontsize": TICKS,
    "lines.linewidth": 1,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.03,
    "text.parse_math": False,  # names come from files: a dollar sign is one
}


MARKERS = "osD^v<>pXP"
GREY = "0.6"  # of what stands behind
GRID_GAP = 0.04  # between the pictures of a grid, as a share of their side
LETTERS = 18  # of a title of a grid that fit into an inch
APART = 20  # a line of a training breaks where its points are this many times farther apart than mostly
LOSSES = {  # as columns of logs are called by people
    "l2": "L2",
    "lpips": "LPIPS",
    "id": "1 − ID",
    "d_loss": "discriminator",
    "g_loss": "generator",
    "r1": "R1 penalty",
    "val_accuracy": "validation accuracy",
}
LONG_TABLE = 60  # lines from which the index only links a table


def use_style() -> None:
    """The look of all figures: readable at column width, in grey and by colour-blind readers."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc=RC)


def looks(names: Iterable[str]) -> dict[str, dict]:
    """A colour and marker for each of up to a hundred names, no two alike, as keywords of `Axes.plot`."""
    colors = sns.color_palette("colorblind", len(MARKERS))
    pairs = ((at % len(MARKERS), (at + 3 * (at // len(MARKERS))) % len(MARKERS)) for at in itertools.count())
    return {name: {"color": colors[c], "marker": MARKERS[m]} for name, (c, m) in zip(names, pairs, strict=False)}


def with_interval(ax: Axes, x: float, interval: Iterable[float], **look) -> None:
    """A point at x with a bar. interval: value, low and high; look: keywords of `Axes.errorbar`."""
    value, low, high = interval
    ax.errorbar(x, value, yerr=[[max(value - low, 0)], [max(high - value, 0)]], **look)


def human(name: str) -> str:
    """A name as people write it: "Mouth slightly open" for the attribute "Mouth_Slightly_Open"."""
    first, *rest = name.split("_")
    return " ".join([first, *(word.lower() for word in rest)])


def categories(labels: Int[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """A colour for each of up to twenty classes, without an order: pictures of parts for `show_grid`."""
    palette = np.array(sns.color_palette("colorblind") + sns.color_palette("pastel"))
    return (255 * palette[labels % len(palette)]).astype(np.uint8)


def name_points(ax: Axes, points: Mapping[str, Sequence[float] | np.ndarray]) -> None:
    """Writes names to the right of points (in units of the axes), moved apart where they would lie on each other.

    A name takes the nearest free height; one that had to move far is joined to its point by a line. Call it when the
    limits of the axes are final.
    """
    ax.figure.draw_without_rendering()  # a layout moves axes
    line, letter = (share * SMALL * ax.figure.dpi / 72 for share in (1.2, 0.6))
    places = {name: ax.transData.transform(point) for name, point in points.items()}
    middle = ax.transAxes.transform((0, 0.5))[1]
    taken = [(x - letter, x + letter, y) for x, y in places.values()]
    for name in sorted(places, key=lambda name: abs(places[name][1] - middle), reverse=True):
        x, y = places[name]
        start = x + 1.5 * letter
        end = start + letter * len(name)
        others = [other for left, right, other in taken if left < end and start < right]
        heights = (y + side * line * n / 4 for n in itertools.count() for side in (1, -1))
        y = next(height for height in heights if all(abs(height - other) >= line for other in others))
        taken.append((start, end, y))
        moved = {"arrowstyle": "-", "color": GREY, "linewidth": 0.4} if abs(y - places[name][1]) > line else None
        offset = (np.array([start, y]) - places[name]) * 72 / ax.figure.dpi  # in points: a file has another resolution
        style = {"textcoords": "offset points", "fontsize": SMALL, "va": "center", "arrowprops": moved}
        ax.annotate(name, points[name], offset, **style)


def heat(ax: Axes, matrix: pd.DataFrame, *, most: float, dots: Iterable[int] = ()) -> None:
    """A map of numbers from 0 to `most`, named as people do; dots: for each row the column that has a dot instead.

    What is not a number is hatched.
    """
    ax.set_facecolor("white")
    ax.patch.set(hatch="//////", edgecolor="0.75")
    ax.imshow(matrix.to_numpy(float), cmap="Greys", vmin=0, vmax=most, interpolation="none")
    for row, column in enumerate(dots):
        ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="white", edgecolor="none"))
        ax.plot(column, row, "k.", markersize=2)
    options = {"fontsize": SMALL}
    ax.set_xticks(range(matrix.shape[1]), map(human, matrix.columns), rotation=90, **options)
    ax.set_yticks(range(len(matrix)), map(human, matrix.index), **options)
    ax.tick_params(length=0, pad=2)


def provenance(*, device: str = "cpu", **parameters) -> dict:
    """What a result depends on: parameters, versions, processor, device (of `stx.pick_device`), commit, time."""
    system = f"{platform.system()} {platform.machine()}"
    return {
        "parameters": parameters,
        "commit": _git(ROOT, "rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(_git(ROOT, "status", "--porcelain", "--", "stx", "notebooks", "data")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": f"{system}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def save_figure(figure: Figure, name: str, folder: str | Path, record: dict) -> None:
    """Writes `name.png`, `name.pdf` and `name.json` (the record of `provenance`); `name` starts with its notebook."""
    folder, name = Path(folder), safe_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    claim_files((folder / f"{name}.{suffix}" for suffix in ("png", "pdf", "json")), kind=Kind.FIGURE)
    _exponents_on_log_axes(figure)
    commit = f"stx {record['commit'][:12]}"
    with atomic_write(folder / f"{name}.png") as part:
        figure.savefig(part, format="png", metadata={"Software": commit})
    with atomic_write(folder / f"{name}.pdf") as part:
        figure.savefig(part, format="pdf", metadata={"CreationDate": None, "Creator": commit})
    write_text(folder / f"{name}.json", json.dumps(record, indent=2, default=str))


def save_table(
    table: pd.DataFrame,
    name: str,
    folder: str | Path,
    record: dict,
    *,
    note: str = "",
    shown: pd.DataFrame | None = None,
) -> None:
    """Writes `name.csv` (full precision), `name.md` (rounded, or `shown`, with `note` below) and `name.json`."""
    folder, name = Path(folder), safe_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    claim_files((folder / f"{name}.{suffix}" for suffix in ("md", "csv", "json")), kind=Kind.FIGURE)
    packages = ", ".join(f"{k} {v}" for k, v in record["packages"].items() if v)
    where = record["machine"] if record["device"] == "cpu" else f"{record['device']}, {record['machine']}"
    scale = f" at {scales.told(record['parameters'])} scale" if "scale" in record["parameters"] else ""
    made = f"Made {record['made']} by stx {record['commit'][:12]}{scale} on {where} ({packages})."
    rounded, words = {"floatfmt": ".4g"}, {"disable_numparse": True}
    plain = (table if shown is None else shown).map(_cell).rename(columns=_cell)
    body = plain.to_markdown(index=False, **(rounded if shown is None else words))
    write_text(folder / f"{name}.md", "\n\n".join(part for part in (body, note, made) if part) + "\n")
    write_text(folder / f"{name}.csv", table.to_csv(index=False))  # after its .md, which says that it is of stx
    write_text(folder / f"{name}.json", json.dumps(record, indent=2, default=str))


def read_table(path: str | Path, *, words: Sequence[str] = (), numbers: Sequence[str] = ()) -> pd.DataFrame:
    """A table that `save_table` wrote. words, numbers: columns that it must have, and what is in them.

    Raises `InputError` that names the file and the remedy where it is damaged or another table.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(words, str))
        lacking = [name for name in (*words, *numbers) if name not in table]
        if lacking:
            raise InputError(f"without the columns {', '.join(lacking)}")
        return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})
    except (OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:  # pandas' own are these
        told = f"not a readable table ({one_line(error)}); delete it and make it again with its notebook or command"
        raise InputError(f"{path}: {told}") from None


def sweep(folders: Sequence[str | Path], out: str | Path, record: dict) -> list[str]:
    """Means and standard deviations of the tables that several folders share: `sweep_NAME.csv` in `out`; their names.

    Rows belong together by their words, those of the same words by their order, and the last column says how many runs
    had each; tables of single pictures are left out.
    Raises `ValueError` for fewer than two folders, where they share no table, and for a damaged one.
    """
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise InputError(f"{', '.join(map(str, folders))}: a folder that is there twice is no other run")
    if len(folders) < 2:
        raise InputError(f"{len(folders)} folders: a sweep needs two or more")
    shared = set.intersection(*({p.name for p in Path(f).glob("*.csv")} for f in folders))
    shared = {name for name in shared if not name.startswith("sweep_")}  # results of a sweep are not its inputs
    written = []
    for name in sorted(shared):
        first = read_table(Path(folders[0]) / name)
        numbers = list(first.select_dtypes("number").columns)
        words = [c for c in first.columns if c not in numbers]
        tables = [read_table(Path(f) / name, words=words, numbers=numbers) for f in folders]
        if not numbers or "picture" in first:
            continue
        again = [t.groupby(words, dropna=False).cumcount() if words else range(len(t)) for t in tables]
        stacked = pd.concat([t.assign(row=row) for t, row in zip(tables, again, strict=True)])
        groups = stacked.groupby([*words, "row"], sort=False, dropna=False)[numbers]
        mean, sd = groups.mean(), groups.std().add_suffix(" sd")
        ordered = [c for n in numbers for c in (n, f"{n} sd")]
        table = mean.join(sd)[ordered].assign(runs=groups.size()).reset_index()
        table = table.drop(columns="row") if words else table
        note = (
            f"Mean and standard deviation over those of {len(folders)} runs that have the row. A run's seed changes "
            "what its notebooks train, sample and draw, not the shipped weights and the test pictures."
        )
        save_table(table, f"sweep_{Path(name).stem}", out, record, note=note)
        written.append(f"sweep_{Path(name).stem}")
    if not written:
        raise InputError(f"{', '.join(map(str, folders))}: no table of numbers that all of these folders have")
    return written


def write_index(folder: str | Path) -> Path:
    """`index.md`: every figure and table of a folder by notebook, with its parameters, commit and time.

    Raises `ValueError` where there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    claim_files([folder / "index.md"])
    entries: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8")) if made_by_stx(path) else {}
        if "parameters" not in record:
            continue  # of somebody else, or of something else
        source, made = _told_by(record, path)
        name = path.stem
        lines = [f"### {name}", "", f"{made}.", ""]
        if (folder / f"{name}.png").is_file():
            pdf = [f"[PDF]({name}.pdf)", ""] if (folder / f"{name}.pdf").is_file() else []
            lines += [f"![{name}]({name}.png)", "", *pdf]
        if (folder / f"{name}.md").is_file():
            table = (folder / f"{name}.md").read_text(errors="replace").split("\n\nMade ")[0]
            shown = [table, ""] if table.count("\n") < LONG_TABLE else []
            lines += [*shown, f"[table]({name}.md), [CSV]({name}.csv)", ""]
        entries.setdefault(source, []).append("\n".join(lines))
    parts = [f"## {source}\n\n" + "\n".join(found) for source, found in sorted(entries.items())]
    write_text(folder / "index.md", "# Figures and tables\n\n" + "\n".join(parts))
    return folder / "index.md"


def show_grid(
    rows: Sequence[np.ndarray | Sequence[np.ndarray]],
    *,
    row_names: Sequence[str] = (),
    titles: Sequence[str] = (),
    size: float = 0.8,
    marked: Sequence[Sequence[bool] | np.ndarray] | np.ndarray = (),
) -> Figure:
    """Pictures in a grid: each row uint8 `[columns, h, w, 3]` or float `[columns, h, w]` in [0, 1] (drawn as a map).

    row_names, titles: as they are, or names of attributes, which are written as people do (`human`). size: inches of a
    picture's width, less where the grid would be wider than `WIDTH`. marked: for each row which pictures get a frame.
    Smaller pictures are enlarged to the largest. All are one image on one pair of axes: a pair for each picture would
    take a hundred times as long to draw.
    """
    rows = [np.asarray(row) for row in rows]
    columns = max(map(len, rows))
    h, w = (max(row.shape[axis] for row in rows) for axis in (1, 2))
    down, right = h + round(GRID_GAP * h), w + round(GRID_GAP * w)
    canvas = np.full((down * len(rows), right * columns, 3), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            colored = picture if picture.ndim == 3 else (255 * plt.get_cmap("magma")(picture)[..., :3]).astype(np.uint8)
            enlarged = Image.fromarray(colored).resize((w, h), Image.Resampling.NEAREST)
            canvas[i * down : i * down + h, j * right : j * right + w] = enlarged
    size = min(size, WIDTH / columns)
    figure, ax = plt.subplots(figsize=(size * columns, size * down / right * len(rows)))
    figure.subplots_adjust(0, 0, 1, 1)  # names and titles lie outside, where saving finds them
    ax.imshow(canvas, interpolation="none", aspect="auto")
    ax.set_frame_on(False)
    ax.xaxis.tick_top()
    shown = [_wrapped(title, size) for title in titles]
    ax.set_xticks([j * right + w / 2 - 0.5 for j in range(len(titles))], shown)
    ax.set_yticks([i * down + h / 2 - 0.5 for i in range(len(row_names))], [human(name) for name in row_names])
    ax.tick_params(length=0, pad=2)
    for i, j in itertools.product(range(len(marked)), range(columns)):
        if j < len(marked[i]) and marked[i][j]:
            at = j * right - 0.5, i * down - 0.5
            ax.add_patch(plt.Rectangle(at, w, h, fill=False, edgecolor="black", linewidth=1.6, clip_on=False))
    return figure


def training_curves(
    panels: Mapping[str, Sequence[tuple[str, pd.DataFrame, str, str]]], *, width: float = 1.75, **axes
) -> Figure:
    """Columns of the logs of trainings, by update.

    panels: under each title its curves: a label ("" for none), a log, its column, and a style as `Axes.plot` has it.
    Rows of a log without the number are left out, and the line breaks where they are a stage of their own; a column
    that it lacks is an empty curve. width: inches of a panel;
    axes: what `Axes.set` is given for each, such as `yscale="log"`.
    """
    count = max(len(panels), 1)
    options = {"squeeze": False, "layout": "constrained"}
    figure, row = plt.subplots(1, count, figsize=(min(width * count, WIDTH), 1.7), **options)
    named = {}
    for ax, (title, curves) in zip(row[0], panels.items(), strict=False):
        for label, log, column, style in curves:
            points = _broken(log.reindex(columns=["step", column]).dropna(subset=[column]))
            (line,) = ax.plot(points["step"], points[column], style, markersize=2, linewidth=0.8)
            named.setdefault(label, line)
        ax.set(title=LOSSES.get(title, title), xlabel="update", **axes)
        if ax.get_yscale() == "log":
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
    named.pop("", None)
    if named:
        figure.set_figheight(1.95)  # a line more
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=len(named))
    return figure


def _broken(points: pd.DataFrame) -> pd.DataFrame:
    """A log with an empty row in every gap: a stage that did not write the number is no straight line."""
    gaps = points["step"].diff()
    far = points[gaps > APART * gaps.median()]
    empty = pd.DataFrame({"step": far["step"] - 0.5}).reindex(columns=points.columns)
    return pd.concat([points, empty]).sort_values("step") if len(far) else points


def _wrapped(title: str, size: float) -> str:
    fit = max(int(LETTERS * size), 6)
    lines = [textwrap.fill(line, fit, break_long_words=False) for line in human(title).split("\n")]
    return "\n".join(lines)


def _told_by(record: dict, path: Path) -> tuple[str, str]:
    """Whence a result is, and how it was made. Raises `InputError` that names the file for a damaged record."""
    try:
        given, (commit, device, made) = record["parameters"], map(record.get, ("commit", "device", "made"))
        source = given.get("notebook") or given.get("command", "")
        told = ", ".join(f"{k} {v}" for k, v in given.items() if k not in ("notebook", "command"))
        if not all(isinstance(word, str) for word in (source, commit, device, made)):
            raise InputError("its commit, device, time, notebook or command is no text")
        return source, f"{told}; commit {commit[:12]}, {device}, {made}"
    except (AttributeError, InputError) as error:
        told = f"not a readable record ({one_line(error)}); make it again with its notebook or command"
        raise InputError(f"{path}: {told}") from None


def _cell(value):
    """Text in a Markdown table stays text: no column, row or element of HTML begins in it."""
    if not isinstance(value, str):
        return value
    return html.escape(" ".join(value.split()), quote=False).replace("|", "\\|")


def _exponents_on_log_axes(figure: Figure) -> None:
    """Their ticks alone are mathematical text (see RC)."""
    figure.draw_without_rendering()  # makes the ticks
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            if axis.get_scale() == "log":
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                    tick.label1.set_parse_math(True)
                    tick.label2.set_parse_math(True)


def _git(root: Path, *words: str) -> str:
    try:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
