"""Inversions that keep more of a picture than its codes, and can be edited by any edit of codes.

The paper's own limit: W+ loses details and what the generator does not know (Hu et al. 2022, section 5). Every method
of this room is a `Detail`: it keeps something of the picture, and draws it again with the codes or with edited ones.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.domains import images
from stx.files.atomic import atomic_write
from stx.files.config import Configured
from stx.files.errors import InputError, WeightsError
from stx.files.outputs import Kind, claim_files
from stx.files.untrusted import one_line
from stx.stylegan2.networks import Generator, Styles

Picture = Float[Tensor, "b 3 h w"]  # in [-1, 1], at the domain's `input_size`
Drawn = Float[Tensor, "b 3 size size"]
Ws = Float[Tensor, "b num_ws w_dim"]
Kept = dict[str, Tensor]  # what a method keeps of pictures, by name; the first axis of each is the picture
Pair = tuple[Tensor, Tensor]  # what should be drawn, and what was
Edit = Callable[[Tensor], Tensor]  # codes to edited codes

KEPT, EDITED = "kept.", "edited"  # how tensors of a file are called


@dataclass
class Practice:
    """What a network learns from in one update: pairs of pictures for the inversion losses, and a loss of its own."""

    pairs: list[Pair]
    own: dict[str, Tensor] = field(default_factory=dict)


class Detail(Configured, nn.Module):
    """Keeps what codes lose. This one keeps nothing: the picture of an inversion is that of its codes.

    side: pixels of the longer side of the pictures, as encoders see them (`Domain.input_size`).
    """

    def __init__(self, *, side: int):
        super().__init__()
        self.side = side

    def keep(self, generator: Generator, image: Picture, ws: Ws) -> Kept:
        """What is kept of pictures beside their codes."""
        return {}

    def draw(self, generator: Generator, kept: Kept, ws: Ws, edited: Ws | Styles) -> Drawn:
        """The pictures of edited codes with what was kept; `edited` is `ws` where nothing is edited.

        Edits of StyleSpace give vectors by layer, as `Generator.styles` does.
        """
        return generator(edited)

    def practice(self, generator: Generator, image: Tensor, ws: Tensor, edit: Edit) -> Practice:
        """What to learn from pictures and their codes: to draw the pictures. edit: codes to edited ones."""
        return Practice([(image, self.draw(generator, self.keep(generator, image, ws), ws, ws))])

    def trained(self) -> list[nn.Parameter]:
        """The parameters that `practice` is for."""
        return list(self.parameters())

    def square(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 side side"]:
        """Pictures as encoders see them, between black bars where they are not square."""
        height, width = image.shape[2:]
        if width != self.side or height > width:
            raise InputError(f"pictures of {height} x {width}: this network is for {self.side} pixels")
        return images.padded(image)

    def seen(self, drawn: Float[Tensor, "b 3 size size"]) -> Float[Tensor, "b 3 side side"]:
        """Drawn pictures at the side of those that are inverted."""
        return drawn if drawn.shape[-1] == self.side else F.adaptive_avg_pool2d(drawn, (self.side, self.side))


def codes_of(codes, chosen: slice | Sequence[int] | Tensor):
    """Codes of some pictures: of W+, vectors of StyleSpace by layer, or an `Inversion`."""
    return {name: value[chosen] for name, value in codes.items()} if isinstance(codes, dict) else codes[chosen]


def count_of(codes) -> int:
    """Of how many pictures codes of any kind are."""
    return len(next(iter(codes.values()))) if isinstance(codes, dict) else len(codes)


def split_codes(codes, size: int) -> list:
    """Codes of any kind in parts of at most `size` pictures."""
    return [codes_of(codes, slice(i, i + size)) for i in range(0, max(count_of(codes), 1), size)]


def checked_codes(codes, generator: Generator) -> "Ws | Styles | Inversion":
    """Codes of any kind as a generator draws them: W+ `[b, num_ws, w_dim]` as finite floats on its device.

    Raises `InputError` for what is neither W+ nor vectors of StyleSpace by layer nor an `Inversion`.
    """
    if isinstance(codes, Inversion):
        return codes if codes.edited is None else replace(codes, edited=checked_codes(codes.edited, generator))
    device = generator.input.input.device
    if isinstance(codes, dict):
        sizes = {name: len(layer.modulation.bias) for name, layer, _ in generator.style_layers()}
        shapes = {name: tuple(style.shape) for name, style in codes.items() if isinstance(style, Tensor)}
        count = shapes.get("conv1", (None,))[0]
        for name in (*codes, *sizes):
            if shapes.get(name) != (count, sizes.get(name)):
                told = f"expected numbers [batch, channels] for each of {', '.join(sizes)}"
                raise InputError(f"vectors of StyleSpace by layer, of which {str(name)!r} does not fit: {told}")
        return {name: _finite(style).to(device) for name, style in codes.items()}
    ws = _finite(codes)
    generator.check_ws(ws)
    return ws.to(device)


def _finite(codes) -> Tensor:
    """Codes of any kind of numbers as float32, in which they are finite; raises `InputError` for others."""
    try:
        found = torch.as_tensor(codes)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.is_complex():
        raise InputError(f"codes of type {type(codes).__name__}: expected [batch, num_ws, w_dim] of numbers")
    found = found.to(torch.float32)
    if not torch.isfinite(found).all():
        raise InputError("codes that are not finite (NaN or infinite)")
    return found


@dataclass(frozen=True)
class Inversion:
    """Pictures inverted: codes, what was kept beside them, and the method that draws both together.

    method: its name, by which `load_inversion` finds it again. edited: codes after an edit, of W+ or StyleSpace, or
    None. networks: fingerprints of the networks that it belongs to, by what they do, as far as they are known.
    """

    ws: Ws
    kept: Kept
    method: str
    how: Detail
    edited: Ws | Styles | None = None
    networks: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ws)

    def __getitem__(self, chosen: slice | Sequence[int] | Tensor) -> "Inversion":
        """Some of the pictures; one picture may be asked for several times."""
        kept = {name: value[chosen] for name, value in self.kept.items()}
        edited = None if self.edited is None else codes_of(self.edited, chosen)
        return replace(self, ws=self.ws[chosen], kept=kept, edited=edited)

    @property
    def codes(self) -> Ws | Styles:
        """The edited codes where there are any, else those that were found."""
        return self.ws if self.edited is None else self.edited

    def split(self, size: int) -> list["Inversion"]:
        """Parts of at most `size` pictures."""
        return [self[i : i + size] for i in range(0, len(self), size)]

    def edit(self, edited: Ws | Styles) -> "Inversion":
        """The same with edited codes, from whatever edit of codes.

        Raises `InputError` for another shape or number, and for what is not finite numbers.
        """
        if isinstance(edited, dict):
            edited = {name: _finite(style) for name, style in edited.items()}
            if {len(style) if style.ndim else 0 for style in edited.values()} != {len(self)}:
                raise InputError(f"edited vectors of StyleSpace: expected those of {len(self)} pictures")
            return replace(self, edited=edited)
        edited = _finite(edited)
        if edited.shape != self.ws.shape:
            raise InputError(f"edited codes of shape {tuple(edited.shape)}: expected {tuple(self.ws.shape)}")
        return replace(self, edited=edited.to(self.ws.device))

    def draw(self, generator: Generator, edited: Ws | Styles | None = None) -> Drawn:
        """The pictures, of edited codes where there are any."""
        codes = self.codes if edited is None else self.edit(edited).codes
        return self.how.draw(generator, self.kept, self.ws, codes)

    def tensors(self) -> dict[str, Tensor]:
        """Codes and what was kept, by the names under which files have them: `ws`, `kept.NAME`, `edited`.

        Vectors of StyleSpace are `edited.LAYER`.
        """
        found = {"ws": self.ws} | {f"{KEPT}{name}": value for name, value in self.kept.items()}
        if isinstance(self.edited, dict):
            found |= {f"{EDITED}.{name}": value for name, value in self.edited.items()}
        elif self.edited is not None:
            found[EDITED] = self.edited
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], method: str, how: Detail, networks: Mapping[str, str], generator: Generator
    ) -> "Inversion":
        """What `tensors` gave. Raises `InputError` where a generator cannot draw its first picture from it."""
        tensors = {name: value.float() for name, value in tensors.items()}
        styles = {n.removeprefix(f"{EDITED}."): v for n, v in tensors.items() if n.startswith(f"{EDITED}.")}
        kept = {name.removeprefix(KEPT): value for name, value in tensors.items() if name.startswith(KEPT)}
        try:
            found = cls(tensors["ws"], kept, method, how, tensors.get(EDITED, styles or None), networks)
            if any(len(value) != len(found) for value in tensors.values()):
                raise InputError("tensors of different lengths")
            with torch.no_grad():
                found[:1].draw(generator)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"does not fit the method {method} ({one_line(error)})") from None
        return found

    def save(self, path: str | Path) -> None:
        """Writes codes and what was kept into one safetensors file, with the method's name and `networks`.

        Raises `FileError` for a name that does not end in .safetensors, and where something else would be replaced.
        """
        claim_files([Path(path)], kind=Kind.KEPT, suffixes=(".safetensors",))
        notes = {"made_by": "stx", "method": self.method, "networks": json.dumps(dict(self.networks))}
        with atomic_write(Path(path)) as part:
            safetensors.torch.save_file(self.tensors(), part, metadata=notes)


def joined(parts: Sequence[Inversion]) -> Inversion:
    """Inversions by one method as one."""
    kept = {name: torch.cat([part.kept[name] for part in parts]) for name in parts[0].kept}
    edited = [part.edited for part in parts]
    if isinstance(edited[0], dict):
        every = {name: torch.cat([styles[name] for styles in edited]) for name in edited[0]}
    else:
        every = None if edited[0] is None else torch.cat(edited)
    return replace(parts[0], ws=torch.cat([part.ws for part in parts]), kept=kept, edited=every)


def load_inversion(path: str | Path, restored: Callable[..., Inversion], device: str = "cpu") -> Inversion:
    """What `Inversion.save` wrote. restored: tensors, a method's name and networks to an inversion (`Inversion.of`).

    Raises `WeightsError` for any other file.
    """
    try:
        with safetensors.safe_open(path, "pt", device=str(device)) as file:
            notes = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return restored(tensors, notes["method"], dict(json.loads(notes["networks"])))
    except (OSError, LookupError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: no inversion that stx saved ({one_line(error)})") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
