"""Inversions that keep more of a picture than its codes, and can be edited by any edit of codes.

The paper's own limit: W+ loses details and what the generator does not know (Hu et al. 2022, section 5). Every method
of this room is a `Detail`: it keeps something of the picture, and draws it again with the codes or with edited ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx.files.atomic import atomic_write
from stx.files.config import Configured
from stx.files.errors import InputError, WeightsError
from stx.files.outputs import claim_files
from stx.files.untrusted import one_line
from stx.stylegan2.networks import Generator

Kept = dict[str, Tensor]  # what a method keeps of pictures, by name; the first axis of each is the picture
Pair = tuple[Tensor, Tensor]  # what should be drawn, and what was
Edit = Callable[[Tensor], Tensor]  # codes to edited codes


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

    def keep(
        self, generator: Generator, image: Float[Tensor, "b 3 h w"], ws: Float[Tensor, "b num_ws w_dim"]
    ) -> dict[str, Tensor]:
        """What is kept of pictures in [-1, 1], beside their codes."""
        return {}

    def draw(
        self,
        generator: Generator,
        kept: dict[str, Tensor],
        ws: Float[Tensor, "b num_ws w_dim"],
        edited: Float[Tensor, "b num_ws w_dim"],
    ) -> Float[Tensor, "b 3 size size"]:
        """The pictures of edited codes with what was kept; `edited` is `ws` where nothing is edited."""
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
        bar = (width - height) // 2
        return F.pad(image, (0, 0, bar, width - height - bar), value=-1.0)

    def seen(self, drawn: Float[Tensor, "b 3 size size"]) -> Float[Tensor, "b 3 side side"]:
        """Drawn pictures at the side of those that are inverted."""
        return drawn if drawn.shape[-1] == self.side else F.adaptive_avg_pool2d(drawn, (self.side, self.side))


@dataclass(frozen=True)
class Inversion:
    """Pictures inverted: codes, what was kept beside them, and the method that draws both together.

    method: its name, by which `load_inversion` finds it again. edited: codes after an edit, or None.
    """

    ws: Float[Tensor, "b num_ws w_dim"]
    kept: Kept
    method: str
    how: Detail
    edited: Float[Tensor, "b num_ws w_dim"] | None = None

    def __len__(self) -> int:
        return len(self.ws)

    def __getitem__(self, chosen: slice | Sequence[int] | Tensor) -> "Inversion":
        """Some of the pictures; one picture may be asked for several times."""
        kept = {name: value[chosen] for name, value in self.kept.items()}
        edited = None if self.edited is None else self.edited[chosen]
        return replace(self, ws=self.ws[chosen], kept=kept, edited=edited)

    def split(self, size: int) -> list["Inversion"]:
        """Parts of at most `size` pictures."""
        return [self[i : i + size] for i in range(0, len(self), size)]

    def edit(self, edited: Float[Tensor, "b num_ws w_dim"]) -> "Inversion":
        """The same with edited codes, from whatever edit of codes; raises `InputError` for another shape."""
        if edited.shape != self.ws.shape:
            raise InputError(f"edited codes of shape {tuple(edited.shape)}: expected {tuple(self.ws.shape)}")
        return replace(self, edited=edited)

    def draw(
        self, generator: Generator, edited: Float[Tensor, "b num_ws w_dim"] | None = None
    ) -> Float[Tensor, "b 3 size size"]:
        """The pictures, of edited codes where there are any."""
        codes = self.edit(edited).edited if edited is not None else self.edited
        return self.how.draw(generator, self.kept, self.ws, self.ws if codes is None else codes)

    def save(self, path: str | Path) -> None:
        """Writes codes and what was kept into one safetensors file, with the method's name.

        Raises `FileError` where something that stx did not make would be replaced.
        """
        tensors = {"ws": self.ws} | {f"kept.{name}": value for name, value in self.kept.items()}
        tensors |= {} if self.edited is None else {"edited": self.edited}
        claim_files([Path(path)])
        with atomic_write(Path(path)) as part:
            own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            safetensors.torch.save_file(own, part, metadata={"made_by": "stx", "method": self.method})


def joined(parts: Sequence[Inversion]) -> Inversion:
    """Inversions by one method as one."""
    kept = {name: torch.cat([part.kept[name] for part in parts]) for name in parts[0].kept}
    edited = None if parts[0].edited is None else torch.cat([part.edited for part in parts])
    return replace(parts[0], ws=torch.cat([part.ws for part in parts]), kept=kept, edited=edited)


def load_inversion(path: str | Path, method: Callable[[str], Detail], device: str = "cpu") -> Inversion:
    """What `Inversion.save` wrote. method: gives the network of a name. Raises `WeightsError` for any other file."""
    try:
        with safetensors.safe_open(path, "pt", device=str(device)) as file:
            name = (file.metadata() or {})["method"]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        ws, edited = tensors.pop("ws"), tensors.pop("edited", None)
    except (OSError, LookupError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: no inversion that stx saved ({one_line(error)})") from None
    kept = {key.removeprefix("kept."): value for key, value in tensors.items()}
    return Inversion(ws, kept, name, method(name), edited)
