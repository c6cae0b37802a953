"""A domain's networks as one folder that can be published and fetched, laid out as huggingface_hub's mixin does.

At the top `config.json` (what the domain is) and `README.md` (its card), below a folder for each network with the
mixin's `config.json` and `model.safetensors`. Local folders need no network and no account.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from stx.checkpoints import cards, weights
from stx.domains import datasets
from stx.files.atomic import atomic_write, write_text
from stx.files.checksums import fingerprint
from stx.files.errors import WeightsError
from stx.files.outputs import Kind, claim_files, claim_networks
from stx.files.places import safe_name
from stx.files.untrusted import one_line, read_json
from stx.runtime import pick_device

FILES = ["config.json", "README.md", "*/config.json", "*/model.safetensors", "*/README.md"]


class Pretrained:
    """`save_pretrained` and `from_pretrained` of a `Pipeline`."""

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False
    ) -> Path:
        """Writes the domain as one folder, in the layout of huggingface_hub's mixin.

        The networks of the pipeline's folder are copied; an encoder or generator that was replaced is saved as it is.
        push_to_hub: also into the repository `repo_id` ("owner/name", default the folder's name). Raises `FileError`
        for files that stx did not make.
        """
        used = {"generator": self.generator, self.encoder_name: self.encoder}
        others = {path.parent.name for path in self.folder.glob("*/config.json")} - {"discriminator"}
        found = save(save_directory, self.domain, self.folder, used, others)
        if push_to_hub:
            push(found, repo_id or found.name)
        return found

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: str | torch.device = "auto", **options
    ) -> "Pretrained":
        """The pipeline of a folder of `save_pretrained`, or of a repository "owner/name" that holds such a folder.

        options: of huggingface_hub (revision, token, cache_dir, local_files_only, force_download); nothing in the
        files is executed. Raises `WeightsError` for a folder of another kind and where the hub cannot be reached.
        """
        folder = find(pretrained_model_name_or_path, **options)
        domain, name = read(folder)
        device = pick_device(device)
        generator, encoder = (weights.load(folder / part, device) for part in ("generator", name))
        return cls(domain, generator, encoder, device, folder, encoder_name=name)


def save(
    folder: str | Path, domain: datasets.Domain, home: Path, used: dict[str, nn.Module], others: Iterable[str]
) -> Path:
    """Writes a domain. used: generator and encoder by their folders in `home`; others: further folders in there.

    A network in use that is the one in `home` is copied with its notes, another one is saved in float32. Raises
    `FileError` for files that stx did not make.
    """
    folder = Path(folder)
    sources = {Path(name).name: name for name in used}  # compared/psp becomes psp
    names = [*sources, *(name for name in sorted(others) if name not in sources)]
    claim_files([folder / "config.json", folder / "README.md"], kind=Kind.DOMAIN)
    claim_networks(folder / name for name in names)
    told = {
        "made_by": "stx",
        "library_name": "stx",
        "domain": domain.name,
        "resolution": domain.resolution,
        "input_size": list(domain.input_size),
        "attributes": list(domain.attributes),
        "encoder": next(name for name in sources if name != "generator"),
        "networks": names,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(told, indent=2))
    for name in names:
        source = sources.get(name, name)
        net = used.get(source)
        if net is not None and not _same(net, home / source):
            weights.save(net, folder / name, dtype=torch.float32, notes={"parameters": {"domain": domain.name}})
        else:
            _copy(home / source, folder / name)
    kinds = {name: weights.read_config(folder / name) for name in names}
    for name, config in kinds.items():
        cards.write(folder / name, cards.card(folder / name, config))
    use = 'from stx import Pipeline\n\npipe = Pipeline.from_pretrained("FOLDER or owner/name")'
    named = {name: config["network"] for name, config in kinds.items()}
    cards.write(folder, cards.domain_card(domain.name, named, use))
    return folder


def find(place: str | Path, **options) -> Path:
    """The folder of a domain: `place` itself, or what huggingface_hub fetches of a repository "owner/name".

    options: revision, token, cache_dir, local_files_only, force_download. Only JSON, Markdown and safetensors are
    fetched. Raises `WeightsError` for what is neither, and where the hub cannot be reached.
    """
    if Path(place).is_dir():
        return Path(place)
    if str(place).count("/") != 1 or str(place).startswith((".", "/")):
        raise WeightsError(f"{place}: no such folder, and no repository of a hub (owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise WeightsError(f"{place}: no such folder; repositories need `pip install huggingface_hub`") from None
    try:
        return Path(snapshot_download(str(place), allow_patterns=FILES, **options))
    except Exception as error:  # of the network, of the hub, of the cache
        raise WeightsError(f"{place}: cannot be fetched ({one_line(error)}); a local folder needs no network") from None


def read(folder: Path) -> tuple[datasets.Domain, str]:
    """The domain that a folder describes, and its encoder's name. Raises `WeightsError` for another kind of folder."""
    path = folder / "config.json"
    try:
        told = read_json(path)
        name, resolution, encoder = safe_name(told["domain"]), int(told["resolution"]), str(told["encoder"])
        height, width = map(int, told["input_size"])
        if min(resolution, height, width) < 1:
            raise ValueError(f"pictures of {height} x {width}, drawn at {resolution}")
        attributes = tuple(map(str, told["attributes"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        remedy = "a domain is saved by `pipe.save_pretrained(folder)`"
        raise WeightsError(f"{path}: not the record of a domain ({one_line(error)}); {remedy}") from None
    if encoder not in {child.name for child in folder.iterdir()}:
        raise WeightsError(f"{path}: its encoder {encoder!r} is not in the folder; fetch it again")
    if name in datasets.SIZES:
        return datasets.load(name, resolution=resolution), encoder
    split = datasets.without_pictures(folder)
    return datasets.Domain(name, resolution, (height, width), attributes, split), encoder


def push(folder: Path, repo_id: str, **options) -> None:
    """Uploads a folder of `save` into the repository `repo_id` of the hub, which is made where it is missing."""
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    api.create_repo(repo_id, exist_ok=True, **options)
    api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=FILES)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        if not (target / file).exists() or not (target / file).samefile(source / file):
            with atomic_write(target / file) as part:
                shutil.copyfile(source / file, part)


def _same(net: nn.Module, folder: Path) -> bool:
    return (folder / "config.json").is_file() and fingerprint(net) == fingerprint(weights.load(folder))
