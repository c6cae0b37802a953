"""Attribute dependency by hand, the search for strengths, and avatars with one attribute changed."""

import itertools

import numpy as np
import pandas as pd
import pytest

from stx import attribute_dependency
from stx.domains import avatars, counterparts


def test_mean_and_max_by_hand():
    before = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    after = np.array([[3.0, 1.0, 3.0], [0.0, -4.0, 3.0]])
    delta = attribute_dependency.changes(before, after, np.array([2.0, 0.5, 1.0]))
    np.testing.assert_allclose(delta, [[1, 2, 0], [0, 8, 3]])
    mean_ad, max_ad = attribute_dependency.dependency(delta, 1)
    np.testing.assert_allclose(mean_ad, [0.5, 1.5])
    np.testing.assert_allclose(max_ad, [1, 3])
    assert np.isnan(attribute_dependency.dependency(delta[:, :1], 0)).all()  # there is no other attribute
    with pytest.raises(ValueError, match="logit 1 does not vary"):
        attribute_dependency.changes(before, after, np.array([1.0, 0.0, 1.0]))


def test_curve_bins_by_target_change():
    random = np.random.RandomState(0)
    edits = {
        "picture": np.arange(500),
        "attribute": "a",
        "target change": random.rand(500) * 2,
        "mean-AD": random.rand(500),
    }
    edits = pd.DataFrame(edits)
    options = {"bins": (0.0, 1.0, 2.0, 9.0), "resamples": 500}
    table = attribute_dependency.curve(edits, ["mean-AD"], **options)
    assert list(table["from"]) == [0.0, 1.0]  # nothing reached the last bin
    assert table["edits"].sum() == 500
    change, ad = edits["target change"], edits["mean-AD"]
    assert table["mean-AD"][0] == pytest.approx(ad[change < 1].mean())
    assert table["target change"][1] == pytest.approx(change[change >= 1].mean())
    assert (table["mean-AD low"] < table["mean-AD"]).all()
    assert (table["mean-AD"] < table["mean-AD high"]).all()
    better = edits.assign(**{"mean-AD": ad - 0.125})[:400]
    told = attribute_dependency.curve(edits, ["mean-AD"], beside=better, **options)
    np.testing.assert_allclose(told[["mean-AD less", "mean-AD less low", "mean-AD less high"]], 0.125)


def test_where_an_edit_has_reached_enough():
    """Straight lines from the unedited picture, by hand: 1 sigma lies halfway between 0.5 and 1.5."""
    edits = pd.DataFrame(
        {
            "attribute": "a",
            "picture": [7, 7, 8, 8, 9, 9, 10, 10],
            "strength": [2.0, 1.0] * 4,
            "target change": [1.5, 0.5, 0.9, 0.4, 3.0, 2.0, -1.0, 5.0],
            "need": [0.25, 0.25, 1.0, 1.0, 2.5, 2.5, -1.0, -1.0],
            "mean-AD": [3.0, 1.0, 1.0, 1.0, 9.0, 8.0, 1.0, 2.0],
        }
    )
    at_one = attribute_dependency.where(edits, 1.0, ["mean-AD"]).set_index("picture")["mean-AD"]
    np.testing.assert_allclose(at_one[[7, 8, 9, 10]], [2.0, np.nan, 4.0, 0.4])
    shown = attribute_dependency.where(edits, "need", ["mean-AD"]).set_index("picture")["mean-AD"]
    np.testing.assert_allclose(shown[[7, 8, 9, 10]], [0.5, np.nan, 8.5, np.nan])  # 10 shows it without an edit


def test_methods_by_attribute_at_two_points():
    """Two of three pictures reach 1 sigma, a half and a quarter of the way to their only edit; all what they need."""
    edits = pd.DataFrame({"method": "m", "attribute": "a", "picture": range(3), "strength": 1.0, "need": 0.5})
    edits = edits.assign(**{"target change": [2.0, 4.0, 0.5], "mean-AD": [3.0, 4.0, 5.0], "max-AD": [4.0, 8.0, 6.0]})
    found = attribute_dependency.reached(edits, {"at 1 sigma": 1.0, "where shown": "need"})
    assert list(found) == [("m", "at 1 sigma"), ("m", "where shown")]
    (row,) = attribute_dependency.by_attribute(found, ["a"], resamples=20).to_dict("records")
    assert (row["method"], row["attribute"]) == ("m", "a")
    assert row["reached, at 1 sigma"] == pytest.approx(2 / 3) and row["reached, where shown"] == 1
    assert 0 < row["reached, at 1 sigma low"] < 2 / 3 < row["reached, at 1 sigma high"] < 1
    assert (row["mean-AD"], row["max-AD"]) == (1.25, 2.0)
    assert row["mean-AD where shown"] == pytest.approx((3 / 4 + 4 / 8 + 5) / 3)
    assert row["max-AD where shown low"] <= row["max-AD where shown"] <= row["max-AD where shown high"]


def test_strengths_end_at_the_target_or_at_the_peak():
    np.testing.assert_allclose(attribute_dependency.strengths(lambda s: s / 4, count=4, most=2.0), [2, 4, 6, 8])
    peaked = attribute_dependency.strengths(lambda s: min(s, 8.0) - max(s - 8, 0), most=100.0)
    assert peaked[-1] == 8
    assert attribute_dependency.strengths(lambda s: -s)[-1] == 1


def test_best_match_finds_direction_and_sign():
    random = np.random.RandomState(1)
    codes, directions = random.randn(400, 6), np.eye(6)
    scores = -3 * codes[:, 4] + 0.1 * random.randn(400)
    assert attribute_dependency.best_match(directions, codes, scores) == (4, -1.0)


@pytest.mark.parametrize("attribute", list(avatars.ATTRIBUTES))
def test_counterparts_differ_by_the_attribute_and_as_little_else_as_can_be(attribute):
    k = list(avatars.ATTRIBUTES).index(attribute)
    made = 0
    for avatar in itertools.islice(avatars.sample("test"), 60):
        other = counterparts.counterpart(avatar, attribute)
        if other is None:
            continue
        made += 1
        now, was = avatars.labels(other), avatars.labels(avatar)
        assert now[k] != was[k]
        assert (now != was).sum() <= 4
        hat = avatars.labels(other)[list(avatars.ATTRIBUTES).index("Wearing_Hat")]
        assert (other.person.hat_color != "none") == hat
        if other.look.glasses in avatars.GLASSES["dark"]:
            assert other.look.eyes == "default"
        assert counterparts.counterpart(avatar, attribute) == other
    assert made > 20


def test_glasses_alone_change():
    avatar = next(a for a in avatars.sample("test") if a.look.glasses == "none" and a.look.eyes == "default")
    other = counterparts.counterpart(avatar, "Eyeglasses")
    assert (avatars.labels(other) != avatars.labels(avatar)).sum() == 1
    assert other.person == avatar.person
    assert other.look.glasses in avatars.GLASSES["clear"]
    with pytest.raises(ValueError, match="no attribute 'Glasses'"):
        counterparts.counterpart(avatar, "Glasses")


def test_pictures_with_gives_the_first_that_have_a_truth():
    people = list(itertools.islice(avatars.sample("test"), 40))
    labels = np.array([avatars.labels(a) for a in people])
    k = list(avatars.ATTRIBUTES).index("Eyes_Closed")  # nobody's behind dark glasses
    positions, truth = counterparts.pictures_with("Eyes_Closed", labels[:, k], people, 12)
    possible = [i for i in np.flatnonzero(~labels[:, k]) if counterparts.counterpart(people[i], "Eyes_Closed")]
    assert positions == possible[:12]
    assert not any(people[i].look.glasses in avatars.GLASSES["dark"] for i in positions)
    drawn = avatars.draw(counterparts.counterpart(people[positions[3]], "Eyes_Closed"))
    np.testing.assert_allclose((truth[3].numpy().transpose(1, 2, 0) + 1) * 127.5, drawn, atol=0.01)
    assert counterparts.pictures_with("x", labels[:, k], None, 5) == (list(np.flatnonzero(~labels[:, k])[:5]), None)


def test_per_sigma_by_hand():
    delta = np.array([[1.0, 2.0, 4.0], [2.0, 2.0, 1.0], [0.1, 9.0, 9.0]])
    got = attribute_dependency.per_sigma(delta, np.array([1.0, 2.0, -0.1]), 0)
    np.testing.assert_allclose(got, [np.nan, 1.5, 2.25])
    assert np.isnan(attribute_dependency.per_sigma(delta, np.zeros(3), 0)).all()


def test_strength_near_one_sigma_among_those_that_stay_in_the_domain():
    edits = pd.DataFrame(
        {
            "method": "m",
            "attribute": "a",
            "picture": [0, 1] * 3,
            "strength": [1.0, 1.0, 2.0, 2.0, 3.0, 3.0],
            "target change": [0.2, 0.4, 0.6, 1.0, 1.0, 1.2],
            "in domain": [True, True, True, False, False, False],
        }
    )
    assert attribute_dependency.strength_near(edits) == (2.0, False)
    assert attribute_dependency.strength_near(edits, 0.0) == (1.0, False)
    assert attribute_dependency.strength_near(edits.assign(**{"in domain": False})) == (1.0, True)
    (row,) = attribute_dependency.shares_in_domain(edits).to_numpy().tolist()
    assert row == ["m", 1.0, 0.0, pytest.approx(1.1)]
