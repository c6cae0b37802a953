"""The encoders that are compared: what each is made of. Data, backbone, losses and budget are the same for all.

Style Transformer (Hu et al. 2022) and its ablations; pSp (Richardson et al. 2021), e4e (Tov et al. 2021), ReStyle over
three of them (Alaluf et al. 2021), IDInvert's domain-guided encoder (Zhu et al. 2020).
"""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stx.baselines.e4e import Offsets, image_adversary, latent_adversary
from stx.baselines.psp import PSP
from stx.domains.datasets import Domain
from stx.encoder import Encoder
from stx.files.errors import InputError, StxError
from stx.files.untrusted import one_line
from stx.inversion import Extra
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Discriminator, Generator

COMPARED = "compared"  # in a domain's folder: encoders trained with one budget
SLOWER = 0.2  # the rate of e4e's latent discriminator, as a share of the encoder's


@dataclass(frozen=True, kw_only=True)
class EncoderSizes:
    """Of the compared encoders. widths, units: of the backbone, the last width being that of the codes.

    hidden: inside pSp's stacks, and a quarter of that inside feed-forward blocks; None: as published.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256)
    units: tuple[int, ...] = (2, 2, 2, 2)
    hidden: int | None = None


@dataclass(frozen=True)
class Method:
    """title: as tables have it; network: an `Encoder`, with options for its `for_generator`; extras: by name.

    claim: what the paper says of it beside the Style Transformer, in our words ("" where it says nothing). lr: of the
    training that is compared, by default the rate that was best for most methods (`make seeds` searches for it).
    """

    title: str
    network: type
    options: dict[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    claim: str = ""
    lr: float = 4e-3


REFINES, GROWS = {"head": "last map", "in_channels": 6}, {"progressive": True}
E4E_EXTRAS = ("offsets", "latent")  # what training e4e takes beside the losses
LOWER_DISTORTION = "The Style Transformer has lower distortion than {}"
FEWER_STAGES = "Three stages have lower distortion than fewer"
SELF_ATTENTION = "Self-attention between the queries lowers distortion"
FREE_TOKENS = "Queries as z through the mapping network have lower distortion than free tokens"


def _other(
    title: str, options: dict | None = None, extras: tuple[str, ...] = (), name: str = "", lr: float = Method.lr
) -> Method:
    return Method(title, PSP, options or {}, extras, LOWER_DISTORTION.format(name or title), lr)


def _ablation(title: str, options: dict, claim: str) -> Method:
    return Method(f"Style Transformer, {title}", StyleTransformer, options, claim=claim)


METHODS = {
    "style_transformer": Method("Style Transformer", StyleTransformer),
    "psp": _other("pSp"),
    "e4e": _other("e4e", GROWS, E4E_EXTRAS),
    "restyle_psp": _other("ReStyle (pSp)", REFINES),
    "restyle_e4e": _other("ReStyle (e4e)", REFINES | GROWS, E4E_EXTRAS, lr=2e-3),
    "restyle_style_transformer": Method("ReStyle (Style Transformer)", StyleTransformer, {"in_channels": 6}),
    "idinvert": _other("IDInvert encoder", {"head": "W+"}, ("image",), "IDInvert's encoder", lr=1e-3),
    "one_stage": _ablation("coarse only", {"stages": 1}, FEWER_STAGES),
    "two_stages": _ablation("coarse and medium", {"stages": 2}, FEWER_STAGES),
    "no_self_attention": _ablation("no self-attention", {"self_attention": False}, SELF_ATTENTION),
    "free_tokens": _ablation("free tokens", {"mapping": False}, FREE_TOKENS),
}


INVERTERS: dict[str, Callable[[Any], Any]] = {}  # of one's own, by name: from a pipeline to an `Inverter`
EDITORS: dict[str, Callable[[Any], Any]] = {}  # of one's own, by title: from the fitted `Methods` to a method


def register(
    name: str,
    *,
    encoder: Method | None = None,
    inverter: Callable[[Any], Any] | None = None,
    editor: Callable[[Any], Any] | None = None,
) -> None:
    """Adds a method of one's own to the tables, the figures, `stx train` and the explorer.

    encoder: trained, saved and loaded under `name` as the compared ones are. inverter: gives, for a pipeline, another
    way to invert (`stx.evaluation.inversions.Inverter`). editor: gives, for `stx.evaluation.editing.Methods`, a way to
    edit. Raises `InputError` where there is already another one of that name.
    """
    for table, own in ((METHODS, encoder), (INVERTERS, inverter), (EDITORS, editor)):
        if own is None:
            continue
        if name in table and table is METHODS and table[name].network.__module__.startswith("stx."):
            raise InputError(f"{name!r} is a method of the package; choose another name")
        table[name] = own


def add_own(path: str | Path) -> None:
    """Runs a Python file of one's own, which adds methods to the comparison; nothing where `path` is empty.

    The file calls `register` for each of its methods, and may import its neighbours. Raises `InputError` for a path
    that is no Python file, and with its line for what fails in it.
    """
    if not str(path):
        return
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"{path}: no such Python file")
    name, folder = f"own_{path.stem}", str(path.resolve().parent)  # a name that hides no other module
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except StxError:
        raise
    except (Exception, SystemExit) as error:  # a file of anybody
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {one_line(error)}; line {where.lineno} of {where.filename}"
        raise InputError(f"{path}: does not run ({told})") from error


def build_encoder(
    method: Method,
    generator: Generator,
    domain: Domain,
    sizes: EncoderSizes,
    *,
    steps: int,
    lr: float,
    device: str = "cpu",
) -> tuple[Encoder, list[Extra]]:
    """A new encoder of a method and what it needs beside the losses in a training of `steps` updates at a rate `lr`."""
    options = dict(method.options)
    if method.network is PSP:
        options |= {"input_side": max(domain.input_size), "hidden": sizes.hidden}
    elif method.network is StyleTransformer and sizes.hidden:
        options["feed_forward"] = 4 * sizes.hidden
    encoder = method.network.for_generator(generator, widths=sizes.widths, units=sizes.units, **options)
    return encoder, [_extra(name, encoder, generator, domain, steps, lr, device) for name in method.extras]


def _extra(
    name: str, encoder: Encoder, generator: Generator, domain: Domain, steps: int, lr: float, device: str
) -> Extra:
    if name == "offsets":
        return Offsets(encoder, steps=steps)
    if name == "latent":
        return latent_adversary(generator, lr=SLOWER * lr, device=device)
    sizes = {k: generator.config[k] for k in ("channel_base", "channel_max")}
    return image_adversary(Discriminator(size=max(domain.input_size), **sizes), lr=lr, device=device)
