"""How the shipped networks are made: a recipe of plain numbers and one function for each network.

The defaults are where the shipped avatars weights began; notebooks 01 and 02 tell how they went on. A recipe inherits
groups of numbers, each of which goes to one constructor as a whole. It is stored in the run's `config.json`, and
rebuilds the network. Every function resumes from its folder.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stx import latent_classifier, metrics
from stx.baselines.registry import METHODS, EncoderSizes, build_encoder
from stx.domains import images
from stx.domains.datasets import Domain
from stx.domains.drawings import person_pictures
from stx.encoder import Encoder
from stx.files.checksums import fingerprint
from stx.files.errors import DomainError
from stx.generator.autoencoder import drawn_pictures
from stx.generator.gan import ClearAttributes, GanTask, KeptPictures, sample_images
from stx.generator.projected import ProjectedDiscriminator
from stx.inversion import InversionLoss, InversionTask
from stx.label_editing import position
from stx.latent_classifier import LatentClassifier, LatentClassifierTask
from stx.perception.attribute_classifier import AttributeClassifier, ClassifierTask, predict
from stx.perception.identity import IdentityNet, IdentityTask, verification
from stx.perception.lpips import check_size, load_lpips
from stx.reference_editing import ReferenceEditor, ReferenceTask
from stx.runtime import plainly
from stx.stylegan2.networks import Discriminator, Generator
from stx.training.loop import train

SHEET = 100  # samples on a sheet
CALIBRATION = 64  # pictures on which the spread of ImageNet features is measured


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every task takes."""

    steps: int
    batch: int = 64
    lr: float = 2e-3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Widths and units of the IR-SE stages of the networks that recognise."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    units: tuple[int, ...] = (1, 1, 1, 1)


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


@dataclass(frozen=True, kw_only=True)
class EncoderTraining(Training):
    """What `stx.inversion.InversionTask` takes."""

    steps: int = 4000
    batch: int = 16
    lr: float = 5e-4
    lr_decay: float = 0.3
    mirror: bool = False
    accumulate: int = 1
    precision: str = "float32"


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Of `stx.inversion.InversionLoss`."""

    l2: float = 1.0
    lpips: float = 0.8
    id: float = 0.1


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe(EncoderTraining, LossWeights, EncoderSizes):
    """An encoder and its training. method: one of `stx.baselines.registry.METHODS`.

    pictures: of the training split, the first; None: all.
    """

    method: str = "style_transformer"
    pictures: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(Training, Backbone):
    """Attribute classifier and its training."""

    steps: int = 1200


@dataclass(frozen=True, kw_only=True)
class IdentityRecipe(Training, Backbone):
    """Identity network and its training: `people` drawn `looks` times each."""

    steps: int = 1500
    people: int = 3000
    looks: int = 6
    dim: int = 128


@dataclass(frozen=True, kw_only=True)
class LatentClassifierRecipe(Training):
    """Latent classifier and its training on codes; the sizes of the shared MLP are the paper's."""

    steps: int = 2000
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-2
    noise: float = 0.1
    hidden: tuple[int, ...] = (2048, 512)
    dim: int = 32


@dataclass(frozen=True, kw_only=True)
class ReferenceRecipe(Training):
    """Editor for one attribute of a reference and its training; the paper's rate is 1e-4 for long runs."""

    steps: int = 400
    weight_decay: float = 5e-4
    form: str = "paper"
    feed_forward: int = 256
    dropout: float = 0.1


def generator_recipe(domain: Domain, **changes) -> GeneratorRecipe:
    """The default recipe, its channels and what the features see scaled to the resolution; `changes` win."""
    zoom = max(128 // domain.resolution, 1)
    return replace(GeneratorRecipe(channel_base=32 * domain.resolution, zoom=zoom), **changes)


def encoder_recipe(domain: Domain, generator: Generator, **changes) -> EncoderRecipe:
    """The default recipe, its backbone sized by the codes and the pictures; `changes` win.

    Codes of 512 and pictures of 256 pixels give IR-SE50.
    """
    w = generator.w_dim
    units = (3, 4, 14, 3) if max(domain.input_size) > 128 else EncoderRecipe.units
    return replace(EncoderRecipe(widths=(w // 8, w // 4, w // 2, w), units=units), **changes)


def compared_recipe(domain: Domain, generator: Generator, **changes) -> EncoderRecipe:
    """The sizes and the budget of the table of encoders: all can be trained in hours and kept; `changes` win.

    Inside pSp's heads and the feed-forward blocks they are narrower than published: over codes of 256 the encoders have
    1.8 to 3.4 million parameters, where pSp would have twenty.
    """
    w = generator.w_dim
    sizes = {"widths": (w // 16, w // 8, w // 4, w), "units": (1, 1, 1, 1), "hidden": w // 4}
    return encoder_recipe(domain, generator, **{"steps": 1500, "batch": 8} | sizes | changes)


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
    channels = _group(Channels, recipe)
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
        **_group(GanTraining, recipe),
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
    log = _train(task, recipe, folder, config, evaluate=sheet, evaluate_every=evaluate_every)
    task.average.latent_avg.copy_(task.average.mean_w())
    return task.average, task.discriminator.eval(), log


@plainly
def train_encoder(
    domain: Domain,
    generator: Generator,
    recipe: EncoderRecipe,
    folder: str | Path,
    *,
    identity: torch.nn.Module | None = None,
    start: Encoder | None = None,
    device: str = "cpu",
    validation: int = 256,
    evaluate_every: int = 300,
) -> tuple[Encoder, pd.DataFrame]:
    """An encoder for a frozen generator, and the log with validation losses on `validation` pictures.

    start: weights to go on from instead of random ones (the sizes must agree). Raises `ValueError` for pictures that
    are too small for LPIPS.
    """
    check_size(domain)
    torch.manual_seed(recipe.seed)
    encoder, extras = build_encoder(
        METHODS[recipe.method], generator, domain, recipe, steps=recipe.steps, lr=recipe.lr, device=device
    )
    if start is not None:
        encoder.load_state_dict(start.state_dict())
    task = InversionTask(
        encoder=encoder,
        generator=generator,
        loss=InversionLoss(load_lpips("alex", device), identity, _group(LossWeights, recipe)),
        data=domain.split("train", recipe.pictures),
        view=domain.view,
        extras=extras,
        device=device,
        **_group(EncoderTraining, recipe),
    )
    held_out = domain.split("val", validation)
    config = {"domain": domain.name, "generator": fingerprint(generator), "pictures seen": task.data.fingerprint()}
    config |= asdict(recipe)
    config["start"] = None if start is None else fingerprint(start)
    log = _train(
        task, recipe, folder, config, evaluate=lambda step: task.validate(held_out), evaluate_every=evaluate_every
    )
    return encoder.eval(), log


@plainly
def train_classifier(
    domain: Domain, recipe: ClassifierRecipe, folder: str | Path, *, device: str = "cpu"
) -> tuple[AttributeClassifier, pd.DataFrame]:
    """An attribute classifier, and the log with the mean validation accuracy."""
    torch.manual_seed(recipe.seed)
    net = AttributeClassifier(size=domain.resolution, attributes=domain.attributes, **_group(Backbone, recipe))
    task = ClassifierTask(net=net, data=domain.split("train"), device=device, **_group(Training, recipe))
    held_out = domain.split("val")

    def validate(step: int) -> dict[str, float]:
        return {"val_accuracy": float(((predict(net, held_out) > 0) == held_out.labels).mean())}

    config = {"domain": domain.name, "pictures seen": task.data.fingerprint()} | asdict(recipe)
    log = _train(task, recipe, folder, config, evaluate=validate)
    return net.eval(), log


@plainly
def train_latent_classifier(
    attributes: Sequence[str],
    train_codes: tuple[torch.Tensor, np.ndarray],
    held_out: tuple[torch.Tensor, np.ndarray],
    recipe: LatentClassifierRecipe,
    folder: str | Path,
    *,
    device: str = "cpu",
) -> tuple[LatentClassifier, pd.DataFrame]:
    """A latent classifier calibrated on held-out codes, and the log with the mean held-out accuracy.

    train_codes, held_out: codes `[n, num_ws, w_dim]` and labels bool `[n, attributes]`.
    """
    torch.manual_seed(recipe.seed)
    ws, labels = train_codes
    net = LatentClassifier(
        num_ws=ws.shape[1], w_dim=ws.shape[2], attributes=attributes, hidden=recipe.hidden, dim=recipe.dim
    )
    with torch.no_grad():  # codes have a mean far from zero: start where they are centred
        net.fcs[0].bias.sub_(net.fcs[0].weight @ ws.mean(0).flatten().to(net.fcs[0].weight))
    learning = {"weight_decay": recipe.weight_decay, "noise": recipe.noise, **_group(Training, recipe)}
    task = LatentClassifierTask(net=net, ws=ws, labels=labels, device=device, **learning)

    def validate(step: int) -> dict[str, float]:
        return {"val_accuracy": float(((latent_classifier.predict(net, held_out[0]) > 0) == held_out[1]).mean())}

    config = asdict(recipe) | {"codes": len(ws), "sum": float(ws.double().sum())}
    log = _train(task, recipe, folder, config, evaluate=validate, evaluate_every=500)
    latent_classifier.calibrate(net, latent_classifier.predict(net, held_out[0]), held_out[1])
    return net.eval(), log


@plainly
def train_reference_editor(
    classifier: LatentClassifier,
    attribute: str,
    codes: torch.Tensor,
    recipe: ReferenceRecipe,
    folder: str | Path,
    *,
    device: str = "cpu",
    watch: Callable[[float], None] = lambda share: None,
) -> tuple[ReferenceEditor, pd.DataFrame]:
    """An editor that carries `attribute` over from a reference, and the log; 9 of 10 codes train, the others validate.

    folder: gets a suffix that tells settings apart, so that other codes or another classifier begin anew.
    watch: called with the share that is done; what it raises ends the training.
    Raises `EditError` for an attribute that `classifier` does not know.
    """
    index = position(attribute, classifier.attributes)
    torch.manual_seed(recipe.seed)
    editor = ReferenceEditor(
        w_dim=codes.shape[2],
        attribute=attribute,
        form=recipe.form,
        feed_forward=recipe.feed_forward,
        dropout=recipe.dropout,
    )
    held_out = codes[: max(len(codes) // 10, 2)]
    task = ReferenceTask(
        editor=editor,
        classifier=classifier,
        index=index,
        ws=codes[len(held_out) :],
        device=device,
        weight_decay=recipe.weight_decay,
        **_group(Training, recipe),
    )
    config = asdict(recipe) | {"attribute": attribute, "codes": len(codes), "sum": float(codes.double().sum())}
    config["classifier"] = fingerprint(classifier)

    def validate(step: int) -> dict[str, float]:
        watch(step / recipe.steps)
        return task.validate(held_out)

    settings = f"{zlib.crc32(json.dumps(config, sort_keys=True).encode()):08x}"
    log = _train(task, recipe, f"{folder}_{settings}", config, evaluate=validate, evaluate_every=25)
    return editor.eval(), log


@plainly
def train_identity(
    domain: Domain, recipe: IdentityRecipe, folder: str | Path, *, device: str = "cpu"
) -> tuple[IdentityNet, pd.DataFrame]:
    """An identity network, and the log with the verification AUC on persons of the validation split.

    Needs pictures of the same person: avatars, which are drawn again. Raises `DomainError` for another domain.
    """
    if domain.name != "avatars":
        raise DomainError(f"{domain.name} does not tell who is who; an identity network is trained on avatars only")
    torch.manual_seed(recipe.seed)
    net = IdentityNet(size=domain.resolution, dim=recipe.dim, **_group(Backbone, recipe))
    task = IdentityTask(
        net=net,
        pictures=person_pictures("train", recipe.people, recipe.looks, recipe.seed),
        device=device,
        **_group(Training, recipe),
    )
    held_out = person_pictures("val", 256, 2, recipe.seed)

    def validate(step: int) -> dict[str, float]:
        return {"val_auc": metrics.roc_auc(*verification(net, held_out))}

    log = _train(task, recipe, folder, {"domain": domain.name} | asdict(recipe), evaluate=validate)
    return net.eval(), log


def _train(task, recipe, folder, config, **kwargs) -> pd.DataFrame:
    return train(task, folder=folder, steps=recipe.steps, seed=recipe.seed, config=config, **kwargs)


def _group(group: type, recipe) -> dict:
    """The numbers of a recipe that one of the groups it inherits has."""
    return {field.name: getattr(recipe, field.name) for field in fields(group)}
