"""Notebooks, trained from scratch too, on a device that refuses what CUDA and MPS refuse, though there is none here."""

import copy
import json
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from stx import pick_device
from stx.domains import align, images
from stx.perception.identity import face_crop
from stx.stylegan2 import ops
from tests.elsewhere import DEVICE, Elsewhere, elsewhere

BOOKS = Path(__file__).parent.parent / "notebooks"


def test_the_device_refuses_what_devices_refuse():
    with elsewhere():
        far, near = torch.ones(2, 3, device="mps"), torch.ones(2, 3)
        assert (far + 1).device == far.to(torch.float16).device == DEVICE
        assert near.device == (far * 2).cpu().device == torch.device("cpu")
        assert near.to(far).device == DEVICE
        assert near.to("mps").add_(1).mean() == 2
        assert near.mean() == 1
        for mixed in (lambda: far + near, lambda: torch.cat([far, near]), lambda: near[far[0].long()]):
            with pytest.raises(RuntimeError, match="together"):
                mixed()
        for wide in (
            far.double,
            lambda: near.double().to("mps"),
            lambda: torch.ones(2, dtype=torch.float64, device="mps"),
        ):
            with pytest.raises(TypeError, match="float64"):
                wide()
        for array in (far.numpy, lambda: np.asarray(far)):
            with pytest.raises(TypeError, match="numpy"):
                array()
        grown = torch.nn.Parameter(torch.ones(1, 1, 6, 6, device="mps"))
        for lacking in (partial(F.interpolate, mode="bilinear", antialias=True), F.adaptive_avg_pool2d):
            with pytest.raises(RuntimeError, match="on mps"):
                lacking(grown, (4, 4))
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, generator=torch.Generator(), device="mps")
        net = copy.deepcopy(torch.nn.Linear(3, 2).to("mps"))
        net(far).sum().backward()
        assert isinstance(net.weight.grad, Elsewhere)
        assert all(p.device == DEVICE for p in net.parameters())


def test_devices_are_words_or_those_of_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(torch.device("cpu")) == "cpu"
    with pytest.raises(ValueError, match="device 'cuda:1' is not available here; there is: cpu"):
        pick_device("cuda:1")
    with elsewhere():
        assert pick_device("mps:0") == "mps:0"


@pytest.mark.parametrize("size", [(112, 112), (7, 188), (224, 20), (60, 5)])
def test_resizing_is_that_of_pytorch(device, size):
    image = torch.randn(2, 3, 188, 10)
    smooth = partial(F.interpolate, mode="bilinear", antialias=True)
    for ours, theirs in ((ops.pool, F.adaptive_avg_pool2d), (ops.resize, smooth)):
        near, far = image.clone().requires_grad_(), image.clone().to(device).requires_grad_()
        expected, found = theirs(near, size), ours(far, size)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)
        expected.square().sum().backward()
        found.square().sum().backward()
        torch.testing.assert_close(far.grad.cpu(), near.grad, atol=1e-4, rtol=1e-4)


def test_faces_are_cut_out_and_found(device):
    picture = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(face_crop(picture.to(device)).cpu(), face_crop(picture), atol=1e-5, rtol=1e-5)
    photo = images.read_image(align.packaged_portraits()[0])
    assert len(align.find_faces(photo, device=device)) == 1


def release(*given):
    return pytest.param(*given, marks=pytest.mark.release)


@pytest.mark.parametrize(
    ("book", "given", "made"),
    [
        release("00_domain", {"from_scratch": True}, "*/state.pt"),
        ("01_generator", {"from_scratch": True}, "*/state.pt"),
        release("01_generator", {"more_steps": 2, "keep": 10.0, "clear": 1.0}, "generator_*/samples/000002.png"),
        release("01_generator", {"decoder_steps": 2, "more_steps": 2, "drawn": 1.0}, "decoder_*/mapping/state.pt"),
        ("02_train_inversion", {"from_scratch": True}, "*/state.pt"),
        ("03_inversion_quality", {}, ""),
        release("05_latent_classifier", {"from_scratch": True, "trainings": 2}, "*/state.pt"),
        release("06_label_editing", {}, ""),
        release("07_reference_editing", {"trainings": 2}, "*/state.pt"),
        release("08_attribute_dependency", {"own": "mine.py"}, ""),
        ("09_explorer", {}, ""),
        ("10_photographs", {}, ""),
        release("11_detail", {}, ""),
    ],
)
def test_notebooks(tmp_path, monkeypatch, own, book, given, made):
    given = {"smoke": True, "out": str(tmp_path / "figures"), "runs": str(tmp_path / "runs")} | given
    given |= {"own": str(own)} if "own" in given else {}
    found = parameterize_notebook(load_notebook_node(str(BOOKS / f"{book}.ipynb")), given)
    monkeypatch.chdir(BOOKS.parent)
    shell = InteractiveShell()
    with elsewhere():
        for cell in found.cells:
            if cell.cell_type == "code":
                shell.run_cell(cell.source).raise_error()
        assert pick_device() == DEVICE.type
    plt.close("all")
    records = list((tmp_path / "figures").glob(f"{book[:2]}_*.json"))
    assert {json.loads(path.read_text())["device"] for path in records} == {DEVICE.type}
    assert not made or list((tmp_path / "runs").rglob(made))
    if "own" in given:
        assert "mean difference" in set(pd.read_csv(tmp_path / "figures" / "08_methods.csv")["method"])
        assert "mean difference" not in (tmp_path / "figures" / "claims.md").read_text()
