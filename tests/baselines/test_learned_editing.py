"""StyleFlow, latent transformer and LatentCLR on small problems whose answer is known; all methods under one call."""

import copy

import numpy as np
import pytest
import torch

from stx.baselines.learned_editing import LatentCLR, LatentTransformer, StyleFlow, contrastive
from stx.domains import datasets
from stx.evaluation import editing
from stx.latent_classifier import LatentClassifier
from stx.pipeline import Pipeline


class Reader(torch.nn.Module):
    """Logit k is four times entry k of the first token: an attribute that can be read off."""

    def forward(self, ws):
        return 4 * ws[:, 0, :2], None


def test_styleflow_moves_what_the_attribute_moves():
    random = torch.Generator().manual_seed(0)
    has = (torch.rand(2000, 1, generator=random) < 0.5).float()
    w = 0.3 * torch.randn(2000, 3, generator=random)
    w[:, 0] += 3 * has[:, 0]
    flow = StyleFlow(hidden=32, steps=150, batch=256, lr=5e-3, tolerance=1e-3).fit(w, has)
    assert np.mean(flow.losses_[-10:]) < np.mean(flow.losses_[:10]) - 0.2
    without = w[has[:, 0] == 0][:64, None].expand(-1, 2, -1)
    p = torch.zeros(64, 1)
    change = (flow.edit(without, 1.0, probabilities=p) - without).mean((0, 1))
    assert change[0] == pytest.approx(3, abs=0.5)
    assert change[1:].abs().max() < 0.3
    torch.testing.assert_close(flow.edit(without, 0.0, probabilities=p), without)


def test_latent_transformer_changes_the_attribute_and_keeps_the_rest():
    random = torch.Generator().manual_seed(0)
    ws = torch.randn(800, 2, 4, generator=random)
    labels = (ws[:, 0, :2] > 0).numpy()
    found = LatentTransformer(Reader(), steps=200, batch=32, lr=1e-2, weights=(1.0, 0.01, 0.1)).fit(ws, labels)
    assert np.mean(found.losses_[-10:]) < 0.7 * np.mean(found.losses_[:10])
    without = ws[~labels[:, 0]][:50]
    change = (found.edit(without, 1.0) - without).mean(0)
    assert change[0, 0] > 0.3
    assert change[0, 0] > 3 * change.flatten()[1:].abs().max()
    torch.testing.assert_close(found.edit(without, 0.0, 1), without)


def test_contrastive_loss_is_small_for_groups_that_agree():
    alike = torch.eye(3).repeat_interleave(2, 0)
    group = [0, 0, 1, 1, 2, 2]
    assert float(contrastive(alike, group, 0.5)) == pytest.approx(-2.0)  # log(e^0 / e^2)
    assert float(contrastive(torch.ones(6, 3), group, 0.5)) == pytest.approx(0.0, abs=1e-6)


def test_latentclr_finds_directions_that_differ(tiny):
    generator = copy.deepcopy(tiny["generator"]).eval().requires_grad_(False)
    w = generator.mapping(torch.randn(60, 12, generator=torch.Generator().manual_seed(0)))
    found = LatentCLR(generator, count=4, layer="convs.1", steps=40, codes=3).fit(w)
    assert found.directions_.shape == (4, 12)
    np.testing.assert_allclose(np.linalg.norm(found.directions_, axis=1), 1, rtol=1e-5)
    assert found.losses_[-1] < found.losses_[0]
    ws = generator.broadcast(w[:2])
    torch.testing.assert_close(found.edit(ws, 2.0, 1)[0, 3], w[0] + 2 * torch.from_numpy(found.directions_[1]))


@pytest.mark.parametrize("attributes", [("a", "b"), ("a",)])
def test_every_method_edits_codes_under_one_call(tiny, attributes, device):
    networks = {k: copy.deepcopy(v).eval().requires_grad_(False).to(device) for k, v in tiny.items()}
    torch.manual_seed(0)
    net = LatentClassifier(num_ws=6, w_dim=12, attributes=attributes, hidden=(9, 8), dim=4)
    net.requires_grad_(False).to(device)
    world = datasets.Domain("toy", 16, (16, 16), attributes, lambda *args, **kwargs: None)
    pipe = Pipeline(world, networks["generator"], networks["style_transformer"], device)
    ws = pipe.sample(120).contiguous()
    logits = (ws[:, 0] - ws[:, 0].mean(0))[:, : len(attributes)].cpu().numpy()
    few = {"flow_steps": 2, "transformer_steps": 2, "contrastive_steps": 2}
    methods = editing.Methods(pipe, net, lambda: (ws, logits), **few)
    assert len(methods) == 10
    assert not methods.fitted
    unedited = pipe.synthesize(ws[:3])
    for name, method in methods.items():
        for target in (0.0, 1.0):
            edit = method(ws[:3], len(attributes) - 1, target)
            torch.testing.assert_close(pipe.synthesize(edit(0.0)), unedited, atol=1e-4, rtol=0)
            assert pipe.reconstruct(edit(2.0)).shape == unedited.shape
            assert not torch.equal(pipe.synthesize(edit(2.0)), unedited), name
