"""Drawn avatars, kept in a disk cache: the splits of the embedded domain, and persons drawn with several looks."""

import hashlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from stx.domains import avatars
from stx.domains.splits import Dataset, check_split
from stx.files.atomic import load_array, save_array
from stx.files.errors import FileError
from stx.files.places import cache_dir
from stx.runtime import progress

CACHE_SHARD_SIZE = 128  # avatars per cache file


class AvatarCache:
    """Drawn avatars on disk, in files of `CACHE_SHARD_SIZE` pictures: each written under another name, then renamed."""

    def __init__(self, seed: int):
        versions = [importlib.metadata.version(p) for p in ("dicebear-core", "dicebear-styles", "resvg-py")]
        rules = Path(avatars.__file__).read_bytes()
        key = hashlib.sha256(json.dumps([seed, versions]).encode() + rules).hexdigest()[:12]
        self.seed, self.folder = seed, cache_dir() / f"avatars-{key}"

    def split(self, name: str, count: int | None = None, *, square: bool = False) -> Dataset:
        """The first `count` avatars of a split, drawn where the cache lacks them (one process per core)."""
        check_split(name, count)
        size = avatars.SPLITS[name] if count is None else min(count, avatars.SPLITS[name])
        whole = -(-size // CACHE_SHARD_SIZE) * CACHE_SHARD_SIZE
        people = self.avatars(name, whole)
        shards = [people[i : i + CACHE_SHARD_SIZE] for i in range(0, whole, CACHE_SHARD_SIZE)]
        paths = [self.folder / f"{name}-{i:03d}.npy" for i in range(len(shards))]
        self._fill(name, [(p, s) for p, s in zip(paths, shards, strict=True) if load_array(p) is None])
        pictures = [_mapped(p) for p in paths]
        return Dataset(
            read=lambda i: np.asarray(pictures[i // CACHE_SHARD_SIZE][i % CACHE_SHARD_SIZE]),
            names=[f"{name}-{i:05d}" for i in range(size)],
            labels=np.stack([avatars.labels(a) for a in people[:size]]),
        )

    def avatars(self, name: str, count: int) -> list[avatars.Avatar]:
        """The drawing options of the first `count` pictures of a split."""
        return list(itertools.islice(avatars.sample(name, self.seed), count))

    def _fill(self, name: str, missing: list) -> None:
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        workers = min(os.cpu_count() or 1, len(missing))
        bar = progress(None, total=len(missing) * CACHE_SHARD_SIZE, desc=f"drawing avatars/{name}", unit="img")
        # forked workers need no main guard in the caller's script, and drawing touches neither torch nor CUDA
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        heeded = {"initializer": signal.signal, "initargs": (signal.SIGTERM, signal.SIG_DFL)}  # not as their parent
        with bar, ProcessPoolExecutor(workers, mp_context=context, **heeded) as pool:
            shards = pool.map(_draw_shard, [shard for _, shard in missing])
            for (path, _), pictures in zip(missing, shards, strict=True):
                save_array(path, pictures)
                bar.update(CACHE_SHARD_SIZE)


def drawn(name: str, draw: Callable[[], np.ndarray]) -> np.ndarray:
    """A set of avatar drawings from the cache, made by `draw` when the cache lacks it or its file is damaged."""
    path = AvatarCache(0).folder / f"{name}.npy"
    if load_array(path) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_array(path, draw())
    return _mapped(path)


def restyled(people: Sequence[avatars.Avatar], looks: int, seed: int) -> np.ndarray:
    """Every person drawn `looks` times with random looks, uint8 `[people, looks, h, w, 3]`."""
    rng = random.Random(f"looks/{seed}")
    jobs = [avatars.restyle(a, rng) for a in people for _ in range(looks)]
    pictures = [avatars.draw(job) for job in progress(jobs, desc="drawing persons", unit="img")]
    return np.stack(pictures).reshape(len(people), looks, *pictures[0].shape)


def person_pictures(split: str, people: int, looks: int, seed: int) -> np.ndarray:
    """Different persons of the avatars, each drawn `looks` times: uint8 `[people, looks, h, w, 3]`, from the cache."""
    chosen: dict[avatars.Person, avatars.Avatar] = {}
    for avatar in avatars.sample(split, seed):
        chosen.setdefault(avatar.person, avatar)
        if len(chosen) == people:
            break
    return drawn(f"people-{split}-{people}x{looks}-{seed}", lambda: restyled(list(chosen.values()), looks, seed))


def _draw_shard(shard: list[avatars.Avatar]) -> np.ndarray:
    return np.stack([avatars.draw(a) for a in shard])


def _mapped(path: Path) -> np.ndarray:
    array = load_array(path)
    if array is None:
        raise FileError(f"{path}: changed while it was read; run again, or set STX_CACHE to another folder")
    return array
