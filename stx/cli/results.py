"""Commands for notebooks and their numbers: `stx run`, `claims`, `check`, `score`, `sweep`, `index`, `readme`, ..."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from stx.cli.words import COUNT, FOLDER, SEED, command, device
from stx.files.errors import InputError


@command("sweep", "Mean and sd of the tables of several runs.")
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, default=Path("figures"), metavar="DIR", help="gets sweep_NAME.csv and .md")
def _sweep(folders: tuple[Path, ...], out: Path) -> int:
    from stx.reports.figures import provenance, sweep

    record = provenance(command="stx sweep", folders=list(map(str, folders)))
    print("\n".join(sweep(folders, out, record)))
    return 0


@command("claims", "The verdicts of several runs side by side, and what their differences come from.")
@click.argument("runs", nargs=-1, required=True, metavar="NAME=FOLDER...")
@click.option("--out", type=FOLDER, default=Path("figures"), metavar="DIR", help="gets claims_*.csv and .md")
def _claims(runs: tuple[str, ...], out: Path) -> int:
    from stx.reports import claims
    from stx.reports.figures import provenance

    folders = dict(run.split("=", 1) for run in runs if "=" in run)
    if len(folders) < len(runs):
        raise InputError(f"{' '.join(runs)}: expected different names with folders, as avatars=figures")
    record, places = provenance(command="stx claims", runs=folders), {name: Path(f) for name, f in folders.items()}
    table = claims.side_by_side(places, out, record)
    claims.variance(places, out, record)
    print(table.to_string(index=False))
    same, unasked = ((table["agree"] == word).sum() for word in ("yes", claims.UNASKED))
    print(f"{same} of {len(table)} claims have one verdict everywhere" + f", {unasked} were not asked" * bool(unasked))
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


@command("score", "Your own method through our protocol, beside ours; without a file ours alone.")
@click.argument("file", type=FOLDER, required=False)
@click.option("--domain", default="avatars", show_default=True)
@click.option("--scale", type=click.Choice(["smoke", "quick", "evidence"]), default="quick", show_default=True)
@click.option("--out", type=FOLDER, metavar="DIR", help="gets page, tables, LEADERBOARD.md (default: runs/score/FILE)")
@click.option("--seed", type=SEED, default=0, show_default=True)
@device
def _score(file: Path | None, domain: str, scale: str, out: Path | None, seed: int, device: str) -> int:
    if file and not file.is_file():
        raise InputError(f"{file}: no such file")
    import stx
    from stx.evaluation import leaderboard, score
    from stx.reports import scales
    from stx.reports.figures import provenance
    from stx.runtime import pick_device

    parts = leaderboard.add_methods(file) if file else list(leaderboard.ORDER)
    name = file.name if file else "ours"
    out, device = out or Path("runs") / "score" / Path(name).stem, pick_device(device)
    sizes = {name: by_scale[scales.SCALES.index(scale)] for name, by_scale in scales.SCORE.items()}
    record = provenance(command="stx score", file=name, domain=domain, scale=scale, device=device, seed=seed, **sizes)
    pipe = stx.load(domain, device=device)
    work = {"inversion": score.inversion, "editing": score.edits}
    found = {part: work[part](pipe, sizes, seed=seed) for part in parts}
    page = leaderboard.write(found, out, record)
    wrong = [line for scores in found.values() for line in scores.wrong]
    print("\n".join([f"stx: {line}" for line in wrong] + [f"page: {page}", f"rows: {out / 'LEADERBOARD.md'}"]))
    scored = sum(int(scores.table["own"].sum()) for scores in found.values() if len(scores.table))
    return 2 if file and not scored else int(bool(wrong))


@command("readme", "Fill in the numbers of README.md from the tables.")
@click.argument("file", type=FOLDER, default=Path("README.md"))
@click.option(
    "--figures", type=FOLDER, default=Path("figures"), show_default=True, metavar="DIR", help="with the tables"
)
@click.option("--check", is_flag=True, help="write nothing; exit code 1 where a number is stale")
def _readme(file: Path, figures: Path, check: bool) -> int:
    from stx.files.atomic import atomic_write
    from stx.reports import readme

    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{file}: not a text in UTF-8; save it as one") from None
    text, stale = readme.fill(text, figures)
    for words in stale:
        print(f"{'stale' if check else 'filled'}: {words}")
    if stale and not check:
        with atomic_write(file) as part:
            part.write_bytes(text.encode("utf-8"))  # with the ends of lines that it had
    print(f"{file}: {len(stale)} places {'stale' if check else 'filled anew'}")
    return 1 if check and stale else 0


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


@command("bench", "Seconds and memory at full size, beside the public form.")
@click.option("--sizes", type=COUNT, multiple=True, default=[256, 1024], metavar="PIXELS...", show_default=True)
@click.option("--processes", type=COUNT, multiple=True, metavar="N...", help="instead: avatars with so many processes")
@click.option("--threads", type=COUNT, help="default: those of torch")
@click.option("--device", default="cpu", show_default=True, help="cuda or mps: both forms in both precisions there")
@click.option("--out", type=FOLDER, default=Path("figures"), metavar="DIR", help="gets bench.csv and bench.md")
def _bench(sizes: tuple[int, ...], processes: tuple[int, ...], threads: int | None, device: str, out: Path) -> int:
    import torch

    from stx.files.places import ROOT
    from stx.reports.figures import provenance, save_figure, save_table, use_style
    from stx.runtime import pick_device

    if not (ROOT / "benchmarks").is_dir():
        raise InputError(f"{ROOT}: no benchmarks/ here; `stx bench` needs a clone (`pip install -e .`)")
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from benchmarks import bench

    device, load, threads = pick_device(device), os.getloadavg()[0], threads or torch.get_num_threads()
    if device != "cpu":
        name, table = f"bench_{torch.device(device).type}", bench.on_device(sizes, device)
        record = provenance(command="stx bench", device=device, sizes=list(sizes))
        note = (
            f"{record['device']}: random weights, one picture, no gradients; median of {bench.REPEATS} calls after "
            "two. Mixed precision is autocast to bfloat16. Memory is the peak of drawing, weights included. The "
            "difference is to our picture in float32."
        )
        use_style()
        save_figure(bench.figure(table, record["device"]), name, out, record)
    elif processes:
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
    print((out / f"{name}.md").read_text(encoding="utf-8"))
    return 0
