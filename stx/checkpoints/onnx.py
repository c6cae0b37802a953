"""A domain's networks as ONNX graphs, for the browser and for programs without PyTorch; each is run before it is kept.

`encoder` (picture to code), `generator` (code to picture), the latent classifiers (code to logits) and `edit` (code and
a strength for every attribute to code), all of a batch of one and float32, and `graphs.json`, which tells how they fit
together. Weights that float16 holds exactly, as shipped ones are, are stored so: half the bytes, the same numbers.
"""

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx.baselines.directions import Directions
from stx.checkpoints import weights
from stx.domains.datasets import ENCODER_SIDE, SIZES, Domain
from stx.encoder import Encoder
from stx.files.atomic import atomic_write
from stx.files.errors import InputError, WeightsError
from stx.files.outputs import Kind, claim_files
from stx.files.untrusted import one_line
from stx.label_editing import normalise
from stx.latent_classifier import LatentClassifier
from stx.matched_pairs import MatchedPairs
from stx.runtime import plain_torch
from stx.stylegan2.networks import Generator

TOLERANCE = 1e-4  # of what a graph gives from what PyTorch gives, where numbers are larger than 1 times the largest
HALVED = 1024  # numbers of a weight from which it is stored in float16, where that is exact
CLASSIFIERS = ("picture_classifier", "latent_classifier")  # the first that is there is what a page shows
REACH = {"matched pairs": 2.0, "first order": 16.0, "directions": 8.0}  # strengths that a slider offers
ENCODER = "style_transformer"
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class Inversion(nn.Module):
    """Picture to code, with the generator inside where the encoder refines its own picture."""

    def __init__(self, encoder: Encoder, generator: Generator, view: Callable[[Tensor], Tensor]):
        super().__init__()
        self.encoder, self.generator, self.view = encoder, generator, view

    def forward(self, image: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 num_ws w_dim"]:
        return self.encoder.invert(image, self.generator, self.view)


class Drawing(nn.Module):
    """Code to picture, with the generator's own noise."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, ws: Float[Tensor, "1 num_ws w_dim"]) -> Float[Tensor, "1 3 size size"]:
        return self.generator(ws, noise="const").clamp(-1, 1)


class Logits(nn.Module):
    """Code to the logits of its attributes."""

    def __init__(self, classifier: LatentClassifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, ws: Float[Tensor, "1 num_ws w_dim"]) -> Float[Tensor, "1 attributes"]:
        return self.classifier(ws)[0]


class MatchedEdit(nn.Module):
    """All edits by matched pairs at once, each taken from the unedited code: strength 1 adds, -1 removes."""

    method = "matched pairs"

    def __init__(self, matched: MatchedPairs):
        super().__init__()
        self.matched, self.attributes = matched, matched.attributes
        self.sides = matched.known.T.tolist()  # of every attribute: whether it can be removed, and added

    def forward(
        self, ws: Float[Tensor, "1 num_ws w_dim"], strengths: Float[Tensor, "1 attributes"]
    ) -> Float[Tensor, "1 num_ws w_dim"]:
        z = (ws.flatten(1) - self.matched.mean) @ self.matched.basis
        amounts = torch.cat([(-strengths).relu(), strengths.relu()])  # [2, attributes], as the maps are
        effect = torch.einsum("tk,tkij->ij", amounts, self.matched.effect)
        change = (z @ effect[:-1] + effect[-1]) @ self.matched.basis.T
        return ws + change.view_as(ws)


class FirstOrderEdit(nn.Module):
    """All first-order edits at once, each along the unit gradient of its logit at the unedited code, in closed form."""

    method = "first order"

    def __init__(self, classifier: LatentClassifier):
        super().__init__()
        self.classifier, self.attributes = classifier, classifier.attributes
        self.sides = [[True, True]] * len(self.attributes)
        self.slope = SLOPES[classifier.config["activation"]]

    def forward(
        self, ws: Float[Tensor, "1 num_ws w_dim"], strengths: Float[Tensor, "1 attributes"]
    ) -> Float[Tensor, "1 num_ws w_dim"]:
        net, x, slopes = self.classifier, ws.flatten(1), []
        for layer in net.fcs:
            before = layer(x)
            x = net.activation(before)
            slopes.append(self.slope(before))
        gradient = torch.einsum("kd,kdh->kh", net.logit_weight, net.embedding_weight)
        for layer, slope in zip(reversed(net.fcs), reversed(slopes), strict=True):
            gradient = (gradient * slope) @ layer.weight
        directions = normalise(gradient.unflatten(1, (net.num_ws, net.w_dim)))
        return ws + torch.einsum("bk,knd->bnd", strengths, directions)


SLOPES = {
    "leaky_relu": lambda x: torch.where(x > 0, 1.0, 0.2),
    "gelu": lambda x: 0.5 * (1 + torch.erf(x * 0.5**0.5)) + x * torch.exp(-0.5 * x * x) * (2 * torch.pi) ** -0.5,
}


class DirectionsEdit(nn.Module):
    """Edits along converted directions (InterFaceGAN's, GANSpace's, ...), strengths in units of W+."""

    method = "directions"

    def __init__(self, named: dict[str, Float[Tensor, "count tokens w_dim"]], num_ws: int):
        super().__init__()
        self.attributes = [f"{name}:{i}" if len(d) > 1 else name for name, d in named.items() for i in range(len(d))]
        self.sides = [[True, True]] * len(self.attributes)
        self.register_buffer("directions", torch.cat([d.expand(-1, num_ws, -1) for d in named.values()]))

    def forward(
        self, ws: Float[Tensor, "1 num_ws w_dim"], strengths: Float[Tensor, "1 attributes"]
    ) -> Float[Tensor, "1 num_ws w_dim"]:
        return ws + torch.einsum("bk,knd->bnd", strengths, self.directions)


@dataclass(frozen=True)
class Graph:
    """A network to export: its module, and its inputs with an example of each; `output` names what it gives."""

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str


@plain_torch()
def write(folder: str | Path, out: str | Path, *, encoder: str = ENCODER, generator: str = "generator") -> dict:
    """Exports the networks of a domain's folder into the folder `out`, and returns what its `graphs.json` tells.

    There has to be a generator; an encoder, classifiers, and one way to edit (matched pairs, else first order through a
    latent classifier, else converted directions) are taken where they are there. encoder, generator: their folders'
    names; an encoder other than the usual has to be there. Raises `InputError` without the packages of the extra `web`,
    `WeightsError` for missing networks and for a graph whose numbers are further than `TOLERANCE` from PyTorch's: then
    nothing is written, as where the disk is full (`FileError`).
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} not installed: `pip install {' '.join(NEEDED)}`, or the extra `web`")
    folder, out = Path(folder), Path(out)
    draws = weights.load(folder / generator)
    if not isinstance(draws, Generator):
        raise WeightsError(f"{folder / generator}: a {type(draws).__name__} is no generator of pictures")
    domain = _domain(folder, draws)
    graphs = dict(_graphs(folder, draws, domain, encoder))
    claim_files((out / name for name in ["graphs.json", *(f"{name}.onnx" for name in graphs)]), kind=Kind.GRAPHS)
    made = {name: export(graph) for name, graph in graphs.items()}
    edit = graphs["edit"].module if "edit" in graphs else None
    told = {
        "made_by": "stx",
        "domain": domain.name,
        "resolution": domain.resolution,
        "input_size": list(domain.input_size),
        "edit": edit and {"method": edit.method, "reach": REACH[edit.method], "attributes": _sides(edit)},
        "classifier": next((name for name in CLASSIFIERS if name in graphs), None),
        "attributes": {name: list(graphs[name].module.classifier.attributes) for name in CLASSIFIERS if name in graphs},
        "tolerance": TOLERANCE,
        "graphs": {name: _told(graphs[name], *made[name]) for name in graphs},
    }
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as parts:  # nothing is replaced before all are written; the record comes last
        parts.enter_context(atomic_write(out / "graphs.json")).write_text(json.dumps(told, indent=2), encoding="utf-8")
        for name, (content, _) in made.items():
            parts.enter_context(atomic_write(out / f"{name}.onnx")).write_bytes(content)
    return told


def export(graph: Graph) -> tuple[bytes, float]:
    """The ONNX file of a graph and its largest error against PyTorch. Raises `WeightsError` above `TOLERANCE`."""
    module = graph.module.eval()
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it tells what it leaves as it is
    with warnings.catch_warnings(), torch.enable_grad():  # without: one picture's factors go into its weights
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=[graph.output],
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    _plain(model)
    _halve(model)
    content = model.SerializeToString(deterministic=True)
    return content, _checked(content, graph)


def _checked(content: bytes, graph: Graph) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with torch.no_grad():
        expected = graph.module(*graph.inputs.values()).numpy()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {name: x.numpy() for name, x in graph.inputs.items()})
    except Exception as error:  # of the runtime's own kinds
        raise WeightsError(f"{type(graph.module).__name__}: its graph does not run ({one_line(error)})") from None
    error = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    if not error <= TOLERANCE:
        told = f"its graph differs from PyTorch by {error:.1e}, more than {TOLERANCE:g}; nothing was written"
        raise WeightsError(f"{type(graph.module).__name__}: {told}")
    return error


def _graphs(folder: Path, generator: Generator, domain: Domain, encoder: str) -> Iterator[tuple[str, Graph]]:
    random = torch.Generator().manual_seed(0)
    w = generator.mapping(torch.randn(1, generator.w_dim, generator=random)).detach()
    ws = generator.broadcast(w)
    yield "generator", Graph(Drawing(generator), {"ws": ws}, "image")
    if (folder / encoder).is_dir() or encoder != ENCODER:
        net = weights.load(folder / encoder)
        if not isinstance(net, Encoder):
            raise WeightsError(f"{folder / encoder}: a {type(net).__name__} is no encoder of pictures")
        image = torch.rand(1, 3, *domain.input_size, generator=random) * 2 - 1
        yield "encoder", Graph(Inversion(net, generator, domain.view), {"image": image}, "ws")
    classifiers = {name: weights.load(folder / name) for name in CLASSIFIERS if (folder / name).is_dir()}
    for name, net in classifiers.items():
        yield name, Graph(Logits(net), {"ws": ws}, "logits")
    edit = _edit(folder, generator, classifiers)
    if edit is not None:
        strengths = (torch.rand(1, len(edit.attributes), generator=random) - 0.5) * REACH[edit.method]
        yield "edit", Graph(edit, {"ws": ws, "strengths": strengths}, "edited")


def _edit(folder: Path, generator: Generator, classifiers: dict[str, nn.Module]) -> nn.Module | None:
    if (folder / "matched_pairs").is_dir():
        return MatchedEdit(weights.load(folder / "matched_pairs"))
    if classifiers:  # the paper's, where both are there
        return FirstOrderEdit(list(classifiers.values())[-1])
    named = {}
    for path in sorted(folder.glob("directions-*")):
        net = weights.load(path)
        if isinstance(net, Directions):
            net.check_fit(generator)
            named[path.name.removeprefix("directions-")] = net.directions
    return DirectionsEdit(named, generator.num_ws) if named else None


def _domain(folder: Path, generator: Generator) -> Domain:
    """The sizes of the domain whose networks lie in a folder; its pictures are not needed."""
    side = generator.size
    name = folder.resolve().name
    known, size = SIZES.get(name, (side, None))
    if size is None or known != side:
        size = (min(side, ENCODER_SIDE),) * 2
    return Domain(name, side, size, (), split=lambda *_, **__: None)


def _sides(edit: nn.Module) -> list[dict]:
    pairs = zip(edit.attributes, edit.sides, strict=True)
    return [{"name": name, "remove": bool(remove), "add": bool(add)} for name, (remove, add) in pairs]


def _told(graph: Graph, content: bytes, error: float) -> dict:
    return {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": {name: list(x.shape) for name, x in graph.inputs.items()},
        "output": graph.output,
        "error": float(f"{error:.1e}"),
    }


def _plain(model) -> None:
    """Without what the exporter notes of its source lines, which would make a file of every place where it is made."""
    for part in [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        del part.metadata_props[:]
        part.doc_string = ""
    for value in model.graph.initializer:
        value.doc_string = ""


def _halve(model) -> None:
    """Stores large weights in float16 where that is exact; the runtime widens them once, when it loads the graph."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for value in model.graph.initializer:
        if value.data_type != TensorProto.FLOAT or np.prod(value.dims) < HALVED:
            continue
        array = numpy_helper.to_array(value)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if np.array_equal(half.astype(np.float32), array):
            name = value.name
            value.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT, name=f"{name}.cast"))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
