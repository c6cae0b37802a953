"""The explorer without Python: onnxruntime-web from npm, fetched once, and the static page with its networks.

    python docs/web.py fetch FOLDER                       needs the network, once
    python docs/web.py page GRAPHS RUNTIME OUT            needs none; GRAPHS is made by `stx export --to onnx`

The page is `docs/explorer/`; what it loads is packed, so that any static server will do.
"""

import gzip
import hashlib
import html
import io
import json
import os
import shutil
import sys
import tarfile
import urllib.request
from pathlib import Path

PAGE = Path(__file__).parent / "explorer"
REGISTRY = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
TARBALL = "onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"  # MIT
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
RUNTIMES = {  # where the numbers are computed: its script, its WebAssembly
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
PICTURES = 12  # test pictures to choose from
USUAL_L2 = 0.05  # of an inversion; of 1,024 test avatars the worst has 0.032


def fetch(folder: Path) -> None:
    """The files of the runtimes, from the npm registry, held against their checksum; nothing where they are there."""
    wanted = [name for names in RUNTIMES.values() for name in names]
    if all(_packed(folder, name).is_file() for name in wanted):
        return
    with urllib.request.urlopen(f"{REGISTRY}/{TARBALL}", timeout=180) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{REGISTRY}/{TARBALL}: another file than expected (SHA-256); nothing is kept")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for name in wanted:
            part = folder / f"{name}.part"
            code = archive.extractfile(f"package/dist/{name}").read()
            part.write_bytes(gzip.compress(code, mtime=0) if name.endswith(".wasm") else code)
            part.replace(_packed(folder, name))


def page(graphs: Path, runtime: Path, out: Path) -> None:
    """Writes the page: its files, the runtimes, the packed graphs, pictures, and `explorer.json` about all of them."""
    shutil.rmtree(out, ignore_errors=True)
    if not runtime.is_dir():
        out.mkdir(parents=True)
        told = f"onnxruntime-web is not here; python docs/web.py fetch {runtime}"
        (out / "index.html").write_text(f"<!doctype html><title>Explorer</title><p>Left out: {html.escape(told)}")
        print(told)
        return
    told = json.loads((graphs / "graphs.json").read_text())
    used = [name for name in ("encoder", "edit", "generator", told["classifier"]) if name]
    shutil.copytree(PAGE, out)
    for names in RUNTIMES.values():
        for name in names:
            shutil.copy(_packed(runtime, name), out)
    for name in used:
        (out / f"{name}.onnx.gz").write_bytes(gzip.compress((graphs / f"{name}.onnx").read_bytes(), mtime=0))
    pictures = _pictures(told, out)
    told |= {
        "graphs": {name: told["graphs"][name] | {"file": f"{name}.onnx.gz"} for name in used},
        "runtimes": {k: {"script": script, "wasm": f"{wasm}.gz"} for k, (script, wasm) in RUNTIMES.items()},
        "pictures": pictures,
        "usual_l2": USUAL_L2,
        "bytes": {path.name: path.stat().st_size for path in out.iterdir() if path.suffix == ".gz"},
    }
    (out / "explorer.json").write_text(json.dumps(told, indent=1))


def _pictures(told: dict, out: Path) -> list[str]:
    """Test pictures, and what Python draws of the first one with the first edit: the page holds itself against it."""
    import stx
    from stx.domains import images

    pipe = stx.load(told["domain"], device="cpu")
    found = pipe.domain.split("test", PICTURES).uint8(range(PICTURES))
    names = [f"test-{i}.png" for i in range(PICTURES)]
    for name, picture in zip(names, found, strict=True):
        images.save_image(picture, out / name)
    ws = pipe.invert(found[:1])
    edited = ws + pipe.network("matched_pairs")(ws, [0], [1.0])
    drawn = pipe.synthesize(edited).numpy().astype("<f4")
    (out / "check.f32.gz").write_bytes(gzip.compress(drawn.tobytes(), mtime=0))
    return names


def _packed(folder: Path, name: str) -> Path:
    return folder / (f"{name}.gz" if name.endswith(".wasm") else name)


if __name__ == "__main__":
    {"fetch": fetch, "page": page}[sys.argv[1]](*map(Path, sys.argv[2:]))
