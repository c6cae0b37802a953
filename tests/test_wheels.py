"""The two wheels, installed without a network and without the repository: the avatars' networks are there."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = """
import stx, stx.files.places as places
from pathlib import Path
assert Path(stx.__file__).is_relative_to(Path.cwd()) and places.data_dir().is_relative_to(Path.cwd())
pipe = stx.load("avatars", device="cpu")
ws = pipe.invert(pipe.domain.split("test", 1).uint8([0]))
edited = pipe.synthesize(pipe.edit(ws, add=["Eyeglasses"]))
assert edited.shape == (1, 3, 64, 64) and not edited.equal(pipe.synthesize(ws))
pipe.network("latent_classifier"), pipe.network("manifold")
"""


def pip(*given: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *given, "--no-deps", "-q"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.release
def test_wheels_are_small_and_enough(tmp_path):
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools here is too old to build without a network")
    shutil.copytree(ROOT / "stx", tmp_path / "code" / "stx")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "code")
    shutil.copytree(ROOT / "data", tmp_path / "data", ignore=shutil.ignore_patterns("compared", "pictures"))
    pip("wheel", "--no-build-isolation", "-w", tmp_path / "wheels", tmp_path / "code", tmp_path / "data")
    wheels = sorted((tmp_path / "wheels").iterdir())
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["style_transformer_stx", "style_transformer_stx_weights"]
    assert sum(wheel.stat().st_size for wheel in wheels) < 40e6
    here = tmp_path / "installed"
    pip("install", "--no-index", "--target", here, *wheels)
    env = {k: v for k, v in os.environ.items() if k != "STX_DATA"} | {"PYTHONPATH": str(here)}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
