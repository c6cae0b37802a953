"""Latent classifier, its gradients, the reference editor and the public picture transforms against stored numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stx.checkpoints import editors
from stx.domains import images
from stx.latent_classifier import LatentClassifier, calibrate, calibration_error, reliability
from stx.perception.identity import face_crop
from stx.reference_editing import ReferenceEditor
from tests.golden import assert_golden, case, fill, normal
from tests.golden import image as golden_image


def lcnet(prefix: str = "") -> dict[str, torch.Tensor]:
    """LCNet_40's state dict, filled by name."""
    shapes = {}
    for k in range(40):
        shapes |= {f"indep_fcs.{k}.weight": (32, 512), f"indep_fcs.{k}.bias": (32,)}
        shapes |= {f"output_fcs.{k}.weight": (1, 32), f"output_fcs.{k}.bias": (1,)}
    shapes |= {"fcs.0.weight": (2048, 9216), "fcs.0.bias": (2048,), "fcs.1.weight": (512, 2048), "fcs.1.bias": (512,)}
    return {k: torch.from_numpy(fill.tensor(prefix + k, shape)) for k, shape in shapes.items()}


def classifier(prefix: str = ""):
    net = editors.latent_classifier(lcnet(prefix), "lcnet_40")
    return net.eval().requires_grad_(False)


def test_latent_classifier():
    net, golden = classifier(), case("latent_classifier")
    ws = normal("latent_classifier", "w", 3, 18, 512).requires_grad_()
    logits, embeddings = net(ws)
    label, k = torch.from_numpy(golden["label"]).float(), int(golden["attr"])
    bce_attr = F.binary_cross_entropy_with_logits(logits[:, k], label[:, k])
    bce_all = F.binary_cross_entropy_with_logits(logits, label)
    got = {"logits": logits, "embeddings": embeddings, "bce_attr": bce_attr, "bce_all": bce_all}
    got["dw_attr"], got["dw_all"] = (torch.autograd.grad(x, ws, retain_graph=True)[0] for x in (bce_attr, bce_all))
    assert_golden("latent_classifier", got)


def test_reference_editor():
    b, k = 2, 5
    editor, net = fill.fill_module_(ReferenceEditor(), prefix="encoder.").eval(), classifier("classifier.")
    source, reference = (normal("ref_edit", name, b, 18, 512) for name in ("src", "ref"))
    mix = editor(source, reference)
    mix.retain_grad()
    others = [i for i in range(40) if i != k]
    (_, edited), (_, of_source), (_, of_reference) = net(mix), net(source), net(reference)
    parts = {
        "loss_l2_src_code": F.mse_loss(mix, source),
        "loss_l2_ref_attr": F.mse_loss(edited[:, k], of_reference[:, k]),
        "loss_l2_src_attr": F.mse_loss(edited[:, others], of_source[:, others]),
    }
    loss = sum(parts.values())
    loss.backward()
    grads = {name: p.grad for name, p in editor.named_parameters()}
    got = parts | {"mix": mix, "loss": loss, "dmix": mix.grad}
    got |= {f"grad/{name}": g for name, g in grads.items() if g.ndim == 1}
    got["grad_norm"] = torch.stack([g.norm() for g in grads.values()])
    assert_golden("ref_edit", got)


def test_transforms_of_the_public_code():
    picture = fill.image_u8("in/transforms_ffhq/pic", 300, 260)
    small = images.to_tensor(images.resize(picture, 256, 256))
    got = {"test": small, "inference": small, "gt_train_flipped": small.flip(2)}
    got["id_crop"] = face_crop(golden_image("transforms_ffhq", "x", 2, 3, 256, 256))
    big = golden_image("transforms_ffhq", "big", 1, 3, 512, 512)
    got["face_pool"] = F.adaptive_avg_pool2d(big, (256, 256))
    assert_golden("transforms_ffhq", got)
    theirs, ours = case("transforms_ffhq")["tensor2im"], images.to_uint8(normal("transforms_ffhq", "im", 3, 16, 16))
    assert np.abs(theirs.astype(int) - ours.astype(int)).max() <= 1  # the public code truncates, ours rounds


def test_calibration_finds_the_temperature():
    random = np.random.RandomState(0)
    true = random.randn(20_000, 2) * 2
    labels = random.rand(*true.shape) < 1 / (1 + np.exp(-true))
    net = LatentClassifier(num_ws=2, w_dim=3, attributes=("a", "b"), hidden=(4,), dim=2)
    weight = net.logit_weight.detach().clone()
    given = true * [3.0, 0.5]
    before = calibration_error(given, labels)
    temperature = calibrate(net, given, labels)
    assert temperature == pytest.approx([3.0, 0.5], rel=0.05)
    torch.testing.assert_close(net.logit_weight * torch.from_numpy(temperature).float()[:, None], weight)
    after = calibration_error(given / temperature, labels)
    assert (after < 0.02).all()
    assert (after < before).all()


def test_reliability_by_hand():
    """Four predictions of 1/4, of which one is so, and one of 0.99, which is; the other bins are empty."""
    logits = np.log([[1 / 3], [1 / 3], [1 / 3], [1 / 3], [99.0]])
    table = reliability(logits, np.array([[0.9], [0.1], [0.0], [0.2], [1.0]]))
    assert table["count"].tolist() == [0, 0, 4, 0, 0, 0, 0, 0, 0, 1]
    filled = table[table["count"] > 0]
    assert filled["predicted"].tolist() == pytest.approx([0.25, 0.99])
    assert filled["observed"].tolist() == pytest.approx([0.25, 1.0])
    assert filled["low"].iloc[0] == pytest.approx(0.0456, abs=1e-4)  # Wilson, one of four
    assert filled["high"].iloc[0] == pytest.approx(0.6994, abs=1e-4)
    assert table[table["count"] == 0][["predicted", "observed"]].isna().to_numpy().all()
    even = reliability(np.zeros((4, 1)), np.array([[1], [0], [1], [1]]))  # 1/2 is the upper edge of the fifth bin
    assert even["count"].tolist() == [0, 0, 0, 0, 4, 0, 0, 0, 0, 0]
