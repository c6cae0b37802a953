"""One training loop for every network: progress bar, CSV log, checkpoints, exact resume.

Each step is seeded by (seed, step) and draws its batch by (seed, step), so a checkpoint needs no random state: a run
that was stopped anywhere resumes bit-exactly (on the same machine and number of threads).
"""

import contextlib
import json
import math
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stx import runtime
from stx.files.atomic import atomic_write, write_text
from stx.files.errors import DomainError, InputError, TrainingError
from stx.files.outputs import Kind, claim_files


@runtime_checkable
class Task(Protocol):
    """What is trained: networks with their optimisers and data."""

    def step(self, step: int) -> dict[str, float]:
        """One update, numbered from 0; returns what to log. May draw from torch's global random generators."""

    def positions(self, step: int) -> list[int]:
        """The data positions that `step` reads, to name the batch in errors."""

    def state_dict(self) -> dict:
        """Everything that a resumed run needs: tensors, numbers, strings, and dicts and lists of them."""

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""


class Resumable:
    """A task whose whole state is that of the parts named in `kept`, over `examples` that are read in shuffled batches.

    A task sets `examples` (how many there are), `batch` and `seed`.
    """

    kept: tuple[str, ...] = ("net", "optimizer", "schedule")
    examples: int
    batch: int
    seed: int

    def positions(self, step: int) -> list[int]:
        """The positions of batch `step` among the examples."""
        return batch_positions(self.examples, self.batch, step, self.seed).tolist()

    def descend(self, loss: Tensor) -> None:
        """One update down the gradient of a loss, and of the rate."""
        minimise(self.optimizer, loss)
        self.schedule.step()

    def state_dict(self) -> dict:
        """The state of every part."""
        return {name: getattr(self, name).state_dict() for name in self.kept}

    def load_state_dict(self, state: dict) -> None:
        """Takes back what `state_dict` gave."""
        for name in self.kept:
            getattr(self, name).load_state_dict(state[name])


def train(
    task: Task,
    *,
    folder: str | Path,
    steps: int,
    config: dict,
    seed: int = 0,
    save_every: int = 500,
    log_every: int = 20,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_every: int = 1000,
) -> pd.DataFrame:
    """Trains to `steps` updates in all, going on from the checkpoint in `folder` if there is one; returns the log.

    folder: gets `state.pt` (written whole or not at all), `config.json` and `log.csv`. config: what makes this run what
    it is; a checkpoint made with another one is refused. evaluate: called every `evaluate_every` steps and at the end;
    its numbers join the log. Ctrl-C or SIGTERM finish the step, save and stop. Of several processes (`stx.runtime`)
    the main one writes and evaluates; the log has means over all.
    Raises `TrainingError` for a loss that is not finite, another config, a checkpoint that cannot be read or written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(config | {"seed": seed}))
    done, window, rows = _resume(task, folder, config)
    main = runtime.is_main()
    if main:
        claim_files((folder / name for name in ("config.json", "log.csv", "state.pt")), kind=Kind.TRAINING)
        write_text(folder / "config.json", json.dumps({"made_by": "stx"} | config, indent=2))
    bar = runtime.progress(None, total=steps, initial=done, desc=folder.name, unit="step")
    started = time.monotonic()
    with _stop_signals() as stopped, bar:
        for step in range(done, steps):
            torch.manual_seed(((seed * 1_000_003 + step) * 2_654_435_761 + runtime.rank()) % 2**63)
            values = runtime.mean(task.step(step))
            _check_finite(values, step, task, folder)
            for name, value in values.items():
                total, count = window.get(name, (0.0, 0))
                window[name] = (total + value, count + 1)
            done = step + 1
            bar.update()
            if done % log_every == 0:
                rows.append({"step": done} | {name: total / count for name, (total, count) in window.items()})
                bar.set_postfix({k: f"{v:.3g}" for k, v in list(rows[-1].items())[1:4]})
                window = {}
            if main and evaluate and (done % evaluate_every == 0 or done == steps):
                rows.append({"step": done} | evaluate(done))
            stop = runtime.mean({"stop": float(stopped())})["stop"] > 0  # asked once: what stops the loop was saved
            if main and (done % save_every == 0 or done == steps or stop):
                _save(task, folder, {"step": done, "config": config, "window": window}, rows)
            if stop:
                print(f"stopped after step {done} of {steps}; saved in {folder} ({time.monotonic() - started:.0f} s)")
                break
    runtime.wait()
    return pd.DataFrame(rows)


def batch_positions(n: int, batch: int, step: int, seed: int) -> np.ndarray:
    """The positions of training batch `step` (from 0): shuffled epochs over `n` pictures, without an end.

    A function of its arguments alone, so that a resumed run goes on where it stopped without stored state.
    """
    if n == 0:
        raise DomainError("no pictures to train on: this split is empty")
    first = step * batch
    epochs = range(first // n, (first + batch - 1) // n + 1)
    order = np.concatenate([np.random.RandomState((seed * 1_000_003 + e) % 2**32).permutation(n) for e in epochs])
    offset = first - epochs[0] * n
    return order[offset : offset + batch]


def load_state(path: Path) -> dict:
    """A training checkpoint, its checksums verified, read without executing anything.

    Raises `TrainingError` when it is damaged, or not one of `train`.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.save stores a CRC-32 of every tensor, torch.load ignores it
            if broken := archive.testzip():
                raise InputError(f"the checksum of {broken} is another one")
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"step", "config", "window", "task", "rows"} - set(state)
        if missing:
            raise InputError(f"without {', '.join(sorted(missing))}")
        steps = [state["step"], *(row["step"] for row in state["rows"])]
        if not isinstance(state["config"], dict) or not all(type(step) is int for step in steps):
            raise InputError("not the record of a training")
        return state
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainingError(f"{path}: not a readable checkpoint ({reason}); delete it to start anew") from None


def minimise(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One update down the gradient of a loss, its mean over all processes."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    runtime.average_gradients(optimizer)
    optimizer.step()


def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for parameters; buffers are copied."""
    with torch.no_grad():
        for a, p in zip(average.parameters(), model.parameters(), strict=True):
            a.lerp_(p, 1 - decay)
        for a, b in zip(average.buffers(), model.buffers(), strict=True):
            a.copy_(b)


def falling_rate(optimizer: torch.optim.Optimizer, steps: int, lr_decay: float) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of a rate that falls linearly to a hundredth over the last `lr_decay` share of `steps`."""

    def rate(step: int) -> float:
        left = (steps - step) / max(steps * lr_decay, 1)
        return min(1.0, max(left, 0.01)) if lr_decay else 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def continued(before: pd.DataFrame, log: pd.DataFrame) -> pd.DataFrame:
    """The log of a training with that of one that went on from its weights after it."""
    return pd.concat([before, log.assign(step=log["step"] + before["step"].max())])


def _save(task: Task, folder: Path, state: dict, rows: list[dict]) -> None:
    with atomic_write(folder / "state.pt") as part:
        torch.save(state | {"task": task.state_dict(), "rows": rows}, part)
    with atomic_write(folder / "log.csv") as part:
        pd.DataFrame(rows).to_csv(part, index=False)


def _resume(task: Task, folder: Path, config: dict) -> tuple[int, dict, list[dict]]:
    path = folder / "state.pt"
    if not path.exists():
        return 0, {}, []
    state = load_state(path)
    other = {k for k in config.keys() | state["config"].keys() if config.get(k) != state["config"].get(k)}
    if other:
        told = ", ".join(f"{k}: {state['config'].get(k)} there, {config.get(k)} now" for k in sorted(other))
        raise TrainingError(f"{path} belongs to a run with other settings ({told}); use another folder or delete it")
    try:
        task.load_state_dict(state["task"])
        return int(state["step"]), {k: tuple(v) for k, v in state["window"].items()}, list(state["rows"])
    except Exception as error:  # whatever is missing or of another shape
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainingError(f"{path}: does not fit this training ({reason}); delete it to start anew") from None


def _check_finite(values: dict[str, float], step: int, task: Task, folder: Path) -> None:
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        batch = ", ".join(map(str, task.positions(step)))
        raise TrainingError(
            f"step {step}: {'; '.join(bad)} (batch of pictures {batch}). The last checkpoint in {folder} is kept; "
            "lower the learning rate or look at these pictures."
        )


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """While inside, SIGINT and SIGTERM only set a flag, which the yielded function reads."""
    flag, old = [], {}

    def handler(number, frame):
        flag.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
            old[number] = signal.signal(number, handler)
    try:
        yield lambda: bool(flag)
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
