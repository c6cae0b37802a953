"""The ways of editing that the explorer offers for a domain, and the names of their sliders.

With a latent classifier: the methods of `stx.evaluation.editing` that are fitted in moments, and those of one's own.
Without labels: components of SeFa (Shen & Zhou 2021) and GANSpace (Härkönen et al. 2020), and directions that
`stx convert` put beside the networks. StyleFlow, the latent transformer and LatentCLR train for minutes and are left to
notebook 08.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx.baselines.directions import GANSpace, SeFa
from stx.baselines.registry import EDITORS
from stx.evaluation import editing, quality
from stx.files.atomic import load_array, save_array
from stx.files.checksums import fingerprint
from stx.files.errors import ExplorerError
from stx.files.places import cache_dir
from stx.pipeline import Pipeline

FIT_CODES = 2048  # codes on which methods are fitted
SHIPPED = "sampled_logits"  # in a domain's folder and in the cache
SEFA, GANSPACE, CONVERTED = "SeFa components", "GANSpace components", "converted directions"
SHOWN_COMPONENTS = 10  # components and directions of one file
WITHOUT_FIT = ("matched pairs", "first order", "second order")  # methods that need no fitting, the usual one first
REACH = {  # the largest strength on a slider; the methods' units differ
    "matched pairs": 2.0,
    "natural, six steps": 24.0,
    "constrained, six steps": 24.0,
    "first order": 24.0,
    "second order": 24.0,
    "InterFaceGAN": 8.0,
    "InterFaceGAN, conditional": 16.0,
    "GANSpace": 8.0,
    "SeFa": 4.0,
    "StyleSpace": 20.0,
    SEFA: 4.0,  # standard deviations of codes along the component
    GANSPACE: 4.0,
    CONVERTED: 20.0,  # a length in W
}
USUAL_REACH = 8.0  # of methods of one's own
UNLABELLED = (SEFA, GANSPACE, CONVERTED)


class Choices(Mapping):
    """The methods by name, each fitted when it is first asked for.

    A method is a function as in `stx.evaluation.editing`; its index is the position of a slider. classifier: of codes,
    attribute_classifier: of pictures; None where the domain has none. `watch` is told the share of a fit that is done.
    """

    def __init__(
        self, pipe: Pipeline, classifier: nn.Module | None, attribute_classifier: nn.Module | None, *, seed: int = 0
    ):
        self.pipe, self.attribute_classifier, self.seed = pipe, attribute_classifier, seed
        self.watch: Callable[[float], None] = lambda share: None
        self.attributes: tuple[str, ...] = tuple(classifier.attributes) if classifier else ()
        self._by_label = editing.Methods(pipe, classifier, self.sampled, seed=seed) if classifier else {}
        self._fit: dict[str, Callable[[], editing.Method]] = {SEFA: self._sefa, GANSPACE: self._ganspace}
        self._names = {name: tuple(f"component {i + 1}" for i in range(SHOWN_COMPONENTS)) for name in self._fit}
        files = sorted(name.removeprefix("directions-") for name in pipe.present() if name.startswith("directions-"))
        self._converted = {name: pipe.directions(name)[:SHOWN_COMPONENTS] for name in files}
        if files:
            named = ((name, range(len(found))) for name, found in self._converted.items())
            self._names[CONVERTED] = tuple(f"{n}:{i}" if len(count) > 1 else n for n, count in named for i in count)
            self._fit[CONVERTED] = lambda: editing.along(torch.cat(list(self._converted.values())))
        self._fitted: dict[str, editing.Method] = {}
        without_logits = {*WITHOUT_FIT, "natural, six steps", "constrained, six steps"}
        known = {*(REACH if attribute_classifier else without_logits), *EDITORS}
        self._offered = [*(name for name in self._by_label if name in known), *self._fit]

    def __getitem__(self, name: str) -> editing.Method:
        if name not in self:
            raise ExplorerError(f"unknown method {name!r}: {', '.join(self)}")
        if name in self._fit:
            if name not in self._fitted:
                self._fitted[name] = self._fit[name]()
            return self._fitted[name]
        self._by_label.watch = lambda share: self.watch(share)
        return self._by_label[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._offered)

    def __len__(self) -> int:
        return len(self._offered)

    def __contains__(self, name: object) -> bool:
        return name in self._offered

    @property
    def usual(self) -> str:
        """The method to begin with."""
        return next((name for name in (*WITHOUT_FIT, CONVERTED) if name in self), GANSPACE)

    def is_quick(self, name: str) -> bool:
        """Whether asking for a method takes a moment, and not seconds of fitting."""
        if name in self._fit or name in WITHOUT_FIT or name in self._by_label.fitted:
            return True
        return name not in EDITORS and (name.endswith("six steps") or self._kept() is not None)

    def sliders(self, name: str) -> tuple[str, ...]:
        """What a method can change. Raises `ExplorerError` for an unknown method."""
        if name not in self:
            raise ExplorerError(f"unknown method {name!r}: {', '.join(self)}")
        return self._names.get(name, self.attributes)

    def reach(self, name: str) -> float:
        """The largest strength on a method's sliders."""
        return REACH.get(name, USUAL_REACH)

    def sampled(self) -> tuple[Tensor, Float[np.ndarray, "n attributes"]]:
        """Codes and the image classifier's logits for their pictures; the logits shipped, cached, or made and kept."""
        kept = self._kept()
        if kept is not None:
            return self.pipe.sample(FIT_CODES, seed=self.seed).cpu().contiguous(), kept
        ws, logits = quality.sampled_codes(
            self.pipe, self.attribute_classifier, FIT_CODES, seed=self.seed, watch=lambda share: self.watch(share)
        )
        path = cache_dir() / SHIPPED / self._key()
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_array(path, logits)
        return ws, logits

    def _key(self) -> str:
        """The name of a file of logits: those of other networks, counts and seeds are others."""
        nets = fingerprint(self.pipe.generator), fingerprint(self.attribute_classifier)
        return f"{'-'.join(nets)}-{FIT_CODES}-{self.seed}.npy"

    def _kept(self) -> np.ndarray | None:
        found = (load_array(folder / SHIPPED / self._key()) for folder in (self.pipe.folder, cache_dir()))
        return next((np.array(logits) for logits in found if logits is not None), None)

    def _codes(self) -> Float[np.ndarray, "n w_dim"]:
        return self.pipe.sample(FIT_CODES, seed=self.seed)[:, 0].cpu().numpy()

    def _sefa(self) -> editing.Method:
        return self._components(SeFa().fit(self.pipe.generator).directions_[:SHOWN_COMPONENTS])

    def _ganspace(self) -> editing.Method:
        return self._components(GANSpace(components=SHOWN_COMPONENTS).fit(self._codes()).directions_)

    def _components(self, directions: Float[np.ndarray, "count w_dim"]) -> editing.Method:
        """A strength of 1 is a standard deviation of codes along the component."""
        steps = directions * (self._codes() @ directions.T).std(0)[:, None]
        return editing.along(torch.from_numpy(steps)[:, None].expand(-1, self.pipe.generator.num_ws, -1))
