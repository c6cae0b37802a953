"""Rounds of `tests.faults.fuzz` with commands: kills, full disks, lost or read-only folders, two at once, offline."""

import contextlib
import ctypes
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from stx import cli
from tests.faults.tasks import (
    LIMIT,
    TASKS,
    Place,
    align,
    at,
    child,
    complaint,
    content,
    convert,
    different,
    export,
    invert,
    leftovers,
    notebook,
    photos,
    sweep,
    train_encoder,
    train_generator,
)

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # flags of unshare(2)
SET_FLAGS, UP, RUNNING = 0x8914, 1, 0x40  # of netdevice(7)
WRITES_ANYWHERE = (1, 2, 3)  # capabilities of root: of folders that are read-only for everybody else


# -------------------------------------------------------------------------------------------------------------- rounds


def killed(place: Place, rng: random.Random, scratch: Path) -> str:
    """A task is killed up to three times at random moments, then run again: what it leaves is the undisturbed."""
    place.make()
    task, out = rng.choice(TASKS), scratch / "out"
    expected, seconds = place.undisturbed(task.__name__, lambda folder: task(place, folder))
    for _ in range(rng.choice((1, 1, 2, 3))):
        number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
        code, told = child(lambda: task(place, out), at(rng.uniform(0, 1.1 * seconds), number))
        allowed = {signal.SIGKILL: {0, -9}, signal.SIGINT: {0, 130}, signal.SIGTERM: {0, 130, -15}}[number]
        if fault := complaint(code, told, allowed):
            return f"{task.__name__}, {number.name}: {fault}"
    return _again(task, place, out, expected)


def _again(task: Callable, place: Place, out: Path, expected: dict) -> str:
    for _ in range(2):  # a stopped training says 130 and goes on; the one after a kill is whole
        code, told = child(lambda: task(place, out))
        if code == 0:
            break
    fault = complaint(code, told, {0}) or different(content(out), expected) or leftovers(out)
    return fault and f"{task.__name__}, again: {fault}"


def full(place: Place, rng: random.Random, scratch: Path) -> str:
    """No file may become longer than a random length: one line, an exit code, and what was there is as it was."""
    place.make()
    task, out = rng.choice(TASKS), scratch / "out"
    expected, _ = place.undisturbed(task.__name__, lambda folder: task(place, folder))
    if rng.random() < 0.5:
        shutil.copytree(place / "undisturbed" / task.__name__, out)
        for path in [p for p in out.rglob("*") if p.name in ("state.pt", "index.json")]:
            path.unlink()  # something is left to do
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    longest = max(p.stat().st_size for p in (place / "undisturbed" / task.__name__).rglob("*") if p.is_file())
    limit = int(longest ** rng.uniform(0.2, 1)) - 1
    code, told = child(
        lambda: task(place, out), before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    fault = complaint(code, told, {0, 1, 2})
    if not fault and code and not [line for line in told.splitlines() if line.startswith("stx: ")]:
        fault = f"exit code {code} without a line: {told}"
    if not fault and not code and different(content(out), expected):
        fault = f"exit code 0 for less than all: {different(content(out), expected)}"
    lost = [path.name for path, raw in before.items() if not path.is_file() or not _whole(path, raw)]
    fault = fault or (f"damaged: {lost}" if lost else "")
    return f"{task.__name__}, files of {limit} bytes: {fault}" if fault else _again(task, place, out, expected)


def _whole(path: Path, before: bytes) -> bool:
    """Whether a file is as before or, where it was written anew, whole."""
    if path.read_bytes() == before:
        return True
    with contextlib.suppress(Exception):
        if path.suffix == ".json":
            return bool(json.loads(path.read_text()))
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
            return True
        return path.stat().st_size >= 0.9 * len(before)
    return False


def vanished(place: Place, rng: random.Random, scratch: Path) -> str:
    """The output folder, or that of the pictures, is taken away at a random moment: a line, or it is made again."""
    place.make()
    task = rng.choice([invert, train_encoder, train_generator, convert, align, sweep, notebook])
    _, seconds = place.undisturbed(task.__name__, lambda folder: task(place, folder))
    copy, out = scratch / "place", scratch / "out"
    shutil.copytree(place.root, copy, ignore=shutil.ignore_patterns("undisturbed"))
    gone = (
        out
        if rng.random() < 0.6
        else copy / {"invert": "photos", "align": "more", "sweep": "run1"}.get(task.__name__, "wide")
    )
    mine = Place(copy)

    def disturb(pid: int) -> None:
        time.sleep(rng.uniform(0, 1.1 * seconds))
        for _ in range(5):
            shutil.rmtree(gone, ignore_errors=True)

    code, told = child(lambda: task(mine, out), disturb)
    fault = complaint(code, told, {0, 1, 2})
    return fault and f"{task.__name__} without {gone.name}: {fault}"


def read_only(place: Place, rng: random.Random, scratch: Path) -> str:
    """A folder that cannot be written to: one line and exit code 2."""
    place.make()
    task = rng.choice([invert, train_encoder, train_generator, convert, export, align, sweep, notebook])
    place.undisturbed(task.__name__, lambda folder: task(place, folder))
    out = scratch / "out"
    out.mkdir()
    for path in (scratch, out):
        path.chmod(0o555)

    where = rng.choice((out, out / "deeper"))
    code, told = child(lambda: task(place, where), before=like_anybody)
    for path in (scratch, out):
        path.chmod(0o755)
    fault = complaint(code, told, {2})
    lines = [line for line in told.splitlines() if line.startswith("stx: ")]
    fault = fault or ("" if len(lines) == 1 else f"{len(lines)} lines: {told}")
    return fault and f"{task.__name__} in a folder that is read-only: {fault}"


def like_anybody() -> None:
    """From now on root, too, may not write into read-only folders."""
    if os.getuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for number in WRITES_ANYWHERE:
        libc.prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP, for what it starts
    header, words = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, words)
    for at_ in (0, 1):  # effective, permitted
        words[at_] &= ~sum(1 << number for number in WRITES_ANYWHERE)
    assert libc.capset(header, words) == 0, "root cannot become anybody"


def processes(place: Place, rng: random.Random, scratch: Path) -> str:
    """`stx invert` with one, two or three processes, killed, goes on with another number of them."""
    place.make()
    expected, _ = place.undisturbed("invert", lambda folder: invert(place, folder))
    out, counts = scratch / "out", rng.sample((1, 2, 3), 2)
    first = _launched(counts[0], place, out)
    ends = time.monotonic() + LIMIT
    wanted = rng.randrange(1, 9)
    while len(list(out.glob("codes-*"))) < wanted and first.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)
    workers = subprocess.run(["ps", "-o", "pid=", "--ppid", str(first.pid)], capture_output=True, text=True)
    number = rng.choice((signal.SIGKILL, signal.SIGINT))
    for pid in [first.pid, *map(int, workers.stdout.split())] if number == signal.SIGKILL else [first.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        first.communicate(timeout=60)
    first.kill()
    second = _launched(counts[1], place, out)
    _, told = second.communicate(timeout=LIMIT)
    fault = complaint(second.returncode, told, {0}) or _same_codes(out, expected) or leftovers(out)
    return fault and f"{counts[0]} processes, {number.name}, then {counts[1]}: {fault}"


def _launched(count: int, place: Place, out: Path) -> subprocess.Popen:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--master_port", port] * (count > 1)
    command = [sys.executable, *start, "-m", "stx.cli", *photos(place, out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _same_codes(out: Path, expected: dict) -> str:
    return different(content(out)["codes"], expected["codes"], "codes")


def together(place: Place, rng: random.Random, scratch: Path) -> str:
    """Two inverts into one folder, of pictures that overlap: every code is there, once."""
    place.make()
    expected, seconds = place.undisturbed("invert", lambda folder: invert(place, folder))
    out, files = scratch / "out", sorted(map(str, (place / "photos").iterdir()))
    middle, wait = rng.randrange(10, 50), rng.uniform(0, seconds)
    words = photos(place, out)[2:]
    results: list = []

    def start(chosen: list[str], later: float) -> None:
        results.append(child(lambda: time.sleep(later) or cli.main(["invert", *chosen, *words])))

    overlap = rng.randrange(0, 10)
    threads = [
        threading.Thread(target=start, args=given)
        for given in ((files[: middle + overlap], 0.0), (files[middle - overlap :], wait))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    faults = [complaint(code, told, {0}) for code, told in results]
    return next(filter(None, [*faults, different(content(out), expected), leftovers(out)]), "")


def unplugged(place: Place, rng: random.Random, scratch: Path) -> str:
    """A machine without any network: a task gives what it gives with one. Nothing is told where it cannot be had."""
    place.make()
    task, out = rng.choice(TASKS), scratch / "out"
    expected, _ = place.undisturbed(task.__name__, lambda folder: task(place, folder))
    if child(lambda: 0, before=without_network)[0]:
        return ""  # not allowed here
    code, told = child(lambda: task(place, out), before=without_network)
    fault = complaint(code, told, {0}) or different(content(out), expected) or leftovers(out)
    return fault and f"{task.__name__} without a network: {fault}"


def without_network() -> None:
    """From now on this process has a network of its own, in which there is nothing but itself (`unshare -n`)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NETWORK) and libc.unshare(NEW_USER | NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:  # a notebook talks to its kernel by 127.0.0.1
        fcntl.ioctl(any_, SET_FLAGS, struct.pack("16sh14x", b"lo", UP | RUNNING))


ROUNDS = {call.__name__: call for call in (killed, full, vanished, read_only, processes, together, unplugged)}
