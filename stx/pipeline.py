"""The front door: a domain with its networks, pictures to codes and codes to pictures."""

import contextlib
import difflib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx import arguments, label_editing
from stx.baselines import stylespace
from stx.baselines.directions import COMPONENTS, FITTED, Directions, TokenMaps
from stx.checkpoints import hub, weights
from stx.detail import refinement
from stx.detail import registry as detail
from stx.detail.kept import Detail, Inversion, checked_codes, count_of, joined, load_inversion, split_codes
from stx.detail.manifold import Manifold, Strangeness
from stx.domains import datasets, images
from stx.encoder import Encoder
from stx.files.checksums import fingerprint
from stx.files.errors import EditError, InputError, WeightsError
from stx.files.places import data_dir
from stx.inversion import InversionLoss
from stx.perception.identity import IdentityNet
from stx.perception.lpips import load_lpips
from stx.runtime import pick_device, plain_torch
from stx.stylegan2.networks import Generator, Styles

GENERATE_BATCH = 64
MAX_ABS_INPUT = 10.0  # a generator overshoots [-1, 1] by less; more is another range, such as 0..255
VIEWED = 8  # pictures drawn at full size at a time
CHANNEL_CODES = 2000  # random codes over which the deviation of a StyleSpace channel is taken
MAX_STRENGTH = 1e4  # of an edit; codes of far larger ones are no numbers any more
WHOLE, TWICE, STEPS = 1.0, 2.0, 81  # strengths of edits: the usual one, the largest, and how many are tried

Codes = Tensor | dict[str, Tensor] | Inversion  # W+ codes, StyleSpace vectors by layer, or codes with detail


@dataclass(frozen=True)
class Editable:
    """Something that `Pipeline.edit` can change.

    name: as `edit` takes it; where there are several, with ":0" to ":count - 1" behind it, and StyleSpace's channels
    with ":LAYER_CHANNEL". kind: "attribute", "direction" (of a converted file), "component" (fitted to the generator)
    or "channel". unit: what strength 1 is.
    """

    name: str
    kind: str
    count: int
    unit: str


@dataclass(frozen=True)
class Pipeline(hub.Pretrained):
    """Generator, encoder and other networks of a domain, frozen, on one device. Made by `stx.load`."""

    domain: datasets.Domain
    generator: Generator
    encoder: Encoder
    device: str = "cpu"
    folder: Path = field(default_factory=data_dir)
    encoder_name: str = "style_transformer"  # its folder in there
    _fitted: dict[str, Directions] = field(default_factory=dict, repr=False, compare=False)

    @plain_torch()
    def images(self, pictures) -> Float[Tensor, "b 3 h w"]:
        """Pictures of any kind as the encoder takes them, at the domain's `input_size`.

        pictures: one or several of paths of files and folders, PIL images and uint8 `[h, w, 3]` arrays; or floats in
        [-1, 1] `[b, 3, h, w]` of that size. Raises `ImageError` naming an unusable file, `ValueError` for the rest.
        """
        height, width = self.domain.input_size
        if isinstance(pictures, Tensor):
            if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (3, height, width):
                raise InputError(f"pictures of shape {tuple(pictures.shape)}: expected [batch, 3, {height}, {width}]")
            if not pictures.is_floating_point() or not (pictures.abs() <= MAX_ABS_INPUT).all():
                raise InputError(f"pictures of type {pictures.dtype} or range: expected floats in [-1, 1]")
            return pictures.to(self.device, torch.float32)
        one = isinstance(pictures, str | bytes) or not isinstance(pictures, Iterable)
        one = one or (isinstance(pictures, np.ndarray) and pictures.ndim < 4)
        arrays = [array for picture in ([pictures] if one else pictures) for array in images.arrays(picture)]
        if not arrays:
            raise InputError("no pictures given")
        return images.to_tensor(np.stack([images.resize(a, height, width) for a in arrays])).to(self.device)

    @plain_torch()
    @torch.no_grad()
    def invert(self, pictures) -> Float[Tensor, "b num_ws w_dim"]:
        """The W+ codes of pictures (see `images` for what is taken)."""
        parts = self.images(pictures).split(GENERATE_BATCH)
        return torch.cat([self.encoder.invert(part, self.generator, self.domain.view) for part in parts])

    @plain_torch()
    @torch.no_grad()
    def invert_detail(self, pictures, method: str = "feature_editor", *, steps: int | None = None) -> Inversion:
        """Codes of pictures, and what they lose kept beside them (`stx.detail`): `synthesize` and `edit` take both.

        method: one of `stx.detail.registry.METHODS`; steps: of "search" and "tuning", which search. Raises
        `InputError` for an unknown method, `EditError` for no steps, `WeightsError` for a domain without its network.
        """
        steps = None if steps is None else arguments.count(steps, "steps")
        how, found, image = self.detail(method), [], self.images(pictures)
        for part, ws in zip(image.split(VIEWED), self.invert(image).split(VIEWED), strict=True):
            if method in refinement.STEPS:
                loss = InversionLoss(load_lpips("alex", self.device), self.identity())
                options = {"steps": steps, "view": self.domain.view}
                found.append(refinement.refined(self.generator, loss, part, ws, method, **options))
            else:
                found.append(Inversion(ws, how.keep(self.generator, part, ws), method, how))
        return replace(joined(found), networks=self._networks(method, how))

    def detail(self, method: str) -> Detail:
        """The network of a method that keeps detail, or what stands for it. Raises as `invert_detail` does."""
        made = detail.named(method)
        if made.trained:
            return self.network(f"{detail.FOLDER}/{method}")
        return made.network(side=max(self.domain.input_size)).to(self.device)

    def load_inversion(self, path: str | Path) -> Inversion:
        """What `Inversion.save` wrote. Raises `WeightsError` for another file, and for one of other networks."""
        return load_inversion(path, self.restored, self.device)

    @plain_torch()
    def restored(self, tensors: dict[str, Tensor], method: str, networks: Mapping[str, str]) -> Inversion:
        """An inversion from `Inversion.tensors` of a file; networks: their fingerprints there.

        Raises `WeightsError` for other ones than here, `InputError` for tensors that do not fit.
        """
        how = self.detail(method)
        own = self._networks(method, how)
        for what in own.keys() & networks.keys():
            if networks[what] != own[what]:
                told = f"kept for another {what} ({networks[what]} there, {own[what]} here)"
                raise WeightsError(f"{told}; load the networks that made it, or invert the pictures again")
        return Inversion.of(tensors, method, how, own, self.generator)

    def _networks(self, method: str, how: Detail) -> dict[str, str]:
        return {"generator": self._fingerprint, method: fingerprint(how)}

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.generator)

    @plain_torch()
    @torch.no_grad()
    def synthesize(self, codes: Codes | np.ndarray, *, noise: str = "const") -> Float[Tensor, "b 3 h w"]:
        """The pictures of W+ codes `[b, num_ws, w_dim]` or of StyleSpace vectors (`Generator.styles`), in [-1, 1].

        Those of an `Inversion` come with what it keeps, and with the checkpoint's own noise. W+ codes may be an array
        and of any type of float. Raises `InputError` for anything else, and for codes of another shape or too large.
        """
        parts, g = split_codes(checked_codes(codes, self.generator), GENERATE_BATCH), self.generator
        drawn = torch.cat([part.draw(g) if isinstance(part, Inversion) else g(part, noise=noise) for part in parts])
        if not drawn.isfinite().all():
            raise InputError("codes too large, or with detail that is not finite: no picture comes of them")
        return drawn.clamp(-1, 1)

    def redraw(self, found: Inversion, edit: Callable[[Tensor], Codes]) -> Float[Tensor, "b 3 h w"]:
        """The pictures of an inversion whose codes are edited, drawn with what was kept."""
        return self.synthesize(found.edit(edit(found.ws)))

    @plain_torch()
    def reconstruct(self, codes: Codes) -> Float[Tensor, "b 3 h w"]:
        """The pictures of codes as encoders see them: what is compared with `images`."""
        parts = split_codes(checked_codes(codes, self.generator), VIEWED)
        return torch.cat([self.domain.view(self.synthesize(part)) for part in parts])

    @plain_torch()
    @torch.no_grad()
    def distortion(self, pictures, codes: Codes | None = None) -> Float[Tensor, "b"]:
        """LPIPS-Alex of pictures to those of their codes (default: as `invert` gives them)."""
        image, alex = self.images(pictures), load_lpips("alex", self.device)
        codes = self._codes_of(image, codes)
        pairs = zip(image.split(GENERATE_BATCH), split_codes(codes, GENERATE_BATCH), strict=True)
        return torch.cat([alex(part, self.reconstruct(own)).flatten() for part, own in pairs])

    @cached_property
    def manifold(self) -> Manifold | None:
        """What tells pictures from elsewhere; None where the domain has none for the codes of this encoder."""
        if "manifold" not in self.present():
            return None
        net = self.network("manifold")
        return net if net.config["encoder"] == fingerprint(self.encoder) else None

    def strangeness(self, pictures, ws: Float[Tensor, "b num_ws w_dim"] | None = None) -> Strangeness:
        """How far pictures are from the domain (`stx.detail.manifold`), and warnings in words for those that are far.

        ws: their codes, where they are known. Raises `WeightsError` where there is no `manifold` for this encoder.
        """
        if self.manifold is None:
            raise WeightsError(
                f"{self.folder}/manifold: missing, or of another encoder; make it (`stx train manifold`)"
            )
        image = self.images(pictures)
        ws = self._codes_of(image, ws.ws if isinstance(ws, Inversion) else ws)
        with torch.no_grad():
            return self.manifold(ws, self.distortion(image, ws))

    def _codes_of(self, image: Float[Tensor, "b 3 h w"], codes: Codes | None) -> Codes:
        """The codes of pictures: those given, which must be as many, else as `invert` gives them."""
        codes = self.invert(image) if codes is None else checked_codes(codes, self.generator)
        if count_of(codes) != len(image):
            raise InputError(f"{count_of(codes)} codes for {len(image)} pictures: expected one for each")
        return codes

    @plain_torch()
    @torch.no_grad()
    def sample(self, count: int, *, psi: float = 1.0, seed: int = 0) -> Float[Tensor, "count num_ws w_dim"]:
        """Codes of `count` random z, truncated towards the average by `psi` (1: not at all).

        Raises `EditError` for what is no number, or for less than one code.
        """
        count, seed = arguments.count(count, "count"), arguments.number(seed, "seed", operator.index)
        if not -(2**63) <= seed < 2**64:
            raise EditError(f"seed {seed}: expected one of 64 bits")
        g, psi = self.generator, arguments.number(psi, "psi")
        z = torch.randn(count, g.w_dim, generator=torch.Generator().manual_seed(seed)).to(self.device)
        return checked_codes(g.broadcast(g.truncate(g.mapping(z), psi, g.w_avg())), g)

    @plain_torch()
    @torch.no_grad()
    def edit(
        self,
        ws: Float[Tensor, "b num_ws w_dim"] | Styles | Inversion,
        *,
        add: str | Sequence[str] = (),
        remove: str | Sequence[str] = (),
        strength: float = WHOLE,
        until: float | None = None,
        like: Float[Tensor, "1 num_ws w_dim"] | None = None,
        tokens: tuple[int, int] | None = None,
    ) -> Codes:
        """W+ codes, or an inversion, with attributes or directions added and removed one after the other.

        add, remove: a name that `editable` lists, or several. Attributes are edited by matched pairs
        (`stx.matched_pairs`), and a code that has one already is not given it again; "age" and "ganspace:2" are
        directions (`directions`), "sefa:0" components; "stylespace:6_501" is a channel, and the result then StyleSpace
        vectors. strength: in units of each edit (see `editable`): of an attribute, 1 is what it changes on average.
        tokens: the first and the last that change. Of attributes alone: until, a probability: the strength grows, up to
        twice a whole edit, until the classifier of pictures gives it to the wanted label; like, the code of a
        reference, whose kind of the added attributes is taken (which glasses). Raises `EditError` for a name that is
        unknown or an attribute that the reference lacks, `InputError` for directions of another generator,
        `WeightsError` for damaged ones.
        """
        if isinstance(ws, Inversion):
            options = {"add": add, "remove": remove, "strength": strength, "until": until, "like": like}
            return ws.edit(self.edit(ws.codes, **options, tokens=tokens))
        start = ws = checked_codes(ws, self.generator)
        if isinstance(ws, dict):
            raise EditError("vectors of StyleSpace: edits of their channels come last, in one call with the others")
        if like is not None:
            like = checked_codes(like.ws if isinstance(like, Inversion) else like, self.generator)
            if len(like) != 1:
                raise EditError(f"like: {len(like)} codes; expected that of one reference")
        strength = arguments.number(strength, "strength")
        if abs(strength) > MAX_STRENGTH:
            raise EditError(f"strength {strength}: expected at most {MAX_STRENGTH:g} (1 is a whole edit)")
        add, remove = arguments.names(add, "add"), arguments.names(remove, "remove")
        if like is not None and not add:
            raise EditError("like: the kind of what is added, and nothing is")
        both = [name for name in add if name in remove]
        if both:
            raise EditError(f"{both[0]}: both to add and to remove")
        until = None if until is None else arguments.number(until, "until")
        if until is not None and not 0 < until < 1:
            raise EditError(f"until a probability of {until}: expected one between 0 and 1")
        channels = []
        for name, target in [*((name, 1.0) for name in add), *((name, 0.0) for name in remove)]:
            signed = strength if target else -strength
            if name.startswith("stylespace:"):
                if until is not None or like is not None or tokens is not None:
                    raise EditError(f"{name}: a channel of one layer, which until, like and tokens are not for")
                place = stylespace.channel(self.generator, name.partition(":")[2], self.sample(CHANNEL_CODES))
                channels.append((place, signed))
            elif (step := self._step(name, ws)) is not None:
                if until is not None or like is not None:
                    raise EditError(f"{name}: a direction, not an attribute; until and like are for attributes")
                ws = ws + signed * step
            else:
                ws = self._change_attribute(ws, name, target, strength, until, like)
        if tokens is not None:
            first, last = arguments.places(tokens, self.generator.num_ws - 1)
            ws = torch.cat([start[:, :first], ws[:, first : last + 1], start[:, last + 1 :]], 1)
        if not channels:
            return ws
        styles = {layer: style.clone() for layer, style in self.generator.styles(ws).items()}
        for (layer, channel, spread), signed in channels:
            styles[layer][:, channel] += signed * spread
        return styles

    def _change_attribute(self, ws, name: str, target: float, strength: float, until, like) -> Tensor:
        matched, reader = self._editors
        k, seen = (label_editing.position(name, net.attributes) for net in self._editors)
        shows, index, wanted = reader(ws)[0][:, seen] > 0, [k] * len(ws), [target] * len(ws)
        if like is not None and target:
            if not reader(like)[0][0, seen] > 0:
                raise EditError(f"the reference does not show {name}")
            change = matched.carry(ws, like.expand_as(ws), index, (shows, torch.ones_like(shows)))
        else:
            change = matched(ws, index, wanted) * (shows != bool(target))[:, None, None]
        length = torch.full((len(ws),), float(strength), device=ws.device)
        if until is not None:
            asked = [seen] * len(ws), wanted, until
            found = label_editing.strength_for(reader, ws, change, *asked, most=TWICE, steps=STEPS)
            length = found.nan_to_num(TWICE).maximum(length)
        return label_editing.edit(ws, change, length)

    def editable(self) -> list[Editable]:
        """Everything that `edit` can change here: attributes, converted directions, components, channels.

        Attributes need networks that were trained with labels; components are fitted when they are first used, to any
        generator. Directions of another generator are left out. Raises `WeightsError` for damaged files.
        """
        found = []
        if "matched_pairs" in self.present():
            found += [Editable(name, "attribute", 1, "a whole edit") for name in self._editors[0].attributes]
        for name in sorted(
            name.removeprefix("directions-") for name in self.present() if name.startswith("directions-")
        ):
            with contextlib.suppress(InputError):
                net = self._directions(name)
                found.append(Editable(name, "direction", net.count, _unit(net)))
        channels = sum(layer.modulation.bias.numel() for _, layer, _ in self.generator.style_layers())
        w_dim = self.generator.w_dim
        free = [
            Editable("ganspace", "component", min(COMPONENTS, w_dim), "a standard deviation of the component"),
            Editable("sefa", "component", w_dim, "a length of 1 in W"),
            Editable("stylespace", "channel", channels, "a standard deviation of the channel"),
        ]
        return found + [e for e in free if e.name not in {known.name for known in found}]

    def directions(self, name: str) -> Float[Tensor, "count num_ws w_dim"]:
        """Directions that `stx convert` read (InterFaceGAN's, GANSpace's, ...), of unit length, for every token.

        name: of the file they came from, without its ending; "sefa" and "ganspace" are fitted to the generator where
        there is no such file. Raises `EditError` for an unknown name, `InputError` with both shapes for those of
        another generator.
        """
        net = self._directions(str(name))
        if not isinstance(net, Directions):
            raise EditError(f"{name}: gives each code a direction of its own; `edit` takes it")
        return net.directions.expand(-1, self.generator.num_ws, -1)

    def _directions(self, name: str) -> Directions | TokenMaps:
        if f"directions-{name}" not in self.present():
            if name not in FITTED:
                raise EditError(self._unknown(name))
            if name not in self._fitted:
                self._fitted[name] = FITTED[name](self.generator).to(self.device)
            return self._fitted[name]
        net = self.network(f"directions-{name}")
        if not isinstance(net, Directions | TokenMaps):
            raise WeightsError(f"{self.folder}/directions-{name}: a {type(net).__name__}, not directions")
        net.check_fit(self.generator)
        return net

    def _step(self, name: str, ws: Float[Tensor, "b num_ws w_dim"]) -> Float[Tensor, "b num_ws w_dim"] | None:
        """What strength 1 of a direction adds to codes; None for the name of an attribute."""
        kind, colon, number = name.partition(":")
        if kind not in FITTED and f"directions-{kind}" not in self.present():
            labelled = "matched_pairs" in self.present()
            if name in (self._editors[0].attributes if labelled else self.domain.attributes):
                return None
            raise EditError(self._unknown(name))
        net = self._directions(kind)
        number = number if colon else "0"
        if not number.isdecimal() or len(number) > 9 or int(number) >= net.count:
            raise EditError(f"{name}: {kind} has the directions 0 to {net.count - 1}")
        return net.moves(ws, int(number))

    def _unknown(self, name: str) -> str:
        known = {e.name: e.count for e in self.editable()}
        lower = {k.lower(): k for k in known}
        near = [lower[k] for k in difflib.get_close_matches(name.partition(":")[0].lower(), lower, n=1, cutoff=0.45)]
        there = (f"{k}:0 to {k}:{n - 1}" if n > 1 and k != "stylespace" else k for k, n in known.items())
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"nothing called {name!r} to edit{hint}; there is: {', '.join(there)}".replace(
            "stylespace", "stylespace:LAYER_CHANNEL"
        )

    @cached_property
    def _editors(self) -> tuple[nn.Module, nn.Module]:
        return tuple(weights.load(self.folder / name, self.device) for name in ("matched_pairs", "picture_classifier"))

    def network(self, name: str) -> nn.Module:
        """A network of the domain (classifier, ...). Raises `WeightsError` without, and for one of other labels."""
        net = weights.load(self.folder / str(name), self.device)
        label_editing.check_labels(self.folder / name, getattr(net, "attributes", ()), self.domain.attributes)
        return net

    def present(self) -> set[str]:
        """The names of the networks in the domain's folder."""
        return {path.parent.name for path in self.folder.glob("*/config.json")}

    def identity(self) -> IdentityNet | None:
        """The domain's identity network, None where the domain has none."""
        return self.network("identity") if (self.folder / "identity").is_dir() else None


def load(
    domain: str | Path = "avatars",
    *,
    device: str | torch.device = "auto",
    folder: str | Path | None = None,
    encoder: str = "style_transformer",
    generator: str = "generator",
) -> Pipeline:
    """The pipeline of a domain, with its trained weights.

    domain: "avatars", "ffhq", "cars", or a folder of pictures. device: see `pick_device`. folder: of its networks
    (default `data/<domain>/`). encoder: its folder in there, e.g. "psp", "e4e" or "restyle_psp" of converted files.
    generator: likewise, e.g. "tuned-anna" of one that was tuned to a picture.
    Raises `DomainError` for an unknown domain, `WeightsError` for missing or unfit weights.
    """
    device = pick_device(device)
    name = datasets.short_name(domain)
    explicit, folder = folder is not None, Path(str(folder or data_dir() / name))
    draws = weights.load(folder / str(generator), device)
    net = weights.load(folder / str(encoder), device)
    found = datasets.load(domain, resolution=getattr(draws, "size", None), same_folder=not explicit)
    check_fit(draws, net, found)
    return Pipeline(found, draws, net, device, folder, encoder)


def _unit(net: Directions | TokenMaps) -> str:
    if isinstance(net, TokenMaps):
        return "a whole edit"
    return "a length of 1 in W" if bool((net.std == 1).all()) else "a standard deviation of the component"


def check_fit(generator: nn.Module, encoder: nn.Module, domain: datasets.Domain) -> None:
    """Raises `WeightsError` when networks of different sizes are combined."""
    if not isinstance(generator, Generator):
        raise WeightsError(f"a {type(generator).__name__} is no generator of pictures")
    if generator.size != domain.resolution:
        raise WeightsError(f"the generator draws {generator.size} pixels, the domain has {domain.resolution}")
    if not isinstance(encoder, Encoder):
        raise WeightsError(f"a {type(encoder).__name__} is no encoder of pictures")
    if (encoder.num_ws, encoder.w_dim) != (generator.num_ws, generator.w_dim):
        raise WeightsError(
            f"the encoder gives codes of {encoder.num_ws} x {encoder.w_dim}, "
            f"the generator takes {generator.num_ws} x {generator.w_dim}"
        )
