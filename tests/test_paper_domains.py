"""The paper's own domains at full size, with random weights of the right shapes, in a process of its own."""

import json
import subprocess
import sys

import pytest

RUN = """
import json, resource, sys
import numpy as np, torch
from pathlib import Path
import stx
from stx import cli, metrics
from stx.checkpoints import convert, export, weights
from stx.domains import images
from stx.evaluation import quality
from stx.perception.irse import IR_SE50
from stx.perception.identity import IdentityNet, MoCo
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Generator

name, size, home = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
torch.manual_seed(0)
generator = Generator(size=size)
encoder = StyleTransformer(num_ws=generator.num_ws, n_mlp=8, queries=18, **IR_SE50)
encoder.latent_avg += 0.1
nets = {"generator": generator, "style_transformer": encoder}
export.write(nets, "official", home / "official.pt")
where = generator.eval(), encoder.eval()
assert cli.main(["convert", str(home / "official.pt"), "--out", str(home / name)]) == 0
face = dict(size=112, dim=512, face=True, **IR_SE50)
weights.save(IdentityNet(**face) if name == "ffhq" else MoCo(), home / name / "identity")
for i in range(3):
    picture = np.random.RandomState(i).randint(0, 256, (300, 400, 3), dtype=np.uint8)
    images.save_image(picture, home / name / "pictures" / "test" / f"{i}.png")
pipe = stx.load(name, device="cpu")
test = pipe.domain.split("test")
ws = quality.invert_all(pipe, test)
with torch.no_grad():
    image = pipe.images(home / name / "pictures" / "test" / "1.png")
    query = encoder.queries().expand(1, -1, -1)
    expected = encoder.encoder(image, query)[:, : generator.num_ws] + encoder.latent_avg
    drawn = generator(expected)
table, _ = quality.measure(pipe, test, quality.as_files(pipe, ws))
told = {
    "ws": list(ws.shape),
    "view": list(pipe.reconstruct(ws[:1]).shape),
    "code_error": float((ws[1:2] - expected).abs().max()),
    "picture_error": float((pipe.generator(ws[1:2]) - drawn).abs().max() / drawn.abs().max()),
    "columns": list(table.columns),
    "finite": bool(np.isfinite(table.drop(columns="picture").to_numpy()).all()),
    "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
}
print("TOLD", json.dumps(told))
"""


@pytest.mark.parametrize(
    ("name", "size", "num_ws", "view"), [("ffhq", 1024, 18, [256, 256]), ("cars", 512, 16, [192, 256])]
)
def test_full_size(tmp_path, monkeypatch, name, size, num_ws, view):
    monkeypatch.setenv("STX_DATA", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", RUN, name, str(size), str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.split("TOLD", 1)[1])
    assert told["ws"] == [3, num_ws, 512]
    assert told["view"] == [1, 3, *view]
    assert told["code_error"] < 1e-4
    assert told["picture_error"] < 1e-4
    assert told["finite"]
    assert told["columns"] == ["picture", "L2", "LPIPS-Alex", "ID" if name == "ffhq" else "ID-MoCo", "MS-SSIM"]
    assert told["gigabytes"] < 6
