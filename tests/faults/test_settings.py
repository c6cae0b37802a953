"""Whatever torch settings a caller has, searches, fits and trainings find what they find under torch's own."""

import contextlib

import numpy as np
import pytest
import torch

from stx import recipes
from stx.baselines import optimisation
from stx.baselines.directions import GANSpace, InterFaceGAN, SeFa
from stx.baselines.learned_editing import LatentCLR, LatentTransformer, StyleFlow
from stx.baselines.stylespace import EditingInStyle, StyleSpace
from stx.inversion import InversionLoss
from stx.latent_classifier import LatentClassifier
from stx.perception.lpips import load_lpips
from stx.stylegan2.networks import Generator


class Networks:
    """A generator of 32 pixels, a loss, a classifier: as a caller has them, made before its settings."""

    def __init__(self):
        torch.manual_seed(0)
        self.generator = Generator(size=32, z_dim=8, n_mlp=2, channel_base=64, channel_max=8)
        self.generator.eval().requires_grad_(False)
        self.loss = InversionLoss(load_lpips("alex"), None)
        self.classifier = LatentClassifier(num_ws=8, w_dim=8, attributes=("a", "b"), hidden=(9, 8), dim=4)
        self.classifier.eval().requires_grad_(False)
        self.labels = np.random.RandomState(0).rand(40, 2) < 0.5


@pytest.fixture(scope="module")
def nets():
    return Networks()


def _projected(nets, ws, image):
    found = optimisation.project(nets.generator, nets.loss, image, steps=2, maps=True, start=ws[:1])
    return [found.ws, found.image]


def _tuned(nets, ws, image):
    return [optimisation.tune(nets.generator, nets.loss, image, ws[:1], steps=2).image]


def _styleflow(nets, ws, image):
    probabilities = torch.from_numpy(nets.labels).float()
    found = StyleFlow(hidden=8, steps=2, batch=8).fit(ws[:, 0], probabilities)
    return [found.edit(ws[:2], 1.0, probabilities=probabilities[:2])]


def _transformer(nets, ws, image):
    return [LatentTransformer(nets.classifier, steps=2, batch=4).fit(ws, nets.labels).edit(ws[:2], 1.0)]


def _latentclr(nets, ws, image):
    found = LatentCLR(nets.generator, count=3, layer="convs.1", steps=2).fit(ws[:, 0])
    return [found.edit(ws[:2], 1.0, 1)]


def _sefa(nets, ws, image):
    return [SeFa().fit(nets.generator).edit(ws[:2], 1.0, 1)]


def _ganspace(nets, ws, image):
    return [GANSpace(components=3).fit(ws[:, 0].numpy()).edit(ws[:2], 1.0, 1)]


def _interfacegan(nets, ws, image):
    found = InterFaceGAN(share=0.2).fit(ws.numpy(), ws[:, 0, 0].numpy())
    return [found.edit(ws[:2].numpy(), 1.0)]


def _stylespace(nets, ws, image):
    return list(StyleSpace(nets.generator).fit(ws, nets.labels[:, 0]).edit(ws[:2], 1.0).values())


def _editing_in_style(nets, ws, image):
    found = EditingInStyle(nets.generator, parts=3, layer="convs.1").fit(ws)
    return list(found.edit(ws[:2], ws[2:4], 0).values())


def _trained(nets, ws, image, folder):
    recipe = recipes.LatentClassifierRecipe(steps=3, batch=8, hidden=(9, 8), dim=4)
    net, _ = recipes.train_latent_classifier("ab", (ws, nets.labels), (ws[:9], nets.labels[:9]), recipe, folder)
    editor, _ = recipes.train_reference_editor(
        nets.classifier, "a", ws, recipes.ReferenceRecipe(steps=2, batch=4, feed_forward=8), folder / "editor"
    )
    return [*net.state_dict().values(), *editor.state_dict().values()]


WORK = {
    "search in W+": _projected,
    "pivotal tuning": _tuned,
    "StyleFlow": _styleflow,
    "latent transformer": _transformer,
    "LatentCLR": _latentclr,
    "SeFa": _sefa,
    "GANSpace": _ganspace,
    "InterFaceGAN": _interfacegan,
    "StyleSpace": _stylespace,
    "Editing in Style": _editing_in_style,
    "trainings on codes": _trained,
}


@contextlib.contextmanager
def settings(name: str):
    """One of a caller's settings, taken back at the end."""
    try:
        with contextlib.ExitStack() as stack:
            if name == "float64":
                torch.set_default_dtype(torch.float64)
            elif name == "another device":
                torch.set_default_device("meta")
            elif name != "plain":
                stack.enter_context(torch.inference_mode() if name == "inference mode" else torch.no_grad())
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize("name", ["inference mode", "no gradients", "float64", "another device"])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_searches_and_fits_under_any_settings(nets, work, name, tmp_path):
    """Searches, learned editors, directions and trainings give the same numbers under any torch settings."""
    found = {}
    for setting in ("plain", name):
        more = {"folder": tmp_path / setting} if work is _trained else {}
        with settings(setting):
            z = torch.randn(40, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float32, device="cpu")
            with torch.no_grad():
                ws = nets.generator.broadcast(nets.generator.mapping(z)).contiguous()
                image = nets.generator(ws[:1]).clamp(-1, 1)
            found[setting] = work(nets, ws, image, **more)
    for mine, theirs in zip(*(map(torch.as_tensor, found[setting]) for setting in (name, "plain")), strict=True):
        assert (mine.dtype, mine.device) == (theirs.dtype, theirs.device)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        assert not mine.is_inference()
