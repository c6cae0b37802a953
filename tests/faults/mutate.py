"""Valid files of every kind that stx reads, and seeded ways to spoil them."""

import copy
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageCms

from stx import batch
from stx.checkpoints import export, weights
from stx.explorer.state import State
from stx.files import atomic
from stx.latent_classifier import LatentClassifier
from stx.reports import claims, figures
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Generator
from stx.training.loop import Resumable, train

SIZE = 16
NUMBERS = (0, 1, -1, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
WORDS = ("", "x" * 5000, "../../x", "\0")
VALUES = (None, True, [], {}, *WORDS, 0, -1, 1.5, 1e308, 2**31, 10**13, 10**400, float("nan"))
OPCODES = b".()0N123IJKMLFSTXUVcbghijlopqrsut}de]a" + bytes([0x80, 0x81, *range(0x85, 0x8E), *range(0x8F, 0x96)])


# ---------------------------------------------------------------------------------------------------------- valid files


def networks() -> dict[str, torch.nn.Module]:
    """Untrained networks for pictures of 16 pixels."""
    torch.manual_seed(0)
    generator = Generator(size=SIZE, z_dim=12, n_mlp=2, channel_base=64, channel_max=8)
    encoder = StyleTransformer.for_generator(generator, widths=(4, 8, 12), units=(1, 1, 2))
    return {"generator": generator, "style_transformer": encoder}


def pictures(folder: Path) -> None:
    """A small picture in each format and in unusual forms of some."""
    folder.mkdir(parents=True)
    plain = Image.fromarray(np.random.RandomState(0).randint(0, 256, (24, 20, 3), dtype=np.uint8))
    for kind in ("png", "jpg", "webp", "bmp", "tif", "ppm", "gif", "avif", "jp2", "tga"):
        plain.save(folder / f"plain.{kind}")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"sRGB b", b"xRGB b")
    plain.save(folder / "turned.jpg", exif=exif.tobytes(), icc_profile=profile, progressive=True)
    plain.save(folder / "profile.png", exif=exif.tobytes(), icc_profile=profile)
    plain.save(folder / "packed.tif", compression="tiff_lzw")
    plain.convert("P").save(folder / "palette.png", transparency=3)
    plain.convert("RGBA").save(folder / "clear.webp", lossless=True)
    Image.fromarray(np.linspace(0, 1, 480, dtype=np.float32).reshape(24, 20)).save(folder / "float.tif")
    Image.fromarray(np.arange(480, dtype=np.uint16).reshape(24, 20)).save(folder / "deep.png")
    plain.convert("L").save(folder / "grey.pgm")


def checkpoints(folder: Path) -> None:
    """Weights in public forms."""
    folder.mkdir(parents=True)
    made = networks()
    export.write(made, "rosinality", folder / "rosinality.pt")
    export.write(made, "official", folder / "official.pt")
    content = {"g_ema": {k: v for k, v in made["generator"].state_dict().items() if k != "latent_avg"}}
    torch.save(content, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "plain.pkl").write_bytes(pickle.dumps({"w": np.ones((1, 12), np.float32)}))
    np.save(folder / "age.npy", np.full((1, 512), 512**-0.5, np.float32))
    rows = np.eye(80, 512, dtype=np.float32)[:, None]
    arrays = {"act_comp": rows, "lat_comp": rows, "var_ratio": np.ones(80, np.float32)}
    arrays |= {f"{space}_mean": np.ones((1, 512), np.float32) for space in ("act", "lat")}
    arrays |= {"act_stdev": np.ones(80), "lat_stdev": np.ones(80), "random_stdevs": np.ones(80)}
    np.savez_compressed(folder / "pca.npz", **arrays)
    manifest = [{"paths": ["w.bin"], "weights": [{"name": "conv1_weight", "shape": [3], "dtype": "float32"}]}]
    (folder / "model.json").write_text(json.dumps({"weightsManifest": manifest}))
    (folder / "w.bin").write_bytes(bytes(12))


class Counter(Resumable):
    """A training of one number."""

    kept = ("net",)

    def __init__(self):
        self.net = torch.nn.Linear(1, 1)

    def step(self, step):
        return {"loss": 0.0}

    def positions(self, step):
        return []


def folders(home: Path) -> None:
    """What stx writes and reads again: networks, codes, a training, labels, claims, a cache, records, a notebook."""
    made = networks()
    for name, net in made.items():
        weights.save(net, home / "nets" / name, dtype=torch.float32)
    classifier = LatentClassifier(num_ws=6, w_dim=12, attributes=("Smiling",), hidden=(9, 8), dim=4)
    weights.save(classifier, home / "nets" / "latent_classifier", dtype=torch.float32)
    (home / "codes").mkdir()
    settings = {"encoder": "0" * 8, "generator": "1" * 8, "faces": False}
    rows = [batch.Row(name, f"/x/{name}.png", "1-1") for name in "abc"]
    batch._write(home / "codes" / "codes-00000.safetensors", rows, torch.zeros(3, 6, 12), settings)
    batch._write_index(home / "codes", settings)
    train(Counter(), folder=home / "run", steps=2, config={})
    (home / "labelled").mkdir()
    for name in "ab":
        Image.new("RGB", (SIZE, SIZE)).save(home / "labelled" / f"{name}.png")
    (home / "labelled" / "labels.csv").write_text("file,Smiling,Hat\na.png,0,1\nb.png,1,-1\n")
    record = figures.provenance(notebook="08")
    claims.save(
        [claims.Evidence("a", "figure 9", "x", "sigmas", 0.5, 0.1, 0.9, 0.01, 9, "08")], home / "claims", record
    )
    figures.save_table(pd.DataFrame({"n": [1.5]}), "08_x", home / "claims", record)
    (home / "cache").mkdir()
    atomic.save_array(home / "cache" / "people.npy", np.arange(60, dtype=np.uint8).reshape(5, 4, 3))
    (home / "recipe").mkdir()
    (home / "recipe" / "state.json").write_text(State(strengths={"Smiling": 1.0}).to_json())
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["count: int = 1  # of nothing\n"]}
    (home / "books").mkdir()
    book = {"cells": [cell | {"outputs": [], "execution_count": None}], "metadata": {}, "nbformat": 4}
    (home / "books" / "a.ipynb").write_text(json.dumps(book | {"nbformat_minor": 5}))


# ------------------------------------------------------------------------------------------------------------ spoiling


def spoil(raw: bytes, name: str, rng: random.Random) -> bytes:
    """Bytes with one to four faults, half of them behind the checksums and lengths of the format."""
    ending = name.rsplit(".", 1)[-1]
    forms = {"png": _png, "safetensors": _safetensors, "pkl": _pickle, "csv": _text}
    forms |= dict.fromkeys(("json", "ipynb"), _json)
    form = _zip if raw[:4] == b"PK\x03\x04" else forms.get(ending)
    for _ in range(rng.choice((1, 1, 2, 4))):
        chosen = form if form and rng.random() < 0.6 else _bytes
        try:
            raw = chosen(raw, rng)
        except (ValueError, LookupError, TypeError, RecursionError, struct.error, zlib.error, zipfile.BadZipFile):
            raw = _bytes(raw, rng)  # too spoilt for its form
    return raw


def _bytes(raw: bytes, rng: random.Random) -> bytes:
    if not raw:
        return rng.randbytes(rng.randrange(64))
    code, at = bytearray(raw), rng.randrange(len(raw))
    at = rng.randrange(min(len(raw), 200)) if rng.random() < 0.5 else at  # headers are where it hurts
    kind = rng.randrange(7)
    if kind == 0:
        code[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        code[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == 2:
        number, width = rng.choice(NUMBERS), rng.choice((2, 4, 8))
        code[at : at + width] = (number % 256**width).to_bytes(width, rng.choice(("little", "big")))
    elif kind == 3:
        del code[at:]
    elif kind == 4:
        del code[at : at + rng.choice((1, 4, 64))]
    elif kind == 5:
        code[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
    else:
        part = bytes(code[at : at + rng.choice((8, 64, 512))])
        code[at:at] = part * rng.choice((1, 2, 50))
    return bytes(code)


def _png(raw: bytes, rng: random.Random) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(raw):
        (size,) = struct.unpack(">I", raw[at : at + 4])
        chunks.append([raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]])
        at += 12 + size
    which = rng.randrange(len(chunks))
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks)), list(chunks[which]))
    chunks[which][1] = _bytes(chunks[which][1], rng)
    whole = raw[:8]
    for kind, data in chunks:
        whole += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return whole


def _zip(raw: bytes, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    first = [name for name in members if name.endswith("data.pkl")]
    chosen = rng.choice(first if first and rng.random() < 0.7 else list(members))
    members[chosen] = (_pickle if chosen.endswith(".pkl") else _bytes)(members[chosen], rng)
    if rng.random() < 0.1:
        del members[rng.choice(list(members))]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def _pickle(raw: bytes, rng: random.Random) -> bytes:
    code, at = bytearray(raw), rng.randrange(len(raw))
    kind = rng.randrange(4)
    if kind == 0:
        code[at] = rng.choice(OPCODES)
    elif kind == 1:
        code[at:at] = bytes(rng.choice(OPCODES) for _ in range(rng.choice((1, 2, 8))))
    elif kind == 2:
        number = b"\x8a\x09" + (rng.choice(NUMBERS) - rng.choice((0, 2**64))).to_bytes(9, "little", signed=True)
        code[at : at + rng.choice((0, 2, 5))] = number
    else:
        return _bytes(raw, rng)
    return bytes(code)


def _safetensors(raw: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    told = json.dumps(_changed(header, rng)).encode()
    return len(told).to_bytes(8, "little") + told + raw[8 + size :]


def _json(raw: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.03:
        deep = rng.choice((500, 100_000))
        return b'{"a":' * deep + b"1" + b"}" * deep
    return json.dumps(_changed(json.loads(raw), rng)).encode(errors="surrogatepass")


def _changed(tree, rng: random.Random):
    """A tree of JSON with one node replaced, left out, or given twice."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places:
        return rng.choice(VALUES)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    elif rng.random() < 0.2 and isinstance(node, dict):
        node[rng.choice(("x" * 300, "", "../x", "a\nb"))] = node[key]
    elif isinstance(node[key], int) and rng.random() < 0.5:
        node[key] = rng.choice((*NUMBERS, -node[key], node[key] + 1, node[key] * 1000))
    else:
        node[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


def _places(tree):
    found = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in found:
        yield tree, key
        yield from _places(value)


def _text(raw: bytes, rng: random.Random) -> bytes:
    lines = raw.decode().split("\n")
    at = rng.randrange(len(lines))
    cells = lines[at].split(",")
    words = ("", "nan", "inf", "1e999", "2", '"', '"\n', "\0", "x" * 200_000, "é", "-0", "=1+1", ",", "file")
    kind = rng.randrange(4)
    if kind == 0:
        cells[rng.randrange(len(cells))] = rng.choice(words)
    elif kind == 1:
        cells.append(rng.choice(words))
    elif kind == 2:
        del cells[rng.randrange(len(cells))]
    else:
        lines.insert(at, lines[rng.randrange(len(lines))])
    lines[at] = ",".join(cells)
    return "\n".join(lines).encode()
