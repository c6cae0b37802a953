"""From a folder of somebody's pictures to figures: another drawn style, at toy length, by the documented commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import stx
from stx import cli
from stx.checkpoints import weights
from stx.domains import avatars, datasets, folders, images
from stx.explorer.widgets import ExplorerApp
from stx.files.errors import DomainError
from stx.reports import notebooks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toons(tmp_path_factory):
    """Sixty faces of DiceBear's toon-head, larger than the networks and not square, in a folder."""
    folder = tmp_path_factory.mktemp("mine") / "toons"
    for i in range(60):
        picture = avatars.rasterise("toon-head", {"seed": f"toon {i}", "backgroundColor": ["b6e3f4"]}, resolution=96)
        place = folder / ("train" if i < 40 else "test")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[:, 4:-4]).save(place / f"{i:02d}.jpg")
    return folder


def run(name: str, domain: Path, folder: Path, **own) -> None:
    given = {"domain": str(domain), "smoke": True, "out": str(folder / "figures"), "device": "cpu"} | own
    notebooks.run(ROOT / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb", given, log_output=False)


@pytest.mark.long
def test_folder_to_figures(toons, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    shutil.copytree(ROOT / "data" / "photographs", tmp_path / "data" / "photographs")
    train = ["--batch", "4", "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    assert cli.main(["train", "encoder", str(toons), *train]) == 2  # no generator yet
    assert "toons/generator/config.json: missing" in capsys.readouterr().err
    assert cli.main(["train", "generator", str(toons), "--steps", "2", *train]) == 0
    assert cli.main(["train", "generator", str(toons), "--steps", "3", *train]) == 0  # goes on
    assert cli.main(["train", "encoder", str(toons), "--steps", "2", *train]) == 0
    home = tmp_path / "data" / "toons"
    assert weights.read_config(home / "generator")["notes"]["steps"] == 3
    assert {p.name for p in home.iterdir()} == {"generator", "discriminator", "style_transformer"}
    pipe = stx.load(toons, device="cpu")
    assert pipe.reconstruct(pipe.invert(sorted((toons / "test").iterdir())[:2])).shape == (2, 3, 64, 64)
    for name in ("00_domain", "01_generator", "02_train_inversion", "03_inversion_quality"):
        own = {"photo_identity": True} if name[:2] == "03" else {"runs": str(tmp_path / "runs")}
        run(name, toons, tmp_path, **own)
        assert list((tmp_path / "figures").glob(f"{name[:2]}_*.png"))
    assert "ID-MobileFace" in set(pd.read_csv(tmp_path / "figures" / "03_quality.csv")["metric"])
    record = json.loads((tmp_path / "figures" / "03_quality.json").read_text())
    assert record["parameters"]["domain"] == str(toons)
    assert cli.main(["weights"]) == 0
    listed = capsys.readouterr().out
    assert "toons" in listed
    assert "github.com/sapphire497/style-transformer" in listed
    (home / "generator" / "model.safetensors").write_bytes(b"changed")
    assert cli.main(["weights"]) == 1
    assert "damaged: another checksum" in capsys.readouterr().out


@pytest.mark.release
def test_labels_to_edits(toons, tmp_path, monkeypatch):
    """The same folder with labels: classifiers by the documented parameters, then a figure of its own attributes."""
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    mine = shutil.copytree(toons, tmp_path / "toons with labels")
    files = sorted(p.relative_to(mine).as_posix() for p in mine.rglob("*.jpg"))
    rows = [f"{name},{i % 2},{i % 3 // 2}" for i, name in enumerate(files)]
    (mine / "labels.csv").write_text("\n".join(["file,Odd,Third one", *rows]))
    train = ["--batch", "4", "--steps", "1", "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    for network in ("generator", "encoder"):
        assert cli.main(["train", network, str(mine), *train]) == 0
    for name in ("00_domain", "05_latent_classifier"):
        run(name, mine, tmp_path, from_scratch=True, ship=True, runs=str(tmp_path / "runs"))
    run("06_label_editing", mine, tmp_path)
    record = json.loads((tmp_path / "figures" / "06_strengths.json").read_text())
    assert record["parameters"]["attributes"] == "Odd,Third one"
    assert ExplorerApp(str(mine), device="cpu").widget.shown["sliders"] == ("Odd", "Third one")


def test_workflow_of_a_folder_without_labels(toons, tmp_path):
    """Planned only: it leaves out what needs labels, and figures lie apart from those of the avatars."""
    mine = shutil.copytree(toons, tmp_path / "toons of mine")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-n", "-p", "--config", f"domain={mine}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    planned = [line for line in done.stdout.splitlines() if "-m stx.cli run" in line]
    assert len(planned) == 6
    assert all(f"-p domain '{mine}'" in line for line in planned)
    assert all("-p out 'runs/toons of mine/figures'" in line for line in planned)


def test_tiny_pictures_have_a_generator_but_no_lpips(toons, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    train = ["--batch", "4", "--steps", "1", "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    assert cli.main(["train", "generator", str(toons), "--resolution", "16", *train]) == 0
    assert cli.main(["train", "encoder", str(toons), *train]) == 2
    assert "pictures of 16 pixels: LPIPS, an encoder's loss, needs 32" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_pictures(toons, tmp_path, monkeypatch, capsys):
    """Two folders of one name, their files called alike: their runs would lie in one place."""
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    other = tmp_path / "toons"
    for i, file in enumerate(sorted(toons.rglob("*.jpg"))):
        (other / file.relative_to(toons)).parent.mkdir(parents=True, exist_ok=True)
        picture = images.read_image(file)[:, :: -1 if i % 2 == 0 else 1]
        Image.fromarray(picture).save(other / file.relative_to(toons))
    train = ["--batch", "4", "--runs", str(tmp_path / "runs"), "--resolution", "16", "--device", "cpu"]
    assert cli.main(["train", "generator", str(toons), "--steps", "1", *train]) == 0
    assert cli.main(["train", "generator", str(other), "--steps", "2", *train]) == 2
    assert "were made of another folder" in capsys.readouterr().err
    monkeypatch.setenv("STX_DATA", str(tmp_path / "other data"))
    assert cli.main(["train", "generator", str(other), "--steps", "2", *train]) == 2
    assert "other settings (pictures seen: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train generator {toons} --steps 0", "Invalid value for '--steps': 0 is not in the range 1<=x<"),
        ("train encoder {toons} --batch -3", "Invalid value for '--batch': -3 is not in the range 1<=x<"),
        ("invert {toons} --out {out} --shard 2.5", "Invalid value for '--shard': '2.5'"),
        ("align {toons} --out {out} --size 0", "Invalid value for '--size': 0"),
        ("bench --sizes 64 100 --out {out}", "100 is not a power of two"),
    ],
)
def test_numbers_that_make_no_sense(toons, tmp_path, capsys, words, told):
    assert cli.main(words.format(toons=toons, out=tmp_path / "out").split()) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_splits_by_subfolder_and_bars(toons):
    folder = folders.Folder(toons, 128, (48, 64))
    train, val, test = (folder.split(name) for name in ("train", "val", "test"))
    assert len(train) + len(val) == 40
    assert 1 <= len(val) <= 6
    assert all(name.startswith("train/") for name in val.names)
    assert len(test) == 20
    assert train.read(0).shape == (48, 64, 3)
    square = folder.split("test", square=True).read(0)
    assert square.shape == (128, 128, 3)
    assert not square[:16].any()
    assert not square[-16:].any()
    assert square[16:112].mean() > 50


def test_paper_domains_need_pictures_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("STX_DATA", str(tmp_path))
    cars = datasets.load("cars")
    assert (cars.resolution, cars.input_size) == (512, (192, 256))
    with pytest.raises(DomainError, match=r"cars/pictures/train, val and test"):
        cars.split("test")
    images.save_image(
        avatars.rasterise("toon-head", {"seed": "1"}, resolution=32), tmp_path / "cars/pictures/test/1.png"
    )
    assert datasets.load("cars").split("test").read(0).shape == (192, 256, 3)
    assert datasets.load("ffhq").input_size == (256, 256)
    with pytest.raises(DomainError, match="ffhq has 1024 pixels, not 512"):
        datasets.load("ffhq", resolution=512)
