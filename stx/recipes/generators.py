"""StyleGAN2 and its training."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from stx.domains import images
from stx.domains.datasets import Domain
from stx.files.checksums import fingerprint
from stx.files.errors import DomainError
from stx.generator.autoencoder import drawn_pictures
from stx.generator.gan import ClearAttributes, GanTask, KeptPictures, sample_images
from stx.generator.projected import ProjectedDiscriminator
from stx.perception.attribute_classifier import AttributeClassifier
from stx.recipes.groups import Training, group, run
from stx.runtime import plainly
from stx.stylegan2.networks import Discriminator, Generator

SHEET = 100  # samples on a sheet
CALIBRATION = 64  # pictures on which the spread of ImageNet features is measured


@dataclass(frozen=True, kw_only=True)
class GanTraining(Training):
    """What `stx.generator.gan.GanTask` takes."""

    steps: int = 16000
    batch: int = 16
    lr: float = 1.5e-3
    lr_decay: float = 0.0
    head_start: int = 0
    mirror: bool = False
    mixing: float = 0.0
    r1_gamma: float = 0.5
    r1_every: int = 8
    pl_weight: float = 0.0
    ema_images: float = 10_000
    ema_rampup: float = 0.1
    mapping_rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Of generator and discriminator alike."""

    channel_base: int = 2048
    channel_max: int = 128


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe(GanTraining, Channels):
    """StyleGAN2 and its training."""

    z_dim: int = 256
    n_mlp: int = 4
    projected: bool = True  # a discriminator on ImageNet features; else StyleGAN2's own, of the generator's channels
    zoom: int = 2  # how much pictures are enlarged for the features
    keep: float = 0.0  # weight of `stx.generator.gan.KeptPictures`
    drawn: float = 0.0  # weight of `stx.generator.autoencoder.DrawnPictures`
    clear: float = 0.0  # weight of `stx.generator.gan.ClearAttributes`


def generator_recipe(domain: Domain, **changes) -> GeneratorRecipe:
    """The default recipe, its channels and what the features see scaled to the resolution; `changes` win."""
    zoom = max(128 // domain.resolution, 1)
    return replace(GeneratorRecipe(channel_base=32 * domain.resolution, zoom=zoom), **changes)


@plainly
def train_generator(
    domain: Domain,
    recipe: GeneratorRecipe,
    folder: str | Path,
    *,
    start: tuple[Generator, Discriminator | ProjectedDiscriminator | None] | None = None,
    kept: torch.Tensor | None = None,
    codes: torch.Tensor | None = None,
    attribute_classifier: AttributeClassifier | None = None,
    device: str = "cpu",
    evaluate_every: int = 500,
) -> tuple[Generator, Discriminator | ProjectedDiscriminator, pd.DataFrame]:
    """The averaged generator after `recipe.steps` updates, its discriminator, and the log.

    start: networks whose weights to go on from instead of random ones; None for a new discriminator. kept: codes
    `[n, num_ws, w_dim]` that go on drawing what they draw, where `recipe.keep` is not 0. codes: of the first training
    pictures, `[n, w_dim]`, as `train_autoencoder` gives them, where `recipe.drawn` is not 0. attribute_classifier:
    the domain's
    attribute classifier, where `recipe.clear` is not 0. Sheets of samples go to `folder/samples`. Raises `DomainError`
    for a domain without the labels of `attribute_classifier`.
    """
    torch.manual_seed(recipe.seed)
    data = domain.split("train", square=True)
    channels = group(Channels, recipe)
    if recipe.projected:
        discriminator = ProjectedDiscriminator(size=domain.resolution, zoom=recipe.zoom)
        discriminator.calibrate(data.batch(range(min(CALIBRATION, len(data)))))
    else:
        discriminator = Discriminator(size=domain.resolution, **channels)
    sizes = {"size": domain.resolution, "z_dim": recipe.z_dim, "n_mlp": recipe.n_mlp, **channels}
    generator = Generator(**start[0].config if start else sizes)
    for net, other in zip((generator, discriminator), start or (), strict=False):
        if other is not None:
            net.load_state_dict(other.state_dict())
    extras = [KeptPictures(generator.to(device), kept, recipe.keep)] if recipe.keep else []
    if recipe.drawn:
        extras.append(drawn_pictures(domain, data, codes, recipe.drawn, device))
    if recipe.clear:
        if data.labels is None or domain.attributes != attribute_classifier.attributes:
            known = ", ".join(attribute_classifier.attributes)
            raise DomainError(f"{domain.name} does not have the labels of the classifier: {known}")
        shares = torch.from_numpy(data.labels).float().mean(0)
        attribute_classifier = attribute_classifier.to(device).eval().requires_grad_(False)
        extras.append(ClearAttributes(lambda fake: attribute_classifier(domain.view(fake)), shares, recipe.clear))
    task = GanTask(
        generator=generator,
        discriminator=discriminator,
        data=data,
        extras=extras,
        device=device,
        **group(GanTraining, recipe),
    )

    def sheet(step: int) -> dict[str, float]:
        picture = images.grid(images.to_uint8(sample_images(task.average, SHEET, view=domain.view)), 10)
        images.save_image(picture, Path(folder) / "samples" / f"{step:06d}.png")
        return {}

    config = {"domain": domain.name, "resolution": domain.resolution, "pictures seen": data.fingerprint()}
    config |= {name: value for name, value in asdict(recipe).items() if name != "steps" or recipe.lr_decay}
    config |= {} if start is None else {"start": [fingerprint(net) for net in start if net is not None]}
    config |= {"codes": len(kept), "sum": float(kept.double().sum())} if recipe.keep else {}
    config |= {"read codes": len(codes), "their sum": float(codes.double().sum())} if recipe.drawn else {}
    config |= {"classifier": fingerprint(attribute_classifier)} if recipe.clear else {}
    log = run(task, recipe, folder, config, evaluate=sheet, evaluate_every=evaluate_every)
    task.average.latent_avg.copy_(task.average.mean_w())
    return task.average, task.discriminator.eval(), log
