"""Encoders and searches under one interface; what they cost; the table they end in."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

import stx
from stx import metrics
from stx.baselines.psp import PSP
from stx.baselines.registry import METHODS
from stx.checkpoints import weights
from stx.domains.datasets import Domain
from stx.domains.splits import Dataset
from stx.evaluation import editing, inversions, quality
from stx.files.checksums import fingerprint
from stx.files.errors import WeightsError
from stx.perception.lpips import load_lpips
from stx.pipeline import Pipeline
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Generator

SIZES = {"widths": (4, 8, 12), "units": (1, 1, 1)}
PICTURES = np.random.RandomState(0).randint(0, 255, (5, 32, 32, 3), dtype=np.uint8)


class Passes(torch.nn.Module):
    def __init__(self, passes):
        super().__init__()
        self.passes = passes


DATA = Dataset(lambda i: PICTURES[i], list("abcde"))


@pytest.fixture
def pipe(tmp_path) -> Pipeline:
    torch.manual_seed(0)
    generator = Generator(size=32, z_dim=12, n_mlp=2, channel_base=256, channel_max=16).eval().requires_grad_(False)
    encoder = StyleTransformer.for_generator(generator, **SIZES).eval().requires_grad_(False)
    domain = Domain("toy", 32, (32, 32), (), lambda *_, **__: DATA)
    made = {
        "style_transformer": encoder,
        "idinvert": PSP.for_generator(generator, head="W+", **SIZES),
        "restyle_psp": PSP.for_generator(generator, head="last map", in_channels=6, input_side=32, **SIZES),
    }
    for name, net in made.items():
        notes = {"steps": 5, "parameters": {"steps": 2, "more": 2, "batch": 4}} if name == "idinvert" else None
        weights.save(net, tmp_path / "compared" / name, notes=notes)
    weights.save(encoder, tmp_path / "psp")
    return Pipeline(domain, generator, encoder, folder=tmp_path)


def test_an_encoder_of_another_generator_is_refused(pipe, tmp_path):
    net = weights.load(tmp_path / "psp")
    weights.save(net, tmp_path / "psp", notes={"parameters": {"generator": fingerprint(pipe.generator)}})
    assert set(inversions.encoders(pipe, {"psp": "psp"})) == {"psp"}
    weights.save(net, tmp_path / "psp", notes={"parameters": {"generator": "01234567"}})
    with pytest.raises(WeightsError, match=r"psp was trained over another generator \(01234567\)"):
        inversions.encoders(pipe, {"psp": "psp"})


def test_names_prefer_those_of_one_budget(pipe, tmp_path):
    found = inversions.names("toy", pipe.folder)
    assert found == {name: f"compared/{name}" for name in ("style_transformer", "restyle_psp", "idinvert")}
    (tmp_path / "compared").rename(tmp_path / "elsewhere")
    assert inversions.names("toy", pipe.folder) == {"psp": "./psp"}
    with pytest.raises(WeightsError, match="no trained encoder"):
        inversions.names("toy", tmp_path / "elsewhere" / "none")


def test_every_method_gives_codes_and_their_pictures(pipe, device):
    networks = {"generator": pipe.generator.to(device), "encoder": pipe.encoder.to(device)}
    pipe = dataclasses.replace(pipe, device=device, **networks)
    found = inversions.encoders(pipe, inversions.names("toy", pipe.folder))
    assert found["idinvert"].trained == 20
    assert found["restyle_psp"].trained is None
    found |= inversions.searches(pipe, steps=2, snapshots=(1,), idinvert=found["idinvert"].net)
    image = DATA.batch(range(3))
    for name, method in found.items():
        result = inversions.run_all(method, pipe, DATA, 3)
        assert result.ws.shape == (3, pipe.generator.num_ws, 12)
        assert result.pictures.shape == (3, 32, 32, 3)
        assert result.pictures.dtype == np.uint8
        torch.testing.assert_close(method.invert(image).cpu(), result.ws)
        if name not in ("w", "pti"):  # whose pictures need noise maps, or come from other generators
            drawn = pipe.reconstruct(result.ws).permute(0, 2, 3, 1).cpu().numpy()
            assert np.abs((drawn + 1) * 127.5 - result.pictures).max() < 0.51
        assert list(result.snapshots) == ([1] if name in ("w", "w+", "in_domain") else [])
    assert "in_domain" not in inversions.searches(pipe)


def _lpips(pictures: np.ndarray) -> float:
    """Mean distance of 8-bit pictures to the first of DATA."""
    drawn = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    return float(load_lpips("alex")(drawn, DATA.batch(range(len(pictures)))).mean())


def test_all_methods_are_measured_on_their_pictures(pipe, capsys, monkeypatch):
    monkeypatch.setattr(inversions, "cost", lambda *_: {"M parameters": 7.0})  # tried below
    methods = inversions.encoders(pipe, {"idinvert": "compared/idinvert"})
    methods |= {"w+": inversions.searches(pipe, steps=2, snapshots=(1, 2))["w+"]}
    found = inversions.measure_all(methods, pipe, DATA, (3, 2), resamples=20, set_resamples=2)
    out = capsys.readouterr().out
    assert out.count("methods: ") == 2 and not {"measuring", "bootstrap", "optimising"} & set(re.findall(r"\w+", out))
    sizes = {"idinvert": 3, "w+": 2}
    assert {name: len(table) for name, table in found.tables.items()} == sizes
    assert {name: len(result.pictures) for name, result in found.results.items()} == sizes
    assert list(found.summary["method"].unique()) == [method.title for method in methods.values()]
    rows = found.summary[found.summary["method"] == methods["idinvert"].title].set_index("metric")
    assert rows["value"]["L2"] == pytest.approx(found.tables["idinvert"]["L2"].mean())
    assert rows["value"]["M parameters"] == 7
    by_step = inversions.rate(found, methods, pipe, DATA, few=2)
    kept = by_step[["method", "pictures drawn"]].to_numpy().tolist()
    assert kept == [[methods[name].title, drawn] for name, drawn in (("idinvert", 1), ("w+", 1), ("w+", 2))]
    last = [found.tables[name]["LPIPS-Alex"][:2].mean() for name in ("idinvert", "w+")]
    np.testing.assert_allclose(by_step["LPIPS-Alex"].iloc[[0, 2]], last)
    assert by_step["LPIPS-Alex"][1] == pytest.approx(_lpips(found.results["w+"].snapshots[1]), abs=1e-5)
    own = found.results["idinvert"]  # a method of somebody's own, with snapshots of more pictures and in another order
    found.results["idinvert"] = dataclasses.replace(own, snapshots={3: own.pictures, 1: own.pictures, 2: own.pictures})
    by_step = inversions.rate(found, {"idinvert": methods["idinvert"]}, pipe, DATA, few=1)
    assert list(by_step["pictures drawn"]) == [2, 3, 1]
    assert by_step["LPIPS-Alex"][0] == pytest.approx(_lpips(own.pictures[:1]), abs=1e-5)


def test_pictures_drawn_for_one(pipe):
    methods = inversions.encoders(pipe, inversions.names("toy", pipe.folder)) | inversions.searches(pipe, steps=3)
    drawn = {name: inversions.pictures_drawn(name, method) for name, method in methods.items()}
    assert drawn == {"style_transformer": 1, "restyle_psp": 5, "idinvert": 1, "w": 3, "w+": 3, "pti": 6}


def test_search_cost_grows_with_its_steps(pipe):
    image = DATA.batch([0])
    short, long = (inversions.searches(pipe, steps=n)["w+"] for n in (2, 4))
    a, b = inversions.cost(short, pipe, image), inversions.cost(long, pipe, image)
    assert np.isnan(a["M parameters"])
    assert 1.5 < b["GFLOPs"] / a["GFLOPs"] < 2.1
    assert b["GFLOPs"] == pytest.approx(metrics.flops(lambda: long.run(image)) / 1e9)
    found = inversions.encoders(pipe, {"restyle_psp": "compared/restyle_psp", "idinvert": "compared/idinvert"})
    spent = {name: inversions.cost(method, pipe, image) for name, method in found.items()}
    assert spent["restyle_psp"]["GFLOPs"] > 5 * spent["idinvert"]["GFLOPs"]  # five passes and four drawings
    assert spent["idinvert"]["training pictures"] == 20


def test_pti_counts_operations_too(pipe):
    tuned = inversions.searches(pipe, steps=2)["pti"]
    alone = inversions.searches(pipe, steps=2)["w"]
    image = DATA.batch([0])
    assert inversions.cost(tuned, pipe, image)["GFLOPs"] > inversions.cost(alone, pipe, image)["GFLOPs"]


def test_table_has_the_best_in_bold_per_group():
    rows = pd.DataFrame(
        [
            ["a", "L2", 0.2, 0.1, 0.3],
            ["b", "L2", 0.1, 0.05, 0.2],
            ["c", "L2", 0.01, 0.0, 0.1],
            ["d", "L2", 0.5, 0.4, 1],
        ],
        columns=["method", "metric", "value", "low", "high"],
    ).assign(better="lower", pictures=9)
    extra = pd.DataFrame([["a", "training pictures", 12000.0], ["c", "training pictures", 5.0]])
    extra = extra.set_axis(["method", "metric", "value"], axis=1).assign(pictures=9)
    shown = inversions.readable(pd.concat([rows, extra]), [["a", "b"], ["c", "d"]]).set_index("method")
    assert list(shown.index) == ["a", "b", "c", "d"]
    assert shown.loc["b", "L2"] == "**0.1** [0.05, 0.2]"
    assert shown.loc["c", "L2"].startswith("**0.01**")
    assert not any("**" in shown.loc[name, "L2"] for name in "ad")
    assert shown.loc["a", "training pictures"] == "12,000"
    assert shown.loc["d", "training pictures"] == ""


def test_published_sizes_are_those_of_the_public_networks():
    sizes = inversions.published_sizes(size=64, side=64).set_index("method")["M parameters"]
    assert sizes["pSp"] == sizes["e4e"] > sizes["ReStyle (pSp)"] > sizes["Style Transformer"]
    assert set(inversions.PUBLISHED) <= set(METHODS)


def test_edits_of_codes_that_are_alike_are_as_good(pipe):
    class Judge(torch.nn.Module):
        def forward(self, image):
            return image.mean((1, 2, 3))[:, None] + 10

    direction = torch.randn(12, generator=torch.Generator().manual_seed(1))

    def method(ws, index, target):
        return lambda strength: ws + strength * direction

    ws = pipe.sample(6)
    real = np.random.RandomState(0).rand(8, 512)
    codes = {"one": ws, "same": ws.clone(), "far": ws + 3}
    found = editing.editability(pipe, Judge(), codes, method, 0, 2.0, real, resamples=4).set_index("inversion")
    assert found.loc["one", "FD-VGG16"] == pytest.approx(found.loc["same", "FD-VGG16"])
    assert found.loc["one", "FD-VGG16"] != pytest.approx(found.loc["far", "FD-VGG16"])
    assert (found["shown"] == 1).all()
    assert found["ID"].isna().all()
    assert editing.easiest(pipe, Judge(), method, ws, np.full((6, 1), -1.0)) == {0: 1.0}


def test_attributes_that_show_first_are_chosen(pipe, monkeypatch):
    def attribute_logits(pipe, attribute_classifier, ws):  # an attribute is there when the code is above its threshold
        return ws.mean((1, 2)).numpy()[:, None] - np.array([50.0, -0.25, 0.15, -0.45])

    def add(codes, index, target):
        return lambda strength: codes + 0.1 * strength

    monkeypatch.setattr(editing, "attribute_logits", attribute_logits)
    ws = torch.full((6, 10, 12), -1.0)
    logits, attribute_classifier = attribute_logits(pipe, None, ws), torch.nn.Identity()
    found = editing.easiest(pipe, attribute_classifier, add, ws, logits, count=3)
    assert list(found.items()) == [(3, 6.0), (1, 8.0), (2, 12.0)]  # and the first never
    assert list(editing.easiest(pipe, attribute_classifier, add, ws, logits, count=1)) == [3]
    assert editing.easiest(pipe, attribute_classifier, add, ws, logits[:, :1]) == {}
    assert editing.easiest(pipe, attribute_classifier, add, ws[:0], logits[:0]) == {}


def test_known_pictures_are_not_looked_at_again(pipe):
    pictures = inversions.run_all(inversions.encoders(pipe, {"psp": "psp"})["psp"], pipe, DATA, 4).pictures
    table, sets = quality.measure(pipe, DATA, pictures)
    again, same = quality.measure(pipe, DATA, pictures, known=sets)
    assert table.equals(again)
    assert same["real"] is sets["real"]
    assert all(np.array_equal(a, b) for a, b in zip(same["inverted"], sets["inverted"], strict=True))


def test_a_network_that_was_trained_longer_is_no_part_of_the_comparison(pipe):
    assert inversions.longer(pipe) == {}
    weights.save(pipe.network("psp"), pipe.folder / "style_transformer")
    found = inversions.longer(pipe)["trained_longer"]
    assert found.title == "Style Transformer (trained longer)" and found.net.num_ws == pipe.generator.num_ws
    assert inversions.family("trained_longer", found) == "Style Transformer"


def test_what_trainings_were_given(pipe, tmp_path):
    """Training 0 tells its rate and its log, training 1 has neither."""
    steps = np.arange(1, 101)
    log = pd.DataFrame(
        {"step": steps, "loss": np.where(steps > 90, 0.75, 1.0), "val_loss": np.where(steps % 50, np.nan, 3)}
    )
    notes = {"parameters": {"lr": 0.25, "batch": 8}}
    weights.ship(pipe.network("psp"), tmp_path / "0" / "compared" / "psp", log, notes)
    weights.save(pipe.network("psp"), tmp_path / "1" / "compared" / "psp")
    first, second = inversions.budgets(pipe, [tmp_path / "0", tmp_path / "1"]).itertuples(index=False)
    assert tuple(first) == ("pSp", 0, 0.25, 100, 8, 3, 0.25)
    assert second[:2] == ("pSp", 1) and all(pd.isna(told) for told in second[2:])


def test_a_network_that_is_missing_is_named(pipe):
    assert isinstance(pipe.network("psp"), StyleTransformer)
    assert pipe.identity() is None
    with pytest.raises(WeightsError, match="classifier"):
        pipe.network("classifier")


def test_other_trainings_are_measured_beside_the_first(pipe, tmp_path, monkeypatch):
    """Two methods, of which one was trained again: its table has a second training on the same pictures."""
    first = {
        name: pd.DataFrame({"picture": list("abc"), "L2": [0.5, 0.25, 0.75], "LPIPS-Alex": 0.5})
        for name in ("psp", "e4e")
    }
    weights.save(PSP.for_generator(pipe.generator, input_side=32, **SIZES), tmp_path / "again" / "compared" / "psp")
    seen = {}

    def measured(pipe, data, pictures):
        seen["pictures"] = len(pictures)
        return pd.DataFrame({"picture": list("abc"), "L2": [1.5, 1.25, 1.75], "LPIPS-Alex": 0.25})

    monkeypatch.setattr(quality, "per_picture", measured)
    found = inversions.by_training(pipe, DATA, first, [tmp_path / "again"])
    assert seen["pictures"] == 3
    assert list(found["psp"]["training"]) == [0, 0, 0, 1, 1, 1] and list(found["e4e"]["training"]) == [0, 0, 0]
    table = inversions.spread(found, {"psp": "pSp", "e4e": "e4e"}).set_index(["method", "metric"])
    assert table.loc[("pSp", "L2"), "value"] == pytest.approx(1.0)
    assert table.loc[("pSp", "L2"), "sd of trainings"] == pytest.approx(2**-0.5)
    assert table.loc[("pSp", "L2"), "trainings"] == 2 and table.loc[("e4e", "L2"), "trainings"] == 1
    assert table.loc[("pSp", "L2"), "high"] - table.loc[("pSp", "L2"), "low"] > 0.9


def test_what_was_measured_of_a_training_outlives_its_encoder(pipe, tmp_path, monkeypatch):
    """Measured once; fewer of the same pictures need no encoder; more, others and another generator have no rows."""
    folder = tmp_path / "again" / "compared" / "psp"
    weights.save(PSP.for_generator(pipe.generator, input_side=32, **SIZES), folder)
    numbers, measured = np.arange(len(DATA)) / 7, []

    def measure(pipe, data, pictures):
        measured.append(len(pictures))
        columns = {"L2": numbers[: len(pictures)], "LPIPS-Alex": 0.25}
        return pd.DataFrame({"picture": data.names[: len(pictures)]} | columns)

    def again(pipe, data, count):
        first = pd.DataFrame({"picture": data.names[:count], "L2": 0.5, "LPIPS-Alex": 0.5})
        found = inversions.by_training(pipe, data, {"psp": first}, [tmp_path / "again"])["psp"]
        return found.loc[found["training"] == 1, "L2"].to_numpy()

    monkeypatch.setattr(quality, "per_picture", measure)
    assert np.array_equal(again(pipe, DATA, 3), numbers[:3])
    (folder / "model.safetensors").unlink()
    np.testing.assert_allclose(again(pipe, DATA, 2), numbers[:2], rtol=1e-5)
    assert measured == [3]
    turned = Dataset(lambda i: PICTURES[i][::-1], list("abcde"))
    assert len(again(pipe, DATA, 4)) == len(again(pipe, turned, 2)) == 0
    other = Generator(size=32, z_dim=12, n_mlp=2, channel_base=256, channel_max=16)
    assert len(again(dataclasses.replace(pipe, generator=other), DATA, 2)) == 0
    assert measured == [3]


@pytest.mark.parametrize("spoilt", ["", "[]", "{}", "[" * 4000, '{"parameters": 3}'])
def test_a_spoilt_record_of_a_training_is_measured_anew(pipe, tmp_path, monkeypatch, spoilt):
    folder = tmp_path / "again" / "compared" / "psp"
    weights.save(PSP.for_generator(pipe.generator, input_side=32, **SIZES), folder)
    first = pd.DataFrame({"picture": list("ab"), "L2": 0.5, "LPIPS-Alex": 0.5})
    monkeypatch.setattr(quality, "per_picture", lambda pipe, data, pictures: first)
    inversions.by_training(pipe, DATA, {"psp": first}, [tmp_path / "again"])
    good = json.loads((folder / "measured.json").read_text())["parameters"]
    (folder / "measured.json").write_text(spoilt)
    inversions.by_training(pipe, DATA, {"psp": first}, [tmp_path / "again"])
    assert json.loads((folder / "measured.json").read_text())["parameters"] == good


def test_the_trainings_that_come_with_the_avatars_are_of_their_generator_and_pictures():
    """What notebook 04 takes where it is given none, on 2,048 test pictures each."""
    pipe = stx.load("avatars", encoder="compared/style_transformer")
    test = pipe.domain.test(4)
    named = {name: pd.DataFrame({"picture": test.names}) for name in inversions.names("avatars")}
    homes = inversions.kept_trainings(pipe)
    found = inversions.by_training(pipe, test, named, homes)
    assert [home.name for home in homes] == ["1", "2"]
    for name in ("style_transformer", "psp", "e4e", "no_self_attention", "free_tokens", "one_stage", "restyle_psp"):
        assert found[name].groupby("training").size().to_dict() == {0: 4, 1: 4, 2: 4}
    for path in (path for home in homes for path in home.rglob("measured.csv")):
        table = pd.read_csv(path)
        assert len(table) == 2048 and table["picture"].is_unique and table["LPIPS-Alex"].between(0, 1).all()


def test_differences_between_methods_by_training():
    """Gaps of 1 and 3 in the first training, 2 and 2 in the second; the third is not one of both."""
    ours = pd.DataFrame({"picture": list("ab") * 2, "training": [0, 0, 1, 1], "L2": [1.0, 1, 2, 2], "LPIPS-Alex": 0.5})
    other = pd.DataFrame({"picture": list("ab") * 3, "training": [0, 0, 1, 1, 2, 2], "L2": [2.0, 4, 4, 4, 9, 9]})
    found = inversions.differences({"a": ours, "b": other.assign(**{"LPIPS-Alex": 0.75})}, "a", {"b": "B"})
    assert found[found["metric"] == "L2"].to_numpy().tolist() == [["B", "L2", 0, 2, 1, 2], ["B", "L2", 1, 2, 0, 2]]
    assert list(found[found["metric"] != "L2"]["difference"]) == [0.25, 0.25]


@pytest.mark.parametrize(
    ("name", "title", "net", "steps", "expected"),
    [
        ("w+", "optimisation, W+", None, 300, "searches"),
        ("e4e", "e4e", torch.nn.Identity(), None, "other encoders"),
        ("restyle_psp", "ReStyle (pSp)", Passes(5), None, "refinement"),
        ("restyle_style_transformer", "Style Transformer, refined", Passes(5), None, "refinement"),
        ("style_transformer", "Style Transformer", Passes(1), None, "Style Transformer"),
        ("one_stage", "Style Transformer, coarse only", Passes(1), None, "its ablations"),
        ("mine", "of my own", None, None, "other encoders"),
    ],
)
def test_methods_have_a_family(name, title, net, steps, expected):
    assert inversions.family(name, inversions.Inverter(title, print, net, steps=steps)) == expected


def test_every_trained_method_has_a_family_of_its_kind():
    kinds = {name: inversions.family(name, inversions.Inverter(m.title, print)) for name, m in METHODS.items()}
    assert [name for name, kind in kinds.items() if kind == "Style Transformer"] == ["style_transformer"]
    assert kinds["psp"] == kinds["idinvert"] == "other encoders"
