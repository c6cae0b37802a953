"""What keeps detail beside codes, and its training."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from stx.detail.kept import Detail, Edit
from stx.detail.manifold import Manifold, fit
from stx.detail.registry import TRAINED
from stx.detail.training import DetailTask
from stx.domains.datasets import Domain
from stx.encoder import Encoder
from stx.files.checksums import fingerprint
from stx.files.errors import InputError, WeightsError
from stx.inversion import InversionLoss
from stx.perception.lpips import check_size, load_lpips
from stx.recipes.encoders import LossWeights
from stx.recipes.groups import Training, group, run
from stx.runtime import batched, plainly
from stx.stylegan2.networks import Generator

AT_ONCE = 64  # pictures
MIXED = 0.25  # share of practice edits that are mixed styles, where a domain has matched pairs
STRENGTHS = 0.5, 1.5  # of practice edits


@dataclass(frozen=True, kw_only=True)
class DetailTraining(Training):
    """What `stx.detail.training.DetailTask` takes."""

    steps: int = 1500
    batch: int = 8
    lr: float = 1e-3
    lr_decay: float = 0.5


@dataclass(frozen=True, kw_only=True)
class DetailRecipe(DetailTraining, LossWeights):
    """A network that keeps detail, and its training.

    method: one of `stx.detail.registry.TRAINED`. pictures: as `EncoderRecipe`'s.
    """

    method: str = "features"
    pictures: int | None = None


def practice_edits(matched: nn.Module | None, reader: nn.Module | None) -> Edit:
    """Random edits of codes: each gets or loses an attribute by matched pairs, or the later styles of another code.

    matched, reader: the networks `matched_pairs` and `picture_classifier` of a domain with labels, or None.
    """

    def edit(ws: Tensor) -> Tensor:
        first = torch.randint(1, ws.shape[1], (len(ws), 1, 1), device=ws.device)
        later = torch.arange(ws.shape[1], device=ws.device)[None, :, None] >= first
        change = later * (ws.roll(1, 0) - ws)
        if matched is not None:
            shown, wanted = reader(ws)[0] > 0, torch.rand(len(ws), 1, device=ws.device) < 0.5
            known = matched.known[wanted[:, 0].long()]
            index = torch.multinomial((shown != wanted) * known + 1e-6 * known, 1)[:, 0]  # one it lacks, or has
            labelled = matched(ws, index.tolist(), wanted[:, 0].float().tolist())
            change = torch.where(torch.rand(len(ws), 1, 1, device=ws.device) < MIXED, change, labelled)
        low, high = STRENGTHS
        return ws + change * (low + (high - low) * torch.rand(len(ws), 1, 1, device=ws.device))

    return edit


@torch.no_grad()
def fit_manifold(
    domain: Domain, generator: Generator, encoder: Encoder, *, train: int, held_out: int, device: str = "cpu"
) -> Manifold:
    """What tells pictures of a domain from others (`stx.detail.manifold`), from the first pictures of train and val."""
    alex, view = load_lpips("alex", device), domain.view
    known, own = (domain.split(name, count) for name, count in (("train", train), ("val", held_out)))

    def codes(image: Tensor) -> Tensor:
        return encoder.invert(image.to(device), generator, view)

    def distortion(at: Tensor) -> Tensor:
        image = own.batch(at.tolist()).to(device)
        return alex(image, view(generator(codes(image))).clamp(-1, 1)).flatten()

    ws, others = (batched(codes, data, AT_ONCE, desc="inverting", unit="batch") for data in (known, own))
    return fit(ws, others, batched(distortion, torch.arange(len(own)), AT_ONCE), encoder=fingerprint(encoder))


@plainly
def train_detail(
    domain: Domain,
    generator: Generator,
    encoder: Encoder,
    recipe: DetailRecipe,
    folder: str | Path,
    *,
    identity: nn.Module | None = None,
    edit: Edit,
    start: Detail | None = None,
    device: str = "cpu",
    validation: int = 256,
    evaluate_every: int = 300,
) -> tuple[Detail, pd.DataFrame]:
    """A network that keeps what the codes of a frozen encoder lose, and the log with validation losses.

    edit: see `practice_edits`; start: the network that the method begins with (`DetailMethod.begins_with`). Raises
    `ValueError` for an unknown method and for pictures that are too small for LPIPS, `WeightsError` without that
    network.
    """
    check_size(domain)
    if recipe.method not in TRAINED:
        raise InputError(f"unknown method {recipe.method!r}: {', '.join(TRAINED)}")
    torch.manual_seed(recipe.seed)
    method = TRAINED[recipe.method]
    net = method.network.for_generator(generator, side=max(domain.input_size))
    if method.begins_with:
        if start is None:
            raise WeightsError(
                f"{recipe.method} begins with {method.begins_with}, which is not there: train that first"
            )
        net.load_state_dict(net.state_dict() | start.state_dict())
    task = DetailTask(
        net=net,
        encoder=encoder,
        generator=generator,
        loss=InversionLoss(load_lpips("alex", device), identity, group(LossWeights, recipe)),
        domain=domain,
        data=domain.split("train", recipe.pictures),
        edit=edit,
        device=device,
        **group(DetailTraining, recipe),
    )
    held_out = domain.split("val", validation)
    config = {"domain": domain.name, "generator": fingerprint(generator), "encoder": fingerprint(encoder)}
    config |= {"pictures seen": task.data.fingerprint(), "start": fingerprint(start) if method.begins_with else None}
    config |= asdict(recipe)
    log = run(
        task, recipe, folder, config, evaluate=lambda step: task.validate(held_out), evaluate_every=evaluate_every
    )
    return net.eval().requires_grad_(False), log
