"""Whether edits land: cases with their truths, what is told of codes that are right and wrong, kinds, ceilings."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import stx
from stx.domains import avatars, counterparts
from stx.evaluation import editing, landing
from stx.files.errors import EditError, InputError
from stx.pipeline import Pipeline

NAMES = list(avatars.ATTRIBUTES)


class FirstToken(torch.nn.Module):
    """A classifier of toy codes `[b, 2, 3]`: its three logits are the numbers of the first token."""

    def forward(self, ws):
        return ws[:, 0], None


class Toy(Pipeline):
    """A pipeline that has what a test gives it, and nothing else."""

    def __init__(self, **own):
        self.__dict__ |= own


def toy_cases(index: list[int], target: list[int]) -> landing.Cases:
    n = len(index)
    labels = np.zeros((n, 3), bool)
    return landing.Cases(np.arange(n), np.array(index), np.array(target), labels, [row[None] for row in labels])


@pytest.fixture(scope="module")
def pipe():
    return stx.load("avatars", device="cpu")


@pytest.fixture(scope="module")
def people():
    return list(itertools.islice(avatars.sample("test"), 400))


@pytest.fixture(scope="module")
def labels(people):
    return np.stack([avatars.labels(a) for a in people])


def test_cases_of_edits_are_what_the_truth_shows(people, labels):
    cases = landing.edit_cases(labels, NAMES, people, 3)
    assert len(cases) == 2 * 3 * len(NAMES)
    for i in range(len(cases)):
        k, target = cases.index[i], bool(cases.target[i])
        assert labels[cases.positions[i], k] != target
        assert cases.labels[i, k] == target
        assert (cases.labels[i] == avatars.labels(cases.people[i])).all()
        assert (cases.any_labels[i] == cases.labels[i]).all(1).any()
        assert (cases.any_labels[i][:, k] == target).all()
    black = NAMES.index("Black_Hair")
    gone = [len(cases.any_labels[i]) for i in range(len(cases)) if cases.index[i] == black and not cases.target[i]]
    assert min(gone) > 3  # another colour, or a hat: no picture tells


def test_edits_that_were_not_learnt_are_not_asked_for(labels):
    known = np.ones((2, len(NAMES)), bool)
    known[1, 2] = known[0, 5] = False
    cases = landing.edit_cases(labels, NAMES, None, 1, known=known)
    assert not {(2, 1), (5, 0)} & set(zip(cases.index.tolist(), cases.target.tolist(), strict=True))
    assert len(cases) == len(landing.edit_cases(labels, NAMES, None, 1)) - 2


def test_cases_without_people_ask_the_other_labels_to_stay(labels):
    cases = landing.edit_cases(labels, NAMES, None, 2)
    assert cases.truth() is None
    changed = cases.labels != labels[cases.positions]
    assert (changed.sum(1) == 1).all() and changed[np.arange(len(cases)), cases.index].all()


def test_a_transplant_is_the_source_with_the_references_option(people, labels):
    k = NAMES.index("Wearing_Hat")
    source, reference = (next(a for a, row in zip(people, labels, strict=True) if row[k] == side) for side in (0, 1))
    hat = counterparts.transplant(source, reference, "Wearing_Hat")
    assert hat.person.top == reference.person.top and hat.person.hat_color == reference.person.hat_color
    assert hat.look == source.look and hat.person.skin == source.person.skin
    assert counterparts.transplant(source, source, "Wearing_Hat") is None
    kinds = counterparts.other_kinds(hat, "Wearing_Hat")
    assert kinds[0] == hat and {a.person.top for a in kinds} == set(avatars.TOPS["hat"])
    assert counterparts.other_kinds(source, "Wearing_Hat") == [source]


def test_the_truth_has_landed_and_the_source_has_not(pipe, people, labels):
    judge = pipe.network("judge")
    cases = landing.edit_cases(labels, NAMES, people, 1)
    truth = torch.cat([pipe.invert(part) for part in cases.truth().split(64)])
    sources = np.stack([avatars.draw(people[i]) for i in cases.positions])
    start_ws = pipe.invert(list(sources))
    start = landing.distance_to_truth(pipe, start_ws, cases.truth())
    right, wrong = (landing.landed(pipe, {"judge": judge}, cases, ws, start) for ws in (truth, start_ws))
    assert right["shown"].mean() > 0.9 and right["others right"].mean() > 0.95
    assert right["share of the way"].median() > 0.8
    assert wrong["shown"].mean() < 0.1 and wrong["share of the way"].abs().max() < 1e-6
    table = landing.summarise(right, resamples=50)
    assert list(table["way"]) == ["add", "remove"]
    assert (table["shown low"] <= table["shown"]).all() and (table["shown"] <= table["shown high"]).all()


def test_matched_pairs_land_where_first_order_stops(pipe, people, labels):
    """The reason for having them: at their usual strength, on a few pictures, by the judge."""
    names = ["Eyeglasses", "Long_Hair", "Blond_Hair"]
    cases = landing.edit_cases(labels, NAMES, people, 4)
    own = [i for i in range(len(cases)) if NAMES[cases.index[i]] in names and cases.target[i]]
    ws = pipe.invert([avatars.draw(people[cases.positions[i]]) for i in own])
    judge = pipe.network("judge")
    ours, papers = torch.empty_like(ws), torch.empty_like(ws)
    first = editing.paper_method(pipe.network("latent_classifier"))
    for j, i in enumerate(own):
        k = int(cases.index[i])
        ours[j] = pipe.edit(ws[j : j + 1], add=[NAMES[k]])[0]
        papers[j] = first(ws[j : j + 1], k, 1.0)(12.0)[0]
    shown = [
        judge(pipe.reconstruct(codes)).numpy()[np.arange(len(own)), cases.index[own]] > 0 for codes in (ours, papers)
    ]
    assert shown[0].mean() > 0.9 > shown[1].mean()


def test_edits_of_the_pipeline(pipe, people, labels):
    k = NAMES.index("Eyeglasses")
    without = [avatars.draw(a) for a, row in zip(people, labels, strict=True) if not row[k]][:4]
    ws = pipe.invert(without)
    both = pipe.edit(pipe.edit(ws, add=["Eyeglasses"]), add=["Eyeglasses"])
    torch.testing.assert_close(both, pipe.edit(ws, add=["Eyeglasses"]))  # what is there is not added again
    half = pipe.edit(ws, add=["Eyeglasses"], strength=0.5)
    torch.testing.assert_close(2 * (half - ws), pipe.edit(ws, add=["Eyeglasses"]) - ws, rtol=1e-3, atol=1e-4)
    longer = pipe.edit(ws, add=["Mustache"], until=0.95) - ws
    assert (longer.norm(dim=(1, 2)) >= (pipe.edit(ws, add=["Mustache"]) - ws).norm(dim=(1, 2)) - 1e-4).all()
    dark = next(a for a, row in zip(people, labels, strict=True) if row[NAMES.index("Sunglasses")])
    clear = next(a for a in people if a.look.glasses in avatars.GLASSES["clear"])
    judge, sun = pipe.network("judge"), NAMES.index("Sunglasses")
    for reference, is_dark in ((dark, True), (clear, False)):
        worn = pipe.edit(ws, add=["Eyeglasses"], like=pipe.invert(avatars.draw(reference)))
        seen = judge(pipe.reconstruct(worn)).numpy() > 0
        assert seen[:, k].mean() > 0.7 and ((seen[:, sun] == is_dark).mean() > 0.7)
    with pytest.raises(EditError, match="does not show Eyeglasses"):
        pipe.edit(ws, add=["Eyeglasses"], like=ws[:1])
    with pytest.raises(EditError, match="did you mean Smiling"):
        pipe.edit(ws, add=["Smilling"])
    with pytest.raises(EditError, match="both to add and to remove"):
        pipe.edit(ws, add=["Bald"], remove=["Bald"])
    with pytest.raises(EditError, match="between 0 and 1"):
        pipe.edit(ws, add=["Bald"], until=95)


def test_ways_are_means_over_attributes_and_of_the_way_their_median():
    table = pd.DataFrame(
        {
            "attribute": [0] * 90 + [1] * 10 + [2] * 10,
            "way": "add",
            "picture": [*range(90), *range(10)] * 1 + [*range(10)],
        }
    )
    table["shown"] = (table["attribute"] == 0).astype(float)
    table["share of the way"] = table["attribute"] / 2
    found = landing.summarise(table, resamples=100).iloc[0]
    assert found["shown"] == pytest.approx(1 / 3) and found["share of the way"] == 0.5
    assert found["shown low"] == pytest.approx(found["shown high"])
    assert "picture" not in found and found["edits"] == 110


def test_too_few_pictures_for_a_case_are_told(labels):
    with pytest.raises(InputError, match="no picture"):
        landing.edit_cases(labels[:0], NAMES, None, 2)


def test_pairs_become_shares_with_intervals():
    pairs = pd.DataFrame({"method": ["a", "a", "b", "b"] * 10, "carried": [1.0, 0.0, 1.0, 1.0] * 10})
    pairs = pairs.assign(attribute="Bald", way="add", ID=0.5, **{"others right": 0.75})
    table = editing.summarise_carried(pairs).set_index(["attribute", "method"])
    assert list(table["pairs"]) == [20, 20]
    assert table.loc[("Bald", "a"), "carried"] == 0.5
    assert table.loc[("Bald", "a"), "carried low"] < 0.5 < table.loc[("Bald", "a"), "carried high"]
    assert 0.8 < table.loc[("Bald", "b"), "carried low"] < table.loc[("Bald", "b"), "carried high"] == 1
    assert (table["others right"] == 0.75).all()


def test_codes_go_until_the_classifier_is_as_sure_as_asked():
    """Logits grow by the strength, which is looked for in steps of 0.05."""
    ws = torch.zeros(3, 2, 3)
    ws[:, 0, 1] = torch.tensor([-2.98, -50.0, 5.0])
    change = torch.zeros(3, 2, 3)
    change[:, 0, 1] = 1
    edited, reached = landing.until(FirstToken(), ws, change, 1, 0.5, least=2.0, most=12.0)
    assert reached.tolist() == [True, False, True]
    expected = ws.clone()
    expected[:, 0, 1] = torch.tensor([0.02, -38.0, 7.0])  # the step after 2.98; as far as 12; at least 2
    torch.testing.assert_close(edited, expected)
    sure = (
        torch.special.logit(torch.tensor(0.9)) - 0.05
    )  # the least strength of the first code: 2.98 + 2.197 + rounding
    edited, reached = landing.until(FirstToken(), ws, change, 1, 0.9, most=12.0)
    assert sure < edited[0, 0, 1] < sure + 0.1 and edited[2, 0, 1] == 5 and reached.tolist() == [True, False, True]


def test_each_case_is_edited_by_its_own_attribute_and_way():
    asked, names = [], ["Bald", "Hat", "Beard"]

    def edit(ws, *, until, **ways):
        ((way, (name,)),) = ways.items()
        asked.append((way, name, len(ws), until))
        return ws + (1 if way == "add" else -1) * (1 + names.index(name))

    cases = toy_cases([2, 0, 2, 2], [1, 0, 0, 1])
    found = landing.edit_until(Toy(edit=edit), torch.zeros(4, 2, 3), cases, names, 0.9)
    assert found[:, 0, 0].tolist() == [3, -1, -3, 3]
    assert asked == [("remove", "Bald", 1, 0.9), ("remove", "Beard", 1, 0.9), ("add", "Beard", 2, 0.9)]


@pytest.mark.parametrize("of", [lambda codes: codes, lambda codes: {"b4": codes[:, 0], "b8": codes[:, 1]}])
def test_cases_are_edited_attribute_by_attribute_and_stay_in_order(of):
    source, reference = torch.arange(24.0).view(4, 2, 3), 100 * torch.arange(24.0).view(4, 2, 3)
    seen = []

    def edit(ws, like, index):
        seen.append((index, len(ws)))
        return of(ws + like + 1000 * index)

    found = landing.by_attribute(toy_cases([2, 0, 2, 1], [1, 1, 1, 1]), source, reference, edit)
    expected = of(101 * source + 1000 * torch.tensor([2.0, 0, 2, 1])[:, None, None])
    torch.testing.assert_close(found, expected)
    assert seen == [(0, 1), (1, 1), (2, 2)]


def test_what_is_carried_depends_on_what_source_and_reference_show():
    """Of four pairs one shows the attribute in both pictures, two in one of them, one in none."""
    given = []

    def carry(source, reference, index, shown):
        given.append((index, [side.tolist() for side in shown]))
        return reference - source

    source, reference = torch.zeros(4, 2, 3), torch.ones(4, 2, 3)
    source[:, 0, 1], reference[:, 0, 1] = torch.tensor([2.0, -1, 3, -4]), torch.tensor([1.0, 5, -6, -7])
    pipe = Toy(reconstruct=lambda ws: ws[:, 0], network=lambda name: SimpleNamespace(carry=carry))
    found = landing.carry(pipe, torch.nn.Identity(), source, reference, 1)
    torch.testing.assert_close(found, reference)
    assert given == [([1, 1, 1, 1], [[True, False, True, False], [True, True, False, False]])]


def test_orders_of_a_linear_classifier_agree_where_it_is_not_certain():
    """The Hessian of BCE is p (1 - p) a a^T: its eigenvector is a / |a|. Where p is 1 to the last bit there is none."""
    a = torch.tensor([[[3.0, 0.0, 4.0]]])
    along = a / 5

    class Linear(torch.nn.Module):
        def forward(self, ws):
            return (ws * a.to(ws)).sum((1, 2))[:, None], None

    ws = torch.stack([0 * a[0], 20 * a[0]])  # logits 0 and 500
    share, cosine, released = editing.orders(Linear(), ws, 0, widths=[1e-2], iterations=3, seed=7)
    assert share == 0.5
    assert cosine == pytest.approx(1, abs=1e-4)
    start = torch.randn(ws.shape, generator=torch.Generator().manual_seed(7))
    given = torch.stack([along[0] - start[0], -start[1]])  # towards the label, if it has a gradient, and the start
    by_hand = torch.nn.functional.cosine_similarity(given.flatten(1), along.flatten(1)).mean().item()
    assert released == pytest.approx(by_hand, abs=1e-4)
