"""Resampling by hand, against theory, and with what plain bootstraps get wrong: strengths, trainings, many claims."""

import math

import numpy as np
import pandas as pd
import pytest

from stx import metrics, resampling


def table(values: np.ndarray, **columns) -> pd.DataFrame:
    """A row per number; pictures are counted where they are not given."""
    return pd.DataFrame({"picture": np.arange(len(values)), "x": values} | columns)


def test_attributes_count_alike_and_pictures_once():
    rows = table(np.array([1.0, 3.0, 9.0, 9.0, 9.0]), picture=[0, 0, 1, 2, 2], attribute=["a", "a", "a", "b", "b"])
    found = resampling.mean(rows, "x", resamples=50)
    assert found.value == pytest.approx(((2 + 9) / 2 + 9) / 2)
    assert found.pictures == 3
    halves = rows.assign(attribute=["a", "a", "b", "c", "c"])
    assert resampling.mean(halves, "x", of=np.nanmedian, resamples=50).value == 9


def test_a_difference_is_of_the_pictures_that_both_have():
    a = table(np.array([5.0, 7.0, 100.0, np.nan]), picture=[4, 2, 9, 1])
    b = table(np.array([1.0, 2.0, 50.0]), picture=[2, 4, 1])
    found = resampling.difference(a, b, "x", resamples=200)
    assert found.value == pytest.approx(((5 - 2) + (7 - 1)) / 2)
    assert found.pictures == 2
    assert (found.low, found.high) == (3, 6)
    nothing = resampling.difference(a, table(np.array([1.0]), picture=[77]), "x")
    assert math.isnan(nothing.value) and nothing.p == 1 and nothing.pictures == 0


def test_the_interval_is_that_of_theory_when_pictures_are_all_there_is():
    values = np.random.RandomState(0).normal(0.3, 1, 400)
    found = resampling.mean(table(values), "x", resamples=4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    half = resampling.mean(table(np.tile([-1.0, 1.0], 50)), "x", resamples=4000)
    assert half.p > 0.5
    few = resampling.mean(table(np.array([3.0, 4.0, 5.0, 6.0])), "x", resamples=4000)
    assert few.low > 0 and few.p == 2 / 2**4
    sure = resampling.mean(table(values + 5), "x", resamples=999)
    assert sure.p == pytest.approx(2 / 1000)


def test_strengths_of_one_picture_are_no_new_pictures():
    """Eight strengths of each of 50 pictures have the interval of 50 pictures, not of 400."""
    values = np.random.RandomState(1).normal(0, 1, 50)
    once = resampling.mean(table(values), "x", resamples=2000)
    again = resampling.mean(table(np.repeat(values, 8), picture=np.repeat(np.arange(50), 8)), "x", resamples=2000)
    assert (again.low, again.high) == pytest.approx((once.low, once.high))


def test_one_picture_in_many_attributes_is_drawn_with_all_of_them():
    values = np.random.RandomState(2).normal(0, 1, 40)
    once = resampling.mean(table(values), "x", resamples=2000)
    same = table(np.tile(values, 5), picture=np.tile(np.arange(40), 5), attribute=np.repeat(list("abcde"), 40))
    found = resampling.mean(same, "x", resamples=2000)
    assert found.high - found.low == pytest.approx(once.high - once.low, rel=0.02)
    apart = resampling.mean(same.assign(picture=np.arange(200)), "x", resamples=2000)
    assert apart.high - apart.low < 0.6 * (once.high - once.low)


def test_a_difference_of_medians_is_that_of_the_sides_medians():
    """By attribute 1, 2, 9 and 0, 5, 0: medians 2 and 0; the median of the differences would be 1."""
    sides = (np.repeat(values, 4) for values in ([1.0, 2.0, 9.0], [0.0, 5.0, 0.0]))
    a, b = (table(side, picture=np.tile(range(4), 3), attribute=np.repeat(list("abc"), 4)) for side in sides)
    assert resampling.difference(a, b, "x", of=np.nanmedian, resamples=50).value == 2
    assert resampling.difference(a, b, "x", resamples=50).value == pytest.approx((1 - 3 + 9) / 3)


def test_pairing_takes_out_what_pictures_have_in_common():
    rng = np.random.RandomState(3)
    hard, gain = rng.normal(0, 10, 100), rng.normal(0.5, 0.5, 100)
    found = resampling.difference(table(hard + gain), table(hard), "x", resamples=2000)
    assert found.low > 0.3 and found.high < 0.7


def test_trainings_are_drawn_too_and_those_of_two_methods_apart():
    """Three trainings that differ by 1 in standard deviation: the interval of their mean cannot be narrower."""
    rng, width = np.random.RandomState(4), []
    for _ in range(12):
        offsets = rng.normal(0, 1, 3)
        rows = table(np.repeat(offsets, 200), picture=np.tile(np.arange(200), 3), training=np.repeat(range(3), 200))
        found = resampling.mean(rows, "x", resamples=1000)
        assert found.value == pytest.approx(offsets.mean())
        width.append(found.high - found.low)
        other = rows.assign(x=0.0)
        assert resampling.difference(rows, other, "x", resamples=1000).high == pytest.approx(found.high)
    assert np.mean(width) > 1.5


def test_a_claim_of_nothing_is_seldom_believed():
    rng, believed = np.random.RandomState(5), 0
    for i in range(100):
        rows = table(rng.normal(0, 1, (60, 3)).ravel(), picture=np.repeat(np.arange(60), 3))
        believed += resampling.mean(rows, "x", resamples=400, seed=i).p < 0.05
    assert 1 <= believed <= 12


def test_holm_by_hand():
    np.testing.assert_allclose(resampling.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(resampling.holm(np.array([0.9, 0.8])), [1, 1])
    assert len(resampling.holm(np.array([]))) == 0


def test_a_share_has_the_interval_of_as_many_trials_as_pictures():
    """Wilson by hand: of 0 of 4, high is z2 / (4 + z2), z2 = 1.96 squared; ten edits of one picture are one trial."""
    z2 = 1.959963984540054**2
    found = resampling.share(table(np.zeros(4)), "x")
    assert found == pytest.approx((0, 0, z2 / (4 + z2)))
    one = resampling.share(table(np.ones(10), picture=np.zeros(10)), "x")
    assert one == pytest.approx((1, 1 / (1 + z2), 1))
    two = np.array([0.0, 0, 1, 0, 0])
    assert resampling.share(table(two), "x") == pytest.approx(metrics.share_interval(two), abs=1e-12)
    half = resampling.share(table(np.array([0.0, 1, 0, 1, np.nan]), picture=[0, 1, 2, 3, 4]), "x")
    assert half[0] == 0.5 and half[1] + half[2] == pytest.approx(1)
    assert all(math.isnan(number) for number in resampling.share(table(np.array([np.nan])), "x"))
