import numpy as np
import pytest
import torch
from scipy import linalg

from stx import metrics
from stx.perception.irse import IRSE


@pytest.fixture
def pictures():
    return torch.rand(6, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_l2_by_hand():
    a, b = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    b[1] = 0.5
    b[1, 0, 0, 0] = 2.0
    assert metrics.l2(a, b).tolist() == pytest.approx([0.0, (11 * 0.25 + 4) / 12])


def test_ms_ssim(pictures):
    assert metrics.ms_ssim(pictures, pictures).tolist() == pytest.approx([1.0] * 6, abs=1e-5)
    noisy = [metrics.ms_ssim(pictures, pictures + s * torch.randn_like(pictures)).mean() for s in (0.05, 0.2, 0.8)]
    assert noisy[0] > noisy[1] > noisy[2]
    dark, bright = torch.full((1, 3, 64, 48), -0.05), torch.full((1, 3, 64, 48), 0.05)  # 0.475 and 0.525 of [0, 1]
    luminance = (2 * 0.475 * 0.525 + 0.01**2) / (0.475**2 + 0.525**2 + 0.01**2)
    expected = luminance ** (0.3001 / (0.0448 + 0.2856 + 0.3001))  # of the coarsest of three scales
    assert metrics.ms_ssim(dark, bright).item() == pytest.approx(expected, abs=3e-4)  # rounded variances
    assert [metrics.ms_ssim_scales(side) for side in (11, 32, 64, 176, 256, 1024)] == [1, 2, 3, 5, 5, 5]


def test_ms_ssim_of_96_pixels_is_of_four_scales():
    """Flat pictures differ in luminance alone, which the coarsest of the scales compares."""
    dark, bright = torch.full((2, 3, 96, 101), -0.05), torch.full((2, 3, 96, 101), 0.05)
    luminance = (2 * 0.475 * 0.525 + 0.01**2) / (0.475**2 + 0.525**2 + 0.01**2)
    expected = luminance ** (0.2363 / (0.0448 + 0.2856 + 0.3001 + 0.2363))
    assert metrics.ms_ssim(dark, bright).tolist() == pytest.approx([expected] * 2, abs=3e-4)
    for side in (88, 98):
        assert metrics.ms_ssim(torch.zeros(1, 3, side, 99), torch.zeros(1, 3, side, 99)).item() == pytest.approx(1)


def test_frechet_distance_equals_the_textbook_formula():
    random = np.random.RandomState(0)
    a, b = random.randn(300, 7) @ random.randn(7, 7), random.randn(200, 7) + 0.3
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(metrics.Gaussian.of(a), b) == metrics.frechet_distance(a, b)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    few = random.randn(5, 30)
    assert metrics.frechet_distance(few, few + 2) == pytest.approx(4 * 30)
    with pytest.raises(ValueError, match="distance of 1 pictures: at least 2"):
        metrics.frechet_distance(a[:1], a[:5])


def test_distances_of_float32_features_are_those_of_float64():
    """Features far from zero, whose squares hide their differences where they are summed in float32."""
    a, b = (1000 + np.random.RandomState(k).rand(3000, 5).astype(np.float32) for k in (0, 1))
    for distance in (metrics.frechet_distance, metrics.kernel_distance):
        exact = distance(a.astype(np.float64), b.astype(np.float64))
        assert distance(a, b) == pytest.approx(exact, rel=1e-9)
    with pytest.raises(ValueError, match="3 and 4 pictures in pairs"):
        metrics.kernel_distance(a[:3], b[:4], paired=True)


def test_kernel_distance_by_hand_and_without_bias():
    a, b = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    kernel = lambda x, y: (x * y + 1) ** 3  # noqa: E731
    across = (kernel(1, 0) + kernel(1, 3) + kernel(2, 0) + kernel(2, 3)) / 4
    assert metrics.kernel_distance(a, b) == pytest.approx(1000 * (kernel(1, 2) + kernel(0, 3) - 2 * across))
    apart = (kernel(1, 3) + kernel(2, 0)) / 2
    assert metrics.kernel_distance(a, b, paired=True) == pytest.approx(1000 * (kernel(1, 2) + kernel(0, 3) - 2 * apart))
    random = np.random.RandomState(0)
    few = [metrics.kernel_distance(random.randn(8, 5), random.randn(8, 5)) for _ in range(400)]
    assert abs(np.mean(few)) < 3 * np.std(few) / 20
    assert min(few) < 0
    with pytest.raises(ValueError, match="1 and 2 pictures: at least 2"):
        metrics.kernel_distance(a[:1], b)


def test_halves_have_the_width_of_theory():
    values = np.random.RandomState(0).randn(400)
    low, high = metrics.halves_interval(lambda at: values[at].mean(), 400, resamples=1000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_a_laplacian_pyramid_splits_frequencies(pictures):
    """A slope is left to the smallest picture, a fine checkerboard to the finest level."""
    assert [tuple(level.shape[2:]) for level in metrics.laplacian_pyramid(pictures)] == [(64, 48), (32, 24)]
    slope = (torch.arange(64)[:, None] + 2 * torch.arange(64)).expand(1, 3, 64, 64) / 100 - 1
    fine, middle, coarse = metrics.laplacian_pyramid(slope)
    inside = (..., slice(6, -6), slice(6, -6))
    assert max(fine[inside].abs().max(), middle[inside].abs().max()) < 1e-6
    torch.testing.assert_close(coarse[0, :, 5:-5, 5:-5], slope[0, :, 20:-20:4, 20:-20:4])
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).expand(1, 3, 64, 64) * 2.0 - 1
    fine, middle, coarse = metrics.laplacian_pyramid(board)
    torch.testing.assert_close(fine[inside], board[inside])
    assert max(middle.abs().max(), coarse.abs().max()) < 1e-6


def test_sliced_wasserstein(pictures):
    a = metrics.swd_projections(pictures)
    for single, double in zip(a, metrics.swd_projections(pictures.double()), strict=True):
        assert double.dtype == np.float64
        np.testing.assert_allclose(single, double, atol=1e-5)
    assert metrics.sliced_wasserstein(a, a) == 0
    order = [level[[3, 1, 5, 0, 2, 4]] for level in a]
    assert metrics.sliced_wasserstein(a, order) == 0  # a distance of sets
    near, far = (metrics.sliced_wasserstein(a, metrics.swd_projections(pictures * s)) for s in (0.9, 0.3))
    assert 0 < near < far


def test_bootstrap_covers_the_mean():
    values = np.random.RandomState(1).randn(400) * 2 + 5
    low, high = metrics.bootstrap(lambda i: values[i].mean(), 400)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert metrics.bootstrap(lambda i: values[i].mean(), 400) == (low, high)


def test_interval_of_a_distance_of_sets_is_around_it():
    features = np.random.RandomState(0).randn(2, 60, 30)

    def distance(at):
        return metrics.frechet_distance(features[0][at], features[1][at])

    found = distance(np.arange(60))
    resampled = [distance(np.random.RandomState(k).randint(60, size=60)) for k in range(20)]
    assert min(resampled) > found  # repeated pictures move the distance itself
    low, high = metrics.bootstrap(distance, 60, resamples=40)
    assert low < found < high


def test_roc_auc():
    assert metrics.roc_auc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1
    assert metrics.roc_auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert metrics.roc_auc(np.array([1.0, 3.0]), np.array([2.0, 2.0, 0.0])) == pytest.approx(4 / 6)
    assert np.isnan(metrics.roc_auc(np.array([1.0]), np.array([])))


def test_cost():
    net = IRSE(widths=(4, 8), units=(1, 1)).eval().requires_grad_(False)
    assert metrics.parameters(net, net) == sum(p.numel() for p in net.parameters())
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False).requires_grad_(False)
    assert metrics.flops(lambda: convolution(torch.zeros(2, 3, 7, 11))) == 2 * 2 * 5 * 7 * 11 * 27
    attention = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True).eval().requires_grad_(False)
    tokens = torch.zeros(3, 5, 8)
    projected, together = 4 * 2 * 5 * 8 * 8, 2 * 2 * 5 * 5 * 8  # q, k, v, result; scores and sums
    assert metrics.flops(lambda: attention(tokens, tokens, tokens, need_weights=False)) == 3 * (projected + together)
    calls = []
    assert metrics.seconds(lambda: calls.append(0), repeats=5, warm_up=2) >= 0
    assert len(calls) == 7


def test_intervals_of_means_and_differences():
    random = np.random.RandomState(0)
    a, b = random.randn(400) + 1.0, random.randn(300)
    mean, low, high = metrics.mean_interval(a)
    assert mean == a.mean()
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    gap, low, high = metrics.difference_interval(a, b)
    assert gap == pytest.approx(a.mean() - b.mean())
    assert high - low == pytest.approx(2 * 1.96 * (1 / 400 + 1 / 300) ** 0.5, rel=0.2)
    assert all(np.isnan(metrics.difference_interval(a, b[:0])))


def test_intervals_repeat_and_take_single_values():
    values = np.random.RandomState(0).rand(50)
    assert metrics.mean_interval(values, seed=3) == metrics.mean_interval(values, seed=3)
    assert metrics.mean_interval(values, seed=3) != metrics.mean_interval(values, seed=4)
    assert metrics.mean_interval(np.array([7.0])) == (7, 7, 7)
    assert metrics.difference_interval(np.array([7.0]), np.array([2.0, 2.0])) == (5, 5, 5)
    assert all(np.isnan(metrics.mean_interval(np.array([1.0, np.nan]))))


def test_share_interval_is_wilsons_and_stays_between_0_and_1():
    z, k, n = 1.959964, 2, 64
    centre, half = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * (k * (n - k) / n + z**2 / 4) ** 0.5
    share, low, high = metrics.share_interval(np.arange(n) < k)
    assert share == k / n
    assert (low, high) == pytest.approx((centre - half, centre + half), rel=1e-5)
    assert metrics.share_interval(np.zeros(n))[:2] == (0, 0)
    assert metrics.share_interval(np.ones(n))[::2] == (1, 1)
    assert all(np.isnan(metrics.share_interval(np.zeros(0))))
    with pytest.raises(ValueError, match="other than 0 and 1"):
        metrics.share_interval(np.array([0.5, 1.0]))
