"""Files of the latent transformer's public code: its editors and its classifier of codes."""

import pytest
import torch
import torch.nn.functional as F

from stx import cli, pipeline
from stx.checkpoints import convert
from stx.files.errors import WeightsError

TOKENS, WIDTH = 10, 64  # of the codes of avatars


def editor(tokens: int = TOKENS, width: int = WIDTH, seed: int = 0) -> dict[str, torch.Tensor]:
    at = torch.Generator().manual_seed(seed)
    state = {f"dense.{i}.weight": torch.randn(width, width, generator=at) for i in range(tokens)}
    return state | {f"dense.{i}.bias": torch.randn(width, generator=at) for i in range(tokens)}


def public_edit(state: dict, ws: torch.Tensor, alpha: float) -> torch.Tensor:
    """By the paper: every token through its own layer at an equalised rate, alpha times that added."""
    moved = [
        F.linear(ws[:, i], state[f"dense.{i}.weight"] / ws.shape[2] ** 0.5, state[f"dense.{i}.bias"])
        for i in range(ws.shape[1])
    ]
    return ws + alpha * torch.stack(moved, 1)


@pytest.mark.parametrize("wrapped", [False, True], ids=["tnet", "checkpoint"])
def test_latent_transformer_edits_as_the_public_code(tmp_path, wrapped):
    state, ws = editor(3, 5), torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    torch.save({"n_epoch": 3, "T_net_state_dict": state} if wrapped else state, tmp_path / "tnet_15.pth.tar")
    found = convert.read(tmp_path / "tnet_15.pth.tar")
    moves = found.networks["directions"].moves(ws)
    torch.testing.assert_close(ws + 1.5 * moves, public_edit(state, ws, 1.5))


def test_latent_transformer_from_file_to_edited_codes(tmp_path, monkeypatch):
    pipe = pipeline.load("avatars", device="cpu")
    width, tokens = pipe.generator.w_dim, pipe.generator.num_ws
    state, ws = editor(tokens, width), pipe.sample(2, seed=3)
    torch.save(state, tmp_path / "tnet_15.pth.tar")
    networks = tmp_path / "avatars"
    assert cli.main(["convert", str(tmp_path / "tnet_15.pth.tar"), "--out", str(networks)]) == 0
    for name in ("generator", "style_transformer"):
        (networks / name).symlink_to(pipe.folder / name)
    other = pipeline.load("avatars", device="cpu", folder=networks)
    assert [found.unit for found in other.editable() if found.name == "tnet_15"] == ["a whole edit"]
    edited = other.edit(ws, remove=["tnet_15"], strength=0.5)
    torch.testing.assert_close(edited, public_edit(state, ws, -0.5), rtol=1e-5, atol=1e-5)


def test_latent_transformer_of_other_codes_is_told(tmp_path, capsys):
    torch.save(editor(7, 8), tmp_path / "tnet_3.pth.tar")
    pipe = pipeline.load("avatars", device="cpu")
    (tmp_path / "avatars").mkdir()
    (tmp_path / "avatars" / "generator").symlink_to(pipe.folder / "generator")
    assert cli.main(["convert", str(tmp_path / "tnet_3.pth.tar"), "--out", str(tmp_path / "avatars")]) == 2
    told = capsys.readouterr().err
    assert "7 x 8" in told and f"{pipe.generator.num_ws} x {pipe.generator.w_dim}" in told


def test_classifier_of_the_latent_transformer(tmp_path):
    at = torch.Generator().manual_seed(0)
    sizes = [2 * 512, 11, 7, 40]
    state = {}
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        state |= {f"fcs.{i}.weight": torch.randn(b, a, generator=at) / a**0.5, f"fcs.{i}.bias": torch.randn(b)}
    torch.save(state, tmp_path / "latent_classifier_epoch_20.pth")
    net = convert.read(tmp_path / "latent_classifier_epoch_20.pth").networks["latent_classifier"]
    ws = torch.randn(3, 2, 512, generator=at)
    x = F.leaky_relu(F.linear(ws.flatten(1), state["fcs.0.weight"], state["fcs.0.bias"]), 0.2)
    x = F.leaky_relu(F.linear(x, state["fcs.1.weight"], state["fcs.1.bias"]), 0.2)
    torch.testing.assert_close(net(ws)[0], F.linear(x, state["fcs.2.weight"], state["fcs.2.bias"]))
    assert net.attributes[15] == "Eyeglasses"


@pytest.mark.parametrize("spoil", ["a bias is missing", "a layer is missing", "one is wider", "a name too many"])
def test_damaged_latent_transformer_is_one_line(tmp_path, spoil):
    state = editor(3, 5)
    if spoil == "a bias is missing":
        del state["dense.1.bias"]
    elif spoil == "a layer is missing":
        del state["dense.1.bias"], state["dense.1.weight"]
    elif spoil == "one is wider":
        state["dense.1.weight"] = torch.zeros(5, 6)
    else:
        state["extra.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "tnet_1.pth.tar")
    with pytest.raises(WeightsError) as told:
        convert.read(tmp_path / "tnet_1.pth.tar")
    assert "\n" not in str(told.value) and "tnet_1" in str(told.value)
