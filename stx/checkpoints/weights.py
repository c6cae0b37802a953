"""Networks in files: safetensors with a config.json beside them, and nothing that could execute.

A folder per network, `data/<domain>/<network>/`, with `model.safetensors` and `config.json`: the class, its arguments,
and where the weights come from (run, steps, commit, what was measured).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import nn

from stx.baselines.directions import Directions, TokenMaps
from stx.baselines.psp import PSP
from stx.baselines.registry import METHODS
from stx.checkpoints import cards
from stx.checkpoints.tensors import Sparing, check_state
from stx.detail.features import FeatureEditor, FeatureEncoder
from stx.detail.hfgi import HFGI
from stx.detail.manifold import Manifold
from stx.detail.offsets import HyperStyle
from stx.detail.registry import TRAINED
from stx.domains import datasets
from stx.files.atomic import atomic_write, write_text
from stx.files.checksums import sha256
from stx.files.errors import InputError, WeightsError
from stx.files.outputs import claim_networks
from stx.files.places import data_dir
from stx.files.untrusted import one_line, read_json
from stx.generator.projected import ProjectedDiscriminator
from stx.latent_classifier import LatentClassifier
from stx.matched_pairs import MatchedPairs
from stx.perception.attribute_classifier import AttributeClassifier, AttributeJudge
from stx.perception.identity import IdentityNet, MobileFace, MoCo
from stx.reference_editing import ReferenceEditor
from stx.runtime import plain_torch
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Discriminator, Generator

BITS = 5  # of mantissa in shipped encoders and latent classifiers, whose files compress to two thirds
NETWORKS = {
    "generator": Generator,
    "discriminator": Discriminator,
    "projected_discriminator": ProjectedDiscriminator,
    "style_transformer": StyleTransformer,
    "psp": PSP,
    "classifier": AttributeClassifier,
    "judge": AttributeJudge,
    "identity": IdentityNet,
    "moco": MoCo,
    "mobileface": MobileFace,
    "latent_classifier": LatentClassifier,
    "reference_editor": ReferenceEditor,
    "matched_pairs": MatchedPairs,
    "directions": Directions,
    "token_maps": TokenMaps,
    "feature_encoder": FeatureEncoder,
    "feature_editor": FeatureEditor,
    "manifold": Manifold,
    "hfgi": HFGI,
    "hyperstyle": HyperStyle,
}

EXPECTED = {  # the class of what has one of these names in a domain's folder; other names are free
    "matched_pairs": MatchedPairs,
    "picture_classifier": LatentClassifier,
    "latent_classifier": LatentClassifier,
    "classifier": AttributeClassifier,
    "judge": AttributeJudge,
    "manifold": Manifold,
    **{name: method.network for name, method in TRAINED.items()},
}
FROM_PUBLIC = "or convert a public file (`stx weights` lists them)"
FROM_LABELS = "of a domain with labels makes it, with `-p from_scratch true -p ship true`"
MADE_BY = {  # what to do where a network is missing
    "generator": f"train it (`stx train generator`) {FROM_PUBLIC}",
    "style_transformer": f"train it (`stx train encoder`) {FROM_PUBLIC}",
    "classifier": f"notebook 00 {FROM_LABELS}",
    "judge": f"notebook 00 {FROM_LABELS}",
    "latent_classifier": f"notebook 05 {FROM_LABELS}",
    "picture_classifier": f"notebook 05 {FROM_LABELS}",
    "matched_pairs": f"notebook 05 {FROM_LABELS}",
    "manifold": "make it (`stx train manifold`)",
    **{name: f"train it (`stx train detail --method {name}`)" for name in TRAINED},
}


def networks() -> dict[str, type[nn.Module]]:
    """The classes of networks by the names in files, those of registered encoders among them."""
    own = {name: method.network for name, method in METHODS.items() if method.network not in NETWORKS.values()}
    return NETWORKS | own


def save(
    net: nn.Module,
    folder: str | Path,
    *,
    notes: dict | None = None,
    dtype: torch.dtype = torch.float16,
    bits: int | None = None,
) -> None:
    """Writes `model.safetensors` (floating tensors as `dtype`), `config.json`, and its card as `README.md`.

    An old pair survives a failure, and a `README.md` that stx did not make stays. notes: what to remember of the
    training, as JSON. bits: of mantissa that matrices and kernels keep (float16 has 10): with 5 a file compresses to
    two thirds. Raises `FileError` when the disk refuses or something that stx did not make would be replaced,
    `WeightsError` for a class that is not in `networks`, and for numbers that are not finite, `InputError` for notes
    that JSON does not have.
    """
    folder = Path(folder)
    claim_networks([folder])
    folder.mkdir(parents=True, exist_ok=True)
    kind = next((name for name, cls in networks().items() if type(net) is cls), None)
    if kind is None:
        raise WeightsError(
            f"a {type(net).__name__} is no network of the package and not registered, so it could not be read again"
        )
    tensors = {k: v.detach().cpu() for k, v in net.state_dict().items()}
    if bits is not None:
        tensors = {k: _rounded(v, bits) if v.is_floating_point() and v.ndim > 1 else v for k, v in tensors.items()}
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    if odd := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise WeightsError(f"{folder}: not written; {odd[0]} is not finite (NaN, infinite, or too large for {dtype})")
    try:
        json.dumps(notes)  # before the weights go whose record it is
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{folder}: not written; notes that are not JSON ({one_line(error)})") from None
    with atomic_write(folder / "model.safetensors") as part:
        safetensors.torch.save_file(tensors, part, metadata={"made_by": "stx"})  # known where config.json is not yet
    config = {"network": kind, "args": net.config, "sha256": sha256(folder / "model.safetensors"), "notes": notes or {}}
    write_text(folder / "config.json", json.dumps(config, indent=2))
    cards.write(folder, cards.card(folder, read_config(folder)))


@plain_torch()
def load(folder: str | Path, device: str = "cpu") -> nn.Module:
    """The network of a folder, frozen, in eval mode and float32, its file held against the checksum of `config.json`.

    The checksum costs about 0.7 s per gigabyte: for the avatars' pipeline (17 MB) 0.012 of 0.12 s.
    Raises `WeightsError` that names the file when something is missing, damaged, or of another shape.
    """
    config = read_config(folder)
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise WeightsError(f"{path}: missing; train it with its notebook, or fetch data/ again")
    try:
        with Sparing(path.stat().st_size):
            net = networks()[config["network"]](**config["args"])
    except Exception as error:  # arguments from a file: constructors raise many kinds
        told = f"does not describe a known network ({one_line(error)}); one of your own needs its file (own)"
        raise WeightsError(f"{folder}/config.json {told}") from None
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: damaged or incomplete ({one_line(error)}); fetch it again") from None
    if config.get("sha256") not in (None, sha256(path)):
        raise WeightsError(f"{path}: damaged (another checksum than when it was written); fetch it or train it again")
    check_state(tensors, net.state_dict(), str(path))
    if odd := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise WeightsError(f"{path}: damaged; {odd[0]} has numbers that are not finite (NaN or infinite)")
    wanted = EXPECTED.get(Path(folder).name, nn.Module)
    if not isinstance(net, wanted):
        raise WeightsError(f"{folder}: a {type(net).__name__}, expected a {wanted.__name__}; another network's files")
    net.load_state_dict(tensors)
    return net.to(device).eval().requires_grad_(False)


@dataclass(frozen=True)
class Public:
    """A published file: which networks of a domain it gives, its usual name, and where it is published."""

    domain: str
    networks: tuple[str, ...]
    file: str
    where: str


AUTHORS, PSP_AT = "github.com/sapphire497/style-transformer", "github.com/eladrich/pixel2style2pixel"
NVIDIA, BOTH = "github.com/NVlabs/stylegan2", ("style_transformer", "generator")
PUBLIC = (
    Public("ffhq", BOTH, "style_transformer_ffhq.pt (the name is free)", AUTHORS),
    Public("ffhq", ("generator",), "stylegan2-ffhq-config-f.pt", f"github.com/rosinality/stylegan2-pytorch, {PSP_AT}"),
    Public("ffhq", ("generator",), "stylegan2-ffhq-config-f.pkl", NVIDIA),
    Public("ffhq", ("identity",), "model_ir_se50.pth", PSP_AT),
    Public("ffhq", ("latent_classifier",), "LCNet_40 checkpoint", "never released"),
    Public("cars", BOTH, "style_transformer_cars.pt (the name is free)", AUTHORS),
    Public("cars", ("generator",), "stylegan2-car-config-f.pkl", NVIDIA),
    Public("cars", ("identity",), "moco_v2_800ep_pretrain.pt", "github.com/facebookresearch/moco"),
)


def folders(home: str | Path) -> list[Path]:
    """The folders of networks in that of a domain, those of its shelves (`compared`, `detail`) last, by name."""
    return [path.parent for depth in ("*", "*/*") for path in sorted(Path(home).glob(f"{depth}/config.json"))]


def cards_of(home: str | Path) -> dict[Path, str]:
    """The cards of a domain's folder and of its networks, by folder; without networks none.

    Of a domain only where it has a generator. Raises `WeightsError` for a damaged network.
    """
    home = Path(home)
    configs = {folder: read_config(folder) for folder in folders(home)}
    told = {folder: cards.card(folder, config) for folder, config in configs.items()}
    kinds = {folder.relative_to(home).as_posix(): str(config.get("network")) for folder, config in configs.items()}
    if "generator" in kinds:
        told[home] = cards.domain_card(home.resolve().name, kinds)
    return told


def inventory() -> pd.DataFrame:
    """Every network in `data/` and every public one that is missing: domain, network, state, commit, source.

    commit: of stx, by which it was trained; see `commit_of`. A missing network has a row for each file that would give
    it.
    """
    rows, home = [], data_dir()
    for folder in sorted(found for domain in home.glob("*") for found in folders(domain)):
        domain, *network = folder.relative_to(home).parts
        try:
            config = read_config(folder)
        except WeightsError:
            rows.append([domain, "/".join(network), "damaged: config.json is not readable", "", "?"])
            continue
        notes = config.get("notes") or {}
        source = one_line(notes.get("file") or f"trained, {notes.get('steps', '?')} steps")
        rows.append([domain, "/".join(network), state_of(folder), commit_of(config), source])
    present = {(row[0], row[1]) for row in rows}
    for public in PUBLIC:
        for name in public.networks:
            if (public.domain, name) not in present:
                rows.append([public.domain, name, "missing", "", f"{public.file}  {_addresses(public.where)}"])
    return pd.DataFrame(rows, columns=["domain", "network", "state", "commit", "source"])


def _addresses(where: str) -> str:
    """Places on the web as addresses that a terminal can open; other words as they are."""
    return "  ".join(f"https://{place}" if "." in place else place for place in where.split(", "))


def commit_of(config: dict) -> str:
    """The commit that a network's training says it ran from: "5bce42ff43", "4cd36c0560 + changes" where files of the
    package, the notebooks or the data differed from it, "" where none is on record.
    """
    notes = config.get("notes") or {}
    commit = str(notes.get("commit") or "")[:10]
    return f"{commit} + changes" if commit and notes.get("uncommitted_changes") is not False else commit


def state_of(folder: Path) -> str:
    """ "ok", "present, no checksum on record", or what is wrong with the weights of a folder."""
    path, expected = folder / "model.safetensors", read_config(folder).get("sha256")
    if not path.is_file():
        return "damaged: model.safetensors is missing"
    if expected is None:
        return "present, no checksum on record"
    return "ok" if sha256(path) == expected else "damaged: another checksum than when it was written"


def ship(net: nn.Module, folder: str | Path, log: pd.DataFrame, record: dict, *, bits: int | None = None) -> None:
    """Makes a trained network the one in `folder`, with its training log and the record of `figures.provenance`.

    Networks of a folder of pictures, the parameter `domain` of the record, remember which one it was. bits: see `save`.
    """
    rounding = {} if bits is None else {"mantissa_bits": bits}
    memory = {"origin": made} if (made := datasets.origin(record["parameters"].get("domain", ""))) else {}
    save(net, folder, notes={"steps": int(log["step"].max()), **rounding, **record, **memory}, bits=bits)
    write_text(Path(folder) / "log.csv", log.to_csv(index=False, float_format="%.5g"))


def _rounded(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    mantissa, exponent = torch.frexp(tensor.float())
    steps = 2.0 ** (bits + 1)  # of a mantissa in [0.5, 1), whose first bit is always set
    return torch.ldexp((mantissa * steps).round() / steps, exponent)


def _check_record(config: object) -> None:
    """Raises `InputError` for a value of another type than those that `save` and `figures.provenance` write."""
    if not isinstance(config, dict) or not isinstance(config.get("notes") or {}, dict):
        raise InputError("not a record of a network")
    notes = config["notes"] = config.get("notes") or {}
    for record, name, kind in (
        (config, "network", str),
        (config, "args", dict),
        (config, "sha256", str),
        (notes, "parameters", dict),
        (notes, "commit", str),
        (notes, "opts", dict),
    ):
        if record.get(name) is not None and not isinstance(record[name], kind):
            raise InputError(f"{name!r} is not of the type {kind.__name__}")


def read_config(folder: str | Path) -> dict:
    """The `config.json` of a network's folder. Raises `WeightsError` when it is missing or damaged."""
    path = Path(folder) / "config.json"
    try:
        config = read_json(path)
        _check_record(config)
        return config
    except FileNotFoundError:
        remedy = MADE_BY.get(path.parent.name, "this folder holds no network of ours (see `stx weights`)")
        raise WeightsError(f"{path}: missing; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not readable ({one_line(error)}); fetch it again") from None
