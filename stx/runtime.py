"""Where code runs: its device, its processes, and progress told while it does.

Several processes are one, through Hugging Face Accelerate: `torchrun --nproc_per_node 2 -m stx.cli ...`.

Data-parallel training as DistributedDataParallel does it, with the gradients averaged after the backward pass and not
in hooks of a forward pass: R1 differentiates twice, and ReStyle runs the network five times for an update. Batch norm
takes its statistics over all processes and dropout its masks from those of the whole batch, so an update is that of one
process with the whole batch. In one process every function here does nothing. ACCELERATE_USE_CPU=true keeps off GPUs.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from stx.files.errors import InputError
from stx.files.untrusted import one_line

Item = TypeVar("Item")
Result = TypeVar("Result")
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


def world_size() -> int:
    """How many processes there are."""
    return _state().num_processes


def rank() -> int:
    """This process's number, from 0."""
    return _state().process_index


def is_main() -> bool:
    """Whether this is the process that writes."""
    return _state().is_main_process


def process_device() -> str:
    """The device of this process, e.g. "cuda:1"."""
    return str(_state().device)


def wait() -> None:
    """Until all processes are here."""
    _state().wait_for_everyone()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a batch, as large as every other's. Raises `ValueError` where that is impossible."""
    if len(items) % world_size():
        raise InputError(
            f"a batch of {len(items)} cannot be shared by {world_size()} processes; choose a multiple of them"
        )
    size = len(items) // world_size()
    return items[rank() * size : (rank() + 1) * size]


def mean(values: dict[str, float]) -> dict[str, float]:
    """The mean of each number over the processes; all give the same names."""
    if world_size() == 1:
        return values
    packed = torch.tensor(list(values.values()), device=_state().device)
    return dict(zip(values, reduce(packed, "mean").tolist(), strict=True))


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """The gradients of an optimiser's parameters become their means over the processes, in one exchange."""
    if world_size() == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the whole batch, on any device (PyTorch's SyncBatchNorm needs a GPU)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training:
            return super().forward(x)
        size = x.numel() // x.shape[1] * world_size()
        average = all_reduce(x.float().sum((0, 2, 3))) / size
        centred = x - average[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / size
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(average, self.momentum)
            self.running_var.lerp_(variance * size / (size - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def share_statistics(net: nn.Module) -> None:
    """Makes every batch norm of a network take its statistics over all processes; its weights stay as they are."""
    for module in net.modules() if world_size() > 1 else ():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm


class SharedDropout(TorchDispatchMode):
    """While active, dropout takes this process's part of the masks that one process would draw for the whole batch.

    masks: the random numbers, equal in all processes. Works on CPUs, where dropout is a product with Bernoulli numbers;
    a GPU has kernels of its own, and each process draws its masks there, as in DistributedDataParallel.
    """

    def __init__(self, masks: torch.Generator):
        super().__init__()
        self.masks = masks

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.bernoulli_.float:
            return func(*args, **(kwargs or {}))
        part, keep = (*args, 0.5)[:2]  # its default is left out
        order = sorted(range(part.ndim), key=part.stride, reverse=True)  # numbers are drawn in the order of memory
        shape = len(part) * world_size(), *part.shape[1:]
        whole = part.new_empty([shape[i] for i in order]).bernoulli_(keep, generator=self.masks)
        whole = whole.permute([order.index(i) for i in range(part.ndim)])
        return part.copy_(whole.chunk(world_size())[rank()])


def shared_dropout() -> contextlib.AbstractContextManager:
    """`SharedDropout`, seeded as process 0 is by `stx.training.loop`."""
    if world_size() == 1:
        return contextlib.nullcontext()
    return SharedDropout(torch.Generator().manual_seed(torch.initial_seed() - rank()))


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """While inside, torch has its own settings, whatever the caller's: no inference mode, float32, tensors on the CPU.

    What is made so can be differentiated and is the same for every caller; `no_grad` stays as it is.
    """
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    elsewhere = torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(gradients))  # which leaving inference mode turns on
            if elsewhere:
                stack.enter_context(torch.device("cpu"))
            yield
    finally:
        torch.set_default_dtype(dtype)


def plainly(call: Callable[..., Result]) -> Callable[..., Result]:
    """A fit or a search that runs in `plain_torch` with gradients on, whatever the caller's settings.

    Tensors of the caller's inference mode, which cannot be differentiated, are copied first.
    """

    @functools.wraps(call)
    def run(*args, **kwargs):
        with plain_torch(), torch.enable_grad():
            return call(*map(_own, args), **{name: _own(value) for name, value in kwargs.items()})

    return run


def _own(value):
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _state() -> PartialState:
    try:
        return PartialState(cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
    except (ValueError, RuntimeError) as error:
        told = f"WORLD_SIZE, RANK or others of the environment ask for several processes ({one_line(error)})"
        raise InputError(f"{told}; start them with torchrun, or unset these") from None


def pick_device(device: str | torch.device = "auto") -> str:
    """The device to compute on: "auto" takes CUDA, then MPS, then the CPU. Raises `InputError` for one that is absent.

    Of several processes (`stx.runtime`) each gets its own.
    """
    device = str(device)
    if device == "auto" and world_size() > 1:
        return process_device()
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    known = [name for name, count in there.items() if count]
    if device == "auto":
        return known[0]
    try:
        asked = torch.device(device)
    except RuntimeError:
        asked = None
    if asked is None or (asked.index or 0) >= there.get(asked.type, 0):
        raise InputError(f"device {device!r} is not available here; there is: {', '.join(reversed(known))}")
    return device


def progress(items, **kwargs) -> tqdm:
    """A progress bar on stdout: a moving one in a terminal, at most five lines in notebooks, logs and papermill.

    Arguments are those of `tqdm`. Of several processes the main one alone tells; within `quiet` none does.
    """
    bar = tqdm if sys.stdout.isatty() else _Lines
    return bar(items, file=sys.stdout, disable=_QUIET.get() or not is_main(), **kwargs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While inside, no progress is told: of the steps of a loop that tells its own."""
    before = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(before)


def batches(count: int, batch: int) -> list[range]:
    """The positions 0 to `count` in batches; the last one may be smaller."""
    return [range(i, min(i + batch, count)) for i in range(0, count, batch)]


@torch.no_grad()
def batched(
    call: Callable[..., Tensor], data, batch: int, *, watch: Callable[[float], None] = lambda share: None, **told
) -> Float[Tensor, "n ..."]:
    """What a network gives for `data`, a batch at a time, joined on the CPU.

    call: a batch to its results. data: a tensor, an array, or a data set, whose `batch(positions)` gives pictures.
    watch: called with the share that is done; what it raises ends the work. told: a progress bar's `desc` and `unit`.
    """
    take = getattr(data, "batch", lambda part: data[part.start : part.stop])
    found = []
    for part in progress(batches(len(data), batch), **told) if told else batches(len(data), batch):
        watch(part.start / len(data))
        found.append(call(take(part)).cpu())
    return torch.cat(found)


class _Lines(tqdm):
    """A line for each fifth of the work, or one at the end where nobody knows how much there is."""

    def __init__(self, *args, **kwargs):
        self._told = 0
        super().__init__(*args, **kwargs)
        self._told = self._fifths()  # what a resumed run had done is not told again
        self.sp = None  # tqdm then leaves the line at the end alone

    def display(self, *_, **__) -> bool:
        """Called by tqdm where it would draw its bar again."""
        if self._fifths() > self._told:
            self._told = self._fifths()
            print(self, file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """The last line, where nobody knew that it would be."""
        if not self.disable and self.n and not self.total:
            print(self, file=self.fp, flush=True)
        elif not self.disable:
            self.display()
        super().close()

    def _fifths(self) -> int:
        return min(5 * self.n // self.total, 5) if self.total else 0
