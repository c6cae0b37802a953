"""The fast path of drawing, beside the public form."""

import pytest
import torch

from benchmarks import bench
from benchmarks.bench import public_form
from stx.stylegan2.networks import Generator


@pytest.mark.parametrize(("size", "batch"), [(32, 1), (32, 3), (256, 1), (256, 3)])
@pytest.mark.parametrize("noise", ["const", "none"])
def test_drawing_without_gradients_is_drawing(size, batch, noise):
    torch.manual_seed(size + batch)
    net = Generator(size=size, z_dim=24, n_mlp=2, channel_base=512, channel_max=12)
    for layer in (net.conv1, *net.convs):
        torch.nn.init.normal_(layer.noise.weight)
        torch.nn.init.normal_(layer.activate.bias)
    ws = torch.randn(batch, net.num_ws, 24)
    plain = net(ws, noise=noise).detach()
    with torch.no_grad():
        fast = net(ws, noise=noise)
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())
        if noise == "const":
            public = public_form(net, ws)
            torch.testing.assert_close(fast, public, rtol=1e-4, atol=1e-5 * plain.abs().max().item())


@pytest.mark.release
def test_bench_tells_time_memory_and_difference():
    row = bench.measure(64, "stx", threads=torch.get_num_threads(), repeats=9)  # a median: the machine may be busy
    assert row["draw, s"] < row["invert, s"]
    assert 0.5 < row["memory, GiB"] < 6
    assert 0.02 < row["share of a matrix product"] < 3  # of a product timed at another moment: a busy machine shifts it
    assert bench.measure(64, "both", threads=torch.get_num_threads())["difference"] < 1e-5


def test_noise_maps_per_sample_follow_their_picture():
    net = Generator(size=256, z_dim=24, n_mlp=2, channel_base=512, channel_max=12)
    for layer in (net.conv1, *net.convs):
        torch.nn.init.normal_(layer.noise.weight)
    ws = torch.randn(3, net.num_ws, 24)
    maps = [torch.randn(3, 1, r, r) for r in net.noise_sizes()]
    with torch.no_grad():
        together = net(ws, noise=maps)
        alone = torch.cat([net(ws[i : i + 1], noise=[m[i : i + 1] for m in maps]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
