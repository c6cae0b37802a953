"""Cards: each is that of its config.json; none of somebody else is replaced."""

import json
import re

import pytest

from stx import cli
from stx.checkpoints import cards, weights
from stx.files.errors import WeightsError
from stx.files.outputs import made_by_stx
from stx.files.places import ROOT


def test_every_network_and_domain_here_has_its_card():
    """`stx cards` makes them again."""
    for domain in ("avatars", "photographs"):
        told = weights.cards_of(ROOT / "data" / domain)
        assert told.keys() >= set(weights.folders(ROOT / "data" / domain))
        for folder, text in told.items():
            assert (folder / cards.FILE).read_text() == text, folder
            for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
                assert (folder / link).is_file(), (folder, link)
            for table in re.findall(r"`(figures/\w+\.md)`", text):
                assert (ROOT / table).is_file(), (folder, table)


def test_a_card_is_what_the_record_says(tmp_path, tiny):
    notes = {"steps": 7, "device": "cpu", "made": "2026-01-02T03:04", "commit": "0123456789abcdef"}
    notes["parameters"] = {"command": "stx train encoder", "domain": "some/toons", "rates": list(range(9)), "of": "a|b"}
    weights.save(tiny["style_transformer"], tmp_path / "toons" / "compared" / "mine", notes=notes)
    text = (tmp_path / "toons" / "compared" / "mine" / cards.FILE).read_text()
    assert "# toons/compared/mine\n" in text and "license: mit" in text
    count = sum(value.numel() for value in tiny["style_transformer"].state_dict().values())
    assert f"| numbers | {count:,}, in `model.safetensors` |" in text
    assert "| made | 7 steps by `stx train encoder` on cpu, 2026-01-02 |" in text
    assert "| code | commit `0123456789ab` |" in text
    assert "rates 9 values, of a\\|b |" in text
    assert 'pipe.network("compared/mine")' in text and "avatars" not in text.lower()


def test_public_weights_keep_their_licence(tmp_path, tiny):
    weights.save(tiny["generator"], tmp_path / "ffhq" / "generator", notes={"file": "x.pt", "kind": "StyleGAN2"})
    text = (tmp_path / "ffhq" / "generator" / cards.FILE).read_text()
    assert "license: other" in text and "converted from `x.pt` (StyleGAN2; under its authors' licence)" in text
    assert 'stx.load("ffhq")' in text


def test_cards_of_others_stay(tmp_path, tiny):
    home = tmp_path / "toons" / "generator"
    home.mkdir(parents=True)
    (home / cards.FILE).write_text("mine")
    weights.save(tiny["generator"], home)
    assert cli.main(["cards", str(tmp_path / "toons")]) == 0
    assert (home / cards.FILE).read_text() == "mine"
    assert "[generator](generator/README.md)" in (tmp_path / "toons" / cards.FILE).read_text()


def test_a_stale_card_is_found_and_made_again(tmp_path, tiny, capsys):
    home = tmp_path / "toons" / "generator"
    weights.save(tiny["generator"], home)
    assert cli.main(["cards", str(home.parent)]) == cli.main(["cards", str(home.parent), "--check"]) == 0
    config = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps(config | {"notes": {"steps": 8}}))
    assert made_by_stx(home / cards.FILE)
    capsys.readouterr()
    assert cli.main(["cards", str(home.parent), "--check"]) == 1
    assert capsys.readouterr().out == f"stale: {home / cards.FILE}\n1 cards stale\n"
    assert cli.main(["cards", str(home.parent)]) == 0
    assert "8 steps" in (home / cards.FILE).read_text()


def test_folders_without_networks(tmp_path, tiny):
    assert cli.main(["cards", str(tmp_path)]) == 2
    weights.save(tiny["generator"], tmp_path / "generator")
    (tmp_path / "generator" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="damaged or missing"):
        weights.cards_of(tmp_path)
