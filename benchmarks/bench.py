"""How fast is drawing and inverting at full size, beside the public form of the same network.

The public form (rosinality's and the Style Transformer's generator on a CPU) makes one weight per sample, runs grouped
convolutions, and filters every channel as a picture of its own, padded by copies. It is written here again from its
description, draws from the same weights, and must give the same picture.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from stx import batch, metrics, pipeline, recipes, runtime
from stx.domains import datasets, images
from stx.files.places import ROOT
from stx.perception.irse import IR_SE50
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Generator, ModulatedConv2d, StyledConv, resolutions
from stx.stylegan2.ops import EPSILON, LEAKY_GAIN, LEAKY_SLOPE

REPEATS = 5
MATRIX = 2048  # side of the plain matrix product that stands for what the machine can do


def public_form(generator: Generator, ws: Float[Tensor, "b num_ws w_dim"]) -> Float[Tensor, "b 3 size size"]:
    """The picture of codes drawn as the public code does on a CPU, with constant noise."""
    token = ws.unbind(1)
    noise = [getattr(generator.noises, f"noise_{i}") for i in range(len(generator.noise_sizes()))]
    x = generator.input.input.repeat(len(ws), 1, 1, 1)
    x = _styled(generator.conv1, x, token[0], noise[0])
    skip = _grouped(generator.to_rgb1.conv, x, token[1]) + generator.to_rgb1.bias
    for i, to_rgb in enumerate(generator.to_rgbs):
        for j in (2 * i, 2 * i + 1):
            x = _styled(generator.convs[j], x, token[j + 1], noise[j + 1])
        rgb = _grouped(to_rgb.conv, x, token[2 * i + 3]) + to_rgb.bias
        skip = rgb + _filter(skip, to_rgb.upsample.kernel, up=2, pad=(2, 1))
    return skip


def _styled(layer: StyledConv, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    x = _grouped(layer.conv, x, w)
    x = x + layer.noise.weight * noise
    x = x + layer.activate.bias.view(1, -1, 1, 1)
    return F.leaky_relu(x, LEAKY_SLOPE) * LEAKY_GAIN


def _grouped(layer: ModulatedConv2d, x: Tensor, w: Tensor) -> Tensor:
    b, i, height, width = x.shape
    style = layer.modulation(w)
    weight = layer.scale * layer.weight * style.view(b, 1, i, 1, 1)
    if layer.demodulate:
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4)) + EPSILON).view(b, -1, 1, 1, 1)
    o, k = weight.shape[1], weight.shape[-1]
    x = x.reshape(1, b * i, height, width)
    if layer.up:
        weight = weight.transpose(1, 2).reshape(b * i, o, k, k)
        x = F.conv_transpose2d(x, weight, stride=2, groups=b).view(b, o, 2 * height + 1, 2 * width + 1)
        return _filter(x, layer.blur.kernel, up=1, pad=(1, 1))
    x = F.conv2d(x, weight.view(b * o, i, k, k), padding=k // 2, groups=b)
    return x.view(b, o, height, width)


def _filter(x: Tensor, kernel: Tensor, *, up: int, pad: tuple[int, int]) -> Tensor:
    b, c, height, width = x.shape
    x = x.reshape(b * c, 1, height, 1, width, 1)
    x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(b * c, 1, height * up, width * up)
    x = F.conv2d(F.pad(x, pad * 2), kernel.flip(0, 1)[None, None])
    return x.view(b, c, *x.shape[2:])


@torch.no_grad()
def measure(size: int, form: str, *, threads: int, seed: int = 0, repeats: int = REPEATS) -> dict:
    """One row: seconds of drawing and of inverting one picture in a form, memory, and the share of a matrix product.

    form: "stx", "public", or "both" (also the largest difference of their pictures, relative to the largest value).
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = _generator(size)
    encoder = StyleTransformer(num_ws=generator.num_ws, n_mlp=8, **IR_SE50).eval().requires_grad_(False)
    image, ws = torch.rand(1, 3, 256, 256) * 2 - 1, torch.randn(1, generator.num_ws, 512)
    if form == "both":
        ours, theirs = generator(ws), public_form(generator, ws)
        return {"difference": float((ours - theirs).abs().max() / theirs.abs().max())}
    draw = generator if form == "stx" else lambda codes: public_form(generator, codes)
    timed = {"repeats": repeats, "warm_up": 1}
    before = _peak_gib()
    seconds = metrics.seconds(lambda: draw(ws), **timed)
    row = {"pixels": size, "form": form, "draw, s": seconds, "memory, GiB": _peak_gib(), "weights, GiB": before}
    row["invert, s"] = metrics.seconds(lambda: draw(encoder(image)), **timed)
    a = torch.randn(MATRIX, MATRIX)
    rate = 2 * MATRIX**3 / metrics.seconds(lambda: a @ a, **timed)
    row["GFLOPs"] = metrics.flops(lambda: generator(ws)) / 1e9
    row["share of a matrix product"] = 1e9 * row["GFLOPs"] / seconds / rate
    return row


PRECISIONS = {"float32": torch.float32, "mixed": torch.bfloat16}  # of what `torch.autocast` computes in


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def on_device(sizes: Sequence[int], device: str, *, seed: int = 0, repeats: int = REPEATS) -> pd.DataFrame:
    """A row per size, precision and form on one device: drawing and inverting one picture, beside a matrix product.

    The peak memory is that of drawing, weights included, and NaN where the device does not tell. "difference": of the
    picture from ours in float32, relative to the largest value. Float32 is float32: TF32 is off.
    """
    for size in sizes:
        resolutions(size)
    torch.manual_seed(seed)
    timed = {"device": device, "repeats": repeats, "warm_up": 2}
    encoder, rows = None, []
    for size in sizes:
        generator = _generator(size).to(device)
        if encoder is None or encoder.num_ws != generator.num_ws:
            encoder = StyleTransformer(num_ws=generator.num_ws, n_mlp=8, **IR_SE50).eval().requires_grad_(False)
            encoder = encoder.to(device)
        image, ws = torch.rand(1, 3, 256, 256) * 2 - 1, torch.randn(1, generator.num_ws, 512)
        image, ws = image.to(device), ws.to(device)
        exact = generator(ws)
        gflops = metrics.flops(partial(generator, ws)) / 1e9
        for (precision, dtype), form in itertools.product(PRECISIONS.items(), ("public", "stx")):
            draw = generator if form == "stx" else partial(public_form, generator)
            a = torch.randn(MATRIX, MATRIX, device=device, dtype=dtype)
            rate = 2 * MATRIX**3 / metrics.seconds(lambda a=a: a @ a, **timed)
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                peak = _peak_of_device(partial(draw, ws), device)
                spent = metrics.seconds(partial(draw, ws), **timed)
                inverted = metrics.seconds(partial(_invert, draw, encoder, image), **timed)
                off = float((draw(ws).float() - exact).abs().max() / exact.abs().max())
            row = {"pixels": size, "precision": precision, "form": form, "draw, s": spent, "invert, s": inverted}
            share = 1e9 * gflops / spent / rate
            rows.append(
                row | {"memory, GiB": peak, "GFLOPs": gflops, "share of a matrix product": share, "difference": off}
            )
    return _times_faster(pd.DataFrame(rows))


def figure(table: pd.DataFrame, card: str) -> Figure:
    """Seconds of drawing and of inverting by size, both forms and precisions of `on_device`; the title is the card."""
    figure, axes = plt.subplots(1, 2, figsize=(6, 2.6), sharey=True, layout="constrained")
    looks = {"public": "C7", "stx": "C0"}
    for ax, what in zip(axes, ("draw", "invert"), strict=True):
        for (form, precision), part in table.groupby(["form", "precision"], sort=False):
            style = {"color": looks[form], "linestyle": "-" if precision == "float32" else "--", "marker": "o"}
            ax.plot(part["pixels"], 1000 * part[f"{what}, s"], label=f"{form}, {precision}", markersize=3, **style)
        ax.set(xscale="log", yscale="log", xlabel="pixels", title=f"to {what} one picture")
        ax.set_xticks(sorted(set(table["pixels"])), sorted(set(table["pixels"])), minor=False)
        ax.xaxis.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("milliseconds")
    axes[0].legend(fontsize=6)
    figure.suptitle(card, fontsize=9)
    return figure


def _times_faster(table: pd.DataFrame) -> pd.DataFrame:
    """How many times faster each row draws and inverts than the public form does at its size and in its precision."""
    public = table[table["form"] == "public"].set_index(["pixels", "precision"])
    at = pd.MultiIndex.from_frame(table[["pixels", "precision"]])
    faster = {
        f"{what}, times faster": public[f"{what}, s"].loc[at].to_numpy() / table[f"{what}, s"]
        for what in ("draw", "invert")
    }
    return table.assign(**faster)


def _invert(draw: Callable[[Tensor], Tensor], encoder: StyleTransformer, image: Tensor) -> Tensor:
    return draw(encoder(image))


def _generator(size: int) -> Generator:
    """Of random weights, with noise."""
    generator = Generator(size=size).eval().requires_grad_(False)
    for layer in (generator.conv1, *generator.convs):
        layer.noise.weight.fill_(0.1)
    return generator


def _peak_of_device(call: Callable[[], object], device: str) -> float:
    if not device.startswith("cuda"):
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 2**30


def compare(sizes: list[int], *, threads: int) -> pd.DataFrame:
    """Both forms at each size, every case in a process of its own so that memory is its own, one after the other."""
    for size in sizes:
        resolutions(size)  # refuses what no generator draws, before anything is measured
    rows = []
    for size in sizes:
        found = {form: _alone(size, form, threads) for form in ("public", "stx", "both")}
        for form in ("public", "stx"):
            row = found[form]
            row |= {
                f"{what}, times faster": found["public"][f"{what}, s"] / row[f"{what}, s"]
                for what in ("draw", "invert")
            }
            rows.append(row | found["both"])
    return pd.DataFrame(rows)


def _alone(size: int, form: str, threads: int) -> dict:
    work = f"bench.measure({size}, {form!r}, threads={threads})"
    code = f"import json; from benchmarks import bench; print(json.dumps({work}))"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def scaling(counts: Sequence[int], *, pictures: int = 1024, steps: int = 30) -> pd.DataFrame:
    """Avatars inverted and updates of their encoder's training per second, by 1, 2, ... processes of one thread each.

    The same work for every count; loading is not timed, writing codes and averaging gradients are.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i, picture in enumerate(datasets.load("avatars").split("test", pictures).uint8(range(pictures))):
            images.save_image(picture, Path(folder) / "pictures" / f"{i:04d}.png")
        for processes in counts:
            given = f"{f'{folder}/pictures'!r}, {f'{folder}/{processes}'!r}, {steps}"
            work = f"from benchmarks import bench; bench.throughput({given})"
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--no-python"]
            command = [sys.executable, *launch, sys.executable, "-c", work]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
            rows.append({"processes": processes} | json.loads(done.stdout.splitlines()[-1]))
    table = pd.DataFrame(rows)
    for what in ("pictures inverted per s", "updates per s"):
        table[f"{what}, times faster"] = table[what] / table[what][0]
    return table


def throughput(pictures: str, out: str, steps: int) -> None:
    """What one launch of `scaling` does: the main process prints its rates as JSON in the last line."""
    pipe, paths = pipeline.load("avatars", device="cpu"), images.list_images(pictures)
    pipe.invert(paths[:1])
    began = _together()
    batch.invert_files(pipe, paths, Path(out) / "codes", reconstruct=False)
    rates = {"pictures inverted per s": len(paths) / (_together() - began)}
    times = []
    recipe = recipes.encoder_recipe(pipe.domain, pipe.generator, steps=steps)
    for more in (2, steps):  # the first two updates draw the avatars and warm up
        began = _together()
        recipes.train_encoder(
            pipe.domain, pipe.generator, replace(recipe, steps=more), Path(out) / f"{more}", validation=1
        )
        times.append(_together() - began)
    rates["updates per s"] = (steps - 2) / (times[1] - times[0])
    if runtime.is_main():
        print(json.dumps(rates), flush=True)


def _together() -> float:
    runtime.wait()
    return time.monotonic()


def _peak_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
