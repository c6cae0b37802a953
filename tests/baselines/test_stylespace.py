"""Channels of StyleSpace against the stored numbers, and the editors that move them."""

import copy

import numpy as np
import pytest
import torch

from stx.baselines import stylespace
from stx.baselines.stylespace import EditingInStyle, StyleSpace
from tests.golden import assert_golden, fill, normal

CHANNELS = (6, 5, 4)


def test_channel_rankings_against_the_stored_numbers():
    name, classes = "stylespace_toy", 4
    population = [normal(name, f"s/{i}", 200, f).numpy() * (1 + 0.1 * i) + 0.05 * i for i, f in enumerate(CHANNELS)]
    scores = [stylespace.signal_to_noise(s[:12], s.mean(0), s.std(0)) for s in population]
    masks = np.floor(fill.uniform(f"in/{name}/masks", (5, 16, 16)) * classes).astype(int)
    maps = [np.abs(normal(name, f"map/{i}", 5, f, 16, 16).numpy()) for i, f in enumerate(CHANNELS)]
    overlaps = [stylespace.overlap(m, masks, classes) for m in maps]
    shares = [stylespace.top_share(o) for o in overlaps]
    ranking = stylespace.ranked(scores)
    best = stylespace.localised(shares, (1,), at_least=0.2, gap=-0.5)
    first = np.cumsum([0, *CHANNELS])
    got = {"s2n": np.concatenate(scores), "rank_layer_channel_s2n": np.array(ranking), "rank1": np.array(best)}
    got |= {"rank_index": np.array([first[layer] + channel for layer, channel, _ in ranking])}
    got |= {"rank1_index": np.array([first[layer] + channel for layer, channel, _ in best]), "meta/masks": masks}
    got |= {f"overlap/{i}": o.astype(int) for i, o in enumerate(overlaps)} | {
        f"top/{i}": s for i, s in enumerate(shares)
    }
    assert_golden(name, got, whole=True)


def test_absent_classes_count_for_nothing():
    masks = np.zeros((2, 4, 4), dtype=int)
    masks[0, :2] = 2
    maps = np.random.RandomState(0).rand(2, 3, 4, 4)
    overlaps = stylespace.overlap(maps, masks, 4)
    assert np.isnan(overlaps[:, :, (1, 3)]).all()
    assert np.isnan(overlaps[1, :, 2]).all()
    shares = stylespace.top_share(overlaps)
    assert (shares[:, (1, 3)] == 0).all()
    assert (shares <= 1).all()


def test_the_channel_that_makes_the_difference_is_found(tiny):
    generator = copy.deepcopy(tiny["generator"]).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(1)
    ws = generator.broadcast(generator.mapping(torch.randn(200, 12, generator=random)))
    wanted = generator.styles(ws)["convs.1"][:, 3].numpy()
    labels = wanted < np.percentile(wanted, 10)
    space = StyleSpace(generator).fit(ws, labels)
    assert (space.layer_, space.channel_) == ("convs.1", 3)
    assert space.step_ < 0
    assert not [name for name, _, _ in space.ranking_ if "rgb" in name]
    second = StyleSpace(generator, top=1).fit(ws, labels)
    assert (second.layer_, second.channel_) == space.ranking_[1][:2]
    before, after = generator.styles(ws[:4]), space.edit(ws[:4], 2.0)
    changed = {k: (after[k] - before[k]).abs().amax(0) for k in before}
    assert [(k, int(c)) for k, v in changed.items() for c in v.nonzero()] == [("convs.1", 3)]
    np.testing.assert_allclose((after["convs.1"] - before["convs.1"])[:, 3], 2 * space.step_, rtol=1e-4)
    with pytest.raises(ValueError, match="1 of 200 codes"):
        StyleSpace(generator).fit(ws, np.arange(200) == 7)


def test_editing_in_style_takes_over_whole_channels_within_its_budget(tiny):
    generator = copy.deepcopy(tiny["generator"]).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(1)
    ws = generator.broadcast(generator.mapping(torch.randn(20, 12, generator=random)))
    editor = EditingInStyle(generator, parts=3, layer="convs.1", budget=2.0, least=0.0).fit(ws)
    assert editor.parts_.shape == (20, 8, 8)
    for share in editor.share_.values():
        torch.testing.assert_close(share.sum(0), torch.ones(share.shape[1]))
    moved = editor.channels(1)
    for name, share in editor.share_.items():
        chosen = share[1][moved[name]]
        assert (1 - chosen).sum() < 2.0
        left = share[1][~moved[name]]
        assert not len(chosen) or not len(left) or chosen.min() >= left.max()
    source, reference, edited = generator.styles(ws[:4]), generator.styles(ws[4:8]), editor.edit(ws[:4], ws[4:8], 1)
    for name in source:
        taken = moved.get(name, torch.zeros(source[name].shape[1], dtype=torch.bool))
        assert torch.equal(edited[name], torch.where(taken, reference[name], source[name]))
    everything = EditingInStyle(generator, parts=3, layer="convs.1", budget=1e9, least=0.0).fit(ws).channels(0)
    assert all(channels.all() for channels in everything.values())
    with pytest.raises(ValueError, match="unknown layer 'x'.*convs.0"):
        EditingInStyle(generator, layer="x").fit(ws)


def test_features_are_what_the_picture_is_made_of(tiny):
    generator = copy.deepcopy(tiny["generator"]).eval().requires_grad_(False)
    ws = generator.broadcast(generator.mapping(torch.randn(3, 12, generator=torch.Generator().manual_seed(0))))
    seen = []
    hook = generator.convs[2].register_forward_hook(lambda _, given, out: seen.append(out))
    generator(ws)
    hook.remove()
    features = generator.features(ws)
    assert list(features) == ["conv1", "convs.0", "convs.1", "convs.2", "convs.3"]
    torch.testing.assert_close(features["convs.2"], seen[0])
    assert list(generator.features(ws, last="convs.0")) == ["conv1", "convs.0"]
