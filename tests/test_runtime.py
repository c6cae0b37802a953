"""Two CPU processes (gloo) against one: the same codes, the same training; what a killed worker leaves."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from stx import cli, runtime
from stx.batch import load_codes
from stx.checkpoints import weights
from stx.domains import images
from stx.domains.splits import Dataset
from stx.files.errors import WeightsError
from stx.runtime import SharedBatchNorm, batched
from stx.stylegan2.networks import Generator
from stx.training import loop

SIZE = 16
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def place(tmp_path, home, monkeypatch):
    """A folder with 21 pictures, and tiny networks for them in $STX_DATA."""
    rng = np.random.default_rng(0)
    for i in range(21):
        images.save_image(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), tmp_path / "photos" / f"{i:02d}.png")
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    shutil.copytree(home, tmp_path / "data" / "photos")
    return tmp_path


def launched(*words, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(two_processes(words), capture_output=True, text=True, timeout=900, **kwargs)


def two_processes(words: Sequence) -> list[str]:
    return [*LAUNCH, "-m", "stx.cli", *map(str, words)]


def invert(place, out, *more) -> list[str]:
    given = ["--domain", place / "photos", "--out", place / out, "--device", "cpu", *more]
    return list(map(str, ["invert", place / "photos", *given]))


# ------------------------------------------------------------------------------------------------------------- shards


def test_codes_are_those_of_the_pipeline(place):
    import stx

    assert cli.main(invert(place, "out", "--shard", "8", "--codes-only")) == 0
    names, ws = load_codes(place / "out")
    assert len(list((place / "out").glob("codes-*.safetensors"))) == 3
    assert not list((place / "out").glob("*.png"))
    order = sorted(range(21), key=names.__getitem__)
    expected = stx.load(place / "photos", device="cpu").invert(sorted((place / "photos").iterdir()))
    torch.testing.assert_close(ws[order], expected, rtol=1e-4, atol=1e-5)


def test_each_picture_once_new_ones_later_and_changed_ones_again(place, capsys):
    out = place / "out"
    assert cli.main(invert(place, "out", "--shard", "8")) == 0
    before, (names, old) = {p: p.stat().st_mtime_ns for p in out.glob("codes-*")}, load_codes(out)
    capsys.readouterr()
    assert cli.main(invert(place, "out", "--shard", "8")) == 0
    assert "21 of 21 pictures inverted (21 of them before)" in capsys.readouterr().out
    images.save_image(np.zeros((SIZE, SIZE, 3), np.uint8), place / "photos" / "03.png")
    images.save_image(np.zeros((SIZE, SIZE, 3), np.uint8), place / "photos" / "sub" / "03.png")
    assert cli.main(invert(place, "out", "--shard", "8")) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    later, ws = load_codes(out)
    assert sorted(later) == sorted([*names, "03-2"])
    torch.testing.assert_close(ws[later.index("03")], ws[later.index("03-2")], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ws[later.index("03")], old[names.index("03")])
    assert (out / "03-2.png").is_file()


def test_a_folder_of_other_codes_is_refused(place, tiny, capsys):
    assert cli.main(invert(place, "out")) == 0
    weights.save(tiny["style_transformer"], place / "data" / "photos" / "style_transformer")  # rounded to float16
    assert cli.main(invert(place, "out")) == 2
    assert "codes made otherwise (encoder: " in capsys.readouterr().err


def test_damaged_shards_and_missing_codes_are_named(place, capsys):
    with pytest.raises(WeightsError, match=r"index\.json: no readable codes"):
        load_codes(place)
    assert cli.main(invert(place, "out")) == 0
    shard = place / "out" / "codes-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    assert cli.main(invert(place, "out")) == 2
    assert "codes-00000.safetensors: not a readable shard" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="no readable codes"):
        load_codes(place / "out")


def test_two_processes_find_the_codes_of_one(place):
    (place / "photos" / "05.png").write_bytes(b"no picture")
    assert cli.main(invert(place, "one")) == 1
    done = launched(*invert(place, "two", "--shard", "4"))
    assert done.returncode == 1
    assert done.stderr.count("05.png: not a picture") == 1
    assert "20 of 21 pictures inverted" in done.stdout
    (names, one), (others, two) = load_codes(place / "one"), load_codes(place / "two")
    assert sorted(others) == sorted(names)
    torch.testing.assert_close(two[[others.index(name) for name in names]], one, rtol=1e-4, atol=1e-5)


def test_a_killed_worker_loses_nothing(place):
    for i in range(21, 400):
        shutil.copy(place / "photos" / f"{i % 21:02d}.png", place / "photos" / f"{i:03d}.png")
    with subprocess.Popen(
        two_processes(invert(place, "out", "--shard", "8")), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while len(list((place / "out").glob("codes-*"))) < 4 and process.poll() is None:
            time.sleep(0.01)
        worker = _children(process.pid)[-1]
        os.kill(worker, signal.SIGKILL)
        assert process.wait(timeout=600) != 0
    there = {p.name: p.read_bytes() for p in (place / "out").glob("codes-*")}
    assert 4 <= len(there) < 50
    assert not (place / "out" / "index.json").exists()
    done = launched(*invert(place, "out", "--shard", "8"))
    assert done.returncode == 0, done.stderr
    names, ws = load_codes(place / "out")
    assert len(names) == 400
    assert {name: (place / "out" / name).read_bytes() for name in there} == there
    codes = json.loads((place / "out" / "index.json").read_text())["codes"]
    assert len({code["source"] for code in codes.values()}) == 400


def _children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return sorted(map(int, listed.stdout.split()))


# ----------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def trainable(tmp_path, monkeypatch):
    """A folder with 24 pictures of 32 pixels (LPIPS takes no smaller ones) and a generator for them."""
    rng = np.random.default_rng(0)
    for i in range(24):
        images.save_image(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), tmp_path / "photos" / f"{i:02d}.png")
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.manual_seed(0)
    generator = Generator(size=32, z_dim=16, n_mlp=2, channel_base=64, channel_max=8)
    weights.save(generator, tmp_path / "data" / "photos" / "generator", dtype=torch.float32)
    return tmp_path


def train(place, runs, *more) -> list[str]:
    given = ["--batch", "8", "--runs", place / runs, "--out", place / runs / "out", "--device", "cpu", *more]
    return list(map(str, ["train", "encoder", place / "photos", *given]))


def state(place, runs, method="style_transformer") -> dict:
    return torch.load(place / runs / "photos" / method / "state.pt", weights_only=True)["task"]["encoder"]


def difference(a: dict, b: dict) -> float:
    """The distance of two sets of weights; a weight without a gradient follows rounding alone, so no largest value."""
    names = [name for name in a if "running_" not in name and "num_batches" not in name]
    return sum(float((a[name].double() - b[name].double()).square().sum()) for name in names) ** 0.5


@pytest.mark.parametrize(
    "method", ["style_transformer", pytest.param("restyle_style_transformer", marks=pytest.mark.release)]
)
def test_two_processes_train_like_one(trainable, method):
    one, two, start = (train(trainable, runs, "--method", method) for runs in ("one", "two", "start"))
    assert cli.main([*start, "--steps", "1"]) == 0
    assert cli.main([*one, "--steps", "3"]) == 0
    done = launched(*two, "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert (trainable / "two" / "out" / method / "model.safetensors").is_file()
    ends = {runs: state(trainable, runs, method) for runs in ("one", "two", "start")}
    apart, moved = difference(ends["one"], ends["two"]), difference(ends["one"], ends["start"])
    assert apart < 5e-2 * moved


def test_two_processes_go_on_where_one_was_stopped(trainable, monkeypatch):
    psp = ("--method", "psp")
    assert cli.main([*train(trainable, "whole", *psp), "--steps", "4"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_stop_signals", lambda: contextlib.nullcontext(lambda: True))
        assert cli.main([*train(trainable, "stopped", *psp), "--steps", "4"]) == 130
        start = state(trainable, "stopped", "psp")
    done = launched(*train(trainable, "stopped", *psp), "--steps", "4")
    assert done.returncode == 0, done.stderr
    whole, stopped = state(trainable, "whole", "psp"), state(trainable, "stopped", "psp")
    assert difference(whole, stopped) < 5e-2 * difference(whole, start)


def test_parts_of_a_batch_and_bfloat16(trainable):
    """Of pictures that are all alike, so that batch normalisation sees in a part what it sees in the whole."""
    first, *others = sorted((trainable / "photos").iterdir())
    for path in others:
        shutil.copy(first, path)
    ways = {"whole": [], "parts": ["--accumulate", "2"], "half": ["--precision", "bfloat16"]}
    for runs, words in ways.items():
        assert cli.main([*train(trainable, runs, "--method", "psp"), "--steps", "2", *words]) == 0
    assert cli.main([*train(trainable, "start", "--method", "psp"), "--steps", "1"]) == 0
    whole, parts, half, start = (state(trainable, runs, "psp") for runs in (*ways, "start"))
    assert all(value.dtype == whole[name].dtype for other in (parts, half) for name, value in other.items())
    moved = difference(whole, start)
    assert difference(whole, parts) < 0.05 * moved
    assert 0 < difference(whole, half) < 0.3 * moved


def test_training_on_turned_pictures_is_another_one(trainable, capsys):
    for runs, words in {"plain": [], "turned": ["--mirror"]}.items():
        assert cli.main([*train(trainable, runs, "--method", "psp"), "--steps", "1", *words]) == 0
    assert difference(state(trainable, "plain", "psp"), state(trainable, "turned", "psp")) > 0
    notes = weights.read_config(trainable / "turned" / "out" / "psp")["notes"]["parameters"]
    assert notes["mirror"] is True
    assert cli.main(["train", "manifold", str(trainable / "photos"), "--mirror"]) == 2
    assert "--mirror is for generators and encoders" in capsys.readouterr().err


@pytest.mark.release
def test_the_generator_trains_in_two_processes(trainable):
    words = ["train", "generator", trainable / "photos", "--steps", "9", "--batch", "8", "--resolution", "64"]
    done = launched(*words, "--runs", trainable / "runs", "--out", trainable / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    log = pd.read_csv(trainable / "out" / "generator" / "log.csv")
    assert log["step"].max() == 9


def test_statistics_of_batch_norm_are_those_of_the_whole_batch(monkeypatch):
    from stx import runtime

    monkeypatch.setattr(runtime, "all_reduce", lambda x: x)  # one process: the sums are complete
    plain, shared = torch.nn.BatchNorm2d(5), SharedBatchNorm(5)
    x = torch.randn(3, 5, 7, 2, requires_grad=True)
    weight = torch.randn_like(x)
    expected, found = plain(x), shared(x)
    torch.testing.assert_close(found, expected)
    (a,), (b,) = (torch.autograd.grad((y * weight).sum(), x) for y in (expected, found))
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))


def test_dropout_of_a_part_is_that_of_the_whole_batch(monkeypatch):
    from stx import runtime

    layer = torch.nn.TransformerDecoderLayer(8, 2, 16, 0.5, batch_first=True)
    tokens, memory = torch.randn(6, 3, 8), torch.randn(6, 5, 8)
    torch.manual_seed(7)
    expected, parts = layer(tokens, memory), []
    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(runtime, "rank", lambda rank=rank: rank)
        torch.manual_seed(7 + rank)
        with runtime.shared_dropout():
            parts.append(layer(tokens.chunk(2)[rank], memory.chunk(2)[rank]))
    torch.testing.assert_close(torch.cat(parts), expected)


def test_a_batch_that_cannot_be_shared_is_refused(trainable, capsys):
    assert cli.main([*train(trainable, "runs"), "--steps", "1", "--accumulate", "3"]) == 2
    assert "a batch of 8 does not divide by 3 parts x 1 processes" in capsys.readouterr().err


def test_two_processes_are_two(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os; from stx import runtime as p; "
        "os.write(1, f\"{p.mean({'rank': float(p.rank())})} {p.share([3, 4, 5, 6])}\\n\".encode())"
    )
    command = [*two_processes([])[:-2], str(script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert sorted(done.stdout.splitlines()) == ["{'rank': 0.5} [3, 4]", "{'rank': 0.5} [5, 6]"]


# ----------------------------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize(("total", "initial", "most"), [(1000, 0, 5), (3, 0, 3), (50, 20, 4), (0, 0, 0)])
def test_progress_is_at_most_five_lines(total, initial, most, capsys):
    with runtime.progress(None, total=total, initial=initial, desc="work", mininterval=0) as bar:
        for i in range(total - initial):
            bar.set_postfix({"loss": i})
            bar.update()
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert not err
    assert len(lines) <= most
    assert not total or ("100%" in lines[-1] and f"{total}/{total}" in lines[-1])


def test_progress_over_items_ends_with_the_rate(capsys):
    assert list(runtime.progress(range(1000), desc="work", unit="img", mininterval=0)) == list(range(1000))
    out, err = capsys.readouterr()
    assert not err
    assert len(out.splitlines()) <= 5
    assert re.search(r"work: 100%.* 1000/1000 .*img/s\]$", out.splitlines()[-1])


def test_progress_of_unknown_length_is_a_line_at_the_end(capsys):
    assert list(runtime.progress((i for i in range(30)), desc="work")) == list(range(30))
    assert "work: 30it" in capsys.readouterr().out


def test_batched_is_the_whole_at_once():
    pictures = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    whole, sizes, shares = images.to_tensor(pictures), [], []

    def halved(image):
        sizes.append(len(image))
        return image / 2

    data = Dataset(pictures.__getitem__, list("abcdefg"))
    assert torch.equal(batched(halved, data, 3, watch=shares.append), whole / 2)
    assert sizes == [3, 3, 1]
    assert shares == [0, 3 / 7, 6 / 7]
    assert torch.equal(batched(halved, whole, 7), whole / 2)
    assert torch.equal(batched(lambda part: halved(images.to_tensor(part)), pictures, 2, desc="halving"), whole / 2)


def test_steps_of_a_loop_are_quiet(capsys):
    for _ in runtime.progress(range(2), desc="outer"):
        with runtime.quiet():
            assert list(runtime.progress(range(9), desc="inner")) == list(range(9))
    assert capsys.readouterr().out.count("inner") == 0
    with pytest.raises(KeyboardInterrupt), runtime.quiet():
        raise KeyboardInterrupt
    list(runtime.progress(range(9), desc="after"))
    assert "after" in capsys.readouterr().out
