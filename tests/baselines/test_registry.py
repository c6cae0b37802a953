"""Every method trains with its extras, resumes, and learns; the ablations leave out what they say."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stx import cli, recipes
from stx.baselines import e4e
from stx.baselines.psp import PSP
from stx.baselines.registry import METHODS, add_own, build_encoder
from stx.checkpoints import weights
from stx.detail.registry import TRAINED
from stx.domains import datasets
from stx.domains.datasets import Domain
from stx.domains.splits import Dataset
from stx.evaluation.inversions import names
from stx.files.errors import TrainingError
from stx.inversion import InversionTask
from stx.recipes.encoders import best_rate, last_tenth
from stx.reports import notebooks
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Generator
from stx.training.loop import load_state

ROOT = Path(__file__).parents[2]
PICTURES = np.random.RandomState(0).randint(0, 255, (24, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def world() -> Domain:
    def split(name, count=None, **_):
        names = [str(i) for i in range(len(PICTURES) if count is None else min(count, len(PICTURES)))]
        return Dataset(lambda i: PICTURES[i], names)

    return datasets.Domain("toy", 32, (32, 32), (), split)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    made = Generator(size=32, z_dim=12, n_mlp=2, channel_base=64, channel_max=8)
    return made.eval().requires_grad_(False)


def recipe(**changes) -> recipes.EncoderRecipe:
    given = {"steps": 6, "batch": 4, "widths": (4, 8, 12), "units": (1, 1, 1), "lr_decay": 0.0}
    return recipes.EncoderRecipe(**given | changes)


@pytest.mark.parametrize("method", list(METHODS))
def test_method_trains_and_resumes_to_the_same_bits(tmp_path, generator, world, method, monkeypatch):
    given = {"validation": 8, "evaluate_every": 3}
    whole, log = recipes.train_encoder(world, generator, recipe(method=method), tmp_path / "whole", **given)
    assert np.isfinite(log["val_loss"].dropna()).all()
    validate = InversionTask.validate

    def stopped(task, data):
        signal.raise_signal(signal.SIGTERM)
        return validate(task, data)

    monkeypatch.setattr(InversionTask, "validate", stopped)
    recipes.train_encoder(world, generator, recipe(method=method), tmp_path / "parts", **given)
    assert load_state(tmp_path / "parts" / "state.pt")["step"] == 3
    monkeypatch.setattr(InversionTask, "validate", validate)
    parts, _ = recipes.train_encoder(world, generator, recipe(method=method), tmp_path / "parts", **given)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    image = world.split("train").batch(range(2))
    assert whole.invert(image, generator).shape == (2, generator.num_ws, generator.w_dim)


@pytest.mark.parametrize("method", list(METHODS))
def test_method_trains_on_pictures_smaller_than_the_generators_and_not_square(tmp_path, method):
    """As ffhq, which encoders see at a quarter of its size, and cars, without their black bars."""
    torch.manual_seed(0)
    wide = Generator(size=128, z_dim=12, n_mlp=2, channel_base=128, channel_max=4).eval().requires_grad_(False)
    seen = np.random.RandomState(0).randint(0, 255, (4, 48, 64, 3), dtype=np.uint8)
    cars = datasets.Domain("toy", 128, (48, 64), (), lambda *_, **__: Dataset(lambda i: seen[i], list("0123")))
    net, log = recipes.train_encoder(cars, wide, recipe(method=method, steps=1), tmp_path, validation=4)
    assert np.isfinite(log["val_loss"].iloc[-1])
    assert net.invert(cars.split("test").batch(range(2)), wide, cars.view).shape == (2, wide.num_ws, wide.w_dim)


def test_no_more_pictures_are_drawn_than_the_recipe_says(tmp_path, generator, world):
    asked, read = [], set()

    def split(name, count=None, **_):
        asked.append((name, count))
        found = world.split(name, count)
        return Dataset(lambda i: read.add((name, i)) or found.read(i), found.names)

    watched = datasets.Domain("toy", 32, (32, 32), (), split)
    recipes.train_encoder(watched, generator, recipe(steps=2, pictures=8), tmp_path, validation=4)
    assert asked == [("train", 8), ("val", 4)]
    assert {i for name, i in read if name == "train"} == set(range(8))  # two batches of four: each of them once


def test_ablations_have_less_in_them(tiny):
    generator = tiny["generator"]
    sizes = {"widths": (4, 8, 12), "units": (1, 1, 1)}
    full = StyleTransformer.for_generator(generator, **sizes).eval()
    image = torch.rand(2, 3, 16, 16)
    one = StyleTransformer.for_generator(generator, **sizes, stages=1).eval()
    one.load_state_dict({k: v for k, v in full.state_dict().items() if k in one.state_dict()})
    with torch.no_grad():
        first = full.encoder.stages(image, full.queries().expand(2, -1, -1))[0]
        torch.testing.assert_close(one.offsets(image), first)
    alone = StyleTransformer.for_generator(generator, **sizes, self_attention=False)
    assert not [k for k in alone.state_dict() if "self_attn" in k]
    free = StyleTransformer.for_generator(generator, **sizes, mapping=False)
    assert torch.equal(free.queries(), free.encoder.z[0])
    assert not [k for k in free.state_dict() if k.startswith("style.")]
    with pytest.raises(ValueError, match="4 stages: expected 1 to 3"):
        StyleTransformer.for_generator(generator, **sizes, stages=4)


def test_without_self_attention_tokens_do_not_see_each_other(tiny):
    sizes = {"widths": (4, 8, 12), "units": (1, 1, 1)}
    image = torch.rand(1, 3, 16, 16)
    for together in (True, False):
        torch.manual_seed(0)
        net = StyleTransformer.for_generator(tiny["generator"], **sizes, self_attention=together, mapping=False).eval()
        with torch.no_grad():
            before = net.offsets(image)
            net.encoder.z[0, 3] += torch.randn(12)
            changed = (net.offsets(image) - before).abs().amax((0, 2)) > 1e-6
        assert changed[3]
        assert changed.all() == together


def test_offsets_grow_in_and_are_kept_small(tiny):
    encoder = PSP.for_generator(tiny["generator"], input_side=16, widths=(4, 8, 12), units=(1, 1, 1), progressive=True)
    offsets = e4e.Offsets(encoder, steps=1000)
    stages = []
    for step in range(1000):
        offsets.begin(step)
        stages.append(encoder.stage)
    assert stages[99] == 1
    assert stages[100] == 2
    assert stages[270] == stages[999] == encoder.num_ws
    assert stages == sorted(stages)
    ws = torch.zeros(2, 6, 12)
    ws[:, 1, 0], ws[:, 2, :2] = 3.0, torch.tensor([3.0, 4.0])
    assert float(offsets.loss(ws, ws)) == pytest.approx(2e-4 * 8)


def test_latent_discriminator_learns_what_is_in_w(tiny):
    generator = copy.deepcopy(tiny["generator"]).eval().requires_grad_(False)
    torch.manual_seed(0)
    adversary = e4e.latent_adversary(generator, lr=3e-3)
    ws = torch.randn(16, 6, 12) + 3
    image = torch.zeros(16, 3, 16, 16)
    for step in range(60):
        adversary.update(image, ws, image, step)
    with torch.no_grad():
        real = adversary.discriminator(adversary.real(image)).mean()
        fake = adversary.discriminator(ws.flatten(0, 1)).mean()
    assert real > fake + 1
    ws.requires_grad_()
    adversary.loss(ws, image).backward()
    assert ws.grad.abs().sum() > 0
    assert all(p.grad is None or not p.requires_grad for p in adversary.discriminator.parameters())


def test_build_takes_the_pictures_size(generator, world):
    encoder, found = build_encoder(METHODS["e4e"], generator, world, recipe(), steps=6, lr=1e-3)
    assert encoder.config["input_side"] == 32
    assert [type(e).__name__ for e in found] == ["Offsets", "Adversary"]


@pytest.mark.release
def test_a_method_of_ones_own_joins_the_table(tmp_path, monkeypatch, own):
    data = tmp_path / "data" / "avatars"
    for name in ("generator", "identity", "compared/psp"):
        shutil.copytree(ROOT / "data" / "avatars" / name, data / name)
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    train = ["train", "encoder", "avatars", "--compared", "--method", "mine", "--own", str(own)]
    train += ["--runs", str(tmp_path / "runs"), "--device", "cpu"]
    assert cli.main([*train, "--steps", "2", "--more", "2"]) == 2
    assert cli.main([*train, "--steps", "2"]) == 0
    net = weights.load(data / "compared" / "mine")
    assert (type(net).__name__, net.config["widths"]) == ("Mine", [16, 32, 64, 256])
    assert cli.main([*train, "--more", "1"]) == 0
    assert pd.read_csv(data / "compared" / "mine" / "log.csv")["step"].tolist() == [2, 3]
    del METHODS["mine"]  # as in another process
    invert = [
        "invert",
        str(ROOT / "figures" / "03_inversions.png"),
        "--out",
        str(tmp_path / "codes"),
        "--device",
        "cpu",
    ]
    invert += ["--encoder", "compared/mine"]
    assert cli.main(invert) == 2
    assert cli.main([*invert, "--own", str(own)]) == 0
    given = {"own": str(own), "smoke": True, "out": str(tmp_path / "figures"), "device": "cpu"}
    notebooks.run(ROOT / "notebooks" / "04_inversion_table.ipynb", tmp_path / "04.ipynb", given, log_output=False)
    table = pd.read_csv(tmp_path / "figures" / "04_table.csv")
    found = table.pivot(index="method", columns="metric", values="value")
    corrected = found.loc["Mine, colours corrected"]
    assert corrected["s per picture"] > 0 and np.isnan(corrected["M parameters"])
    assert found.loc["Mine", "M parameters"] > 0
    assert (found.loc[["pSp", "Mine"], ["LPIPS-Alex", "FD-VGG16"]] > 0).all(axis=None)


def test_own_file_imports_its_neighbours_and_hides_no_module(tmp_path):
    (tmp_path / "the_neighbour.py").write_text("known = {}\n")
    (tmp_path / "json.py").write_text(
        "import json\nimport the_neighbour\nthe_neighbour.known['text'] = json.dumps([1])\n"
    )
    add_own(tmp_path / "json.py")
    assert sys.modules["the_neighbour"].known == {"text": "[1]"}
    sys.path.remove(str(tmp_path.resolve()))


def test_own_methods_that_cannot_be_used(tmp_path, capsys, own):
    assert cli.main(["train", "encoder", "avatars", "--method", "mine"]) == 2
    assert "unknown method 'mine': style_transformer, psp" in capsys.readouterr().err
    for path in (tmp_path / "none.py", tmp_path):
        with pytest.raises(ValueError, match="no such Python file"):
            add_own(path)
    with pytest.raises(weights.WeightsError, match=r"a Linear is no network of the package and not registered"):
        weights.save(torch.nn.Linear(2, 2), tmp_path / "linear")


def test_the_rate_that_ends_lowest_and_when_a_training_is_flat():
    log = lambda *ends: pd.DataFrame({"step": [1, 2, 3], "val_loss": [9.0, np.nan, *ends][:3]})  # noqa: E731
    assert best_rate({"1e-3": log(0.4), "5e-4": log(0.2), "2e-4": log(np.nan)}) == "5e-4"
    with pytest.raises(TrainingError, match="no validation loss at the rates 1e-3"):
        best_rate({"1e-3": log(0.4).assign(val_loss=np.nan)})
    steps = np.arange(1, 101)
    falling = pd.DataFrame({"step": steps, "loss": np.where(steps > 90, 0.9, np.where(steps > 80, 1.0, 5.0))})
    assert last_tenth(falling) == pytest.approx(0.1)
    assert last_tenth(falling.assign(loss=2.0)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_shipped_encoders_are_those_that_are_trained_now(world, generator, method):
    recipe = recipes.compared_recipe(world, generator, method=method)
    given = weights.read_config(ROOT / "data" / "avatars" / "compared" / method)["notes"]["parameters"]
    assert {name: given[name] for name in ("steps", "batch", "lr", "seed")} == {
        name: getattr(recipe, name) for name in ("steps", "batch", "lr", "seed")
    }


@pytest.mark.release
def test_seeds_are_trained_at_the_best_rate_of_a_search(tmp_path):
    command = [sys.executable, "-m", "snakemake", "-s", "seeds.smk", "--cores", "1", "--nolock", "--config"]
    given = [f"runs={tmp_path}", "steps=2", "search=1", "rates=1e-3,5e-4", "seeds=1", "methods=one_stage"]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(tmp_path / "trainings.csv", dtype=str)
    assert list(table["method"]) == ["one_stage"]
    assert table["rate"][0] == (tmp_path / "rates" / "one_stage.txt").read_text() and table["updates"][0] == "2"
    searched = [float(table[f"loss after 1 at {rate}"][0]) for rate in ("1e-3", "5e-4")]
    assert table["rate"][0] == ("1e-3", "5e-4")[int(np.argmin(searched))]
    assert names("avatars", tmp_path / "1") == {"one_stage": "compared/one_stage"}


@pytest.mark.release
@pytest.mark.release
def test_queue_trains_and_skips_what_is_done(tmp_path):
    command = [sys.executable, "-m", "snakemake", "-s", "train.smk", "--cores", "1", "--nolock", "--config"]
    given = [f"runs={tmp_path}", f"out={tmp_path}/weights", "steps=1", "methods=one_stage"]
    for expected in ("trained one_stage", "Nothing to be done"):
        done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert expected in done.stdout + done.stderr
    net = weights.load(tmp_path / "weights" / "one_stage")
    assert net.config["stages"] == 1
    assert net.config["feed_forward"] == 256
    assert (tmp_path / "avatars" / "compared" / "one_stage" / "state.pt").is_file()
    planned = subprocess.run([*command, f"runs={tmp_path}", "-n"], cwd=ROOT, capture_output=True, text=True)
    assert all(name in planned.stdout + planned.stderr for name in METHODS if name != "one_stage")


@pytest.mark.release
def test_networks_of_a_folder_are_trained_from_nothing(tmp_path):
    folder, given = tmp_path / "robots", {"STX_DATA": str(tmp_path / "data")}
    assert cli.main(["draw", "bottts", "--count", "60", "--out", str(folder)]) == 0
    command = [sys.executable, "-m", "snakemake", "-s", "networks.smk", "--cores", "1", "--nolock"]
    settings = ["--config", f"domain={folder}", f"runs={tmp_path}/runs", "budget=smoke", "seed=1"]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "env": os.environ | given}
    planned = subprocess.run([*command, "-n", *settings], **options)
    assert re.search(rf"^total +{len(METHODS) + len(TRAINED) + 6}$", planned.stdout + planned.stderr, re.M)
    done = subprocess.run([*command, f"{tmp_path}/runs/done/compared/one_stage", *settings], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    home = tmp_path / "data" / "robots"
    assert weights.load(home / "generator").size == 64
    assert weights.load(home / "compared" / "one_stage").config["stages"] == 1
    for trained in (home / "generator", home / "compared" / "one_stage"):
        assert json.loads((trained / "config.json").read_text())["notes"]["parameters"]["seed"] == 1
    beside = subprocess.run([*command, "-n", "--config", "domain=avatars"], **options)
    assert beside.returncode == 0, beside.stderr[-3000:]
    refused = subprocess.run([*command, "-n", "--config", "domain=avatars"], **options | {"env": os.environ})
    assert refused.returncode == 1 and "STX_DATA" in refused.stderr
