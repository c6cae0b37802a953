"""What nobody thought of: spoilt files for every reader, kills at random moments, disks that fill (`make fuzz`).

`python -m tests.faults.fuzz --seed 0 --minutes 5`: every round has a seed of its own, made of `seed` and its number,
so that a fault comes again with `--seed SEED --first NUMBER --rounds 1`. What a fault needs lies in a folder under
`--out`. A reader is allowed to succeed or to raise `StxError`, in 5 s of CPU and 1 GB of memory; the other rounds are
in `tests.faults.rounds`.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

SECONDS, BYTES, PATIENCE = 5, 1 << 30, 60
FOLDERS = {  # of `mutate.folders`: the file to spoil
    "network": "nets/*/config.json",
    "weights": "nets/*/model.safetensors",
    "index": "codes/index.json",
    "shard": "codes/codes-00000.safetensors",
    "state": "run/state.pt",
    "labels": "labelled/labels.csv",
    "claims": "claims/claims.csv",
    "table": "claims/08_x.csv",
    "record": "claims/08_x.json",
    "cache": "cache/people.npy",
    "recipe": "recipe/state.json",
    "notebook": "books/a.ipynb",
}


# ------------------------------------------------------------------------------------------------------------- readers


def read(kind: str, path: Path):
    """What stx does with a spoilt file of a kind. Notebooks are made ready and not executed."""
    import papermill
    import torch

    from stx import batch
    from stx.checkpoints import convert, weights
    from stx.domains import datasets, images
    from stx.explorer.state import State
    from stx.files import atomic, outputs
    from stx.reports import claims, figures, notebooks
    from stx.training.loop import train
    from tests.faults.mutate import Counter

    torch.set_num_threads(1)
    papermill.execute_notebook = functools.partial(papermill.execute_notebook, prepare_only=True)
    outputs.made_by_stx(path)
    record, claim = (
        figures.provenance(notebook="09"),
        claims.Evidence("b", "figure 9", "x", "sigmas", 0.5, 0.1, 0.9, 0.01, 9, "09"),
    )
    readers = {
        "picture": lambda: images.read_image(path),
        "upload": lambda: images.read_image(io.BytesIO(path.read_bytes()), name=path.name),
        "checkpoint": lambda: convert.read(path),
        "network": lambda: (weights.load(path.parent), weights.state_of(path.parent)),
        "weights": lambda: weights.load(path.parent),
        "index": lambda: batch.load_codes(path.parent),
        "shard": lambda: (batch.load_codes(path.parent), _resumed(path.parent)),
        "state": lambda: train(Counter(), folder=path.parent, steps=3, config={}),
        "labels": lambda: datasets.load(path.parent).split("train"),
        "claims": lambda: claims.save([claim], path.parent, record),
        "table": lambda: figures.sweep([path.parent, path.parent], path.parent / "out", record),
        "record": lambda: figures.write_index(path.parent),
        "cache": lambda: atomic.load_array(path),
        "recipe": lambda: State.from_json(path.read_text(errors="replace")),
        "notebook": lambda: notebooks.run(path, path.with_name("b.ipynb"), {"count": 2}),
    }
    return readers[kind]()


def _resumed(folder: Path) -> None:
    from stx import batch

    settings = {"encoder": "0" * 8, "generator": "1" * 8, "faces": False}
    batch._check_output(folder, [], settings, True)


def worker() -> None:
    """Reads the files that are named on stdin, one a line, and tells on file 3 what each did."""
    from stx.files.errors import StxError

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    told = os.fdopen(3, "w", buffering=1)
    with contextlib.suppress(StxError):
        read("picture", Path("nothing.png"))  # imports are nobody's fault
    told.write("ready\n")
    for line in sys.stdin:
        kind, path = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, began, fault = _memory("VmRSS"), time.process_time(), ""
        try:
            read(kind, Path(path))
        except StxError as error:
            fault = "" if len(str(error).splitlines()) == 1 else f"not one line: {error!r}"
        except BaseException:
            fault = traceback.format_exc()
        seconds, extra = time.process_time() - began, _memory("VmHWM") - before
        if seconds > SECONDS or extra > BYTES:
            fault += f"\n{seconds:.1f} s, {extra >> 20} MB"
        told.write(json.dumps(fault) + "\n")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) << 10


class Reader:
    """A worker in a process of its own, started again after each death."""

    process = None

    def __call__(self, kind: str, path: Path) -> str:
        """What is wrong with how a file was read; "" where nothing is."""
        if self.process is None:
            self._start()
        self.process.stdin.write(json.dumps([kind, str(path)]) + "\n")
        self.process.stdin.flush()
        line = self._line()
        if line is None:
            self.process.kill()
            code = self.process.wait()
            self.process = None
            return f"the reader died or took over {PATIENCE} s (exit code {code})"
        return json.loads(line)

    def _start(self) -> None:
        ours, theirs = os.pipe()
        command = ["bash", "-c", f'exec "$@" 3>&{theirs}', "bash", sys.executable, "-m", __spec__.name, "--worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
            pass_fds=[theirs],
        )  # fmt: skip
        os.close(theirs)
        self.told = os.fdopen(ours)
        assert self._line(300) == "ready\n", "the reader does not start"

    def _line(self, seconds: int = PATIENCE) -> str | None:
        ready, _, _ = select.select([self.told], [], [], seconds)
        return (self.told.readline() or None) if ready else None

    def stop(self) -> None:
        """Ends the worker."""
        if self.process:
            self.process.kill()
            self.process.wait()


class Files:
    """Rounds of spoilt files. place: where valid ones are made."""

    def __init__(self, place: Path):
        from tests.faults import mutate

        self.place, self.spoil, self.reader = place, mutate.spoil, Reader()
        mutate.pictures(place / "pictures")
        mutate.checkpoints(place / "checkpoints")
        mutate.folders(place / "home")

    def __call__(self, rng: random.Random, scratch: Path) -> str:
        """A spoilt file; returns what is wrong with how it was read."""
        kind = rng.choice(("picture", "picture", "upload", "checkpoint", "checkpoint", "checkpoint", *FOLDERS))
        if kind in FOLDERS:
            shutil.copytree(self.place / "home", scratch / "home")
            path = rng.choice(sorted((scratch / "home").glob(FOLDERS[kind])))
        else:
            folder = "checkpoints" if kind == "checkpoint" else "pictures"
            shutil.copytree(self.place / folder, scratch / folder)
            path = rng.choice(sorted(p for p in (scratch / folder).iterdir() if p.suffix != ".bin"))
        path.write_bytes(self.spoil(path.read_bytes(), path.name, rng))
        fault = self.reader(kind, path)
        return fault and f"{kind}: {path.relative_to(scratch)}\n{fault}"


# -------------------------------------------------------------------------------------------------------------- rounds


def main() -> int:
    """Rounds until the time is up; 1 where one found a fault."""
    given = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--minutes", type=float, default=5)
    given.add_argument("--first", type=int, default=0, help="number of the first round")
    given.add_argument("--rounds", type=int, default=1 << 40)
    given.add_argument("--only", default="", help="a kind of round: files, or one of tests.faults.rounds.ROUNDS")
    given.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="gets what faults need")
    given.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = given.parse_args()
    if options.worker:
        worker()
        return 0
    with tempfile.TemporaryDirectory(prefix="stx-fuzz-") as place:
        return run(options, Path(place))


def run(options: argparse.Namespace, place: Path) -> int:
    """All rounds, in turn of their kinds: files get a third of the time."""
    from tests.faults import rounds

    os.environ |= {"STX_DATA": str(place / "data"), "STX_CACHE": str(place / "cache"), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    kinds = {"files": None, **rounds.ROUNDS}
    kinds = {options.only: kinds[options.only]} if options.only else kinds
    if "files" in kinds:
        kinds["files"] = Files(place / "valid")
    ends, spent, count, faults = time.monotonic() + 60 * options.minutes, dict.fromkeys(kinds, 0.0), {}, 0
    others = rounds.Place(place / "rounds")
    number = options.first
    while number < options.first + options.rounds and time.monotonic() < ends:
        kind = chosen(spent, number)
        began = time.monotonic()
        faults += one(kind, kinds[kind], others, options, number, place / "scratch")
        spent[kind] += time.monotonic() - began
        count[kind] = count.get(kind, 0) + 1
        number += 1
    if isinstance(kinds.get("files"), Files):
        kinds["files"].reader.stop()
    told = ", ".join(f"{kind} {count.get(kind, 0)} in {spent[kind]:.0f} s" for kind in kinds)
    print(f"seed {options.seed}, rounds {options.first} to {number - 1}: {told}; faults: {faults}")
    return 1 if faults else 0


def chosen(spent: dict[str, float], number: int) -> str:
    """The kind of round `number`: mostly files, which are quick, and now and then the next of the others."""
    names = list(spent)
    if len(names) == 1 or number % 100:
        return names[0] if number % 100 or len(names) == 1 else names[1]
    return names[1 + number // 100 % (len(names) - 1)]


def one(kind: str, call, others, options: argparse.Namespace, number: int, scratch: Path) -> int:
    """A round; what it needs is kept where it finds a fault. Returns how many it found."""
    rng = random.Random(f"{options.seed}/{number}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        fault = call(rng, scratch) if kind == "files" else call(others, rng, scratch)
    except Exception:
        fault = traceback.format_exc()
    if not fault:
        return 0
    kept = options.out / f"{options.seed}-{number}-{kind}"
    shutil.copytree(scratch, kept, dirs_exist_ok=True, symlinks=True)
    again = f"python -m tests.faults.fuzz --seed {options.seed} --first {number} --rounds 1"
    again += f" --only {options.only}" if options.only else ""
    (kept / "told.txt").write_text(f"{again}\n\n{fault}\n")
    print(f"{kept}: {fault.strip().splitlines()[-1][:300]}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
