import contextlib
import re
from pathlib import Path

import pytest
import torch

from stx import pick_device
from stx.baselines import registry
from stx.baselines.directions import Directions, TokenMaps
from stx.baselines.psp import PSP
from stx.checkpoints import weights
from stx.detail.features import FeatureEditor, FeatureEncoder
from stx.detail.hfgi import HFGI
from stx.detail.manifold import Manifold
from stx.detail.offsets import HyperStyle
from stx.latent_classifier import LatentClassifier
from stx.matched_pairs import MatchedPairs
from stx.perception.attribute_classifier import AttributeClassifier, AttributeJudge
from stx.perception.identity import IdentityNet, MobileFace, MoCo
from stx.reference_editing import ReferenceEditor
from stx.style_transformer import StyleTransformer
from stx.stylegan2.networks import Discriminator, Generator
from tests.elsewhere import elsewhere

SIZE = 16
BACKBONE = {"widths": (4, 8, 12), "units": (1, 1, 2)}


def pytest_collection_modifyitems(items):
    """Tests of minutes begin first: at the end no worker waits for another one's."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def tiny():
    """Untrained networks that fit each other, by folder name."""
    torch.manual_seed(0)
    generator = Generator(size=SIZE, z_dim=12, n_mlp=2, channel_base=64, channel_max=8)
    return {
        "generator": generator,
        "discriminator": Discriminator(size=SIZE, channel_base=64, channel_max=8),
        "style_transformer": StyleTransformer.for_generator(generator, **BACKBONE),
        "psp": PSP.for_generator(generator, input_side=SIZE, **BACKBONE),
        "classifier": AttributeClassifier(size=SIZE, attributes=("Smiling", "Hat"), **BACKBONE),
        "judge": AttributeJudge(attributes=("Smiling", "Hat"), side=32),
        "identity": IdentityNet(size=SIZE, dim=5, **BACKBONE),
        "moco": MoCo(),
        "mobileface": MobileFace(dim=7, widths=(2, 3, 3, 4, 5)),
        "latent_classifier": LatentClassifier(num_ws=6, w_dim=12, attributes=("Smiling",), hidden=(9, 8), dim=4),
        "reference_editor": ReferenceEditor(w_dim=12),
        "matched_pairs": MatchedPairs(num_ws=6, w_dim=12, attributes=("Smiling",), components=7, kinds=2),
        "directions": Directions(count=3, tokens=1, w_dim=12),
        "feature_encoder": FeatureEncoder.for_generator(generator, side=SIZE, width=4, units=1),
        "feature_editor": FeatureEditor.for_generator(generator, side=SIZE, width=4, units=1, editor_width=5),
        "hfgi": HFGI.for_generator(generator, side=SIZE, width=4, aligning=3),
        "hyperstyle": HyperStyle.for_generator(generator, side=SIZE, widths=(4, 8, 12), hidden=7, rank=2),
        "manifold": Manifold(num_ws=6, w_dim=12, components=5, calibration=9),
        "token_maps": TokenMaps(count=2, num_ws=8, w_dim=12),
    }


@pytest.fixture
def home(tmp_path, tiny):
    """A folder of saved tiny networks."""
    for name in ("generator", "discriminator", "style_transformer", "classifier", "identity"):
        weights.save(tiny[name], tmp_path / "home" / name, dtype=torch.float32)
    return tmp_path / "home"


@pytest.fixture
def own(tmp_path):
    """The file of `docs/method.md` with methods of one's own; what it adds in this process is taken out again."""
    tables = [registry.METHODS, registry.INVERTERS, registry.EDITORS]
    before = [dict(table) for table in tables]
    path = tmp_path / "mine.py"
    page = (Path(__file__).parent.parent / "docs" / "method.md").read_text()
    path.write_text(re.search(r"```python\n(# mine.py.*?)```", page, re.DOTALL)[1])
    yield path
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


@pytest.fixture(params=["here", "elsewhere"])
def device(request):
    """The device of this machine, then one that is not there and refuses what CUDA and MPS refuse."""
    with elsewhere() if request.param == "elsewhere" else contextlib.nullcontext():
        yield pick_device()
