"""A domain as one folder: written, read again, its cards, and what is refused."""

import json

import pytest
import torch

import stx
from stx.checkpoints import cards, hub
from stx.files.errors import FileError, WeightsError


@pytest.fixture(scope="module")
def pipe():
    return stx.load("avatars", device="cpu")


def test_a_domain_comes_back_from_its_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path)  # over its own files
    again = stx.Pipeline.from_pretrained(tmp_path, device="cpu")
    image = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    assert again.invert(image).equal(pipe.invert(image))
    assert again.domain.attributes == pipe.domain.attributes
    assert again.present() == pipe.present() - {"discriminator"}
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["library_name"] == "stx" and told["encoder"] == "style_transformer"
    for name in told["networks"]:
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["sha256"] in (tmp_path / name / cards.FILE).read_text()
        assert f"[{name}]({name}/README.md)" in (tmp_path / cards.FILE).read_text()
    assert "Pipeline.from_pretrained" in (tmp_path / cards.FILE).read_text()


def test_an_encoder_of_another_folder_is_the_one_that_comes_back(tmp_path):
    psp = stx.load("avatars", device="cpu", encoder="compared/psp")
    psp.save_pretrained(tmp_path)
    again = stx.Pipeline.from_pretrained(tmp_path, device="cpu")
    assert type(again.encoder) is type(psp.encoder) and again.encoder_name == "psp"


def test_files_of_others_stay(pipe, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileError, match="README.md"):
        pipe.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


NOTHING = '{"domain": "x", "resolution": 64, "encoder": "e", "input_size": [0, 64], "attributes": []}'


@pytest.mark.parametrize("text", ["{", "{}", '{"domain": "x"}', "[]", NOTHING])
def test_a_folder_of_another_kind(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match="not the record of a domain"):
        stx.Pipeline.from_pretrained(tmp_path)


def test_places_that_are_none(tmp_path):
    with pytest.raises(WeightsError, match="no such folder, and no repository"):
        hub.find(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="cannot be fetched"):
        hub.find("nobody/nothing", cache_dir=tmp_path, local_files_only=True)
