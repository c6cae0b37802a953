"""The encoder and its optimiser against numbers of the released code (tests/golden)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stx.style_transformer import StyleTransformerEncoder
from stx.training.ranger import Ranger
from tests.golden import assert_golden, fill, image, normal


@pytest.mark.parametrize(("tag", "shape", "num_ws"), [("square", (2, 3, 64, 64), 18), ("rect", (1, 3, 48, 64), 16)])
@torch.no_grad()
def test_encoder(tag, shape, num_ws):
    encoder = fill.fill_module_(StyleTransformerEncoder(num_ws=num_ws), prefix="encoder.").eval()
    x = image("st_encoder_small", f"{tag}/x", *shape)
    query = normal("st_encoder_small", f"{tag}/query", shape[0], num_ws, 512)
    _, c1, c2, c3 = super(StyleTransformerEncoder, encoder).forward(x)
    coarse, medium, fine = encoder.stages(x, query)
    got = {"c1": c1, "c2": c2, "c3": c3, "coarse": coarse, "medium": medium, "fine": fine}
    got["codes"] = encoder(x, query)
    for stage, memory in zip(("coarse", "medium", "fine"), encoder.memories(x), strict=True):
        got[f"memory_{stage}"] = memory
    assert encoder.taps[-3:] == [6, 20, 23]
    assert_golden("st_encoder_small", {f"{tag}/{k}": v for k, v in got.items()})


def test_ranger():
    shapes = {"p": (5,), "conv": (3, 2, 3, 3), "lin": (4, 6), "bias": (4,)}
    p = {name: normal("ranger", f"param/{name}", *shape).requires_grad_() for name, shape in shapes.items()}
    a, b, x, y = (normal("ranger", n, *s) for n, s in [("A", (7, 5)), ("b", (7,)), ("x", (2, 2, 6, 6)), ("y", (3, 6))])
    optimizer, got, losses = Ranger(p.values(), lr=0.05), {}, []
    for step in range(1, 21):
        loss = 0.5 * (a @ p["p"] - b).square().sum() + F.conv2d(x, p["conv"]).square().mean()
        loss = loss + (F.linear(y, p["lin"], p["bias"]) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        before = p["conv"].grad.clone()
        optimizer.step()
        assert torch.equal(before, p["conv"].grad)
        losses.append(loss.item())
        if step % 5 == 0:
            got |= {f"step{step:02d}/{name}": value.detach().clone() for name, value in p.items()}
    assert_golden("ranger", got | {"loss": np.array(losses, np.float32)}, whole=True)
