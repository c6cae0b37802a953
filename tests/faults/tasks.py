"""Commands and trainings at small sizes, run in children that can be disturbed, and what they leave.

Each runs in a forked child, where everything is imported already. What is compared is what an undisturbed run of the
same command left: codes, weights, tables and pictures, not times and records.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import torch
from PIL import Image

from stx import batch, cli, recipes
from stx.checkpoints import weights
from stx.domains import avatars, datasets
from stx.files.errors import StxError
from stx.latent_classifier import LatentClassifier
from stx.reports import figures
from stx.training import loop
from tests.faults import mutate

LIMIT = 240  # seconds for a command that nobody disturbs
SIDE = mutate.SIZE
CODE = """
import pandas as pd
from stx.reports import figures
import matplotlib.pyplot as plt
for i in range(6):
    figure, ax = plt.subplots()
    ax.plot([1, 2], [i, 2])
    record = figures.provenance(notebook="a")
    figures.save_figure(figure, f"a_{i}", out, record)
    figures.save_table(pd.DataFrame({"n": [i]}), f"a_{i}", out, record)
"""


class Place:
    """Pictures, networks and files that commands work on, made once; and what undisturbed commands left of them."""

    def __init__(self, root: Path):
        self.root, self.left, self.seconds = root, {}, {}

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def make(self) -> None:
        """Everything, the first time that it is asked for."""
        if self.root.exists():
            return
        torch.set_num_threads(1)
        data = Path(os.environ["STX_DATA"])
        draw = np.random.RandomState(0).randint
        for folder, count, side in (("photos", 60, SIDE), ("wide", 24, 32), ("more", 9, SIDE)):
            (self.root / folder).mkdir(parents=True)
            for i in range(count):
                picture = draw(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(picture).save(self.root / folder / f"{folder}{i:02d}.png")
        labels = "".join(f"wide{i:02d}.png,{i % 2},{i // 2 % 2}\n" for i in range(24))
        (self.root / "wide" / "labels.csv").write_text("file,Smiling,Hat\n" + labels)
        for name, net in mutate.networks().items():
            weights.save(net, data / "photos" / name, dtype=torch.float32)
        torch.manual_seed(0)
        generator = mutate.Generator(size=32, z_dim=16, n_mlp=2, channel_base=64, channel_max=8)
        weights.save(generator, data / "wide" / "generator", dtype=torch.float32)
        mutate.checkpoints(self.root / "checkpoints")
        book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "p"}})
        cell = nbformat.v4.new_code_cell('out: str = ""  # folder', metadata={"tags": ["parameters"]})
        book.cells = [cell, nbformat.v4.new_code_cell(CODE)]
        nbformat.write(book, self.root / "a.ipynb")
        for i in range(2):
            figures.save_table(
                pd.DataFrame({"n": [i, 2], "word": ["a", "b"]}), "a", self.root / f"run{i}", figures.provenance()
            )

    def undisturbed(self, name: str, run: Callable[[Path], int]) -> tuple[dict, float]:
        """What a task leaves in its folder when nobody disturbs it, and its seconds."""
        if name not in self.left:
            folder = self.root / "undisturbed" / name
            began = time.monotonic()
            code, told = child(lambda: run(folder))
            assert code == 0, f"{name} fails undisturbed: {told}"
            self.seconds[name], self.left[name] = time.monotonic() - began, content(folder)
        return self.left[name], self.seconds[name]


# ----------------------------------------------------------------------------------------------------------- children


def child(
    call: Callable[[], int], disturb: Callable[[int], None] = lambda pid: None, before: Callable = lambda: None
) -> tuple[int, str]:
    """Runs `call` in a forked process; its exit code (a signal's number negative), and its stderr.

    disturb: called with the process's number while it runs. before: called in the child, once its stderr is open.
    """
    ours, theirs = os.pipe()
    sys.stdout.flush()
    if not (pid := os.fork()):
        os.close(ours)
        _become(theirs, before, call)
    os.close(theirs)
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.append(_drain(ours)))
    reader.start()
    disturb(pid)
    code = _wait(pid)
    reader.join(10)
    return code, "".join(told)


def _drain(handle: int) -> str:
    with os.fdopen(handle, errors="replace") as pipe:
        return pipe.read()


def _become(stderr: int, before: Callable, call: Callable[[], int]) -> None:
    """The rest of a forked child's life."""
    code = 70
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        code = call() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def _wait(pid: int) -> int:
    """The exit code of a child; one that does not end is killed and counts as -99."""
    ends = time.monotonic() + LIMIT
    while time.monotonic() < ends:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -99


def at(seconds: float, number: int) -> Callable[[int], None]:
    """A signal after a while."""

    def disturb(pid: int) -> None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    return disturb


def complaint(code: int, told: str, allowed: set[int]) -> str:
    """What is wrong with an exit code and the lines of stderr; "" where nothing is."""
    if code not in allowed:
        return f"exit code {code}, expected one of {sorted(allowed)}: {told[-2000:]}"
    if "Traceback" in told:
        return f"a traceback (exit code {code}): {told[-3000:]}"
    return ""


# ---------------------------------------------------------------------------------------------- what commands leave


def content(folder: Path) -> dict:
    """What is in a folder, without what differs from run to run: times, records, who wrote last."""
    found: dict = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".png":
            with Image.open(path) as image:
                found[name] = np.asarray(image)
        elif path.name == "state.pt":
            found[name] = loop.load_state(path)["task"]
        elif path.name == "model.safetensors":
            found[name] = weights.load(path.parent).state_dict()
        elif path.name == "index.json":
            names, ws = batch.load_codes(folder)
            found["codes"] = {code: ws[i] for i, code in enumerate(names)}
        elif path.suffix == ".csv":
            found[name] = path.read_text()
        elif path.suffix == ".json":
            json.loads(path.read_text())
    return found


def different(found, expected, where: str = "") -> str:
    """The first place where two contents are different; "" where none is."""
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return f"{where}: {sorted(map(str, found.keys() ^ expected.keys()))[:9]} in one of them only"
        return next(filter(None, (different(found[k], expected[k], f"{where}/{k}") for k in expected)), "")
    if isinstance(expected, torch.Tensor):
        close = found.shape == expected.shape and torch.allclose(found.float(), expected.float(), 1e-4, 1e-5)
        return "" if close else f"{where}: other numbers"
    if isinstance(expected, np.ndarray):
        near = found.shape == expected.shape and np.abs(found.astype(int) - expected.astype(int)).max() <= 2
        return "" if near else f"{where}: another picture"
    if isinstance(expected, list | tuple):
        if len(found) != len(expected):
            return f"{where}: another length"
        return different(dict(enumerate(found)), dict(enumerate(expected)), where)
    return "" if found == expected or found != found and expected != expected else f"{where}: {found}, not {expected}"


def leftovers(folder: Path) -> str:
    """Half-written files that a finished run did not sweep."""
    parts = [p.name for p in folder.rglob(".*.part")]
    return f"left: {parts}" if parts else ""


# --------------------------------------------------------------------------------------------------------------- tasks


def photos(place: Place, out: Path, *more) -> list[str]:
    """The words of `stx invert`."""
    return ["invert", str(place / "photos"), "--domain", str(place / "photos"), "--out", str(out),
            "--device", "cpu", "--shard", "7", *more]  # fmt: skip


def invert(place: Place, out: Path) -> int:
    """`stx invert`."""
    return cli.main(photos(place, out))


def notebook(place: Place, out: Path) -> int:
    """`stx run` of a notebook that saves figures and tables."""
    words = ["run", str(place / "a.ipynb"), "--out", str(out / "b.ipynb"), "-p", "out", str(out)]
    return cli.main(words)


def figure(place: Place, out: Path) -> int:
    """Figures and tables being saved."""
    figures.use_style()
    for i in range(4):
        drawn, ax = plt.subplots()
        ax.plot([1, 2], [i, 2])
        figures.save_figure(drawn, f"a_{i}", out, figures.provenance(notebook="a"))
        figures.save_table(pd.DataFrame({"n": [i]}), f"a_{i}", out, figures.provenance(notebook="a"))
        plt.close(drawn)
    return 0


def convert(place: Place, out: Path) -> int:
    """`stx convert`."""
    return cli.main(["convert", str(place / "checkpoints" / "official.pt"), "--out", str(out)])


def export(place: Place, out: Path) -> int:
    """`stx export`."""
    source = Path(os.environ["STX_DATA"]) / "photos"
    return cli.main(["export", str(source), "--to", "official", "--out", str(out / "x.pt")])


def align(place: Place, out: Path) -> int:
    """`stx align`, its search for faces left out."""
    batch.align.faces_in = lambda path, size, device: [np.full((64, 64, 3), len(str(path)), np.uint8)] * 2
    return cli.main(["align", str(place / "more"), "--out", str(out), "--size", "64", "--device", "cpu"])


def sweep(place: Place, out: Path) -> int:
    """`stx sweep`, then `stx index`."""
    done = cli.main(["sweep", str(place / "run0"), str(place / "run1"), "--out", str(out)])
    return done or cli.main(["index", str(out)])


def train_encoder(place: Place, out: Path) -> int:
    """`stx train encoder`."""
    return _train(place, out, "encoder", "--steps", "6", "--batch", "4")


def train_generator(place: Place, out: Path) -> int:
    """`stx train generator`, its discriminator a small one."""
    plain = recipes.generator_recipe
    small = {"projected": False, "z_dim": 12, "n_mlp": 2, "channel_base": 64, "channel_max": 8}
    recipes.generator_recipe = lambda domain, **given: plain(domain, **small | given)
    return _train(place, out, "generator", "--steps", "9", "--batch", "4", "--resolution", str(SIDE))


def _train(place: Place, out: Path, network: str, *words: str) -> int:
    _save_often()
    words = ("train", network, str(place / "wide"), *words, "--runs", str(out / "runs"), "--out", str(out / "nets"))
    return cli.main([*words, "--device", "cpu"])


def _save_often() -> None:
    recipes.train = lambda task, **given: loop.train(task, **given | {"save_every": 2, "log_every": 1})


def classifier(place: Place, out: Path) -> int:
    """The training of an attribute classifier."""
    recipe = recipes.ClassifierRecipe(steps=12, batch=4, widths=(4, 8, 12), units=(1, 1, 2))
    recipes.train_classifier(datasets.load(place / "wide", resolution=32), recipe, out)
    return 0


def latent_classifier(place: Place, out: Path) -> int:
    """The training of a latent classifier."""
    ws, labels = _codes(60), np.random.RandomState(0).rand(60, 2) < 0.5
    recipe = recipes.LatentClassifierRecipe(steps=40, batch=8, hidden=(9, 8), dim=4)
    recipes.train_latent_classifier("ab", (ws, labels), (ws[:20], labels[:20]), recipe, out)
    return 0


def reference_editor(place: Place, out: Path) -> int:
    """The training of an editor for references."""
    torch.manual_seed(0)
    net = LatentClassifier(num_ws=6, w_dim=12, attributes=("a", "b"), hidden=(9, 8), dim=4).eval()
    recipe = replace(recipes.ReferenceRecipe(), steps=30, batch=4, feed_forward=8)
    recipes.train_reference_editor(net, "a", _codes(60), recipe, out / "editor")
    return 0


def identity(place: Place, out: Path) -> int:
    """The training of an identity network, its drawings in the cache."""
    avatars.draw = lambda avatar: np.full((64, 64, 3), hash(str(avatar.person)) % 256, np.uint8)
    recipe = recipes.IdentityRecipe(steps=8, batch=4, people=6, looks=2, dim=5, widths=(4, 8, 12), units=(1, 1, 2))
    recipes.train_identity(datasets.load("avatars"), recipe, out)
    return 0


def _codes(count: int) -> torch.Tensor:
    return torch.randn(count, 6, 12, generator=torch.Generator().manual_seed(0))


def as_command(task: Callable) -> Callable:
    """A task that is no command, which ends like one."""

    def run(place: Place, out: Path) -> int:
        _save_often()
        try:
            task(place, out)
        except KeyboardInterrupt:
            return 130
        except StxError as error:
            print(f"stx: {error}", file=sys.stderr)
            return 2
        return 0

    run.__name__, run.__doc__ = task.__name__, task.__doc__
    return run


LONE = [as_command(task) for task in (figure, classifier, latent_classifier, reference_editor, identity)]
TASKS = [invert, notebook, train_encoder, train_generator, convert, export, align, sweep, *LONE]
