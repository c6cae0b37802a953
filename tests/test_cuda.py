"""What only a GPU can show: the same numbers as on the CPU, training, mixed precision. `make gpu` runs them there."""

import pytest
import torch

import stx
from benchmarks import bench
from stx import cli, label_editing, recipes
from stx.domains import datasets
from stx.stylegan2 import ops

ROOM = {"atol": 2e-3, "rtol": 2e-3}  # kernels of another order of sums


def only_on_a_card(test):
    reason = "no CUDA device here: `make gpu` on a machine with one"
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)(test))


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@only_on_a_card
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_filters_and_their_gradients(exact, up, down):
    image = torch.randn(2, 5, 17, 23)
    kernel, pad = torch.rand(4, 4), (2, 1, 2, 1)
    found = []
    for device in ("cpu", "cuda"):
        x = image.clone().to(device).requires_grad_()
        y = ops.upfirdn2d(x, kernel.to(device), up=(up, up), down=(down, down), pad=pad)
        y.square().sum().backward()
        found.append((y.detach().cpu(), x.grad.cpu()))
    for near, far in zip(*found, strict=True):
        torch.testing.assert_close(far, near, **ROOM)


@only_on_a_card
def test_codes_pictures_and_edits_are_those_of_the_cpu(exact):
    pictures = datasets.load("avatars").split("test", 4).batch(range(4))
    near, far = (stx.load("avatars", device=device) for device in ("cpu", "cuda"))
    ws, there = near.invert(pictures), far.invert(pictures)
    torch.testing.assert_close(there.cpu(), ws, **ROOM)
    torch.testing.assert_close(far.reconstruct(there).cpu(), near.reconstruct(ws), atol=1e-2, rtol=1e-2)
    found = []
    for pipe in (near, far):
        net = pipe.network("latent_classifier")
        at = ws.to(pipe.device)
        found.append(label_editing.first_order(net, at, [0] * 4, [1.0] * 4).cpu())
    torch.testing.assert_close(found[1], found[0], **ROOM)


@only_on_a_card
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_encoder_learns(tmp_path, precision):
    pipe = stx.load("avatars", device="cuda")
    recipe = recipes.encoder_recipe(pipe.domain, pipe.generator, steps=6, batch=4, precision=precision)
    _, log = recipes.train_encoder(
        pipe.domain, pipe.generator, recipe, tmp_path, identity=pipe.identity(), validation=4, device="cuda"
    )
    assert log["step"].max() == 6
    assert torch.isfinite(torch.from_numpy(log.select_dtypes("number").iloc[-1].dropna().to_numpy())).all()


@only_on_a_card
def test_mixed_precision_draws_nearly_the_same_picture(exact):
    table = bench.on_device([256], "cuda", repeats=1).set_index(["precision", "form"])
    assert (table.loc["float32", "difference"] < 1e-3).all()
    assert (table.loc["mixed", "difference"] < 0.2).all()
    assert (table["memory, GiB"] > 0).all()


def test_the_benchmark_of_a_device_by_a_cpu(monkeypatch):
    """What a card will run, on the smallest picture here, with a small encoder beside a small product."""
    monkeypatch.setattr(bench, "IR_SE50", {"widths": (4, 8, 12, 512), "units": (1, 1, 1, 1)})
    monkeypatch.setattr(bench, "MATRIX", 64)
    table = bench.on_device([8], "cpu", repeats=1)
    assert list(table["form"]) == ["public", "stx"] * 2
    assert list(table["precision"]) == ["float32"] * 2 + ["mixed"] * 2
    assert (table[["draw, s", "invert, s", "share of a matrix product", "draw, times faster"]] > 0).all().all()
    assert table["draw, times faster"][0] == table["invert, times faster"][2] == 1
    assert table["difference"][1] == 0 < table["difference"][3] < 0.2
    figure = bench.figure(table, "a card")
    assert figure.get_suptitle() == "a card"
    assert {line.get_label() for line in figure.axes[0].lines} >= {"public, float32", "stx, mixed"}


def test_a_card_that_is_not_there_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "device 'cuda' is not available here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
