"""Cards: what a network is, and what a domain's networks and pictures are, in the form that model hubs read.

Model cards (Mitchell et al. 2019, arXiv 1810.03993) and data cards (Gebru et al. 2018, arXiv 1803.09010), made from
each `config.json`. What no record tells is not written: numbers of quality stand in the tables, which a card leads to.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors

from stx.domains import avatars, datasets
from stx.files.atomic import write_text
from stx.files.errors import WeightsError
from stx.files.outputs import made_by_stx
from stx.files.untrusted import one_line

PAPER = "[Style Transformer for Image Inversion and Editing](https://arxiv.org/abs/2203.07932) (Hu et al., CVPR 2022)"
KINDS = {  # by class: what it is, and the table that measures it on the avatars
    "generator": ("StyleGAN2 generator: style codes to pictures", "01_fd_vgg16"),
    "discriminator": ("StyleGAN2 discriminator: what the generator is trained against", ""),
    "projected_discriminator": ("Discriminator on frozen features: what the generator is trained against", ""),
    "style_transformer": ("Style Transformer encoder: pictures to the style codes of a generator", "03_quality"),
    "psp": ("Encoder of pictures to the style codes of a generator", "04_table"),
    "classifier": ("Classifier of what a picture shows", "00_classifier"),
    "judge": ("Classifier of what a picture shows, which no training has used: it judges edits", "00_classifier"),
    "identity": ("Identity of a picture: a vector, by cosine", "00_verification"),
    "mobileface": ("Identity of a photographed face: a vector, by cosine", "10_verification"),
    "moco": ("Features of a picture (MoCo v2), where no identity network fits: a vector, by cosine", ""),
    "latent_classifier": ("Classifier of what the picture of a style code shows", "05_latent_classifier"),
    "matched_pairs": ("Edits of style codes, learnt from labels alone as treatment effects", "06_landing"),
    "reference_editor": ("Carries an attribute of one style code over to another", "07_reference_means"),
    "directions": ("Directions of edits, the same for every style code", ""),
    "token_maps": ("Edits of style codes, an affine map for each token", ""),
    "feature_encoder": ("Reads features of a picture that its style codes lose", "11_table"),
    "feature_editor": (
        "Reads features of a picture that its style codes lose, and edits them with the codes",
        "11_edits",
    ),
    "hfgi": ("HFGI: what an inversion lost, consulted anew for every edit", "11_table"),
    "hyperstyle": ("HyperStyle: offsets of the generator's weights for a picture", "11_table"),
    "manifold": ("Where ordinary style codes lie, and how strange a picture is", "11_elsewhere"),
}
SHELVES = {"compared": "04_table", "detail": ""}  # folders between a domain and its networks; the table of all of them
SPLITS = ", ".join(f"{name} {count:,}" for name, count in avatars.SPLITS.items())
AVATARS = f"""64-px cartoon faces that are drawn from labels as they are asked for (`stx/domains/avatars.py`), so that
every label is exact and the truth of every edit can be drawn. Splits by a hash of the person, no person in two:
{SPLITS}. Labels depend on each other on purpose (who is bald has no hair
colour, beards avoid long hair); the joint distribution is in `data/README.md`. Artwork: *Avataaars* by Pablo Stanley
(https://avataaars.com), free for personal and commercial use, through DiceBear. No photograph of a person was used."""
LIMITS = """Networks of a domain fit each other and no others: codes of another generator mean nothing here. Pictures of
another kind are not refused, they are drawn as the nearest that the generator knows, with a warning where `manifold` is
there. Labels are of drawings; nothing here recognises, or says anything about, people."""
PERSONS = """Of photographed faces, for telling how much an edit or an inversion keeps of a person. Its cosines do not
compare with ArcFace's, and it is neither made nor tested for finding out who somebody is."""
FILE = "README.md"
END = "Made from `config.json` by stx with `stx cards`."  # by which `made_by_stx` knows it


def card(folder: str | Path, config: Mapping) -> str:
    """The card of a network's folder as Markdown; config: what its `config.json` says.

    Raises `WeightsError` where the weights are missing or damaged.
    """
    folder = Path(folder).resolve()
    kind, notes = config.get("network"), config.get("notes") or {}
    run = notes.get("parameters") or {}
    domain, name = place(folder, run)
    what, table = KINDS.get(kind, (f"{kind}: a network of the package", ""))
    table = SHELVES.get(name.split("/")[0]) or table if "/" in name else table
    facts = {
        "class, arguments": f"`{kind}`, {_listed(config.get('args') or {})}",
        "numbers": f"{_count(folder / 'model.safetensors'):,}, in `model.safetensors`",
        "SHA-256": f"`{config.get('sha256', 'not on record')}`",
        "made": _made(notes, run, kind),
        "code": f"commit `{notes['commit'][:12]}`" if notes.get("commit") else "not on record",
        "parameters of the run": _listed(run) or "not on record",
    }
    drawn, up = domain == "avatars", "../" * len(name.split("/"))
    return _page(
        _head("other" if notes.get("file") and kind != "mobileface" else "mit", kind),
        f"# {domain}/{name}",
        f"{what}. For {PAPER}.",
        "\n".join(["| | |", "|---|---|", *(f"| {fact} | {_cell(text)} |" for fact, text in facts.items())]),
        f"## Use\n\n```python\n{_use(domain, name, kind)}\n```",
        f"## Data\n\nAvatars, cartoon faces drawn from labels: [data card]({up}{FILE})." if drawn else "",
        f"## Results\n\n`figures/{table}.md` of the repository." if drawn and table else "",
        f"## Limits\n\n{PERSONS if kind == 'mobileface' else LIMITS}",
    )


def domain_card(domain: str, networks: Mapping[str, str], use: str = "") -> str:
    """The card of a domain's folder as Markdown: its networks and, of avatars, its pictures.

    networks: the class of each by its folder in there; use: Python that loads `pipe` (default: `stx.load`).
    """
    rows = [f"| [{name}]({name}/README.md) | {KINDS.get(kind, (kind,))[0]} |" for name, kind in networks.items()]
    draws = 'ws = pipe.invert(["picture.png"])\nimage = pipe.synthesize(ws)'
    labels = ", ".join(name.replace("_", " ") for name in avatars.ATTRIBUTES)
    return _page(
        _head("mit" if domain == "avatars" else "other", "image-editing"),
        f"# {domain}",
        f"Networks of the domain {domain}, for {PAPER}.",
        f"```python\n{use or _load(domain)}\n{draws}\n```",
        "\n".join(["| network | is |", "|---|---|", *rows]),
        f"## Data\n\n{AVATARS}\n\nLabels: {labels}." if domain == "avatars" else "",
        f"## Limits\n\n{LIMITS}",
    )


def write(folder: str | Path, text: str) -> None:
    """`README.md` in a folder; one that stx did not make stays."""
    path = Path(folder) / FILE
    if not path.exists() or made_by_stx(path):
        write_text(path, text)


def is_there(folder: str | Path, text: str) -> bool:
    """Whether a folder has this card, or a `README.md` that stx did not make."""
    path = Path(folder) / FILE
    return path.exists() and (not made_by_stx(path) or path.read_text(encoding="utf-8") == text)


def place(folder: Path, run: Mapping) -> tuple[str, str]:
    """The domain of a network's folder, and the folder's name in there ("psp", "compared/psp")."""
    depth = 2 if folder.parent.name in SHELVES else 1
    home, name = folder.parents[depth - 1], "/".join(folder.parts[-depth:])
    return Path(str(run.get("domain") or home.name)).name, name


def _page(*parts: str) -> str:
    return "\n\n".join(part for part in (*parts, END) if part) + "\n"


def _head(licence: str, *tags: str) -> str:
    return "\n".join(
        ["---", "library_name: stx", f"license: {licence}", "tags:", "- stx", *(f"- {t}" for t in tags), "---"]
    )


def _use(domain: str, name: str, kind: str) -> str:
    if kind == "mobileface":
        return (
            f'from stx.checkpoints import weights\n\nnet = weights.load("data/{domain}/{name}")  # frozen, in eval mode'
        )
    return f'{_load(domain)}\nnet = pipe.network("{name}")  # frozen, in eval mode'


def _load(domain: str) -> str:
    given = f'"{domain}"' if domain in datasets.SIZES else '"FOLDER OF PICTURES"'
    return f"import stx\n\npipe = stx.load({given})  # encoder and generator"


def _made(notes: Mapping, run: Mapping, kind: str) -> str:
    if notes.get("file"):
        licence = "MIT, `data/photographs/LICENSE`" if kind == "mobileface" else "under its authors' licence"
        return f"converted from `{notes['file']}` ({notes.get('kind', 'a public file')}; {licence})"
    by = run.get("notebook") or run.get("command") or "a run that is not on record"
    where = notes.get("device") or "an unknown device"
    return f"{notes.get('steps', '?')} steps by `{by}` on {where}, {str(notes.get('made', 'at an unknown time'))[:10]}"


def _listed(given: Mapping) -> str:
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
