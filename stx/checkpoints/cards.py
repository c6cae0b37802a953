"""Model cards: what a folder's network is, made from its `config.json`, in the form that model hubs read.

Mitchell et al. 2019 (arXiv 1810.03993). What no record tells is not written: numbers of quality stand in the tables,
which a card leads to.
"""

from pathlib import Path

import numpy as np
import safetensors

from stx.checkpoints.weights import read_config
from stx.files.atomic import write_text
from stx.files.errors import WeightsError
from stx.files.outputs import claim_files
from stx.files.untrusted import one_line

PAPER = "[Style Transformer for Image Inversion and Editing](https://arxiv.org/abs/2203.07932) (Hu et al., CVPR 2022)"
KINDS = {  # by network: what it is, and the table that measures it on the avatars
    "generator": ("StyleGAN2 generator: style codes to pictures", "01_fd_vgg16"),
    "discriminator": ("StyleGAN2 discriminator: what the generator is trained against", ""),
    "projected_discriminator": ("Discriminator on frozen features: what the generator is trained against", ""),
    "style_transformer": ("Style Transformer encoder: pictures to the style codes of a generator", "03_quality"),
    "psp": ("Encoder of pictures to the style codes of a generator", "04_table"),
    "classifier": ("Classifier of what a picture shows", "00_classifier"),
    "judge": ("Classifier of what a picture shows, which no training has used: it judges edits", "00_classifier"),
    "identity": ("Identity of a picture: a vector, by cosine", "00_verification"),
    "mobileface": ("Identity of a photographed face: a vector, by cosine", "10_verification"),
    "latent_classifier": ("Classifier of what the picture of a style code shows", "05_latent_classifier"),
    "matched_pairs": ("Edits of style codes, learnt from labels alone as treatment effects", "06_landing"),
    "reference_editor": ("Carries an attribute of one style code over to another", "07_reference_means"),
    "directions": ("Directions of edits, the same for every style code", ""),
}
AVATARS = """Avatars (`data/README.md`): 64-px cartoon faces drawn from labels. Their artwork, *Avataaars* by Pablo
Stanley (https://avataaars.com), is free for personal and commercial use. No photograph of a person was used."""
LIMITS = """Networks of a domain fit each other and no others: codes of another generator mean nothing here. Pictures of
another kind are not refused, they are drawn as the nearest that the generator knows. Labels are of drawings; nothing
here recognises, or says anything about, people."""


def card(folder: str | Path) -> str:
    """The card of a network's folder as Markdown. Raises `WeightsError` for a folder without a network."""
    folder = Path(folder)
    config = read_config(folder)
    notes, given = config.get("notes") or {}, config.get("args") or {}
    what, table = KINDS.get(config.get("network"), (f"{config.get('network')}: a network of the package", ""))
    run = notes.get("parameters") or {}
    domain = run.get("domain") or folder.resolve().parent.name
    drawn = domain == "avatars"
    facts = {
        "class, arguments": f"`{config.get('network')}`, {_listed(given)}",
        "numbers": f"{_count(folder / 'model.safetensors'):,}, in `model.safetensors`",
        "SHA-256": f"`{config.get('sha256', 'not on record')}`",
        "trained": _trained(notes, run),
        "code": f"commit `{notes['commit'][:12]}`" if notes.get("commit") else "not on record",
        "parameters of the run": _listed(run) or "not on record",
    }
    parts = [
        f"---\nlibrary_name: stx\nlicense: mit\ntags:\n- stx\n- {config.get('network')}\n---",
        f"# {domain}/{folder.name}",
        f"{what}. For {PAPER}.",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(text)} |" for name, text in facts.items())]),
        "## Use",
        f'```python\nimport stx\n\npipe = stx.load("{domain}")  # encoder and generator\n'
        f'net = pipe.network("{folder.name}")  # frozen, in eval mode\n```',
        f"## Data\n\n{AVATARS}" if drawn else "",
        f"## Results\n\n`figures/{table}.md` of the repository, with intervals." if drawn and table else "",
        f"## Limits\n\n{LIMITS}",
        "Made from `config.json` by stx as the folder was written.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(folder: str | Path) -> Path:
    """`README.md` in a network's folder. Raises `FileError` for one that stx did not make."""
    path = Path(folder) / "README.md"
    text = card(folder)
    claim_files([path])
    write_text(path, text)
    return path


def _trained(notes: dict, run: dict) -> str:
    if notes.get("file"):
        return f"converted from `{notes['file']}` ({notes.get('kind', 'a public file')})"
    by = run.get("notebook") or run.get("command") or "a run that is not on record"
    where = notes.get("device") or "an unknown device"
    return f"{notes.get('steps', '?')} steps by `{by}` on {where}, {str(notes.get('made', 'at an unknown time'))[:10]}"


def _listed(given: dict) -> str:
    """Settings in a line; of long lists the length."""
    told = []
    for name, value in given.items():
        long = isinstance(value, list | dict) and len(value) > 8
        told.append(f"{name} {f'{len(value)} values' if long else value}")
    return ", ".join(told)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _count(path: Path) -> int:
    try:
        with safetensors.safe_open(path, "np") as file:
            return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: damaged or missing ({one_line(error)}); fetch it again") from None
